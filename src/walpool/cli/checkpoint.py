"""`walpool checkpoint`: state that nothing at or below an LSN is needed any more.

The statement is durable when the command ends, and never goes back. It removes nothing by itself: retention does, or
`walpool prune`.
"""

from __future__ import annotations

import argparse

from walpool import WALWriter
from walpool.cli import arguments
from walpool.cli.exits import CommandError, Exit
from walpool.cli.output import print_json
from walpool.upkeep.repair import require_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG")
    parser.add_argument("lsn", metavar="LSN", type=arguments.number(0))


def run(args: argparse.Namespace) -> Exit:
    require_log(args.log).close()  # a writer would make what is not there
    with WALWriter(args.log, lock_timeout=10.0, allow_network_fs=args.allow_network_fs) as writer:
        try:
            stated = writer.checkpoint(args.lsn)
        except ValueError as error:
            raise CommandError(Exit.USAGE, str(error)) from None
    if args.json:
        print_json({"checkpoint": stated})
    else:
        print(f"checkpoint at LSN {stated}")
    return Exit.OK
