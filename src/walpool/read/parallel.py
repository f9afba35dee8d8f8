"""Reading in parallel: a function of each batch, in worker processes, with the results in the order of the log.

The log is cut into small parts as they are needed (read/plan.py), and each is read by one worker at a time.
Holds: each batch is given to the function once, whole, wherever a cut fell: a part has the batches that begin in it.
Retention keeps what was not read yet, as it does for a reader with `pin`.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from walpool.errors import WALError, WorkerFailed
from walpool.options import RecoveryMode
from walpool.read.plan import Ground, LSNRange, check_range
from walpool.read.reading import ReadBatch, Reading
from walpool.read.source import Source
from walpool.read.window import INITIAL_CAPACITY
from walpool.system.processes import cores
from walpool.system.workers import Unsendable, Workers, WorkFailed

PART_BYTES = 16 << 20  # 16 to 100 ms of a worker's time, against 0.6 ms to open the log and find the place
LEAST_BYTES = 256 << 10  # fewer are no work for another process

R = TypeVar("R")


def map_batches(
    path: str | os.PathLike[str],
    function: Callable[[ReadBatch], R],
    *,
    workers: int | None = None,
    start: int | None = None,
    end: int | None = None,
    ordered: bool = True,
    progress: Callable[[int, int], object] | None = None,
    method: str = "spawn",
) -> Generator[R, None, None]:
    """What `function` gives for each batch of a log, worked out by several processes at once.

    The log is read as far as it goes now, beside whoever appends. Results come while later batches are read, at most
    some ten MiB ahead of the caller. The workers start when the first result is asked for, and end with the iterator:
    when it is exhausted, closed or dropped, when an exception (Ctrl-C is one) passes through it, and with this process.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal") as writer:
    ...     for number in range(5):
    ...         lsns = writer.append_batch([walpool.WALEntry.put(b"key", b"value")] * 20)
    >>> from operator import attrgetter
    >>> list(walpool.map_batches("events.wal", attrgetter("count"), workers=1))
    [20, 20, 20, 20, 20]

    Args:
        path: the log's directory, a copy of it, or one segment file.
        function: called with a ReadBatch, in a worker. It and what it gives are sent by pickle: it has to be at the top
            level of a module, not a lambda. So that new processes can import the program, what starts it stands
            under `if __name__ == "__main__":`.
        workers (default None): how many processes, from 1; None: as many as there are cores to run on. A log with less
            to read than that gets fewer.
        start (default None): the first LSN that is wanted; None is the first entry there is.
        end (default None): the LSN before which to end; None, or one that is yet to come: after the last entry there
            is now.
        ordered (default True): results in the order of the log; False: as they come, which waits for nobody.
        progress (default None): called with how many LSNs were worked through, and how many there are in all, between
            results, and with both the same at the end.
        method (default "spawn"): how multiprocessing starts the workers: "spawn", "forkserver" or "fork". A forked
            worker is there 0.2 s sooner and takes any function, and is not safe beside threads.

    Raises:
        TypeError, ValueError: for an option that cannot be, or a function that cannot be sent.
        RuntimeError: this process cannot have workers: it is one itself.
        WorkerFailed: the function raised, or a worker died. In order, the results of all batches before come first.
        LogNotFound: mend the path.
        LSNUnavailable: retention has removed `start`: start at its `first_available`; or what was pinned, beyond
            `Retention.max_pinned_bytes`.
        LogReplaced: another log, or none, is at the path by now: begin again.
        UnsafeLog: mend what it names.
        CorruptLog: damage stands there: see `walpool verify`. In order, the results of all batches before come first.
        UnsupportedVersion: upgrade walpool.
        IOFailed: retry when the cause is gone.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, not {type(function).__name__}")
    size = cores() if workers is None else workers
    if type(size) is not int or size < 1:
        raise ValueError(f"workers must be a number from 1, or None, not {workers!r}")
    check_range(start, end)
    ground = Ground(Source(path), start, end, pin=True)
    try:
        total = ground.end - ground.start
        told = _Told(progress, max(0, total))
        work = _Mapping(ground.source.path, ground.source.id, function, ground.start, ground.end)
        crew: Workers[LSNRange] = Workers(
            work, size, method, ordered=ordered, done=told.more, passed=lambda part: ground.pass_by(part.end)
        )
    except Unsendable as error:
        ground.close()
        raise TypeError(
            f"the function cannot be sent to a worker process ({error}): define it, and what it refers to, at the top"
            ' level of a module; or use method="fork"'
        ) from error
    except BaseException:
        ground.close()
        raise
    return _results(ground, crew, told, size)


