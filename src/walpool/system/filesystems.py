"""Which file system a directory is on, and whether it is one that several machines share.

Locks and shared mappings are kept by one kernel: between machines that mount the same directory they do not hold, or
hold only now and then. A file system that is not in the tables passes: a new one is more often local than shared.
"""

import os
import sys
from typing import NamedTuple

import psutil

from walpool.errors import UnsafeLog
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
