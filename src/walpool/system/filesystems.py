"""Which file system a directory is on, and whether it is one that several machines share.

Locks and shared mappings are kept by one kernel: between machines that mount the same directory they do not hold, or
hold only now and then. A file system that is not in the tables passes: a new one is more often local than shared.
"""

import errno
import os
import struct
import sys
from typing import NamedTuple

import psutil

from walpool.errors import UnsafeLog, Unsupported
from walpool.system.calls import calls
from walpool.system.files import Directory

# struct statfs begins with the type, a word; <linux/magic.h> and the sources of those that are not in it.
_LINUX = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x01021997: "9p",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x00C36400: "Ceph",
    0x65735546: "FUSE",
    0x0BD00BD0: "Lustre",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x73757245: "Coda",
    0x47504653: "GPFS",
    0x20030528: "OrangeFS",
    0x19830326: "BeeGFS",
    0xAAD7AAEA: "PanFS",
    0x786F4256: "a VirtualBox shared folder",
}
# macOS names it, in 16 bytes behind those of <sys/mount.h> that are all numbers.
_DARWIN = {
    b"nfs": "NFS",
    b"smbfs": "SMB",
    b"afpfs": "AFP",
    b"webdav": "WebDAV",
    b"macfuse": "FUSE",
    b"osxfuse": "FUSE",
}
_DARWIN_NAME_AT, _DARWIN_NAME_END = 72, 88

# Where what was written keeps its place: a store into it needs no room, so that it does not fail for want of any.
_IN_PLACE = {0xEF53: "ext4", 0x01021994: "tmpfs"}
_XFS = 0x58465342  # likewise, but for a block that a file shares with its copy: `cp` makes such copies
_ELSEWHERE = {
    _XFS: "an XFS with reflink=1",
    0x9123683E: "btrfs",
    0x2FC12FC1: "ZFS",
    0xCA451A4E: "bcachefs",
    0xF2F52010: "F2FS",
    0x794C7630: "overlay, as the files of a container are",
}
# XFS_IOC_FSGEOMETRY_V1: its struct, where its flags are, and the one that says reflink=1.
_XFS_GEOMETRY, _XFS_GEOMETRY_BYTES, _XFS_FLAGS, _XFS_REFLINK = 0x80705864, 112, struct.Struct("=92x I"), 1 << 20


def network_file_system(statfs: bytes, platform: str = sys.platform) -> str | None:
    """The name of the network file system that a struct statfs tells of, or None."""
    if platform == "darwin":
        return _DARWIN.get(statfs[_DARWIN_NAME_AT:_DARWIN_NAME_END].split(b"\0")[0])
    return _LINUX.get(int.from_bytes(statfs[:8], sys.byteorder) & 0xFFFFFFFF)  # a signed word on some machines


def check_local(directory: Directory) -> None:
    """Raises UnsafeLog on a network file system."""
    try:
        found = network_file_system(calls.statfs(directory.fd))
    except OSError:
        return  # a sandbox that forbids the call; whatever else ails the directory, the next call says
    if found is not None:
        raise UnsafeLog(
            directory.path,
            f"the directory is on {found}, a file system that several machines may share, and neither locks nor shared"
            " memory hold between machines: move the log to a local disk, or, if only this machine ever opens it, pass"
            " allow_network_fs=True (a command: --allow-network-fs); docs/durability.md says what is lost",
        )


def check_stores(directory: Directory) -> None:
    """Raises Unsupported where a store into a mapped file can fail, or nobody knows whether it can: that would kill."""
    found = _may_fail(directory)
    if found is not None:
        raise Unsupported(
            f"{directory.path}: mapped=True: the directory is on {found}: where a store fails there, the process is"
            " killed; leave mapped out, or move the log to ext4, to tmpfs, or to an XFS that was made with reflink=0"
        )


def _may_fail(directory: Directory) -> str | None:
    """What it is on, where stores may fail."""
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return "another system than Linux of 64 bits"
    try:
        statfs = calls.statfs(directory.fd)
        kind = int.from_bytes(statfs[:8], sys.byteorder) & 0xFFFFFFFF
        if kind in _IN_PLACE or (kind == _XFS and not _shares_blocks(directory)):
            return None
    except OSError as error:
        return f"a file system of which nothing can be learnt ({errno.errorcode.get(error.errno or 0, error)})"
    return _ELSEWHERE.get(kind) or network_file_system(statfs) or f"a file system of an unknown kind ({kind:#x})"


def _shares_blocks(directory: Directory) -> bool:
    geometry = bytearray(_XFS_GEOMETRY_BYTES)
    calls.ioctl(directory.fd, _XFS_GEOMETRY, geometry)
    (flags,) = _XFS_FLAGS.unpack_from(geometry)
    return bool(flags & _XFS_REFLINK)


class Volume(NamedTuple):
    """Where a path is, or would be: the nearest directory above it that there is."""

    directory: str
    kind: str  # as the system calls it: ext4; empty where it does not say
    shared: str  # the name of a network file system, or empty
    free_bytes: int


def volume_of(path: str) -> Volume:
    """For people: nothing is decided by it. Raises OSError where nobody may look."""
    place = os.path.realpath(path)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    try:
        fd = calls.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            shared = network_file_system(calls.statfs(fd)) or ""
        finally:
            calls.close(fd)
    except OSError:
        shared = ""
    mounted = [
        (len(each.mountpoint), at, each.fstype)  # of two at one place, the later one is seen
        for at, each in enumerate(psutil.disk_partitions(all=True))
        if os.path.commonpath([each.mountpoint, place]) == each.mountpoint
    ]
    return Volume(place, max(mounted)[2] if mounted else "", shared, psutil.disk_usage(place).free)
