"""No space, no descriptors: for real, by limits of the process and a small file system."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
from pathlib import Path

import pytest

from tests.support import Ack, Channel, Start, append_op, judge, read_log
from walpool import IOFailed, LogFull, SyncMode, WALError, WALMetrics, WALWriter

MIB = 1 << 20


def append_until_full(writer: WALWriter, op: int, acks: list[Ack]) -> tuple[int, LogFull]:
    while True:
        try:
            lsns = append_op(writer, "w", op)
        except LogFull as full:
            return op, full
        acks.append(Ack(op, lsns.start, lsns.stop))
        op += 1


def fill_file_size_limit(channel: Channel, log: Path) -> None:
    acks: list[Ack] = []
    with WALWriter(log) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        op, full = append_until_full(writer, 1, acks)
        assert full.errno == errno.EFBIG, full
        for _ in range(3):
            again, _ = append_until_full(writer, op, acks)
            assert again == op, "it is refused as long as there is no room"
        judge(read_log(log), {"w": acks})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for later in range(op, op + 50):
            lsns = append_op(writer, "w", later)
            acks.append(Ack(later, lsns.start, lsns.stop))
        writer.sync()
    judge(read_log(log), {"w": acks})


def test_a_file_size_limit_is_a_full_log_until_it_is_lifted(child: Start, log: Path) -> None:
    child(fill_file_size_limit, log).result()


def mount_small(place: Path, size: str) -> str | None:
    """A file system of that size, seen by this process alone; why not, if it cannot be."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux can mount a small file system"
    clone_newns, ms_rec, ms_private = 0x20000, 0x4000, 1 << 18
    if libc.unshare(clone_newns) != 0 or libc.mount(b"none", b"/", None, ms_rec | ms_private, None) != 0:
        return f"no mount namespace of one's own: {os.strerror(ctypes.get_errno())}"
    place.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={size}".encode()) != 0:
        return f"mounting a tmpfs is refused: {os.strerror(ctypes.get_errno())}"
    return None


def fill_small_disk(channel: Channel, place: Path, mode: SyncMode, limit: int) -> str | None:
    if (why_not := mount_small(place, "1m")) is not None:
        return why_not
    acks: list[Ack] = []
    in_doubt: list[int] = []
    log = place / "events.wal"
    ballast = place / "ballast"
    ballast.write_bytes(bytes(300_000))
    with WALWriter(log, mode, limit) as writer, WALWriter(log, mode, limit) as other:
        op, full = append_until_full(writer, 1, acks)
        assert full.errno == errno.ENOSPC, full
        again, _ = append_until_full(other, op, acks)  # a smaller one may have fitted
        again, _ = append_until_full(writer, again, acks)
        judge(read_log(log), {"w": acks})
        with WALMetrics.attach(log) as metrics:
            assert metrics.snapshot().next_lsn == acks[-1].end_lsn
        ballast.unlink()
        for op in range(again, again + 100):
            lsns = append_op(writer if op % 2 else other, "w", op)
            acks.append(Ack(op, lsns.start, lsns.stop))
        writer.sync()
    judge(read_log(log), {"w": acks}, {"w": in_doubt})
    with WALWriter(log) as writer:
        assert writer.recovery_report is None
    return None


@pytest.mark.parametrize("limit", [64 * MIB, 20_000])
@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_a_full_disk_refuses_appends_until_there_is_room(
    child: Start, tmp_path: Path, mode: SyncMode, limit: int
) -> None:
    if why_not := child(fill_small_disk, tmp_path / "small", mode, limit).result():
        pytest.skip(why_not)


def open_on_a_full_disk(channel: Channel, place: Path) -> str | None:
    if (why_not := mount_small(place, "256k")) is not None:
        return why_not
    ballast = place / "ballast"
    log = place / "events.wal"
    refused = 0
    for left in range(0, 40_000, 4096):
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(max(0, file.tell() - left))
        try:
            with WALWriter(log) as writer:
                writer.put(b"k", b"v" * 100)
        except LogFull:
            refused += 1
        ballast.unlink()
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
    assert refused >= 1
    return None


def test_a_log_that_a_full_disk_has_no_room_for_is_refused_and_can_be_made_later(child: Start, tmp_path: Path) -> None:
    """With no space for the control block a store into it would be SIGBUS."""
    if why_not := child(open_on_a_full_disk, tmp_path / "small").result():
        pytest.skip(why_not)


def run_out_of_descriptors(channel: Channel, log: Path, mode: SyncMode) -> None:
    acks: list[Ack] = []
    refused = 0
    with WALWriter(log, mode, 1200) as writer:
        for op in range(1, 30):
            lsns = append_op(writer, "w", op)
            acks.append(Ack(op, lsns.start, lsns.stop))
        writer.sync()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # not one more
        for _ in range(3):
            try:
                writer.rotate()
            except WALError as error:
                assert isinstance(error, IOFailed) and error.errno == errno.EMFILE, error
                refused += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for op in range(30, 60):
            lsns = append_op(writer, "w", op)
            acks.append(Ack(op, lsns.start, lsns.stop))
        writer.rotate()
        writer.sync()
    assert refused == 3
    judge(read_log(log), {"w": acks})
    with WALWriter(log) as writer:
        assert writer.recovery_report is None


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_a_rotation_without_descriptors_is_refused_and_harms_nothing(child: Start, log: Path, mode: SyncMode) -> None:
    child(run_out_of_descriptors, log, mode).result()


def open_without_descriptors(channel: Channel, log: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for extra in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + extra, hard))
        try:
            WALWriter(log).close()
        except WALError as error:
            assert isinstance(error, IOFailed), error
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with WALWriter(log) as writer:
        assert writer.put(b"k", b"v") == 1


@pytest.mark.usefixtures("linux")
def test_an_opening_without_descriptors_is_refused_and_can_be_repeated(child: Start, log: Path) -> None:
    child(open_without_descriptors, log).result()
