"""Workers: processes of ours that each do one task after another, and send back what comes of it.

What a task comes to is sent in pieces as it is made, so that neither side ever holds a large one whole.
Holds: tasks begin in their order; what was not handed on yet is bounded (AHEAD_BYTES, and a piece of each worker): from
there on workers wait. However the caller ends (an error, Ctrl-C, an iterator that is dropped) all of them are reaped,
and when this process is killed, they end by themselves.
"""

import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from walpool.system import clock, signals
from walpool.system.worker import Answer, Failure, Work, serve

if TYPE_CHECKING:  # multiprocessing takes 15 ms to import, and few programs read with workers
    from multiprocessing.connection import Connection

METHODS = ("spawn", "fork", "forkserver")
AHEAD_BYTES = 32 << 20
AHEAD_TASKS = 4  # a worker, that are begun before the first of them was handed on
LOOK_S = 0.5  # for workers that died while something else keeps their connection open
LEAVE_S = 2.0  # a worker that was told to end has so long for it

T = TypeVar("T")


class WorkFailed(Exception):
    """Raised in the place of what the task would have given; `error` is what was raised, if it came through."""

    def __init__(self, task: Any, pid: int, failure: Failure, error: BaseException | None = None) -> None:
        super().__init__(failure.reason)
        self.task = task
        self.pid = pid
        self.failure = failure
        self.error = error


class Unsendable(Exception):
    """The work cannot be sent to another process."""


@dataclass(slots=True)
class _Job(Generic[T]):
    task: T
    pieces: deque[list[bytes]] = field(default_factory=deque)
    over: bool = False
    failure: WorkFailed | None = None


@dataclass(slots=True)
class _Worker(Generic[T]):
    process: Any
    connection: "Connection"
    job: _Job[T] | None = None
    heard: bool = False


