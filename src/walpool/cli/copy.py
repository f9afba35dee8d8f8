"""`walpool copy`: make a copy of a log that is right by construction, while writers go on.

The copy holds what was published when it was begun, from the first entry there is, and the checkpoint. It is a log of
its own: open it, read it, or keep it as a backup. DEST must not exist, and appears whole, verified and on disk.

Holds: the log is only read; on any error, Ctrl-C or a kill there is no DEST.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool.cli import arguments
from walpool.cli.exits import Exit, one_line
from walpool.cli.output import amount, print_json
from walpool.cli.progress import Progress
from walpool.upkeep.copy import copy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG")
    parser.add_argument("dest", type=arguments.place, metavar="DEST", help="the directory to make; it must not exist")


def run(args: argparse.Namespace) -> Exit:
    progress = Progress("copying")
    try:
        report = copy(args.log, args.dest, progress.share)
    finally:
        progress.clear()
    if args.json:
        print_json(asdict(report))
    else:
        entries = report.next_lsn - report.first_lsn
        lsns = f" (LSN {report.first_lsn} to {report.next_lsn - 1})" if entries else ""
        size = amount(report.bytes)
        print(f"copied {entries:,} entries{lsns} in {report.segments:,} segments, {size}, to {one_line(report.path)}")
    return Exit.OK
