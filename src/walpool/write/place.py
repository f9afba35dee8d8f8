"""A place: the plain case of putting one frame behind the last, whichever process wrote that, and nothing else.

Holds: nothing about the tail is cached; the state is read after the append lock is taken, every time. What is written
is beyond the published tail until the last store publishes it, so a process killed anywhere leaves the log as it was.
Both locks are free once nobody is inside, whatever exception arrives at whatever bytecode: see system/locks.py, whose
`ProcessLock.run` is repeated here and in the two callers, `WALWriter.put` and `Handle.append`. A child that a signal
handler forks in the middle of an append finds the views of the shared block released, the descriptors closed, and what
would use one of them replaced.

Where the core runs, `core` is its twin of `append`, asked first: it does the plain case in one call, in which no Python
runs. It makes the same calls of the system, so it is there only while nobody has replaced those. What is plain it is
told by whoever has looked around, until it is told to look first: before the segment is another, or closed.

Whatever is not plain is asked of the subclass, under the lock: `_look_around` before a frame for which something has to
be done first (a rotation, a poisoned log, names to compare, another process's segment), `_unwritten` when the system
did not take it.
"""

import sys
from collections.abc import Callable
from types import BuiltinMethodType
from typing import Any, NamedTuple, NoReturn, Protocol

from walpool.errors import WALError
from walpool.format.frame import FRAME_BYTES, FRAME_PREFIX, FRAME_REST
from walpool.native.select import core, crc32c
from walpool.opening.opening import OpenLog
from walpool.shared.catalog import Segment
from walpool.shared.control import COMMIT, COPIES, DURABLE, GROWTH, INTENT, INTENT_SLOT_BITS, STATE, STOP, LogState
from walpool.shared.figures.fields import HISTOGRAMS
from walpool.shared.figures.histogram import BUCKETS
from walpool.shared.slot_rows import BATCH, BATCHES, BYTES, MORE_ENTRIES, SlotRow, bucket_word
from walpool.shared.wakeups import Wakeups
from walpool.system.calls import are_originals, calls
from walpool.system.files import write_rest
from walpool.system.forks import in_forked_children
from walpool.system.locks import LOCK_UN, TRY_EX, Flock
from walpool.system.mapped import STORES_KEEP_THEIR_ORDER
from walpool.system.shared_words import WORD
from walpool.write.chores import Chores
from walpool.write.waits import CONTENDED_FOR, TIMED_WAITS, Waits

_pack_prefix = FRAME_PREFIX.pack
_pack_rest = FRAME_REST.pack


class Retired(WALError):
    """The control block was replaced, or this appender is closed: open the log again. Nothing was appended."""


class Active(NamedTuple):
    """The segment this process has open: replaced as a whole, so that no interrupt leaves it half changed."""

    first_lsn: int
    marker: int
    fd: int
    segment: Segment
    mapped: memoryview | None = None  # its beginning, up to `ready_to` at least, to store frames into

    @classmethod
    def of(cls, segment: Segment) -> "Active":
        return cls(segment.header.first_lsn, segment.header.marker, segment.file.fd, segment)


