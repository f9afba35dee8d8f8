"""The window: the buffer that a segment's frames are read through, one after another.

Holds: nothing behind `limit` is read into the buffer, because a live log's bytes there may still change; nothing is
allocated for a length that the file does not have.
"""

from walpool.format.frame import FRAME_BYTES, FRAME_PREFIX, Damage, End, Frame, read_frame
from walpool.format.run import Run, read_run
from walpool.native.select import crc32c
from walpool.shared.catalog import CHUNK_BYTES, Segment
from walpool.system.files import File

INITIAL_CAPACITY = 8192
# A larger frame gets its memory only once its checksum was found to be right: a damaged length must not take 4 GiB.
CHECK_FIRST_BYTES = 16 << 20


class FrameWindow:
    """The buffer that frames are read from, moved along one segment file; it grows to the largest frame met."""

    def __init__(self, capacity: int = INITIAL_CAPACITY) -> None:
        self.initial_capacity = capacity
        self.resizes = 0
        self._buffer = bytearray(capacity)
        self._file: File | None = None
        self._marker = 0
        self.data = memoryview(self._buffer)[:0]  # what is filled
        self._base = 0  # file offset of data[0]
        self._at = 0  # in data, of the next frame

    def start(self, segment: Segment, offset: int) -> None:
        """Go on at `offset` of this segment."""
        self._file = segment.file
        self._marker = segment.header.marker
        self._base = offset
        self._at = 0
        self.data = self.data[:0]

    def put_back(self, frame: Frame) -> int:
        """Stay before the frame that `next` gave just now; its offset in the file."""
        offset = self.offset - (frame.end - frame.offset)
        self._base = offset
        self._at = 0
        self.data = self.data[:0]
        return offset

    @property
    def capacity(self) -> int:
        """Bytes the buffer has grown to."""
        return len(self._buffer)

    @property
    def offset(self) -> int:
        """In the file, of the next frame."""
        return self._base + self._at

    def next(self, lsn: int, limit: int) -> Frame | End | Damage:
        """The frame at `offset` whose first LSN is `lsn`, in a file that ends, for us, at `limit`.

        Offsets in the answer are those in `data`; the window moves past a frame, and stays before anything else.
        """
        while True:
            at = self._at
            found = read_frame(self.data, at, self._marker, lsn, limit - self._base - at)
            if type(found) is Frame:
                self._at = found.end
                return found
            assert not isinstance(found, Frame)
            if found.needed > CHECK_FIRST_BYTES and not self._sums_up(found.needed):
                return Damage(at, "the frame's checksum does not match")
            if not found.needed or not self._fill(found.needed, limit):
                return found

    def next_run(self, lsn: int, limit: int, end_lsn: int, with_entries: bool) -> Run | None:
        """The frames that stand at `offset`, taken together; None: `next` tells what there is instead of a plain one.

        `lsn` and `limit` are as for `next`; the last of them may reach to `end_lsn`.
        """
        while True:
            at = self._at
            remaining = limit - self._base - at
            run = read_run(self.data, at, self._marker, lsn, remaining, end_lsn, with_entries)
            if run.batches:
                self._at = at + run.bytes
                return run
            found = read_frame(self.data, at, self._marker, lsn, remaining)
            if isinstance(found, Frame) or not 0 < found.needed <= CHECK_FIRST_BYTES:
                return None
            if not self._fill(found.needed, limit):
                return None

    def place_of(self, run: Run) -> int:
        """Where a run that `next_run` gave just now begins, in `data`."""
        return self._at - run.bytes

    def split(self, run: Run, lsn: int) -> tuple[Frame, int, int]:
        """Stay behind the frame of `run`, which `next_run` gave just now, that has the entry `lsn`.

        That frame, and how many frames and bytes of the run are behind it: they are before us again.
        """
        end, at, batches = self._at, self.place_of(run), run.batches
        while True:
            found = read_frame(self.data, at, self._marker, 0)
            assert isinstance(found, Frame), "it was one just now"
            at = found.end
            batches -= 1
            if found.next_lsn > lsn:
                self._at = at
                return found, batches, end - at

    def _sums_up(self, size: int) -> bool:
        """Whether the frame of `size` bytes at `offset` has its checksum: found out without room for all of it."""
        assert self._file is not None
        head = bytes(self.data[self._at : self._at + FRAME_BYTES])
        at = self.offset + FRAME_BYTES
        end = self.offset + size
        crc = self._marker
        while at < end:
            chunk = self._file.read(min(CHUNK_BYTES, end - at), at)
            if not chunk:
                return False
            crc = crc32c(chunk, crc)
            at += len(chunk)
        marker, stated = FRAME_PREFIX.unpack_from(head)
        return (marker, stated) == (self._marker, crc32c(head[FRAME_PREFIX.size :], crc))

    def _fill(self, needed: int, limit: int) -> bool:
        """Have `needed` bytes from `offset` in the buffer, or as many as the file has; False when none came."""
        assert self._file is not None
        kept = self.data[self._at :]
        if needed > len(self._buffer):
            buffer = bytearray(needed)  # a new one: views of the old stay valid for whoever holds them
            buffer[: len(kept)] = kept
            self._buffer = buffer
            self.resizes += 1
        else:
            self._buffer[: len(kept)] = bytes(kept)
        self._base += self._at
        self._at = 0
        view = memoryview(self._buffer)
        filled = len(kept)
        wanted = min(len(view), limit - self._base)
        came = self._file.read_into(view[filled:wanted], self._base + filled) if wanted > filled else 0
        self.data = view[: filled + came]
        return came > 0
