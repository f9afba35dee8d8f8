"""Real file systems that lose what was not synced, under living writers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.crash.real_cut import checkpoint_as_it_dies, cut_again_and_again
from tests.support import Start


@pytest.mark.parametrize(("kind", "cuts"), [("ext4", 6), ("xfs", 3), ("btrfs", 3)])
def test_what_was_synced_survives_the_cut_of_a_real_file_system(
    child: Start, memory: Path, seed: int, kind: str, cuts: int
) -> None:
    """Every writer stops, with a typed error or by SIGBUS. FULL appends are there; of NORMAL a suffix may be gone."""
    found = child(cut_again_and_again, memory, seed, cuts, kind).result()
    if isinstance(found, str):
        pytest.skip(found)
    assert isinstance(found, Counter)
    assert found["cuts"] == cuts and found["full"] > cuts, found


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_checkpoint_on_a_device_that_dies_is_refused_or_survives(child: Start, memory: Path, kind: str) -> None:
    found = child(checkpoint_as_it_dies, memory, kind).result()
    if isinstance(found, str):
        pytest.skip(found)
    assert found["returned"] >= 1 and found["raised"] >= 3, found
