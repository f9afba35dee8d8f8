"""Each row of the fault matrix names tests that exist, or the reason why there are none."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.matrix import ROWS

ROOT = Path(__file__).resolve().parent.parent
COUNTS = {"K": 7, "F": 3, "P": 5, "E": 8, "C": 5, "S": 7, "N": 3, "R": 2, "L": 3}


def test_every_fault_has_its_row() -> None:
    assert list(ROWS) == [f"{kind}{number}" for kind, count in COUNTS.items() for number in range(1, count + 1)]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_exist_or_says_why_there_are_none(row: str) -> None:
    assert ROWS[row].tests or ROWS[row].not_run
    for named in ROWS[row].tests:
        file, _, name = named.partition("::")
        assert (ROOT / file).is_file(), f"{named}: there is no such file"
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"there is no {named}"
