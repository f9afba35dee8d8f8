"""The table of figures: what is counted, in which word, in which unit, and what it is called wherever it is told.

A line is a field of a snapshot or of a writer in one, or a word that shows in no field as it is (UNSEEN); its Figure
says the rest. From these lines come the layout of a slot row (slot_rows.py), snapshots and their JSON, the names and
help texts of Prometheus, the docstrings, and the tables in docs/metrics.md. docs/inside.md says how to add one.
Holds: no two lines share a word, and what stands in a word has one name: `WORDS`.
"""

import textwrap
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from walpool.shared.figures.histogram import BUCKETS, Histogram

# Words of a row that there are for them; slot_rows.py has the others.
COUNTERS = range(16, 48)
GAUGES = range(80, 88)
HISTOGRAMS = range(128, 128 + 4 * BUCKETS, BUCKETS)  # the first word of each


class Kind(StrEnum):
    COUNTER = "counter"  # only rises
    GAUGE = "gauge"  # what is so now
    HISTOGRAM = "histogram"
    FACT = "fact"  # which, who or where: not a number of things


class By(StrEnum):
    """Who stores it."""

    STATE = "state, each append"
    LEADER = "sync leader"
    ROWS = "slot rows"
    FILE = "checkpoint file"
    CURSORS = "cursors' files"
    LOCKS = "kernel locks"
    LOOK = "whoever looks"
    PROCESS = "this process"  # that takes the snapshot: of its own readers


class Figure(NamedTuple):
    kind: Kind
    unit: str
    text: str  # what it says: in docstrings, in docs/metrics.md, and as the help of Prometheus
    by: By = By.ROWS
    prometheus: str = ""  # its name there, without `walpool_` and `_total`
    word: int | None = None  # of a slot row
    note: str = ""  # more of it, for docs/metrics.md
    label: str = ""  # of the metric in Prometheus, beside the log's name


C, G, H, F = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM, Kind.FACT
Class = TypeVar("Class", bound=type)


_TABLE: dict[str, dict[str, Figure]] = {}


def figures_of(kind: type) -> dict[str, Figure]:
    """The lines of a class, by name, in the order in which they are told."""
    return _TABLE[kind.__name__]


def table(**behind: str) -> Callable[[Class], Class]:
    """Take the lines of a class into the table: what is left are plain types, and a docstring that explains each.

    Lines that it has of another class stand behind the named ones, or at the end.
    """

    def take(kind: Class) -> Class:
        hints = get_type_hints(kind, include_extras=True)
        own = {name: hints[name].__metadata__[0] for name in kind.__annotations__}
        inherited = {name: figure for base in kind.__bases__ for name, figure in _TABLE.get(base.__name__, {}).items()}
        order = [*own, *(name for name in inherited if name not in behind)]
        for name, other in behind.items():
            order.insert(order.index(other) + 1, name)
        lines = own | inherited
        _TABLE[kind.__name__] = {name: lines[name] for name in order}
        kind.__annotations__ = {name: hints[name].__origin__ for name in own}
        _explain(kind)
        return kind

    return take


def _explain(kind: type) -> None:
    if kind.__doc__ is None:
        return  # with -OO nobody has one
    defaults = {name: value for name, value in vars(kind).items() if not isinstance(value, Field)}
    for base in kind.__bases__:
        fields = getattr(base, "__dataclass_fields__", {}).values()
        defaults |= {each.name: each.default for each in fields if each.default is not MISSING}
    items = []
    for name, figure in figures_of(kind).items():
        default = f" (default {_shown(defaults[name])})" if name in defaults else ""
        items += textwrap.wrap(f"{name}{default}: {figure.text}.", 112, subsequent_indent=" " * 4)
    kind.__doc__ += textwrap.indent("\n\nAttributes:\n" + textwrap.indent("\n".join(items), " " * 4), " " * 4)


def _shown(default: Any) -> str:
    return f"{type(default).__name__}()" if isinstance(default, tuple) else repr(default)


class Failures(NamedTuple):
    """Appends that raised, by what they raised. Each is a number of appends.

    Attributes:
        busy (default 0): LogBusy.
        full (default 0): LogFull.
        sync_failed (default 0): SyncFailed.
        too_large (default 0): EntryTooLarge, BatchTooLarge.
        other (default 0): anything else.
    """

    busy: int = 0
    full: int = 0
    sync_failed: int = 0
    too_large: int = 0
    other: int = 0


