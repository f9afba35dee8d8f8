"""Following a log as it grows.

Most tests run in one thread: the follower's sleep is replaced by the next act of a script, so the log moves on exactly
while the follower waits, and its clock moves by what it would have slept.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.format import layout
from tests.read.logs import copy_of, entries, entry_of, fill, make, segment_files
from walpool import LogClosed, RecoveryMode, WALEntry, WALReader, WALWriter
from walpool.system import processes
from walpool.system.calls import calls

Act = Callable[[], object]


class Script:
    """What happens while the follower sleeps, one act a sleep; when nothing is left, only time passes."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.now = 1000.0
        self.slept: list[float] = []
        self._follower = threading.get_ident()
        self._really_sleep, self._really_monotonic = calls.sleep, calls.monotonic
        self._acting = False

    def _is_really(self) -> bool:
        """A writer in an act or in its background thread lives in the time that there is."""
        return self._acting or threading.get_ident() != self._follower

    def monotonic(self) -> float:
        return self._really_monotonic() if self._is_really() else self.now

    def sleep(self, seconds: float) -> None:
        if self._is_really():
            self._really_sleep(seconds)
            return
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds
        if self.acts:
            self._acting = True
            try:
                self.acts.pop(0)()
            finally:
                self._acting = False


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(calls, "sleep", script.sleep)
    monkeypatch.setattr(calls, "monotonic", script.monotonic)
    return script


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def writer(log: Path) -> Iterator[WALWriter]:
    with WALWriter(log, size_limit=400) as writer:
        yield writer


def appending(writer: WALWriter, count: int) -> Act:
    return lambda: fill(writer, count)


def test_a_follower_crosses_a_rotation_without_a_gap(log: Path, writer: WALWriter, script: Script) -> None:
    script.acts = [
        appending(writer, 3),
        appending(writer, 20),
        writer.rotate,
        appending(writer, 1),
        appending(writer, 40),
        writer.rotate,
        writer.rotate,
        appending(writer, 4),
    ]
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=1)) == entries(1, 69)
    assert not script.acts
    assert len(segment_files(log)) > 10


def test_a_follower_ends_after_its_timeout_without_news(log: Path, writer: WALWriter, script: Script) -> None:
    fill(writer, 5)
    with WALReader(log) as reader:
        began = script.now
        assert list(reader.follow(timeout=7.5)) == entries(1, 6)
        assert script.now - began == pytest.approx(7.5)


def test_news_start_the_timeout_anew(log: Path, writer: WALWriter, script: Script) -> None:
    def wait_then_append(idle_s: float) -> Act:
        def act() -> None:
            script.now += idle_s
            fill(writer, 1)

        return act

    script.acts = [wait_then_append(0.9) for _ in range(10)]
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=1)) == entries(1, 11)


def test_a_timeout_of_zero_gives_what_is_there(log: Path, writer: WALWriter, script: Script) -> None:
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=0)) == []
        fill(writer, 30)
        assert list(reader.follow(timeout=0)) == entries(1, 31)
        fill(writer, 30)
        assert list(reader.follow(timeout=0)) == entries(31, 61)
    assert script.slept == []


def test_without_a_timeout_a_follower_waits_as_long_as_it_takes(log: Path, writer: WALWriter, script: Script) -> None:
    script.acts = [lambda: None] * 5000 + [appending(writer, 1)]
    with WALReader(log) as reader:
        assert next(reader.follow()) == entry_of(1)


def test_the_longer_nothing_comes_the_more_rarely_a_follower_looks(
    log: Path, writer: WALWriter, script: Script
) -> None:
    with WALReader(log) as reader:
        list(reader.follow(timeout=10))
    pauses = script.slept[:-1]  # the last one ends at the timeout
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.001 < 0.005 < pauses[-1] < 0.1


def test_following_can_end_and_begin_again(log: Path, writer: WALWriter) -> None:
    found: list[WALEntry] = []
    with WALReader(log) as reader:
        while len(found) < 100:
            fill(writer, 4)
            for entry in reader.follow(timeout=0):
                found.append(entry)
                if entry.lsn % 7 == 0:
                    break  # also in the middle of a batch
            found += reader.read_all()
    assert found == entries(1, len(found) + 1)


def test_a_follower_starts_at_an_lsn_that_is_yet_to_come(log: Path, writer: WALWriter, script: Script) -> None:
    script.acts = [appending(writer, 4)] * 6
    with WALReader(log, start=10) as reader:
        assert list(reader.follow(timeout=1)) == entries(10, 25)


