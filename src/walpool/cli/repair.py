"""`walpool repair`: say what it would take to have a log without damage, and with --apply do it.

The log is cut at the first damage that the mode does not refuse or skip. What lies behind a cut is kept: segments
move to quarantine/ in the log's directory, and no segment is changed. While a writer has the log open, --apply refuses.

Holds: without --apply nothing is touched. Exit code 1 when something would be cut or skipped, or the mode refuses.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool import RecoveryMode, RecoveryReport
from walpool.cli.exits import Exit, one_line
from walpool.cli.output import print_json
from walpool.options import WriterOptions
from walpool.upkeep.repair import RepairPlan, plan_repair, repair
from walpool.upkeep.survey import Place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG")
    parser.add_argument("--apply", action="store_true", help="do it, keeping what is cut")
    parser.add_argument(
        "--mode",
        default=RecoveryMode.TOLERATE_TAIL.value,
        choices=[mode.value for mode in RecoveryMode],
        help="what to do about damage: tolerate_tail (default) cuts what was never durable and refuses the rest;"
        " point_in_time cuts at the first damage, durable or not; salvage goes on behind it; strict refuses any",
    )


def run(args: argparse.Namespace) -> Exit:
    mode = RecoveryMode(args.mode)
    plan = plan_repair(args.log, mode)
    report = repair(args.log, WriterOptions(recovery=mode, lock_timeout=10.0)) if args.apply else None
    if args.json:
        print_json({"applied": args.apply, **_as_dict(report or plan)})
    else:
        for place in [*([plan.cut] if plan.cut else []), *plan.skipped]:
            print(_line(place))
        print(_verdict(plan, report))
    return Exit.DIFFERENCE if plan.needed and not args.apply else Exit.OK


def _line(place: Place) -> str:
    return f"{one_line(place.path)}: damage at offset {place.offset} (LSN {place.lsn}): {place.reason}"


def _verdict(plan: RepairPlan, report: RecoveryReport | None) -> str:
    if report is not None:
        moved = f"; moved aside: {', '.join(report.quarantined)}" if report.quarantined else ""
        return f"repaired: the log ends at LSN {report.next_lsn - 1}{moved}"
    if not plan.needed:
        return f"nothing to repair: the log ends at LSN {plan.next_lsn - 1}"
    if plan.cut is None:
        return "would go on behind the damage; nothing is cut; --apply starts a new segment at the end"
    moved = f" and move {', '.join(plan.quarantine)} to quarantine/" if plan.quarantine else ""
    return (
        f"would end the log at LSN {plan.next_lsn - 1}{moved}; {plan.intact_behind:,} intact entries lie behind the cut"
        " and are kept there; --apply does it"
    )


def _as_dict(result: RepairPlan | RecoveryReport) -> dict[str, object]:
    return {**asdict(result), "mode": result.mode.value}
