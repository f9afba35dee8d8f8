"""Network file systems: a writer refuses them unless told otherwise, a reader does not care, the unknown passes."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import read_log
from walpool import Cursor, UnsafeLog, Unsupported, WALWriter
from walpool.cli.main import run
from walpool.system.calls import calls
from walpool.system.filesystems import network_file_system

NFS, EXT4 = 0x6969, 0xEF53
LINUX = {  # <linux/magic.h>, once more
    0x6969: "NFS", 0xFF534D42: "CIFS", 0xFE534D42: "SMB", 0x517B: "SMB", 0x01021997: "9p", 0x5346414F: "AFS",
    0x00C36400: "Ceph", 0x65735546: "FUSE", 0x0BD00BD0: "Lustre", 0x01161970: "GFS2", 0x7461636F: "OCFS2",
}  # fmt: skip
LOCAL = [EXT4, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630, 0x2FC12FC1, 0xF2F52010, 0x1234567, 0]


def statfs_of(kind: int) -> bytes:
    return struct.pack("@Q", kind) + bytes(112)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`on(type)`: every directory is on a file system of this type from now on."""
    return lambda kind: monkeypatch.setattr(calls, "statfs", lambda fd: statfs_of(kind))


@pytest.mark.parametrize(("kind", "name"), LINUX.items(), ids=LINUX.values())
def test_a_network_file_system_is_known_by_its_number(kind: int, name: str) -> None:
    assert network_file_system(statfs_of(kind), "linux") == name
    signed = struct.pack("@q", kind - (1 << 32) if kind >> 31 else kind)
    assert network_file_system(signed + bytes(112), "linux") == name, "a word with a sign"


@pytest.mark.parametrize("kind", LOCAL, ids=hex)
def test_a_local_or_an_unknown_file_system_passes(log: Path, on: Callable[[int], None], kind: int) -> None:
    on(kind)
    with WALWriter(log) as writer:
        assert writer.put(b"k", b"v") == 1


@pytest.mark.parametrize(("name", "found"), [(b"nfs", "NFS"), (b"smbfs", "SMB"), (b"apfs", None), (b"hfs", None)])
def test_macos_names_its_file_systems(name: bytes, found: str | None) -> None:
    assert network_file_system(bytes(72) + name.ljust(16, b"\0") + b"/mnt\0", "darwin") == found


@pytest.mark.parametrize("there", [False, True], ids=["new", "there already"])
def test_a_writer_on_a_network_file_system_is_refused_and_told_what_to_do(
    log: Path, on: Callable[[int], None], there: bool
) -> None:
    if there:
        WALWriter(log).close()
    before = {path: path.read_bytes() for path in log.rglob("*")}
    on(NFS)
    with pytest.raises(UnsafeLog, match=r"NFS.*local disk.*allow_network_fs=True") as refused:
        WALWriter(log)
    assert refused.value.path == str(log)
    assert {path: path.read_bytes() for path in log.rglob("*")} == before


def test_a_writer_that_is_told_so_opens_it_wherever_it_is_unpickled(log: Path, on: Callable[[int], None]) -> None:
    on(NFS)
    with WALWriter(log, allow_network_fs=True) as writer, pickle.loads(pickle.dumps(writer)) as copy:
        assert [writer.put(b"k", b"v"), copy.put(b"k", b"v")] == [1, 2]


def test_a_cursor_on_a_network_file_system_is_refused_unless_it_is_told_so(
    log: Path, on: Callable[[int], None]
) -> None:
    on(NFS)
    with WALWriter(log, allow_network_fs=True) as writer:
        writer.put(b"key", b"value")
        with pytest.raises(UnsafeLog, match="allow_network_fs=True"):
            Cursor(log, "etl")
        with Cursor(log, "etl", allow_network_fs=True) as cursor:
            assert len(list(cursor.follow(timeout=0))) == 1


