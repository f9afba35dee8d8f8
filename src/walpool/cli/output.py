"""Output: what the commands share when they print a result, for people or as JSON, and bytes as text and back.

Holds: text on one line stays on one line, and nothing in an entry can draw on the terminal it is printed to.
"""

from __future__ import annotations

import json
import logging
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from walpool import Operation, WALEntry
from walpool.cli.exits import one_line

SCHEMA = 1  # of every JSON object a command prints; it changes when a field changes its meaning or goes
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def print_json(values: Mapping[str, object]) -> None:
    """One object with its schema, on one line."""
    print(json.dumps({"schema": SCHEMA, **values}), flush=True)


def escaped(data: bytes) -> str:
    """`data` as printable text: UTF-8 where it is that, and \\t \\n \\r \\\\ \\xNN \\uNNNN for the rest."""
    text = data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(_escape(char) for char in text)


def _escape(char: str) -> str:
    return char if char.isprintable() else _ESCAPES.get(char) or ascii(char)[1:-1]


def text_line(entry: WALEntry) -> str:
    """`lsn operation timestamp key value`, tabs between them."""
    operation = Operation(entry.operation).name.lower()
    return f"{entry.lsn}\t{operation}\t{entry.timestamp}\t{escaped(bytes(entry.key))}\t{escaped(bytes(entry.value))}"


def json_line(entry: WALEntry) -> str:
    """One JSON object; `key` and `value` as text, or `key_base64` and `value_base64` if they are not UTF-8."""
    fields: dict[str, object] = {
        "lsn": entry.lsn,
        "operation": Operation(entry.operation).name.lower(),
        "timestamp": entry.timestamp,
    }
    _put_bytes(fields, "key", bytes(entry.key))
    if entry.operation == Operation.PUT:
        _put_bytes(fields, "value", bytes(entry.value))
    return json.dumps(fields, ensure_ascii=False)


def _put_bytes(fields: dict[str, object], name: str, data: bytes) -> None:
    try:
        fields[name] = data.decode("utf-8")
    except UnicodeDecodeError:
        fields[f"{name}_base64"] = b64encode(data).decode("ascii")


def amount(count: float) -> str:
    """Bytes with three figures and a unit that fits: 92 B, 28.0 KB, 1.50 MB, 2,048 GB."""
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= worth * 0.9995:  # 999.9 KB is 1.00 MB
            number = count / worth
            return f"{number:,.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"
    return f"{count:,.0f} B"


class SaidOnce(logging.Handler):
    """What walpool logs, said to the person: each thing once, however many processes or calls meet it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = one_line(record.getMessage())
        if text not in self._said:
            self._said.add(text)
            warn(f"walpool: {text}")


@contextmanager
def log_said_once() -> Iterator[None]:
    handler = SaidOnce()
    logger = logging.getLogger("walpool")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def warn(text: str) -> None:
    """Say something to the person, not to whoever reads the data."""
    print(text, file=sys.stderr, flush=True)
