"""Starting a thread, so that an exception from a signal handler reaches the caller as it is."""

import threading


def start(thread: threading.Thread) -> None:
    """`thread.start()`, which waits on a condition: interrupted there, its clean-up fails and hides the exception."""
    try:
        thread.start()
    except RuntimeError as error:
        if error.__context__ is None:
            raise  # the system has no thread to give
        raise error.__context__ from None
