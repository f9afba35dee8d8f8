"""The `walpool` command: reads the arguments, runs one command, and turns what went wrong into a line and a code.

Holds: only the module of the command that was asked for is imported, so that `walpool --help` and each command start
quickly, and an error that a person can meet never shows a traceback. A bug of ours still does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from walpool import __version__
from walpool.cli.exits import EXPECTED, Exit, describe
from walpool.cli.output import log_said_once
from walpool.system import signals
from walpool.system.console import drop_output, let_readers_go, whole_output

COMMANDS = {
    "demo": "append this Python's standard library with a pool of worker processes, and prove that it is all there",
    "ingest": "append the lines of files, or of stdin, with a pool of worker processes",
    "cat": "print entries",
    "dump": "print headers and frames, one line each, with offsets",
    "stat": "print positions, segments, totals and writers",
    "monitor": "show what the log and each of its writers are doing, live",
    "export": "serve the figures to Prometheus over HTTP",
    "verify": "read everything and report each finding",
    "repair": "say what it would take to have no damage; with --apply do it, keeping what is cut",
    "copy": "make a copy that is whole, while the log is written to",
    "cursors": "list the cursors and how far each is behind; --reset and --delete one",
    "checkpoint": "state that nothing at or below an LSN is needed any more",
    "doctor": "say what walpool runs with here: Python, compiled core, system, limits, extras",
    "prune": "remove the oldest segments that a rule says nobody needs",
}
STREAMS = {"", "cat", "dump", "monitor"}  # those that have nothing more to do when nobody reads what they print
WRITERS = {"demo", "ingest", "checkpoint", "prune", "cursors"}  # those that open a log to append to it


def run(argv: Sequence[str] | None = None) -> int:
    """Run `walpool` with `argv` (`sys.argv[1:]` if None) and return its exit code; argparse raises SystemExit."""
    words = list(sys.argv[1:] if argv is None else argv)
    with signals.interrupting(), whole_output(), log_said_once():
        try:
            code = _run(words)
        except KeyboardInterrupt:  # a second one, or one that came when all was said
            drop_output()
            code = Exit.INTERRUPTED
        told = signals.exit_code()
        return code if told is None else told


def _run(words: list[str]) -> int:
    command = next((word for word in words if word in COMMANDS), "")
    try:
        try:
            args = _parser(words).parse_args(words)
        except SystemExit:  # of --help and of a wrong word
            let_readers_go()
            sys.stdout.flush()
            raise
        if command not in STREAMS:
            let_readers_go()
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except EXPECTED as error:
        if isinstance(error, BrokenPipeError) and command in STREAMS:
            drop_output()  # whoever read our output has had enough, as in `walpool cat LOG | head`
            return Exit.OK
        return _finish(*describe(error), command)


def _finish(code: int, line: str, command: str) -> int:
    try:
        sys.stdout.flush()  # what was printed before the failure is data, and comes before the reason
    except OSError:
        pass  # it is the failure, or not the first
    print(f"walpool {command}".rstrip() + f": {line}", file=sys.stderr, flush=True)
    drop_output()
    return code


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="walpool",
        description="A write-ahead log that many processes append to at once.",
        epilog="Exit codes: 0 ok, 1 damage or difference, 2 usage, 3 no such log, 4 busy, 74 I/O,"
        " 130 interrupted; 143 and 129 after SIGTERM and SIGHUP.",
    )
    parser.add_argument("--version", action="version", version=f"walpool {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in words:  # the others would cost their imports, and nobody asks for their options
            module = import_module(f"walpool.cli.{name}")
            command.description, command.epilog = _about(module.__doc__ or "")
            command.add_argument("--json", action="store_true", help="print the result as JSON")
            if name in WRITERS:
                command.add_argument(
                    "--allow-network-fs",
                    action="store_true",
                    help="open a log on NFS, SMB, FUSE, ...; safe only while a single machine does",
                )
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _about(docstring: str) -> tuple[str, str]:
    """What stands before and behind the options in a command's help: its module's docstring, without its promises."""
    first, *rest = (text for text in docstring.strip().split("\n\n") if not text.startswith("Holds:"))
    return first, "\n\n".join(rest)
