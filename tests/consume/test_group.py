"""Groups: each entry to one member at a time, in order per key, whoever comes, goes or is killed."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Channel, Start, reap, run_threads, until
from walpool import CursorGroup, LogBusy, LogClosed, LSNUnavailable, Retention, WALEntry, WALReader, WALWriter
from walpool.consume import parts
from walpool.format.names import CURSORS
from walpool.native.select import crc32c

KEYS = [f"key-{number}-{number * 7919 % 101}".encode() for number in range(60)]


@pytest.fixture
def writer(log: Path) -> Iterator[WALWriter]:
    with WALWriter(log, size_limit=1 << 16) as writer:
        yield writer


def fill(writer: WALWriter, count: int) -> None:
    writer.append_batch([WALEntry.put(KEYS[number % len(KEYS)], b"%d" % number) for number in range(count)])


def part_of(lsn: int, log: Path, members: int) -> int:
    with WALReader(log, lsn) as reader:
        entry = reader.read_entry()
    assert entry is not None
    return int(crc32c(entry.key)) % members


def taken(group: CursorGroup, timeout: float = 0, commit: bool = True) -> list[int]:
    lsns = []
    for entry in group.follow(timeout):
        lsns.append(entry.lsn)
        if commit:
            group.commit(entry.lsn, sync=False)
    return lsns


def look_again() -> None:
    time.sleep(parts.LOOK_S * 1.5)


def test_a_single_member_serves_all_parts(writer: WALWriter) -> None:
    fill(writer, 100)
    with CursorGroup(writer.path, "etl", 4) as group:
        assert taken(group) == [*range(1, 101)]
        assert sorted(group.parts) == [0, 1, 2, 3]
    with CursorGroup(writer.path, "etl", members=4) as group:
        assert taken(group) == []


def test_members_divide_the_entries_by_key(writer: WALWriter, log: Path) -> None:
    with CursorGroup(log, "etl", 2) as first, CursorGroup(log, "etl", 2) as second:
        assert (first.member, second.member) == (0, 1)
        look_again()
        taken(first), taken(second)
        fill(writer, 120)
        ours, theirs = taken(first), taken(second)
        assert sorted(ours + theirs) == [*range(1, 121)]
        assert {part_of(lsn, log, 2) for lsn in ours} == {0}
        assert {part_of(lsn, log, 2) for lsn in theirs} == {1}
        assert (first.parts, second.parts) == ({0: 120}, {1: 120}), "also where it had nothing to hand out last"


def test_a_part_is_let_go_of_once_what_was_handed_out_of_it_is_committed(writer: WALWriter, log: Path) -> None:
    fill(writer, 120)
    with CursorGroup(log, "etl", 2) as first:
        following = first.follow(timeout=0)
        handed = [next(following).lsn for _ in range(60)]
        with CursorGroup(log, "etl", 2) as second:
            look_again()
            handed.append(next(following).lsn)
            assert 1 in first.parts and second.parts == {}
            look_again()
            assert taken(second) == []
            rest = [entry.lsn for entry in following]
            assert {part_of(lsn, log, 2) for lsn in rest[1:]} <= {0}, "nothing more of the part that was asked for"
            first.commit(120)
            assert list(first.parts) == [0]
            look_again()
            others = taken(second)
            assert {part_of(lsn, log, 2) for lsn in others} == {1}
            assert sorted(handed + rest + others) == [*range(1, 121)], "each to one of them"


def test_what_a_member_had_in_hand_when_it_left_comes_again(writer: WALWriter, log: Path) -> None:
    """To one that has read past it."""
    with CursorGroup(log, "etl", 2) as first:
        with CursorGroup(log, "etl", 2) as second:
            look_again()
            taken(first), taken(second)
            fill(writer, 120)
            ours, theirs = taken(first), taken(second, commit=False)
            assert sorted(ours + theirs) == [*range(1, 121)] and theirs
        look_again()
        assert taken(first) == theirs


def test_the_parts_of_a_member_that_leaves_are_served_by_the_others(writer: WALWriter, log: Path) -> None:
    fill(writer, 60)
    groups = [CursorGroup(log, "etl", 3) for _ in range(3)]
    for _ in range(3):
        for group in groups:
            taken(group)
        look_again()
    assert [list(group.parts) for group in groups] == [[0], [1], [2]]
    groups.pop().close()
    fill(writer, 60)
    look_again()
    found = sorted(lsn for group in groups for lsn in taken(group))
    assert found == [*range(61, 121)]
    with CursorGroup(log, "etl", 3) as back:
        assert back.member == 2
    for group in groups:
        group.close()


def test_one_more_than_there_are_places_waits(writer: WALWriter, log: Path) -> None:
    fill(writer, 1)
    with CursorGroup(log, "etl", 1) as group:
        with pytest.raises(LogBusy, match="all 1 members"):
            CursorGroup(log, "etl", 1, lock_timeout=0.01)
        with pytest.raises(ValueError, match="has 1 members, and not 2"):
            CursorGroup(log, "etl", 2)
        with pytest.raises(ValueError):
            group.commit(5)
        with CursorGroup(log, "other", 2):
            pass
    for members in (0, -1, 1025):
        with pytest.raises(ValueError):
            CursorGroup(log, "etl", members)
    with pytest.raises(TypeError):
        CursorGroup(log, "etl", True)


def test_what_no_member_has_handled_is_kept_for_every_part(log: Path) -> None:
    with WALWriter(log, size_limit=4096, retention=Retention(max_segments=1)) as writer:
        fill(writer, 60)
        CursorGroup(log, "etl", 3).close()
        for _ in range(10):
            fill(writer, 60)
        assert writer.prune().first_lsn == 1
        with CursorGroup(log, "etl", 3) as group:
            following = group.follow(timeout=0)
            for _ in range(660):
                lsn = next(following).lsn
            group.commit(lsn)
            assert [*following] == []
            assert writer.prune().first_lsn > 1
            group.commit(0)


def test_a_group_hears_what_it_missed_and_may_pass_it_by(log: Path) -> None:
    with WALWriter(log, size_limit=4096, retention=Retention(max_segments=1, max_pinned_bytes=0)) as writer:
        fill(writer, 60)
        with CursorGroup(log, "etl", 2) as group:
            for _ in range(10):
                fill(writer, 60)
            writer.prune()
            with pytest.raises(LSNUnavailable, match="'etl' missed"):
                taken(group)
            with WALReader(log) as reader:
                first_lsn = reader.first_lsn
            group.commit(first_lsn - 1)
            assert taken(group) == [*range(first_lsn, 661)]


def test_a_pickled_copy_and_a_forked_child_are_members_of_their_own(writer: WALWriter, log: Path) -> None:
    fill(writer, 10)
    with CursorGroup(log, "etl", 3) as group, pickle.loads(pickle.dumps(group)) as copy:
        assert copy.member == 1
        following = group.follow(timeout=0)
        next(following)
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(LogClosed):
                assert not list(following)
            if group.member == 2:
                code = 0
            os._exit(code)
        assert reap(pid) == 0
        assert len([*following]) >= 5
    with pytest.raises(LogClosed):
        group.commit(1)
    group.close()


def test_another_thread_may_commit_and_close(writer: WALWriter, log: Path) -> None:
    fill(writer, 60)
    group = CursorGroup(log, "etl", 2)
    handed: list[int] = []

    def follow() -> None:
        with pytest.raises(LogClosed):
            for entry in group.follow():
                handed.append(entry.lsn)

    def commit() -> None:
        until(lambda: len(handed) == 60, "all are handed out")
        group.commit(60)
        group.close()

    run_threads(follow, commit)
    with CursorGroup(log, "etl", 2) as another:
        assert taken(another) == []


# With SIGKILLs


def consume(channel: Channel, log: Path, effects: Path, members: int, seed: int) -> None:
    """Append each effect to a file of the key's own: begin, end. Commit now and then."""
    chance = random.Random(seed)
    fd = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with CursorGroup(log, "etl", members) as group:
        channel.send(group.member)
        for entry in group.follow(timeout=60):
            os.write(fd, b"%d begin %s %d\n" % (entry.lsn, entry.key, os.getpid()))
            if chance.random() < 0.1:
                time.sleep(0.0005)
            os.write(fd, b"%d end %s %d\n" % (entry.lsn, entry.key, os.getpid()))
            if chance.random() < 0.2:
                group.commit(entry.lsn, sync=chance.random() < 0.3)
            if entry.value == b"last":
                group.commit(entry.lsn)


