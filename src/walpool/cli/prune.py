"""`walpool prune`: remove the oldest segments that a rule says nobody needs.

Without a rule: those that lie wholly at or below the checkpoint. A cursor keeps what it has not committed, and a
reader's pin what it has not read, up to --max-pinned-bytes. The active segment always stays.

With --quarantine, no segment is removed, but what recoveries and repairs have moved to quarantine/: look first whether
anything there is still wanted.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool import Retention, WALWriter
from walpool.cli import arguments
from walpool.cli.exits import Exit
from walpool.cli.output import amount, print_json
from walpool.options import WriterOptions
from walpool.upkeep.repair import discard_quarantine, require_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG")
    parser.add_argument("--no-checkpoint", action="store_true", help="leave the checkpoint aside, use the other rules")
    parser.add_argument("--max-bytes", type=arguments.number(0), metavar="N", help="until the log has at most N bytes")
    parser.add_argument("--max-age", type=arguments.seconds(), metavar="SECONDS", help="what was sealed longer ago")
    parser.add_argument(
        "--max-segments", type=arguments.number(0), metavar="N", help="until there are at most N segments"
    )
    parser.add_argument(
        "--max-pinned-bytes", type=arguments.number(0), metavar="N", default=1 << 30, help="default: 1 GiB"
    )
    parser.add_argument("--no-cursors", action="store_true", help="also what a cursor has not committed")
    parser.add_argument("--quarantine", action="store_true", help="remove what lies in quarantine/, and nothing else")


def run(args: argparse.Namespace) -> Exit:
    require_log(args.log).close()  # a writer would make what is not there
    if args.quarantine:
        return _discard(args)
    rule = Retention(
        not args.no_checkpoint, args.max_bytes, args.max_age, args.max_segments, args.max_pinned_bytes,
        cursors=not args.no_cursors,
    )  # fmt: skip
    with WALWriter(args.log, lock_timeout=10.0, allow_network_fs=args.allow_network_fs, retention=rule) as writer:
        report = writer.prune()
    if args.json:
        print_json(asdict(report))
    else:
        held = f"; {report.held_by_pins} kept for readers" if report.held_by_pins else ""
        held += f"; {report.held_by_cursors} kept for cursors" if report.held_by_cursors else ""
        gone = f"removed {len(report.removed)} segments, {amount(report.bytes)}"
        print(f"{gone}; LSN {report.first_lsn} is the first{held}")
    return Exit.OK


def _discard(args: argparse.Namespace) -> Exit:
    gone = discard_quarantine(args.log, WriterOptions(lock_timeout=10.0))
    if args.json:
        print_json({"quarantine": gone._asdict()})
    else:
        print(f"removed {gone.files:,} files from quarantine/, {amount(gone.bytes)}")
    return Exit.OK
