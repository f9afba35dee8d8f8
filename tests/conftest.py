"""Fixtures of all tests: a place for a log, children that do not outlive their test, and a seed that is printed."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import nursery
from tests.support import NURSERY, Child, Start
from walpool.system import threads
from walpool.system.locks import held_by_this_thread


def pytest_configure() -> None:
    keep_bytecode()
    hear_signals()


def keep_bytecode() -> None:
    """Where it must not lie beside the sources (PYTHONDONTWRITEBYTECODE), it lies in the folder of the environment.

    Every worker and every child compiles walpool, its tests and what they import anew otherwise.
    """
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode = False
        sys.pycache_prefix = os.path.join(sys.prefix, "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


def hear_signals() -> None:
    """Ctrl-C and the terminal's end, for tests that send them, whatever shell or nohup has started us with.

    A handler is not inherited through exec, so the commands that tests start have the defaults.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)


def pytest_unconfigure() -> None:
    nursery.end()


@pytest.fixture(autouse=True)
def nothing_of_the_users_runs_under_a_lock() -> Iterator[None]:
    """walpool never logs, and never starts or joins a thread, while this thread is inside of one of its locks."""
    wrong: list[str] = []

    def look(what: str) -> None:
        held = held_by_this_thread()
        if held:
            wrong.append(f"{what} while {held} are held")

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            look(f"logs {record.getMessage()!r}")

    def start(helpers: threads.Helpers, thread: threading.Thread) -> None:
        look(f"starts {thread.name}")
        real_start(helpers, thread)

    def join(helpers: threads.Helpers) -> None:
        look("joins a thread")
        real_join(helpers)

    real_start, real_join = threads.Helpers.start, threads.Helpers.join
    listener = Listener()
    logging.getLogger("walpool").addHandler(listener)
    threads.Helpers.start, threads.Helpers.join = start, join  # type: ignore[method-assign]
    yield
    threads.Helpers.start, threads.Helpers.join = real_start, real_join  # type: ignore[method-assign]
    logging.getLogger("walpool").removeHandler(listener)
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.wal"


@pytest.fixture
def child() -> Iterator[Start]:
    """`child(target, *args, method=NURSERY)`: a process that runs `target(channel, *args)`."""
    started: list[Child] = []

    def start(target: Callable[..., object], *args: object, method: str = NURSERY) -> Child:
        started.append(Child(method, target, args))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A place where a sync costs nothing: who only dies by signals needs no disk, and a sweep makes many logs."""
    there = os.access("/dev/shm", os.W_OK | os.X_OK)
    place = Path(tempfile.mkdtemp(prefix="walpool-", dir="/dev/shm" if there else None))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number that everything random in the test follows from; a failure shows it and how to have it again."""
    chosen = os.environ.get("WALPOOL_SEED")
    number = int(chosen) if chosen else random.SystemRandom().getrandbits(32)
    print(f"repeat with: WALPOOL_SEED={number} python -m pytest '{request.node.nodeid}'")
    return number


@pytest.fixture
def linux() -> None:
    if sys.platform != "linux":
        pytest.skip("looks into /proc, which only Linux has")
