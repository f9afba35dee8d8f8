"""The way to a log: its directory and those above it, made, looked for, and made durable.

A file that is on disk is lost all the same when its name, or that of a directory above it, is not: so whoever makes a
log syncs every directory on the way to it.
"""

import errno
import os
import stat

from walpool.errors import IOFailed, LogNotFound, UnsafeLog
from walpool.system.calls import calls
from walpool.system.failures import link_at, no_directory, typed_errors
from walpool.system.files import Directory, sync_directory
from walpool.system.forks import close_descriptor


def create_directory(path: str | os.PathLike[str], file_mode: int) -> None:
    """The log's directory, and its parents, unless they are there; `sync_path_to` makes them durable.

    `file_mode` is that of the files in it; the directory gets an x bit for each r bit, and, when a group may write, the
    setgid bit: whoever makes a file in it makes it for that group. Parents keep the umask's mode.
    """
    place = os.path.abspath(os.fspath(path))
    bits = file_mode | (file_mode & 0o444) >> 2 | (stat.S_ISGID if file_mode & stat.S_IWGRP else 0)
    with typed_errors(place):
        try:
            try:
                calls.mkdir(place, bits)
            except FileNotFoundError:
                _make_parents(os.path.dirname(place))
                calls.mkdir(place, bits)
        except FileExistsError:
            return
        calls.chmod(place, bits)  # whatever the umask


def _make_parents(path: str) -> None:
    try:
        calls.mkdir(path, 0o777)
    except FileNotFoundError:
        _make_parents(os.path.dirname(path))
        _make_parents(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise UnsafeLog(path, f"refused: {link_at(path, 'use that path') or 'not a directory'}") from None


def sync_path_to(directory: Directory) -> None:
    """Make every name on the way to a directory durable, on its own file system: also those that somebody made who was
    killed before that. Where we may not look, they are somebody else's to keep.
    """
    path = directory.path
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        try:
            fd = calls.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            continue
        try:
            if calls.fstat(fd).st_dev != directory.stat.st_dev:
                return
            sync_directory(fd)
        finally:
            close_descriptor(fd)


def is_directory(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a directory; raises LogNotFound when nothing is there."""
    place = os.path.abspath(os.fspath(path))
    try:
        found = calls.stat(place, follow_symlinks=False)
    except FileNotFoundError:
        raise LogNotFound(place, "no such log") from None
    except OSError as error:
        raise no_directory(error, place) from error
    if stat.S_ISLNK(found.st_mode):
        raise UnsafeLog(place, f"refused: {link_at(place, 'use that path') or 'a symbolic link'}")
    return stat.S_ISDIR(found.st_mode)


def parent_of(path: str | os.PathLike[str]) -> tuple[Directory, str]:
    """The directory in which `path` is or would be, wherever links above it lead, and the name in it."""
    place, name = split(path)
    if not name:
        raise UnsafeLog(place, "refused: it exists already")
    try:
        return Directory(os.path.realpath(place)), name
    except LogNotFound:
        raise UnsafeLog(os.path.join(place, name), "refused: there is no directory to make it in") from None


def make_directory(directory: Directory, name: str) -> None:
    """A directory for its owner alone. FileExistsError passes."""
    path = directory.join(name)
    try:
        with typed_errors(path):
            calls.mkdir(name, 0o700, dir_fd=directory.fd)
    except IOFailed as error:
        if error.errno == errno.EEXIST:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        raise


def subdirectory(directory: Directory, name: str) -> Directory:
    """A directory in a log's, of somebody we trust. FileNotFoundError passes."""
    path = directory.join(name)
    try:
        found = directory.again(name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise no_directory(error, path) from error
    shared = directory.stat.st_mode & stat.S_IWGRP and found.stat.st_gid == directory.stat.st_gid
    if found.stat.st_uid not in (os.geteuid(), directory.stat.st_uid, 0) and not shared:
        found.close()
        raise UnsafeLog(
            path,
            f"refused: the directory belongs to user {found.stat.st_uid}, and neither to this process (user"
            f" {os.geteuid()}) nor to the log's owner ({directory.stat.st_uid})",
        )
    if directory.is_ours and found.stat.st_mode & stat.S_IWOTH:
        found.close()
        raise UnsafeLog(path, "refused: anyone can write to the directory; take that permission away (chmod o-w)")
    found.is_ours = directory.is_ours
    return found


def make_subdirectory(directory: Directory, name: str) -> Directory:
    """The same, made if need be, for whomever the log is for: also where somebody was killed who made half of it."""
    try:
        make_directory(directory, name)
    except FileExistsError:
        pass
    made = subdirectory(directory, name)
    mode = stat.S_IMODE(directory.stat.st_mode)
    if made.stat.st_uid != os.geteuid() or stat.S_IMODE(made.stat.st_mode) == mode:
        return made
    try:
        with typed_errors(made.path):
            if mode & stat.S_IWGRP and made.stat.st_gid != directory.stat.st_gid:
                calls.fchown(made.fd, -1, directory.stat.st_gid)
            calls.fchmod(made.fd, mode)  # whatever the umask
            made.stat = calls.fstat(made.fd)
    except BaseException:
        made.close()
        raise
    return made


def remove_directory(directory: Directory, name: str) -> None:
    """An empty one, if it is there."""
    with typed_errors(directory.join(name)):
        try:
            calls.rmdir(name, dir_fd=directory.fd)
        except FileNotFoundError:
            pass


def set_mode(directory: Directory, mode: int) -> None:
    with typed_errors(directory.path):
        calls.fchmod(directory.fd, mode)


def leads_to(path: str, found: os.stat_result) -> bool | None:
    """Whether a path still leads to what was found there; None when we may not look, which says nothing."""
    try:
        now = calls.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)


def split(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The absolute directory and the name in it."""
    return os.path.split(os.path.abspath(os.fspath(path)))
