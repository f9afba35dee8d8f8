"""The hook of forked children: whatever is open and shared with the parent is let go of there, before anything else.

Holds: a child keeps no descriptor, lock or mapping of its parent's; what a thread that only the parent has was just
opening is closed too. Nothing is unlocked: an unlock in the child would free the parent's lock.
"""

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    def after_fork(self) -> None:
        """Runs in a forked child: close inherited descriptors without unlocking, and mark yourself stale."""


_forkables: "WeakSet[Forkable]" = WeakSet()


def reopen_after_fork(handle: Forkable) -> None:
    """Ask for `handle.after_fork()` in every child that a fork makes."""
    _forkables.add(handle)


def _in_child() -> None:
    for handle in list(_forkables):
        try:
            handle.after_fork()
        except OSError:
            continue  # one that cannot be let go of keeps none of the others


os.register_at_fork(after_in_child=_in_child)
