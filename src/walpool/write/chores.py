"""Chores: what an append now and then leaves to do, outside of the lock, by whoever appended.

Holds: the appender notes them, under the append lock, and `due` is all that an append's caller looks at; they are done
by whichever thread sees that, and what failed is due again. Two threads that do them at once do some twice, and none
never.
"""

from walpool.shared.counters import ProcessCounters
from walpool.write.committer import Committer
from walpool.write.coordinator import Coordinator
from walpool.write.waits import Waits


class Chores:
    def __init__(
        self,
        waits: Waits,
        coordinator: Coordinator,
        committer: Committer,
        sync_interval_s: float | None,
        counters: ProcessCounters,
    ) -> None:
        self._waits = waits
        self._coordinator = coordinator
        self._committer = committer
        self._sync_interval_s = sync_interval_s
        self._counters = counters
        self.due = sync_interval_s is not None
        self._prepare = False  # the coordinator has something to do
        self._rotations = 0  # since they were last counted

    # Noted under the append lock

    def rotated(self) -> None:
        self._rotations += 1
        self.prepare()

    def prepare(self) -> None:
        """A next segment should be there by now, and is not, for all we know."""
        self._prepare = self.due = True

    def look(self) -> None:
        """Every hundred milliseconds or thousand entries: what has gathered is counted, and the interval kept."""
        self.due = self.due or bool(self._waits) or self._sync_interval_s is not None

    # Done outside

    def do(self) -> None:
        """What raises is due again: an interrupt, too, must not end what sync_interval_s promises."""
        self.due = False
        try:
            self.count()
            if self._prepare:
                self._prepare = False
                self._coordinator.wake()
            if self._sync_interval_s is not None:
                self._committer.sync_within(self._sync_interval_s, self.ask)
        except BaseException:
            self._prepare = self.due = True
            raise

    def count(self) -> None:
        self._waits.count()
        if self._rotations:
            self._counters.add(files_opened=self._rotations)
            self._rotations = 0

    def ask(self) -> None:
        """For whoever else finds something to do."""
        self.due = True
