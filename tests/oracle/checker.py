"""Judges a log by docs/format.md and docs/durability.md alone, against what those who appended were told.

Nothing of walpool is imported. A finding is a line that begins with its kind and a colon; no findings, no fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import zip_longest

from tests.oracle.reader import Ending, Entry, Frame, Log, Segment, read_log

Row = tuple[str, bytes, bytes]  # "put" or "delete", key, value
Batch = Sequence[Row]

PLAUSIBLE_NS = range(1_577_836_800 * 10**9, 4_102_444_800 * 10**9)  # 2020 to 2100


class State(Enum):
    """What befell the log: each one excuses what those before it excuse, and more."""

    CLOSED = 0  # all writers ended in order: nothing is torn, and no bytes lie behind a cut
    KILLED = 1  # or recovered: its end may be torn, and evidence may lie behind a cut
    CUT = 2  # a power cut, and no recovery yet: holes too, where nothing vouches for what is missing


def judge(
    log: Log,
    acknowledged: Iterable[tuple[int, Batch]] = (),
    in_doubt: Iterable[Batch] | None = None,
    *,
    state: State = State.CLOSED,
    durable_lsn: int | None = None,
    first_lsn: int | None = None,
    size_limit: int | None = None,
) -> list[str]:
    """What is wrong with the log, if anything.

    Args:
        acknowledged: batches with the first LSN that their caller was given. They must be there, from `first_lsn` and
            up to `durable_lsn` (None: all of them); a later one may have gone with the end of the log, and only so.
        in_doubt: batches that may be there, each once and whole. Nothing else may. None: nobody knows; anything may.
        first_lsn: the first entry that retention has left. None: whatever the first segment says.
    """
    segments = read_log(log)
    findings = [*headers(segments, state), *order(segments), *joints(segments, state)]
    findings += [
        f"size: {s.name} has {s.size} bytes" for s in segments if size_limit is not None and s.size > size_limit
    ]
    if segments and first_lsn is not None and segments[0].first_lsn > first_lsn:
        if state is State.CUT and not vouched(segments, first_lsn):
            return findings  # its name was not on disk: nothing of the log counts
        findings.append(f"gap: the log begins at LSN {segments[0].first_lsn}, not {first_lsn}")
    return findings + list(contents(readable(segments), acknowledged, in_doubt, durable_lsn, first_lsn))


def readable(segments: Sequence[Segment]) -> list[Frame]:
    """The frames of the log: up to the first place where one should stand and none does."""
    frames: list[Frame] = []
    for segment, following in zip_longest(segments, segments[1:]):
        frames += segment.frames
        if following is None or not joined(segment, following):
            break
    return frames


def joined(segment: Segment, following: Segment) -> bool:
    return segment.header is not None and segment.next_lsn == following.first_lsn


def end_after_recovery(log: Log) -> int | None:
    """The LSN that the next entry gets once a writer has recovered the log, by default; None where it refuses."""
    segments = read_log(log)
    for segment, following in zip_longest(segments, segments[1:]):
        if following is not None and joined(segment, following):
            continue
        if segment.ending in (Ending.VERSION, Ending.ROTTEN) or vouched(segments, segment.next_lsn):
            return None
        return segment.next_lsn
    return 1


def vouched(segments: Sequence[Segment], lsn: int) -> bool:
    """Somebody states that this LSN was on disk."""
    headers = [segment.header.durable_lsn for segment in segments if segment.header]
    frames = [frame.durable_lsn for segment in segments for frame in (*segment.frames, *segment.behind)]
    return max(headers + frames, default=0) >= lsn


def headers(segments: Sequence[Segment], state: State) -> Iterator[str]:
    found = [(segment.name, segment.header) for segment in segments if segment.header]
    for field in ("marker", "sequence"):
        count = Counter(getattr(header, field) for _, header in found)
        yield from (f"{field}: {name} shares it" for name, header in found if count[getattr(header, field)] > 1)
    numbers = [header.sequence for _, header in found]
    if numbers and numbers[-1] != max(numbers) and state is not State.CUT:  # there a recovery may have been under way
        yield f"sequence: the last segment is file {numbers[-1]}, and there is file {max(numbers)}"


def order(segments: Sequence[Segment]) -> Iterator[str]:
    before = PLAUSIBLE_NS.start
    for frame in (frame for segment in segments for frame in segment.frames):
        if frame.appended_at < before or frame.appended_at not in PLAUSIBLE_NS:
            yield f"time: LSN {frame.first_lsn} was appended at {frame.appended_at}, behind {before}"
        if frame.durable_lsn >= frame.first_lsn:
            yield f"durable: the frame of LSN {frame.first_lsn} states {frame.durable_lsn}"
        before = frame.appended_at


def joints(segments: Sequence[Segment], state: State) -> Iterator[str]:
    """How each segment ends, and whether the next one goes on there."""
    for segment, following in zip_longest(segments, segments[1:]):
        what = f"{segment.name} behind LSN {segment.next_lsn - 1}: {segment.ending.value}; {segment.reason}".rstrip(
            "; "
        )
        excused_from = {
            Ending.CLEAN: State.CLOSED,
            Ending.ZEROS: State.CLOSED,
            Ending.EVIDENCE: State.KILLED,
            Ending.TORN: State.KILLED if following is None else State.CUT,
            Ending.UNMADE: State.KILLED if following is None else State.CUT,
            Ending.HEADER: State.CUT,
            Ending.HOLE: State.CUT,
        }.get(segment.ending)
        if excused_from is None or state.value < excused_from.value:
            yield f"{'torn' if segment.ending is Ending.TORN else 'damage'}: {what}"
        elif (following is None or not joined(segment, following)) and vouched(segments, segment.next_lsn):
            yield f"damage: this was on disk: {what}"
        if following is not None and not joined(segment, following) and state is not State.CUT:
            yield f"gap: LSN {segment.next_lsn} to {following.first_lsn - 1} are missing; {what}"


def contents(
    frames: Sequence[Frame],
    acknowledged: Iterable[tuple[int, Batch]],
    in_doubt: Iterable[Batch] | None,
    durable_lsn: int | None,
    first_lsn: int | None,
) -> Iterator[str]:
    found = {entry.lsn: entry for frame in frames for entry in frame.entries}
    frame_of = {entry.lsn: frame for frame in frames for entry in frame.entries}
    told: dict[int, Row] = {}
    for lsn, batch in acknowledged:
        for at, expected in enumerate(batch, lsn):
            if at in told:
                yield f"doubled: LSN {at} was given out twice"
            told[at] = expected
        lsns = range(lsn, lsn + len(batch))
        if (first_lsn is None or lsn >= first_lsn) and len({id(frame_of.get(at)) for at in lsns}) > 1:
            yield f"torn: the batch of LSN {lsns.start} to {lsns.stop - 1} is not in one frame"
    told_rows = {expected: lsn for lsn, expected in told.items()}
    for lsn, expected in sorted(told.items()):
        must = (first_lsn is None or lsn >= first_lsn) and (durable_lsn is None or lsn <= durable_lsn)
        if lsn not in found:
            if must:
                yield f"lost: LSN {lsn}, {short(expected)}"
        elif row(found[lsn]) != expected:
            yield f"changed: LSN {lsn} is {short(row(found[lsn]))}, told {short(expected)}"
    if in_doubt is None:
        return
    left = sorted((tuple(batch) for batch in in_doubt if batch), key=len, reverse=True)
    lsns_left = iter(sorted(found.keys() - told.keys()))
    for lsn in lsns_left:
        rest = [entry for entry in frame_of[lsn].entries if entry.lsn >= lsn and entry.lsn not in told]
        rows = tuple(row(entry) for entry in rest)
        whole = next((batch for batch in left if rows[: len(batch)] == batch), None)
        if whole is None:
            known = told_rows.get(rows[0])
            yield (
                f"invented: LSN {lsn}, {short(rows[0])}" if known is None else f"doubled: LSN {known} is LSN {lsn} too"
            )
            continue
        left.remove(whole)
        for _ in whole[1:]:
            next(lsns_left)


def row(entry: Entry) -> Row:
    return entry.operation, entry.key, entry.value


def short(expected: Row) -> str:
    operation, key, value = expected
    return f"{operation} {key[:40]!r} {value[:20]!r} ({len(value)} bytes)"
