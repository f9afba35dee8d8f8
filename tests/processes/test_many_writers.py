"""Several processes and threads append to one log at once, while others read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.processes import workers
from tests.support import DEADLINE_S, METHODS, Child, Ledger, Start, digest, entries_of, judge, read_log
from walpool import SyncMode, WALReader

WRITERS, THREADS = 4, 2


def start_together(children: list[Child]) -> None:
    for each in children:
        assert each.receive() == "ready"
    for each in children:
        each.send("go")


def entries_in(ops: int) -> int:
    return sum(len(entries_of("x", op)) for op in range(ops))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "mode"), [*[(method, SyncMode.NORMAL) for method in METHODS], ("subprocess", SyncMode.FULL)]
)
def test_every_entry_is_there_once_in_order_whoever_appended_it(
    child: Start, log: Path, tmp_path: Path, method: str, mode: SyncMode
) -> None:
    ops = 600 if mode is SyncMode.NORMAL else 80
    writers = [
        child(
            workers.append_many, log, tmp_path / "acks", f"p{n}", THREADS, ops, 20_000, mode,
            method=method,
        )
        for n in range(WRITERS)
    ]  # fmt: skip
    for each in writers:
        assert each.receive() == "ready"
    expected = entries_in(ops) * WRITERS * THREADS
    follower = child(workers.follow, log, expected, mode is SyncMode.FULL, method=method)
    assert follower.receive() == "ready"
    for each in writers:
        each.send("go")
    with WALReader(log) as reader:
        followed = list(islice(reader.follow(timeout=DEADLINE_S), expected))
    for each in writers:
        each.result()
    entries = read_log(log)
    judge(entries, Ledger.read_all(tmp_path / "acks"))
    assert len(entries) == expected
    assert followed == entries
    lsns, digested = follower.result()
    assert lsns == list(range(1, expected + 1))
    assert digested == digest(entries)
    assert len(list(log.glob("*.wal"))) > 5, "many rotations were part of it"
    assert max(path.stat().st_size for path in log.glob("*.wal")) <= 20_000


def test_readers_that_start_anywhere_see_the_same_entries(child: Start, log: Path, tmp_path: Path) -> None:
    writers = [
        child(workers.append_many, log, tmp_path / "acks", f"p{n}", 1, 400, 10_000, SyncMode.NORMAL) for n in range(2)
    ]
    start_together(writers)
    seen: dict[int, bytes] = {}
    start = 1
    while start <= 2 * entries_in(400):
        with WALReader(log, start=start) as reader:
            for entry in reader:
                assert entry.lsn == start
                seen[entry.lsn] = bytes(entry.key) + bytes(entry.value)
                start += 1
                if start % 97 == 0:
                    break
    for each in writers:
        each.result()
    assert seen == {entry.lsn: bytes(entry.key) + bytes(entry.value) for entry in read_log(log)}


@pytest.fixture(scope="module")
def openers() -> Iterator[list[Child]]:
    """Eight processes that are there already: what they are told to do, they do at the same instant."""
    started = [Child("subprocess", workers.open_at_once, ()) for _ in range(8)]
    yield started
    for each in started:
        each.end()


def all_open_at_once(openers: list[Child], log: Path, acks: Path, round_: str) -> None:
    for number, each in enumerate(openers):
        each.send((log, acks, f"{round_}p{number}", 20))
    start_together(openers)
    answers = [each.receive() for each in openers]
    for each in openers:
        assert each.ask("close") == "closed"
    assert sum(recovered for recovered, _ in answers) == 1, "one of them makes the control block"
    assert len({inode for _, inode in answers}) == 1


def test_processes_that_open_a_new_log_at_the_same_instant_share_one(openers: list[Child], tmp_path: Path) -> None:
    for round_ in range(5):
        log, acks = tmp_path / f"{round_}.wal", tmp_path / f"{round_}.acks"
        all_open_at_once(openers, log, acks, "")
        judge(read_log(log), Ledger.read_all(acks))


def no_control(log: Path) -> None:
    (log / "control").unlink()


def another_boot(log: Path) -> None:
    block = bytearray((log / "control").read_bytes())
    block[24] ^= 1
    (log / "control").write_bytes(block)


def garbage(log: Path) -> None:
    (log / "control").write_bytes(b"\xa5" * (log / "control").stat().st_size)


def no_lock_files(log: Path) -> None:
    for path in log.glob("*.lock"):
        path.unlink()


@pytest.mark.parametrize("spoil", [no_control, another_boot, garbage, no_lock_files])
def test_processes_that_have_to_recover_at_the_same_instant_share_one_recovery(
    openers: list[Child], log: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    for round_ in range(3):
        all_open_at_once(openers, log, tmp_path / "acks", f"r{round_}")
        spoil(log)
    judge(read_log(log), Ledger.read_all(tmp_path / "acks"))


def test_processes_that_all_rotate_leave_one_chain_of_segments(child: Start, log: Path, tmp_path: Path) -> None:
    rotators = [child(workers.rotate_at_once, log, tmp_path / "acks", f"p{n}", 60) for n in range(4)]
    start_together(rotators)
    for each in rotators:
        each.result()
    entries = read_log(log)
    judge(entries, Ledger.read_all(tmp_path / "acks"))
    firsts = sorted(int(path.stem) for path in log.glob("*.wal"))
    assert firsts[0] == 1 and len(set(firsts)) == len(firsts)
    for first in firsts:
        with WALReader(log / f"{first:020d}.wal") as reader:
            mine = reader.read_all()
        assert mine == [] or mine[0].lsn == first


@pytest.mark.slow
@pytest.mark.parametrize(("count", "threads", "ops"), [(2, 32, 20)])
def test_sixty_four_threads_in_several_processes(
    child: Start, log: Path, tmp_path: Path, count: int, threads: int, ops: int
) -> None:
    writers = [
        child(workers.append_many, log, tmp_path / "acks", f"p{n}", threads, ops, 50_000, SyncMode.NORMAL)
        for n in range(count)
    ]
    start_together(writers)
    for each in writers:
        each.result()
    judge(read_log(log), Ledger.read_all(tmp_path / "acks"))
