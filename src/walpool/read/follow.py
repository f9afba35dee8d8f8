"""Follow: keep reading as the log grows, looking at the published position more rarely the longer nothing comes.

After news the next look comes at once, then after an eighth of the time nothing came, from 50 us on. Once nothing came
for `ASLEEP_AFTER_S` the follower asks to be woken: whoever appends pays for that with a system call, so nobody asks for
it between entries that come fast. Where nobody can wake it, it goes on looking: waking every 10 ms alone took 0.9 % of
a core where this was measured (2 cores, virtual), so a longest pause of 30 ms keeps an idle follower under 1 %. While
nothing comes it also looks whether the log is still the one at the path.
"""

from collections.abc import Iterator
from typing import Protocol, TypeVar

from walpool.system import clock

SHORTEST_S = 50e-6
LONGEST_S = 30e-3
CHECK_S = 60e-3  # and a pause later: a log that was moved or removed is noticed within 100 ms
ASLEEP_AFTER_S = 2e-3
ASLEEP_S = 0.25  # so that is noticed within 0.3 s

E = TypeVar("E", covariant=True)


class Followed(Protocol[E]):
    @property
    def pending(self) -> Iterator[E]: ...
    @property
    def is_over(self) -> bool: ...
    def has_news(self, durable_only: bool) -> bool: ...
    def advance(self, durable_only: bool) -> bool: ...
    def wait(self, durable_only: bool, longest_s: float, look_again_s: float) -> None: ...
    def check_log(self) -> None: ...


def follow(reader: Followed[E], timeout_s: float | None, durable_only: bool) -> Iterator[E]:
    last_news = checked = clock.monotonic()
    while True:
        yield from reader.pending  # the reader keeps what a caller who stops here has not taken
        if reader.is_over:
            return
        if reader.has_news(durable_only) and reader.advance(durable_only):
            last_news = clock.monotonic()
            continue
        now = clock.monotonic()
        idle = now - last_news
        over = timeout_s is not None and idle >= timeout_s
        if over or now - checked >= CHECK_S:
            reader.check_log()
            checked = now
        if over:
            return
        pause = min(LONGEST_S, max(SHORTEST_S, idle / 8))
        left = ASLEEP_S if timeout_s is None else max(0.0, timeout_s - idle)
        if idle < ASLEEP_AFTER_S:
            clock.sleep(min(pause, left))
        else:
            reader.wait(durable_only, min(ASLEEP_S, left), min(pause, left))
