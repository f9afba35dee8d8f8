"""What a cursor has committed: its file, while it is open.

Holds: a commit that was synced is on disk when it returns. What was not is written over by the next commit until a sync
comes, never what is known to be on disk. After one that failed the file says what is known to be on disk, and the next
commit makes another file: the system may have called the pages clean that it could not write. So nobody removes
entries by a position that a power cut could take back.
"""

from collections.abc import Callable

from walpool.consume.consumer import Consumer
from walpool.errors import CorruptLog, UnsafeLog
from walpool.opening.opening import AGAIN, maintenance
from walpool.shared.catalog import list_segments
from walpool.shared.cursors.positions import (
    COPY_BYTES,
    Position,
    open_position,
    read_position,
    way_out,
    write_copy,
    write_new,
)
from walpool.system.failures import typed_errors


class Committed:
    def __init__(self, consumer: Consumer, name: str) -> None:
        """Lock: the name is ours. Raises CorruptLog, UnsafeLog, LogBusy, and what the system refuses."""
        assert consumer.cursors is not None
        self._consumer = consumer
        self._name = name
        self._cursors = consumer.cursors
        self._file = open_position(self._cursors, name)
        self._must_renew = False
        try:
            self._durable, self._copy = read_position(self._file)  # what is, and in which copy
            self.position = self._durable
            self._check()
            with typed_errors(self._file.path):  # whoever wrote it may have been killed before it was durable
                self._file.sync()
                self._cursors.sync()
                consumer.directory.sync()
        except BaseException:
            self._file.close()
            raise

    def _check(self) -> None:
        """Raises CorruptLog for what no log that this one ever was has had committed."""
        consumer, position = self._consumer, self.position
        if position.lsn > consumer.durable_lsn or position.start_lsn > consumer.last_lsn + 1:
            lsn = max(position.lsn, position.start_lsn)
            why = f"it is at LSN {lsn}, and the log ends at LSN {consumer.last_lsn}: it is another log's"
            raise CorruptLog(self._file.path, 0, 0, f"{why}; {way_out(self._name)}")

    @property
    def lsn(self) -> int:
        return self.position.lsn

    def write(self, lsn: int) -> None:
        """Durable with the next `sync`."""
        position = self.position.at(lsn)
        if self._must_renew:
            self._renew(position)
            return
        try:
            write_copy(self._file, 1 - self._copy, position)
        except OSError:  # half of it may be there, over what was committed last
            self._take_back()
            raise
        self.position = position

    def sync(self) -> None:
        """Return when all that was written is on disk, in the file that its name leads to."""
        if self.position == self._durable:
            return
        try:
            with typed_errors(self._file.path):
                self._file.sync()
        except OSError:  # of an interrupt, the next sync does it
            self._take_back()
            raise
        self._durable, self._copy = self.position, 1 - self._copy
        self._consumer.check_names()
        if not self._cursors.leads_to(self._name, self._file):
            raise UnsafeLog(self._file.path, f"the cursor's file was removed or replaced while it was open; {AGAIN}")

    def _take_back(self) -> None:
        self._must_renew = True
        self.position = self._durable
        try:
            self._file.write(bytes(COPY_BYTES), (1 - self._copy) * COPY_BYTES)
        except OSError:
            pass  # it may say more than is on disk, then; the next commit mends it, if any can

    def _renew(self, position: Position) -> None:
        with typed_errors(self._file.path):
            write_new(self._cursors, self._name, position, self._consumer.options.mode)
        self._file.close()
        self._file = open_position(self._cursors, self._name)
        self.position = self._durable = position
        self._copy = 0
        self._must_renew = False

    def close(self) -> None:
        self._file.close()


def make(consumer: Consumer, names: list[str], check: Callable[[], None] = lambda: None) -> None:
    """The files of new cursors, which begin with the first entry there is: nobody removes it meanwhile.

    `check` may raise; nobody else makes any meanwhile.
    """
    cursors = consumer.cursors
    assert cursors is not None
    check()
    if all(cursors.identity(name) is not None for name in names):
        return
    with maintenance(consumer.directory, consumer.options), typed_errors(consumer.path):
        check()
        consumer.directory.sync()
        first_lsn = list_segments(consumer.directory)[0]
        for name in names:
            if cursors.identity(name) is None:
                write_new(cursors, name, Position(1, 0, first_lsn), consumer.options.mode)
