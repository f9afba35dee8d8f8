"""The parts of a group that one member serves: each has a position and a lock of its own, as a cursor has.

Member n is at home in part n, and holds a lock that says so as long as it lives. A part whose member is not there is
served by one that is: it takes the part when it sees that, and lets go of it when the member has come, and everything
was committed that it had handed out.

Holds: a part's entries are handed out by whoever holds its lock, and in order from behind its last commit on. So no two
members have entries of one part, and so of one key, in hand. Who takes which part is a matter of speed alone.
"""

from walpool.consume.committed import Committed
from walpool.consume.consumer import Consumer
from walpool.shared.cursors.positions import part_name
from walpool.system import clock

LOOK_S = 0.05  # between two looks at who is there
ANYBODY_S = 0.5  # a part that nobody has taken for so long is taken by whoever sees it first


class Part:
    """One that is held."""

    def __init__(self, committed: Committed) -> None:
        self.committed = committed
        self.next_lsn = committed.position.wanted_lsn  # everything of the part below it was handed out
        self.handed_lsn = 0  # the last that was
        self.leaving = False  # its member has come: nothing more is handed out
        self.must_sync = False  # something was committed that is not known to be on disk

    @property
    def is_done(self) -> bool:
        """Whether all that was handed out is committed."""
        return self.handed_lsn <= self.committed.lsn


class Parts:
    def __init__(self, consumer: Consumer, group: str, members: int, member: int) -> None:
        self._consumer = consumer
        self._names = [part_name(group, part, members) for part in range(members)]
        self._lives = [member_name(group, part, members) for part in range(members)]
        self._members = members
        self._member = member
        self._alone_since: dict[int, float] = {}  # parts without their member
        self.look_at = 0.0
        self.held: dict[int, Part] = {}
        self.has_more = False  # a part has come since somebody looked here

    def look_around(self) -> None:
        """Take and let go, if it is time to look."""
        now = clock.monotonic()
        if now < self.look_at:
            return
        self.look_at = now + LOOK_S
        owners = self._consumer.owners
        living = [each for each in range(self._members) if each == self._member or owners.is_taken(self._lives[each])]
        orphans = [part for part in range(self._members) if part not in living]
        for part, held in list(self.held.items()):
            leaving = part in living and part != self._member
            self.has_more |= held.leaving and not leaving
            held.leaving = leaving
            if held.leaving and held.is_done:
                self.let_go(part)
        self._alone_since = {part: self._alone_since.get(part, now) for part in orphans}
        for part in [self._member, *orphans]:
            mine = part == self._member or living[orphans.index(part) % len(living)] == self._member
            if part not in self.held and (mine or now - self._alone_since[part] >= ANYBODY_S):
                self._take(part)
        self.move_on()

    def _take(self, part: int) -> None:
        owners, name = self._consumer.owners, self._names[part]
        if not owners.try_take(name):
            return
        try:
            owners.say_who(name, self._consumer.session.log.slot)
            self.held[part] = Part(Committed(self._consumer, name))
        except BaseException:
            owners.give_back(name)
            raise
        self.has_more = True

    def let_go(self, part: int) -> None:
        """Whoever takes it next finds what was committed on disk."""
        held = self.held.pop(part)
        try:
            self._advance(held)
            held.committed.sync()
        finally:
            held.committed.close()
            self._consumer.owners.give_back(self._names[part])

    def start_lsn(self) -> int:
        """The first that a part that is held needs."""
        return min((held.next_lsn for held in self.held.values() if not held.leaving), default=0)

    def passed(self, lsn: int) -> None:
        """Everything up to there was read, and is none of ours or was handed out."""
        for held in self.held.values():
            if not held.leaving and held.next_lsn <= lsn:
                held.next_lsn = lsn + 1

    def commit(self, lsn: int, first_lsn: int, sync: bool) -> None:
        """What was handed out up to `lsn` is done; what retention has removed, below `first_lsn`, may be passed by."""
        try:
            for held in self.held.values():
                held.must_sync |= not held.is_done
                upto = min(lsn, max(held.next_lsn, first_lsn) - 1)
                if upto > held.committed.lsn:
                    held.committed.write(upto)
                    held.next_lsn = max(held.next_lsn, upto + 1)
                if sync and held.must_sync:
                    held.committed.sync()
                    held.must_sync = False
        finally:
            for part in [part for part, held in self.held.items() if held.leaving and held.is_done]:
                self.let_go(part)

    def move_on(self) -> None:
        """Parts of which nothing is in hand move on with the log: so they keep nothing of it, and show no lag."""
        for held in self.held.values():
            self._advance(held)

    def _advance(self, held: Part) -> None:
        if held.is_done and held.next_lsn - 1 > held.committed.lsn:
            held.committed.write(held.next_lsn - 1)

    def close(self) -> None:
        errors = []
        for part in list(self.held):
            try:
                self.let_go(part)
            except Exception as error:  # each is let go of, whatever befell the others
                errors.append(error)
        if errors:
            raise errors[0]


def member_name(group: str, member: int, members: int) -> str:
    """By which its lock says that it lives; no cursor's file is called so."""
    return f"{part_name(group, member, members)} lives"
