"""The appender: puts one frame behind the last, whichever process wrote that.

Holds: nothing about the tail is cached; the state is read after the append lock is taken, every time. What is written
is beyond the published tail until the last store publishes it, so a process killed anywhere leaves the log as it was.
Both locks are free once nobody is inside, whatever exception arrives at whatever bytecode: see system/locks.py, whose
`ProcessLock.run` is repeated here and in the two callers, `WALWriter.put` and `Handle.append`. A child that a signal
handler forks in the middle of an append finds the views of the shared block released, the descriptors closed, and what
would use one of them replaced.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from crc32c import crc32c

from walpool.errors import UnsafeLog, WALError
from walpool.format.frame import FRAME_BYTES, FRAME_PREFIX, FRAME_REST
from walpool.format.header import HEADER_BYTES
from walpool.format.names import segment_name
from walpool.opening.opening import AGAIN, CUT, OpenLog
from walpool.options import SyncMode, WriterOptions
from walpool.shared.catalog import Segment, open_segment
from walpool.shared.control import (
    COMMIT,
    COPIES,
    DURABLE,
    INTENT,
    INTENT_SLOT_BITS,
    RETIRED,
    ROTATING,
    STATE,
    STOP,
    STOPPED,
    SYNC_ERRNO,
    LogState,
)
from walpool.shared.poison import sync_failed
from walpool.shared.slot_rows import (
    APPEND,
    BATCH,
    BATCHES,
    BYTES,
    LAST_APPEND_NS,
    MORE_ENTRIES,
    ROTATIONS,
    SlotRow,
    bucket_word,
)
from walpool.system.calls import calls
from walpool.system.failures import typed_error
from walpool.system.files import cut_back, write_rest
from walpool.system.locks import LOCK_EX, LOCK_UN, TRY_EX, Flock
from walpool.system.threads import leave
from walpool.upkeep.prepare import write_ahead
from walpool.write.rotation import check_fits, rotate
from walpool.write.waits import Waits

CHECK_NS = 100_000_000  # names of our files are compared with their inodes at least this often,
CHECK_LSNS = 1_000  # or after so many entries of whichever process
CONTENDED_FOR = 64  # appends for which a lock that was taken is waited for at once: to try first costs 2 us;
TIMED_WAITS = 8  # of those, one in so many is timed: with all of them 4 writers on 2 cores made 6 per cent less
AHEAD_BYTES = 1 << 20  # FULL: how far zeros are written ahead of the tail

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


class Appender:
    def __init__(self, log: OpenLog, options: WriterOptions, row: SlotRow | None) -> None:
        self._log = log  # no cycle: an interrupted opening would keep its slot until it is collected
        self._row = row
        self._counts = None if row is None or row.shared else row.words
        self._batches, self._bytes, self._more = (
            (row.words[BATCHES], row.words[BYTES], row.words[MORE_ENTRIES]) if row is not None else (0, 0, 0)
        )
        self.timed = False  # the next append is to go through `timed_append`
        self._size_limit = options.size_limit
        self._file_mode = options.mode
        self._lock = log.append_lock
        self._mutex = log.append_lock.mutex
        self.is_ours = log.append_lock.is_ours  # this thread is in the middle of an append
        self._try_lock: Flock = calls.flock
        self._take: Flock = log.append_lock.take
        self._unlock: Flock = calls.flock
        self._lock_fd = log.append_lock.fd
        self.waits = Waits(log.append_lock, row)
        self._pwrite = calls.pwrite
        self._write_rest: Callable[..., None] = write_rest
        self._cut_back: Callable[..., None] = cut_back
        self._wait_for_lock: Callable[[int], None] = self.waits.wait
        self._time_ns = calls.time_ns
        self._words = log.control.words
        self._block = log.control.bytes
        self._load = STATE.unpack_from
        self._fill = STATE.pack_into
        self._slot = log.slot
        self._intent = (log.slot << INTENT_SLOT_BITS) + 1
        self._active = _active(log.segment)
        self._next_check_lsn = self._checked_ns = self._next_check_ns = 0
        self._contended = 0  # for how many appends more
        self._ahead = AHEAD_BYTES if options.sync_mode is SyncMode.FULL else 0
        self._ready_to = 0  # a frame that ends past here, in the active segment, has to look for room first
        self.last_body: bytes | None = None  # the last that was published, so that an interrupted caller can tell
        self.last_lsn = 0  # its first
        self._seen = 0, 0  # a segment, and the offset of a frame that stood in it when names were compared
        self._half_full = 0  # the last segment that we saw half full
        self.forked = False  # this is a child, and the log was its parent's
        self.wanted = False  # the coordinator has something to do
        self.rotations = 0  # since the writer last did its chores
        self._interval = options.sync_interval_s is not None
        self.chores = self._interval  # one flag for all that an append seldom leaves to do

    def append(self, body: bytes, count: int, largest: int) -> int:
        """Append one frame and return its first LSN. `largest`: encoded bytes of its largest entry.

        One long function, because each call it avoids is 0.06 to 0.1 of its 5.6 us: flock pair 1.1, pwrite 1.0 and
        more, state and header packing 0.7 (tools/bench.py watches it as put).
        """
        body_bytes = len(body)
        frame_bytes = FRAME_BYTES + body_bytes
        if frame_bytes > self._size_limit - HEADER_BYTES:
            check_fits(frame_bytes, self._size_limit)
        words = self._words
        next_lsn: int
        marker = self._active.marker
        body_crc = crc32c(body, marker)  # before the lock: nobody waits for it
        with self._mutex:
            try:
                if self._contended:  # inside the try: a signal handler that raises must find the finally
                    self._contended -= 1
                    if self._contended % TIMED_WAITS:
                        self._take(self._lock_fd, LOCK_EX)
                    else:
                        self._wait_for_lock(TIMED_WAITS)
                else:
                    try:
                        self._try_lock(self._lock_fd, TRY_EX)  # so that only who has to wait reads a clock
                    except BlockingIOError:
                        self._contended = CONTENDED_FOR
                    if self._contended:  # not in the `except`: it would be the context of what ends the wait
                        self._wait_for_lock(1)
                if words[STOP]:
                    self._attend()
                commit = words[COMMIT]
                (first, sequence, now_marker, tail, next_lsn, last_ns, entries, batches, total_bytes,
                 max_entry, _) = self._load(self._block, COPIES[commit & 1])  # fmt: skip
                active = self._active
                now = self._time_ns()
                if next_lsn >= self._next_check_lsn or not self._checked_ns <= now < self._next_check_ns:
                    self._check_names(now)
                end = tail + frame_bytes
                if end > self._ready_to or first != active.first_lsn or now_marker != marker:
                    state = self._make_room(frame_bytes, self._log.control.state())
                    active = self._active
                    first, sequence, marker, tail = (
                        state.segment, state.sequence, state.marker, state.tail
                    )  # fmt: skip
                    end = tail + frame_bytes
                    body_crc = crc32c(body, marker)
                    commit = words[COMMIT]
                if now < last_ns:
                    now = last_ns  # the clock was set back; appended_at never is
                rest = _pack_rest(body_bytes, count, next_lsn, now, words[DURABLE], body_bytes, 0, self._slot)
                frame = _pack_prefix(marker, crc32c(rest, body_crc)) + rest + body
                words[INTENT] = commit + self._intent
                try:
                    written = self._pwrite(active.fd, frame, tail)
                    if written != frame_bytes:
                        self._write_rest(active.fd, frame, tail, written)
                except OSError as error:
                    self._cut_back(active.fd, tail)
                    self._ready_to = 0
                    raise typed_error(error, active.segment.file.path) from error
                self._fill(
                    self._block, COPIES[~commit & 1], first, sequence, marker, end, next_lsn + count,
                    now, entries + count, batches + 1, total_bytes + frame_bytes,
                    largest if largest > max_entry else max_entry, tail,
                )  # fmt: skip
                self.last_lsn = next_lsn
                words[COMMIT] = commit + 1  # last: this one store publishes all of it
                self.last_body = body  # no signal handler runs between these two stores
            finally:
                self._unlock(self._lock_fd, LOCK_UN)
            counts = self._counts
            if counts is not None:
                counts[BATCHES] = self._batches = self._batches + 1  # `counts[BATCHES] += 1` takes twice as long
                counts[BYTES] = self._bytes = self._bytes + frame_bytes
                if count > 1:
                    counts[MORE_ENTRIES] = self._more = self._more + count - 1
                    counts[bucket_word(BATCH, count)] += 1
        return next_lsn

    def after_exception(self, body: bytes) -> int | None:
        """For the caller of an `append` that ended with one: locks are free then, whatever it kept from being done.

        The first LSN, when the append was done all the same, in a child that was forked in the middle of it.
        """
        self._lock.set_free()
        return self.last_lsn if self.forked and self.last_body is body else None

    def timed_append(self, body: bytes, count: int, largest: int) -> int:
        """In the place of `append` for one call, now and then: a clock around each would cost 2 per cent."""
        self.timed = False
        began = calls.monotonic_ns()
        first_lsn = self.append(body, count, largest)
        assert self._row is not None
        self._row.record_ns(APPEND, calls.monotonic_ns() - began)
        return first_lsn

    def rotate(self) -> bool:
        """Seal the active segment now; False when nothing is in it."""
        return self._lock.run(self._rotate)

    def _rotate(self) -> bool:
        if self._words[STOP]:
            self._attend()
        state = self._log.control.state()
        return state.next_lsn > state.segment and bool(self._start_next(state))

    def _make_room(self, frame_bytes: int, state: LogState) -> LogState:
        """Have the segment open that the frame goes into, which may be the next one. Lock: append."""
        if state.tail + frame_bytes > self._size_limit and state.next_lsn > state.segment:
            state = self._start_next(state)
        elif state.segment != self._active.first_lsn or state.marker != self._active.marker:
            try:
                segment = open_segment(self._log.directory, state.segment, writable=True)
            except FileNotFoundError:
                raise UnsafeLog(self._log.directory.path, f"the active segment was removed; {AGAIN}") from None
            self._use(segment)
        self._ready_to = self._size_limit
        if self._ahead:
            end = state.tail + frame_bytes
            self._ready_to = write_ahead(self._active.segment.file, end, self._ahead, self._size_limit)
        return state

    def _start_next(self, state: LogState) -> LogState:
        self._check_names(self._time_ns())  # never start a segment beside another writer's
        self._log.control.halves[ROTATING] = 1  # before the name appears: a killed rotation has to be finished first
        segment, state = rotate(self._log.directory, self._log.control, state, self._size_limit, self._file_mode)
        self._log.control.halves[ROTATING] = 0
        self._use(segment)
        self.rotations += 1
        if self._row is not None:
            self._row.add(ROTATIONS)
        self.wanted = self.chores = True
        return state

    def _use(self, segment: Segment) -> None:
        old = self._active
        self._active = _active(segment)
        old.segment.file.close()

    def _check_names(self, now: int) -> None:
        """Refuse to append when what we have open is no longer what others open by its name. Lock: append."""
        state = self._log.control.state()
        active = self._active
        known = (state.segment, state.marker) == (active.first_lsn, active.marker)
        self._log.check_names(active.segment.file if known else None, state.tail)
        (segment, offset), file = self._seen, active.segment.file
        if known and segment == state.segment and file.read(4, offset) != active.marker.to_bytes(4, "little"):
            raise UnsafeLog(file.path, f"{CUT}; {AGAIN}")  # also when it has grown again since
        self._seen = (state.segment, state.last_frame) if state.last_frame else (0, 0)
        if state.tail > self._size_limit // 2 and state.segment != self._half_full:
            self._half_full = state.segment
            self.wanted = self.chores = True  # the next segment should be prepared by now
        if self._row is not None:
            self._row.words[LAST_APPEND_NS] = now
            self.timed = True
            self.chores = self.chores or bool(self.waits)
        self.chores = self.chores or self._interval
        self._next_check_lsn = state.next_lsn + CHECK_LSNS
        self._checked_ns, self._next_check_ns = now, now + CHECK_NS

    def _attend(self) -> None:
        """Something stands in the way of appends: finish the rotation that a killed process left, or refuse."""
        control, directory = self._log.control, self._log.directory
        stopped = control.halves[STOPPED]
        if not stopped:
            state = control.state()
            if state.next_lsn > state.segment and directory.identity(segment_name(state.next_lsn)) is not None:
                self._start_next(state)  # or a frame in the old segment would be behind the new one's first LSN
            control.halves[ROTATING] = 0
            return
        if stopped == RETIRED:
            raise Retired("the control block was replaced")
        raise sync_failed(self._log.directory.path, self._words[SYNC_ERRNO], self._words[DURABLE])

    def close(self) -> None:
        """Once no thread of ours is in an append: a descriptor number may be another file's as soon as it is closed."""
        assert not self.is_ours(), "who is in the middle of an append closes when it has ended"
        try:
            self._mutex.acquire()  # however long: who is inside gives up after the timeout
            if self._row is not None:
                self.waits.count()
                self._row.close()
            self.drop()
        finally:
            leave(self._mutex)

    def drop(self, *, forked: bool = False) -> None:
        """Close without waiting: for a forked child, where the thread that holds the mutex does not exist.

        Or is the one that forked, in a signal handler: then it comes back into `_append` after this.
        """
        self.forked = forked
        self.append = _refuse_closed  # type: ignore[method-assign, assignment]
        self._try_lock = self._take = self._pwrite = self._write_rest = _refuse_closed
        self._wait_for_lock = _refuse_closed
        self._cut_back = self._unlock = lambda *_: None
        self._lock.drop()
        self._counts = None
        if self._row is not None:
            self._row.words.release()
        self._active.segment.file.close()


def _refuse_closed(*_: Any) -> NoReturn:
    raise Retired("the writer was closed by another thread")


def _active(segment: Segment) -> Active:
    return Active(segment.header.first_lsn, segment.header.marker, segment.file.fd, segment)


class SharingAppender(Appender):
    """Of a writer that shares its row: others add to these words too, so some counts are lost, and none go back."""

    def append(self, body: bytes, count: int, largest: int) -> int:
        first_lsn, row = super().append(body, count, largest), self._row
        assert row is not None
        row.add(BATCHES)
        row.add(BYTES, FRAME_BYTES + len(body))
        if count > 1:
            row.add(MORE_ENTRIES, count - 1)
            row.add(bucket_word(BATCH, count))
        return first_lsn
