"""`walpool demo`: the main job on real input. A pool of worker processes appends every line of this Python's standard
library to one log; then everything is read back, and each way to have lost, doubled or moved a line is looked for.

A demo that was stopped or killed goes on when it is given the same directory again.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
from pathlib import Path

from walpool.cli import arguments, stat
from walpool.cli.exits import CommandError, Exit, one_line
from walpool.cli.ingest import add_pool_arguments, exit_of, load_with_progress, source, summary
from walpool.cli.output import amount, print_json, warn
from walpool.cli.pool.load import LoadOptions
from walpool.cli.pool.sources import Source
from walpool.cli.progress import Progress
from walpool.cli.proof import Claim, Placements, prove
from walpool.system.clock import monotonic

SIZE_LIMIT = 8 << 20  # small enough that the log rotates several times
NOT_OURS = frozenset({"site-packages", "dist-packages"})  # what was installed is not the standard library


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        type=arguments.place,
        metavar="DIR",
        nargs="?",
        help="where to put events.wal (default: a new directory)",
    )
    parser.add_argument(
        "--source", metavar="DIR", help="append the *.py files under this directory (default: the standard library)"
    )
    add_pool_arguments(parser)


def run(args: argparse.Namespace) -> Exit:
    root = Path(args.source or sysconfig.get_path("stdlib"))
    sources = find_sources(root)
    talk = not args.json
    directory = Path(args.directory) if args.directory else Path(tempfile.mkdtemp(prefix="walpool-demo-"))
    log = directory / "events.wal"
    size = amount(sum(source.size for source in sources))
    if talk:
        print(f"sources   {len(sources):,} files, {size}, under {root}\nlog       {log}", flush=True)
    placements = Placements()
    options = LoadOptions(log, args.workers, args.sync, SIZE_LIMIT, args.batch, args.wait, args.allow_network_fs)
    loaded = load_with_progress(options, sources, None, args.verbose, placements.placed)
    if talk:
        print(summary(loaded), flush=True)
    if not loaded.complete:
        warn(f"walpool demo: interrupted; `walpool demo {directory}` goes on")
        if args.json:
            print_json({"log": str(log), **loaded.as_dict()})
        return Exit.INTERRUPTED
    if exit_of(loaded) is not Exit.OK:
        warn("walpool demo: not every source could be read, so there is nothing to prove")
        return exit_of(loaded)
    claims, seconds, entries = _prove(log, sources, placements)
    proved = all(claim.holds for claim in claims)
    found = stat.look(str(log))
    if args.json:
        print_json(
            {
                "log": str(log),
                **loaded.as_dict(),
                "proof": [claim.as_dict() for claim in claims],
                "proved": proved,
                "stat": found.as_dict(),
            }
        )
    else:
        print(f"read back {entries:,} entries in {seconds:.2f} s: {entries / max(seconds, 1e-9):,.0f} entries/s")
        for claim in claims:
            print(f"{'ok  ' if claim.holds else 'FAIL'}      {claim.subject:9} {claim.text}")
        print(f"\n{stat.render(found)}\n")
        print("proved: every line is in the log once, and in order" if proved else "NOT PROVED: see FAIL above")
        print(f"the log is {log}; `walpool cat {log}` prints it")
    return Exit.OK if proved else Exit.DIFFERENCE


def find_sources(root: Path) -> list[Source]:
    """Every *.py file under `root`, by name, but for installed packages; named relative to `root`."""
    found: list[Source] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if NOT_OURS.isdisjoint(name.parts) and path.is_file():
            found.append(source(str(path), name.as_posix()))
    if not found:
        raise CommandError(Exit.USAGE, f"{one_line(str(root))}: no *.py files there; name a directory with --source")
    return found


def _prove(log: Path, sources: list[Source], placements: Placements) -> tuple[list[Claim], float, int]:
    progress = Progress("reading back")
    start_s = monotonic()
    try:
        claims, entries = prove(log, sources, placements, lambda entries: progress.count(entries, "entries"))
    finally:
        progress.clear()
    return claims, monotonic() - start_s, entries
