"""What an interrupt does to the threads that a writer starts: nothing that the next call does not mend."""

import threading
from pathlib import Path
from typing import Any

import pytest

from walpool import SyncMode, WALReader, WALWriter


class Interrupt(BaseException):
    """Like KeyboardInterrupt, no `except Exception` stops it."""


def interrupt_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> None:
    """Make the next call of `owner.name` raise, before or after it does its work."""
    real = getattr(owner, name)
    calls: list[None] = []

    def once(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) > 1:
            return real(*args, **options)
        if after:
            real(*args, **options)
        raise Interrupt

    monkeypatch.setattr(owner, name, once)


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_does_not_end_the_promise_of_the_sync_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    with WALWriter(tmp_path / "log", sync_interval_s=0.01) as writer:
        interrupt_once(monkeypatch, threading.Timer, "start", after=after)
        with pytest.raises(Interrupt):
            writer.put(b"in doubt", b"")
        last = writer.put(b"key", b"value")
        with WALReader(tmp_path / "log") as reader:
            durable = (entry.lsn for entry in reader.follow(timeout=5, durable_only=True))
            assert last in durable


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_does_not_leave_buffered_entries_without_a_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    with WALWriter(tmp_path / "log", SyncMode.NONE, linger_s=0.01) as writer:
        interrupt_once(monkeypatch, threading.Timer, "start", after=after)
        with pytest.raises(Interrupt):
            writer.put(b"in doubt", b"")
        writer.put(b"key", b"value")
        with WALReader(tmp_path / "log") as reader:
            following = reader.follow(timeout=5)
            assert b"key" in [next(following).key, next(following).key]


@pytest.mark.parametrize("after", [False, True])
def test_no_coordinator_outlives_its_writer_though_its_start_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    with WALWriter(tmp_path / "log", size_limit=400) as writer:
        real = threading.Thread.start
        begun: list[threading.Thread] = []

        def start(thread: threading.Thread) -> None:
            if thread.name == "walpool-coordinator" and not begun:
                begun.append(thread)
                if after:
                    real(thread)
                raise Interrupt
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(Interrupt):
            for _ in range(10):
                writer.put(b"key", bytes(100))
        lsn = writer.put(b"key", bytes(200))
    assert begun
    assert isinstance(lsn, int)
    assert [thread for thread in threading.enumerate() if thread.name == "walpool-coordinator"] == []


@pytest.mark.parametrize(
    "options", [{"sync_mode": SyncMode.NONE}, {"sync_interval_s": 60.0}, {"size_limit": 400}], ids=str
)
def test_an_interrupt_in_the_start_of_a_helper_reaches_the_caller_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The library gives up a lock to wait, is interrupted, and gives it up again: a RuntimeError of its own."""

    def start(thread: threading.Thread) -> None:
        real(thread)
        try:
            raise Interrupt
        finally:
            threading.Lock().release()

    real = threading.Thread.start
    with WALWriter(tmp_path / "log", **options) as writer:
        with monkeypatch.context() as patch, pytest.raises(Interrupt):
            patch.setattr(threading.Thread, "start", start)
            for _ in range(10):
                writer.put(b"key", bytes(100))
        assert writer.sync() == writer.metrics.snapshot().next_lsn - 1


def test_a_helper_that_cannot_be_started_says_so_though_its_caller_is_handling_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that is being handled is the context of the new one, as an interrupt would be."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with WALWriter(tmp_path / "log", SyncMode.NONE) as writer:
        try:
            raise KeyError("the caller's own")
        except KeyError:
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="can't start"):
                patch.setattr(threading.Thread, "start", start)
                writer.put(b"key", b"value")
