"""Another process does a whole operation at a call or a store of the first; threads of one writer take turns.

What everybody was told and what witnesses saw fits what is in the log in the end.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.crash import interleavings, schedules
from tests.crash.others import DONE
from tests.support import Channel, Child, Start


def tell_interleavings(channel: Channel, folder: Path, seed: int, count: int) -> Counter[str]:
    return interleavings.prove(folder, seed, count, channel.send)


def tell_schedules(channel: Channel, folder: Path, seed: int, count: int) -> Counter[str]:
    return schedules.prove(folder, seed, count, channel.send)


def tell_every_point(channel: Channel, folder: Path, scene: str, kind: str, what: str, skip: float) -> Counter[str]:
    return interleavings.at_every_point(folder, scene, kind, what, skip, channel.send)


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
    found = result(child(tell_interleavings, memory, seed, 40))
    assert found["interleavings"] >= 40
    assert not list(memory.iterdir())


@pytest.mark.parametrize(
    ("scene", "kind", "what", "skip"),
    [
        ("rotate", "call", "append", 0.5),
        ("change everything", "call", "pin", 0.6),
        ("follow what is durable", "call", "append", 0.0),
        ("open with_a_torn_header", "store", "open", 0.5),
    ],
)
@pytest.mark.slow
def test_an_operation_at_every_call_and_every_store_does_no_harm(
    child: Start, memory: Path, scene: str, kind: str, what: str, skip: float
) -> None:
    """Openings, with which most begin, are swept by chance."""
    found = result(child(tell_every_point, memory, scene, kind, what, skip))
    assert found["interleavings"] > 25
    assert found[DONE] > interleavings.LEAST_DONE * found["interleavings"], found


def test_threads_of_one_writer_that_take_turns_do_no_harm(child: Start, memory: Path, seed: int) -> None:
    found = result(child(tell_schedules, memory, seed, 160))
    for action in (*schedules.ACTIONS, "close", "closed"):
        assert found[action] > 0, f"nobody came to {action}: {found}"
    assert found["turns"] > 20 * found["schedules"], found