@pytest.mark.parametrize("command", [["checkpoint", "LOG", "1"], ["prune", "LOG"]], ids=lambda words: words[0])
def test_a_command_that_opens_a_writer_can_be_told_so_too(
    log: Path, on: Callable[[int], None], capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
    words = [str(log) if word == "LOG" else word for word in command]
    on(NFS)
    assert run(words) == 74
    assert "--allow-network-fs" in capsys.readouterr().err
    assert run([*words, "--allow-network-fs"]) == 0


def test_a_reader_reads_a_copy_anywhere(log: Path, tmp_path: Path, on: Callable[[int], None]) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
    shutil.copytree(log, tmp_path / "copy")
    on(NFS)
    assert len(read_log(log)) == len(read_log(tmp_path / "copy")) == 1


def test_what_cannot_be_asked_passes(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(fd: int) -> bytes:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(calls, "statfs", forbidden)
    WALWriter(log).close()


def test_an_append_asks_nothing_and_an_opening_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    statfs = calls.statfs
    monkeypatch.setattr(calls, "statfs", lambda fd: (asked.append(fd), statfs(fd))[1])
    with WALWriter(log, size_limit=1000) as writer:
        for _ in range(50):
            writer.put(b"k", b"v" * 50)
    assert len(asked) == 1


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("place", ["/proc", "/dev/shm", "."])
def test_the_system_says_what_stat_says(place: str) -> None:
    """Against the tool that prints the same number."""
    if not Path(place).is_dir():
        pytest.skip(f"there is no {place}")
    said = subprocess.run(["stat", "-f", "-c", "%t", place], capture_output=True, text=True, timeout=60, check=True)
    fd = os.open(place, os.O_RDONLY)
    try:
        assert int.from_bytes(calls.statfs(fd)[:8], sys.byteorder) == int(said.stdout, 16)
    finally:
        os.close(fd)
    with pytest.raises(OSError) as refused:
        calls.statfs(fd)
    assert refused.value.errno == errno.EBADF


# Where stores into mapped files are allowed

XFS, REFLINK = 0x58465342, 1 << 20


def geometry(flags: int) -> Callable[[int, int, bytearray], int]:
    """What an XFS fills a struct xfs_fsop_geom_v1 with."""

    def ioctl(fd: int, number: int, filled: bytearray) -> int:
        assert (number, len(filled)) == (0x80705864, 112)
        struct.pack_into("@8I4Q16s2IiI", filled, 0, 4096, *[7] * 7, *[9] * 4, b"uuid" * 4, 0, 0, 0, flags)
        return 0

    return ioctl


@pytest.mark.skipif(sys.platform != "linux", reason="for Linux")
@pytest.mark.parametrize(
    ("kind", "name"),
    [(0x9123683E, "btrfs"), (0x2FC12FC1, "ZFS"), (0xCA451A4E, "bcachefs"), (0x794C7630, "overlay"), (XFS, "XFS"),
     (0x65735546, "FUSE"), (NFS, "NFS"), (0x1234567, "unknown kind (0x1234567)")],
)  # fmt: skip
def test_a_mapped_writer_is_refused_where_a_store_can_fail(
    log: Path, on: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, kind: int, name: str
) -> None:
    on(kind)
    monkeypatch.setattr(calls, "ioctl", geometry(REFLINK | 1))
    with pytest.raises(Unsupported) as refused:
        WALWriter(log, mapped=True, allow_network_fs=True)
    assert name in str(refused.value) and "leave mapped out" in str(refused.value)
    assert pickle.loads(pickle.dumps(refused.value)).args == refused.value.args
    with WALWriter(log, allow_network_fs=True) as writer:
        assert writer.put(b"k", b"v") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="for Linux")
@pytest.mark.parametrize("kind", [EXT4, 0x01021994, XFS], ids=["ext4", "tmpfs", "XFS"])
def test_a_mapped_writer_is_let_in_where_what_is_written_keeps_its_place(
    memory: Path, on: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    on(kind)
    monkeypatch.setattr(calls, "ioctl", geometry(REFLINK - 1))
    with WALWriter(memory / "log", mapped=True) as writer:
        assert writer.put(b"k", b"v") == 1


def test_a_mapped_writer_is_refused_where_nobody_can_tell(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(calls, "statfs", forbidden)
    with pytest.raises(Unsupported, match="EPERM" if sys.platform == "linux" else "another system"):
        WALWriter(log, mapped=True)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Unsupported, match="another system"):
        WALWriter(log, mapped=True)
