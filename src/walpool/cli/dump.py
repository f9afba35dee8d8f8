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
from walpool.cli.exits import Exit
from walpool.errors import LogNotFound
from walpool.format.frame import Damage, Frame, SearchExhausted, find_frames
from walpool.format.header import HEADER_BYTES
from walpool.format.names import segment_name
from walpool.read.scan import FrameWindow
from walpool.shared.catalog import Segment, list_segments
from walpool.shared.control import Control, ControlUnusable
from walpool.system.files import Directory
from walpool.system.paths import is_directory, split


class Row(NamedTuple):
    """One line of a dump: what stands at `offset` of the segment."""

    segment: str
    offset: int
    kind: str
    fields: dict[str, int | str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="LOG-OR-SEGMENT", help="a log, or one segment file")


def run(args: argparse.Namespace) -> Exit:
    damaged = False
    segment = ""
    for row in rows(args.path):
        damaged = damaged or row.kind == "damage"
        if args.json:
            print(json.dumps({"segment": row.segment, "offset": row.offset, "kind": row.kind, **row.fields}))
            continue
        if row.segment != segment:
            segment = row.segment
            print(segment)
        print(render(row))
    return Exit.DIFFERENCE if damaged else Exit.OK


def rows(path: str) -> Iterator[Row]:
    """Every row of the log or segment file at `path`. Raises LogNotFound, UnsafeLog, UnsupportedVersion."""
    if not is_directory(path):
        parent, name = split(path)
        with closing(Directory(parent)) as directory:
            yield from _file_rows(directory, name, None, None)
        return
    with closing(Directory(path)) as directory, ExitStack() as stack:
        segments = list_segments(directory)
        if not segments:
            raise LogNotFound(path, "no such log: the directory holds no segment")
        control: Control | None = None
        with suppress(ControlUnusable):  # a copy, or a log of before the last reboot: the frames say it all
            control = stack.enter_context(closing(Control.attach(directory, writable=False)))
        for first_lsn, next_lsn in zip(segments, [*segments[1:], None], strict=True):
            with suppress(FileNotFoundError):  # removed by retention since the names were read
                yield from _file_rows(directory, segment_name(first_lsn), next_lsn, control)


def _file_rows(directory: Directory, name: str, limit_lsn: int | None, control: Control | None) -> Iterator[Row]:
    with closing(directory.open(name)) as file:
        try:
            header = WALHeader.decode(file.read(HEADER_BYTES, 0), file.path)
        except CorruptLog as error:
            yield Row(name, 0, "damage", {"bytes": file.size(), "reason": error.reason})
            return
        yield Row(name, 0, "header", _header_fields(header))
        yield from _frame_rows(name, Segment(file, header), limit_lsn, control)


def _frame_rows(name: str, segment: Segment, limit_lsn: int | None, control: Control | None) -> Iterator[Row]:
    """The frames in order until they stop, and then what stands behind."""
    window = FrameWindow()
    window.start(segment, segment.header.entries_offset)
    lsn = segment.header.first_lsn
    while True:
        offset = window.offset
        published = control is None or _published(control, segment.header.first_lsn, offset)
        void = limit_lsn is not None and lsn >= limit_lsn
        found = window.next(lsn, segment.file.size())
        if not isinstance(found, Frame):
            rest = segment.file.read(max(0, segment.file.size() - offset), offset)
            window.start(segment, offset)
            found = window.next(lsn, segment.file.size())  # frames in `rest` may have come since: then this one, too
            window.start(segment, offset)
            if isinstance(found, Frame):
                continue
            break
        yield Row(name, offset, "void" if void else "frame" if published else "pending", _frame_fields(found))
        lsn = found.next_lsn
    problem = found.reason if isinstance(found, Damage) else "zeros"
    if published:
        yield from _behind(name, segment, rest, offset, lsn, problem, void)
    else:
        left = segment.file.size() - offset
        what = "behind the published tail: zeros, or what an append under way or a killed one has left"
        yield Row(name, offset, "end", {"bytes": left, "reason": what if left else "end of the file"})


def _published(control: Control, segment: int, offset: int) -> bool:
    """Whether what stands at `offset` of the segment is below the log's tail now."""
    state = control.state()
    return segment < state.segment or (segment == state.segment and offset < state.tail)


def _behind(name: str, segment: Segment, rest: bytes, offset: int, lsn: int, problem: str, void: bool) -> Iterator[Row]:
    """What stands behind the last frame in order, `rest`: damage, and every intact frame in it."""
    kind = "void" if void else "damage"  # void: the next segment says that nothing here counts
    at = 0  # in `rest`: what lies before it has been told
    exhausted = False
    try:
        for frame in find_frames(rest, 0, segment.header.marker, lsn):
            if frame.offset > at:
                yield Row(name, offset + at, kind, {"bytes": frame.offset - at, "reason": problem})
            yield Row(name, offset + frame.offset, "void", _frame_fields(frame))
            at, problem = frame.end, "no frame starts here"
    except SearchExhausted:
        exhausted, problem = True, "no frame starts here, and the search for one was given up"
    left = rest[at:]
    if exhausted or any(left):
        yield Row(name, offset + at, kind, {"bytes": len(left), "reason": problem})
    else:
        yield Row(name, offset + at, "end", {"bytes": len(left), "reason": "zeros" if left else "end of the file"})


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
