"""`walpool dump`: the headers and frames of a log, or of one segment file, one line each, with their offsets.

header   the segment's own
frame    a batch that counts
pending  a frame behind the published tail of a log that is open: it does not count, and the next append covers it
void     a frame behind the place where the next segment takes over, or behind damage: evidence, not data
damage   bytes that are no frame, up to the next intact one
end      where the frames stop; zeros may follow

Holds: nothing is changed and no lock is taken. A log that is being appended to is shown as it was found, segment by
segment.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from typing import NamedTuple

from walpool import CorruptLog, WALHeader
from walpool.cli import arguments
from walpool.cli.exits import Exit
from walpool.errors import UnsafeLog
from walpool.format.frame import Frame, SearchExhausted, find_frames
from walpool.format.header import HEADER_BYTES
from walpool.format.names import segment_name
from walpool.read.walk import Stop, Walk
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment, list_segments
from walpool.shared.control import Control, ControlUnusable
from walpool.system.files import Directory
from walpool.system.paths import is_directory, split
from walpool.upkeep.repair import require_log


class Row(NamedTuple):
    """One line of a dump: what stands at `offset` of the segment."""

    segment: str
    offset: int
    kind: str
    fields: dict[str, int | str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=arguments.place, metavar="LOG-OR-SEGMENT", help="a log, or one segment file")
    parser.add_argument(
        "--from",
        "--from-lsn",
        dest="start",
        type=arguments.lsn,
        default=1,
        metavar="LSN",
        help="leave out frames that end before this LSN, and segments of no others",
    )
    parser.add_argument(
        "--to", "--to-lsn", dest="end", type=arguments.lsn, metavar="LSN", help="and those that begin with it or later"
    )


def run(args: argparse.Namespace) -> Exit:
    damaged = False
    segment = ""
    for row in rows(args.path, args.start, args.end):
        damaged = damaged or row.kind == "damage"
        if args.json:
            print(json.dumps({"segment": row.segment, "offset": row.offset, "kind": row.kind, **row.fields}))
            continue
        if row.segment != segment:
            segment = row.segment
            print(segment)
        print(render(row))
    return Exit.DIFFERENCE if damaged else Exit.OK


def rows(path: str, start: int = 1, end: int | None = None) -> Iterator[Row]:
    """Every row of the log or segment file at `path`, without frames that hold no LSN from `start` up to `end`.

    Raises LogNotFound, UnsafeLog, UnsupportedVersion.
    """

    def is_wanted(row: Row) -> bool:
        last, first = row.fields.get("last_lsn"), row.fields.get("first_lsn")
        if row.kind == "header" or not (isinstance(first, int) and isinstance(last, int)):
            return True
        return last >= start and (end is None or first < end)

    yield from filter(is_wanted, _rows(path, start, end))


def _rows(path: str, start: int, end: int | None) -> Iterator[Row]:
    if not is_directory(path):
        parent, name = split(path)
        with Directory(parent) as directory:
            yield from _file_rows(directory, name, None, None)
        return
    with require_log(path) as directory, ExitStack() as stack:
        segments = list_segments(directory)
        control: Control | None = None
        with suppress(ControlUnusable, UnsafeLog):  # a copy, or a log of before the last reboot: the frames say it all
            control = stack.enter_context(closing(Control.attach(directory, writable=False)))
        for first_lsn, next_lsn in zip(segments, [*segments[1:], None], strict=True):
            if (next_lsn is not None and next_lsn <= start) or (end is not None and first_lsn >= end):
                continue
            with suppress(FileNotFoundError):  # removed by retention since the names were read
                yield from _file_rows(directory, segment_name(first_lsn), next_lsn, control)


def _file_rows(directory: Directory, name: str, limit_lsn: int | None, control: Control | None) -> Iterator[Row]:
    with directory.open(name) as file:
        try:
            header = WALHeader.decode(file.read(HEADER_BYTES, 0), file.path)
        except CorruptLog as error:
            yield Row(name, 0, "damage", {"bytes": file.size(), "reason": error.reason})
            return
        yield Row(name, 0, "header", _header_fields(header))
        yield from _frame_rows(name, Segment(file, header), limit_lsn, control)


def _frame_rows(name: str, segment: Segment, limit_lsn: int | None, control: Control | None) -> Iterator[Row]:
    """The frames in order until they stop, and then what stands behind."""
    first_lsn = segment.header.first_lsn
    walk = Walk(segment, FrameWindow())
    stop: Stop | None = None
    while stop is None:
        for frame in walk:
            offset = walk.offset - (frame.end - frame.offset)
            kind = "frame" if control is None or _published(control, first_lsn, offset) else "pending"
            yield Row(name, offset, kind if _counts(frame.first_lsn, limit_lsn) else "void", _frame_fields(frame))
        rest = list(_behind(segment, walk.offset, walk.lsn))  # before the second look: what it finds is older than that
        stop = walk.stop()
    if control is None or _published(control, first_lsn, stop.offset):
        kind = (
            "damage" if _counts(stop.lsn, limit_lsn) else "void"
        )  # void: the next segment says that it does not count
        for offset, what in rest:
            if isinstance(what, Frame):
                yield Row(name, offset, "void", _frame_fields(what))
                continue
            reason = stop.reason if offset == stop.offset and stop.reason else what.reason
            yield Row(name, offset, kind if what.other else "end", {"bytes": what.bytes, "reason": reason})
    else:
        left = segment.file.size() - stop.offset
        why = "behind the published tail: zeros, or what an append under way or a killed one has left"
        yield Row(name, stop.offset, "end", {"bytes": left, "reason": why if left else "end of the file"})


def _counts(lsn: int, limit_lsn: int | None) -> bool:
    return limit_lsn is None or lsn < limit_lsn


def _published(control: Control, segment: int, offset: int) -> bool:
    """Whether what stands at `offset` of the segment is below the log's tail now."""
    state = control.state()
    return segment < state.segment or (segment == state.segment and offset < state.tail)


