"""The tail of a log without a usable control block: where its frames end, and what they vouch for.

Holds: each look goes on where the last one ended; what is durable is what a header or a later frame says, never more.
"""

from walpool.errors import CorruptLog
from walpool.read.source import Source
from walpool.read.walk import Walk
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment


class Tail:
    """As of the last `look`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._window = FrameWindow(1 << 16)
        self._segment: Segment | None = None
        self.next_lsn = 1
        self.durable_lsn = 0  # the highest that any header or frame of the last segments vouches for

    def look(self) -> "Tail":
        self._go_to_the_last()
        segment = self._segment
        if segment is None:
            return self
        for frame in Walk(segment, self._window, at=(self._window.offset, self.next_lsn)):
            self.next_lsn = frame.next_lsn
            self.durable_lsn = max(self.durable_lsn, min(frame.durable_lsn, frame.first_lsn - 1))
        return self

    def _go_to_the_last(self) -> None:
        """Have the newest segment open that has a header, at the place where the last look ended."""
        for first_lsn in reversed(self._source.segments()):
            here = self._segment
            if here is not None and here.header.first_lsn == first_lsn and self._source.has_name(here):
                return
            try:
                newer = self._source.open(first_lsn)
            except (CorruptLog, FileNotFoundError):
                continue  # under way to its name, or gone
            self.close()
            self._segment = newer
            self.next_lsn = first_lsn
            self.durable_lsn = max(self.durable_lsn, newer.header.durable_lsn)
            self._window.start(newer, newer.header.entries_offset)
            return

    def close(self) -> None:
        if self._segment is not None:
            self._segment.file.close()
            self._segment = None
