"""SIGSTOP at any call of an append, a rotation, a sync: others wait or say LogBusy, and nothing is lost afterwards."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.crash.power_cut import stop_coordinators
from tests.crash.sweep import in_child
from tests.crash.taps import Call, tapped
from tests.support import Ack, Channel, Ledger, Start, append_op, deadline, judge, read_log, reap
from walpool import LogBusy, SyncMode, WALWriter

LIMIT = 1200
BATCHES = (6, 13)  # operations that are batches


class StopAtCall:
    """Stand still after the n-th call of the main thread, until SIGCONT comes."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.count = 0

    def __call__(self, name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = call(*args, **kwargs)
        if threading.current_thread() is threading.main_thread():
            self.count += 1
            if self.count == self.n:
                os.kill(os.getpid(), signal.SIGSTOP)
        return answer


def append_and_stop(log: Path, acks: Path, name: str, mode: SyncMode, n: int) -> None:
    ledger = Ledger(acks, name)
    tap = StopAtCall(0)
    with tapped(tap), WALWriter(log, mode, LIMIT) as writer:
        tap.count, tap.n = 0, n
        for op in BATCHES:
            ledger.append(writer, op)
        writer.rotate()
        ledger.append(writer, 20)
        writer.sync()
    ledger.close()


def stop_at_each_call(channel: Channel, log: Path, acks: Path, mode: SyncMode) -> tuple[int, int]:
    """How often a peer had to wait for one that stood still, and how often not."""
    acks.mkdir()
    mine: list[Ack] = []
    busy = free = n = 0
    op = 0
    # A coordinator would sync some of what the victims append, and they would make fewer calls.
    with WALWriter(log, size_limit=LIMIT, lock_timeout=0.005) as peer, closing(stop_coordinators(log)):
        while True:
            n += 1
            pid = os.fork()
            if pid == 0:
                in_child(lambda n=n: append_and_stop(log, acks, f"v{n}", mode, n))
            with deadline(lambda pid=pid: os.kill(pid, signal.SIGKILL)):
                _, status = os.waitpid(pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                assert os.waitstatus_to_exitcode(status) == 0
                break  # it makes fewer calls
            try:
                lsns = append_op(peer, "peer", op)
                mine.append(Ack(op, lsns.start, lsns.stop))
                op += 1
                free += 1
            except LogBusy:
                busy += 1
            read_log(log)  # a reader does not wait
            os.kill(pid, signal.SIGCONT)
            with deadline(lambda pid=pid: os.kill(pid, signal.SIGKILL)):
                assert reap(pid) == 0
    judge(read_log(log), {"peer": mine, **Ledger.read_all(acks)})
    return busy, free


@pytest.mark.slow
def test_a_writer_that_stands_still_at_any_call_harms_nobody(child: Start, memory: Path) -> None:
    for mode in (SyncMode.NORMAL, SyncMode.FULL):
        busy, free = child(stop_at_each_call, memory / f"{mode.value}.wal", memory / mode.value, mode).result()
        assert busy > 10 and free > 5, (busy, free)