class Workers(Generic[T]):
    """At most `size` processes, started as there are tasks for them.

    `done` hears how much more was done, as it comes; `passed` hears a task of which, and of all before it, everything
    was handed on. Raises Unsendable, ValueError for a method that there is not, RuntimeError where none can be started.
    """

    def __init__(
        self,
        work: Work[T],
        size: int,
        method: str,
        *,
        ordered: bool = True,
        done: Callable[[int], None] = lambda more: None,
        passed: Callable[[T], None] = lambda task: None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
        from multiprocessing import get_context
        from multiprocessing.connection import wait
        from multiprocessing.process import current_process

        here = current_process()
        if getattr(here, "_inheriting", False):
            raise RuntimeError(
                "this process is a worker that imports the main program, and would start workers itself: put what"
                ' starts them under `if __name__ == "__main__":`'
            )
        if here.daemon:
            raise RuntimeError("this process is daemonic, as those of multiprocessing.Pool are: it cannot have workers")
        self._method = method
        self._context: Any = get_context(method)
        self._wait = wait
        self._work: Work[T] | bytes = work
        if method != "fork":  # a forked child has it already
            try:
                self._work = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                raise Unsendable(f"{type(error).__name__}: {error}") from error
        self._size = size
        self._ordered = ordered
        self._done = done
        self._passed = passed
        self._workers: list[_Worker[T]] = []
        self._jobs: deque[_Job[T]] = deque()  # that were handed out and not passed, in order
        self._held = 0  # bytes that were heard and not handed on
        self._failed = False

    def results(self, tasks: Iterable[T]) -> Iterator[Any]:
        """What the tasks give, in their order, or as it comes. Raises WorkFailed."""
        try:
            yield from self._results(iter(tasks))
            for worker in self._workers:
                worker.connection.close()  # that is how they are told
        except BaseException:
            for worker in self._workers:
                worker.process.terminate()
            raise
        finally:
            self._reap()

    def _results(self, tasks: Iterator[T]) -> Iterator[Any]:
        while True:
            self._hand_out(tasks)
            job = self._next_job()
            if job is None:
                return
            if job.pieces:
                self._hear(0)  # so that nobody waits for us while the caller is at work
                piece = job.pieces.popleft()
                self._held -= _weight(piece)
                for result in piece:
                    try:
                        value = pickle.loads(result)
                    except Exception as error:
                        reason = f"what it gave cannot be unpickled here: {type(error).__name__}: {error}"
                        raise WorkFailed(job.task, 0, Failure("result", "", reason), error) from error
                    yield value
            elif job.failure is not None:
                raise job.failure
            elif not job.over:
                self._hear(LOOK_S)
            while self._jobs and self._jobs[0].over and not self._jobs[0].pieces and self._jobs[0].failure is None:
                self._passed(self._jobs.popleft().task)

    def _next_job(self) -> _Job[T] | None:
        """What to hand on from next: in order the first, else one that has something, or has failed."""
        if not self._ordered:
            for job in self._jobs:
                if job.pieces or job.failure is not None:
                    return job
        return self._jobs[0] if self._jobs else None

    def _hand_out(self, tasks: Iterator[T]) -> None:
        while not self._failed and len(self._jobs) < AHEAD_TASKS * self._size and self._held < AHEAD_BYTES:
            idle = next((worker for worker in self._workers if worker.job is None), None)
            if idle is None and len(self._workers) >= self._size:
                return
            try:
                job = _Job(next(tasks))
            except StopIteration:
                return
            self._jobs.append(job)
            worker = idle or self._hire()
            worker.job = job
            with suppress(OSError):  # it is dead; reading from it says so
                worker.connection.send(job.task)

    def _hire(self) -> _Worker[T]:
        _begin_helpers(self._method)
        ours, theirs = self._context.Pipe(duplex=True)
        inherited = [*(each.connection for each in self._workers), ours] if self._method == "fork" else []
        process = self._context.Process(
            target=serve, args=(theirs, inherited, self._work), name="walpool worker", daemon=True
        )
        worker: _Worker[T] = _Worker(process, ours)
        try:
            with signals.blocked():  # until the worker ignores them, and is known here
                process.start()
                self._workers.append(worker)
        finally:
            theirs.close()  # ours to hold would hide the worker's death
        return worker

    def _hear(self, timeout: float) -> None:
        """Take what busy workers have sent; beyond the bound only of whoever has what is to be handed on next."""
        busy = [worker for worker in self._workers if worker.job is not None]
        if self._held >= AHEAD_BYTES:
            busy = [worker for worker in busy if worker.job is self._jobs[0]]
        ready = self._wait([worker.connection for worker in busy], timeout)
        for worker in busy:
            if worker.connection in ready:
                self._take(worker)
            elif timeout and not ready and worker.process.exitcode is not None and not worker.connection.poll():
                self._lost(worker)

    def _take(self, worker: _Worker[T]) -> None:
        job = worker.job
        assert job is not None, "only busy ones are heard"
        try:
            answer: Answer = worker.connection.recv()
        except (EOFError, OSError):  # OSError: it was killed in the middle of its answer
            self._lost(worker)
            return
        worker.heard = True
        if answer.results:
            job.pieces.append(answer.results)
            self._held += _weight(answer.results)
        if answer.over:
            job.over, worker.job = True, None
        if answer.failure is not None:
            self._fail(worker, answer.failure)
        if answer.done:
            self._done(answer.done)

    def _lost(self, worker: _Worker[T]) -> None:
        worker.process.join(LEAVE_S)
        code = worker.process.exitcode
        if code is None:
            ending = "closed its connection and went on"
        elif code >= 0:
            ending = f"ended with code {code}"
        else:
            ending = f"was killed by {_name_of(-code)}"
        during = "death" if worker.heard else "start"
        self._fail(worker, Failure(during, "", ending))

    def _fail(self, worker: _Worker[T], failure: Failure) -> None:
        job, worker.job = worker.job, None
        assert job is not None, "only busy ones are heard"
        job.over, self._failed = True, True  # nothing behind it is begun any more
        error = None
        with suppress(Exception):
            error = pickle.loads(failure.error) if failure.error else None
        job.failure = WorkFailed(job.task, worker.process.pid, failure, error)

    def _reap(self) -> None:
        with signals.blocked():  # a second Ctrl-C comes when nobody is left
            ours, self._workers = self._workers, []
            deadline = clock.monotonic() + LEAVE_S
            for worker in ours:
                worker.process.join(max(0.0, deadline - clock.monotonic()))
                if worker.process.exitcode is None:
                    worker.process.kill()
                    worker.process.join(LEAVE_S)
                worker.connection.close()


def _weight(piece: list[bytes]) -> int:
    """Bytes of memory."""
    return sum(map(len, piece)) + 64 * len(piece)


def _begin_helpers(method: str) -> None:
    """What multiprocessing starts once and keeps: it must not have signals blocked, and to start it unblocks ours."""
    from multiprocessing import forkserver, resource_tracker

    if method != "fork":
        resource_tracker.ensure_running()
    if method == "forkserver":
        forkserver.ensure_running()


def _name_of(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
