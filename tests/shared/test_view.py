"""WALMetrics as a view of one log: which log it is, whose descriptors, and whom it names."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.read.logs import fill, make
from tests.support import open_fds, reap, run_threads
from walpool import LogClosed, LogReplaced, Retention, WALError, WALMetrics, WALWriter
from walpool.cli.live.figures import writer_table
from walpool.shared import slot_rows
from walpool.shared.control import POISONED, STOPPED, ControlUnusable
from walpool.system import processes
from walpool.system.files import Directory


def removed(log: Path) -> None:
    shutil.rmtree(log)


def moved(log: Path) -> None:
    log.rename(log.with_name("elsewhere"))


def emptied(log: Path) -> None:
    for file in log.iterdir():
        file.unlink()


def in_its_place(harm: Callable[[Path], None], count: int = 3) -> Callable[[Path], None]:
    def replace(log: Path) -> None:
        harm(log)
        make(log, count)

    return replace


def a_file(log: Path) -> None:
    moved(log)
    log.write_bytes(b"")


def a_link(log: Path) -> None:
    moved(log)
    log.symlink_to(log.with_name("elsewhere"))


GONE = {
    "removed": removed,
    "moved": moved,
    "emptied": emptied,
    "removed, and another": in_its_place(removed),
    "moved, and another": in_its_place(moved),
    "emptied, and another": in_its_place(emptied),
    "emptied, and another with more rotations": in_its_place(emptied, 150),
    "a file": a_file,
    "a link": a_link,
}


@pytest.mark.parametrize("rotations", [0, 3])
@pytest.mark.parametrize("how", GONE)
def test_figures_of_a_log_that_is_another_one_by_now_are_refused(log: Path, how: str, rotations: int) -> None:
    make(log, 5 + 20 * rotations)
    with WALMetrics.attach(log) as metrics:
        metrics.snapshot()
        GONE[how](log)
        for _ in range(2):
            with pytest.raises(LogReplaced, match="attach again"):
                metrics.snapshot()


def removed_block(log: Path) -> None:
    (log / "control").unlink()


def of_another_kind(log: Path) -> None:
    (log / "control").unlink()
    (log / "control").write_bytes(b"x" * 100)


def pruned(log: Path) -> None:
    """The segment that was active is gone, too."""
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 20)
        writer.checkpoint(20)
        writer.prune()
    removed_block(log)


def failed_sync(log: Path) -> None:
    from walpool.shared.control import Control

    directory = Directory(log)
    control = Control.attach(directory, writable=True)
    control.halves[STOPPED] = POISONED
    control.close()
    directory.close()


@pytest.mark.parametrize("harm", [removed_block, of_another_kind, pruned, failed_sync])
@pytest.mark.parametrize("count", [3, 40])
def test_a_block_that_was_rebuilt_is_followed(log: Path, harm: Callable[[Path], None], count: int) -> None:
    make(log, count)
    with WALMetrics.attach(log) as metrics:
        before = metrics.snapshot()
        harm(log)
        with WALWriter(log, retention=Retention()) as writer:
            assert writer.recovery_report is not None
            writer.put(b"key", b"value")
            after = metrics.snapshot()
            assert after.next_lsn == writer.metrics.snapshot().next_lsn > before.next_lsn


def test_rights_that_were_given_up_are_no_finding(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from walpool.system.calls import calls

    make(log, 3)
    opened = calls.open

    def may_not(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if path == str(log):
            raise PermissionError(13, "no")
        return opened(path, flags, *args, **kwargs)

    with WALMetrics.attach(log) as metrics:
        monkeypatch.setattr(calls, "open", may_not)
        assert metrics.snapshot().next_lsn == 4


def in_child(work: Callable[[], bool]) -> None:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    assert reap(pid) == 0


def test_a_child_has_descriptors_of_its_own_and_none_of_its_parents(log: Path, linux: None) -> None:
    make(log, 3)
    before = set(open_fds().items())
    with WALMetrics.attach(log) as metrics:
        metrics.snapshot()

        def works() -> bool:
            mine = set(open_fds().items()) <= before
            return mine and metrics.snapshot().next_lsn == 4 and metrics.snapshot().next_lsn == 4

        in_child(works)
        assert metrics.snapshot().next_lsn == 4

        def refuses() -> bool:
            removed(log)
            make(log, 9)
            try:
                metrics.snapshot()
            except LogReplaced:
                return True
            return False

        in_child(refuses)


def test_a_fork_in_the_middle_of_a_snapshot_does_not_spoil_it(log: Path) -> None:
    """As when a signal handler forks: the child's snapshot goes on, and what it looked through is closed."""
    make(log, 3)
    with WALMetrics.attach(log) as metrics:
        calls = interrupted_at_each_call(lambda: metrics.snapshot().next_lsn == 4, metrics._after_fork)
        assert calls > 20


