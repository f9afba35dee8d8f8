"""What walpool logs: what a person has to know and no caller is told, once, to the logger `walpool`."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, run_threads, until
from walpool import SyncMode, WALWriter
from walpool.system.calls import calls
from walpool.system.failures import over, say_once
from walpool.write import coordinator


def in_a_program(code: str, *args: object) -> str:
    """What a program that does nothing about logging has on its stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr


def test_there_is_one_logger() -> None:
    for file in sorted((ROOT / "src").rglob("*.py")):
        names = set(re.findall(r"getLogger\((.*?)\)", file.read_text()))
        assert names <= {'"walpool"'}, file


def test_a_program_that_configures_no_logging_is_not_bothered_by_a_usual_life(log: Path) -> None:
    said = in_a_program(
        """
        import os, sys, walpool
        from walpool import *
        for mode in SyncMode:
            with WALWriter(sys.argv[1], mode, 2000, retention=Retention(), sync_interval_s=0.001
                           if mode is SyncMode.NORMAL else None) as writer:
                for _ in range(100):
                    writer.put(b"key", bytes(100))
                writer.checkpoint(writer.sync() - 5)
                writer.prune()
        os.unlink(sys.argv[1] + "/control")  # as after a reboot: a recovery that finds nothing wrong
        with WALWriter(sys.argv[1]) as writer:
            assert writer.recovery_report is not None
        with WALReader(sys.argv[1]) as reader:
            assert reader.read_all()
        walpool.copy(sys.argv[1], sys.argv[1] + ".copy")
        WALMetrics.attach(sys.argv[1]).snapshot()
        """,
        log,
    )
    assert said == ""


def test_a_program_that_configures_no_logging_hears_what_a_recovery_cut(log: Path) -> None:
    with WALWriter(log) as writer:
        for _ in range(10):
            writer.put(b"key", bytes(100))
    (segment,) = log.glob("*.wal")
    os.truncate(segment, segment.stat().st_size - 20)
    (log / "control").unlink()
    said = in_a_program("import sys, walpool; walpool.WALWriter(sys.argv[1]).close()", log)
    assert said.count("\n") == 1
    assert said.startswith(f"{log}: recovered; the log ends at LSN 9 because of ")


def metrics_are_not_a_file(log: Path) -> None:
    WALWriter(log).close()
    (log / "metrics").unlink()
    (log / "metrics").mkdir()


def test_what_all_writers_of_a_process_meet_is_said_once(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics_are_not_a_file(log)

    def use() -> None:
        with WALWriter(log) as writer:
            writer.put(b"key", b"")

    run_threads(*[use] * 5)
    use()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("walpool", logging.WARNING)
    assert record.getMessage().startswith(f"{log}: this writer will not show in the metrics: {log}/metrics: refused: ")


def test_each_log_has_its_own_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "two"):
        metrics_are_not_a_file(tmp_path / name)
        for _ in range(2):
            WALWriter(tmp_path / name).close()
    assert len(caplog.records) == 2


class Disk:
    """Full, for whoever opens the file that is prepared, until it is not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        self.refused = 0
        self._open = calls.open
        monkeypatch.setattr(calls, "open", self.open)

    def open(self, path: Any, *args: Any, **named: Any) -> int:
        if self.full and path == "next.segment.tmp":
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._open(path, *args, **named)


def test_a_disk_that_stays_full_is_said_once_and_again_when_it_is_full_again(
    log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(coordinator, "PREPARE_FROM_BYTES", 0)
    disk = Disk(monkeypatch)
    with WALWriter(log, size_limit=2000) as writer:

        def rotate_until(condition: object) -> None:
            assert callable(condition)

            def turn() -> bool:
                writer.put(b"key", bytes(500))
                return bool(condition())

            until(turn, "the coordinator has been there")

        rotate_until(lambda: disk.refused >= 5)
        disk.full = False
        rotate_until(lambda: (log / "next.segment").exists())
        disk.full, disk.refused = True, 0
        rotate_until(lambda: disk.refused >= 5)
    texts = [record.getMessage() for record in caplog.records if record.name == "walpool"]
    assert len(texts) == 2, texts
    for text in texts:
        assert text.startswith(f"{log}: the next segment could not be prepared: ")
        assert "Errno" not in text and "No space left on device: make room" in text


def test_a_buffer_that_cannot_be_appended_says_so_once(
    log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []
    with WALWriter(log, SyncMode.NONE, linger_s=0.001) as writer:
        appender = writer._handle.open().appender
        really = appender._pwrite

        def fails(*args: Any) -> int:
            tries.append(args)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        appender._pwrite = fails
        appender._look_first()  # so that it is Python's
        writer.put(b"key", b"")
        until(lambda: len(tries) >= 5, "it has been tried again and again")
        appender._pwrite = really
    (text,) = [record.getMessage() for record in caplog.records]
    assert text.startswith(f"{log}: buffered entries could not be appended, and stay buffered: ")
    assert text.endswith("No space left on device: make room, and try again; nothing was appended")


def test_the_same_news_with_other_numbers_is_no_news(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    for lsn in range(5):
        say_once(str(log), "sync", f"{log}: LSN {lsn} is not known to be on disk after 0.{lsn} s")
    say_once(str(log), "sync", f"{log}: another thing")
    assert len(caplog.records) == 2
    over(str(log), "sync")
    say_once(str(log), "sync", f"{log}: LSN 9 is not known to be on disk after 1 s")
    assert len(caplog.records) == 3
