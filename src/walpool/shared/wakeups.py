"""Wake-ups: who waits for the log to grow, or for a sync, sleeps until whoever brings that about wakes all who wait.

Two words of the control block for each kind of news: `waited for` is 1 when somebody sleeps, or is about to; `woken`
is what they sleep on, and changes when they are woken.

Holds: who waits reads `woken`, stores 1, and then looks whether the news is there already; who brings news makes it
visible, leaves its locks, and then looks at `waited for`. One of the two sees the other, in whatever order they come:
leaving a lock is a system call, and `_fence` is between the store and the look, so no processor puts the look first.
No two wake-ups store the same number in `woken`, so that none is lost between another's store and a sleeper's sleep.
A killed waiter leaves a 1, which costs the next who brings news one call. Where `sleep` is not the system's own, as
under gevent, whose other greenlets go on in it, nobody sleeps in any other way.
"""

from collections.abc import Callable
from types import BuiltinFunctionType

from walpool.shared.control import Control
from walpool.system import futex
from walpool.system.calls import calls
from walpool.system.shared_words import WORD
from walpool.system.threads import mutex


class Wakeups:
    """For news of one kind; `waited_for` is the number of its first word."""

    def __init__(self, control: Control, waited_for: int) -> None:
        self._words = control.words
        self._halves = control.halves
        self._waited_for = waited_for
        self._woken = 2 * (waited_for + 1)  # in halves
        self._address = futex.address_of(control.bytes, (waited_for + 1) * WORD)
        self._fence = mutex()

    def wait(self, is_there: Callable[[], object], longest_s: float, look_again_s: float) -> None:
        """Sleep until there may be news, at most `longest_s`; where nobody can be woken, `look_again_s`."""
        if self._address is None or not isinstance(calls.sleep, BuiltinFunctionType):
            calls.sleep(look_again_s)
            return
        woken = self._halves[self._woken]
        self._words[self._waited_for] = 1
        with self._fence:  # taking a lock is one instruction that orders what is before it and behind it
            pass
        if not is_there():
            futex.wait(self._address, woken, longest_s, look_again_s)

    def wake(self, number: int) -> None:
        """There is news, the `number`-th of its kind. Lock: none, but what makes the number one's own is done."""
        if self._words[self._waited_for] and self._address is not None:
            self._words[self._waited_for] = 0
            self._halves[self._woken] = number & 0xFFFFFFFF
            futex.wake(self._address)
