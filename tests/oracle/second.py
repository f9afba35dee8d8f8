"""The oracle's opinion of a log that the harness judges through walpool's own reader: both have to say the same.

What the harness was told about appends goes to the oracle as well, so it finds what is lost, doubled or torn by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.oracle.checker import Batch, State, end_after_recovery, judge
from tests.oracle.reader import NAME, read_log
from walpool import WALEntry

Files = dict[str, bytes]


def files_of(log: Path, from_lsn: int = 1) -> Files:
    """The segments that have `from_lsn` and what follows it."""
    names = sorted(path.name for path in log.iterdir() if NAME.fullmatch(path.name)) if log.is_dir() else []
    first = max((name for name in names if int(name[:20]) <= from_lsn), default="")
    return {name: (log / name).read_bytes() for name in names if name >= first}


def batches(entries: Iterable[WALEntry]) -> list[tuple[int, Batch]]:
    """With their first LSNs. Keys that end in /INDEX/COUNT belong to one batch, which is in one frame."""
    found: list[tuple[int, list[tuple[str, bytes, bytes]]]] = []
    for entry in entries:
        one = entry.operation.name.lower(), entry.key, entry.value
        index = entry.key.rsplit(b"/", 2)[-2:-1]
        if found and index not in ([], [b"0"]):
            found[-1][1].append(one)
        else:
            found.append((entry.lsn, [one]))
    return list(found)


def agree(
    log: Path, entries: Sequence[WALEntry], *, state: State = State.KILLED, exact: bool = True, from_lsn: int = 1
) -> None:
    """The log, which nobody is writing to, has these entries, and is as whole as `state` says.

    Without `exact`, batches may follow that somebody wrote and did not live to show.
    """
    first_lsn = entries[0].lsn if entries else None
    told = batches(entries)
    refuse(judge(files_of(log, from_lsn), told, [] if exact else None, state=state, first_lsn=first_lsn))


def after_a_cut(files: Files, entries: Sequence[WALEntry], durable_lsn: int, pruned_lsn: int) -> int | None:
    """What a power cut has left has these entries, or begins with them, durable ones at least.

    Up to `pruned_lsn` retention may have removed some. Gives the LSN that is next after a recovery, if that is known.
    """
    told = batches(entries)
    segments = read_log(files)
    refuse(judge(segments, told, [], state=State.CUT, durable_lsn=durable_lsn, first_lsn=pruned_lsn + 1))
    next_lsn = end_after_recovery(segments)
    assert next_lsn is not None, "the oracle would refuse to recover this"
    return next_lsn if segments and segments[0].first_lsn <= pruned_lsn + 1 else None


def refuse(findings: list[str]) -> None:
    assert not findings, "the oracle finds:\n" + "\n".join(findings)