for _field in Failures._fields:
    getattr(Failures, _field).__doc__ = None  # "Alias for field number 0": the class says what it is

NO_FAILURES = Failures()


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
@table()
class Counted:
    """Counters of a row that both a writer and a snapshot, as the sum of all rows, show as they are."""

    lock_waits: Annotated[int, Figure(
        C, "appends", "appends that found the append lock taken", By.ROWS, "lock_waits", 19)] = 0
    sync_waits: Annotated[int, Figure(
        C, "appends, calls", "appends and calls of sync() that another's sync made durable",
        By.ROWS, "sync_waits", 21)] = 0


@dataclass(frozen=True, slots=True)
@table(lock_waits="failures_by_kind", sync_waits="syncs_led")
class WriterRow(Counted):
    """One writer. What it counted is 0 when it was opened with metrics=False."""

    slot: Annotated[int, Figure(F, "", "its writer slot", By.LOCKS)]
    pid: Annotated[int, Figure(F, "", "its process id; 0 when unknown")]
    process: Annotated[str, Figure(
        F, "", "the process's name; empty when unknown or in another pid namespace", By.LOOK)]
    name: Annotated[str, Figure(F, "", "the writer's, as it was opened")] = ""
    sync_mode: Annotated[str, Figure(F, "", "a SyncMode's value")] = ""
    opened_at: Annotated[float, Figure(F, "seconds", "seconds since the epoch")] = 0.0
    shares_row: Annotated[bool, Figure(
        F, "", "True beyond slot 1,023: these are figures of all such writers together, and rough")] = False
    entries: Annotated[int, Figure(
        C, "entries", "entries appended by the slot's present writer", By.ROWS, "writer_entries")] = 0
    batches: Annotated[int, Figure(
        C, "frames", "frames appended by it; an entry put alone is a batch of one", word=16)] = 0
    bytes: Annotated[int, Figure(
        C, "bytes", "bytes of frames appended by the slot's present writer", By.ROWS, "writer_written_bytes", 18)] = 0
    failures: Annotated[int, Figure(
        C, "appends", "appends of the slot's present writer that raised", By.ROWS, "writer_failures")] = 0
    failures_by_kind: Annotated[Failures, Figure(C, "appends", "the same, by what they raised")] = NO_FAILURES
    syncs_led: Annotated[int, Figure(C, "syncs", "syncs that it made, for all that waited", word=20)] = 0
    rotations: Annotated[int, Figure(C, "segments", "segments that it started", word=22)] = 0
    buffered_bytes: Annotated[int, Figure(
        G, "bytes", "buffered by a writer in SyncMode.NONE, and not appended yet", By.ROWS,
        "writer_buffered_bytes", 80)] = 0
    last_append_at: Annotated[float, Figure(
        G, "seconds", "seconds since the epoch when it appended last, to a tenth; 0.0 before the first", By.ROWS,
        "writer_last_append_timestamp_seconds")] = 0.0
    state: Annotated[str, Figure(
        F, "", "idle, waiting for the lock, or waiting for a sync; who is appending is `lock_holder`",
        note="where many wait, one wait in eight shows")] = "idle"
    state_since: Annotated[float, Figure(
        G, "seconds", "seconds since the epoch: when it last began to wait, to a tenth; 0.0 before that")] = 0.0
    state_seconds: Annotated[float, Figure(
        G, "seconds", "how long it has waited, whatever was done to the wall clock; 0.0 when idle")] = 0.0
    last_error: Annotated[str, Figure(F, "", "the message of its last append that raised")] = ""
    last_error_at: Annotated[float, Figure(F, "seconds", "seconds since the epoch; 0.0 when none did")] = 0.0
    elsewhere: Annotated[bool, Figure(
        F, "", "it is of another pid namespace, or an unknown one: where we are, `pid` is not it", By.LOOK,
        note="`pid` is its id there, `process` is empty, and tables show `^`")] = False


@dataclass(frozen=True, slots=True)
@table()
class ReaderRow:
    """One place that readers with a pin (pin=True) hold."""

    first_lsn: Annotated[int, Figure(
        F, "LSN", "of the segment that they read; retention keeps everything from there on", By.LOCKS)]
    lag: Annotated[int, Figure(G, "entries", "entries behind which they are, at most", By.LOOK)]