@pytest.mark.parametrize("members", [3])
def test_whoever_is_killed_each_entry_is_handled_by_one_member_at_a_time_and_in_order(
    memory: Path, child: Start, seed: int, members: int
) -> None:
    """At least once each; between a begin and its end, nobody else begins with that key, unless the first is dead."""
    log, effects = memory / "events.wal", memory / "effects"
    chance = random.Random(seed)
    with WALWriter(log, size_limit=1 << 14) as writer:
        fill(writer, 60)
        living = [child(consume, log, effects, members, chance.getrandbits(32)) for _ in range(members)]
        killed = set()
        for _ in range(6):
            for _ in range(5):
                fill(writer, 20)
                time.sleep(0.01)
            victim = living.pop(chance.randrange(len(living)))
            victim.kill()
            victim.died()
            killed.add(victim.pid)
            if chance.random() < 0.8 or not living:
                living.append(child(consume, log, effects, members, chance.getrandbits(32)))
        last_lsn = writer.append_batch([WALEntry.put(key, b"last") for key in KEYS])[-1]

        def is_done() -> bool:
            return {int(line.split()[0]) for line in effects.read_text().splitlines() if " end " in line} >= {
                *range(1, last_lsn + 1)
            }

        until(is_done, "each entry was handled to its end")
        until(lambda: min(row.position for row in writer.metrics.snapshot().cursors) == last_lsn, "and committed")
        for each in living:
            each.kill()
    begun: dict[str, tuple[int, str]] = {}
    done: dict[str, int] = defaultdict(int)
    for line in effects.read_text().splitlines():
        lsn, what, key, pid = line.split()
        if what == "begin":
            if key in begun:
                assert begun[key][1] in map(str, killed), f"{line}: {begun[key]} is under way"
            assert int(lsn) <= done[key] or not done[key] or int(lsn) == following_lsn(log, key, done[key]), line
            begun[key] = int(lsn), pid
        else:
            assert begun.pop(key) == (int(lsn), pid), line
            done[key] = max(done[key], int(lsn))


