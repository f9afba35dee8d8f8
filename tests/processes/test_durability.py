"""Durability as several processes see it: one sync for many, one failed sync for all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.processes import workers
from tests.processes.test_many_writers import entries_in
from tests.support import Channel, Ledger, Start, judge, read_log, until
from walpool import SyncFailed, SyncMode, WALMetrics, WALReader, WALWriter
from walpool.system.calls import calls


def follow_durable(channel: Channel, log: Path, count: int) -> int:
    """Follow `count` entries; how many of them were seen before they were durable."""
    early = 0
    with WALMetrics.attach(log) as metrics, WALReader(log) as reader:
        channel.send("ready")
        for entry in reader.follow(durable_only=True):
            early += entry.lsn > metrics.snapshot().durable_lsn
            count -= 1
            if not count:
                return early
    raise AssertionError("follow() ended")


def test_a_durable_follower_is_never_ahead_of_eight_writers_syncs(child: Start, log: Path, tmp_path: Path) -> None:
    ops = 60
    writers = [
        child(workers.append_many, log, tmp_path / "acks", f"p{n}", 1, ops, 50_000, SyncMode.FULL) for n in range(8)
    ]
    for each in writers:
        assert each.receive() == "ready"
    follower = child(follow_durable, log, entries_in(ops) * 8)
    assert follower.receive() == "ready"
    for each in writers:
        each.send("go")
    for each in writers:
        each.result()
    assert follower.result() == 0
    judge(read_log(log), Ledger.read_all(tmp_path / "acks"))
    with WALMetrics.attach(log) as metrics:
        assert metrics.snapshot().sync_total < ops * 8, "no two writers ever shared a sync"


def put_and_tell(channel: Channel, log: Path) -> None:
    """FULL puts of the keys that come; `break` has every sync from then on wait for the word and then fail."""
    with WALWriter(log, SyncMode.FULL, 2_000) as writer:
        channel.send("ready")
        while (key := channel.receive()) is not None:
            if key == b"break":
                calls.fdatasync = Broken(channel)
                continue
            try:
                channel.send(writer.put(key, bytes(100)))
            except SyncFailed as error:
                channel.send(error)
            except BaseException as error:
                channel.send(AssertionError(f"SyncFailed was expected: {error!r}"))


class Broken:
    """A sync that waits for the word, and fails; those after it fail at once."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._asked = False

    def __call__(self, fd: int) -> None:
        if not self._asked:
            self._asked = True
            self._channel.send("syncing")
            self._channel.receive()
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_failed_sync_is_seen_by_those_who_wait_those_who_come_and_the_newcomer(
    child: Start, log: Path, end: str
) -> None:
    breaker, *others = writers = [child(put_and_tell, log) for _ in range(4)]
    assert [each.receive() for each in writers] == ["ready"] * 4
    for number in range(40):  # several segments
        assert isinstance(writers[number % 4].ask(b"%d" % number), int)

    breaker.send(b"break")
    assert breaker.ask(b"in doubt 0") == "syncing"
    for number, each in enumerate(others, 1):
        each.send(b"in doubt %d" % number)
    with WALMetrics.attach(log) as metrics:
        until(lambda: metrics.snapshot().next_lsn == 45, "all four have appended, and wait")
        assert metrics.snapshot().durable_lsn == 40
        breaker.send("fail")
        for each in writers:
            failed = each.receive()
            assert isinstance(failed, SyncFailed) and failed.errno == errno.EIO, failed
        for each in writers:
            assert isinstance(each.ask(b"later"), SyncFailed)
        with pytest.raises(SyncFailed):
            WALWriter(log)
        assert metrics.snapshot().next_lsn == 45
        assert metrics.snapshot().durable_lsn == 40

    for each in writers:
        if end == "kill":
            each.kill()
            each.died()
        else:
            each.send(None)
            each.result()
    with WALWriter(log, SyncMode.FULL) as writer:
        assert writer.recovery_report is not None
        assert writer.put(b"after", b"") == 45
    entries = read_log(log)
    assert [entry.lsn for entry in entries] == list(range(1, 46))
    assert [bytes(entry.key) for entry in entries[:40]] == [b"%d" % number for number in range(40)]
    assert {bytes(entry.key) for entry in entries[40:44]} == {b"in doubt %d" % number for number in range(4)}
    with WALWriter(log) as writer:
        assert writer.recovery_report is None
