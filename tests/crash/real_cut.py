"""Power cuts of a real ext4, XFS and Btrfs, under living writers: mounted again, and what is left is judged.

Either the file system is shut down by an ioctl that ext4 and XFS have for this purpose. It drops what is in memory, the
journal's open transaction included: what a cut leaves on a disk that keeps its promises. Or the loop device dies: it
takes no more writes, whatever the file system has not sent yet. To those who have files open the device has died in
both: calls fail, and a store into a page of the control block that was on disk already may be SIGBUS. The control block
is told of another boot, as it would be.

What FULL acknowledged counts if it came before the cut began: a sync that is under way then may return 0 for what
the shutdown drops, 6 to 24 ms later (3 of 2,000 cuts). A cut of the power lets nobody hear of such an answer.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import itertools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.crash.sweep import in_child
from tests.crash.taps import Call, tapped
from tests.oracle import second
from tests.support import Ack, Channel, Child, Ledger, judge, read_log, reap, until
from walpool import SyncMode, WALEntry, WALError, WALWriter
from walpool.system import processes
from walpool.upkeep.checkpoint import checkpoint

SHUTDOWN, FLUSH_LOG, DROP_LOG = 0x8004587D, 1, 2  # FS_IOC_SHUTDOWN and two of its ways
DIES = 0  # the device does
SET_STATUS, GET_STATUS = 0x4C04, 0x4C05  # LOOP_..._STATUS64, of a struct loop_info64
STATUS_BYTES, SIZE_LIMIT_AT = 232, 32
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
KINDS = {"ext4": 64 << 20, "xfs": 300 << 20, "btrfs": 120 << 20}  # with the least bytes that mkfs takes, about
WAYS = {"ext4": (FLUSH_LOG, DROP_LOG, DROP_LOG), "xfs": (FLUSH_LOG, DROP_LOG, DIES), "btrfs": (DIES,)}
CUTS_PER_DISK = 10
WRITERS = (SyncMode.FULL, SyncMode.FULL, SyncMode.NORMAL, SyncMode.NORMAL)
MAPPED = {"ext4": 3}  # which of them stores, where that is allowed: what FULL acknowledges behind it covers it, too


class Disk:
    """A file system in a file, mounted where this process alone sees it; it goes with the process."""

    def __init__(self, folder: Path, kind: str, *how: str) -> None:
        self.image = folder / "disk.img"
        self.place = folder / "mnt"
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(KINDS[kind])
        command(f"mkfs.{kind}", "-q", *how, "-F" if kind == "ext4" else "-f", self.image)
        self.device = command("losetup", "--find", "--show", self.image)
        self._fd = os.open(self.device, os.O_RDONLY | os.O_CLOEXEC)  # the device stays until this process ends,
        command("losetup", "--detach", self.device)  # and goes by itself then

    def mount(self) -> None:
        self._limit(0)
        command("mount", self.device, self.place)

    def cut(self, way: int) -> None:
        if way == DIES:
            self._limit(512)  # a sector: no superblock is written any more
            return
        fd = os.open(self.place, os.O_RDONLY)
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", way))
        os.close(fd)

    def _limit(self, size: int) -> None:
        """To the device's first bytes: whatever is behind them is an I/O error. 0: all there are."""
        status = bytearray(STATUS_BYTES)
        fcntl.ioctl(self._fd, GET_STATUS, status)
        struct.pack_into("<Q", status, SIZE_LIMIT_AT, size)
        fcntl.ioctl(self._fd, SET_STATUS, status)

    def unmount(self) -> None:
        until(lambda: command("umount", self.place, check=False) == "", "what the dead had open is closed")

    def close(self) -> None:
        self.unmount()
        os.close(self._fd)
        self.image.unlink()
        self.place.rmdir()


