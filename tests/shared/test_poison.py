"""The mark of a failed sync: whatever it says, the log opens again with all that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.read.logs import SEGMENT_BYTES, entries, fill, make, read
from walpool import WALWriter
from walpool.format.names import MAX_LSN, SYNC_FAILED
from walpool.shared.poison import first_doubtful, poison
from walpool.system import processes
from walpool.system.files import Directory

COUNT = 12


def mark(log: Path, durable_lsn: str) -> None:
    high, low = processes.boot_id()
    (log / SYNC_FAILED).write_text(f"{high:016x}{low:016x} {durable_lsn} 5\n")


@pytest.mark.parametrize("stated", ["-1", "-5", str(MAX_LSN), str(1 << 63), str(1 << 64), "9" * 100, "x", "1.5"])
def test_a_mark_that_names_no_lsn_of_a_log_calls_everything_doubtful(log: Path, stated: str) -> None:
    make(log, COUNT)
    mark(log, stated)
    assert first_doubtful(Directory(log), None) == 0
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
        fill(writer, 3)
    assert read(log).entries == entries(1, COUNT + 4)
    assert not (log / SYNC_FAILED).exists()


@pytest.mark.parametrize("stated", [*range(COUNT + 2), MAX_LSN - 1])  # also inside a batch, where no sync ends
def test_a_mark_calls_doubtful_what_is_above_its_lsn(log: Path, stated: int) -> None:
    make(log, COUNT, size_limit=4000 if stated % 2 else SEGMENT_BYTES)
    mark(log, str(stated))
    assert first_doubtful(Directory(log), None) == stated + 1
    with WALWriter(log) as writer:
        fill(writer, 3)
    assert read(log).entries == entries(1, COUNT + 4)


def test_the_mark_alone_says_from_where_on_a_failed_sync_leaves_doubt(log: Path) -> None:
    """When the control block, which says it too, is gone by then."""
    with WALWriter(log) as writer:
        fill(writer, 5)
        writer.sync()
        fill(writer, 5)
        opened = writer._handle.open().log
        poison(opened.directory, opened.control, 28)
    (log / "control").unlink()
    directory = Directory(log)
    assert first_doubtful(directory, None) == 6
    assert (log / SYNC_FAILED).read_bytes().split()[1:] == [b"5", b"28"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "boot_id", lambda: (1, 2))
        assert first_doubtful(directory, None) is None, "after a boot nothing is in the cache that is not on disk"
    directory.close()
