"""The hook of forked children: whatever is open and shared with the parent is let go of there, before anything else.

Holds: a child keeps no descriptor, lock or mapping of its parent's; what a thread that only the parent has was just
given is closed too, before it has a variable: else the child would share a lock that this thread takes next, and keep
it when the parent is killed. Nothing is unlocked: an unlock in the child would free the parent's lock.
"""

import fcntl
import gc
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar
from weakref import WeakKeyDictionary

from walpool.system.calls import calls

_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_KEPT = os.O_NONBLOCK if sys.platform == "darwin" else os.O_NONBLOCK | os.O_NOFOLLOW  # what the system tells of them

_Handle = TypeVar("_Handle")


class Forkable(Protocol):
    def after_fork(self) -> None:
        """Runs in a forked child: close inherited descriptors without unlocking, and mark yourself stale."""


_hooks: "WeakKeyDictionary[Any, Callable[[Any], None]]" = WeakKeyDictionary()


def reopen_after_fork(handle: Forkable) -> None:
    """Ask for `handle.after_fork()` in every child that a fork makes."""
    in_forked_children(handle, type(handle).after_fork)


def in_forked_children(handle: _Handle, hook: Callable[[_Handle], None]) -> None:
    """Ask for `hook(handle)` there: for a class that users see, whose hook is not for them."""
    _hooks[handle] = hook


def _in_child() -> None:
    for handle, hook in list(_hooks.items()):
        try:
            hook(handle)
        except OSError:
            continue  # one that cannot be let go of keeps none of the others


os.register_at_fork(after_in_child=_in_child)


@contextmanager
def kept_by_children(fd: int) -> Iterator[int]:
    """A duplicate of a descriptor of ours that children keep, and with it the lock that it carries."""
    duplicate = calls.dup(fd)
    try:
        yield duplicate
    finally:
        calls.close(duplicate)


def leave_parent(keep: Collection[int]) -> None:
    """For a child that is to be a process by itself: it lets go of what was the parent's, but for `keep` and stderr.

    Else it would keep pipes open for whose end somebody waits. What holds the numbers of what is closed is frozen, so
    that the collector does not close them once more, when they are something else's.
    """
    gc.freeze()
    os.setpgid(0, 0)  # a Ctrl-C at the terminal is for the parent alone
    first = 3
    for number in sorted(keep):
        os.closerange(first, number)
        first = number + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    os.close(nothing)


class Descriptor:
    """One open file or directory, closed in a forked child, even when the system gives it this very moment."""

    fd = -1
    stat: os.stat_result  # as it was when opened: device, inode, owner, size
    is_moving = False  # between the system and `fd`: open, and known to nobody
    _lost: Collection[int] = ()  # closed in the child of a signal handler, which goes on with what we did

    def __init__(self, path: str) -> None:
        self.path = path
        reopen_after_fork(self)

    @property
    def place(self) -> tuple[int, int]:
        """Device and inode of what was opened."""
        return self.stat.st_dev, self.stat.st_ino

    def _open(self, name: str, flags: int, mode: int = 0, dir_fd: int | None = None) -> None:
        """O_NOFOLLOW: nobody tricks us into another file. O_NONBLOCK: a FIFO would block for ever."""
        self.is_moving = True
        fd = calls.open(name, flags | _SAFE, mode, dir_fd=dir_fd)
        self.fd = -1 if fd in self._lost else fd

    def close(self) -> None:
        self.is_moving = True
        fd, self.fd = self.fd, -1
        close_descriptor(fd)
        self.is_moving = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.fd >= 0:  # at the end of a process, when it may be closed, the functions of this module may be gone
            self.close()

    def after_fork(self) -> None:
        if self.is_moving:
            self._lost = close_all_of(self.path)
        self.close()


def close_descriptor(fd: int) -> None:
    """Let go of a descriptor. It is gone even when the system reports an error; what is on disk, only a sync tells."""
    try:
        if fd >= 0:
            calls.close(fd)
    except OSError:
        pass


def close_all_of(path: str) -> set[int]:
    """Those that were opened as we open, which others hardly do; a file that is gone by now carries no lock."""
    place = calls.stat(path, follow_symlinks=False)
    closed = set()
    for name in calls.listdir("/dev/fd"):
        try:
            flags = calls.fcntl(int(name), fcntl.F_GETFL)
            if flags & _KEPT == _KEPT and os.path.samestat(calls.fstat(int(name)), place):
                closed.add(int(name))
                calls.close(int(name))
        except OSError:
            continue  # the listing's own
    return closed
