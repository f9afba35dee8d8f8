"""Where a reader's bytes come from: a live log, a copy of one, or one segment file.

Holds: for the active segment of a live log nothing behind the published tail is read; of a copy, everything is.
"""

import os
from typing import NamedTuple

from walpool.errors import LogNotFound, UnsafeLog, WALError
from walpool.format.names import APPEND_LOCK, CONTROL, parse_segment_name
from walpool.shared.catalog import Segment, list_segments, open_segment
from walpool.shared.control import RETIRED, STOPPED, Control, ControlUnusable, LogState
from walpool.system import clock
from walpool.system.files import Directory
from walpool.system.locks import try_lock, unlock
from walpool.system.paths import is_directory, split

CONFIRM_S = 1.0  # how long a reader that is about to report damage waits for the append lock


class Extent(NamedTuple):
    """How far one segment counts."""

    limit: int  # offset one past the last byte to look at
    limit_lsn: int | None  # first LSN of the next segment, None when there is none
    live: bool  # `limit` is the published tail: whatever is before it is a frame, or damaged


class Source:
    """The segments of a log, and its control block while there is one to believe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.only: int | None = None
        place: str | os.PathLike[str] = path
        if not is_directory(path):
            place, name = split(path)
            self.only = parse_segment_name(name)
            if self.only is None:
                raise UnsafeLog(os.fspath(path), "refused: neither a directory nor a segment (20 digits and .wal)")
        self.directory = Directory(place)
        self.control: Control | None = None
        if self.only is None:
            self.look_for_control()
            if not self.segments():
                raise LogNotFound(self.directory.path, "the directory holds no log")

    def look_for_control(self) -> None:
        """Attach the control block that is in force now, if any: it may have appeared or been replaced."""
        if self.control is not None and self.control.halves[STOPPED] != RETIRED:
            mapped = self.control.file.stat
            if self.directory.identity(CONTROL) in (None, (mapped.st_dev, mapped.st_ino)):
                return
        old, self.control = self.control, None
        if old is not None:
            old.close()
        if self.only is None:
            try:
                self.control = Control.attach(self.directory, writable=False)
            except (ControlUnusable, UnsafeLog):
                self.control = None  # a copy, an archive, a log of another boot, or one we may not map: frames decide

    def segments(self) -> list[int]:
        return list_segments(self.directory) if self.only is None else [self.only]

    def state(self) -> LogState | None:
        return self.control.state() if self.control is not None else None

    def open(self, first_lsn: int) -> Segment:
        return open_segment(self.directory, first_lsn)

    def extent(self, segment: Segment) -> Extent:
        """As of now."""
        first_lsn = segment.header.first_lsn
        state = self.state()
        if state is not None and state.segment == first_lsn:
            return Extent(state.tail, None, True)
        later = [first for first in self.segments() if first > first_lsn]
        if state is not None:
            later = [first for first in later if first <= state.segment]  # a rotation may be half done
        return Extent(segment.file.size(), later[0] if later else None, False)

    def settle(self) -> None:
        """Wait until no append is under way: loads of the control block were in order on any machine, then."""
        try:
            file = self.directory.open(APPEND_LOCK)
        except (FileNotFoundError, WALError):
            return  # a copy, or we may not
        try:
            deadline = clock.monotonic() + CONFIRM_S
            while not try_lock(file.fd) and clock.monotonic() < deadline:
                clock.sleep(0.001)
            unlock(file.fd)
        finally:
            file.close()

    def close(self) -> None:
        if self.control is not None:
            self.control.close()
            self.control = None
        self.directory.close()
