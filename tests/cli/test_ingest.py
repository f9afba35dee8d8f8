"""`walpool ingest`: every line is in the log exactly once, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support import until
from walpool import WALReader, WALWriter

from .conftest import (
    Run,
    Running,
    Start,
    assert_no_traceback,
    entries,
    lines_of,
    values_by_key,
    wait_for_entries,
    write_lines,
)

WORKERS = 4


@pytest.fixture
def two_files(tmp_path: Path) -> list[Path]:
    return [write_lines(tmp_path / "one.txt", 60_000), write_lines(tmp_path / "two.txt", 40_000)]


@pytest.fixture
def big_files(tmp_path: Path) -> list[Path]:
    """Enough for every worker to be in the middle of something for a while."""
    return [write_lines(tmp_path / "one.txt", 100_000), write_lines(tmp_path / "two.txt", 100_000)]


@pytest.mark.slow
def test_the_lines_of_files_by_path_and_number(run: Run, log: Path, two_files: list[Path]) -> None:
    ended = run("ingest", log, *two_files)
    assert ended.code == 0, ended.err
    assert values_by_key(log) == lines_of(*two_files)
    assert "appended  100,000 lines" in ended.text


@pytest.mark.slow
def test_the_result_as_json(run: Run, log: Path, two_files: list[Path]) -> None:
    result = run("ingest", log, *two_files, "--json").json
    assert result["schema"] == 1
    assert (result["lines"], result["skipped"], result["workers_replaced"]) == (100_000, 0, 0)
    assert (result["first_lsn"], result["last_lsn"], result["durable_lsn"]) == (1, 100_000, 100_000)
    assert result["complete"] is True


@pytest.mark.parametrize("mode", ["none", "normal", "full"])
def test_every_sync_mode_ends_with_everything_on_disk(run: Run, log: Path, tmp_path: Path, mode: str) -> None:
    file = write_lines(tmp_path / "lines.txt", 2_000)
    result = run("ingest", log, file, "--sync", mode, "--json").json
    assert (result["lines"], result["durable_lsn"]) == (2_000, 2_000)
    assert values_by_key(log) == lines_of(file)


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"no line feed at the end", [b"no line feed at the end"]),
        (b"a\n\nb\r\n", [b"a", b"", b"b\r"]),
        (b"\xff\x00\n" * 2, [b"\xff\x00"] * 2),
    ],
)
def test_what_a_line_is(run: Run, log: Path, tmp_path: Path, content: bytes, values: list[bytes]) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert run("ingest", log, file, "--final").code == 0
    assert [bytes(entry.value) for entry in entries(log)] == values


def test_a_worker_keeps_the_order_of_its_lines(run: Run, log: Path, two_files: list[Path]) -> None:
    assert run("ingest", log, *two_files, "--workers", "1").code == 0
    assert [bytes(entry.key) for entry in entries(log)] == list(lines_of(*two_files))


def test_batches_have_the_size_asked_for(run: Run, log: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "lines.txt", 1_000)
    assert run("ingest", log, file, "--batch", "100", "--workers", "1").code == 0
    with WALReader(log) as reader:
        assert {batch.count for batch in reader.batches()} == {100}


def test_a_batch_shrinks_to_what_a_segment_takes(run: Run, log: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "lines.txt", 5_000)
    assert run("ingest", log, file, "--batch", "100000", "--size-limit", "4K").code == 0
    assert values_by_key(log) == lines_of(file)
    assert max(path.stat().st_size for path in log.glob("*.wal")) <= 4096


def test_a_line_that_fits_no_segment_is_named(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_bytes(b"short\n" + b"x" * 5_000 + b"\n")
    ended = run("ingest", log, file, "--size-limit", "4096")
    assert ended.code == 2
    assert "long.txt:2:" in ended.err
    assert_no_traceback(ended)
    assert values_by_key(log) == {f"{file}:1".encode(): b"short"}


def test_a_line_over_the_limit_is_named(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_bytes(b"short\n" + b"x" * (11 << 20))
    ended = run("ingest", log, file)
    assert ended.code == 2
    assert "long.txt:2:" in ended.err
    assert_no_traceback(ended)
    assert values_by_key(log) == {f"{file}:1".encode(): b"short"}


def test_stdin_counts_on_from_run_to_run(run: Run, log: Path) -> None:
    assert run("ingest", log, data=b"one\ntwo\n").code == 0
    assert run("ingest", log, "-", data=b"three\nfour").code == 0
    assert values_by_key(log) == {b"-:1": b"one", b"-:2": b"two", b"-:3": b"three", b"-:4": b"four"}


def test_a_lot_of_stdin(run: Run, log: Path, two_files: list[Path]) -> None:
    data = two_files[0].read_bytes()
    assert run("ingest", log, data=data).code == 0
    found = values_by_key(log)
    assert [found[b"-:%d" % number] for number in range(1, len(found) + 1)] == data.splitlines()


def test_stdin_from_a_regular_file(start: Start, log: Path, two_files: list[Path]) -> None:
    with two_files[0].open("rb") as file:
        assert start("ingest", log, stdin=file.fileno()).wait().code == 0
    assert len(entries(log)) == 60_000


def test_a_line_of_stdin_goes_in_before_stdin_ends(start: Start, log: Path) -> None:
    running = start("ingest", log, "-", "--verbose", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(b"now\n")
    running.process.stdin.flush()
    running.read_worker()
    wait_for_entries(log, 1)
    running.process.stdin.write(b"then")
    running.process.stdin.flush()
    assert running.wait().code == 0
    assert values_by_key(log) == {b"-:1": b"now", b"-:2": b"then"}


@pytest.mark.slow
def test_what_is_in_already_is_skipped(run: Run, log: Path, two_files: list[Path]) -> None:
    assert run("ingest", log, two_files[0]).code == 0
    ended = run("ingest", log, *two_files, "--json")
    assert (ended.json["lines"], ended.json["skipped"]) == (40_000, 60_000)
    assert values_by_key(log) == lines_of(*two_files)


def test_a_file_that_grew_is_continued(run: Run, log: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "lines.txt", 1_000)
    assert run("ingest", log, file).code == 0
    write_lines(file, 1_500)
    assert run("ingest", log, file, "--json").json["lines"] == 500
    assert values_by_key(log) == lines_of(file)


def test_a_line_that_changed_is_refused(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\nthree\n")
    assert run("ingest", log, file).code == 0
    file.write_bytes(b"one\nTWO\nthree\nfour\n")
    ended = run("ingest", log, file)
    assert ended.code == 1
    assert_no_traceback(ended)
    assert "file:2:" in ended.err
    assert len(entries(log)) == 3


def test_a_file_that_became_shorter_is_refused(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\nthree\n")
    assert run("ingest", log, file).code == 0
    file.write_bytes(b"one\ntwo\n")
    ended = run("ingest", log, file)
    assert ended.code == 1
    assert_no_traceback(ended)
    assert "file:3:" in ended.err


def test_keys_of_others_are_left_alone(run: Run, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\n")
    with WALWriter(log) as writer:
        for key in (b"other", b"-:", b"-:01", b"-:x", f"{file}:".encode(), b"a:" + b"9" * 10_000):
            writer.put(key, b"not a line")
        writer.delete(f"{file}:1".encode())
    assert run("ingest", log, file, "-", data=b"stdin\n").code == 0
    # Two files are two workers' work: which comes first is theirs.
    assert {bytes(entry.key) for entry in entries(log)[7:]} == {f"{file}:1".encode(), b"-:1"}
    assert len(entries(log)) == 9


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_what_is_no_file_is_refused_before_anything_is_made(run: Run, log: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    ended = run("ingest", log, path)
    assert ended.code == 2
    assert_no_traceback(ended)
    assert not log.exists()


def start_ingest(start: Start, log: Path, files: list[Path], *more: str) -> Running:
    """An ingest of which all workers are known and at work."""
    return all_known(start("ingest", log, *files, "--workers", str(WORKERS), "--batch", "20", "--verbose", *more))


def start_held_ingest(start: Start, log: Path, files: list[Path]) -> Running:
    """The same, and it goes on until its stdin is closed: so a worker that is killed has always a successor."""
    words = ("ingest", log, *files, "-", "--workers", str(WORKERS), "--batch", "20", "--verbose")
    return all_known(start(*words, stdin=subprocess.PIPE))


def all_known(running: Running) -> Running:
    for _ in range(WORKERS):
        running.read_worker()
    return running


@pytest.mark.slow
def test_killed_workers_are_replaced_and_nothing_is_lost_or_doubled(
    start: Start, log: Path, big_files: list[Path]
) -> None:
    running = start_held_ingest(start, log, big_files)
    for number in range(1, 7):
        wait_for_entries(log, number * 15_000)
        running.kill(running.workers[-WORKERS])
        running.read_worker()  # its successor
    running.close_stdin()
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert ended.err.count("was killed by SIGKILL") == 6
    assert values_by_key(log) == lines_of(*big_files)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_has_nothing_of_the_command_but_its_connection_and_the_lock(
    start: Start, log: Path, tmp_path: Path
) -> None:
    """Else a pipe that feeds the command would not be closed by its end, and a worker would outlive its parent."""
    running = start_held_ingest(start, log, [write_lines(tmp_path / "lines.txt", 20_000)])
    for pid in running.workers:
        until(partial(has_opened, log, pid), "it opens the log")
        names = open_files(pid)
        own = (str(log), "/proc/")  # psutil looks there, now and then
        others = {fd: name for fd, name in names.items() if not name.startswith(own) and fd != 2}
        assert others.pop(0) == others.pop(1) == "/dev/null"
        assert [name.partition(":")[0] for name in others.values()] == ["socket"], others
        assert list(names.values()).count(f"{log}/ingest.lock") == 1
        assert os.getpgid(pid) == pid
    running.close_stdin()
    assert running.wait().code == 0


def has_opened(log: Path, pid: int) -> bool:
    files = open_files(pid)
    return files.get(1) == "/dev/null" and f"{log}/slots.lock" in files.values()


def open_files(pid: int) -> dict[int, str]:
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return found


@pytest.mark.slow
def test_all_workers_killed_at_once(start: Start, log: Path, big_files: list[Path]) -> None:
    running = start_held_ingest(start, log, big_files)
    wait_for_entries(log, 30_000)
    for pid in list(running.workers):
        running.kill(pid)
    for _ in range(WORKERS):
        running.read_worker()
    running.close_stdin()
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert values_by_key(log) == lines_of(*big_files)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "normal"])
def test_the_command_killed_and_started_again(
    start: Start, run: Run, log: Path, big_files: list[Path], mode: str
) -> None:
    for entries_first in (1, 30_000, 60_000):
        running = start_ingest(start, log, big_files, "--sync", mode)
        wait_for_entries(log, entries_first)
        running.kill()
        running.end()  # its workers may still be at work: the next one waits for them
    ended = run("ingest", log, *big_files, "--sync", mode)
    assert ended.code == 0, ended.err
    assert values_by_key(log) == lines_of(*big_files)


@pytest.mark.slow
def test_the_command_and_its_workers_killed_and_started_again(
    start: Start, run: Run, log: Path, big_files: list[Path]
) -> None:
    running = start_held_ingest(start, log, big_files)
    wait_for_entries(log, 50_000)
    running.kill()
    for pid in running.workers:
        try:
            running.kill(pid)
        except ProcessLookupError:
            pass  # it was quicker to see that its parent is gone
    running.end()
    ended = run("ingest", log, *big_files, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["skipped"] >= 50_000
    assert values_by_key(log) == lines_of(*big_files)


@pytest.mark.slow
def test_ctrl_c_stops_in_order_and_the_same_command_goes_on(
    start: Start, run: Run, log: Path, big_files: list[Path]
) -> None:
    running = start_held_ingest(start, log, big_files)
    wait_for_entries(log, 20_000)
    running.process.send_signal(signal.SIGINT)
    ended = running.wait()
    assert ended.code == 130
    assert "interrupted" in ended.err and "Traceback" not in ended.err
    held = len(entries(log))
    assert f"appended  {held:,} lines" in ended.text
    for pid in running.workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert run("ingest", log, *big_files).code == 0
    assert values_by_key(log) == lines_of(*big_files)


def test_ctrl_c_loses_no_line_that_was_read_from_stdin(start: Start, log: Path) -> None:
    running = start("ingest", log, "--verbose", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(b"one\ntwo\n")
    running.process.stdin.flush()
    running.read_worker()  # so the lines have been read
    running.process.send_signal(signal.SIGINT)
    ended = running.wait()
    assert ended.code == 130
    assert values_by_key(log) == {b"-:1": b"one", b"-:2": b"two"}


def test_a_second_ingest_waits_for_the_first_and_gives_up_with_4(start: Start, run: Run, log: Path) -> None:
    first = start("ingest", log, "--verbose", stdin=subprocess.PIPE)
    assert first.process.stdin is not None
    first.process.stdin.write(b"one\n")
    first.process.stdin.flush()
    first.read_worker()
    ended = run("ingest", log, "--wait", "0.1", data=b"two\n")
    assert ended.code == 4
    assert_no_traceback(ended)
    assert first.wait().code == 0
    assert run("ingest", log, data=b"two\n").code == 0
    assert values_by_key(log) == {b"-:1": b"one", b"-:2": b"two"}


@pytest.mark.slow
def test_two_ingests_of_the_same_file_at_once(start: Start, log: Path, two_files: list[Path]) -> None:
    both = [start("ingest", log, *two_files, "--json") for _ in range(2)]
    ended = [each.wait() for each in both]
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    assert sum(each.json["lines"] for each in ended) == 100_000
    assert values_by_key(log) == lines_of(*two_files)


@pytest.mark.slow
def test_nothing_is_left_running(run: Run, log: Path, two_files: list[Path]) -> None:
    ended = run("ingest", log, *two_files, "--verbose")
    pids = [int(line.rpartition(" ")[2]) for line in ended.err.splitlines() if "started: pid" in line]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