def interrupted_at_each_call(what: Callable[[], bool], handler: Callable[[], object]) -> int:
    at = seen = 0

    def profile(frame: object, event: str, arg: object) -> None:
        nonlocal seen
        if event in ("call", "c_call"):
            seen += 1
            if seen == at:
                handler()

    while seen >= at:
        at, seen = at + 1, 0
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            assert what()
        finally:
            sys.setprofile(before)
    return at


def test_a_writers_figures_are_its_own_process(log: Path) -> None:
    with WALWriter(log) as writer:
        metrics = writer.metrics

        def refused() -> bool:
            try:
                metrics.snapshot()
            except LogClosed:
                return writer.metrics.snapshot().next_lsn == 1
            return False

        in_child(refused)


@pytest.mark.parametrize("attached", [True, False])
def test_a_snapshot_beside_close_is_one_or_says_closed(log: Path, attached: bool) -> None:
    make(log, 3)
    for _ in range(30):
        writer = WALWriter(log)
        metrics = WALMetrics.attach(log) if attached else writer.metrics
        begun = threading.Event()

        def look() -> None:
            try:
                while True:
                    assert metrics.snapshot().next_lsn == 4  # noqa: B023
                    begun.set()  # noqa: B023
            except LogClosed:
                pass

        def close() -> None:
            begun.wait(10)  # noqa: B023
            (metrics if attached else writer).close()  # noqa: B023

        run_threads(look, look, close)
        writer.close()


def test_no_descriptor_is_left(log: Path, linux: None) -> None:
    make(log, 3)
    before = open_fds()
    metrics = WALMetrics.attach(log)
    for _ in range(3):
        metrics.snapshot()
    removed_block(log)
    with pytest.raises(ControlUnusable):
        metrics.snapshot()
    WALWriter(log).close()
    metrics.snapshot()
    metrics.close()
    removed(log)
    with pytest.raises(WALError):
        WALMetrics.attach(log)
    assert open_fds() == before


def test_the_checkpoint_in_force_shows(log: Path) -> None:
    with WALWriter(log) as writer, WALMetrics.attach(log) as metrics:
        assert metrics.snapshot().checkpoint == 0
        fill(writer, 5)
        writer.checkpoint(3)
        assert metrics.snapshot().checkpoint == writer.metrics.snapshot().checkpoint == 3
        assert metrics.snapshot().as_dict()["checkpoint"] == 3
        (log / "checkpoint").write_bytes(b"damaged")
        assert metrics.snapshot().checkpoint == 0


@pytest.mark.parametrize("with_row", [True, False])
@pytest.mark.parametrize("namespace", [0, 1])
def test_a_writer_of_another_pid_namespace_is_no_process_of_ours(
    log: Path, monkeypatch: pytest.MonkeyPatch, with_row: bool, namespace: int
) -> None:
    mine = processes.pid_namespace()
    monkeypatch.setattr(processes, "pid_namespace", lambda: namespace)
    with WALWriter(log, metrics=with_row, name="theirs"):
        monkeypatch.setattr(processes, "pid_namespace", lambda: mine)
        with WALWriter(log, metrics=with_row, name="ours"), WALMetrics.attach(log) as metrics:
            found = metrics.snapshot()
    theirs, ours = found.writers
    head, first, second, legend = writer_table(found)
    assert (f"{os.getpid()}^" in first, "^" in second, legend[0]) == (True, False, "^")
    assert "name" in head
    assert (theirs.pid, theirs.process, theirs.elsewhere) == (os.getpid(), "", True)
    assert (ours.pid, ours.process, ours.elsewhere) == (os.getpid(), processes.describe(os.getpid()), False)
    assert theirs.name == ("theirs" if with_row else "")


def test_the_row_of_another_namespaces_process_with_the_same_id_is_not_ours(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = processes.pid_namespace()
    monkeypatch.setattr(processes, "pid_namespace", lambda: mine ^ 1)
    monkeypatch.setattr(slot_rows.SlotRow, "close", lambda row: None)  # as if it was killed
    WALWriter(log, name="theirs").close()
    monkeypatch.setattr(processes, "pid_namespace", lambda: mine)
    with WALWriter(log, metrics=False), WALMetrics.attach(log) as metrics:
        (row,) = metrics.snapshot().writers
    assert (row.name, row.pid, row.elsewhere) == ("", os.getpid(), False)


def test_of_writers_that_share_a_row_each_is_of_its_own_namespace(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("slot_rows", "figures.snapshot"):
        monkeypatch.setattr(f"walpool.shared.{module}.ROWS", 0)
    mine = processes.pid_namespace()
    with WALWriter(log, name="ours"):
        monkeypatch.setattr(processes, "pid_namespace", lambda: mine ^ 1)
        with WALWriter(log, name="theirs"):
            monkeypatch.setattr(processes, "pid_namespace", lambda: mine)
            with WALMetrics.attach(log) as metrics:
                found = metrics.snapshot().writers
    assert [(row.shares_row, row.elsewhere, bool(row.process)) for row in found] == [
        (True, False, True), (True, True, False)
    ]  # fmt: skip
