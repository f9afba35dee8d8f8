"""The appender: a place, and everything around the plain case of it: rotation, other segments, stops, names to compare.

Lock: what begins with `_` runs with the append lock held.
"""

from walpool.errors import UnsafeLog, WALError
from walpool.format.frame import FRAME_BYTES
from walpool.format.names import segment_name
from walpool.opening.opening import AGAIN, CUT, OpenLog
from walpool.options import SyncMode, WriterOptions
from walpool.shared.catalog import Segment, open_segment
from walpool.shared.control import DURABLE, INTENT, RETIRED, ROTATING, STOP, STOPPED, SYNC_ERRNO, LogState
from walpool.shared.poison import sync_failed
from walpool.shared.slot_rows import (
    BATCH,
    BATCHES,
    BYTES,
    MORE_ENTRIES,
    ROTATIONS,
    SlotRow,
    bucket_word,
)
from walpool.system.calls import calls
from walpool.system.failures import typed_error
from walpool.system.files import wipe
from walpool.system.mapped import fetch, map_to_store
from walpool.system.threads import leave
from walpool.upkeep.prepare import write_ahead, write_on
from walpool.write.chores import Chores
from walpool.write.place import Active, Place, Retired
from walpool.write.rotation import check_fits, rotate
from walpool.write.waits import Waits

# Somebody may remove or replace a file that we have open, and appends would go to a file that no name leads to. The
# comparison of all names with their inodes takes as long as four appends (16 us): so it is made at least this often,
LOOK_NS = 100_000_000
LOOK_LSNS = 1_000  # and after so many entries, of whichever process: what is lost then is bounded in both.
# FULL: zeros are written so far ahead of the tail. A sync of bytes that replace zeros need not sync the file's size.
# Of who stores: likewise, so that every store has a place.
AHEAD_BYTES = 1 << 20


