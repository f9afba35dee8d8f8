"""The crew: the parent's side of the pool. It hands parcels to worker processes and replaces those that die.

Holds: a worker has at most one parcel, and a parcel one worker. When a worker dies it is reaped first, and then the
log is asked which lines of its parcel are in; its successor gets the others. Nothing else is needed to be exact: what
a dead process had not published never appears later, because this process keeps the log open.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from multiprocessing.context import ForkProcess
from pathlib import Path
from selectors import EVENT_READ, SelectSelector

from walpool.cli.exits import CommandError, Exit
from walpool.cli.pool.feed import Feed
from walpool.cli.pool.ledger import without_published
from walpool.cli.pool.lines import Parcel, Run
from walpool.cli.pool.worker import Done, Failed, WorkerOptions, run
from walpool.system import signals

logger = logging.getLogger("walpool")

MAX_WORKERS = 64
MAX_FRUITLESS_DEATHS = 5  # of a worker and its successors, none of which appended a line
LEAVE_WITHIN_S = 30.0  # a worker whose connection is closed finishes a batch at most

# Forked: an interpreter that imports walpool uses 0.17 s of CPU before it appends; four of them took a small file 1.3 s
# instead of 0.35.
_processes = multiprocessing.get_context("fork")


@dataclass(slots=True)
class Worker:
    """A worker process as its parent sees it."""

    serial: int  # from 1; a successor has its own
    process: ForkProcess
    connection: Connection
    parcel: Parcel | None = None
    since_lsn: int = 0  # no line of the parcel is in the log below it
    fruitless_deaths: int = 0  # of its predecessors, since one of them appended a line


@dataclass(slots=True)
class Tally:
    """What a crew has done so far."""

    lines: int = 0
    bytes: int = 0  # of the lines, line feeds included
    replaced: int = 0  # workers
    pids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a crew tells: `placed` after lines are in the log (by which worker, in its order), `say` to the person."""

    say: Callable[[str], None]
    started: Callable[[int, int], None] = lambda serial, pid: None
    placed: Callable[[int, tuple[Run, ...]], None] = lambda serial, runs: None


