"""A worker's side: do one task after another, and send what comes of it in pieces, until the parent closes its end.

Holds: a failure is an answer, with the traceback, and the results before it; what cannot be sent is told in words.
"""

import pickle
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from walpool.system import clock, signals

if TYPE_CHECKING:  # multiprocessing takes 15 ms to import, and few programs read with workers
    from multiprocessing.connection import Connection

PIECE_BYTES = 256 << 10
PIECE_S = 0.05  # a result is no older than this, and what its successor takes, when it is sent

T = TypeVar("T")
Task = TypeVar("Task", contravariant=True)


class Work(Protocol[Task]):
    """What workers do; it is sent to each of them once."""

    def items(self, task: Task) -> Iterator[tuple[Any, int]]:
        """What a task gives, piece by piece, and how much is done with each: failing here is the task's failure."""
        ...

    def function(self, item: Any) -> Any:
        """What is sent back of an item: failing here is the failure of whoever wrote the function."""
        ...

    def in_words(self, item: Any) -> str:
        """The item, for an error's message."""
        ...


class Failure(NamedTuple):
    """Why a task did not come to its end."""

    during: str  # "task", "function", "result": packing what it gave; "start": unpacking the work; "death"
    item: str  # that the function was given, in words
    reason: str
    error: bytes = b""  # as it was raised, packed, if it can be
    trace: str = ""  # of the worker's


class Answer(NamedTuple):
    results: list[bytes]
    done: int
    over: bool = False
    failure: Failure | None = None


def serve(connection: "Connection", inherited: "list[Connection]", work: Any) -> None:
    """Do what comes, until the parent closes its end, or is gone."""
    signals.leave_to_parent()
    for each in inherited:
        each.close()  # else the others would not hear that our parent is gone
    with connection, suppress(EOFError, OSError):
        try:
            if isinstance(work, bytes):
                work = pickle.loads(work)
        except BaseException as error:
            connection.recv()  # the first task: its answer is ours
            connection.send(Answer([], 0, failure=_failure("start", "", error)))
            return
        connection.send(Answer([], 0))  # who dies from here on has begun
        while True:
            _do(connection, work, connection.recv())


def _do(connection: "Connection", work: Work[T], task: T) -> None:
    results: list[bytes] = []
    size = done = 0
    sent_s = clock.monotonic()
    during = "task"
    item: Any = None
    try:
        for item, units in work.items(task):
            during = "function"
            result = work.function(item)
            during = "result"
            packed = pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
            during = "task"
            results.append(packed)
            size += len(packed)
            done += units
            if size >= PIECE_BYTES or clock.monotonic() - sent_s > PIECE_S:
                connection.send(Answer(results, done))
                results, size, done, sent_s = [], 0, 0, clock.monotonic()
    except BaseException as error:  # also SystemExit: the function said so, and not the program
        words = "" if during == "task" else work.in_words(item)
        connection.send(Answer(results, done, failure=_failure(during, words, error)))
        return
    connection.send(Answer(results, done, over=True))


def _failure(during: str, item: str, error: BaseException) -> Failure:
    packed = b""
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))  # what another process cannot unpack is told in words
        packed = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
    reason = "".join(traceback.format_exception_only(error)).strip()
    return Failure(during, item, reason, packed, "".join(traceback.format_exception(error)))