def command(*words: object, check: bool = True) -> str:
    """What it prints. Unless `check`, complaints are part of that."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
    return done.stdout.strip() + done.stderr.strip()


def why_not(kind: str = "ext4") -> str | None:
    """Why this process cannot cut such a disk; after this it has a mount namespace of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux can mount a disk image"
    if shutil.which(f"mkfs.{kind}") is None:
        return f"there is no mkfs.{kind}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return f"no mount namespace of one's own: {os.strerror(ctypes.get_errno())}"
    tried = subprocess.run(["losetup", "-f"], capture_output=True, text=True, timeout=60)
    if tried.returncode != 0:
        return f"no loop device: {tried.stderr.strip()}"
    if kind not in Path("/proc/filesystems").read_text().split():
        subprocess.run(["modprobe", "--quiet", kind], check=False, timeout=60)
        if kind not in Path("/proc/filesystems").read_text().split():
            return f"this kernel has no {kind}"
    return None


def cut_again_and_again(channel: Channel, folder: Path, seed: int, cuts: int, kind: str) -> str | Counter[str]:
    """What was done, or why it could not be."""
    if (reason := why_not(kind)) is not None:
        return reason
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    disk = Disk(folder, kind)
    disk.mount()
    log = disk.place / "events.wal"
    told: dict[str, list[Ack]] = {}
    in_doubt: dict[str, list[int]] = {}
    for number in range(cuts):
        processes.boot_id = lambda number=number: (2 * number, seed)  # as after a boot; whoever is forked has it, too
        acks = folder / f"acks{number}"
        acks.mkdir()
        limit = chance.choice([20_000, 1 << 20])  # with a prepared segment, and without
        pids = [
            start_writer(log, acks, f"r{number}w{n}", mode, limit, MAPPED.get(kind) == n)
            for n, mode in enumerate(WRITERS)
        ]
        enough = Ledger.ACK_BYTES * chance.randrange(1, 600)
        until(lambda acks=acks, enough=enough: size_of(acks) >= enough, "acknowledgements come")
        began = time.monotonic_ns()
        disk.cut(chance.choice(WAYS[kind]))
        for pid in pids:
            code = reap(pid)
            assert code in (0, -signal.SIGBUS), f"each writer ends with an error of walpool's own, and not with {code}"
            counts["killed by SIGBUS"] += code < 0
        disk.unmount()
        disk.mount()
        processes.boot_id = lambda number=number: (2 * number + 1, seed)
        entries = recovered(log)
        acknowledged = Ledger.read_all(acks)
        for author, theirs in acknowledged.items():
            mode = WRITERS[int(author[-1])]
            if mode is SyncMode.FULL:
                kept = [ack for ack in theirs if ack.after_ns < began]
            else:
                kept = [ack for ack in theirs if ack.end_lsn <= len(entries) + 1]
            told[author] = kept
            in_doubt[author] = [*(ack.op for ack in theirs[len(kept) :]), theirs[-1].op + 1 if theirs else 0]
            counts[mode.value] += len(theirs)
            counts[f"{mode.value} {'too late' if mode is SyncMode.FULL else 'lost'}"] += len(theirs) - len(kept)
        judge(entries, told, in_doubt)
        second.agree(log, entries)
        counts["cuts"] += 1
    disk.close()
    for acks in folder.glob("acks*"):
        shutil.rmtree(acks)
    return counts


CHANGES = ("pwrite", "fdatasync", "fsync", "rename", "unlink")  # after one of these calls the device dies
RETURNED, RAISED = 0, 1


