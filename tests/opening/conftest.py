"""Fixtures of the opening tests."""

import pytest

from walpool.system.calls import calls


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs return at once: for sweeps of hundreds of openings that are not about the disk."""
    monkeypatch.setattr(calls, "fdatasync", lambda fd: None)
    monkeypatch.setattr(calls, "fsync", lambda fd: None)
