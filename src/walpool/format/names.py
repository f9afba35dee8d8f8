"""The names of files in a log's directory, both directions, in one place."""

import re

CONTROL = "control"
APPEND_LOCK = "append.lock"
SYNC_LOCK = "sync.lock"
SLOTS_LOCK = "slots.lock"
MAINTENANCE_LOCK = "maintenance.lock"
SYNC_FAILED = "sync.failed"  # there while the log is poisoned: outlives every process and the control block
PREPARED = "next.segment"  # zeros on disk, waiting to become the next segment
PINS_LOCK = "pins.lock"
CHECKPOINT = "checkpoint"
METRICS = "metrics"
QUARANTINE = "quarantine"
ORIGIN = "origin"
INGEST_LOCK = "ingest.lock"
CURSORS = "cursors"  # a directory: a file for each cursor
CURSORS_LOCK = "cursors.lock"
REWRITE = "rewrite.tmp"  # what will replace a segment, or be one, until it is whole
NEW_METRICS = f"{METRICS}.tmp"
LEFTOVERS = (f"{CHECKPOINT}.tmp", f"{ORIGIN}.tmp", f"{PREPARED}.tmp", NEW_METRICS)  # of killed processes: nobody's

MAX_LSN = (1 << 63) - 1
LAST_OPEN_LSN = 1 << 62  # a log that claims more is forged: no writer opens it, and so none has to look for the end
_SUFFIX = ".wal"
_SEGMENT = re.compile(r"([0-9]{20})\.wal", re.ASCII)


_KNOWN = {
    CONTROL, APPEND_LOCK, SYNC_LOCK, SLOTS_LOCK, MAINTENANCE_LOCK, SYNC_FAILED, PREPARED, PINS_LOCK, CHECKPOINT,
    METRICS, QUARANTINE, ORIGIN, INGEST_LOCK, CURSORS, CURSORS_LOCK, REWRITE, *LEFTOVERS,
}  # fmt: skip


def is_walpools(name: str) -> bool:
    """Whether it is one that a log's directory has, or that nobody minds: hidden files and lost+found."""
    return (
        name in _KNOWN
        or name.startswith((".", f"{CONTROL}."))
        or name == "lost+found"
        or parse_segment_name(name) is not None
    )


def segment_name(first_lsn: int) -> str:
    assert 1 <= first_lsn <= MAX_LSN
    return f"{first_lsn:020d}.wal"


def parse_segment_name(name: str) -> int | None:
    """The first LSN a segment's name states, or None for a name that is not a segment's."""
    found = _SEGMENT.fullmatch(name) if name.endswith(_SUFFIX) else None
    if found is None:
        return None
    first_lsn = int(found[1])
    return first_lsn if 1 <= first_lsn <= MAX_LSN else None