class Crew:
    """Worker processes on one log, started as parcels come, at most `size` of them. Leaving the context ends them all.

    `next_lsn` tells the log's next LSN; `keep_open` are descriptors that every worker inherits and keeps.
    """

    def __init__(
        self,
        log: Path,
        options: WorkerOptions,
        size: int,
        next_lsn: Callable[[], int],
        keep_open: tuple[int, ...],
        hooks: Hooks,
    ) -> None:
        self.tally = Tally()
        self._log = log
        self._options = options
        self._size = size
        self._next_lsn = next_lsn
        self._keep_open = keep_open
        self._hooks = hooks
        self._workers: list[Worker] = []
        self._selector = SelectSelector()  # the only one that takes sockets, terminals and regular files alike
        self._wake, self._waker = Pipe(duplex=True)
        self._selector.register(self._wake, EVENT_READ)
        self._stopping = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss()
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def stop(self) -> None:
        """Hand out nothing more; `work` returns when the workers have finished a batch each. For a signal handler."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """End the wait in `work`, which a signal handler that returns does not do by itself."""
        self._waker.send_bytes(b"")

    def work(self, feed: Feed) -> bool:
        """Append everything the feed gives; False if `stop` ended it first. Raises CommandError if it cannot go on."""
        while not self._stopping:
            self._hand_out(feed)
            if feed.ended and not self._busy():
                return True
            self._wait(feed)
        for worker in self._dismiss():
            self._count_published(worker)
        return False

    def _busy(self) -> bool:
        return any(worker.parcel is not None for worker in self._workers)

    def _hand_out(self, feed: Feed) -> None:
        while not self._stopping:
            idle = next((worker for worker in self._workers if worker.parcel is None), None)
            if idle is None and len(self._workers) >= self._size:
                return
            parcel = feed.take()
            if parcel is None:
                return
            self._give(idle or self._hire(), parcel)

    def _wait(self, feed: Feed) -> None:
        fd = feed.waits_on
        hungry = len(self._workers) < self._size or any(worker.parcel is None for worker in self._workers)
        if fd is not None and hungry:
            self._selector.register(fd, EVENT_READ)
        try:
            ready = [key for key, _ in self._selector.select(feed.patience_s if hungry else None)]
        finally:
            if fd is not None and hungry:
                self._selector.unregister(fd)
        for key in ready:
            if isinstance(key.data, Worker):
                self._hear(key.data)
            elif key.fileobj is self._wake:
                self._wake.recv_bytes()
            else:
                feed.pump()

    # --- one worker -------------------------------------------------------------------------------------

    def _hire(self, fruitless_deaths: int = 0) -> Worker:
        ours, theirs = Pipe(duplex=True)
        process = _processes.Process(target=run, args=(theirs, self._keep_open))
        try:
            with signals.blocked():  # one that comes before the worker ignores it is for us alone
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # ours to hold would hide the worker's death
        assert process.pid is not None, "it was started"
        worker = Worker(len(self.tally.pids) + 1, process, ours, fruitless_deaths=fruitless_deaths)
        self.tally.pids.append(process.pid)
        self._workers.append(worker)
        self._selector.register(ours, EVENT_READ, worker)
        self._hooks.started(worker.serial, process.pid)
        with suppress(ConnectionError):  # it is dead already; reading from it says so
            ours.send(self._options)
        return worker

    def _give(self, worker: Worker, parcel: Parcel) -> None:
        worker.since_lsn = self._next_lsn()
        worker.parcel = parcel
        with suppress(ConnectionError):
            worker.connection.send(parcel)

    def _hear(self, worker: Worker) -> None:
        try:
            answer: Done | Failed = worker.connection.recv()
        except (EOFError, OSError):  # OSError: it was killed in the middle of its answer
            self._replace(worker)
            return
        for text in answer.logged:
            logger.warning("%s", text)  # as if it had happened here: what all workers met is said once
        if isinstance(answer, Failed):
            raise CommandError(answer.code, f"{answer.message} (lines appended before it stay in the log)")
        parcel, worker.parcel = worker.parcel, None
        assert parcel is not None and parcel.count == answer.count, "an answer is to the parcel that is out"
        worker.fruitless_deaths = 0
        self._placed(worker, parcel.runs)

    def _replace(self, worker: Worker) -> None:
        """Reap a dead worker; if it left lines behind, start a successor with them."""
        ending = self._reap(worker)
        published, missing = self._count_published(worker)
        self.tally.replaced += 1
        left = sum(run.count for run in missing)
        self._hooks.say(f"worker {worker.process.pid} {ending}; {left:,} of its lines were not in the log yet")
        deaths = 0 if published else worker.fruitless_deaths + 1
        if deaths >= MAX_FRUITLESS_DEATHS:
            raise CommandError(
                Exit.IO,
                f"{self._log}: {deaths} workers in a row ended without appending a line; giving up: what is in the log"
                " stays, and the same command appends the rest",
            )
        successor = self._hire(deaths)
        if missing:
            self._give(successor, Parcel(missing))

    def _reap(self, worker: Worker) -> str:
        """Wait for the end of a worker whose connection is closed, and say how it ended."""
        self._selector.unregister(worker.connection)
        worker.connection.close()
        self._workers.remove(worker)
        worker.process.join()
        code = worker.process.exitcode
        assert code is not None, "it has ended"
        if code >= 0:
            return f"ended with code {code}"
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def _count_published(self, worker: Worker) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
        """Count what a reaped worker published of its parcel; that, and what is missing."""
        if worker.parcel is None:
            return (), ()
        published, missing = without_published(worker.parcel, self._log, worker.since_lsn)
        worker.parcel = None
        self._placed(worker, published)
        return published, missing

    def _placed(self, worker: Worker, runs: tuple[Run, ...]) -> None:
        self.tally.lines += sum(run.count for run in runs)
        self.tally.bytes += sum(len(run.data) for run in runs)
        self._hooks.placed(worker.serial, runs)

    def _dismiss(self) -> list[Worker]:
        """Close every connection and wait until the workers have finished their batches; the workers there were."""
        for worker in self._workers:
            self._selector.unregister(worker.connection)
            worker.connection.close()
        dismissed, self._workers = self._workers, []
        for worker in dismissed:
            worker.process.join(LEAVE_WITHIN_S)
            if worker.process.exitcode is None:
                worker.process.kill()  # it is stopped, or its disk hangs; the log is no worse for it
                worker.process.join()
        return dismissed
