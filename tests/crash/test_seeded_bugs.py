"""The harness finds what it is there to find: each seeded bug, one at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.failpoints import cannot_build
from tests.crash.seeded import BUGS, Bug, find

pytestmark = pytest.mark.slow  # `tools/dev.py check` is for every minute of a day


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name.replace(" ", "-") for bug in BUGS])
def test_a_seeded_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    if bug.file.startswith("native/") and cannot_build():
        pytest.skip(cannot_build())
    assert find(bug, tmp_path) is not None, f"the harness does not see it: {bug.name}"


def test_a_change_that_is_no_bug_is_not_found(tmp_path: Path) -> None:
    """Or a finder that always fails would find everything."""
    harmless = BUGS[0]._replace(name="nothing", new=BUGS[0].old + "\n", finder="cut: turns, prune, failed sync")
    assert find(harmless, tmp_path, states=900) is None


def test_there_are_enough_of_them_with_names_of_their_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 20
