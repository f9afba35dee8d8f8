"""A real ext4 that loses what was not synced, under living writers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.crash.real_cut import cut_again_and_again
from tests.support import Start


@pytest.mark.parametrize("cuts", [6])
def test_what_was_synced_survives_the_cut_of_a_real_file_system(
    child: Start, memory: Path, seed: int, cuts: int
) -> None:
    """Every writer stops with a typed error; every FULL append is there; of NORMAL, a suffix may be gone."""
    found = child(cut_again_and_again, memory, seed, cuts).result()
    if isinstance(found, str):
        pytest.skip(found)
    assert isinstance(found, Counter)
    assert found["cuts"] == cuts and found["full"] > cuts, found
