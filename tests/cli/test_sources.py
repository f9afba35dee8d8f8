"""What `walpool ingest` takes lines from: files that grow, are replaced, are packed, hold a line that is too long."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import edges
from walpool.cli.exits import CommandError
from walpool.cli.ingest import source
from walpool.cli.pool.lines import Intake, LineCutter, LongLines, file_runs
from walpool.cli.pool.sources import READ_BYTES
from walpool.cli.pool.unpack import STEP_BYTES, Unpacker
from walpool.format.entry import MAX_VALUE_BYTES

from .conftest import Run, assert_no_traceback, entries, values_by_key, write_lines

EXTENDED = b"three\nfour\n"


def values(log: Path) -> list[bytes]:
    return [bytes(entry.value) for entry in entries(log)]


# A file that is still being written


def test_half_a_line_waits_for_its_end(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"one\ntwo\nthr")
    ended = run("ingest", log, file)
    assert ended.code == 0
    assert "held back 1 last lines" in ended.text
    assert values(log) == [b"one", b"two"]
    assert run("ingest", log, file, "--json").json["held_back"] == 1
    with file.open("ab") as more:
        more.write(b"ee\nfour\n")
    assert run("ingest", log, file, "--json").json["lines"] == 2
    assert values(log) == [b"one", b"two", b"three", b"four"]


def test_final_takes_what_there_is_and_a_file_that_grows_all_the_same_is_not_stuck(
    run: Run, log: Path, tmp_path: Path
) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"one\nthr")
    assert run("ingest", log, file, "--final").code == 0
    assert values(log) == [b"one", b"thr"]
    assert run("ingest", log, file).code == 0
    with file.open("ab") as more:
        more.write(b"ee\nfour\n")
    for _ in range(2):
        ended = run("ingest", log, file)
        assert ended.code == 0, ended.err
        assert values(log) == [b"one", b"thr", b"three", b"four"]
    assert [bytes(entry.key) for entry in entries(log)][1:3] == [f"{file}:2".encode()] * 2


def test_a_last_line_that_became_another_is_refused(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"one\nthr")
    assert run("ingest", log, file, "--final").code == 0
    file.write_bytes(b"one\nThree\n")
    assert run("ingest", log, file).code == 1
    assert values(log) == [b"one", b"thr"]


def replaced(file: Path) -> None:
    other = file.with_suffix(".new")
    other.write_bytes(file.read_bytes())
    other.rename(file)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced": (replaced, "replaced by another file"),
    "shorter": (lambda file: file.write_bytes(b"one\n"), "became shorter"),
    "gone": (lambda file: file.unlink(), "No such file"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_file_under_the_name_is_an_error_that_names_it(tmp_path: Path, what: str) -> None:
    change, reason = CHANGES[what]
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\n")
    seen = source(str(file))
    change(file)
    with pytest.raises(CommandError, match=reason) as caught:
        list(file_runs(seen))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("left", [0, READ_BYTES])
def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path, left: int) -> None:
    file = write_lines(tmp_path / "lines.txt", 50_000)
    reading = file_runs(source(str(file)))
    next(reading)
    with file.open("rb+") as cut:
        cut.truncate(left)
    with pytest.raises(CommandError, match="became shorter"):
        list(reading)


def test_a_file_that_was_opened_is_read_whatever_its_name_leads_to(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "lines.txt", 50_000)
    whole = file.read_bytes()
    reading = file_runs(source(str(file)))
    data = next(reading).data
    replaced(file)
    assert data + b"".join(run.data for run in reading) == whole


@pytest.mark.usefixtures("linux")
def test_a_file_without_a_size_is_read_to_its_end(run: Run, log: Path) -> None:
    status = Path("/proc/self/status")
    assert status.stat().st_size == 0
    result = run("ingest", log, status, "--json").json
    assert result["lines"] > 20
    assert any(value.startswith(b"Pid:") for value in values(log))


@pytest.mark.usefixtures("linux")
def test_a_file_that_has_less_than_its_size_is_read_to_its_end(run: Run, log: Path) -> None:
    made_up = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not made_up.exists() or made_up.stat().st_size == len(made_up.read_bytes()):
        pytest.skip("no such file in /sys")
    assert run("ingest", log, made_up).code == 0
    assert values(log) == made_up.read_bytes().splitlines()


def test_what_is_wrong_with_a_file_keeps_no_other_out(run: Run, log: Path, tmp_path: Path) -> None:
    first, second, third = (write_lines(tmp_path / name, 10) for name in ("first", "second", "third"))
    assert run("ingest", log, first, second).code == 0
    second.write_bytes(b"another\ntext\n")
    ended = run("ingest", log, first, second, third)
    assert ended.code == 1
    assert_no_traceback(ended)
    assert "second:1: the log holds this line with another text" in ended.err
    assert len(entries(log)) == 30
    again = run("ingest", log, first, second, third, "--json")
    assert (again.code, again.json["skipped"], len(again.json["problems"])) == (1, 20, 1)


# Lines that are too long


@pytest.mark.slow
@pytest.mark.parametrize(("size_limit", "limit"), [("64M", MAX_VALUE_BYTES), ("4K", None)])
@pytest.mark.parametrize("mode", LongLines)
def test_what_stands_around_a_long_line_goes_in(
    run: Run, log: Path, tmp_path: Path, mode: LongLines, size_limit: str, limit: int | None
) -> None:
    file, other = tmp_path / "a.log", tmp_path / "b.log"
    name = str(file).encode()
    if limit is None:
        limit = Intake(size_limit=4096).limit(name, 2)
    fits, long = b"f" * limit, b"x" * (limit + 1)
    file.write_bytes(b"\n".join([b"first", long, b"after", fits, b"last", b""]))
    other.write_bytes(b"other\n")
    ended = run("ingest", log, file, other, "--long-lines", mode, "--size-limit", size_limit, "--json")
    assert ended.code == (2 if mode is LongLines.ERROR else 0), ended.err
    assert ended.json["too_long"] == 1
    assert (f"{file}:2:" in ended.err) == (mode is LongLines.ERROR)
    lines = [b"first", *([b"x" * limit, b"x"] if mode is LongLines.SPLIT else [None]), b"after", fits, b"last"]
    expected = {b"%b:%d" % (name, number): line for number, line in enumerate(lines, 1) if line is not None}
    assert values_by_key(log) == {**expected, f"{other}:1".encode(): b"other"}
    again = run("ingest", log, file, other, "--long-lines", mode, "--size-limit", size_limit, "--json")
    assert (again.json["lines"], again.json["skipped"]) == (0, len(expected) + 1)


def test_many_long_lines_are_counted_and_not_all_said(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_bytes((b"x" * 5000 + b"\nshort\n") * 100)
    ended = run("ingest", log, file, "--size-limit", "4K", "--json")
    assert (ended.code, ended.json["too_long"], ended.json["lines"]) == (2, 100, 100)
    assert len(ended.err.splitlines()) < 20


@pytest.mark.parametrize("mode", ["error", "skip", "split"])
def test_a_long_line_of_stdin(run: Run, log: Path, mode: str) -> None:
    data = b"first\n" + b"x" * (MAX_VALUE_BYTES + 7) + b"\nlast"
    ended = run("ingest", log, "--long-lines", mode, "--workers", "1", data=data)
    assert ended.code == (2 if mode == "error" else 0)
    middle = [b"x" * MAX_VALUE_BYTES, b"x" * 7] if mode == "split" else []
    assert values(log) == [b"first", *middle, b"last"]


def cut_at_once(data: bytes, mode: LongLines, limit: int) -> dict[int, bytes]:
    """What each line number has, by the plainest way there is."""
    found: dict[int, bytes] = {}
    number = 1
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for line in lines:
        pieces = [line]
        if len(line) > limit:
            pieces = [line[at : at + limit] for at in range(0, len(line), limit)] if mode is LongLines.SPLIT else []
        for piece in pieces:
            found[number] = piece
            number += 1
        number += not pieces
    return found


@given(
    st.lists(edges.binary(3, 4, max_size=12).map(lambda data: data.replace(b"b", b"\n"))), st.sampled_from(LongLines)
)
def test_how_bytes_come_changes_no_number_of_a_line(pieces: list[bytes], mode: LongLines) -> None:
    class Narrow(Intake):
        def limit(self, name: bytes, line: int) -> int:
            return 3

    intake = Narrow(long_lines=mode)
    cutter = LineCutter(b"name", intake=intake)
    runs = [run for piece in pieces for run in cutter.feed(piece)]
    runs += cutter.finish()
    found = {run.first_line + at: line for run in runs for at, line in enumerate(run.lines())}
    data = b"".join(pieces)
    assert found == cut_at_once(data, mode, 3)
    assert intake.too_long == sum(len(line) > 3 for line in data.split(b"\n"))


# Packed files


def zstd(data: bytes) -> bytes:
    compression = pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    packed: bytes = compression.compress(data)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zstd": zstd,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACK)
def test_packed_files_are_known_by_their_first_bytes(run: Run, log: Path, tmp_path: Path, kind: str) -> None:
    lines = write_lines(tmp_path / "plain", 30_000).read_bytes()
    file = tmp_path / "whatever.log"
    half = lines.index(b"\n", len(lines) // 2) - 5  # in the middle of a line
    file.write_bytes(PACK[kind](lines[:half]) + PACK[kind](lines[half:]))
    assert run("ingest", log, file).code == 0
    expected = {f"{file}:{n}".encode(): line for n, line in enumerate(lines.splitlines(), 1)}
    assert values_by_key(log) == expected
    assert run("ingest", log, file, "--json").json["skipped"] == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACK)
def test_packed_stdin(run: Run, log: Path, kind: str) -> None:
    assert run("ingest", log, data=PACK[kind](b"one\ntwo\n")).code == 0
    assert values(log) == [b"one", b"two"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("spoil", ["cut", "garbled"])
def test_packed_data_that_is_damaged_is_named_and_keeps_no_other_out(
    run: Run, log: Path, tmp_path: Path, kind: str, spoil: str
) -> None:
    file, other = tmp_path / "packed", tmp_path / "other"
    packed = bytearray(PACK[kind](write_lines(tmp_path / "plain", 2_000).read_bytes()))
    if spoil == "cut":
        del packed[-4:]
    else:
        packed[len(packed) // 2] ^= 0xFF
        packed[-5] ^= 0xFF
    file.write_bytes(packed)
    other.write_bytes(b"other\n")
    ended = run("ingest", log, file, other)
    assert ended.code == 1
    assert_no_traceback(ended)
    assert f"{file}: the {kind} data" in ended.err
    assert values(log)[-1] == b"other" or b"other" in values(log)
    assert run("ingest", log, data=bytes(packed)).code == 1


@pytest.mark.slow
def test_what_only_looks_packed_at_first_is_text(run: Run, log: Path) -> None:
    for text in (b"BZ", b"BZh9 is how a bz2 file begins", b"\x1f\x8b", b"B"):
        assert run("ingest", log, data=text).code == 0
    assert values(log) == [b"BZ", b"BZh9 is how a bz2 file begins", b"\x1f\x8b", b"B"]


@pytest.mark.parametrize("kind", ["gzip", "xz"])
def test_zeros_behind_packed_data_are_padding(kind: str) -> None:
    unpacker = Unpacker()
    packed = PACK[kind](b"one\n") + bytes(8) + PACK[kind](b"two\n") + bytes(512)
    out = [part for at in range(len(packed)) for part in unpacker.feed(packed[at : at + 1])]
    out += unpacker.finish()
    assert b"".join(out) == b"one\ntwo\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACK)
def test_much_that_was_packed_into_little_comes_in_small_steps(kind: str) -> None:
    data = b"0" * 99 + b"\n"
    unpacker = Unpacker()
    parts = list(unpacker.feed(PACK[kind](data * 100_000)))
    assert sum(map(len, parts)) == 10_000_000
    assert max(map(len, parts)) <= STEP_BYTES
    assert list(unpacker.finish()) == []


def test_zstd_without_the_extra_is_a_line(log: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    code = (
        "import sys; sys.modules['compression.zstd'] = sys.modules['backports.zstd'] = None\n"
        "from walpool.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "ingest", str(log), str(tmp_path / "packed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"walpool ingest: {tmp_path}/packed: zstd input needs an extra: pip install 'walpool[zstd]'\n",
    )
    assert not log.exists()


# Names


def test_a_rotated_file_keeps_its_key(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(b"one\ntwo\n")
    assert run("ingest", log, "app.log", cwd=tmp_path).code == 0
    rotated = file.rename(tmp_path / "app.log.1")
    with rotated.open("ab") as more:
        more.write(EXTENDED)
    packed = tmp_path / "app.log.1.gz"
    packed.write_bytes(gzip.compress(rotated.read_bytes()))
    for name in ("app.log.1", "app.log.1.gz"):
        assert run("ingest", log, name, "--as", "app.log", cwd=tmp_path).code == 0
        assert values_by_key(log) == {
            b"app.log:%d" % number: line for number, line in enumerate([b"one", b"two", b"three", b"four"], 1)
        }


@pytest.mark.slow
def test_stdin_is_always_new_unless_it_continues_something(run: Run, log: Path) -> None:
    for _ in range(2):
        assert run("ingest", log, data=b"one\n").code == 0
        assert run("ingest", log, "-", "--as", "app.log", data=b"one\ntwo\n").code == 0
    assert values_by_key(log) == {
        b"-:1": b"one", b"-:2": b"one",
        b"app.log:1": b"one", b"app.log:2": b"two", b"app.log:3": b"one", b"app.log:4": b"two",
    }  # fmt: skip


@pytest.mark.parametrize("words", [["a", "b", "--as", "c"], ["a", "--as", ""], ["-", "--files-from", "-"]])
def test_names_that_contradict_each_other_are_refused(run: Run, log: Path, tmp_path: Path, words: list[str]) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"line\n")
    ended = run("ingest", log, *words, cwd=tmp_path, data=b"")
    assert ended.code == 2
    assert_no_traceback(ended)
    assert not log.exists()


@pytest.mark.slow
@pytest.mark.parametrize("between", [b"\n", b"\0"])
@pytest.mark.parametrize("place", ["list", "-"])
def test_names_from_a_file(run: Run, log: Path, tmp_path: Path, between: bytes, place: str) -> None:
    names = [b"a", b"with space", b"caf\xe9"]
    for name in names:
        (tmp_path / name.decode("utf-8", "surrogateescape")).write_bytes(name + b"\n")
    listed = between.join([*names, b""])
    (tmp_path / "list").write_bytes(listed)
    ended = run("ingest", log, "--files-from", place, cwd=tmp_path, data=listed if place == "-" else None)
    assert ended.code == 0, ended.err
    assert values_by_key(log) == {name + b":1": name for name in names}


def test_no_names_are_no_lines_and_not_stdin(run: Run, log: Path) -> None:
    assert run("ingest", log, "--files-from", "-", data=b"").text.startswith("appended  0 lines")
