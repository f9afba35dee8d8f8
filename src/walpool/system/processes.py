"""Which boot this is, random bits, and what a process id means to a person.

Holds: nothing here decides who is alive: process ids are used again, and mean something else in another container. Only
locks tell (locks.py). The boot id says whether shared memory, and the page cache, are still those of who wrote them.
"""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from walpool.errors import UnsafeLog
from walpool.system.calls import calls


def boot_id() -> tuple[int, int]:
    """128 bits that differ after every boot, as two words. Raises UnsafeLog where nobody tells them."""
    global _boot_id
    if _boot_id is None:
        _boot_id = _read_boot_id()
    return _boot_id


_boot_id: tuple[int, int] | None = None
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def _read_boot_id() -> tuple[int, int]:
    if sys.platform == "linux":
        try:
            text = Path(_BOOT_ID).read_text().strip().replace("-", "")
        except OSError as error:
            raise UnsafeLog(
                _BOOT_ID,
                f"cannot be read ({error.strerror}), so nobody knows whether the log's control block is of this boot:"
                " mount /proc there (with systemd: ProcSubset=all), or import walpool before the chroot",
            ) from error
        number = int(text, 16)
    else:
        number = int.from_bytes(hashlib.blake2b(_boot_session(), digest_size=16).digest(), "big")
    return number >> 64, number & (1 << 64) - 1


def _boot_session() -> bytes:
    """macOS: kern.bootsessionuuid; unlike the boot time it does not move when the clock is set."""
    import ctypes

    size = ctypes.c_size_t(64)
    value = ctypes.create_string_buffer(size.value)
    if ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", value, ctypes.byref(size), None, 0) != 0:
        return str(psutil.boot_time()).encode()
    return value.value


def pid() -> int:
    return calls.getpid()


def identity() -> tuple[int, int, int]:
    """Process id, start (ns) and pid namespace: a later process with the same number differs in these; 0 is unknown."""
    try:
        started_ns = int(psutil.Process().create_time() * 1e9)
    except psutil.Error:
        started_ns = 0
    return pid(), started_ns, pid_namespace()


def pid_namespace() -> int:
    """Ids of processes mean something only to processes with the same one."""
    try:
        return calls.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def random_word() -> int:
    """64 random bits from the system, never 0 in either half."""
    while True:
        word = int.from_bytes(os.urandom(8), "little")
        if word & 0xFFFFFFFF and word >> 32:
            return word


def describe(process_id: int) -> str:
    """The process's name for people, or an empty string: it may be gone, foreign, or in another pid namespace."""
    try:
        return psutil.Process(process_id).name()
    except (psutil.Error, ValueError, OverflowError):
        return ""


class Usage:
    """What processes use, for people: CPU since the last look (per cent of a core) and memory (bytes)."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}

    def look(self, process_ids: Iterable[int]) -> dict[int, tuple[float, int]]:
        """Of each that is there and may be asked."""
        known, self._processes = self._processes, {}
        found = {}
        for process_id in process_ids:
            try:
                process = known.get(process_id) or psutil.Process(process_id)
                with process.oneshot():
                    found[process_id] = process.cpu_percent(), process.memory_info().rss
                self._processes[process_id] = process
            except (psutil.Error, ValueError, OverflowError):
                continue
        return found


try:
    boot_id()  # while it can be read: whoever opens a log may have given up the right to by then
except UnsafeLog:
    pass


def cores() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_open_files() -> int:
    """How many descriptors this process may have."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
