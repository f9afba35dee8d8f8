"""`walpool cursors`: list the cursors of a log, and how far each is behind; set one to another place, or forget one.

A cursor that nobody uses any more keeps retention from what it has not committed: --delete it. One that has missed
what retention removed, or whose file is damaged, goes on after --reset: with the first entry there is, or with
--to LSN behind that one. NAME@PARTofMEMBERS is a part of a group; --reset and --delete take the name of the group.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool import WALWriter
from walpool.cli import arguments
from walpool.cli.exits import CommandError, Exit, one_line
from walpool.cli.live.figures import aligned, duration
from walpool.cli.output import amount, print_json
from walpool.options import WriterOptions
from walpool.shared.figures.fields import CursorRow
from walpool.upkeep.cursors import delete_cursor, list_cursors, set_cursor
from walpool.upkeep.repair import require_log

COLUMNS = ("cursor", "position", "entries", "bytes", "behind", "missed", "pid", "problem")
BUSY_AFTER_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--reset", metavar="NAME", help="have it begin anew, or behind --to")
    change.add_argument("--delete", metavar="NAME", help="forget it; the next with that name is a new one")
    parser.add_argument(
        "--to", type=arguments.number(0), metavar="LSN", help="with --reset: at or below it all is done"
    )


def run(args: argparse.Namespace) -> Exit:
    if args.to is not None and args.reset is None:
        raise CommandError(Exit.USAGE, "--to says where --reset goes, and there is none")
    if args.reset is None and args.delete is None:
        return _list(args)
    name = args.delete if args.reset is None else args.reset
    with require_log(args.log) as directory:
        options = WriterOptions(lock_timeout=BUSY_AFTER_S, mode=directory.mode_of_files())
    try:
        if args.reset is None:
            done = delete_cursor(args.log, name, options)
        else:
            done = set_cursor(args.log, name, _checked(args), options)
    except ValueError as error:
        raise CommandError(Exit.USAGE, one_line(str(error))) from None
    if not done:
        raise CommandError(
            Exit.USAGE, f"{args.log}: there is no cursor {name!r}; `walpool cursors {args.log}` lists them"
        )
    if args.json:
        print_json({"deleted" if args.reset is None else "reset": done})
    else:
        where = "deleted" if args.reset is None else f"goes on behind LSN {args.to}" if args.to else "begins anew"
        for each in done:
            print(f"{each} {where}")
    return Exit.OK


def _checked(args: argparse.Namespace) -> int:
    """Where it is to go: never above what is durable, because LSNs above may be given again."""
    lsn: int = args.to or 0
    if lsn:
        with WALWriter(args.log, lock_timeout=BUSY_AFTER_S, allow_network_fs=args.allow_network_fs) as writer:
            last_lsn = writer.sync()
        if lsn > last_lsn:
            raise CommandError(Exit.USAGE, f"LSN {lsn} is not in the log: its last is {last_lsn}")
    return lsn


def _list(args: argparse.Namespace) -> Exit:
    rows = list_cursors(args.log)
    if args.json:
        print_json({"cursors": [asdict(row) for row in rows]})
    elif rows:
        print("\n".join(aligned([COLUMNS, *map(_cells, rows)])))
    else:
        print("no cursors")
    return Exit.DIFFERENCE if any(row.problem for row in rows) else Exit.OK


def _cells(row: CursorRow) -> tuple[str, ...]:
    pid = "-" if not row.is_open else str(row.pid or "?")
    return (
        row.name, f"{row.position:,}", f"{row.lag_entries:,}", amount(row.lag_bytes), duration(row.lag_seconds),
        f"{row.missed:,}", pid, one_line(row.problem) or "-",
    )  # fmt: skip