_by_key: dict[str, list[int]] = {}


def following_lsn(log: Path, key: str, lsn: int) -> int:
    """The next entry of that key."""
    if not _by_key or key not in _by_key:
        with WALReader(log) as reader:
            for entry in reader:
                _by_key.setdefault(entry.key.decode(), []).append(entry.lsn)
    return min(each for each in _by_key[key] if each > lsn)


def test_a_part_is_taken_over_at_once(memory: Path, child: Start) -> None:
    log = memory / "events.wal"
    with WALWriter(log) as writer:
        fill(writer, 60)
        first = child(consume, log, memory / "effects", 2, 1)
        assert first.receive() == 0
        with CursorGroup(log, "etl", 2) as group:
            ended = threading.Event()
            found: list[int] = []

            def follow() -> None:
                for entry in group.follow(timeout=60):
                    found.append(entry.lsn)
                    group.commit(entry.lsn)
                    if entry.value == b"last" and {0, 1} <= set(group.parts):
                        break
                ended.set()

            thread = threading.Thread(target=follow)
            thread.start()
            first.kill()
            until(lambda: 0 in group.parts, "it has the part of the dead")
            writer.append_batch([WALEntry.put(key, b"last") for key in KEYS])
            assert ended.wait(60)
            thread.join()


def test_the_files_of_a_group_are_one_for_each_part(writer: WALWriter, log: Path) -> None:
    fill(writer, 1)
    with CursorGroup(log, "etl", 2):
        assert sorted(os.listdir(log / CURSORS)) == ["etl@0of2", "etl@1of2"]