@dataclass(frozen=True, slots=True)
@table()
class CursorRow:
    """One cursor, or one part of a group."""

    name: Annotated[str, Figure(F, "", "its name; of a part, NAME@PARTofMEMBERS", By.CURSORS)]
    position: Annotated[int, Figure(
        G, "LSN", "the last LSN that it has committed; 0 before the first", By.CURSORS, "cursor_position_lsn",
        label="cursor")]
    lag_entries: Annotated[int, Figure(
        G, "entries", "entries that a cursor has not committed", By.LOOK, "cursor_lag_entries", label="cursor")]
    lag_bytes: Annotated[int, Figure(
        G, "bytes", "bytes of frames that a cursor has not committed", By.LOOK, "cursor_lag_bytes",
        note="of those that are still there", label="cursor")]
    lag_seconds: Annotated[float, Figure(
        G, "seconds", "how long ago the first entry was appended that a cursor has not committed; 0.0 when there is"
        " none", By.LOOK, "cursor_lag_seconds", label="cursor")]
    missed: Annotated[int, Figure(
        G, "entries", "entries that retention has removed before a cursor committed them", By.LOOK,
        "cursor_missed_entries", label="cursor")]
    is_open: Annotated[bool, Figure(F, "", "whether somebody has it open", By.LOCKS)]
    pid: Annotated[int, Figure(F, "", "the process id of who has; 0 when nobody has, or it is not known", By.LOCKS)]
    problem: Annotated[str, Figure(F, "", "what is wrong with its file; empty when nothing is", By.LOOK)] = ""


@dataclass(frozen=True, slots=True)
@table(lock_waits="failures_by_kind", sync_waits="lock_holder")
class LogFigures(Counted):
    """What a snapshot tells of the log."""

    writes_total: Annotated[int, Figure(
        C, "entries", "entries appended in the life of the log", By.STATE, "entries")]
    writes_failed: Annotated[int, Figure(C, "appends", "appends that raised, of all writers with metrics")]
    batches_total: Annotated[int, Figure(
        C, "frames", "frames appended; an entry put alone is a batch of one", By.STATE, "batches")]
    bytes_written: Annotated[int, Figure(C, "bytes", "bytes of frames", By.STATE, "written_bytes")]
    sync_total: Annotated[int, Figure(C, "syncs", "syncs made", By.LEADER, "syncs")]
    sync_seconds_total: Annotated[float, Figure(C, "seconds", "seconds that syncs took together", By.LEADER)]
    rotation_count: Annotated[int, Figure(
        C, "segments", "segments started after the first", By.STATE, "rotations")]
    reads_total: Annotated[int, Figure(
        C, "entries", "entries that readers of this process handed out", By.PROCESS,
        note="one by one by `read_entry()`, else a batch at once; a forked child starts from zero")]
    reads_failed: Annotated[int, Figure(C, "errors", "damage that ended a reading of this process", By.PROCESS)]
    bytes_read: Annotated[int, Figure(C, "bytes", "bytes of frames, by readers of this process", By.PROCESS)]
    corrupted_entries: Annotated[int, Figure(
        C, "places", "damaged places that readers of this process met", By.PROCESS)]
    avg_entry_size: Annotated[float, Figure(
        G, "bytes", "16 + key + value, on average over all entries", By.STATE)]
    max_entry_size: Annotated[int, Figure(
        G, "bytes", "16 + key + value of the largest entry", By.STATE, "largest_entry_bytes")]
    current_file_size: Annotated[int, Figure(
        G, "bytes", "bytes of the active segment, up to its published tail", By.STATE, "active_segment_bytes")]
    files_opened: Annotated[int, Figure(C, "segments", "segments that this process opened", By.PROCESS)]
    write_success_rate: Annotated[float, Figure(
        G, "per cent", "entries written, of these and the appends that raised", By.LOOK)]
    read_success_rate: Annotated[float, Figure(
        G, "per cent", "entries read, of these and the reads that failed", By.PROCESS)]
    next_lsn: Annotated[int, Figure(G, "LSN", "the LSN that the next entry gets", By.STATE, "next_lsn")]
    durable_lsn: Annotated[int, Figure(
        G, "LSN", "everything at or below this LSN is on disk", By.LEADER, "durable_lsn")]
    checkpoint: Annotated[int, Figure(
        G, "LSN", "nothing at or below this LSN is needed any more; 0 when nobody said so", By.FILE, "checkpoint_lsn",
        note="0 also when the file is damaged")]
    segments: Annotated[int, Figure(G, "files", "segment files there are", By.LOOK, "segments")]
    taken_at: Annotated[float, Figure(
        F, "seconds", "when, seconds of the monotonic clock; plays no part in comparisons", By.LOOK)
    ] = field(compare=False)
    failures_by_kind: Annotated[Failures, Figure(
        C, "appends", "appends that raised, by what they raised", By.ROWS, "append_failures",
        note="busy, full, sync_failed, too_large, other", label="kind")]
    lock_holder: Annotated[int | None, Figure(
        F, "slot", "slot of the writer whose append is under way now, or None", By.STATE)]
    writers: Annotated[tuple[WriterRow, ...], Figure(
        G, "writers", "writers that live", By.LOCKS, "writers", note="as `alive`", label="state")]
    killed_writers: Annotated[tuple[WriterRow, ...], Figure(
        G, "writers", "those that ended without close, however, and whose slot nobody has taken since", By.LOCKS,
        "writers", note="as `killed`", label="state")]
    readers: Annotated[tuple[ReaderRow, ...], Figure(
        G, "entries", "places that readers with a pin hold, and how many entries they are behind", By.LOCKS,
        "reader_lag_entries", note="Prometheus has the last of them")]
    cursors: Annotated[tuple[CursorRow, ...], Figure(
        F, "", "cursors, and the parts of groups, by name", By.CURSORS)]
    lock_wait: Annotated[Histogram, Figure(
        H, "seconds", "how long appends waited for the append lock; those that did not wait count as 0", By.ROWS,
        "lock_wait_seconds", HISTOGRAMS[0],
        "where many wait, one in eight is timed and counts for eight")]
    sync_duration: Annotated[Histogram, Figure(
        H, "seconds", "how long each sync took", By.ROWS, "sync_duration_seconds", HISTOGRAMS[1])]
    append_duration: Annotated[Histogram, Figure(
        H, "seconds", "how long appends took; about one in a thousand is timed", By.ROWS,
        "append_duration_seconds", HISTOGRAMS[2], "and one every 100 ms")]
    batch_entries: Annotated[Histogram, Figure(
        H, "entries", "entries of each batch", By.ROWS, "batch_entries", HISTOGRAMS[3],
        "a row counts batches of two and more")]


