"""Where a reader's bytes come from: a live log, a copy of one, or one segment file.

With a control block that can be believed the log is live: its tail says where it ends. Without one (a copy, an archive,
any log after a reboot until the first writer comes) it ends where its frames do.

Holds: for the active segment of a live log nothing behind the published tail is read; of a copy, everything is. No lock
is taken that a writer waits for, but for a moment before damage is reported.
"""

import os

from walpool.errors import CorruptLog, LogNotFound, LogReplaced, UnsafeLog
from walpool.format.header import HEADER_BYTES, MAGIC, WALHeader
from walpool.format.names import APPEND_LOCK, CONTROL, parse_segment_name, segment_name
from walpool.read.walk import Extent
from walpool.shared.catalog import Segment, list_segments, open_segment
from walpool.shared.control import Control, ControlUnusable, LogState, known_segments
from walpool.shared.origin import is_another, log_id
from walpool.shared.pins import Pin
from walpool.shared.wakeups import Wakeups
from walpool.system import clock
from walpool.system.files import Directory
from walpool.system.locks import try_lock, unlock
from walpool.system.paths import is_directory, leads_to, split

CONFIRM_S = 1.0  # how long a reader that is about to report damage waits for the append lock


class Source:
    """The segments of a log, and its control block while there is one to believe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.only: int | None = None  # the first LSN of the one segment file that is read
        self._name = ""  # of that file
        place: str | os.PathLike[str] = path
        if not is_directory(path):
            place, self._name = split(path)
        self.directory = Directory(place)
        self.control: Control | None = None
        self.renewed = False  # another control block is in force than before
        self._id: bytes | None = None  # the log's, once it is known
        self._gone = ""  # why this is not the log any more that was read: once found, it is not asked again
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        if self._name:
            self.only = self._identify(self._name)
            return
        self.look_for_control()
        self.renewed = False
        if not self.segments():
            raise LogNotFound(self.directory.path, "the directory holds no log")
        self._id = log_id(self.directory)

    def _identify(self, name: str) -> int:
        """The first LSN of a segment file: its header knows, whatever the file is called."""
        with self.directory.open(name) as file:
            data = file.read(HEADER_BYTES, 0)
        stated = parse_segment_name(name)
        try:
            return WALHeader.decode(data, file.path).first_lsn
        except CorruptLog:
            if stated is not None:
                return stated  # a damaged one: opening it says so
            if data[: len(MAGIC)] == MAGIC:
                raise
            raise UnsafeLog(file.path, "refused: neither a log's directory nor a segment file") from None

    def name_of(self, first_lsn: int) -> str:
        return self._name or segment_name(first_lsn)

    @property
    def path(self) -> str:
        """Of what was asked for: the log's directory, or the segment file."""
        return self.directory.join(self._name) if self._name else self.directory.path

    @property
    def id(self) -> bytes | None:
        """The log's, where it is known."""
        return self._id

    def look_for_control(self) -> None:
        """Attach the control block that is in force now, if any: it may have appeared or been replaced."""
        old = self.control
        if old is not None:
            if not old.is_retired and self.directory.identity(CONTROL) in (None, old.file.place):
                return
            self.control = None
            old.close()
        if self.only is None:
            try:
                self.control = Control.attach(self.directory, writable=False)
                self.renewed = True
            except (ControlUnusable, UnsafeLog):
                self.control = None  # a copy, an archive, a log of another boot, or one we may not map: frames decide

    def wakeups(self, kind: int) -> Wakeups | None:
        """To wait for news of a kind (see Wakeups). None: this process may not say in the block that it waits."""
        ours = self.control
        if ours is not None and not ours.writable:
            control = ours
            try:
                ours = Control.attach(self.directory, writable=True)
            except (ControlUnusable, UnsafeLog, OSError):
                return None
            if ours.file.place != control.file.place:
                ours.close()  # the next look finds that it was replaced
                return None
            self.control = ours
            control.close()
        return None if ours is None else Wakeups(ours, kind)

    def segments(self) -> list[int]:
        return list_segments(self.directory) if self.only is None else [self.only]

    def first_lsn(self) -> int:
        """The first LSN that the log has, as of now. Raises LogReplaced when no segment is left."""
        segments = self.segments()
        if not segments:
            self.check_place()
            raise self.replaced("the log's segments were removed")
        return segments[0]

    def pin(self, start: int) -> Pin | None:
        """One that keeps `start` and what follows; None of a copy, which nobody prunes."""
        try:
            pin = Pin(self.directory)
        except FileNotFoundError:
            return None
        pin.begin(self.segments, start)
        return pin

    def check_place(self) -> None:
        """Raises LogReplaced when the path does not lead to this log any more: it was moved, removed, or made anew."""
        self.check_known()
        if leads_to(self.directory.path, self.directory.stat) is False:
            raise self.replaced("the directory was moved or removed, or another one is in its place")
        self.check_id()

    def check_id(self) -> None:
        """Raises LogReplaced when the directory, which is still ours, holds another log."""
        if is_another(self.directory, self._id):
            raise self.replaced("the log was removed, and another one made in its place")

    def check_known(self) -> None:
        """Raises LogReplaced again, once that was found."""
        if self._gone:
            raise self.replaced(self._gone)

    def replaced(self, reason: str) -> LogReplaced:
        self._gone = reason
        return LogReplaced(
            self.path, f"{reason}; what was read so far is not of the log that is there now: open it again"
        )

    def has_name(self, segment: Segment) -> bool:
        """Whether the segment's name leads to the file that we have open."""
        return self.directory.leads_to(self.name_of(segment.header.first_lsn), segment.file)

    def state(self) -> LogState | None:
        return self.control.state() if self.control is not None else None

    def open(self, first_lsn: int) -> Segment:
        return open_segment(self.directory, first_lsn, name=self._name or None)

    def extent(self, segment: Segment) -> Extent:
        """As of now."""
        first_lsn = segment.header.first_lsn
        state = self.state()
        if state is not None and state.segment == first_lsn:
            return Extent(state.tail, live=True)
        later = [first for first in known_segments(self.segments(), state) if first > first_lsn]
        return Extent(segment.file.size(), later[0] if later else None)

    def wait_for_append(self) -> None:
        wait_for_append(self.directory)

    def close(self) -> None:
        if self.control is not None:
            self.control.close()
            self.control = None
        self.directory.close()


def wait_for_append(directory: Directory) -> None:
    """Wait until no append is under way: loads of the control block were in order on any machine, then."""
    try:
        file = directory.open(APPEND_LOCK)
    except (FileNotFoundError, UnsafeLog):
        return  # a copy, or we may not
    with file:
        deadline = clock.monotonic() + CONFIRM_S
        while not try_lock(file.fd):
            if clock.monotonic() >= deadline:
                return
            clock.sleep(0.001)
        unlock(file.fd)
