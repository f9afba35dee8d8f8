"""The clock: wall time for stamps, monotonic time for deadlines. Order never depends on either."""

from walpool.system.calls import calls


def time_ns() -> int:
    """Nanoseconds since the epoch, by the wall clock."""
    return calls.time_ns()


def monotonic() -> float:
    """Seconds that only count up."""
    return calls.monotonic()


def monotonic_ns() -> int:
    """The same in nanoseconds: of the machine, and so the same for all its processes, until it is booted again."""
    return calls.monotonic_ns()


def sleep(seconds: float) -> None:
    calls.sleep(seconds)
