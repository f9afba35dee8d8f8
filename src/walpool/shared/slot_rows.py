"""Slot rows: what each writer has done and is doing, in memory that any process can read.

The file `metrics` (rows_file.py) has one row of 16 KiB for each slot, after one for the header and one that all writers
share whose slot is beyond the last. Layout of a row, in 64-bit words of the machine's byte order:

    word  name            meaning
       0  claims          how often the row was claimed, twice; odd while a writer puts its identity there
     1-7  identity        process id, its start (ns), pid namespace, opened (ns), sync mode, closed (ns; 0: not closed)
    8-15  name            64 bytes of UTF-8
   16-47  counters        see figures/fields.py: in the life of the row, whoever owned it
   48-79  at claim        the counters when the present owner came
   80-87  gauges          see figures/fields.py
   88-91  sums            of the histograms, in units; of batches none
   96-97  last error      when (ns), bytes of its text
 104-119  its text        128 bytes of UTF-8
   128-   histograms      see HISTOGRAMS, BUCKETS words each

Holds: one writer per word, the one that holds the slot's byte of slots.lock; totals and buckets only rise, and a new
owner goes on from what is there. So nothing has to be folded when a writer dies: the log's totals are the sums of all
rows, whoever was killed where, and what one writer did is its row less the row at its claim. (Writers that share the
last row may lose counts to each other; it is marked.) Metrics are never worth an append: without room for a row, or
with a file that is not ours, a writer goes uncounted and says so in the log.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from walpool.errors import BatchTooLarge, EntryTooLarge, LogBusy, LogClosed, LogFull, SyncFailed, UnsafeLog, WALError
from walpool.format.names import METRICS
from walpool.options import SyncMode
from walpool.shared.counters import Cells
from walpool.shared.figures.fields import COUNTERS, GAUGES, HISTOGRAMS, TOTALS, WORDS
from walpool.shared.figures.histogram import BUCKETS, SECONDS, TIME_SHIFT, Histogram, bucket_of
from walpool.shared.rows_file import (
    CLAIMS,
    CLOSED_NS,
    MODE,
    OPENED_NS,
    PID,
    PID_NAMESPACE,
    ROW_BYTES,
    ROWS,
    SHARED_ROW,
    STARTED_NS,
    in_our_words,
    layout_of,
    open_rows,
    place_of,
)  # fmt: skip
from walpool.system import clock, processes
from walpool.system.files import READ, Directory, File
from walpool.system.forks import reopen_after_fork
from walpool.system.shared_words import WORD, SharedWords

MOST = 1 << 62  # what no count comes to: a word above it is damage, and one more might not fit it
NAME, NAME_BYTES = 8, 64
# Plain numbers, for whoever stores in a row at each append.
BATCHES = WORDS["batches"]
MORE_ENTRIES = WORDS["more_entries"]
BYTES = WORDS["bytes"]
LOCK_WAITS = WORDS["lock_waits"]
SYNCS_LED = WORDS["syncs_led"]
SYNC_WAITS = WORDS["sync_waits"]
ROTATIONS = WORDS["rotations"]
BUFFERED = WORDS["buffered_bytes"]
DOING = WORDS["state"]
SINCE_NS = WORDS["state_since_ns"]
LAST_APPEND_NS = WORDS["last_append_ns"]
AT_CLAIM = COUNTERS.stop
SUMS, ERROR_NS, ERROR_LENGTH = 88, 96, 97
ERROR, ERROR_BYTES = 104, 128
LOCK_WAIT, SYNC, APPEND, BATCH = range(4)  # of HISTOGRAMS; of batches those of two and more

IDLE, WAITING, SYNCING = range(3)
STATES = ("idle", "waiting for the lock", "waiting for a sync")
_MODES = tuple(SyncMode)


def unit_of(histogram: int) -> float:
    """What one unit is worth: seconds, or entries."""
    return 1.0 if histogram == BATCH else SECONDS


def _at_claim(word: int) -> int:
    """Where a counter stands as it was when the present owner came."""
    return AT_CLAIM + word - COUNTERS.start


@lru_cache(maxsize=4096)  # sizes of batches come again and again
def bucket_word(histogram: int, units: int) -> int:
    """The word of a row that counts `units`."""
    return HISTOGRAMS[histogram] + bucket_of(units)


class SlotRow:
    """A writer's own row. The appender stores what it counts of appends itself, under its mutex."""

    def __init__(self, words: memoryview, mode: SyncMode, name: str | None, *, shared: bool = False) -> None:
        self.words = words
        reopen_after_fork(self)
        self.shared = shared  # with the writers of other slots
        self._cells: Cells[int] = Cells()  # what threads of this writer count outside the append mutex, by word
        self._before: dict[int, int] = {}  # what stood in such a word when this writer came
        self._told = 0  # how many errors were told
        for at, word in enumerate(words.tolist()):
            if word > MOST:
                words[at] = 0
        identity = processes.identity()
        text = (name or "").encode(errors="replace")[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
        words[CLAIMS] = words[CLAIMS] + 1 | 1  # odd, also after a claim that a kill ended
        words[PID], words[STARTED_NS], words[PID_NAMESPACE] = identity
        words[OPENED_NS], words[MODE], words[CLOSED_NS] = clock.time_ns(), _MODES.index(mode), 0
        _put_text(words, NAME, text)
        for at in COUNTERS:  # also those that only a newer walpool counts: of this owner they are 0
            words[_at_claim(at)] = words[at]
        for at in GAUGES:
            words[at] = 0
        words[CLAIMS] = words[CLAIMS] + 1

    def add(self, at: int, count: int = 1) -> None:
        self._add(((at, count),))

    def record(self, histogram: int, units: int) -> None:
        self._add(((HISTOGRAMS[histogram] + bucket_of(units), 1), (SUMS + histogram, max(0, units))))

    def _add(self, counts: Iterable[tuple[int, int]]) -> None:
        """Of a writer that another thread has closed meanwhile nothing is left to count."""
        try:
            self._count(counts)
        except ValueError:
            if not self._is_released():
                raise

    def _is_released(self) -> bool:
        try:
            self.words[CLAIMS]
        except ValueError:
            return True
        return False

    def _count(self, counts: Iterable[tuple[int, int]]) -> None:
        """Without a lock: a signal handler's append may count a failure in the middle of this, on the same thread."""
        words = self.words
        if self.shared:  # with other processes: rough in any case
            for at, count in counts:
                words[at] = min(MOST, words[at] + count)
            return
        for at, _ in counts:
            self._before.setdefault(at, min(MOST, words[at]))  # nobody else stores in these words
        self._cells.add(counts)
        for at, _ in counts:
            # Until the word has all of it: whoever comes in between stores more, and never less at the end.
            while words[at] < (total := self._before[at] + self._cells.sum(at)):
                words[at] = total

    def record_ns(self, histogram: int, ns: int) -> None:
        self.record(histogram, ns >> TIME_SHIFT)

    def count_waits(self, waits_ns: list[int]) -> None:
        """Take them out of the list and count them; another thread may be at it."""
        while True:
            try:
                waited_ns = waits_ns.pop()
            except IndexError:
                return
            self.add(LOCK_WAITS)
            self.record_ns(LOCK_WAIT, waited_ns)

    def doing(self, state: int) -> None:
        self.words[SINCE_NS] = clock.monotonic_ns()
        self.words[DOING] = state

    def failed(self, kind: str, text: str) -> None:
        self.add(WORDS[kind])
        data = text.encode(errors="replace")[:ERROR_BYTES]
        text_words = enumerate(memoryview(data.ljust(ERROR_BYTES, b"\0")).cast("Q").tolist(), ERROR)
        self._told = turn = self._told + 1
        for at, word in ((ERROR_LENGTH, 0), *text_words, (ERROR_NS, clock.time_ns()), (ERROR_LENGTH, len(data))):
            if self._told != turn:
                return  # another came in the middle of this one: its text stands
            self.words[at] = word

    def close(self) -> None:
        """Ended in order, so nobody will call it killed."""
        self.words[DOING] = IDLE
        self.words[CLOSED_NS] = clock.time_ns()

    def after_fork(self) -> None:
        """In a forked child: it is the parent's, who alone stores there."""
        self.words.release()

    def count_failure(self, error: BaseException) -> None:
        """Count an append that raised; of a closed writer nothing is left to count."""
        if isinstance(error, LogClosed):
            return
        kind = next((kind for kind, types in _KINDS.items() if isinstance(error, types)), "other")
        self.failed(kind, str(error) or type(error).__name__)


_KINDS: dict[str, type[WALError] | tuple[type[WALError], ...]] = {
    "busy": LogBusy,
    "full": LogFull,
    "sync_failed": SyncFailed,
    "too_large": (EntryTooLarge, BatchTooLarge),
}


def _put_text(words: memoryview, at: int, data: bytes) -> None:
    for place, word in enumerate(memoryview(data).cast("Q"), at):
        words[place] = word


def claim(directory: Directory, slot: int, file_mode: int, mode: SyncMode, name: str | None) -> SlotRow:
    """The row of `slot`, whose byte the caller holds. Raises WALError or OSError: then there is none."""
    file = open_rows(directory, slot, file_mode)
    try:
        row = slot if slot < ROWS else SHARED_ROW
        at = place_of(row)
        if row != SHARED_ROW:
            # As it is, but in real blocks: a store into a hole of a full disk is SIGBUS.
            file.write(file.read(ROW_BYTES, at).ljust(ROW_BYTES, b"\0"), at)
        words = SharedWords(file, ROW_BYTES, writable=True, offset=at).words
        return SlotRow(words, mode, name, shared=row == SHARED_ROW)
    finally:
        file.close()


# Reading


@dataclass(frozen=True, slots=True)
class RowValues:
    """One row at one moment: what its present owner is and did, and what the row counts for the log."""

    slot: int
    pid: int
    started_ns: int
    pid_namespace: int
    opened_ns: int
    sync_mode: str
    closed: bool
    name: str
    totals: dict[str, int]  # of the row's life
    own: dict[str, int]  # since its present owner came
    histograms: tuple[Histogram, ...]  # of the row's life
    error: str  # the last one, "" for none
    error_ns: int


def read_rows(directory: Directory) -> list[RowValues]:
    """Every row that was ever claimed, without a lock. A row that makes no sense is left out; no file is no rows."""
    try:
        file = directory.open(METRICS, READ)
    except (FileNotFoundError, UnsafeLog):
        return []
    try:
        layout = layout_of(file)
        if not layout:
            return []
        rows = (file.size() - 2 * ROW_BYTES) // ROW_BYTES
        found = [_read_row(file, row, layout) for row in range(SHARED_ROW, min(rows, ROWS))]
        return [values for values in found if values is not None]
    finally:
        file.close()


def _read_row(file: File, row: int, layout: int) -> RowValues | None:
    """Read, not mapped: a file that somebody truncates is a short read, and not SIGBUS."""
    for _ in range(3):
        data = file.read(ROW_BYTES, place_of(row))
        if len(data) < ROW_BYTES:
            return None
        data = in_our_words(data, layout)
        words = memoryview(data).cast("Q")
        if not words[CLAIMS]:
            return None  # never claimed
        if not words[CLAIMS] & 1:
            break  # else its identity changes this very moment
    totals = {name: words[at] for name, at in TOTALS.items()}
    own = {name: words[at] if at in GAUGES else max(0, words[at] - words[_at_claim(at)]) for name, at in TOTALS.items()}
    return RowValues(
        slot=row,
        pid=words[PID],
        started_ns=words[STARTED_NS],
        pid_namespace=words[PID_NAMESPACE],
        opened_ns=words[OPENED_NS],
        sync_mode=_MODES[words[MODE]].value if words[MODE] < len(_MODES) else "unknown",
        closed=words[CLOSED_NS] != 0,
        name=_text(data, NAME, NAME_BYTES),
        totals=totals,
        own=own,
        histograms=tuple(_histogram(data, words, which) for which in range(4)),
        error=_text(data, ERROR, min(ERROR_BYTES, words[ERROR_LENGTH])),
        error_ns=words[ERROR_NS],
    )


def _text(data: bytes, at: int, length: int) -> str:
    return data[at * WORD : at * WORD + length].rstrip(b"\0").decode(errors="replace")


def _histogram(data: bytes, words: memoryview, which: int) -> Histogram:
    start = HISTOGRAMS[which]
    unit = unit_of(which)
    empty = data.startswith(_NO_COUNTS, start * WORD)  # as most are: 64 writers are looked at twice a second
    counts = () if empty else tuple(words[start : start + BUCKETS].tolist())
    # The entries of batches of two and more: all entries, less one for each batch of one.
    total = words[MORE_ENTRIES] + sum(counts) if which == BATCH else words[SUMS + which]
    return Histogram(counts, total * unit, unit)


_NO_COUNTS = bytes(BUCKETS * WORD)
