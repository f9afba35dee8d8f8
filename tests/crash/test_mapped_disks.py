"""mapped=True on real disks that are full: where it is allowed nobody is killed, and elsewhere somebody would be."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.crash.real_cut import Disk, command, why_not
from tests.crash.sweep import in_child
from tests.support import Channel, Ledger, Start, judge, read_log, reap
from walpool import LogFull, SyncMode, Unsupported, WALWriter
from walpool.opening import opening

pytestmark = pytest.mark.slow  # and for root on Linux, with the programs that make such a disk
MIB = 1 << 20


def fill(place: Path) -> None:
    """Every byte that there is room for."""
    with (place / "ballast").open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def append_until_told(log: Path, acks: Path, name: str, limit: int, mapped: bool, until_s: float) -> None:
    ledger = Ledger(acks, name)
    refused = op = 0
    with WALWriter(log, SyncMode.NORMAL, limit, mapped=mapped) as writer:
        while time.monotonic() < until_s:
            try:
                ledger.append(writer, op)
            except LogFull:
                refused += 1
                time.sleep(0.001)
            else:
                op += 1
                if op % 64 == 0:
                    writer.sync()
    assert refused, "the disk was never full"


def fill_again_and_again(channel: Channel, folder: Path, kind: str, how: list[str]) -> str | None:
    if (reason := why_not(kind)) is not None:
        return reason
    disk = Disk(folder, kind, *how)
    disk.mount()
    log, acks = disk.place / "events.wal", folder / "acks"
    acks.mkdir()
    WALWriter(log, mapped=True).close()
    ends = time.monotonic() + 4
    pids = []
    for number, (limit, mapped) in enumerate([(3 * MIB, True), (20_000, True), (5 * MIB, False)]):
        pid = os.fork()
        if pid == 0:
            in_child(partial(append_until_told, log, acks, f"w{number}", limit, mapped, ends))
        pids.append(pid)
    while time.monotonic() < ends - 1:
        fill(disk.place)
        if time.monotonic() % 2 < 1:
            command("cp", "--reflink=auto", max(log.glob("*.wal")), disk.place / "copy", check=False)
        time.sleep(0.05)
        (disk.place / "ballast").unlink()
        time.sleep(0.05)
    fill(disk.place)
    codes = [reap(pid) for pid in pids]
    assert codes == [0, 0, 0], f"each is refused what there is no room for, and none is killed: {codes}"
    told = Ledger.read_all(acks)
    judge(read_log(log), told, {})
    disk.close()
    return None


@pytest.mark.parametrize(("kind", "how"), [("ext4", []), ("xfs", ["-m", "reflink=0"])], ids=["ext4", "xfs"])
def test_a_disk_that_fills_up_kills_nobody_where_stores_are_allowed(
    child: Start, tmp_path: Path, kind: str, how: list[str]
) -> None:
    if reason := child(fill_again_and_again, tmp_path, kind, how).result():
        pytest.skip(reason)


def store_all_the_same(channel: Channel, folder: Path, kind: str) -> str | None:
    if (reason := why_not(kind)) is not None:
        return reason
    disk = Disk(folder, kind)
    disk.mount()
    log = disk.place / "events.wal"
    with pytest.raises(Unsupported, match=kind if kind == "btrfs" else "reflink=1"):
        WALWriter(log, mapped=True)

    def store() -> None:
        opening.check_stores = lambda directory: None
        writer = WALWriter(log, mapped=True)
        for _ in range(50):
            writer.put(b"key", bytes(4000))
        writer.sync()
        command("cp", "--reflink=auto", max(log.glob("*.wal")), disk.place / "copy")
        fill(disk.place)
        for _ in range(150):
            writer.put(b"key", bytes(4000))
            writer.sync()

    pid = os.fork()
    if pid == 0:
        in_child(store)
    assert reap(pid) == -signal.SIGBUS
    disk.close()
    return None


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_where_they_are_refused_a_full_disk_would_kill(child: Start, tmp_path: Path, kind: str) -> None:
    """After a copy that shares its blocks with the segment; on btrfs without one, too."""
    if reason := child(store_all_the_same, tmp_path, kind).result():
        pytest.skip(reason)
