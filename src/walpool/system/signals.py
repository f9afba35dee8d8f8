"""Signals: what a program asks for when one comes."""

import signal
from collections.abc import Callable, Iterable
from types import FrameType

SIGTERM = int(signal.SIGTERM)


def on_signals(signals: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> None:
    """Call `handler` in the main thread when one of them comes. Raises ValueError outside of the main thread."""
    for number in signals:
        signal.signal(number, handler)
