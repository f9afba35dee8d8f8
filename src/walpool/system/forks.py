"""The hook of forked children: whatever is open and shared with the parent is let go of there, before anything else.

Holds: a child keeps no descriptor, lock or mapping of its parent's; what a thread that only the parent has was just
opening is closed too. Nothing is unlocked: an unlock in the child would free the parent's lock.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

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
