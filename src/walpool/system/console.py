"""The console: the environment a command was started in, and what is left of its output when nobody reads it."""

import os
import sys


def setting(name: str) -> str:
    """The environment variable, or an empty string."""
    return os.environ.get(name, "")


def drop_output() -> None:
    """Send what is still buffered for stdout and stderr nowhere: at exit Python would flush it into the broken pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for stream in (sys.stdout, sys.stderr):
            try:
                os.dup2(nowhere, stream.fileno())
            except (OSError, ValueError, AttributeError):
                pass  # closed, or not a file at all
    finally:
        os.close(nowhere)