def checkpoint_as_it_dies(channel: Channel, folder: Path, kind: str) -> str | Counter[str]:
    """A checkpoint on a device that dies at each of its calls in turn: what returned has to be there after a boot.

    Somebody else's sync meets the error first: from then on a dead XFS says 0 to the sync of a directory. So does ext4,
    to the sync of what the same transaction of its journal has lost, and nothing tells: there nobody else syncs.
    """
    if (reason := why_not(kind)) is not None:
        return reason
    counts: Counter[str] = Counter()
    disk = Disk(folder, kind)
    disk.mount()
    log = disk.place / "events.wal"
    with WALWriter(log, SyncMode.FULL) as writer:
        for lsn in range(1, 101):
            writer.put(b"key", b"%d" % lsn)
    for n in itertools.count(1):
        disk.unmount()
        disk.mount()
        pid = os.fork()
        if pid == 0:
            os._exit(state_checkpoint_and_die(disk, log, n, others=kind != "ext4"))
        code = reap(pid)
        assert code in (RETURNED, RAISED, -signal.SIGBUS), code
        disk.unmount()
        disk.mount()
        found = checkpoint(log)
        assert found == n or (code != RETURNED and found in (0, n - 1)), f"call {n}: {found} after {code}"
        counts["returned" if code == RETURNED else "raised"] += 1
        if not (disk.place / "died").exists():
            break
        shutil.rmtree(disk.place / "died")
    disk.close()
    return counts


def state_checkpoint_and_die(disk: Disk, log: Path, n: int, *, others: bool) -> int:
    """LSN n; after the n-th call that changes something the device is dead."""
    place = os.open(disk.place, os.O_RDONLY)
    os.mkdir(disk.place / "died")
    os.fsync(place)
    called = 0

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal called
        done = call(*args, **kwargs)
        called += name in CHANGES
        if name in CHANGES and called == n:
            disk.cut(DIES)
            if others:
                with suppress(OSError):
                    os.mkdir(disk.place / "died" / "more")
                    os.fsync(place)
        return done

    with WALWriter(log) as writer, tapped(tap):
        try:
            writer.checkpoint(n)
        except WALError:
            os._exit(RAISED)  # nothing of a dead disk is stored to any more
        if called < n:
            os.rmdir(disk.place / "died")
        os._exit(RETURNED)


def recovered(log: Path) -> list[WALEntry]:
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None, "another boot"
    entries = read_log(log)
    del writer  # the mapping of the control block goes with it, and the disk can be unmounted
    gc.collect()
    return entries


def size_of(acks: Path) -> int:
    return sum(path.stat().st_size for path in acks.iterdir())


def start_writer(log: Path, acks: Path, name: str, mode: SyncMode, limit: int, mapped: bool) -> int:
    pid = os.fork()
    if pid == 0:
        in_child(lambda: append_until_it_dies(log, acks, name, mode, limit, mapped))
    return pid


def append_until_it_dies(log: Path, acks: Path, name: str, mode: SyncMode, limit: int, mapped: bool) -> None:
    ledger = Ledger(acks, name)
    try:
        with WALWriter(log, mode, limit, mapped=mapped) as writer:
            for op in range(100_000):
                ledger.append(writer, op)
                if mode is SyncMode.NORMAL and op % 50 == 49:
                    writer.sync()  # else memory alone may take all that comes before the cut is noticed
    except WALError:
        return
    raise AssertionError("the disk is gone, and appends go on")


def prove(folder: Path, seed: int, count: int) -> Counter[str]:
    """`count` cuts, of a new disk now and then: what is judged grows with the log."""
    total: Counter[str] = Counter()
    kinds = [kind for kind in KINDS if shutil.which(f"mkfs.{kind}")]
    disks = 0
    while total["cuts"] < count:
        here, kind = seed + total["cuts"], kinds[disks % len(kinds)]
        cuts = min(CUTS_PER_DISK, count - total["cuts"])
        cutting = Child("subprocess", cut_again_and_again, (folder, here, cuts, kind))
        try:
            found = cutting.result()
        except AssertionError as error:
            repeat = (
                "python -c 'from pathlib import Path; from tests.crash.real_cut import cut_again_and_again as cut;"
                f' cut(None, Path("cuts"), {here}, {cuts}, "{kind}")\''
            )
            raise AssertionError(f"{error}\nseed {here}; repeat with: {repeat}") from error
        finally:
            cutting.end()
        if isinstance(found, str) and len(kinds) > 1:
            kinds.remove(kind)  # mkfs is there, and what it makes cannot be mounted
            continue
        assert isinstance(found, Counter), found
        disks += 1
        total += found
        total[f"cuts of {kind}"] += found["cuts"]
    return total
