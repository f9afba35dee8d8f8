"""Place, whatever it is given, and whatever stands in the memory it shares: it appends what Python would, or nothing.

tests/crash/test_core_place.py kills it, and has its calls fail.
"""

from __future__ import annotations

import ast
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from tests.crash.failpoints import GIVEN
from tests.native.builds import loaded
from tests.native.test_twins import ODD_BYTES, ODD_NUMBERS, ROUNDS
from tests.native.twins import TWINS
from tests.support import ROOT
from walpool import WALWriter
from walpool.format.names import MAX_LSN
from walpool.native import select
from walpool.shared.control import COMMIT, COPIES, DURABLE, GROWTH, INTENT, STOP, LogState
from walpool.system.shared_words import WORD
from walpool.write import appender, place

pytestmark = pytest.mark.skipif(not select.core_in_use, reason="the compiled core does not run here")


FIELDS = len(LogState._fields)
LATE_NS = time.time_ns() + 3_600_000_000_000  # an append is stamped with this: both with the same
STATE_WORDS = [copy // WORD + field for copy in COPIES for field in range(FIELDS)]
WORDS = [STOP, COMMIT, INTENT, DURABLE, GROWTH, GROWTH + 1, *STATE_WORDS]
TIMES = [copy // WORD + LogState._fields.index("last_append_ns") for copy in COPIES]
NEXT_LSNS = [copy // WORD + LogState._fields.index("next_lsn") for copy in COPIES]


class Unusual(Exception):
    pass


def unusual(*_: object) -> NoReturn:
    raise Unusual


class Both:
    """One log, to which Python and the core append from the same state of memory and files, one after the other."""

    def __init__(self, writer: WALWriter) -> None:
        opened = writer._handle.open()
        assert opened.row is not None
        self.place = opened.appender
        self.core: Any = self.place.core
        self.words, self.row = opened.log.control.words, opened.row.words
        self.file = Path(self.place.active.segment.file.path)
        self.place._look_around = unusual  # type: ignore[method-assign]
        for at in TIMES:
            self.words[at] = LATE_NS
        self.before = self.now()

    def now(self) -> tuple[bytes, bytes, bytes]:
        return bytes(self.words), bytes(self.row), self.file.read_bytes()

    def set(self, state: tuple[bytes, bytes, bytes], changes: dict[int, int]) -> None:
        for view, data in zip((self.words, self.row), state, strict=False):
            view.cast("B")[:] = data  # nobody else looks
        self.file.write_bytes(state[2])
        for at, value in changes.items():
            self.words[at] = value

    def append(
        self, how: Callable[..., int], changes: dict[int, int], *body: Any
    ) -> tuple[Any, tuple[bytes, bytes, bytes]]:
        self.set(self.before, changes)
        try:
            answer: Any = how(*body)
        except Exception as error:
            answer = type(error)
        return answer, self.now()


@pytest.fixture
def both(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    monkeypatch.setattr(appender, "LOOK_NS", 1 << 62)
    monkeypatch.setattr(appender, "LOOK_LSNS", 1 << 62)
    monkeypatch.setattr(place, "core", loaded(Path(os.environ[GIVEN])) if GIVEN in os.environ else select.core)
    with WALWriter(log, size_limit=1 << 14) as writer:
        for number in range(5):
            writer.put(b"key", bytes(100), number)
        both = Both(writer)
        yield both
        both.set(both.before, {})
        del both.place._look_around


def hostile_words(chance: Random, words: memoryview) -> dict[int, int]:
    changes = {}
    for _ in range(chance.randrange(4)):
        at = chance.choice(WORDS)
        near = min(max(0, words[at] + chance.randrange(-200, 200)), (1 << 64) - 1)
        large = [1 << 14, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 48, MAX_LSN - 1, MAX_LSN, 1 << 63, (1 << 64) - 1]
        value = chance.choice([0, 1, near, near, *large, chance.randrange(1 << 14), chance.getrandbits(64)])
        changes[at] = max(value, LATE_NS) if at in TIMES else value
    return changes


def test_from_a_hostile_control_block_the_core_appends_what_python_would_or_nothing(both: Both, seed: int) -> None:
    chance = Random(seed)
    taken = left = 0
    for changes in [*({at: 0} for at in NEXT_LSNS), *(hostile_words(chance, both.words) for _ in range(ROUNDS))]:
        count = chance.choice([1, 1, 2, 32, 5000])
        body = chance.randbytes(chance.choice([0, 16, 40, 300, 5000, 16_000])), count, chance.choice([16, 200, 70_000])
        wanted, after = both.append(both.place.append, changes, *body)
        answer, there = both.append(both.core.append, changes, *body)
        if answer:
            assert (answer, there) == (wanted, after), (seed, changes, body[1:])
            taken += 1
            continue
        left += 1
        usual = all(value <= MAX_LSN and (value or at not in NEXT_LSNS) for at, value in changes.items())
        assert wanted is Unusual or not usual, (seed, changes, body[1:])
        untouched = [at for at in range(len(both.words)) if at != INTENT]
        both.set(both.before, changes)
        assert [there[0][at * 8 : at * 8 + 8] for at in untouched] == [
            both.words[at].to_bytes(8, "little") for at in untouched
        ]
        assert there[1:] == both.before[1:]
    assert taken > ROUNDS // 10 and left > ROUNDS // 10, (taken, left)


def test_what_is_odd_is_not_put_and_changes_nothing(both: Both) -> None:
    usual = [b"key", b"value", 1]
    assert both.append(both.core.put, {}, *usual)[0] == 6
    for at, odd in enumerate((ODD_BYTES, ODD_BYTES, ODD_NUMBERS)):
        for value in odd:
            args = [*usual[:at], value, *usual[at + 1 :]]
            answer, there = both.append(both.core.put, {}, *args)
            good = (
                isinstance(value, bytes) and type(value) is bytes
                if at < 2
                else value is None or (type(value) is int and 0 <= value < 1 << 64)
            )
            assert answer == (6 if good else 0), args
            assert good or there == both.before, args
    for args in ([], usual[:2], [*usual, 1]):
        assert both.append(both.core.put, {}, *args) == (0, both.before)


def test_what_is_odd_is_not_appended_and_changes_nothing(both: Both) -> None:
    usual = [bytes(40), 2, 30]
    assert both.append(both.core.append, {}, *usual)[0] == 6
    for at, odd in enumerate((ODD_BYTES, ODD_NUMBERS, ODD_NUMBERS)):
        for value in odd:
            args = [*usual[:at], value, *usual[at + 1 :]]
            answer, there = both.append(both.core.append, {}, *args)
            if not answer:
                assert there == both.before, args
            else:
                assert type(value) in (bytes, int) and (answer, there) == both.append(both.place.append, {}, *args), (
                    args
                )
    for args in ([], usual[:2], [*usual, 1]):
        assert both.append(both.core.append, {}, *args) == (0, both.before)


@pytest.mark.parametrize("name", ["count", "ready", "look_first", "refuse"])
def test_what_is_told_with_odd_arguments_is_refused_or_changes_no_log(both: Both, name: str, seed: int) -> None:
    chance = Random(seed)
    wanted = {"count": 2, "ready": 7}.get(name, 0)
    for _ in range(200):
        both.core.look_first()
        args = [
            chance.choice([*ODD_NUMBERS, *ODD_BYTES])
            for _ in range(chance.choice([wanted, wanted, chance.randrange(9)]))
        ]
        try:
            getattr(both.core, name)(*args)
        except (TypeError, OverflowError, ValueError):
            pass
        with pytest.raises(TypeError):
            getattr(both.core, name)(wrong=1)
        _, _, stored = both.now()
        assert stored == both.before[2], args
        both.set(both.before, {})
        answer = both.core.append(bytes(40), 2, 30)
        assert not answer or name == "ready", args
        both.set(both.before, {})


def test_a_place_that_was_refused_takes_nothing_and_can_be_told_everything(both: Both) -> None:
    both.core.refuse()
    both.core.refuse()
    both.core.ready(*both.place.active[:3], 1 << 14, 1 << 62, 0, 1 << 62, None)
    both.core.count(5, 100)
    assert both.core.put(b"key", b"value", 1) == both.core.append(bytes(40), 2, 30) == 0
    assert both.now() == both.before


# Making one


def parts(folder: Path) -> dict[str, Any]:
    """What a place is made of, without a log."""
    (folder / "lock").touch()
    return {
        "layout": place._LAYOUT, "block": mmap.mmap(-1, 1 << 14), "row": mmap.mmap(-1, 1 << 14),
        "mutex": threading.RLock(), "others": [0], "waits": SimpleNamespace(contended=0, sample=False),
        "chores": SimpleNamespace(due=False), "lock_fd": os.open(folder / "lock", os.O_RDWR), "slot": 3,
        "may_wait": True,
    }  # fmt: skip


ODD_PARTS: list[Any] = [
    None, 5, -1, 1 << 70, "text", b"", bytearray(8), bytes(1 << 14), memoryview(bytearray(1 << 14)), [], (), [1, 2],
    (1,) * len(place._LAYOUT), (*place._LAYOUT[:-1], 1), (*place._LAYOUT, 1), object(), threading.Lock(),
    SimpleNamespace(), mmap.mmap(-1, 8), mmap.mmap(-1, 4096, prot=mmap.PROT_READ),
]  # fmt: skip


def test_a_place_of_odd_parts_is_refused_or_appends_nothing(tmp_path: Path) -> None:
    assert select.core is not None
    usual = parts(tmp_path)
    try:
        with open(tmp_path / "segment", "w+b") as segment:
            made = refused = 0
            for name in usual:
                for odd in ODD_PARTS:
                    given = {**usual, name: odd}
                    try:
                        core = select.core.Place(*given.values())
                    except (TypeError, ValueError, OverflowError, BufferError, AttributeError):
                        refused += 1
                        continue
                    made += 1
                    core.ready(1, 7, segment.fileno(), 1 << 14, 1 << 62, 0, 1 << 62, None)
                    assert core.put(b"key", b"value", 1) == core.append(bytes(16), 1, 16) == 0, (name, odd)
                    core.refuse()
            assert made > 20 and refused > 100, (made, refused)
            assert segment.read() == b""
        with pytest.raises(TypeError):
            select.core.Place(**usual)
        with pytest.raises(TypeError):
            select.core.Place(*usual.values(), 1)
    finally:
        os.close(usual["lock_fd"])
    usual["block"].close()  # nobody holds it any more: no BufferError
    usual["row"].close()


# All of it

HERE = "tests/native/test_place.py"
TWINS_TESTS = "tests/native/test_twins.py"
FUZZED = {
    **{f"twin {name}": (TWINS_TESTS, "test_an_odd_argument_changes_no_outcome") for name in TWINS},
    "twin encode_entries": (TWINS_TESTS, "test_any_entries_are_encoded_alike"),
    "twin check_body": (TWINS_TESTS, "test_hostile_bodies_are_decoded_and_checked_alike"),
    "twin decode_body": (TWINS_TESTS, "test_hostile_bodies_are_decoded_and_checked_alike"),
    "twin read_frame": (TWINS_TESTS, "test_hostile_frames_are_read_alike"),
    "twin read_run": (TWINS_TESTS, "test_hostile_runs_are_read_alike"),
    "twin": (HERE, "test_there_is_no_twin_of_what_is_odd"),
    "crc32c": (HERE, "test_what_is_odd_is_not_summed"),
    "table_crc32c": (HERE, "test_what_is_odd_is_not_summed"),
    "Place": (HERE, "test_a_place_of_odd_parts_is_refused_or_appends_nothing"),
    "Place.put": (HERE, "test_what_is_odd_is_not_put_and_changes_nothing"),
    "Place.append": (HERE, "test_from_a_hostile_control_block_the_core_appends_what_python_would_or_nothing"),
    **{f"Place.{name}": (HERE, "test_what_is_told_with_odd_arguments_is_refused_or_changes_no_log")
       for name in ("count", "ready", "look_first", "refuse")},
}  # fmt: skip


def test_there_is_no_twin_of_what_is_odd() -> None:
    assert select.core is not None
    for name, function in TWINS.items():
        python = select.python_of(function)
        for needs in ([], [None], [tuple], [tuple] * 9, *([odd] * 5 for odd in (5, str, "", Unusual))):
            try:
                select.core.twin(python, *needs)
            except TypeError as error:
                assert f"{name} has no twin" in str(error)
    for odd in [*ODD_BYTES, unusual, SimpleNamespace(__name__=5), SimpleNamespace(__name__="encode_one")]:
        if getattr(odd, "__name__", None) != "encode_one":
            with pytest.raises((TypeError, AttributeError)):
                select.core.twin(odd)
    with pytest.raises(TypeError):
        select.core.twin()


def test_what_is_odd_is_not_summed() -> None:
    core = select.core
    assert core is not None
    for function in (core.crc32c, core.table_crc32c):
        for odd in ODD_BYTES:
            try:
                assert function(odd) == core.crc32c(bytes(odd)), odd
            except TypeError:
                assert type(odd) not in (bytes, bytearray), odd
        for odd in ODD_NUMBERS:
            try:
                assert 0 <= function(b"data", odd) < 1 << 32
            except (TypeError, OverflowError):
                assert type(odd) is not int or not 0 <= odd < 1 << 32, odd
        for args in ((), (b"", 1, 2)):
            with pytest.raises(TypeError):
                function(*args)


def test_every_function_of_the_core_is_fuzzed() -> None:
    core = select.core
    assert core is not None
    public = {name for name in dir(core) if callable(getattr(core, name)) and not name.startswith("_")}
    methods = {f"Place.{name}" for name in dir(core.Place) if callable(getattr(core.Place, name)) and name[0] != "_"}
    assert FUZZED.keys() == {*public, *methods, *(f"twin {name}" for name in TWINS)}
    for file, test in FUZZED.values():
        tree = ast.parse((ROOT / file).read_text())
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file} has no {test}"