# Words of a row that show only in other figures; the kinds of Failures among them.
UNSEEN = {
    "more_entries": Figure(C, "entries", "entries of batches, less one each", word=17),
    "state": Figure(G, "", "what it waits for", word=81),
    "state_since_ns": Figure(G, "ns", "of the monotonic clock, when it last began to wait", word=82),
    "last_append_ns": Figure(G, "ns", "since the epoch, when it appended last", word=83),
    "busy": Figure(C, "appends", "appends that raised LogBusy", word=23),
    "full": Figure(C, "appends", "appends that raised LogFull", word=24),
    "sync_failed": Figure(C, "appends", "appends that raised SyncFailed", word=25),
    "too_large": Figure(C, "appends", "appends that raised EntryTooLarge or BatchTooLarge", word=26),
    "other": Figure(C, "appends", "appends that raised anything else", word=27),
}
# fmt: on

OF_WRITER = figures_of(WriterRow)
OF_CURSOR = figures_of(CursorRow)
OF_LOG = figures_of(LogFigures)
SHOWN_BY_BOTH = tuple(figures_of(Counted))
THIS_PROCESS = tuple(name for name, figure in OF_LOG.items() if figure.by is By.PROCESS)
COUNTED_HERE = tuple(name for name in THIS_PROCESS if OF_LOG[name].kind is Kind.COUNTER)
_IN_ROW = [*UNSEEN.items(), *OF_WRITER.items(), *OF_LOG.items()]
OF_ROW = {name: figure for name, figure in _IN_ROW if figure.word is not None}
WORDS = {name: figure.word for name, figure in OF_ROW.items() if figure.word is not None}
TOTALS = {name: at for at, name in sorted((at, name) for name, at in WORDS.items()) if at not in HISTOGRAMS}
ROOM = {Kind.COUNTER: COUNTERS, Kind.GAUGE: GAUGES, Kind.HISTOGRAM: HISTOGRAMS}
assert len(set(WORDS.values())) == len(WORDS), "two figures in one word"
assert all(at in ROOM[OF_ROW[name].kind] for name, at in WORDS.items()), "a figure where a row has no room for it"
