"""Files and directories, opened so that nobody can trick us into another file.

Somebody who may write in a log's directory could put a symbolic link, a FIFO or a second name of another file where a
log's file should be, and have us write there. So nothing is opened by its path: the directory is opened once, and
everything in it through that descriptor, without following links (`forks.Descriptor` says how). What was opened is then
looked at, and not what the name led to a moment before.

Holds: what was opened is a regular file with one link whose owner we trust, or it is refused. An OSError comes out as
one of walpool's errors, with the path, except where a docstring says that it passes.
"""

import errno
import io
import os
import stat
import sys

from walpool.errors import IOFailed, LogNotFound, UnsafeLog
from walpool.system.calls import calls
from walpool.system.failures import no_directory, typed_error, typed_errors
from walpool.system.forks import Descriptor

READ = os.O_RDONLY
WRITE = os.O_RDWR
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL

# Owners of descriptors that other code has closed (see `was_closed`). They are kept for ever: when one of them is freed
# it closes its number, which is somebody else's file by now.
_others: list[io.FileIO] = []


class _Owner(io.FileIO):
    """Closes its descriptor when it is freed, and does not complain that nobody did before."""

    _finalizing = False  # hides the flag by which FileIO knows that it is being freed, and would warn


class File(Descriptor):
    """One open regular file, whose descriptor is closed exactly once, whatever interrupts.

    A signal handler may raise between any two bytecodes. If Python code closed the descriptor, such an exception could
    leave it open, perhaps with a lock on it, or have it closed a second time, when its number is another file's. So,
    once `owned`, the descriptor belongs to an object of C's, which closes it and forgets its number in one step, and at
    the latest when it is freed.
    """

    _owner: _Owner | None = None

    def was_closed(self) -> bool:
        """Whether other code has closed our descriptor. Then we let go of the number, which may be its own file's."""
        try:
            found = calls.fstat(self.fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                return True
            raise typed_error(error, self.path) from error
        if (found.st_dev, found.st_ino) == self.place:
            return False
        if self._owner is not None:
            _others.append(self._owner)
        self._owner, self.fd = None, -1
        return True

    def size(self) -> int:
        try:
            return calls.fstat(self.fd).st_size
        except OSError as error:
            raise typed_error(error, self.path) from error

    def read(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""
        length = max(0, length)
        with typed_errors(self.path):
            data = calls.pread(self.fd, length, offset)
            while len(data) < length:
                more = calls.pread(self.fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def read_into(self, view: memoryview, offset: int) -> int:
        """How many bytes of `view` were filled from `offset`; 0 at the end of the file."""
        try:
            return calls.preadv(self.fd, [view], offset)
        except OSError as error:
            raise typed_error(error, self.path) from error

    def write(self, data: bytes, offset: int) -> None:
        """All of `data` at `offset`, however many short writes that takes."""
        with typed_errors(self.path):
            write_rest(self.fd, data, offset, 0)

    def truncate(self, size: int) -> None:
        with typed_errors(self.path):
            calls.ftruncate(self.fd, size)

    def sync(self) -> None:
        """Make the bytes durable. An OSError here is final: the pages may be gone from the cache (see committer)."""
        if sys.platform == "darwin":
            calls.fcntl(self.fd, _F_FULLFSYNC)
        else:
            calls.fdatasync(self.fd)

    def owned(self) -> "File":
        """This file, its descriptor handed over to an object of C's: see the class."""
        fd, self.fd = self.fd, -1  # an interrupt may free the owner before we have it, and then it is closed already
        if fd not in self._lost:
            self._owner = _Owner(fd)
            self.fd = fd
        self.is_moving = False
        return self

    def close(self) -> None:
        if self._owner is None:
            super().close()
            return
        self.is_moving, self.fd = True, -1  # C's object has let go of its number before the system has
        try:
            self._owner.close()
        except OSError:
            pass
        self.is_moving = False


WIPED_BYTES = 1 << 20  # at once
_F_FULLFSYNC = 51  # macOS: fsync alone leaves the bytes in the drive's cache


def write_rest(fd: int, data: bytes, offset: int, written: int) -> None:
    """Finish a write of which `written` bytes are done: short writes happen on every file system."""
    view = memoryview(data)
    while written < len(view):
        count = calls.pwrite(fd, view[written:], offset + written)
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += count


def sync_directory(fd: int) -> None:
    """An OSError passes."""
    calls.fsync(fd)
    calls.fstat(fd)  # on an XFS that has met an error of its disk, this fails; the sync of a directory gives 0 there


def wipe(fd: int, start: int, end: int) -> bool:
    """Zero what a failed write left of itself between two offsets, if the system lets us.

    It is no matter when it does not: nobody reads past the published tail, and the next append writes there. The file
    keeps its length: whoever has it mapped is killed (SIGBUS) by a store where it was cut off.
    """
    try:
        end = min(end, calls.fstat(fd).st_size)
        for at in range(start, end, WIPED_BYTES):
            write_rest(fd, bytes(min(WIPED_BYTES, end - at)), at, 0)
    except OSError:
        return False
    return True


class Directory(Descriptor):
    """An open directory; every name in it is looked up through its descriptor."""

    is_ours = False  # set once we are to write here: then files that anyone may write are refused, too

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises LogNotFound when nothing is there, UnsafeLog when it is not a directory or a symlink."""
        super().__init__(os.path.abspath(os.fspath(path)))
        try:
            self._open(self.path, READ | os.O_DIRECTORY)
            self.stat = calls.fstat(self.fd)
            self.is_moving = False
        except FileNotFoundError:
            raise LogNotFound(self.path, "no such log") from None
        except OSError as error:
            raise no_directory(error, self.path) from error

    def replaced(self) -> str | None:
        """What the path leads to by now, when that is not this directory; None while it is, or nobody lets us look."""
        try:
            found = calls.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return "nothing is there any more"
        except NotADirectoryError:
            return "another kind of file is on the way to it"
        except PermissionError:
            return None  # rights that were given up after the opening are no finding
        except OSError as error:
            raise typed_error(error, self.path) from error
        if (found.st_dev, found.st_ino) == self.place:
            return None
        return "another directory is there" if stat.S_ISDIR(found.st_mode) else "something else is there"

    def again(self, name: str = ".") -> "Directory":
        """The same directory, or one in it, through a descriptor of its own. An OSError passes."""
        mine = Directory.__new__(Directory)
        Descriptor.__init__(mine, self.path if name == "." else self.join(name))
        mine._open(name, READ | os.O_DIRECTORY, dir_fd=self.fd)
        mine.stat = calls.fstat(mine.fd)
        mine.is_moving = False
        return mine

    def join(self, name: str) -> str:
        return f"{self.path}/{name}"

    def names(self) -> list[str]:
        """Through a descriptor of its own: a listing moves the offset that threads and forked children share."""
        # A Descriptor is closed in a child that is forked meanwhile, as is the copy of it that the listing makes.
        with typed_errors(self.path), Descriptor(self.path) as listing:
            listing._open(".", READ | os.O_DIRECTORY, dir_fd=self.fd)
            return calls.listdir(listing.fd)

    def open(self, name: str, flags: int = READ, mode: int = 0o600) -> File:
        """Open a file of the log; FileNotFoundError and FileExistsError pass, all else is typed.

        A file that is made gets exactly `mode`, whatever the umask.
        """
        file = File(self.join(name))
        try:
            file._open(name, flags, mode, dir_fd=self.fd)
            file.stat = calls.fstat(file.fd)
            if flags & os.O_CREAT:
                if stat.S_IMODE(file.stat.st_mode) != mode:
                    calls.fchmod(file.fd, mode)
                if self.stat.st_mode & stat.S_IWGRP and file.stat.st_gid != self.stat.st_gid:
                    self._give_to_group(file)
            self._check(file.stat, file.path)
            return file.owned()
        except BaseException as error:
            file.close()
            if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, FileExistsError)):
                raise typed_error(error, file.path) from error
            raise

    def _check(self, found: os.stat_result, path: str) -> None:
        """Raises UnsafeLog unless a file is regular, has one name, and belongs to somebody we trust.

        That is ourselves, the directory's owner, root, and, when a group may write in the directory, any member of it.
        """
        if not stat.S_ISREG(found.st_mode):
            raise UnsafeLog(path, "refused: not a regular file")
        if found.st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)  # removed just as we opened it
        if found.st_nlink != 1:
            names = f"the file has {found.st_nlink} hard links, so another name can change it"
            raise UnsafeLog(path, f"refused: {names}; put a copy in its place")
        shared = self.stat.st_mode & stat.S_IWGRP and found.st_gid == self.stat.st_gid
        if found.st_uid not in (os.geteuid(), self.stat.st_uid, 0) and not shared:
            raise UnsafeLog(
                path,
                f"refused: the file belongs to user {found.st_uid}, and neither to this process (user {os.geteuid()})"
                f" nor to the directory's owner ({self.stat.st_uid}), nor to a group that the directory is shared with:"
                " write as one user, or make the log with mode=0o660 in a group of all that write to it",
            )
        if (
            self.is_ours and found.st_mode & stat.S_IWOTH
        ):  # a reader may meet it: media without modes show every file so
            raise UnsafeLog(path, "refused: anyone can write to the file; take that permission away (chmod o-w)")

    def _give_to_group(self, file: File) -> None:
        """A log that a group shares: the others must be able to open what we make, whatever our own group is."""
        try:
            calls.fchown(file.fd, -1, self.stat.st_gid)
            file.stat = calls.fstat(file.fd)
        except PermissionError:
            raise UnsafeLog(
                file.path,
                f"the log is shared with group {self.stat.st_gid}, and this process may not give it a file: be a member"
                " of that group, or set the directory's setgid bit (chmod g+s) as its owner",
            ) from None

    def open_or_create(self, name: str, mode: int = 0o600) -> File:
        """Open for writing, made if need be; safe when several processes do it at once."""
        while True:
            try:
                return self.open(name, WRITE)
            except FileNotFoundError:
                pass
            try:
                return self.open(name, CREATE, mode)
            except FileExistsError:
                continue

    def identity(self, name: str) -> tuple[int, int] | None:
        """Device and inode that the name leads to now, or None when nothing is there: an error is no answer."""
        try:
            found = calls.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise typed_error(error, self.join(name)) from error
        return found.st_dev, found.st_ino

    def leads_to(self, name: str, opened: Descriptor) -> bool:
        """Whether the name still leads to what was opened, and not to nothing or another file."""
        return self.identity(name) == opened.place

    def size_of(self, name: str) -> int:
        with typed_errors(self.join(name)):
            return calls.stat(name, dir_fd=self.fd, follow_symlinks=False).st_size

    def sizes(self, names: list[str]) -> list[int]:
        """As `size_of` each, in half its time."""
        with typed_errors(self.path):
            return [calls.stat(name, dir_fd=self.fd, follow_symlinks=False).st_size for name in names]

    def rename(self, name: str, to: str) -> None:
        with typed_errors(self.join(name)):
            calls.rename(name, to, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def link(self, name: str, to: str) -> None:
        with typed_errors(self.join(name)):
            calls.link(name, to, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a name, if it is there."""
        with typed_errors(self.join(name)):
            try:
                calls.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                pass

    def make_directory(self, name: str) -> None:
        try:
            with typed_errors(self.join(name)):
                calls.mkdir(name, 0o700, dir_fd=self.fd)
                calls.chmod(name, 0o700, dir_fd=self.fd)  # whatever the umask
        except (FileExistsError, IOFailed) as error:
            if error.errno != errno.EEXIST:
                raise

    def mode_of_files(self) -> int:
        """That of the log's files: the directory's without the x bits."""
        return stat.S_IMODE(self.stat.st_mode) & 0o666

    def sync(self) -> None:
        sync_directory(self.fd)

    def check_ours(self) -> None:
        """Raises UnsafeLog unless we may write here: our directory, or one shared with our group."""
        uid = os.geteuid()
        if self.stat.st_uid != uid and not self.stat.st_mode & stat.S_IWGRP:
            raise UnsafeLog(
                self.path,
                f"the directory belongs to user {self.stat.st_uid}, and this process is user {uid}: write as that user,"
                " or share the log with a group of both (mode=0o660, chgrp, chmod g+rwxs)",
            )
        if self.stat.st_mode & stat.S_IWOTH:
            raise UnsafeLog(self.path, "anyone can write to the directory; take that permission away (chmod o-w)")
        self.is_ours = True