class _Gap(NamedTuple):
    """Bytes that are no frame."""

    bytes: int
    other: bool  # than zeros
    reason: str


def _behind(segment: Segment, offset: int, lsn: int) -> Iterator[tuple[int, Frame | _Gap]]:
    """What stands behind the last frame in order, up to the end of the file, each with its offset."""
    data = segment.file.read(max(0, segment.file.size() - offset), offset)
    at, reason = 0, "zeros"
    try:
        for frame in find_frames(data, 0, segment.header.marker, lsn):
            if frame.offset > at:
                yield offset + at, _Gap(frame.offset - at, True, reason)
            yield offset + frame.offset, frame
            at, reason = frame.end, "no frame starts here"
    except SearchExhausted:
        yield offset + at, _Gap(len(data) - at, True, "no frame starts here, and the search for one was given up")
        return
    other = any(data[at:])
    end = "zeros" if at < len(data) else "end of the file"
    yield offset + at, _Gap(len(data) - at, other, reason if other else end)


def _header_fields(header: WALHeader) -> dict[str, int | str]:
    return {
        "version": f"{header.version >> 8}.{header.version & 0xFF}",
        "sequence": header.sequence,
        "first_lsn": header.first_lsn,
        "durable_lsn": header.durable_lsn,
        "marker": f"{header.marker:08x}",
        "created_at": header.created_at,
    }


def _frame_fields(frame: Frame) -> dict[str, int | str]:
    return {
        "bytes": frame.end - frame.offset,
        "first_lsn": frame.first_lsn,
        "last_lsn": frame.next_lsn - 1,
        "count": frame.count,
        "durable_lsn": frame.durable_lsn,
        "writer": frame.writer,
        "appended_at": frame.appended_at,
    }


def render(row: Row) -> str:
    """The row as a line of text."""
    fields = row.fields
    if row.kind == "header":
        what = (
            f"version {fields['version']}  sequence {fields['sequence']}  first LSN {fields['first_lsn']}"
            f"  durable {fields['durable_lsn']}  marker {fields['marker']}  created {moment(int(fields['created_at']))}"
        )
    elif "count" in fields:
        what = (
            f"LSN {fields['first_lsn']}..{fields['last_lsn']}  {fields['bytes']} bytes  durable {fields['durable_lsn']}"
            f"  writer {fields['writer']}  appended {moment(int(fields['appended_at']))}"
        )
    else:
        what = f"{fields['bytes']} bytes  {fields['reason']}"
    return f"{row.offset:12}  {row.kind:7}  {what}"


def moment(ns: int) -> str:
    """Nanoseconds since the epoch as UTC, or as they are if no calendar reaches that far."""
    try:
        second = datetime.fromtimestamp(ns // 10**9, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"
    return f"{second:%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"
