"""Helper threads: started so that an exception from a signal handler reaches the caller as it is, and joined."""

import sys
import threading
from collections.abc import Callable
from typing import Any

from walpool.system.calls import calls

STARTING_S = 0.1  # how long a thread whose start was interrupted may take until it runs, if it ever does
LOOK_AGAIN_S = 1e-3


class Helpers:
    """The helper threads of one object. `join` waits for the end of each, whatever interrupted its start."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._interrupted: list[threading.Thread] = []

    def thread(self, target: Callable[..., None], name: str, *args: Any) -> threading.Thread:
        """One that is not started yet."""
        return threading.Thread(target=target, args=args, name=name, daemon=True)

    def start(self, thread: threading.Thread) -> None:
        self._threads = [each for each in self._threads if each.is_alive()]
        try:
            start(thread)
        except BaseException:
            self._interrupted.append(thread)
            raise
        self._threads.append(thread)

    def join(self) -> None:
        """When they know that they should end. Not for our own, when the last reference to a writer goes in it."""
        give_up = calls.monotonic() + STARTING_S
        for thread in self._interrupted:
            while thread.ident is None and calls.monotonic() < give_up:
                calls.sleep(LOOK_AGAIN_S)
        for thread in (*self._threads, *self._interrupted):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join()


def start(thread: threading.Thread) -> None:
    """`thread.start()`, which waits on a condition: interrupted there, its clean-up fails and hides the exception."""
    handled = sys.exception()  # by our caller, before anything happened here
    try:
        thread.start()
    except RuntimeError as error:
        if error.__context__ is handled:
            raise  # the system has no thread to give
        assert error.__context__ is not None
        raise error.__context__ from None
