"""Everything at once, killed again and again; and one log that all the test runner's own processes share."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.stress import one_round
from tests.support import METHODS, Channel, Ledger, Start, append_op, entries_of, judge, read_log
from walpool import SyncMode, WALReader, WALWriter


def assert_there_was_stress(counts: Counter[str], kills: int) -> None:
    assert counts["kills"] == kills
    assert counts["entries"] > 1000 and counts["removed"] > 0, counts


@pytest.mark.slow
def test_writers_followers_a_keeper_and_a_monitor_are_killed_at_random(tmp_path: Path, seed: int) -> None:
    """Started in every way that there is."""
    assert_there_was_stress(one_round(tmp_path / "round", seed, METHODS, 6), 6)


def fork_them(channel: Channel, folder: Path, seed: int) -> Counter[str]:
    return one_round(folder, seed, ("fork",), 15)


@pytest.mark.slow
def test_forked_ones_are_killed_at_random(child: Start, tmp_path: Path, seed: int) -> None:
    """From a process that has no threads, which a test runner's has."""
    assert_there_was_stress(child(fork_them, tmp_path / "round", seed).result(), 15)


class SharedPlace:
    """A directory that all processes of one test run share. The last one out judges the log in it, and removes it."""

    def __init__(self, run: str) -> None:
        self.path = Path(tempfile.gettempdir()) / f"walpool-{run}"
        self.log = self.path / "events.wal"
        self.acks = self.path / "acks"
        self._me = self.path / "users" / str(os.getpid())

    def __enter__(self) -> SharedPlace:
        while True:
            self.path.mkdir(mode=0o700, exist_ok=True)
            lock = self._lock()
            if lock is None:
                continue  # the last one out has removed it as we came
            for folder in (self.acks, self._me):
                folder.mkdir(parents=True, exist_ok=True)
            os.close(lock)
            return self

    def _lock(self) -> int | None:
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if os.stat(self.path).st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)
        return None

    def __exit__(self, *exception: object) -> None:
        lock = self._lock()
        assert lock is not None, "nobody removes it as long as we are there"
        try:
            self._me.rmdir()
            if not any((self.path / "users").iterdir()):
                try:
                    judge(read_log(self.log), Ledger.read_all(self.acks))
                finally:
                    shutil.rmtree(self.path)
        finally:
            os.close(lock)


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedPlace]:
    with SharedPlace(os.environ.get("PYTEST_XDIST_TESTRUNUID", f"alone-{os.getpid()}")) as place:
        yield place


@pytest.mark.parametrize("case", range(6))
def test_the_runners_own_processes_share_a_log(shared: SharedPlace, seed: int, case: int) -> None:
    """Each case is an author; beside it are those of the other processes, if the run has any."""
    chance = random.Random(seed)
    mode = (SyncMode.NORMAL, SyncMode.FULL)[case % 2]
    author = f"{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}c{case}p{os.getpid()}"
    ledger = Ledger(shared.acks, author)
    told: dict[int, range] = {}
    with WALWriter(shared.log, mode, 20_000) as writer:
        for op in range(150):
            if chance.random() < 0.02:
                writer.rotate()
            told[op] = ledger.append(writer, op)
    ledger.close()
    with WALReader(shared.log, told[0].start) as reader:
        mine = [entry for entry in reader.read_all() if bytes(entry.key).startswith(author.encode() + b"/")]
    assert [entry.lsn for entry in mine] == [lsn for lsns in told.values() for lsn in lsns]
    assert [entry._replace(lsn=0) for entry in mine] == [entry for op in told for entry in entries_of(author, op)]


def test_the_last_one_out_removes_the_shared_place_and_finds_what_is_wrong(tmp_path: Path) -> None:
    run = f"own-{os.getpid()}"
    for lie in (False, True):
        first = SharedPlace(run)
        with first:
            ledger = Ledger(first.acks, "me")
            with WALWriter(first.log) as writer:
                ledger.append(writer, 0)
                if lie:
                    append_op(writer, "nobody", 0)
            ledger.close()
            second = first.path / "users" / "1"
            second.mkdir()
            second.rmdir()
            if lie:
                with pytest.raises(AssertionError, match="nobody appended this"):
                    first.__exit__()
                first.__enter__()
                WALWriter(first.log).close()
        assert not first.path.exists()
