"""Starting a thread, so that an exception from a signal handler reaches the caller as it is."""

import sys
import threading


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