class Appender(Place):
    def __init__(self, log: OpenLog, options: WriterOptions, row: SlotRow | None, waits: Waits, chores: Chores) -> None:
        super().__init__(log, row, waits, chores)
        self._log = log  # no cycle: an interrupted opening would keep its slot until it is collected
        self._row = row
        self._size_limit = options.size_limit
        self._file_mode = options.mode
        self._maps = options.mapped
        self._ahead = AHEAD_BYTES if options.sync_mode is SyncMode.FULL else 0
        self._seen = 0, 0  # a segment, and the offset of a frame that stood in it when names were compared
        self._half_full = 0  # the last segment that we saw half full

    def _look_around(self, frame_bytes: int, now: int) -> None:
        check_fits(frame_bytes, self._size_limit)
        if self._words[STOP]:
            self._attend()
        state = self._log.control.state()
        if state.next_lsn >= self.next_look_lsn or not self.looked_ns <= now < self.next_look_ns:
            self._check_names(now, state)
        active = self.active
        if (
            state.tail + frame_bytes > self.ready_to
            or state.segment != active.first_lsn
            or state.marker != active.marker
        ):
            self._make_room(frame_bytes, state)
        if self._row is not None:
            self.waits.appended_ns = now  # told once it is appended
        self.chores.look()
        if self.core is not None:
            mapped = self.active.mapped
            self.core.ready(
                *self.active[:3], self.ready_to, self.next_look_lsn, self.looked_ns, self.next_look_ns,
                None if mapped is None else mapped.obj,
            )  # fmt: skip

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

    def _check_names(self, now: int, state: LogState) -> None:
        """Refuse to append when what we have open is no longer what others open by its name."""
        active = self.active
        known = (state.segment, state.marker) == (active.first_lsn, active.marker)
        in_use = state.tail if active.mapped is None else max(state.tail, self.ready_to)
        self._log.check_names(active.segment.file if known else None, in_use)
        (segment, offset), file = self._seen, active.segment.file
        if known and segment == state.segment and file.read(4, offset) != active.marker.to_bytes(4, "little"):
            raise UnsafeLog(file.path, f"{CUT}; {AGAIN}")  # also when it has grown again since
        self._seen = (state.segment, state.last_frame) if state.last_frame else (0, 0)
        if state.tail > self._size_limit // 2 and state.segment != self._half_full:
            self._half_full = state.segment
            self.chores.prepare()  # the next segment should be there by now
        if self._row is not None:
            self.waits.sample = True
        self.next_look_lsn = state.next_lsn + LOOK_LSNS
        self.looked_ns, self.next_look_ns = now, now + LOOK_NS

    def _make_room(self, frame_bytes: int, state: LogState) -> None:
        """Have the segment open that the frame goes into, which may be the next one."""
        if state.tail + frame_bytes > self._size_limit and state.next_lsn > state.segment:
            state = self._start_next(state)
        elif state.segment != self.active.first_lsn or state.marker != self.active.marker:
            try:
                segment = open_segment(self._log.directory, state.segment, writable=True)
            except FileNotFoundError:
                raise UnsafeLog(self._log.directory.path, f"the active segment was removed; {AGAIN}") from None
            self._use(segment)
        end = state.tail + frame_bytes
        if self._maps:
            self.ready_to = self._map(state.tail, end)
        elif self._ahead:
            self.ready_to = write_ahead(self.active.segment.file, end, self._ahead, self._size_limit)
        else:
            self.ready_to = self._size_limit

    def _map(self, tail: int, end: int) -> int:
        """Have the place of the next frames written and mapped; where it ends.

        Where that is refused, the next ones are written, which is refused, too, or is not.
        """
        file, mapped = self.active.segment.file, self.active.mapped
        try:
            written = write_on(file, tail, end, AHEAD_BYTES, self._size_limit)
            ready_to = min(written, end + AHEAD_BYTES, self._size_limit)
            if mapped is None or len(mapped) < ready_to:
                mapped = map_to_store(file, written)
            fetch(mapped, tail, ready_to)
        except (WALError, OSError, ValueError):
            mapped, ready_to = None, min(end + AHEAD_BYTES, self._size_limit)
        old = self.active.mapped
        if mapped is not old:
            self._look_first()
            self.active = self.active._replace(mapped=mapped)
            if old is not None:
                old.release()
        return ready_to

    def _start_next(self, state: LogState) -> LogState:
        self._check_names(calls.time_ns(), state)  # never start a segment beside another writer's
        self._log.control.halves[ROTATING] = 1  # before the name appears: a killed rotation has to be finished first
        segment, state = rotate(self._log.directory, self._log.control, state, self._size_limit, self._file_mode)
        self._log.control.halves[ROTATING] = 0
        self._use(segment)
        if self._row is not None:
            self._row.add(ROTATIONS)
        self.chores.rotated()
        return state

    def _use(self, segment: Segment) -> None:
        old = self.active
        self._look_first()
        self.active = Active.of(segment)
        old.segment.file.close()
        if old.mapped is not None:
            old.mapped.release()

    def _unwritten(self, error: OSError, tail: int, end: int) -> Exception:
        if wipe(self.active.fd, tail, end):
            self._words[INTENT] = 0  # or this writer shows as the holder of the lock until somebody appends
        self._look_first()
        self.waits.not_appended()
        return typed_error(error, self.active.segment.file.path)

    def _look_first(self) -> None:
        """Before the next frame."""
        self.ready_to = 0
        if self.core is not None:
            self.core.look_first()

    def rotate(self) -> bool:
        """Seal the active segment now; False when nothing is in it."""
        return self._lock.run(self._rotate)

    def _rotate(self) -> bool:
        if self._words[STOP]:
            self._attend()
        state = self._log.control.state()
        return state.next_lsn > state.segment and bool(self._start_next(state))

    def close(self) -> None:
        """Once no thread of ours is in an append: a descriptor number may be another file's as soon as it is closed."""
        assert not self.is_ours(), "who is in the middle of an append closes when it has ended"
        try:
            self._mutex.acquire()  # however long: who is inside gives up after the timeout
            self.chores.count()
            if self._row is not None:
                self._row.close()
            self.drop()
        finally:
            leave(self._mutex)

    def drop(self, *, forked: bool = False) -> None:
        """Close without waiting: for a forked child, where the thread that holds the mutex does not exist.

        Or is the one that forked, in a signal handler: then it comes back into `append` after this.
        """
        self.forked = forked
        self.refuse()
        self._lock.drop()
        if self._row is not None:
            self._row.words.release()
        self.active.segment.file.close()


class SharingAppender(Appender):
    """Of a writer that shares its row: others add to these words too, so some counts are lost, and none go back."""

    def append(self, data: bytes, count: int, largest: int) -> int:
        first_lsn, row = super().append(data, count, largest), self._row
        assert row is not None
        row.add(BATCHES)
        row.add(BYTES, FRAME_BYTES + len(data))
        if count > 1:
            row.add(MORE_ENTRIES, count - 1)
            row.add(bucket_word(BATCH, count))
        return first_lsn
