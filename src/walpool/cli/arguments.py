"""Arguments: the words after a command's name as values, each refused in a line that says what would be right."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import datetime
from enum import Enum
from typing import TypeVar

from walpool.options import MAX_SIZE_LIMIT
from walpool.read.when import nanoseconds
from walpool.system import clock

AGO = {"s": 1, "m": 60, "h": 3600, "d": 86_400}  # seconds
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MIN_SIZE_LIMIT = 4096
MOST_DIGITS = 40  # Python refuses to read thousands of them
_Choice = TypeVar("_Choice", bound=Enum)


def place(text: str) -> str:
    """A path. An empty one would be the directory that we happen to run in, and is a variable that was not set."""
    if not text:
        raise ArgumentTypeError("it is empty: name a path")
    return text


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    bounds = f"a number from {least}" + ("" if most is None else f" to {most}")

    def parse(text: str) -> int:
        if not _is_number(text) or int(text) < least or (most is not None and int(text) > most):
            raise ArgumentTypeError(f"{text!r} is not {bounds}")
        return int(text)

    return parse


WORKERS = number(1, 64)


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression, for text that is UTF-8, and has what is none as surrogates."""
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def lsn(text: str) -> int:
    if not _is_number(text) or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not an LSN: they count from 1")
    return int(text)


def seconds(least: float = 0.0, most: float | None = None) -> Callable[[str], float]:
    bounds = "a number of seconds" + ("" if most is None else f" from {least:g} to {most:g}")

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value < float("inf") or (most is not None and value > most):
            raise ArgumentTypeError(f"{text!r} is not {bounds}")
        return value

    return parse


def moment(text: str) -> int:
    """Ns since the epoch: `10m` ago (s, m, h or d), or a date and time as in ISO 8601, local without a zone."""
    count, unit = text[:-1], text[-1:]
    try:
        if unit in AGO and _is_number(count):
            return clock.time_ns() - int(count) * AGO[unit] * 10**9
        return nanoseconds(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise ArgumentTypeError(
            f"{text!r} is no moment: use 30s, 10m, 2h or 1d for so long ago, or a time such as 2026-11-27T12:00"
        ) from None


def size(text: str) -> int:
    """Bytes of a segment: `8388608`, `8M`, `8MiB`."""
    digits = text.rstrip("kKmMgGiIbB")
    unit = text[len(digits) :].lower().removesuffix("b").removesuffix("i")
    if not _is_number(digits) or unit not in UNITS:
        raise ArgumentTypeError(f"{text!r} is not a size: use bytes, or K, M or G of 1,024")
    found = int(digits) * UNITS[unit]
    if not MIN_SIZE_LIMIT <= found <= MAX_SIZE_LIMIT:
        raise ArgumentTypeError(f"{text} is not between {MIN_SIZE_LIMIT} bytes and {MAX_SIZE_LIMIT >> 30} GiB")
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def choice(kind: type[_Choice]) -> Callable[[str], _Choice]:
    """One of an Enum's values, with hyphens, or with the underscores that the value has."""

    def parse(text: str) -> _Choice:
        try:
            return kind(text.replace("-", "_"))
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not one of {', '.join(map(hyphened, kind))}") from None

    return parse


def hyphened(value: Enum) -> str:
    return str(value.value).replace("_", "-")


def choices(kind: type[Enum]) -> str:
    """For the help."""
    return "{" + ",".join(map(hyphened, kind)) + "}"
