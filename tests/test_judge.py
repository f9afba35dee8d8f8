"""The judge of the other tests: what it has to find wrong, it finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Ack, Ledger, entries_of, judge, read_log
from walpool import WALEntry, WALWriter

Entries = list[WALEntry]
Acks = dict[str, list[Ack]]


@pytest.fixture
def told(log: Path, tmp_path: Path) -> tuple[Entries, Acks]:
    """Two authors in turn, 20 operations each, and what each was told."""
    ledgers = [Ledger(tmp_path / "acks", author) for author in ("a", "b")]
    with WALWriter(log) as writer:
        for op in range(20):
            for ledger in ledgers:
                ledger.append(writer, op)
    for ledger in ledgers:
        ledger.close()
    return read_log(log), Ledger.read_all(tmp_path / "acks")


def dense(entries: Entries) -> Entries:
    return [entry._replace(lsn=lsn) for lsn, entry in enumerate(entries, 1)]


def lose_the_last(entries: Entries, acks: Acks) -> None:
    del entries[-1]


def lose_one_in_the_middle(entries: Entries, acks: Acks) -> None:
    del entries[4]
    entries[:] = dense(entries)


def leave_a_gap(entries: Entries, acks: Acks) -> None:
    del entries[4]


def double_one(entries: Entries, acks: Acks) -> None:
    entries.insert(4, entries[4])
    entries[:] = dense(entries)


def change_a_byte(entries: Entries, acks: Acks) -> None:
    at = next(at for at, entry in enumerate(entries) if entry.value)
    entries[at] = entries[at]._replace(value=bytes([entries[at].value[0] ^ 1]) + bytes(entries[at].value[1:]))


def change_a_timestamp(entries: Entries, acks: Acks) -> None:
    entries[3] = entries[3]._replace(timestamp=99)


def swap_two_of_one_author(entries: Entries, acks: Acks) -> None:
    entries[0], entries[2] = entries[2], entries[0]
    entries[:] = dense(entries)


def tear_a_batch(entries: Entries, acks: Acks) -> None:
    at = next(at for at, entry in enumerate(entries) if bytes(entry.key).split(b"/")[2] == b"1")
    del entries[at]
    entries[:] = dense(entries)


def add_what_nobody_appended(entries: Entries, acks: Acks) -> None:
    entries += entries_of("stranger", 0)
    entries[:] = dense(entries)


def add_what_its_author_was_not_told(entries: Entries, acks: Acks) -> None:
    entries += entries_of("a", 20)
    entries[:] = dense(entries)


def tell_another_place(entries: Entries, acks: Acks) -> None:
    first, second = acks["a"][:2]
    acks["a"][:2] = [first._replace(op=second.op), second._replace(op=first.op)]


def swap_two_of_different_authors(entries: Entries, acks: Acks) -> None:
    """Each is where it was told to be; but the second began when the first had returned."""
    entries[0], entries[1] = entries[1]._replace(lsn=1), entries[0]._replace(lsn=2)
    one, other = acks["a"][0], acks["b"][0]
    acks["a"][0] = one._replace(first_lsn=2, end_lsn=3)
    acks["b"][0] = other._replace(first_lsn=1, end_lsn=2)


LIES = {
    lose_the_last: "lost", lose_one_in_the_middle: "acknowledged", leave_a_gap: "not dense", double_one: "twice",
    change_a_byte: "not as appended", change_a_timestamp: "not as appended", swap_two_of_one_author: "later one",
    tear_a_batch: "not whole", add_what_nobody_appended: "nobody appended",
    add_what_its_author_was_not_told: "was not told", tell_another_place: "stands at",
    swap_two_of_different_authors: "stands before it",
}  # fmt: skip


def test_what_was_told_is_what_is_there(told: tuple[Entries, Acks]) -> None:
    judge(*told)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_every_lie_is_found(told: tuple[Entries, Acks], lie: Callable[[Entries, Acks], None]) -> None:
    entries, acks = told
    lie(entries, acks)
    with pytest.raises(AssertionError, match=LIES[lie]):
        judge(entries, acks)


def test_what_is_in_doubt_may_be_there_or_not(told: tuple[Entries, Acks]) -> None:
    entries, acks = told
    judge(entries, acks, {"a": [20]})
    add_what_its_author_was_not_told(entries, acks)
    judge(entries, acks, {"a": [20]})