def test_a_follower_of_an_empty_log_gets_its_first_entry(log: Path, writer: WALWriter, script: Script) -> None:
    script.acts = [appending(writer, 1)]
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=1)) == [entry_of(1)]


def test_a_batch_comes_whole(log: Path, writer: WALWriter, script: Script) -> None:
    script.acts = [lambda: writer.append_batch(entries(1, 8)), lambda: writer.append_batch(entries(8, 11))]
    with WALReader(log) as reader:
        following = reader.follow(timeout=1)
        assert next(following) == entry_of(1)
        assert [next(following).lsn for _ in range(6)] == [2, 3, 4, 5, 6, 7]
        assert len(script.acts) == 1, "the follower slept inside a batch"
        assert [entry.lsn for entry in following] == [8, 9, 10]


def test_closing_ends_a_follower(log: Path, writer: WALWriter) -> None:
    fill(writer, 5)
    reader = WALReader(log)
    following = reader.follow(timeout=5)
    next(following)
    reader.close()
    with pytest.raises(LogClosed):
        list(following)


def test_what_was_read_before_is_not_followed_again(log: Path, writer: WALWriter) -> None:
    fill(writer, 10)
    with WALReader(log) as reader:
        head = [reader.read_entry() for _ in range(4)]
        assert head + list(reader.follow(timeout=0)) == entries(1, 11)


def test_zero_copy_follows_too(log: Path, writer: WALWriter, script: Script) -> None:
    script.acts = [appending(writer, 25)]
    with WALReader(log, zero_copy=True, initial_capacity=10) as reader:
        found = [entry._replace(key=bytes(entry.key), value=bytes(entry.value)) for entry in reader.follow(timeout=1)]
    assert found == entries(1, 26)


# Durable only


def test_a_durable_follower_gets_nothing_before_it_is_on_disk(log: Path, writer: WALWriter) -> None:
    with WALReader(log) as reader, WALReader(log, start=6) as later:
        assert list(reader.follow(timeout=0, durable_only=True)) == []
        fill(writer, 5)
        assert list(reader.follow(timeout=0, durable_only=True)) == []
        writer.sync()
        assert list(later.follow(timeout=0, durable_only=True)) == []
        fill(writer, 3)
        assert list(reader.follow(timeout=0, durable_only=True)) == entries(1, 6)
        assert list(later.follow(timeout=0, durable_only=True)) == []
        assert list(reader.follow(timeout=0)) == entries(6, 9)
        writer.sync()
        assert list(later.follow(timeout=0, durable_only=True)) == entries(6, 9)
        assert list(reader.follow(timeout=0, durable_only=True)) == []


def test_a_durable_follower_waits_at_a_rotation_too(log: Path, writer: WALWriter) -> None:
    with WALReader(log) as reader:
        found: list[WALEntry] = []
        for _ in range(12):
            fill(writer, 2)
            durable_lsn = writer.sync()
            writer.put(b"key", b"not synced", 1)
            for entry in reader.follow(timeout=0, durable_only=True):
                found.append(entry)
                assert entry.lsn <= durable_lsn
            assert found[-1].lsn == durable_lsn
            writer.rotate()
            writer.sync()
    assert [entry.lsn for entry in found] == list(range(1, len(found) + 1))


def test_each_durable_entry_comes_after_it_is_durable(log: Path, writer: WALWriter, script: Script) -> None:
    for size in (1, 4, 2, 7, 1):
        script.acts += [appending(writer, size), lambda: None, lambda: writer.sync()]
    found: list[WALEntry] = []
    with WALReader(log) as reader:
        for entry in reader.follow(timeout=1, durable_only=True):
            assert entry.lsn <= writer.metrics.snapshot().durable_lsn
            found.append(entry)
    assert found == entries(1, 16)


def test_a_durable_follower_beside_a_busy_writer_is_never_ahead_of_the_disk(log: Path) -> None:
    count = 1000
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with WALWriter(log, size_limit=4000) as other:
                while (lsn := fill(other, 7)[-1].lsn) < count:
                    if lsn % 5 == 0:
                        other.sync()
                other.sync()
        except BaseException as error:
            failures.append(error)

    with WALWriter(log) as writer:
        metrics = writer.metrics
        thread = threading.Thread(target=work)
        thread.start()
        found = 0
        with WALReader(log) as reader:
            for entry in reader.follow(timeout=60, durable_only=True):
                found += 1
                assert entry == entry_of(found)
                assert entry.lsn <= metrics.snapshot().durable_lsn
                if found == count:
                    break
        thread.join()
    assert failures == []


