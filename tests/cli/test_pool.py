"""The pool's rooms by themselves: cutting lines, the ledger, and a crew whose workers cannot work."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import edges
from walpool import SyncMode, WALWriter
from walpool.cli.exits import CommandError, Exit
from walpool.cli.ingest import source
from walpool.cli.pool import crew
from walpool.cli.pool.ledger import Ledger, SourceChanged, without_published
from walpool.cli.pool.lines import LineCutter, Parcel, Run, file_runs
from walpool.cli.pool.load import LoadOptions, Reports, load
from walpool.cli.pool.sources import READ_BYTES

from .conftest import Run as RunCommand
from .conftest import Start, assert_no_traceback, entries, lines_of, values_by_key, write_lines


@given(st.lists(edges.binary(3, 4, max_size=12).map(lambda data: data.replace(b"b", b"\n"))))
def test_lines_do_not_depend_on_how_the_bytes_come(pieces: list[bytes]) -> None:
    cutter = LineCutter(b"name")
    runs = [run for piece in pieces for run in cutter.feed(piece)]
    runs += cutter.finish()
    data = b"".join(pieces)
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line for run in runs for line in run.lines()] == expected
    assert [run.first_line for run in runs] == [1 + sum(run.count for run in runs[:at]) for at in range(len(runs))]
    assert sum(run.count for run in runs) == len(expected)


def test_runs_of_a_file_stay_small_and_are_cut_at_line_ends(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "lines.txt", 50_000)
    runs = list(file_runs(source(str(file))))
    assert len(runs) > 3 and max(len(run.data) for run in runs) <= READ_BYTES + 200
    assert b"".join(run.data for run in runs) == file.read_bytes()


def test_a_file_is_read_up_to_the_size_it_has_when_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\n")
    reading = file_runs(source(str(file)))
    with file.open("ab") as more:
        more.write(b"three\n")
    data = [next(reading).data]
    with file.open("ab") as more:
        more.write(b"four\n")
    data += [run.data for run in reading]
    assert data == [b"one\ntwo\nthree\n"]


RUN = Run(b"f", 3, 4, b"c\nd\ne\nf\n")


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ({}, ["3 c d e f"]),
        ({3: b"c"}, ["4 d e f"]),
        ({6: b"f"}, ["3 c d e"]),
        ({4: b"d", 5: b"e"}, ["3 c", "6 f"]),
        ({3: b"c", 4: b"d", 5: b"e", 6: b"f"}, []),
        ({1: b"other", 7: b"other"}, ["3 c d e f"]),
    ],
)
def test_the_ledger_says_what_is_missing(held: dict[int, bytes], missing: list[str]) -> None:
    ledger = Ledger({b"f": 10})
    for line, value in held.items():
        ledger.note(b"f:%d" % line, value)
    parts = list(ledger.missing(RUN))
    assert [f"{part.first_line} {b' '.join(part.lines()).decode()}" for part in parts] == missing
    assert all(part.count == len(part.lines()) for part in parts)


def test_the_ledger_refuses_another_text() -> None:
    ledger = Ledger({b"f": 10})
    ledger.note(b"f:4", b"D")
    with pytest.raises(SourceChanged, match="f:4"):
        list(ledger.missing(RUN))


def test_a_hostile_line_number_takes_no_memory() -> None:
    ledger = Ledger({b"f": 10})
    ledger.note(b"f:%d" % 10**15, b"")
    assert ledger.highest[b"f"] == 10**15
    assert list(ledger.missing(RUN)) == [RUN]


def test_what_a_dead_worker_published_is_told_from_the_rest(log: Path) -> None:
    runs = (Run(b"a", 1, 2, b"1\n2\n"), Run(b"b", 5, 3, b"5\n6\n7\n"))
    with WALWriter(log) as writer:
        writer.put(b"b:7", b"an entry before the parcel was handed out")
        for key in (b"a:1", b"a:2", b"b:5"):
            writer.put(key, key[2:])
    published, missing = without_published(Parcel(runs), log, 2)
    assert published == (runs[0], Run(b"b", 5, 1, b"5\n"))
    assert missing == (Run(b"b", 6, 2, b"6\n7\n"),)


def test_workers_that_never_work_end_the_command(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "run", lambda connection, keep_open: sys.exit(3))
    file = write_lines(tmp_path / "lines.txt", 10)
    said: list[str] = []
    reports = Reports(said.append, lambda entries: None, lambda *figures: None)
    with pytest.raises(CommandError, match="5 workers in a row") as caught:
        load(LoadOptions(log, 2, SyncMode.NORMAL, 1 << 20, 10, 1.0), [source(str(file))], None, reports)
    assert caught.value.code is Exit.IO
    assert len(said) == 5 and all("ended with code 3" in line for line in said)


@pytest.mark.slow
def test_what_every_worker_warns_of_is_said_once(run: RunCommand, log: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import logging, sys\n"
        "if 'walpool' in ' '.join(sys.orig_argv):\n"
        "    from walpool import WALWriter\n"
        "    opening = WALWriter.__init__\n"
        "    def warns(self, *args, **options):\n"
        "        opening(self, *args, **options)\n"
        "        logging.getLogger('walpool').warning('this happens to everyone')\n"
        "    WALWriter.__init__ = warns\n"
    )
    files = [write_lines(tmp_path / f"file{number}", 20_000) for number in range(4)]
    ended = run("ingest", log, *files, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert ended.code == 0
    assert ended.err == "walpool: this happens to everyone\n"


@pytest.mark.slow
def test_a_full_disk_ends_the_command_and_the_same_command_goes_on(
    start: Start, run: RunCommand, log: Path, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "lines.txt", 50_000)

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    ended = start("ingest", log, file, preexec_fn=small_files_only).wait()
    assert ended.code == 74
    assert_no_traceback(ended)
    assert 0 < len(entries(log)) < 50_000
    assert run("ingest", log, file).code == 0
    assert values_by_key(log) == lines_of(file)
