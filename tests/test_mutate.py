"""The tool that changes walpool a token at a time: what it changes, which tests it asks, and what it makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import walpool
from tools import mutate, reached
from tools.mutate import Mutant
from tools.reached import Reached

TEXT = """\
LIMIT = 3

def first(a, b=1):
    if a < b and not a:
        a.append(
            7)
        b.append(a)
    return a

def second(a):
    return LIMIT
"""
PINS = ["tests/shared/test_pins.py::test_a_pin_moves_with_its_reader"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (mutate, reached):
        monkeypatch.setattr(module, "SOURCE", tmp_path)
    file = tmp_path / "room.py"
    file.write_text(TEXT)
    return file


def map_of(folder: Path, tests: dict[str, dict[str, Any]], texts: dict[str, str]) -> Reached:
    file = folder / "map.json"
    file.write_text(json.dumps({"tests": tests, "files": {}, "texts": texts}))
    return Reached(file)


def test_every_kind_of_change_is_made_and_knows_the_lines_that_run_with_it(source: Path) -> None:
    found = {(each.kind, each.old.partition(" [")[0], each.new): each.lines for each in mutate.mutants_of(source)}
    assert found == {
        ("constant", "3", "4"): [4, 5, 6, 7, 8, 11],  # whoever needs the module
        ("constant", "1", "2"): [4, 5, 6, 7, 8],  # whoever calls the function
        ("comparison", "<", "<="): [4],
        ("and, or", "and", "or"): [4],
        ("not", "not", ""): [4],
        ("constant", "7", "8"): [5, 6],
        ("left out", "a.append( 7)", "pass"): [5, 6],
        ("left out", "b.append(a)", "pass"): [7],
        ("order", "a.append( 7) b.append(a)", "b.append(a) a.append( 7)"): [5, 6],
    }


def test_the_tests_that_reach_a_line_are_asked_those_of_its_room_and_the_quickest_first(
    source: Path, tmp_path: Path
) -> None:
    tests = {
        "tests/room/slow": {"seconds": 9.0, "lines": {"room/file.py": [5, 6]}},
        "tests/room/quick": {"seconds": 0.2, "lines": {"room/file.py": [6]}},
        "tests/other/quicker": {"seconds": 0.1, "lines": {"room/file.py": [6]}},
        "tests/room/elsewhere": {"seconds": 0.1, "lines": {"room/file.py": [8], "room/other.py": [5]}},
    }
    (source.parent / "room").mkdir()
    (source.parent / "room" / "file.py").write_text(TEXT)
    found = map_of(tmp_path, tests, {"room/file.py": TEXT}).of("room/file.py", [5, 6])
    assert found == ["tests/room/quick", "tests/room/slow", "tests/other/quicker"]


def test_a_line_that_has_moved_is_found_and_a_new_one_is_for_all_who_reach_the_file(
    source: Path, tmp_path: Path
) -> None:
    tests = {"second": {"seconds": 0.1, "lines": {"room.py": [11]}}}
    known = map_of(tmp_path, tests, {"room.py": TEXT})
    source.write_text(TEXT.replace("LIMIT = 3\n", "LIMIT = 3\nMORE = 4\n"))
    assert known.of("room.py", [12]) == ["second"]
    assert known.of("room.py", [11]) == []
    assert known.knows("room.py", [11, 12])
    assert not known.knows("room.py", [2])
    assert known.of("room.py", [2]) == ["second"], "whoever reaches the file"


def test_one_test_at_least_is_asked_and_then_as_many_as_there_is_time_for(tmp_path: Path) -> None:
    tests = {name: {"seconds": 2.0, "lines": {}} for name in "abcd"}
    known = map_of(tmp_path, tests, {})
    assert list(known.within("abcd", 5.0)) == ["a", "b"]
    assert list(known.within("abcd", 1.0)) == ["a"]


@pytest.mark.skipif(
    not Path(walpool.__file__).is_relative_to(reached.SOURCE), reason="what runs is not what lies in the checkout"
)
def test_what_a_test_reaches_is_taken_down_with_what_its_children_reach(tmp_path: Path) -> None:
    """A child of the nursery, in which the writer opens the log."""
    file = "tests/write/test_steered_clocks.py"
    test = f"{file}::test_a_child_forked_while_another_thread_opens_the_log_opens_it_itself"
    forks = "tests/shared/test_metrics.py::test_a_forked_child_starts_from_zero"  # which ends in a file of its own
    found = reached.take_down([PINS[0], forks, test], 1)
    assert found.keys() == {PINS[0], forks, test}
    assert not found[PINS[0]]["lines"].keys() & {"write/handle.py", "shared/checkpoint.py"}
    assert found[PINS[0]]["lines"]["shared/pins.py"]
    text = (reached.SOURCE / "write/handle.py").read_text().splitlines()
    lines = [text[line - 1].strip() for line in found[test]["lines"]["write/handle.py"]]
    assert "session, self.session, self.hot = self.session, None, None" in lines  # after_fork: the child's child


def test_a_mutant_is_killed_or_lives_or_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutate, "SURFACE", PINS[0])  # which takes a while
    text = (reached.SOURCE / "shared/pins.py").read_text()
    old = "if first_lsn != self.at:"
    at = text[: text.index(old)].count("\n") + 1
    turned, same = (
        Mutant("shared/pins.py", at, "", text.replace(old, new), old, new, [at])
        for new in ("if first_lsn == self.at:", "if not first_lsn == self.at:")
    )
    texts = {"shared/pins.py": text}
    known = map_of(tmp_path, {PINS[0]: {"seconds": 0.1, "lines": {"shared/pins.py": [at]}}}, texts)
    assert mutate.lives(turned, known) is None
    assert mutate.lives(same, known) == "1 of 1 tests that reach it passed"
    assert mutate.lives(turned, map_of(tmp_path, {}, texts)) == "not reached"
