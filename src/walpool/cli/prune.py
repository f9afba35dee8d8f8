"""`walpool prune`: remove the oldest segments that a rule says nobody needs.

Without a rule: those that lie wholly at or below the checkpoint. A reader's pin keeps what it has not read, up to
--max-pinned-bytes. The active segment always stays.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool import Retention, WALWriter
from walpool.cli.exits import Exit
from walpool.cli.output import amount, print_json
from walpool.upkeep.repair import require_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG")
    parser.add_argument("--no-checkpoint", action="store_true", help="leave the checkpoint aside, use the other rules")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="until the log has at most N bytes")
    parser.add_argument("--max-age", type=float, metavar="SECONDS", help="what was sealed longer ago")
    parser.add_argument("--max-segments", type=int, metavar="N", help="until there are at most N segments")
    parser.add_argument("--max-pinned-bytes", type=int, metavar="N", default=1 << 30, help="default: 1 GiB")


def run(args: argparse.Namespace) -> Exit:
    require_log(args.log)  # a writer would make what is not there
    rule = Retention(not args.no_checkpoint, args.max_bytes, args.max_age, args.max_segments, args.max_pinned_bytes)
    with WALWriter(args.log, lock_timeout=10.0, allow_network_fs=args.allow_network_fs, retention=rule) as writer:
        report = writer.prune()
    if args.json:
        print_json(asdict(report))
    else:
        held = f"; {report.held_by_pins} kept for readers" if report.held_by_pins else ""
        gone = f"removed {len(report.removed)} segments, {amount(report.bytes)}"
        print(f"{gone}; LSN {report.first_lsn} is the first{held}")
    return Exit.OK
