"""`walpool verify`: read everything that counts and report each place that is not as it should be.

damage          a frame below the end of the log cannot be read
gap             LSNs are missing
torn tail       what an append that never completed has left at the end: no entry is lost
behind the cut  bytes that do not count: a recovery kept them, or a killed writer left them

Holds: nothing is changed, and writers go on meanwhile. Exit code 1 for damage and gaps; the other two are no damage.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool.cli import arguments
from walpool.cli.exits import Exit, one_line
from walpool.cli.output import amount, print_json
from walpool.cli.progress import Progress
from walpool.upkeep.check import Finding
from walpool.upkeep.verify import VerifyReport, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG", help="a log, or one segment file")
    parser.add_argument(
        "--workers", type=arguments.WORKERS, default=1, metavar="N", help="processes that read segments (default: 1)"
    )


def run(args: argparse.Namespace) -> Exit:
    progress = Progress("verifying")
    try:
        report = verify(args.log, progress.share, args.workers)
    finally:
        progress.clear()
    if args.json:
        print_json(_as_dict(report))
    else:
        for finding in report.findings:
            print(_line(finding))
        print(_summary(report))
    return Exit.DIFFERENCE if report.damaged else Exit.OK


def _line(finding: Finding) -> str:
    return f"{one_line(finding.path)}: {finding.kind} at offset {finding.offset} (LSN {finding.lsn}): {finding.reason}"


def _summary(report: VerifyReport) -> str:
    damaged = sum(finding.is_damage for finding in report.findings)
    verdict = f"DAMAGED: {damaged:,} findings" if damaged else "no damage"
    lsns = (
        f"LSN {report.first_lsn} to {report.next_lsn - 1}" if report.entries else f"none before LSN {report.next_lsn}"
    )
    return (
        f"{verdict}; read {report.segments:,} segments, {report.batches:,} batches, {report.entries:,} entries"
        f" ({lsns}), {amount(report.bytes)}"
    )


def _as_dict(report: VerifyReport) -> dict[str, object]:
    findings = [{**asdict(finding), "is_damage": finding.is_damage} for finding in report.findings]
    return {**asdict(report), "findings": findings, "damaged": report.damaged}