def _results(ground: Ground, crew: Workers[LSNRange], told: "_Told", size: int) -> Generator[Any, None, None]:
    count = max(ground.bytes // PART_BYTES, min(size, ground.bytes // LEAST_BYTES), 1)
    with closing(ground):
        try:
            yield from crew.results(ground.parts(count))
        except WorkFailed as failed:
            error, cause = error_of(ground.source.path, failed)
            raise error from cause
        told.all()


class _Told:
    """How far it is, for whoever wants to know."""

    def __init__(self, tell: Callable[[int, int], object] | None, total: int) -> None:
        self._tell = tell
        self._total = total
        self._done = 0

    def more(self, lsns: int) -> None:
        self._done = min(self._done + lsns, self._total)
        if self._tell is not None and self._done < self._total:
            self._tell(self._done, self._total)

    def all(self) -> None:
        if self._tell is not None:
            self._tell(self._total, self._total)


_WORDS = {
    "start": "worker {pid} could not begin ({reason}); what it printed, and the notes of this error, say more. A new"
    ' process imports the program again: what starts workers belongs under `if __name__ == "__main__":`, and the'
    " function at the top level of a module that can be imported",
    "death": "worker {pid} {reason}",
    "function": "the function raised {reason}, given {item}",
    "result": "what the function gave cannot be sent back ({reason}), given {item}: it has to be something that pickle"
    " takes",
    "task": "worker {pid} failed while it read: {reason}",
}


def error_of(path: str, failed: WorkFailed) -> tuple[WALError, BaseException | None]:
    """What the caller hears, and its cause: the log's own error as a reader would have raised it, or WorkerFailed."""
    failure, part = failed.failure, failed.task
    error: WALError
    cause = failed.error
    if failure.during == "task" and isinstance(cause, WALError):
        error, cause = cause, None
    else:
        what = _WORDS[failure.during].format(reason=failure.reason, item=failure.item, pid=failed.pid)
        error = WorkerFailed(path, part.start, part.end, f"{what} (LSN {part.start} to {part.end - 1})")
    if failure.trace:
        error.add_note(f"In worker {failed.pid}, which read LSN {part.start} to {part.end - 1}:\n{failure.trace}")
    return error, cause


@dataclass(frozen=True)
class _Mapping:
    """What each worker has: see `Work`."""

    path: str
    log_id: bytes | None
    function: Callable[[ReadBatch], Any]
    start: int  # of the whole range: what begins before it belongs to the first part all the same
    end: int

    def items(self, part: LSNRange) -> Iterator[tuple[ReadBatch, int]]:
        with closing(_reading(self.path, part.start, part.end)) as reading:
            source = reading.cursor.source
            if self.log_id is not None and source.id != self.log_id:
                raise source.replaced("another log was made in its place")
            while batch := reading.next_batch():
                if not reading.whole:
                    frame = reading.frame
                    if frame.first_lsn < part.start and part.start > self.start:
                        continue  # it begins in the part before
                    if frame.next_lsn > part.end and part.end < self.end:
                        with closing(_reading(self.path, batch.first_lsn, min(frame.next_lsn, self.end))) as whole:
                            batch = whole.next_batch() or batch
                yield batch, batch.count
            if reading.next_lsn < part.end:
                reading.check_log()
                raise source.replaced(f"the log ends at LSN {reading.next_lsn - 1} by now")

    def in_words(self, batch: ReadBatch) -> str:
        return f"the batch with LSN {batch.first_lsn} to {batch.first_lsn + batch.count - 1}"


def _reading(path: str, start: int, end: int) -> Reading[bytes]:
    return Reading(path, start, end, RecoveryMode.TOLERATE_TAIL, INITIAL_CAPACITY, zero_copy=False, pin=False)
