"""`walpool cat`: print entries, and with --follow those that come.

text  `lsn operation timestamp key value` with tabs between them; what is not printable UTF-8 is escaped
json  one object a line: lsn, operation, timestamp, key (or key_base64), and of a put value (or value_base64)
raw   the value and a line feed, of puts only: the lines that `walpool ingest` took come out as they went in

With --follow --retry it goes by the name, as `tail -F` does: it waits for a log that is not there yet, and when the log
was removed or made anew, it goes on with the first entry of the one that has the name then.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

from walpool import LogNotFound, Operation, ReadBatch, WALEntry, WALReader, lsn_at, map_batches
from walpool.cli import arguments
from walpool.cli.exits import CommandError, Exit, describe
from walpool.cli.output import json_line, text_line, warn
from walpool.errors import LogReplaced
from walpool.system import clock

LOOK_AGAIN_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG", help="a log, or one segment file")
    parser.add_argument(
        "--from",
        "--from-lsn",
        dest="start",
        type=arguments.lsn,
        metavar="LSN",
        help="the first LSN to print (default: the first there is)",
    )
    parser.add_argument(
        "--to",
        "--to-lsn",
        dest="end",
        type=arguments.lsn,
        metavar="LSN",
        help="the LSN to end before (default: the end of the log; with --follow, none)",
    )
    parser.add_argument(
        "--since",
        type=arguments.moment,
        metavar="TIME",
        help="begin with what was appended then: 30s, 10m, 2h or 1d ago, or a time such as 2026-11-27T12:00",
    )
    parser.add_argument(
        "--until", type=arguments.moment, metavar="TIME", help="end before what was appended then; not with --follow"
    )
    parser.add_argument(
        "--match",
        type=arguments.pattern,
        metavar="REGEX",
        help="only entries of which key or value, as text, has a match of this regular expression",
    )
    parser.add_argument(
        "--workers",
        type=arguments.WORKERS,
        default=1,
        metavar="N",
        help="processes that read, match and format (default: 1); not with --follow",
    )
    parser.add_argument("--follow", "-f", action="store_true", help="go on as the log grows, until Ctrl-C")
    parser.add_argument(
        "--retry", action="store_true", help="with --follow: wait for a log that is not there, and open it again"
    )
    parser.add_argument(
        "--format", choices=list(FORMATS), default="text", help="text (default), JSON lines, or the raw values of puts"
    )


def run(args: argparse.Namespace) -> Exit:
    form = Form("json" if args.json else args.format, args.match)
    out = sys.stdout.buffer
    if args.retry and not args.follow:
        raise CommandError(Exit.USAGE, "--retry goes with --follow")
    if args.until is not None and args.follow:
        raise CommandError(Exit.USAGE, "--until says where to end, and --follow not to")
    if args.workers > 1 and args.follow:
        raise CommandError(Exit.USAGE, "--workers read what is there, and --follow what comes: it takes one process")
    if args.until is not None and args.end is not None:
        raise CommandError(Exit.USAGE, "--to and --until both say where to end: give one of them")
    if args.since is not None:
        if args.start is not None:
            raise CommandError(Exit.USAGE, "--from and --since both say where to begin: give one of them")
        args.start = _at(args.log, args.since, wait=args.retry)
    if not args.follow:
        end = args.end if args.until is None else lsn_at(args.log, args.until)
        for text in _texts(args, end, form):
            out.write(text)  # damage ends the reading, and what stands before it is written all the same
        return Exit.OK
    try:
        for entry in _by_name(args) if args.retry else _follow(args.log, args.start, args.end):
            out.write(form.entry(entry))
            out.flush()  # whoever watches wants to see it now
    except KeyboardInterrupt:  # the way to end it, so not a failure
        pass
    return Exit.OK


class Form:
    """How entries are printed, and which: those that `match`, if it is given. Workers have it, too."""

    def __init__(self, name: str, match: re.Pattern[str] | None) -> None:
        self._form = FORMATS[name]
        self._search = match.search if match is not None else None

    def __call__(self, batch: ReadBatch) -> bytes:
        return b"".join(map(self.entry, batch.entries))

    def entry(self, entry: WALEntry) -> bytes:
        search = self._search
        if search is None or search(_readable(entry.key)) or search(_readable(entry.value)):
            return self._form(entry)
        return b""


def _readable(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _texts(args: argparse.Namespace, end: int | None, form: Form) -> Iterator[bytes]:
    if args.workers > 1:
        mapped = map_batches(args.log, form, workers=args.workers, start=args.start, end=end, method="fork")
        with closing(mapped):
            yield from mapped
    else:
        with WALReader(args.log, args.start, end) as reader:
            yield from map(form.entry, reader)


def _follow(log: str, start: int | None, end: int | None) -> Iterator[WALEntry]:
    with WALReader(log, start, end) as reader:
        yield from reader.follow()


def _by_name(args: argparse.Namespace) -> Iterator[WALEntry]:
    """The entries of whatever log has the name, one after another; LSNs to begin and end at are those of the first."""
    start, end = args.start, args.end
    said = ""
    while True:
        try:
            for entry in _follow(args.log, start, end):
                start, said = None, ""
                yield entry
            if end is not None:
                return
        except (LogNotFound, LogReplaced) as error:
            if isinstance(error, LogReplaced):
                start = end = None
            reason = describe(error)[1]
            if reason != said:
                said = reason
                warn(f"walpool cat: {reason}; waiting for the log of that name")
        clock.sleep(LOOK_AGAIN_S)


def _at(log: str, when_ns: int, *, wait: bool) -> int | None:
    """The LSN to begin with; None: with the first entry of a log that is not there yet, when that is waited for."""
    try:
        return lsn_at(log, when_ns)
    except LogNotFound:
        if wait:
            return None
        raise


def _text(entry: WALEntry) -> bytes:
    return (text_line(entry) + "\n").encode()


def _json(entry: WALEntry) -> bytes:
    return (json_line(entry) + "\n").encode()


def _raw(entry: WALEntry) -> bytes:
    return bytes(entry.value) + b"\n" if entry.operation == Operation.PUT else b""


FORMATS: dict[str, Callable[[WALEntry], bytes]] = {"text": _text, "json": _json, "raw": _raw}