def log_of(log: Path, durable_lsn: int, stated: dict[int, int]) -> Path:
    """1 2 3 | 4 5 6 7, as a reboot or a copy leaves it; `stated`: the durable LSN in the frame with that LSN."""
    files = {}
    for first, count, header_says in ((1, 3, 0), (4, 4, durable_lsn)):
        data = layout.header(first, marker=first, durable_lsn=header_says)
        for lsn in range(first, first + count):
            data += layout.frame(lsn, [layout.item(lsn)], marker=first, durable_lsn=stated.get(lsn, 0), appended_at=lsn)
        files[first] = data
    return layout.write_segments(log, files)


@pytest.mark.parametrize(
    ("header", "stated", "durable_lsn"),
    [
        (0, {}, 0),
        (3, {}, 3),
        (2, {}, 2),
        (0, {5: 3}, 3),
        (3, {6: 4, 7: 5}, 5),
        (3, {7: 6}, 6),
        (3, {6: 5, 7: 0}, 5),
        (0, {6: 6}, 5),  # no frame vouches for itself
        (0, {6: 1 << 40}, 5),
    ],
)
def test_without_a_control_block_only_what_the_segments_vouch_for_is_durable(
    log: Path, header: int, stated: dict[int, int], durable_lsn: int
) -> None:
    log_of(log, header, stated)
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=0, durable_only=True)) == entries(1, durable_lsn + 1)
        assert reader.read_all() == entries(durable_lsn + 1, 8)


def test_a_batch_of_which_only_a_part_is_called_durable_is_held_back(log: Path) -> None:
    batch = layout.frame(2, [layout.item(2), layout.item(3)])
    data = layout.segment(1, layout.single(1, 1)) + batch + layout.frame(4, [layout.item(4)], durable_lsn=2)
    layout.write_segments(log, {1: data})
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=0, durable_only=True)) == entries(1, 2)
        assert reader.read_all() == entries(2, 5)


def test_a_durable_follower_that_was_there_before_the_block_gets_nothing_ahead_of_the_disk(
    log: Path, script: Script
) -> None:
    """The block appears between its look for one and its reading."""
    make(log, 10)
    (log / "control").unlink()
    with WALReader(log, start=11) as reader:
        assert list(reader.follow(timeout=0, durable_only=True)) == []
        with WALWriter(log) as writer:
            fill(writer, 5)
            assert not reader._reading.advance(True), "what no sync covered was taken in hand"
            writer.sync()
            assert list(reader.follow(timeout=0, durable_only=True)) == entries(11, 16)


@pytest.mark.parametrize("last", ["full", "zeros", "torn"])
def test_a_reader_that_was_there_before_the_block_is_given_nothing_before_it_is_published(
    log: Path, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever appends may be killed before it publishes, and then another entry takes that LSN."""
    with WALWriter(log) as writer:
        fill(writer, 10)
        if last == "zeros":
            writer.rotate()
            os.truncate(max(segment_files(log)), 4096)
    if last == "torn":
        (log / f"{11:020d}.wal").write_bytes(bytes(17))
    (log / "control").unlink()
    seen: list[list[WALEntry]] = []
    real = calls.pwrite
    with WALReader(log) as reader:
        assert reader.read_all() == entries(1, 11)

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            written = real(fd, data, offset)
            if b"unpublished" in bytes(data):
                seen.append(reader.read_all())
            return written

        monkeypatch.setattr(calls, "pwrite", pwrite)
        with WALWriter(log) as writer:
            writer.put(b"unpublished", b"")
        assert seen == [[]]
        assert [bytes(entry.key) for entry in reader.read_all()] == [b"unpublished"]


# Beside writers, restarts and copies


def test_a_follower_beside_writers_in_threads_gets_each_entry_once(log: Path) -> None:
    workers, each = 3, 400
    with WALWriter(log, size_limit=3000) as first:

        def work(worker: int) -> None:
            with WALWriter(log, size_limit=3000) as writer:
                for number in range(each):
                    writer.put(b"%d" % worker, b"%d" % number, number)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
        for thread in threads:
            thread.start()
        found: list[WALEntry] = []
        with WALReader(log) as reader:
            for entry in reader.follow(timeout=60):
                found.append(entry)
                if len(found) == workers * each:
                    break
        for thread in threads:
            thread.join()
        assert first.metrics.snapshot().next_lsn == workers * each + 1
    assert [entry.lsn for entry in found] == list(range(1, workers * each + 1))
    for worker in range(workers):
        mine = [entry.timestamp for entry in found if entry.key == b"%d" % worker]
        assert mine == list(range(each))


def test_a_follower_lives_through_the_end_and_return_of_all_writers(log: Path, script: Script) -> None:
    def another_writer() -> None:
        with WALWriter(log, size_limit=400) as writer:
            fill(writer, 9)

    another_writer()
    script.acts = [another_writer, lambda: None, another_writer]
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=1)) == entries(1, 28)


def test_a_follower_lives_through_a_recovery(log: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control block is replaced under it, by one of another boot."""

    def another_writer() -> None:
        with WALWriter(log, size_limit=400) as writer:
            fill(writer, 9)
            reports.append(writer.recovery_report)

    def reboot() -> None:
        boot = processes.boot_id()
        monkeypatch.setattr(processes, "boot_id", lambda: (boot[0], boot[1] + 1))

    reports: list[object] = []
    another_writer()
    script.acts = [reboot, another_writer, another_writer]
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=1)) == entries(1, 28)
    assert [report is not None for report in reports] == [True, True, False]


