"""Something that happens in the middle of a call of walpool's: at its n-th bytecode or line, in the calling thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import walpool

SOURCE = str(Path(walpool.__file__).parent) + os.sep


def warm_up(call: Callable[[], object]) -> None:
    """Python 3.12 tells of bytecodes only in functions that were traced before."""
    for _ in range(2):
        Interruption(1 << 60, lambda: None, bytecodes=True).during(call)


class Interruption:
    """Calls `handler` at the n-th event inside walpool, as a signal would: what it raises comes out there."""

    def __init__(self, n: int, handler: Callable[[], object], *, bytecodes: bool) -> None:
        self.left = n
        self._handler = handler
        self._bytecodes = bytecodes

    @property
    def came(self) -> bool:
        return self.left <= 0

    def during(self, call: Callable[[], object]) -> None:
        kept = self._trace  # Python 3.11 calls a function once more after it was freed by what it did: keep it
        sys.settrace(kept)
        try:
            call()
        finally:
            sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        frame.f_trace_opcodes = self._bytecodes
        if event == ("opcode" if self._bytecodes else "line"):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self._handler()
        return self._trace
