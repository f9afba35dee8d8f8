"""`walpool monitor`, in lines and on its screen: what it shows is what happened, and no key or log harms it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.cli.conftest import Run, Start, assert_no_traceback, values_by_key, wait_for_entries, write_lines
from tests.processes import workers
from tests.support import Start as StartChild
from tests.support import until
from walpool import SyncMode, WALEntry, WALReader, WALWriter
from walpool.cli.live.figures import rate
from walpool.cli.live.screen import COLUMNS, SORTS, Help, MonitorApp, left, state
from walpool.cli.live.watch import Watch, as_dict, line
from walpool.errors import LogNotFound, LogReplaced
from walpool.shared.slot_rows import DOING, IDLE, SYNCING
from walpool.system.calls import calls


@pytest.fixture
def writers(log: Path) -> Iterator[list[WALWriter]]:
    with ExitStack() as stack:
        modes = [SyncMode.NORMAL, SyncMode.FULL, SyncMode.NORMAL]
        yield [stack.enter_context(WALWriter(log, mode, name=f"w{n}")) for n, mode in enumerate(modes)]


def test_a_look_has_what_happened_since_the_last(log: Path, writers: list[WALWriter]) -> None:
    watch = Watch(str(log))
    for _ in range(3):
        writers[0].put(b"key", b"value")
    writers[1].append_batch([WALEntry.put(b"k", b"v")] * 5)
    look = watch.look()
    told = json.loads(json.dumps(as_dict(look)))
    assert (look.since.entries, look.since.batches, look.since.syncs) == (8, 4, 1)
    assert told["now"]["writes_total"] == 8
    assert told["rates"]["batches_per_sync"] == 4.0
    assert told["since"]["batch_entries"]["count"] == 4
    assert [row["name"] for row in told["now"]["writers"]] == ["w0", "w1", "w2"]
    text = line(look, "12:00:00")
    assert text.startswith("12:00:00  ") and "LSN 8, 0 not durable" in text and "3 writers" in text
    assert watch.look().since.entries == 0
    watch.close()


def test_how_long_a_writer_waits_is_no_matter_of_the_wall_clock(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WALWriter(log) as writer, closing(Watch(log)) as watch:
        own = writer._handle.open().row
        assert own is not None
        seconds = [1000.0]
        monkeypatch.setattr(calls, "monotonic_ns", lambda: int(seconds[0] * 1e9))
        for wall_s in (1.8e9, 0.0, 4e9):  # set while it waits
            monkeypatch.setattr(calls, "time_ns", lambda wall_s=wall_s: int(wall_s * 1e9))
            own.doing(SYNCING)
            seconds[0] += 2.5
            monkeypatch.setattr(calls, "time_ns", lambda wall_s=wall_s: int(wall_s * 1e9) + 10**18)
            (row,) = watch.look().now.writers
            assert state(row) == "waiting for a sync, 2.5 s"
            assert (row.state_seconds, row.state_since) == (2.5, round(wall_s + 1e9 - 2.5, 1))
        own.words[DOING] = IDLE
        (row,) = watch.look().now.writers
        assert (state(row), row.state_seconds) == ("idle", 0.0)


def test_a_rate_that_is_not_0_is_not_shown_as_0() -> None:
    assert [rate(each) for each in (0, 0.033, 0.4, 3.14, 9.96, 1234.5)] == ["0", "0.033", "0.4", "3.1", "10", "1,234"]


def test_what_did_not_happen_has_no_average(log: Path, writers: list[WALWriter]) -> None:
    watch = Watch(str(log))
    look = watch.look()
    assert not any(" of " in text for text in left(*look)[1:3])
    for _ in range(960):
        writers[0].put(b"key", b"value")
    look = watch.look()
    batches, syncs = left(*look)[1:3]
    assert batches.endswith("/s of 1.0 entries")
    assert syncs == "syncs    0/s"
    watch.close()


def test_once_in_every_form(run: Run, log: Path, writers: list[WALWriter]) -> None:
    writers[0].put(b"key", b"value")
    told = run("monitor", log, "--once", "--interval", "0.05", "--json").json
    assert (told["schema"], told["now"]["writes_total"], told["since"]["sync_duration"]["count"]) == (1, 1, 0)
    for form in (["--plain"], []):  # no terminal: a line
        ended = run("monitor", log, "--once", "--interval", "0.05", *form)
        assert ended.code == 0
        assert "LSN 1, 1 not durable" in ended.text and len(ended.text.splitlines()) == 1


@pytest.mark.parametrize("interval", ["0", "-1", "x", "nan", "1e9"])
def test_an_interval_that_makes_no_sense_is_refused(run: Run, log: Path, interval: str) -> None:
    assert run("monitor", log, "--interval", interval).code == 2


def test_a_log_that_is_not_there_is_a_line(run: Run, log: Path, tmp_path: Path) -> None:
    for path in (log, tmp_path):
        ended = run("monitor", path, "--once")
        assert ended.code == 3
        assert_no_traceback(ended)
    WALWriter(log).close()
    (log / "control").write_bytes(b"another version")
    ended = run("monitor", log, "--once")
    assert ended.code == 74 and "control block" in ended.err
    assert_no_traceback(ended)


def test_a_log_that_disappears_ends_it_with_a_line(start: Start, log: Path) -> None:
    WALWriter(log).close()
    running = start("monitor", log, "--interval", "0.05", "--plain")
    assert running.process.stdout is not None
    assert b"LSN 0" in running.process.stdout.readline()
    shutil.rmtree(log)
    ended = running.wait()
    assert ended.code == 3
    assert_no_traceback(ended)


def test_a_log_that_is_another_one_by_now_ends_it_with_a_line(start: Start, log: Path) -> None:
    WALWriter(log).close()
    running = start("monitor", log, "--interval", "0.05", "--plain")
    assert running.process.stdout is not None
    assert b"LSN 0" in running.process.stdout.readline()
    log.rename(log.with_name("old"))
    WALWriter(log.with_name("new")).close()
    log.with_name("new").rename(log)
    ended = running.wait()
    assert ended.code in (3, 74)  # 3: it looked when nothing was there
    if ended.code == 74:
        assert "another directory is in its place" in ended.err
    assert_no_traceback(ended)


def test_a_watch_says_whether_its_log_is_gone_or_another_one(log: Path) -> None:
    WALWriter(log).close()
    with closing(Watch(str(log))) as watch:
        log.rename(log.with_name("old"))
        with pytest.raises(LogNotFound):
            watch.look()
        WALWriter(log).close()
        with pytest.raises(LogReplaced):
            watch.look()


def test_a_log_that_is_rebuilt_is_watched_on(log: Path) -> None:
    WALWriter(log).close()
    watch = Watch(str(log))
    (log / "control").unlink()
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
        assert watch.look().now.writes_total == 1
    watch.close()


# The screen

Drive = Callable[[MonitorApp, Pilot[None]], Any]


def on_screen(log: Path, drive: Drive, size: tuple[int, int] = (100, 30)) -> MonitorApp:
    """Run the screen without a terminal, and `drive` it."""
    app = MonitorApp(str(log), Watch(str(log)), 3600.0)  # looks only when told to

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await drive(app, pilot)

    asyncio.run(run())
    app._watch.close()
    return app


def text_of(app: MonitorApp, place: str) -> str:
    return str(app.screen_stack[0].query_one(place, Static).content)


def column(app: MonitorApp, name: str) -> list[str]:
    head, *rows = (re.split(r"\s{2,}", line.strip()) for line in text_of(app, "#writers").splitlines())
    assert tuple(head) == COLUMNS
    return [row[COLUMNS.index(name)] for row in rows]


def test_the_screen_shows_positions_and_writers(log: Path, writers: list[WALWriter]) -> None:
    async def drive(app: MonitorApp, pilot: Pilot[None]) -> None:
        for _ in range(5):
            writers[0].put(b"key", b"value")
        writers[1].put(b"key", b"value")
        with pytest.raises(ValueError):
            writers[2].put(b"key", bytes(11 << 20))
        writers[2]._handle.session.row.failed("full", "no room \x1b[31m")  # type: ignore[union-attr]
        app.look()
        assert "LSN      6, durable 6 (0 behind)" in text_of(app, "#left")
        assert "p50" in text_of(app, "#right") and "longer" in text_of(app, "#right")
        assert column(app, "name") == ["w0", "w1", "w2"]
        assert column(app, "entries") == ["5", "1", "0"]
        assert column(app, "mode") == ["normal", "full", "normal"]
        assert column(app, "state") == ["idle"] * 3
        assert "-" not in column(app, "RSS MB")
        assert text_of(app, "#rest") == "w2: no room \\x1b[31m"

    on_screen(log, drive)


def test_keys(log: Path, writers: list[WALWriter]) -> None:
    async def drive(app: MonitorApp, pilot: Pilot[None]) -> None:
        writers[2].append_batch([WALEntry.put(b"k", b"v")] * 9)
        writers[1].put(b"key", b"value")
        app.look()
        orders = []
        for _ in SORTS:
            orders.append(column(app, "slot"))
            await pilot.press("s")
        assert orders[0] == ["0", "1", "2"] == column(app, "slot")
        assert orders[1] == orders[2] == ["2", "1", "0"]

        await pilot.press("p")
        assert app.paused and "PAUSED" in text_of(app, "#head")
        writers[0].put(b"key", b"value")
        app.look()
        assert "LSN      10" in text_of(app, "#left")
        await pilot.press("p")
        app.look()
        assert "LSN      11" in text_of(app, "#left")

        assert "none timed" not in text_of(app, "#right").splitlines()[1]
        await pilot.press("r")
        assert "none timed" in text_of(app, "#right").splitlines()[1]

        await pilot.press("c")
        assert json.loads(app.clipboard)["now"]["writes_total"] == 11

        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        writers[0].put(b"key", b"value")
        app.look()
        assert "LSN      12" in text_of(app, "#left"), "the timer goes on under the help"
        await pilot.press("escape")
        assert not isinstance(app.screen, Help)
        await pilot.press("q")

    app = on_screen(log, drive)
    app.look()  # a last tick of the timer
    assert app.return_code == 0 and app.ended_by is None


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (20, 5), (1, 1)])
def test_every_size_of_terminal(log: Path, writers: list[WALWriter], size: tuple[int, int]) -> None:
    async def drive(app: MonitorApp, pilot: Pilot[None]) -> None:
        app.look()
        small = size < (80, 24)
        assert ("needs 80x24" in text_of(app, "#head")) == small
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        app.look()
        assert "entries/s" in text_of(app, "#head")

    on_screen(log, drive, size)


def test_killed_writers_are_marked_and_no_total_goes_back(child: StartChild, log: Path) -> None:
    others = [child(workers.put_each, log) for _ in range(4)]
    for number, each in enumerate(others):
        for key in range(number + 1):
            each.ask(b"%d" % key)

    async def drive(app: MonitorApp, pilot: Pilot[None]) -> None:
        app.look()
        assert column(app, "state") == ["idle"] * 4
        before = text_of(app, "#left").splitlines()[0]
        entries = sorted(column(app, "entries"))
        for each in others[:3]:
            each.kill()
            each.died()
        app.look()
        assert sorted(column(app, "state")) == ["ended without close"] * 3 + ["idle"]
        assert text_of(app, "#left").splitlines()[0] == before
        assert sorted(column(app, "entries")) == entries == ["1", "2", "3", "4"]

    on_screen(log, drive)


def test_the_log_may_go_while_the_screen_is_up(log: Path) -> None:
    WALWriter(log).close()

    async def drive(app: MonitorApp, pilot: Pilot[None]) -> None:
        shutil.rmtree(log)
        app.look()
        await pilot.pause()

    app = on_screen(log, drive)
    assert app.ended_by is not None and "no such log" in str(app.ended_by)


@pytest.mark.slow
def test_the_monitors_totals_are_the_truth(start: Start, run: Run, log: Path, tmp_path: Path) -> None:
    """8 workers of an ingest, three of them killed; totals never go back, and end as what is in the log."""
    files = [write_lines(tmp_path / f"file{number}", 30_000) for number in range(8)]
    words = ("ingest", log, *files, "-", "--workers", "8", "--batch", "20", "--verbose")
    ingest = start(*words, stdin=subprocess.PIPE)  # it goes on until that is closed
    workers = [ingest.read_worker() for _ in range(8)]
    wait_for_entries(log, 1000)
    with closing(Watch(str(log))) as watch:
        until(lambda: set(workers) <= {row.pid for row in watch.look().now.writers}, "all workers have opened the log")
        first = watch.look().now
        for pid in workers[:3]:
            ingest.kill(pid)
            ingest.read_worker()  # its successor: the parent has reaped it
        ingest.close_stdin()
        last = first
        since_entries = 0
        shown: set[int | None] = set()
        while ingest.process.poll() is None:
            look = watch.look()
            for name in ("writes_total", "batches_total", "bytes_written", "sync_total", "lock_waits"):
                assert getattr(look.now, name) >= getattr(last, name), f"{name} went back"
            assert look.now.batch_entries.count >= last.batch_entries.count
            before, shown = shown, set(workers[:3]) & {row.pid for row in look.now.writers}
            assert not before & shown, "a killed one's slot is taken, for a moment, by one that has not said who it is"
            since_entries += look.since.entries
            last = look.now
        assert ingest.wait().code == 0
        look = watch.look()
        entries = values_by_key(log)
        assert look.now.writes_total == len(entries) == 8 * 30_000
        assert first.writes_total + since_entries + look.since.entries == len(entries)
        with WALReader(log) as reader:
            batches = list(reader.batches())
            assert look.now.batches_total == len(batches)
            assert look.now.bytes_written == reader.stats.bytes
    # A worker killed between its append and its count is one short in its row.
    assert look.now.batches_total - 3 <= look.now.batch_entries.count <= look.now.batches_total
    found = run("stat", log, "--json").json
    assert found["totals"]["writes_total"] == len(entries)
