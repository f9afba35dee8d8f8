"""Output: it is written whole or the exit status says so, and what happens to stderr changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from walpool import WALReader, WALWriter
from walpool.system import signals

from .conftest import WALPOOL, Run

FULL = Path("/dev/full")
COUNT = 20_000


@pytest.fixture
def held(log: Path) -> Path:
    """A log of more than a pipe takes."""
    with WALWriter(log) as writer:
        for number in range(COUNT):
            writer.put(b"key", b"value %d" % number)
    return log


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--format", "raw"], ["--json"]])
def test_a_non_blocking_pipe_gets_every_byte(run: Run, held: Path, unbuffered: str, words: list[str]) -> None:
    expected = run("cat", held, *words).out
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)  # as a pipe or terminal that is shared with node, ssh or asyncio
    cat = subprocess.Popen(
        [*WALPOOL, "cat", str(held), *words], stdout=theirs, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}
    )
    os.close(theirs)
    try:
        with open(ours, "rb") as pipe:
            pipe.read(1)
            got = pipe.read()
        assert cat.wait(60) == 0
    finally:
        cat.kill()
        cat.wait()
    assert len(got) + 1 == len(expected)
    assert got == expected[1:]


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    [
        ["cat", "LOG"], ["cat", "LOG", "--from", str(COUNT)], ["dump", "LOG"], ["stat", "LOG"], ["verify", "LOG"],
        ["repair", "LOG"], ["prune", "LOG"], ["checkpoint", "LOG", "1"], ["ingest", "LOG"], ["cat", "--help"],
        ["monitor", "LOG", "--once", "--interval", "0.05"], ["--help"], ["--version"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_full_disk_is_in_the_exit_status(held: Path, words: list[str], unbuffered: str) -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [*WALPOOL, *(str(held) if word == "LOG" else word for word in words)],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert done.returncode == 74
    assert b"No space left" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("words", [["cat", "LOG"], ["cat", "LOG", "--follow"], ["dump", "LOG"]], ids=" ".join)
def test_a_signal_in_the_middle_leaves_a_prefix(run: Run, held: Path, words: list[str]) -> None:
    """No byte is written twice, whatever was under way when it came."""
    words = [str(held) if word == "LOG" else word for word in words]
    expected = run(*(word for word in words if word != "--follow")).out
    for first_bytes in (1, 5_000, 100_000, 300_000):
        with subprocess.Popen([*WALPOOL, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as command:
            assert command.stdout is not None
            got = command.stdout.read(first_bytes)
            command.send_signal(signal.SIGTERM)
            got += command.stdout.read()
            assert command.wait(60) in (0, 143)
        assert expected.startswith(got)


def test_a_signal_waits_for_the_end_of_what_is_held() -> None:
    told: list[int] = []
    with signals.handled(told.append):
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            assert told == []
        assert told == [signal.SIGTERM]
        with signals.held():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)  # what is held takes too long
            assert told[1:] == [signal.SIGTERM]
        assert told[2:] == [signal.SIGHUP]


@pytest.mark.parametrize("words", [["--help"], ["stat", "--help"], ["cat", "--help"], ["--version"]], ids=" ".join)
def test_help_that_nobody_reads_is_no_error(words: list[str]) -> None:
    broken = closed_reader()
    try:
        done = subprocess.run([*WALPOOL, *words], stdout=broken, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(broken)
    assert (done.returncode, done.stderr) == (0, b"")


def closed_reader() -> int:
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed", "broken", "full"])
def test_what_happens_to_stderr_changes_no_result(tmp_path: Path, how: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\n")
    log = tmp_path / "log"
    broken = closed_reader()
    redirect = {"closed": "2>&-", "broken": "", "full": "2>/dev/full"}[how]
    try:
        for words, code in (
            (["ingest", log, file, "--verbose"], 0), (["verify", log], 0), (["stat", log], 0),
            (["cat", tmp_path / "nothing"], 3), (["ingest", log, tmp_path / "nothing"], 2), (["no-such-command"], 2),
        ):  # fmt: skip
            line = " ".join([*WALPOOL, *map(str, words), redirect])
            stderr = broken if how == "broken" else None
            done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, stderr=stderr, timeout=60, check=False)
            assert (words[0], done.returncode) == (words[0], code)
    finally:
        os.close(broken)
    assert [entry.value for entry in WALReader(log)] == [b"one", b"two"]


def test_nothing_is_printed_into_a_log_in_the_place_of_what_was_closed(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\n")
    line = " ".join([*WALPOOL, "ingest", str(tmp_path / "log"), str(file), "--verbose", "0<&-", "1>&-", "2>&-"])
    assert subprocess.run(["sh", "-c", line], timeout=60, check=False).returncode == 0
    assert [entry.value for entry in WALReader(tmp_path / "log")] == [b"one", b"two"]
    assert run("verify", tmp_path / "log").text.startswith("no damage")


def test_a_reader_that_goes_away_does_not_turn_damage_into_success(held: Path) -> None:
    segment = held / "00000000000000000001.wal"
    data = bytearray(segment.read_bytes())
    data[200] ^= 0xFF
    segment.write_bytes(data)
    broken = closed_reader()
    try:
        verify = [*WALPOOL, "verify", str(held), "--json"]
        assert subprocess.run(verify, stdout=broken, timeout=60, check=False).returncode == 1
    finally:
        os.close(broken)