def test_a_follower_notices_that_the_control_block_was_removed_and_made_anew(log: Path, script: Script) -> None:
    def another_writer() -> None:
        with WALWriter(log, size_limit=400) as writer:
            fill(writer, 9)

    another_writer()
    script.acts = [(log / "control").unlink, another_writer]
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=1)) == entries(1, 19)


@pytest.mark.parametrize("durable_only", [False, True])
def test_a_follower_of_a_copy_goes_on_when_the_copy_gets_a_writer(
    log: Path, tmp_path: Path, script: Script, durable_only: bool
) -> None:
    make(log, 12)
    copy = copy_of(log, tmp_path / "copy")

    def another_writer() -> None:
        with WALWriter(copy, size_limit=400) as writer:
            fill(writer, 20)
            writer.sync()

    script.acts = [lambda: None, another_writer, another_writer]
    with WALReader(copy) as reader:
        assert list(reader.follow(timeout=1, durable_only=durable_only)) == entries(1, 53)


def test_a_follower_of_a_copy_gets_what_somebody_copies_into_it(log: Path, tmp_path: Path, script: Script) -> None:
    """As `rsync --append` does: files grow and appear, and now and then a frame is half there."""
    make(log, 30)
    copy = tmp_path / "copy"
    copy.mkdir()
    files = segment_files(log)
    (copy / files[0].name).write_bytes(files[0].read_bytes()[:64])

    def grow(name: str, data: bytes) -> Act:
        return lambda: (copy / name).write_bytes(data)

    for file in files:
        data = file.read_bytes()
        for length in (*range(64, len(data), 41), len(data)):
            script.acts.append(grow(file.name, data[:length]))
    with WALReader(copy) as reader:
        assert list(reader.follow(timeout=1)) == entries(1, 31)
    assert not script.acts


def test_two_threads_one_follower_and_a_writer_that_starts_later(tmp_path: Path, log: Path) -> None:
    make(log, 10)
    copy = copy_of(log, tmp_path / "copy")
    seen: queue.Queue[WALEntry | BaseException] = queue.Queue()

    def follow() -> None:
        try:
            with WALReader(copy) as reader:
                for entry in reader.follow(timeout=60):
                    seen.put(entry)
                    if entry.lsn == 40:
                        return
        except BaseException as error:
            seen.put(error)

    def next_seen() -> WALEntry:
        entry = seen.get(timeout=60)
        if isinstance(entry, BaseException):
            raise AssertionError("the follower failed") from entry
        return entry

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        assert [next_seen() for _ in range(10)] == entries(1, 11)
        with WALWriter(copy, size_limit=400) as writer:
            fill(writer, 30)
            assert [next_seen() for _ in range(30)] == entries(11, 41)
    finally:
        thread.join(timeout=1)


@pytest.mark.parametrize("mode", RecoveryMode)
def test_every_mode_follows(log: Path, writer: WALWriter, script: Script, mode: RecoveryMode) -> None:
    script.acts = [appending(writer, 9), writer.rotate, appending(writer, 9)]
    with WALReader(log, mode=mode) as reader:
        assert list(reader.follow(timeout=1)) == entries(1, 19)
