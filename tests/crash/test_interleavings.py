"""Another process does a whole operation at a call or a store of the first; threads of one writer take turns.

What everybody was told and what witnesses saw fits what is in the log in the end.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.crash import interleavings
from tests.crash.others import DONE
from tests.support import Channel, Child, Start


def tell_interleavings(channel: Channel, folder: Path, seed: int, count: int) -> Counter[str]:
    return interleavings.prove(folder, seed, count, channel.send)


def tell_every_point(channel: Channel, folder: Path, scene: str, kind: str, what: str) -> Counter[str]:
    return interleavings.at_every_point(folder, scene, kind, what, channel.send)


def result(child: Child) -> Counter[str]:
    """The sweep's result; it says now and then that it goes on."""
    while True:
        what, value = child.next()
        if what == "result":
            assert child.died() == 0
            print(value)
            return value


def test_an_operation_of_another_process_at_any_call_or_store_does_no_harm(
    child: Start, memory: Path, seed: int
) -> None:
    found = result(child(tell_interleavings, memory, seed, 60))
    assert found["interleavings"] >= 60
    assert not list(memory.iterdir())


@pytest.mark.parametrize(
    ("scene", "kind", "what"),
    [
        ("rotate", "call", "append"),
        ("change everything", "call", "pin"),
        ("follow what is durable", "call", "append"),
        ("open with_a_torn_header", "store", "open"),
    ],
)
@pytest.mark.slow
def test_an_operation_at_every_call_and_every_store_does_no_harm(
    child: Start, memory: Path, scene: str, kind: str, what: str
) -> None:
    found = result(child(tell_every_point, memory, scene, kind, what))
    assert found["interleavings"] > 25
    assert found[DONE] > interleavings.LEAST_DONE * found["interleavings"], found
