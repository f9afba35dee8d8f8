"""The figures a second time: a model that is told what was done, counts for itself, and says what each figure is.

Nothing of walpool is in it but the table of figures, which says what there is to be told. It knows the format's sizes
and what docs/metrics.md says: what counts as what, by whom, and when what has gathered shows. Clocks are steered, so
times are exact, too. What is under way stands still at a stage, and the model at the same one: see `append`.
Each figure is a method of `Figures` or `WriterFigures` by its name, and a figure without one fails the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SEGMENT, FRAME, ENTRY = 64, 48, 16  # bytes of headers
UNIT_NS = 256  # of a histogram of times
TOP = 31 << 23  # the last bucket begins here, and has all above
FREE_NS = 5_000  # a lock that was there sooner was free
LOOK_NS, LOOK_LSNS = 100_000_000, 1000  # what gathers is told so often
EPISODE, TIMED = 64, 8  # appends that wait at once after one that had to; one in so many is timed, and counts for them
TICK_S = 2.0**-20  # of the clock that syncs are timed with: exact as a float
ROW_SLOTS = 1024
KINDS = ("busy", "full", "sync_failed", "too_large", "other")
COUNTERS = ("batches", "more_entries", "bytes", "lock_waits", "syncs_led", "sync_waits", "rotations", *KINDS)
Size = tuple[int, int]  # bytes of a key and of a value
Stages = Iterator[str]


@dataclass
class Clock:
    wall_ns: int = 1_700_000_000 * 10**9
    mono_ns: int = 5_000 * 10**9
    ticks: int = 1 << 30

    def move(self, ns: int) -> None:
        self.wall_ns += ns
        self.mono_ns += ns


class Plan(NamedTuple):
    """How one call is to go."""

    wait_ns: int = 0  # the append lock is taken, and free after so long
    write_ns: int = 0  # a write takes so long
    sync_ticks: int = 1
    fault: str = ""  # "busy", "full", "io" at the lock or at the write; "look": a sync cannot be finished, and no harm
    stage: str = ""  # stand still there: "wait", "write", "published" or "sync"
    led_by: str = ""  # another writer makes the sync meanwhile


PLAIN = Plan()


class Tally:
    """A histogram as the values themselves, in units."""

    def __init__(self, values: Counter[int] | None = None, total: int = 0) -> None:
        self.values = Counter[int]() if values is None else values
        self.total = total

    def add(self, units: int, count: int = 1) -> None:
        self.values[least(units)] += count
        self.total += units * count

    def plus(self, other: Tally) -> Tally:
        return Tally(self.values + other.values, self.total + other.total)

    def since(self, earlier: Tally) -> Tally:
        return Tally(self.values - earlier.values, self.total - earlier.total)

    @property
    def count(self) -> int:
        return self.values.total()

    def quantile(self, q: float) -> int:
        seen = 0
        for value, count in sorted(self.values.items()):
            seen += count
            if seen >= q * self.count:
                return value
        return 0

    def below(self, bound: int) -> int:
        return sum(count for value, count in self.values.items() if value < bound)


def least(units: int) -> int:
    """The least value that is told as the same: 16 steps to an octave from 32 on, and all above 66.6 s are one."""
    step = max(0, units.bit_length() - 5)
    return min(TOP, units >> step << step)


def frame_bytes(sizes: list[Size]) -> int:
    return FRAME + sum(ENTRY + key + value for key, value in sizes)


@dataclass
class Row:
    """What a slot has counted in its life, and who had it last."""

    counts: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)  # when the present owner came
    lock_wait: Tally = field(default_factory=Tally)
    sync: Tally = field(default_factory=Tally)
    append: Tally = field(default_factory=Tally)
    batch: Tally = field(default_factory=Tally)  # of two and more
    owner: Writer | None = None
    closed: bool = True
    error: str = ""
    error_ns: int = 0

    def own(self, name: str) -> int:
        return self.counts[name] - self.before[name]


@dataclass
class Writer:
    key: str
    name: str
    process: int  # its id
    mode: str
    slot: int
    opened_ns: int
    limit: int
    buffer_limit: int
    metrics: bool
    here: bool  # in the process that looks
    process_name: str
    # What it has not told yet
    waits: list[int] = field(default_factory=list)
    started: int = 0  # segments
    due: bool = False  # it tells after its next append
    sample: bool = False  # its next append is timed
    episode: int = 0
    looked_ns: int = -1
    next_look_lsn: int = 0
    segment: int = 0  # that it has open,
    ready_to: int = 0  # and the offset up to which it need not look around
    # What a look sees
    buffered: list[Size] = field(default_factory=list)
    buffered_told: int = 0
    state: str = "idle"
    since_ns: int = 0
    published_ns: int = 0  # its last append
    returned_ns: int = 0  # and the last whose call has returned


class Failed(Exception):
    """The call raises, and a failure of this kind was counted."""


class Model:
    def __init__(self, log: Path, here: int) -> None:
        self.log = log
        self.here = here  # the process that looks
        self.clock = Clock()
        self.batches: list[tuple[int, list[Size]]] = []  # by their first LSN, whatever was removed since
        self.segments: list[int] = []  # their first LSNs
        self.tail = self.allocated = SEGMENT  # the active segment's bytes, without and with what was written ahead
        self.rotated = 0
        self.durable = 0
        self.checkpoint = 0
        self.syncs = self.sync_ns = 0
        self.holder: int | None = None
        self.writers: dict[str, Writer] = {}
        self.rows: dict[int, Row] = {}
        self.taken_since: set[int] = set()  # slots whose row is of an earlier owner than the last
        self.readers: dict[str, Reader] = {}  # of the process that looks, and those that are gone
        self.counted_here: Counter[str] = Counter()

    @property
    def entries(self) -> int:
        return sum(len(sizes) for _, sizes in self.batches)

    @property
    def next_lsn(self) -> int:
        return self.entries + 1

    # What is done

    def open(self, key: str, name: str, process: int, mode: str, limit: int, buffer_limit: int, metrics: bool) -> None:
        taken = {writer.slot for writer in self.writers.values()}
        slot = next(number for number in range(1 << 16) if number not in taken)
        writer = Writer(
            key, name, process, mode, slot, self.clock.wall_ns, limit, min(buffer_limit, limit - SEGMENT - FRAME),
            metrics, process == self.here, name_of(process),
        )  # fmt: skip
        self.writers[key] = writer
        self._opened_file(writer)
        if not self.segments:
            self.segments = [1]
        self.taken_since.add(slot)
        if metrics:
            self.taken_since.discard(slot)
            row = self.rows.setdefault(slot, Row())
            row.owner, row.closed, row.before = writer, False, row.counts.copy()

    def _opened_file(self, writer: Writer, count: int = 1) -> None:
        if writer.here:
            self.counted_here["files_opened"] += count

    def row(self, writer: Writer) -> Row:
        """That of a writer without metrics is nobody's."""
        return self.rows[writer.slot] if writer.metrics else Row()

    def append(self, name: str, sizes: list[Size], plan: Plan = PLAIN) -> Stages:
        """Appends them as one batch. It stops at each stage at which it can be looked at."""
        writer = self.writers[name]
        if any(key > 1 << 20 or value > 10 << 20 for key, value in sizes):
            self._fail(writer, "too_large")
        if writer.mode == "none":
            yield from self._flush(writer, plan)
        yield from self._append(writer, sizes, plan)
        self._chores(writer)
        if writer.mode == "full":
            yield from self._settle(writer, self.next_lsn - 1, plan, counted=True)

    def buffer(self, name: str, size: Size) -> Stages:
        """One entry of a writer in SyncMode.NONE."""
        writer = self.writers[name]
        if frame_bytes([size]) > writer.limit - SEGMENT:
            self._fail(writer, "too_large")
        if writer.buffered and frame_bytes([*writer.buffered, size]) - FRAME > writer.buffer_limit:
            yield from self._flush(writer, PLAIN)
        writer.buffered.append(size)
        writer.buffered_told = frame_bytes(writer.buffered) - FRAME
        self._chores(writer)

    def _flush(self, writer: Writer, plan: Plan) -> Stages:
        if writer.buffered:
            yield from self._append(writer, writer.buffered, plan)
            writer.buffered, writer.buffered_told = [], 0

    def _append(self, writer: Writer, sizes: list[Size], plan: Plan) -> Stages:
        row, clock = self.row(writer), self.clock
        timed, writer.sample = writer.sample, False
        began_ns = clock.mono_ns
        yield from self._take_lock(writer, plan)
        size = frame_bytes(sizes)
        if size > writer.limit - SEGMENT:
            self._fail(writer, "too_large")
        now_ns = clock.wall_ns
        self._look_around(writer, now_ns, size)
        self.holder = writer.slot
        yield "write"
        clock.move(plan.write_ns)
        if plan.fault in ("full", "io"):
            self.holder, writer.ready_to, self.allocated = None, 0, self.tail
            self._fail(writer, "full" if plan.fault == "full" else "other")
        self.batches.append((self.next_lsn, sizes))
        self.tail += size
        self.allocated = max(self.allocated, self.tail)
        self.holder = None
        writer.published_ns = now_ns
        yield "published"
        row.counts["batches"] += 1
        row.counts["bytes"] += size
        row.counts["more_entries"] += len(sizes) - 1
        if len(sizes) > 1:
            row.batch.add(len(sizes))
        if timed:
            row.append.add((clock.mono_ns - began_ns) // UNIT_NS)
        writer.returned_ns = now_ns

    def _take_lock(self, writer: Writer, plan: Plan) -> Stages:
        if not writer.episode and (plan.wait_ns or plan.fault == "busy"):
            writer.episode = EPISODE + 1
        if not writer.episode:
            return
        writer.episode -= 1
        weight = 1 if writer.episode == EPISODE else 0 if writer.episode % TIMED else TIMED
        if weight and writer.metrics:
            writer.state, writer.since_ns = "waiting for the lock", self.clock.mono_ns
        if plan.wait_ns:
            yield "wait"
        self.clock.move(plan.wait_ns)
        writer.state = "idle"
        if plan.fault == "busy":
            self._fail(writer, "busy")
        if plan.wait_ns > FREE_NS and writer.metrics:
            writer.waits += [plan.wait_ns] * weight

    def _look_around(self, writer: Writer, now_ns: int, size: int) -> None:
        looks = self.next_lsn >= writer.next_look_lsn or not writer.looked_ns <= now_ns < writer.looked_ns + LOOK_NS
        room = self.tail + size <= writer.ready_to and writer.segment == self.segments[-1]
        if looks:
            self._look(writer, now_ns)
        if not room:
            if self.tail + size > writer.limit and self.tail > SEGMENT:
                self._next_segment(writer)
            writer.segment = self.segments[-1]
            end = self.tail + size
            writer.ready_to = writer.limit
            if writer.mode == "full":  # zeros are written ahead, and looked at again at their end
                self.allocated = writer.limit if end > self.allocated else self.allocated
                writer.ready_to = min(self.allocated, writer.limit)
        if (looks or not room) and writer.metrics:
            writer.due = True

    def _look(self, writer: Writer, now_ns: int) -> None:
        writer.looked_ns, writer.next_look_lsn = now_ns, self.next_lsn + LOOK_LSNS
        writer.sample = writer.metrics

    def _next_segment(self, writer: Writer) -> None:
        self._look(writer, self.clock.wall_ns)
        self.segments.append(self.next_lsn)
        self.rotated += 1
        self.tail = self.allocated = SEGMENT
        self.row(writer).counts["rotations"] += 1
        writer.started += 1
        writer.segment, writer.ready_to, writer.due = self.segments[-1], 0, True

    def _fail(self, writer: Writer, kind: str) -> None:
        row = self.row(writer)
        row.counts[kind] += 1
        row.error, row.error_ns = "", self.clock.wall_ns  # its text is told by who heard it
        raise Failed(kind)

    def _chores(self, writer: Writer) -> None:
        if writer.due:
            self._tell(writer)
            self._opened_file(writer, writer.started)
            writer.started = 0
        writer.due = False

    def _tell(self, writer: Writer) -> None:
        row = self.row(writer)
        for waited_ns in writer.waits:
            row.counts["lock_waits"] += 1
            row.lock_wait.add(waited_ns // UNIT_NS)
        writer.waits = []

    def sync(self, name: str, plan: Plan = PLAIN) -> Stages:
        writer = self.writers[name]
        if writer.mode == "none":
            yield from self._flush(writer, plan)
            self._chores(writer)
        yield from self._settle(writer, self.next_lsn - 1, plan)

    def _settle(self, writer: Writer, lsn: int, plan: Plan, *, counted: bool = False) -> Stages:
        if self.durable >= lsn:
            return
        if writer.metrics:
            writer.state, writer.since_ns = "waiting for a sync", self.clock.mono_ns
        if plan.led_by:
            yield from self.sync(plan.led_by, plan._replace(led_by=""))
            self.row(writer).counts["sync_waits"] += 1
        else:
            yield "sync"
            self.clock.move(0)
            if plan.fault == "look":
                writer.state = "idle"
                if counted:
                    self._fail(writer, "sync_failed")
                raise Failed("sync")
            self._synced(writer)
        writer.state = "idle"

    sync_ticks = 1  # that the sync of a file takes

    def _synced(self, writer: Writer) -> None:
        ends = [*self.segments[1:], self.next_lsn]
        files = sum(end > self.durable + 1 for end in ends)
        took_ns = files * self.sync_ticks * 10**9 >> 20
        self.durable = self.next_lsn - 1
        self.syncs += 1
        self.sync_ns += took_ns
        row = self.row(writer)
        row.counts["syncs_led"] += 1
        row.sync.add(took_ns // UNIT_NS)

    def rotate(self, name: str) -> Stages:
        writer = self.writers[name]
        if writer.mode == "none":
            yield from self._flush(writer, PLAIN)
            self._chores(writer)
        if self.tail > SEGMENT:
            self._next_segment(writer)
            self._chores(writer)

    def coordinate(self, name: str) -> Stages:
        """What a rotation leaves to do, in the background."""
        if self.durable < self.segments[-1] - 1:
            yield from self._settle(self.writers[name], self.segments[-1] - 1, PLAIN)

    def state_checkpoint(self, name: str, lsn: int) -> Stages:
        if lsn > self.checkpoint:
            yield from self._settle(self.writers[name], lsn, PLAIN)
            self.checkpoint = lsn

    def prune(self) -> None:
        while len(self.segments) > 1 and self.segments[1] - 1 <= self.checkpoint:
            if any(0 < reader.pin < self.segments[1] for reader in self.readers.values()):
                return
            del self.segments[0]

    def close(self, name: str) -> Stages:
        writer = self.writers[name]
        if writer.mode == "none":
            yield from self._flush(writer, PLAIN)
        writer.due = True
        self._chores(writer)
        self._end(writer, closed=True)

    def _end(self, writer: Writer, *, closed: bool) -> None:
        del self.writers[writer.key]
        if writer.metrics:
            self.rows[writer.slot].closed = closed
            if closed:
                writer.state = "idle"

    def kill(self, process: int) -> None:
        """All writers of the process; of what they had not told nothing is left. What they did not finish, too."""
        for writer in [writer for writer in self.writers.values() if writer.process == process]:
            if self.holder == writer.slot:
                self.holder = None
            self._end(writer, closed=False)

    def reboot(self) -> None:
        """No writer lives. The next opening recovers, and goes on in a new segment unless the last is empty."""
        assert not self.writers
        if self.tail > SEGMENT:
            self.segments.append(self.next_lsn)
            self.rotated += 1
            self.tail = self.allocated = SEGMENT
        self.durable = self.next_lsn - 1
        self.taken_since = set()

    # What the process that looks has read

    def read(self, reader: Reader, end_lsn: int, *, over: bool, all_told: bool) -> None:
        """It has handed out entries up to there, or all that there is; of what it has in hand the bytes come later."""
        for lsn in range(reader.next_lsn, end_lsn):
            first, sizes = self.batch_at(lsn)
            reader.frames[first] = frame_bytes(sizes)
        self.counted_here["reads_total"] += end_lsn - reader.next_lsn
        for first_lsn in self.segments:
            if first_lsn > reader.entered and (first_lsn < end_lsn or (over and first_lsn <= end_lsn)):
                self.counted_here["files_opened"] += 1
                reader.entered = first_lsn
                reader.pin = first_lsn if reader.pin else 0
        reader.next_lsn = end_lsn
        if all_told:
            reader.told = sum(reader.frames.values())

    def is_between_batches(self, lsn: int) -> bool:
        return lsn == self.next_lsn or self.batch_at(lsn)[0] == lsn

    def batch_at(self, lsn: int) -> tuple[int, list[Size]]:
        return max((batch for batch in self.batches if batch[0] <= lsn), key=lambda batch: batch[0])


@dataclass
class Reader:
    next_lsn: int
    pin: int = 0
    entered: int = 0  # the first LSN of the segment
    frames: dict[int, int] = field(default_factory=dict)  # their bytes, of those begun
    told: int = 0  # bytes


class Between(NamedTuple):
    """One of these, both included."""

    low: float
    high: float


class Figures:
    """What a snapshot has to say of the log, now."""

    def __init__(self, model: Model) -> None:
        self.of = deepcopy(model)
        self.taken_s = model.clock.ticks * TICK_S

    def total(self, name: str) -> int:
        return sum(row.counts[name] for row in self.of.rows.values())

    def tally(self, name: str) -> Tally:
        tally = Tally()
        for row in self.of.rows.values():
            tally = tally.plus(getattr(row, name))
        return tally

    def writes_total(self) -> int:
        return self.of.entries

    def writes_failed(self) -> int:
        return sum(self.total(kind) for kind in KINDS)

    def batches_total(self) -> int:
        return len(self.of.batches)

    def bytes_written(self) -> int:
        return sum(frame_bytes(sizes) for _, sizes in self.of.batches)

    def sync_total(self) -> int:
        return self.of.syncs

    def sync_seconds_total(self) -> float:
        return self.of.sync_ns / 1e9

    def rotation_count(self) -> int:
        return self.of.rotated

    def reads_total(self) -> int:
        return self.of.counted_here["reads_total"]

    def reads_failed(self) -> int:
        return self.of.counted_here["reads_failed"]

    def bytes_read(self) -> Between:
        readers = self.of.readers.values()
        return Between(sum(reader.told for reader in readers), sum(sum(reader.frames.values()) for reader in readers))

    def corrupted_entries(self) -> int:
        return self.of.counted_here["corrupted_entries"]

    def _sizes(self) -> list[int]:
        return [ENTRY + key + value for _, sizes in self.of.batches for key, value in sizes]

    def avg_entry_size(self) -> float:
        sizes = self._sizes()
        return sum(sizes) / len(sizes) if sizes else 0.0

    def max_entry_size(self) -> int:
        return max(self._sizes(), default=0)

    def current_file_size(self) -> int:
        return self.of.tail

    def files_opened(self) -> int:
        return self.of.counted_here["files_opened"]

    def write_success_rate(self) -> float:
        return share(self.writes_total(), self.writes_failed())

    def read_success_rate(self) -> float:
        return share(self.reads_total(), self.reads_failed())

    def next_lsn(self) -> int:
        return self.of.next_lsn

    def durable_lsn(self) -> int:
        return self.of.durable

    def checkpoint(self) -> int:
        return self.of.checkpoint

    def segments(self) -> int:
        return len(self.of.segments)

    def taken_at(self) -> float:
        return self.taken_s

    def failures_by_kind(self) -> tuple[int, ...]:
        return tuple(self.total(kind) for kind in KINDS)

    def lock_waits(self) -> int:
        return self.total("lock_waits")

    def lock_holder(self) -> int | None:
        return self.of.holder

    def sync_waits(self) -> int:
        return self.total("sync_waits")

    def writers(self) -> list[WriterFigures]:
        """By slot, as all lists are."""
        return [WriterFigures(self.of, each) for each in sorted(self.of.writers.values(), key=lambda each: each.slot)]

    def killed_writers(self) -> list[WriterFigures]:
        taken = self.of.taken_since | {writer.slot for writer in self.of.writers.values()}
        return [
            WriterFigures(self.of, row.owner)
            for slot, row in sorted(self.of.rows.items())
            if not row.closed and slot not in taken and row.owner is not None
        ]

    def readers(self) -> list[tuple[int, int]]:
        pins = {reader.pin for reader in self.of.readers.values() if reader.pin}
        return [(pin, self.of.next_lsn - pin) for pin in sorted(pins)]

    def cursors(self) -> tuple[str, ...]:
        """In these plays nobody has any: tests/consume has those who do."""
        return ()

    def lock_wait(self) -> Tally:
        return self._with_rest(self.tally("lock_wait"), 0)

    def sync_duration(self) -> Tally:
        return self.tally("sync")

    def append_duration(self) -> Tally:
        return self.tally("append")

    def batch_entries(self) -> Tally:
        return self._with_rest(self.tally("batch"), 1)

    def _with_rest(self, found: Tally, usual: int) -> Tally:
        """With the appends that had nothing unusual to count."""
        rest = self.total("batches") - found.count
        return found.plus(Tally(Counter({usual: rest} if rest > 0 else {}), max(0, rest) * usual))


class WriterFigures:
    def __init__(self, model: Model, writer: Writer) -> None:
        self.of, self.writer = model, writer
        row = model.rows.get(writer.slot)
        self.row = row if writer.metrics and row is not None and row.owner is writer else Row()

    def slot(self) -> int:
        return self.writer.slot

    def pid(self) -> int:
        return self.writer.process

    def process(self) -> tuple[str, ...]:
        """One of these: of one that is gone, who has seen it knows the name."""
        name = name_of(self.writer.process) or self.writer.process_name
        return (name,) if self.writer in self.of.writers.values() else (name, "")

    def name(self) -> str:
        return self.writer.name if self.writer.metrics else ""

    def sync_mode(self) -> str:
        return self.writer.mode if self.writer.metrics else ""

    def opened_at(self) -> float:
        return self.writer.opened_ns / 1e9 if self.writer.metrics else 0.0

    def shares_row(self) -> bool:
        return self.writer.metrics and self.writer.slot >= ROW_SLOTS

    def entries(self) -> int:
        return self.row.own("batches") + self.row.own("more_entries")

    def batches(self) -> int:
        return self.row.own("batches")

    def bytes(self) -> int:
        return self.row.own("bytes")

    def failures(self) -> int:
        return sum(self.failures_by_kind())

    def failures_by_kind(self) -> tuple[int, ...]:
        return tuple(self.row.own(kind) for kind in KINDS)

    def lock_waits(self) -> int:
        return self.row.own("lock_waits")

    def syncs_led(self) -> int:
        return self.row.own("syncs_led")

    def sync_waits(self) -> int:
        return self.row.own("sync_waits")

    def rotations(self) -> int:
        return self.row.own("rotations")

    def buffered_bytes(self) -> int:
        return self.writer.buffered_told if self.writer.metrics else 0

    def last_append_at(self) -> Between:
        """To a tenth."""
        if not self.writer.metrics or not self.writer.published_ns:
            return Between(0.0, 0.0)
        return Between(max(0, self.writer.returned_ns - LOOK_NS) / 1e9, self.writer.published_ns / 1e9)

    def state(self) -> str:
        return self.writer.state

    def _ago_s(self) -> float:
        return (self.of.clock.mono_ns - self.writer.since_ns) / 1e9

    def state_since(self) -> float:
        return round(self.of.clock.wall_ns / 1e9 - self._ago_s(), 1) if self.writer.since_ns else 0.0

    def state_seconds(self) -> float:
        return 0.0 if self.writer.state == "idle" else self._ago_s()

    def last_error(self) -> str:
        return self.row.error if self._erred() else ""

    def last_error_at(self) -> float:
        return self.row.error_ns / 1e9 if self._erred() else 0.0

    def _erred(self) -> bool:
        return self.row.error_ns >= self.writer.opened_ns

    def elsewhere(self) -> bool:
        return False


def name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def share(good: int, bad: int) -> float:
    return 100.0 * good / (good + bad) if good + bad else 100.0
