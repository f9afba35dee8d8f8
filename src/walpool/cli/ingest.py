"""`walpool ingest`: append the lines of files, or of stdin, with a pool of worker processes, each line exactly once.

A line's key is `path:line`, with the path as it was given and lines from 1, its value is the line without its line
feed. Whatever is killed, workers or the whole command, the same command started again appends what is missing.
Lines of stdin have the keys `-:line` and are always new: they count on from the highest in the log. With --as NAME they
are what follows the last line of NAME in the log. gzip, zstd, xz and bz2 are known by their first bytes, and unpacked.

What stands behind a file's last line feed is held back until a later run finds it whole, or --final says that nothing
will come. A file that was replaced or cut, or has another text for a line that is in the log, is an error that names
it; other files go in all the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from select import select

from walpool import SyncMode
from walpool.cli import arguments
from walpool.cli.exits import CommandError, Exit, one_line
from walpool.cli.output import amount, print_json, warn
from walpool.cli.pool.crew import MAX_WORKERS
from walpool.cli.pool.lines import LongLines, Run
from walpool.cli.pool.load import Loaded, LoadOptions, Reports, load
from walpool.cli.pool.sources import READ_BYTES, Source, look
from walpool.cli.progress import Progress
from walpool.options import DEFAULT_SIZE_LIMIT
from walpool.system.failures import in_words
from walpool.system.inputs import NotRegular

DEFAULT_BATCH_LINES = 256
MAX_BATCH_LINES = 1_000_000
WAIT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG", help="the log's directory; made if it is not there")
    parser.add_argument("files", metavar="FILE", nargs="*", help="a file of lines; - or none at all is stdin")
    parser.add_argument(
        "--files-from", metavar="FILE", help="take names of files from this one too, one on each line; - is stdin"
    )
    parser.add_argument(
        "--as", dest="name", metavar="NAME", help="keys are NAME:line: so a rotated file keeps those of its old name"
    )
    parser.add_argument(
        "--final", action="store_true", help="nothing will be added: what is behind the last line feed is a line"
    )
    parser.add_argument(
        "--long-lines",
        type=arguments.choice(LongLines),
        default=LongLines.ERROR,
        metavar=arguments.choices(LongLines),
        help="what becomes of a line over the limit: left out, and exit code 2 (default); left out; or cut into"
        " several, each with a number of its own",
    )
    add_pool_arguments(parser)
    parser.add_argument(
        "--size-limit",
        type=arguments.size,
        default=DEFAULT_SIZE_LIMIT,
        metavar="BYTES",
        help="of one segment; K, M and G are understood (default: 64M)",
    )


def add_pool_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command with a pool takes."""
    parser.add_argument(
        "--workers", type=arguments.number(1, MAX_WORKERS), default=4, metavar="N", help="worker processes (default: 4)"
    )
    parser.add_argument(
        "--sync",
        type=arguments.choice(SyncMode),
        default=SyncMode.NORMAL,
        metavar=arguments.choices(SyncMode),
        help="what a batch waits for: none and normal the kernel, full the disk (default: normal);"
        " at the end everything is on disk",
    )
    parser.add_argument(
        "--batch",
        type=arguments.number(1, MAX_BATCH_LINES),
        default=DEFAULT_BATCH_LINES,
        metavar="N",
        help=f"lines appended together, or not at all (default: {DEFAULT_BATCH_LINES})",
    )
    parser.add_argument(
        "--wait",
        type=arguments.seconds(),
        default=WAIT_S,
        metavar="SECONDS",
        help=f"for another ingest or demo on the log to end (default: {WAIT_S:g})",
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="say which worker processes are started")


def run(args: argparse.Namespace) -> Exit:
    names = list(dict.fromkeys([*args.files, *(listed(args.files_from) if args.files_from is not None else [])]))
    if not names and args.files_from is None:
        names = ["-"]
    if args.name == "":
        raise CommandError(Exit.USAGE, "--as needs a name, and this one is empty")
    if args.name is not None and len(names) != 1:
        raise CommandError(Exit.USAGE, f"--as gives one input its name, and there are {len(names)}")
    if "-" in names and args.files_from == "-":
        raise CommandError(Exit.USAGE, "stdin cannot be both the names of files and lines")
    stdin = _stdin() if "-" in names else None
    sources = [source(name, args.name or name) for name in names if name != "-"]
    options = LoadOptions(
        Path(args.log), args.workers, args.sync, args.size_limit, args.batch, args.wait, args.allow_network_fs,
        args.final, args.long_lines, encoded(args.name or "-"),
    )  # fmt: skip
    loaded = load_with_progress(options, sources, stdin, args.verbose)
    if args.json:
        print_json({"log": args.log, **loaded.as_dict()})
    else:
        print(summary(loaded))
    if loaded.complete:
        return exit_of(loaded, args.long_lines)
    only_stdin = stdin is not None and not sources
    rest = "every line that was read is in the log" if only_stdin else "the same command appends the rest"
    warn(f"walpool ingest: interrupted; {rest}")
    return Exit.INTERRUPTED