class Place:
    active: Active
    ready_to = 0  # a frame that ends past here, in the active segment, has to look around first
    next_look_lsn = 0  # and so has one from this LSN on,
    looked_ns = next_look_ns = 0  # or before or after these times
    last_lsn = 0  # the first of the last frame that was published,
    last_body: bytes | None = None  # and its body, so that an interrupted caller can tell whether that was its own
    forked = False  # this is a child, and the log was its parent's

    def __init__(self, log: OpenLog, row: SlotRow | None, waits: Waits, chores: Chores) -> None:
        self.waits = waits
        self.chores = chores
        self.core = core_place(log, row, waits, chores)
        in_forked_children(self, _let_go)  # also while it is opened or closed: mappings have descriptors
        self.active = Active.of(log.segment)
        self._counts = None if row is None or row.shared or self.core is not None else row.words
        self._batches, self._bytes, self._more = (
            (row.words[BATCHES], row.words[BYTES], row.words[MORE_ENTRIES]) if row is not None else (0, 0, 0)
        )
        self._lock = log.append_lock
        self._mutex = log.append_lock.mutex
        self.is_ours = log.append_lock.is_ours  # this thread is in the middle of an append
        self._try_lock: Flock = calls.flock
        self._unlock: Flock = calls.flock
        self._lock_fd = log.append_lock.fd
        self._pwrite = calls.pwrite
        self._write_rest: Callable[..., None] = write_rest
        self._store: Callable[..., None] | None = calls.store if STORES_KEEP_THEIR_ORDER else None
        self._time_ns = calls.time_ns
        self._growth = Wakeups(log.control, GROWTH)
        self._words = log.control.words
        self._block = log.control.bytes
        self._load = STATE.unpack_from
        self._fill = STATE.pack_into
        self._slot = log.slot
        self._intent = (log.slot << INTENT_SLOT_BITS) + 1

    def append(self, data: bytes, count: int, largest: int) -> int:
        """Append one frame, of what a Body holds, and return its first LSN.

        One long function, because each call it avoids is 0.06 to 0.1 of its 4 us: flock pair 1.1, pwrite 1.0 and
        more, state and header packing 0.7 (tools/bench.py watches it as put).
        """
        body_bytes = len(data)
        frame_bytes = FRAME_BYTES + body_bytes
        words, waits = self._words, self.waits
        next_lsn: int
        marker = self.active.marker
        body_crc = crc32c(data, marker)  # before the lock: nobody waits for it
        with self._mutex:
            try:
                if not waits.contended:  # inside the try: a signal handler that raises must find the finally
                    try:
                        self._try_lock(self._lock_fd, TRY_EX)  # so that only who has to wait reads a clock
                    except BlockingIOError:
                        waits.begin()
                if waits.contended:  # not in the `except`: it would be the context of what ends the wait
                    waits.take()
                commit = words[COMMIT]
                (first, sequence, now_marker, tail, next_lsn, last_ns, entries, batches, total_bytes,
                 max_entry, _) = self._load(self._block, COPIES[commit & 1])  # fmt: skip
                active = self.active
                now = self._time_ns()
                end = tail + frame_bytes
                if (
                    words[STOP] or end > self.ready_to or first != active.first_lsn or now_marker != marker
                    or next_lsn >= self.next_look_lsn or not self.looked_ns <= now < self.next_look_ns
                ):  # fmt: skip
                    self._look_around(frame_bytes, now)
                    active = self.active
                    marker = active.marker
                    body_crc = crc32c(data, marker)
                    commit = words[COMMIT]
                    (first, sequence, _, tail, next_lsn, last_ns, entries, batches, total_bytes,
                     max_entry, _) = self._load(self._block, COPIES[commit & 1])  # fmt: skip
                    end = tail + frame_bytes
                if now < last_ns:
                    now = last_ns  # the clock was set back; appended_at never is
                rest = _pack_rest(body_bytes, count, next_lsn, now, words[DURABLE], body_bytes, 0, self._slot)
                frame = _pack_prefix(marker, crc32c(rest, body_crc)) + rest + data
                words[INTENT] = commit + self._intent
                mapped, store = active.mapped, self._store
                if mapped is not None and store is not None:
                    store(mapped, tail, frame)
                else:
                    try:
                        written = self._pwrite(active.fd, frame, tail)
                        if written != frame_bytes:
                            self._write_rest(active.fd, frame, tail, written)
                    except OSError as error:
                        raise self._unwritten(error, tail, end) from error
                self._fill(
                    self._block, COPIES[~commit & 1], first, sequence, marker, end, next_lsn + count,
                    now, entries + count, batches + 1, total_bytes + frame_bytes,
                    largest if largest > max_entry else max_entry, tail,
                )  # fmt: skip
                self.last_lsn = next_lsn
                words[COMMIT] = commit + 1  # last: this one store publishes all of it
                self.last_body = data  # no signal handler runs between these two stores
            finally:
                self._unlock(self._lock_fd, LOCK_UN)
            counts = self._counts
            if counts is not None:
                counts[BATCHES] = self._batches = self._batches + 1  # `counts[BATCHES] += 1` takes twice as long
                counts[BYTES] = self._bytes = self._bytes + frame_bytes
                if count > 1:
                    counts[MORE_ENTRIES] = self._more = self._more + count - 1
                    counts[bucket_word(BATCH, count)] += 1
            elif self.core is not None:
                self.core.count(count, frame_bytes)
            if words[GROWTH]:  # with the mutex: another thread may close this, and let go of the words, behind it
                self._growth.wake(commit)
        return next_lsn

    def place(self, data: bytes, count: int, largest: int) -> int:
        """`append`, by the core where it does it."""
        first_lsn = 0 if self.core is None else self.core.append(data, count, largest)
        return first_lsn or self.append(data, count, largest)

    def published(self, data: bytes) -> int | None:
        """The first LSN of the last frame that this published, if `data` was its body."""
        for last in (self, self.core):
            if last is not None and last.last_body is data:
                return last.last_lsn
        return None

    def after_exception(self, data: bytes) -> int | None:
        """For the caller of an `append` that ended with one: locks are free then, whatever it kept from being done.

        The first LSN, when the append was done all the same, in a child that was forked in the middle of it.
        """
        self._lock.set_free()
        return self.published(data) if self.forked else None

    def _look_around(self, frame_bytes: int, now: int) -> None:
        """Have everything as a frame of so many bytes needs it, or raise: then nothing is appended."""
        raise NotImplementedError

    def _unwritten(self, error: OSError, tail: int, end: int) -> Exception:
        """Undo what was written of a frame between `tail` and `end`; the error for its caller."""
        raise NotImplementedError

    def refuse(self) -> None:
        """From now on everything raises Retired, also in an append that is under way in a child forked out of it."""
        _let_go(self)
        self.append = self._look_around = self._unwritten = _refuse  # type: ignore[method-assign, assignment]
        self._try_lock = self._pwrite = self._write_rest = self._store = _refuse
        self.waits.refuse(_refuse)
        self._unlock = lambda *_: None
        self._counts = None


