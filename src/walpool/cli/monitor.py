"""`walpool monitor`: what a log and each of its writers are doing, live, with no effect on them.

On a terminal it is a screen (with the extra `monitor`); elsewhere, with TERM=dumb or with --plain, one line for each
interval. q, Ctrl-C or a signal end it.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from datetime import datetime

from walpool.cli import arguments
from walpool.cli.exits import CommandError, Exit, describe
from walpool.cli.live.watch import Watch, as_dict, line
from walpool.cli.output import print_json, warn
from walpool.errors import LogNotFound
from walpool.shared.control import ControlUnusable
from walpool.system import clock
from walpool.system.console import screen_is_possible

LEAST_S, MOST_S = 0.05, 3600.0
LOOK_AGAIN_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG", help="the log's directory")
    parser.add_argument(
        "--interval", type=arguments.seconds(LEAST_S, MOST_S), default=1.0, metavar="S", help="between two looks (1)"
    )
    parser.add_argument("--plain", action="store_true", help="one line for each look, without a screen")
    parser.add_argument("--wait", action="store_true", help="for a log that is not there yet, or not open")
    parser.add_argument("--once", action="store_true", help="one look, over one interval, and no more")


def run(args: argparse.Namespace) -> Exit:
    try:
        with closing(waited_for(args.log) if args.wait else Watch(args.log)) as watch:
            if args.json or args.plain or args.once or not screen_is_possible():
                print_looks(watch, args)
            else:
                show_screen(watch, args)
    except KeyboardInterrupt:
        pass  # that is how one ends it
    return Exit.OK


def waited_for(log: str) -> Watch:
    said = ""
    while True:
        try:
            return Watch(log)
        except (LogNotFound, ControlUnusable) as error:
            reason = describe(error)[1]
            if reason != said:
                warn(f"walpool monitor: waiting for the log ({reason})")
                said = reason
        clock.sleep(LOOK_AGAIN_S)


def print_looks(watch: Watch, args: argparse.Namespace) -> None:
    while True:
        clock.sleep(args.interval)
        look = watch.look()
        if args.json:
            print_json(as_dict(look))
        else:
            print(line(look, f"{datetime.now():%H:%M:%S}"), flush=True)
        if args.once:
            return


def show_screen(watch: Watch, args: argparse.Namespace) -> None:
    try:
        from walpool.cli.live.screen import MonitorApp, show
    except ImportError as error:
        raise CommandError(
            Exit.USAGE, f"the screen needs an extra: pip install 'walpool[monitor]'; or use --plain ({error})"
        ) from None
    app = MonitorApp(args.log, watch, args.interval)
    show(app)
    if app.ended_by is not None:
        raise app.ended_by
