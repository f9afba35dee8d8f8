"""`walpool repair`: say what it would take to have a log without damage, and with --apply do it.

The log is cut at the first damage that the mode does not refuse or skip. What lies behind a cut is kept: segments
move to quarantine/ in the log's directory, and no segment is changed. While a writer has the log open, --apply refuses.

Where the mode refuses: --mode point-in-time ends the log at the first damage, --mode salvage goes on behind it.

Holds: without --apply nothing is touched. Exit code 1 when something would be cut or skipped, or the mode refuses.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool import CorruptLog, RecoveryMode, RecoveryReport
from walpool.cli import arguments
from walpool.cli.exits import CommandError, Exit, describe, one_line
from walpool.cli.output import print_json
from walpool.opening.survey import Place
from walpool.options import WriterOptions
from walpool.upkeep.repair import RepairPlan, plan_repair, repair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG")
    parser.add_argument("--apply", action="store_true", help="do it, keeping what is cut")
    parser.add_argument(
        "--mode",
        type=arguments.choice(RecoveryMode),
        default=RecoveryMode.TOLERATE_TAIL,
        metavar=arguments.choices(RecoveryMode),
        help="what to do about damage: tolerate-tail (default) cuts what was never durable and refuses the rest;"
        " point-in-time cuts at the first damage, durable or not; salvage goes on behind it; strict refuses any",
    )


def run(args: argparse.Namespace) -> Exit:
    mode: RecoveryMode = args.mode
    try:
        plan = plan_repair(args.log, mode)
    except CorruptLog as error:
        code, line = describe(error)
        raise CommandError(code, f"{line}; {_ways_out(mode)}") from error
    report = repair(args.log, WriterOptions(recovery=mode, lock_timeout=10.0)) if args.apply else None
    if args.json:
        print_json({"applied": args.apply, **_as_dict(report or plan)})
    else:
        for place in [*([plan.cut] if plan.cut else []), *plan.skipped]:
            print(_line(place))
        print(_verdict(plan, report))
    return Exit.DIFFERENCE if plan.needed and not args.apply else Exit.OK


def _ways_out(refusing: RecoveryMode) -> str:
    """What to do where this mode refuses."""
    ways = {
        RecoveryMode.POINT_IN_TIME: "--mode point-in-time ends the log there and keeps the rest aside",
        RecoveryMode.SALVAGE: "--mode salvage skips the damage and goes on behind it",
    }
    return ", ".join(way for mode, way in ways.items() if mode is not refusing)


def _line(place: Place) -> str:
    return f"{one_line(place.path)}: damage at offset {place.offset} (LSN {place.lsn}): {place.reason}"


def _verdict(plan: RepairPlan, report: RecoveryReport | None) -> str:
    if report is not None:
        if report.cut is None and not report.skipped:
            return f"nothing to repair: the log ends at LSN {report.next_lsn - 1}, and its control block was made anew"
        moved = f"; moved aside: {', '.join(report.quarantined)}" if report.quarantined else ""
        return f"repaired: the log ends at LSN {report.next_lsn - 1}{moved}"
    if not plan.needed:
        ends = f"the log ends at LSN {plan.next_lsn - 1}" if plan.next_lsn > 1 else "the log has no entries yet"
        return f"nothing to repair: {ends}"
    if plan.cut is None:
        return "would go on behind the damage; nothing is cut; --apply starts a new segment at the end"
    moved = f" and move {', '.join(plan.quarantine)} to quarantine/" if plan.quarantine else ""
    behind = f"{plan.intact_behind:,} intact entries lie behind the cut and are kept as evidence"
    way_out = "; --mode salvage would keep them in the log" if plan.intact_behind else ""
    return f"would end the log at LSN {plan.next_lsn - 1}{moved}; {behind}{way_out}; --apply does it"


def _as_dict(result: RepairPlan | RecoveryReport) -> dict[str, object]:
    return {**asdict(result), "mode": result.mode.value}
