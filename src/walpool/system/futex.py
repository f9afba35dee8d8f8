"""Sleeping on a word of shared memory until another process says that it has changed it: Linux's futex.

Holds: nobody sleeps longer than the time he gives, so a wake-up that never comes, because its sender was killed or is
of a version that sends none, costs time and nothing else. Where there is no such call, everything is as if nobody
ever woke anybody.
"""

import errno

from walpool.system.calls import calls

_AWAKE = {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}  # the word had changed, a signal came, the time is over


def address_of(memory: memoryview, offset: int) -> int | None:
    """Of a byte of a mapping that may be written; None: it may not, or this system knows no addresses."""
    try:
        import ctypes  # calls.py has loaded it, if it is there

        return ctypes.addressof(ctypes.c_uint32.from_buffer(memory, offset))
    except (ImportError, TypeError):
        return None


def wait(address: int, value: int, seconds: float, otherwise_s: float) -> None:
    """Sleep while the word at the address is `value`, until woken, at most `seconds`.

    Where the system cannot do that, sleep `otherwise_s`.
    """
    try:
        calls.futex_wait(address, value, seconds)
    except OSError as error:
        if error.errno not in _AWAKE:
            calls.sleep(otherwise_s)


def wake(address: int) -> None:
    """Wake all who sleep there."""
    try:
        calls.futex_wake(address)
    except OSError:
        pass  # they wake by themselves