def exit_of(loaded: Loaded, long_lines: LongLines = LongLines.ERROR) -> Exit:
    """Of a loading that came to its end: everything that there was is in, or that of the first problem."""
    if loaded.problems:
        return loaded.problems[0].code
    return Exit.USAGE if loaded.too_long and long_lines is LongLines.ERROR else Exit.OK


def listed(place: str) -> list[str]:
    """The names in a file, or in stdin: between line feeds, or between zero bytes if there are any (find -print0)."""
    try:
        data = _whole(_stdin()) if place == "-" else Path(place).read_bytes()
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{one_line(place)}: {in_words(error)}") from error
    names = data.split(b"\0" if b"\0" in data else b"\n")
    return [name.decode("utf-8", "surrogateescape") for name in names if name]


def encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def source(name: str, key_name: str | None = None) -> Source:
    """The file of that name as it is now. Raises CommandError if it cannot be loaded."""
    try:
        return look(Path(name), encoded(name if key_name is None else key_name))
    except NotRegular:
        reason = "not a regular file: pipe it in, and name it -"
    except FileNotFoundError:
        reason = "no such file"
    except OSError as error:
        reason = in_words(error)
    raise CommandError(Exit.USAGE, f"{one_line(name)}: {reason}")


def load_with_progress(
    options: LoadOptions,
    sources: Sequence[Source],
    stdin: FileIO | None,
    verbose: bool,
    placed: Callable[[int, tuple[Run, ...]], None] = lambda serial, runs: None,
) -> Loaded:
    """`load`, with what it does shown on stderr."""
    reading = Progress("reading what the log holds")
    unknown = stdin is not None or any(each.packed or not each.size for each in sources)
    progress = Progress("appending", 0 if unknown else sum(each.size for each in sources))

    def started(serial: int, pid: int) -> None:
        if verbose:
            progress.say(f"worker {serial} started: pid {pid}")

    def appended(lines: int, size: int, skipped_bytes: int) -> None:
        reading.clear()
        progress.update(lines, size, skipped_bytes)

    reports = Reports(
        say=progress.say,
        reading=lambda entries: reading.count(entries, "entries"),
        progress=appended,
        started=started,
        placed=placed,
    )
    try:
        loaded = load(options, sources, stdin, reports)
    finally:
        reading.clear()
        progress.clear()
    if loaded.first_kept_lsn > 1:
        warn(
            f"entries below LSN {loaded.first_kept_lsn} were removed by retention:"
            " lines that only they held have been appended again"
        )
    return loaded


def summary(loaded: Loaded) -> str:
    rate = loaded.lines / loaded.appending_s if loaded.appending_s > 0 else 0
    lsns = f"{loaded.first_lsn} to {loaded.last_lsn}" if loaded.last_lsn >= loaded.first_lsn else "none"
    lines = [
        f"appended  {loaded.lines:,} lines, {amount(loaded.bytes)}, in {loaded.seconds:.2f} s;"
        f" {loaded.appending_s:.2f} s of it appending, {rate:,.0f} lines/s",
        f"skipped   {loaded.skipped:,} lines that were in the log already",
        f"workers   {loaded.workers} processes, {loaded.replaced} of them replaced because they died",
        f"LSNs      {lsns}, durable through {loaded.durable_lsn}",
    ]
    if loaded.held_back:
        lines.append(f"held back {loaded.held_back:,} last lines without a line feed; --final takes them as they are")
    if loaded.too_long:
        lines.append(f"too long  {loaded.too_long:,} lines over the limit were left out or split")
    return "\n".join(lines)


def _whole(file: FileIO) -> bytes:
    """All of it, also where somebody made it non-blocking."""
    parts: list[bytes] = []
    while True:
        select([file], [], [])
        part = file.read(READ_BYTES)
        if part == b"":
            return b"".join(parts)
        parts.append(part or b"")


def _stdin() -> FileIO:
    try:
        return FileIO(sys.stdin.fileno(), "rb", closefd=False)
    except (AttributeError, OSError, ValueError):
        raise CommandError(Exit.USAGE, "there is no stdin to read; name a file") from None
