"""CursorGroup: the entries of a log divided by key among the members of a group, each to one of them.

Holds: what parts.py says of parts; what is handed out is durable.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from walpool.consume.committed import make
from walpool.consume.consumer import Consumer
from walpool.consume.feed import Feed
from walpool.consume.life import Life
from walpool.consume.parts import LOOK_S, Parts, member_name
from walpool.errors import LogBusy
from walpool.format.entry import WALEntry
from walpool.native.select import crc32c
from walpool.shared.cursors.owners import POLL_S
from walpool.shared.cursors.positions import check_name, parse_name, part_name
from walpool.system import clock

MOST_MEMBERS = 1024


class _Hand:
    """Entries in hand. No generator: a caller who stops would end it, and with it what is left."""

    def __init__(self, feed: "Shares", entries: list[tuple[WALEntry[bytes], int]], last_lsn: int) -> None:
        self._feed = feed
        self._entries = iter(entries)
        self._last_lsn = last_lsn

    def __iter__(self) -> "_Hand":
        return self

    def __next__(self) -> WALEntry[bytes]:
        parts = self._feed.parts
        for entry, number in self._entries:
            if clock.monotonic() >= parts.look_at and not self._feed.goes_on():
                break
            part = parts.held.get(number)
            if part is not None and entry.lsn >= part.next_lsn and not part.leaving:
                part.next_lsn, part.handed_lsn = entry.lsn + 1, entry.lsn
                return entry
        else:
            if self._last_lsn:
                parts.passed(self._last_lsn)
        self.drop()
        raise StopIteration

    def drop(self) -> None:
        self._entries = iter(())
        self._last_lsn = 0


class Shares(Feed[WALEntry[bytes]]):
    """What comes next of the parts that a member holds: one reading for all, from the least that one of them needs."""

    def __init__(self, consumer: Consumer, name: str, parts: Parts, members: int) -> None:
        super().__init__(consumer, name)
        self.parts = parts
        self._members = members

    def start_lsn(self) -> int:
        return self.parts.start_lsn()

    def _look(self) -> bool:
        return self._look_around() and super()._look()

    def _look_around(self) -> bool:
        """Whether there is a part to hand out of."""
        parts = self.parts
        parts.look_around()
        start_lsn = parts.start_lsn()
        if parts.has_more:
            parts.has_more = False
            if self.reading is not None and start_lsn < self.reading.next_lsn:
                self.restart()  # entries of the part that came were read past
        return start_lsn > 0

    def goes_on(self) -> bool:
        """Whether what is in hand is still what comes next."""
        before = self.reading
        return self.alone(self._look_around) and self.reading is before

    def take(self) -> bool:
        while self._look_around():
            reading = self.opened()
            taken = reading.take(self._consumer.durable_lsn)
            entries = list(reading.pending)
            reading.count()
            if not taken:
                return False
            members, held = self._members, self.parts.held
            numbers = [crc32c(entry.key) % members for entry in entries]
            mine = [each for each in zip(entries, numbers, strict=True) if each[1] in held]
            if mine:
                self.pending = _Hand(self, mine, entries[-1].lsn)
                return True
            self.parts.passed(entries[-1].lsn)
        return False

    def wait(self, durable_only: bool, longest_s: float, look_again_s: float) -> None:
        super().wait(durable_only, min(longest_s, LOOK_S), look_again_s)

    def _check(self) -> None:
        self._consumer.check_sound()
        self.parts.move_on()
        if self.reading is not None:
            self.reading.check_log()

    def drop_in_hand(self) -> None:
        if isinstance(self.pending, _Hand):
            self.pending.drop()


class _Open(NamedTuple):
    consumer: Consumer
    feed: Shares
    member: int

    def close(self) -> None:
        self.feed.parts.close()


class CursorGroup(Life[_Open]):
    """One of up to `members` consumers that divide the entries of a log by key; make one object in each process.

    An entry is of part `crc32c(key) % members`, and each part has a position of its own. Member n serves part n; a part
    whose member is not there, because it has not come or has died, is served by another, which goes on behind the
    part's last commit, within about a tenth of a second, and lets go of it when the member comes. So each entry is
    handed out at least once, to one member at a time; what was committed never again; and the entries of a key in the
    order of their LSNs. It belongs to one thread, but `commit` and `close` may be called from any. A forked child and
    an unpickled copy become members of their own on their next use.

    A part is let go of once everything was committed that was handed out of it: so commit before you wait for long.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal") as writer:
    ...     lsns = writer.append_batch([walpool.WALEntry.put(b"a", b"1"), walpool.WALEntry.put(b"b", b"2")])
    >>> with walpool.CursorGroup("events.wal", "etl", members=4) as group:
    ...     for entry in group.follow(timeout=0):
    ...         print(entry.lsn, entry.key)
    ...         group.commit(entry.lsn)
    1 b'a'
    2 b'b'

    Args:
        path: the log's directory.
        name: 1 to 64 of A-Z a-z 0-9 . _ -
        members: from 1 to 1,024, and the same for all of them; as many parts there are.
        lock_timeout (default None): seconds to wait for a place, when all members are there, and for locks; None waits
            for ever.
        allow_network_fs (default False): as for a writer.

    Raises:
        TypeError, ValueError: for what is no name or number; or the group has another number of members.
        LogNotFound: mend the path, or retry once a writer has made the log.
        LogBusy: all members are there: retry.
        CorruptLog, SyncFailed, UnsafeLog, UnsupportedVersion: as `Cursor`.
        LogReplaced, LogFull, IOFailed: retry when the cause is gone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        members: int,
        *,
        lock_timeout: float | None = None,
        allow_network_fs: bool = False,
    ) -> None:
        if type(members) is not int:
            raise TypeError(f"members must be an int, not {type(members).__name__}")
        if not 1 <= members <= MOST_MEMBERS:
            raise ValueError(f"members must be from 1 to {MOST_MEMBERS}, not {members}")
        self._members = members
        self._prepare(os.path.abspath(os.fspath(path)), check_name(name), lock_timeout, allow_network_fs)
        self._opened()

    def _open_in(self, consumer: Consumer) -> _Open:
        member = self._find_place(consumer)
        consumer.open()
        consumer.owners.say_who(member_name(self._name, member, self._members), consumer.session.log.slot)
        names = [part_name(self._name, part, self._members) for part in range(self._members)]
        make(consumer, names, lambda: self._check_number(consumer))
        parts = Parts(consumer, self._name, self._members, member)
        feed = Shares(consumer, self._name, parts, self._members)
        try:
            feed.alone(parts.look_around)
        except BaseException:
            parts.close()
            raise
        return _Open(consumer, feed, member)

    def _find_place(self, consumer: Consumer) -> int:
        deadline = None if self._lock_timeout is None else clock.monotonic() + self._lock_timeout
        while True:
            for member in range(self._members):
                if consumer.owners.try_take(member_name(self._name, member, self._members)):
                    return member
            if deadline is not None and clock.monotonic() >= deadline:
                raise LogBusy(
                    f"{self._path}: all {self._members} members of group {self._name!r} were there for"
                    f" {self._lock_timeout} s"
                )
            clock.sleep(POLL_S)

    def _check_number(self, consumer: Consumer) -> None:
        assert consumer.cursors is not None
        for name, _, members in filter(None, map(parse_name, consumer.cursors.names())):
            if name == self._name and members not in (0, self._members):
                raise ValueError(
                    f"group {name!r} of {self._path} has {members} members, and not {self._members}: use that number,"
                    f" or close them all, and `walpool cursors LOG --delete {name}`"
                )

    def follow(self, timeout: float | None = None) -> Iterator[WALEntry[bytes]]:
        """Durable entries of the parts that this member serves, and then as they come. What a caller who stops has not
        taken, comes next time.

        LSNs rise but for a part that is taken over: its entries come again from behind its last commit.

        Args:
            timeout (default None): end after so many seconds without news; None waits for ever.

        Raises:
            LSNUnavailable: retention has removed entries that were not committed; `missed` says how many at most. To go
                on all the same, commit `first_available - 1`.
            SyncFailed, LogBusy, CorruptLog, LogReplaced: as `Cursor.follow`.
            UnsupportedVersion, UnsafeLog, IOFailed, LogClosed: as `Cursor.follow`.
        """
        return self._follow(self._opened().feed, timeout)

    @property
    def member(self) -> int:
        """Which member this is, from 0.

        Raises:
            LogClosed: it was closed.
        """
        return self._opened().member

    @property
    def parts(self) -> dict[int, int]:
        """The parts that this member serves now, and the position of each.

        Raises:
            LogClosed: it was closed.
        """
        held = self._opened().feed.parts.held
        return {part: held[part].committed.lsn for part in sorted(held)}

    def commit(self, lsn: int, sync: bool = True) -> None:
        """State that everything is done that was handed out to this member up to `lsn`; the rest is not committed.

        Args:
            lsn: at most the durable LSN: that of an entry that was handed out always is.
            sync (default True): return when it is on disk; False survives a kill, and a power cut from the next
                synced commit of the part, or `close`, on.

        Raises:
            TypeError, ValueError: for what is no LSN, or one that is not durable.
            IOFailed, LogFull: not all was committed, as `Cursor.commit` says: retry when the cause is gone.
            LogReplaced, UnsafeLog, LogBusy, LogClosed: as `Cursor.commit`.
        """
        if type(lsn) is not int:
            raise TypeError(f"lsn must be an int, not {type(lsn).__name__}")
        there = self._opened()
        self._check_durable(lsn, there.consumer)
        feed = there.feed
        feed.alone(lambda: feed.parts.commit(lsn, feed.first_lsn, sync))

    def close(self) -> None:
        """Make durable what was committed, and leave its parts to the others. May be called again, and by any thread.

        Raises:
            IOFailed, LogFull, LogReplaced, UnsafeLog, LogBusy: as `Cursor.close`.
        """
        self._end()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpickle, (self._path, self._name, self._members, self._lock_timeout, self._allow_network_fs)

    def __repr__(self) -> str:
        return (
            f"<CursorGroup {self._name} of {self._path}, {self._members} members{', closed' if self._closed else ''}>"
        )


def _unpickle(path: str, name: str, members: int, lock_timeout: float | None, allow_network_fs: bool) -> CursorGroup:
    group = CursorGroup.__new__(CursorGroup)
    group._members = members
    group._prepare(path, name, lock_timeout, allow_network_fs)
    return group
