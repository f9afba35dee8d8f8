"""The kernel kills a writer that takes too much memory, in the middle of an append: nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.crash.taps import Call, tapped
from tests.support import Channel, Ledger, Start, append_op, judge, read_log
from walpool import SyncMode, WALWriter

MIB = 1 << 20
MOST = 32 * MIB
STEP = MIB // 4


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup of MOST bytes below this process's own, so that whatever limits us still does."""
    group = _own_group()
    if isinstance(group, str):
        pytest.skip(group)
    place = group / f"walpool-{os.getpid()}"
    try:
        place.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        limits = {"memory.limit_in_bytes": MOST, "memory.memsw.limit_in_bytes": MOST}
        if not (place / "memory.limit_in_bytes").exists():
            limits = {"memory.max": MOST, "memory.swap.max": 0}
        for name, value in limits.items():
            if (place / name).exists():
                (place / name).write_text(str(value))
        yield place
    except PermissionError as error:
        pytest.skip(f"a cgroup cannot be limited: {error}")
    finally:
        place.rmdir()


def _own_group() -> Path | str:
    """The directory of the memory cgroup that this process is in, or why there is none to use."""
    root = Path("/sys/fs/cgroup")
    with suppress(FileNotFoundError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            place = root / "memory" / path.lstrip("/") if controllers == "memory" else root / path.lstrip("/")
            limited = (place / "memory.limit_in_bytes").exists()
            if not controllers and (place / "cgroup.subtree_control").exists():
                limited = "memory" in (place / "cgroup.subtree_control").read_text().split()
            if limited and controllers in ("", "memory"):
                return place if os.access(place, os.W_OK) else f"{place} is not writable"
    return "this process is in no memory cgroup that could have one below it"


def grow_until_killed(channel: Channel, log: Path, acks: Path, group: Path, mode: SyncMode, name: str) -> None:
    """Memory is taken at every call of an append: with the lock held, before the write, after it, in the sync."""
    ballast: list[bytearray] = []

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = call(*args, **kwargs)
        if growing and name in ("flock", "pwrite", "fdatasync"):
            ballast.append(bytearray(os.urandom(STEP)))
        return answer

    growing = False
    ledger = Ledger(acks, name)
    (group / "cgroup.procs").write_text(str(os.getpid()))
    with tapped(tap), WALWriter(log, mode, 20_000) as writer:
        growing = True
        for op in range(10_000):
            ledger.append(writer, op)


@pytest.mark.usefixtures("linux")
def test_a_writer_that_the_kernel_kills_for_its_memory_loses_nothing(
    small_group: Path, child: Start, log: Path, tmp_path: Path
) -> None:
    acks = tmp_path / "acks"
    acks.mkdir()
    with WALWriter(log, lock_timeout=20) as peer:
        mine = Ledger(acks, "peer")
        for round_ in range(4):
            mode = SyncMode.FULL if round_ % 2 else SyncMode.NORMAL
            victim = child(grow_until_killed, log, acks, small_group, mode, f"v{round_}")
            assert victim.died() == -signal.SIGKILL
            mine.append(peer, round_)
        mine.close()
    told = Ledger.read_all(acks)
    assert all(len(told[f"v{round_}"]) > 3 for round_ in range(4)), "they were killed before they appended"
    judge(read_log(log), told, {name: [theirs[-1].op + 1] for name, theirs in told.items()})
    with WALWriter(log) as writer:
        assert writer.recovery_report is None
        append_op(writer, "after", 0)