def _let_go(place: Place) -> None:
    """Of what is mapped."""
    if place.core is not None:
        place.core.refuse()
    active = getattr(place, "active", None)
    if active is not None and active.mapped is not None:
        active.mapped.release()


def _refuse(*_: Any) -> NoReturn:
    raise Retired("the writer was closed by another thread")


# The core's

_LAYOUT = (
    STOP, COMMIT, INTENT, DURABLE, *(at // WORD for at in COPIES), GROWTH, len(LogState._fields), BATCHES, MORE_ENTRIES,
    BYTES, HISTOGRAMS[BATCH], BUCKETS, CONTENDED_FOR, TIMED_WAITS,
)  # fmt: skip
_CALLS = ("flock", "pwrite", "store", "time_ns", "monotonic", "monotonic_ns", "futex_wake")


class CorePlace(Protocol):
    last_lsn: int  # as in Place
    last_body: bytes | None

    def put(self, key: object, value: object, timestamp: object, /) -> int:
        """The LSN; 0: not done, and nothing was changed. Nor is it while there are chores."""

    def append(self, data: bytes, count: int, largest: int, /) -> int:
        """The first LSN; 0: not done, and nothing was changed."""

    def count(self, entries: int, frame_bytes: int, /) -> None:
        """Of a frame that Python has placed: one of the two has to know the counts."""

    def ready(
        self,
        first_lsn: int,
        marker: int,
        fd: int,
        ready_to: int,
        next_look_lsn: int,
        looked_ns: int,
        next_look_ns: int,
        mapped: object,
        /,
    ) -> None:
        """What is plain from now on; `mapped` is an mmap that frames are stored into, or None. Lock: append."""

    def look_first(self) -> None:
        """Nothing is plain before the next `ready`. Lock: append."""

    def refuse(self) -> None:
        """Nothing is plain any more, and the memory is let go of."""


Put = Callable[[object, object, object], int]


def core_place(log: OpenLog, row: SlotRow | None, waits: Waits, chores: Chores) -> CorePlace | None:
    """None: all of it is Python's, here."""
    lock = log.append_lock
    mutex = lock.mutex
    calls_of_c = (
        mutex.acquire,
        mutex.release,
        mutex._is_owned,
    )  # gevent puts Python's there, which run other greenlets
    if (
        core is None
        or (row is not None and row.shared)
        or sys.maxsize < 1 << 32  # a word of 64 bits is not stored whole
        or not all(isinstance(call, BuiltinMethodType) for call in calls_of_c)
        or not are_originals(*_CALLS)
    ):
        return None
    made: CorePlace = core.Place(
        _LAYOUT, log.control.bytes.obj, None if row is None else row.words.obj, mutex, lock.others, waits, chores,
        lock.fd, log.slot, lock.timeout_s is None,
    )  # fmt: skip
    return made
