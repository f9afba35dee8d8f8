"""What every proof of this folder does: a finding says its seed, and one command that has it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeatable(prove: Callable[..., object], seed: int, count: int, more: str = "") -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        again = (
            f"import tempfile, pathlib; from {prove.__module__} import {prove.__name__} as prove; "
            f"prove(pathlib.Path(tempfile.mkdtemp()), {seed}, {count}{more})"
        )
        raise AssertionError(f'{error}\nseed {seed}; repeat with: python -c "{again}"') from None
