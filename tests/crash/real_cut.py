"""Power cuts of a real ext4: the file system is shut down under living writers, mounted again, and what is left judged.

The shutdown (an ioctl that ext4 and XFS have for this purpose) drops what is in memory, the journal's open transaction
included: what a cut leaves on a disk that keeps its promises. To those who have files open the device has died. The
control block is told of another boot, as it would be.

What FULL acknowledged counts if it came before the shutdown began: a sync that is under way then may return 0 for what
the shutdown drops, 6 to 24 ms later (3 of 2,000 cuts). A cut of the power lets nobody hear of such an answer.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.crash.sweep import in_child
from tests.support import Ack, Channel, Child, Ledger, judge, read_log, reap, until
from walpool import SyncMode, WALEntry, WALError, WALWriter
from walpool.system import processes

SHUTDOWN, FLUSH_LOG, DROP_LOG = 0x8004587D, 1, 2  # FS_IOC_SHUTDOWN and two of its ways
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
IMAGE_BYTES = 64 << 20
CUTS_PER_DISK = 10
WRITERS = (SyncMode.FULL, SyncMode.FULL, SyncMode.NORMAL, SyncMode.NORMAL)


class Disk:
    """An ext4 in a file, mounted where this process alone sees it; it goes with the process."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.place = folder / "mnt"
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        command("mkfs.ext4", "-q", "-F", self.image)
        self.device = command("losetup", "--find", "--show", self.image)
        self._fd = os.open(self.device, os.O_RDONLY | os.O_CLOEXEC)  # the device stays until this process ends,
        command("losetup", "--detach", self.device)  # and goes by itself then

    def mount(self) -> None:
        command("mount", self.device, self.place)

    def cut(self, way: int) -> None:
        fd = os.open(self.place, os.O_RDONLY)
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", way))
        os.close(fd)

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


def why_not() -> str | None:
    """Why this process cannot cut a disk; after this it has a mount namespace of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux can mount a disk image"
    if shutil.which("mkfs.ext4") is None:
        return "there is no mkfs.ext4"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return f"no mount namespace of one's own: {os.strerror(ctypes.get_errno())}"
    tried = subprocess.run(["losetup", "-f"], capture_output=True, text=True, timeout=60)
    if tried.returncode != 0:
        return f"no loop device: {tried.stderr.strip()}"
    return None


def cut_again_and_again(channel: Channel, folder: Path, seed: int, cuts: int) -> str | Counter[str]:
    """What was done, or why it could not be."""
    if (reason := why_not()) is not None:
        return reason
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    disk = Disk(folder)
    disk.mount()
    log = disk.place / "events.wal"
    told: dict[str, list[Ack]] = {}
    in_doubt: dict[str, list[int]] = {}
    for number in range(cuts):
        processes.boot_id = lambda number=number: (2 * number, seed)  # as after a boot; whoever is forked has it, too
        acks = folder / f"acks{number}"
        acks.mkdir()
        limit = chance.choice([20_000, 1 << 20])  # with a prepared segment, and without
        pids = [start_writer(log, acks, f"r{number}w{n}", mode, limit) for n, mode in enumerate(WRITERS)]
        enough = Ledger.ACK_BYTES * chance.randrange(1, 600)
        until(lambda acks=acks, enough=enough: size_of(acks) >= enough, "acknowledgements come")
        began = time.monotonic_ns()
        disk.cut(chance.choice([FLUSH_LOG, DROP_LOG, DROP_LOG]))
        for pid in pids:
            assert reap(pid) == 0, "each writer ends with an error of walpool's own"
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
        counts["cuts"] += 1
    disk.close()
    for acks in folder.glob("acks*"):
        shutil.rmtree(acks)
    return counts


def recovered(log: Path) -> list[WALEntry]:
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None, "another boot"
    entries = read_log(log)
    del writer  # the mapping of the control block goes with it, and the disk can be unmounted
    gc.collect()
    return entries


def size_of(acks: Path) -> int:
    return sum(path.stat().st_size for path in acks.iterdir())


def start_writer(log: Path, acks: Path, name: str, mode: SyncMode, limit: int) -> int:
    pid = os.fork()
    if pid == 0:
        in_child(lambda: append_until_it_dies(log, acks, name, mode, limit))
    return pid


def append_until_it_dies(log: Path, acks: Path, name: str, mode: SyncMode, limit: int) -> None:
    ledger = Ledger(acks, name)
    try:
        with WALWriter(log, mode, limit) as writer:
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
    while total["cuts"] < count:
        here = seed + total["cuts"]
        cuts = min(CUTS_PER_DISK, count - total["cuts"])
        cutting = Child("subprocess", cut_again_and_again, (folder, here, cuts))
        try:
            found = cutting.result()
        except AssertionError as error:
            repeat = (
                "python -c 'from pathlib import Path; from tests.crash.real_cut import prove;"
                f' prove(Path("cuts"), {here}, {cuts})\''
            )
            raise AssertionError(f"{error}\nseed {here}; repeat with: {repeat}") from error
        finally:
            cutting.end()
        assert isinstance(found, Counter), found
        total += found
    return total
