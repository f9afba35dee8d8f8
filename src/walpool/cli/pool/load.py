"""Load: append the lines of sources to a log with a pool of worker processes, in the order that makes it exact.

The log is opened, then the loading lock is taken, then the log is read, then workers are started: whoever comes later
waits for the lock, and reads the log when nobody appends lines any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from walpool import SyncMode, WALWriter
from walpool.cli.exits import CommandError, Exit
from walpool.cli.pool.crew import Crew, Hooks
from walpool.cli.pool.feed import STDIN_NAME, ChainFeed, Feed, FileFeed, StdinFeed
from walpool.cli.pool.ledger import for_sources, read_whole
from walpool.cli.pool.lines import Intake, LongLines, Run, parcel_bytes_for
from walpool.cli.pool.sources import Source
from walpool.cli.pool.worker import WorkerOptions
from walpool.format.names import INGEST_LOCK
from walpool.system import clock, forks, signals
from walpool.system.files import Directory
from walpool.system.locks import try_lock_of_command

SAY_AFTER_S = 1.0
LOOK_AGAIN_S = 0.02


@dataclass(frozen=True, slots=True)
class LoadOptions:
    log: Path
    workers: int
    sync_mode: SyncMode
    size_limit: int  # bytes of one segment
    batch_lines: int
    wait_s: float  # for the loading lock
    allow_network_fs: bool = False
    final: bool = True  # what stands behind the last line feed of a file is a line
    long_lines: LongLines = LongLines.ERROR
    stdin_name: bytes = STDIN_NAME  # its keys begin with it


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loading did. Its LSNs are `first_lsn` to `last_lsn`, together with what others appended meanwhile."""

    lines: int
    bytes: int  # line feeds included
    skipped: int  # lines that were in the log already
    workers: int  # processes that were started
    replaced: int  # of them, those that died
    seconds: float  # in all
    appending_s: float  # of them, without opening the log and reading what was there
    first_lsn: int
    last_lsn: int
    durable_lsn: int
    first_kept_lsn: int  # above 1 if retention removed entries, whose lines could not be known
    complete: bool  # False after Ctrl-C
    too_long: int  # lines over the limit
    held_back: int  # last lines of files, without a line feed
    problems: tuple[CommandError, ...]  # what could not be taken in, and why

    def as_dict(self) -> dict[str, object]:
        return {
            "complete": self.complete,
            "lines": self.lines,
            "bytes": self.bytes,
            "skipped": self.skipped,
            "workers": self.workers,
            "workers_replaced": self.replaced,
            "too_long": self.too_long,
            "held_back": self.held_back,
            "problems": [str(problem) for problem in self.problems],
            "seconds": round(self.seconds, 3),
            "appending_seconds": round(self.appending_s, 3),
            "first_lsn": self.first_lsn,
            "last_lsn": self.last_lsn,
            "durable_lsn": self.durable_lsn,
        }


@dataclass(frozen=True, slots=True)
class Reports:
    """What a loading tells while it goes on."""

    say: Callable[[str], None]  # to the person
    reading: Callable[[int], None]  # how many entries of the log have been read, before the first line is appended
    progress: Callable[[int, int, int], None]  # lines appended, their bytes, bytes that were in the log already
    started: Callable[[int, int], None] = lambda serial, pid: None  # a worker process
    placed: Callable[[int, tuple[Run, ...]], None] = lambda serial, runs: None  # see Hooks


def load(
    options: LoadOptions,
    sources: Sequence[Source],
    stdin: FileIO | None,
    reports: Reports,
) -> Loaded:
    """Append every line that the log does not hold yet, files first and then `stdin`, and make it durable.

    What is wrong with a source is said and noted, and the others go in. Raises CommandError (busy, a worker that cannot
    go on) and what walpool raises; what was appended until then stays, and loading the same again appends the rest.
    """
    begin_s = clock.monotonic()
    with WALWriter(
        options.log,
        options.sync_mode,
        options.size_limit,
        name="walpool load",
        allow_network_fs=options.allow_network_fs,
    ) as writer:

        def next_lsn() -> int:
            return writer.metrics.snapshot().next_lsn

        with _loading_lock(options, reports.say) as lock_fd:
            first_lsn = next_lsn()
            ledger = for_sources(sources, [] if stdin is None else [options.stdin_name])
            intake = Intake(reports.say, options.final, options.long_lines, options.size_limit)
            first_kept_lsn = read_whole(ledger, options.log, reports.reading) if first_lsn > 1 else 1
            total_bytes = sum(source.size for source in sources)
            files = FileFeed(sources, ledger, parcel_bytes_for(total_bytes, options.workers), intake)
            feeds: list[Feed] = [files]
            if stdin is not None:
                feeds.append(StdinFeed(stdin, options.stdin_name, ledger.highest[options.stdin_name] + 1, intake))
            feed = ChainFeed(feeds)
            worker_options = WorkerOptions(
                options.log, options.sync_mode, options.size_limit, options.batch_lines, options.allow_network_fs
            )

            def placed(serial: int, runs: tuple[Run, ...]) -> None:
                reports.placed(serial, runs)
                reports.progress(crew.tally.lines, crew.tally.bytes, files.skipped_bytes)

            hooks = Hooks(reports.say, reports.started, placed)
            start_s = clock.monotonic()
            with (
                Crew(options.log, worker_options, options.workers, next_lsn, (lock_fd,), hooks) as crew,
                _first_interrupt(crew, feed) as interrupts,
            ):
                complete = crew.work(feed) and not interrupts
            durable_lsn = writer.sync()  # in every mode: the summary says what is on disk
            tally, end_s = crew.tally, clock.monotonic()
            return Loaded(
                tally.lines, tally.bytes, files.skipped, len(tally.pids), tally.replaced, end_s - begin_s,
                end_s - start_s, first_lsn, next_lsn() - 1, durable_lsn, first_kept_lsn, complete,
                intake.too_long, intake.held_back, tuple(intake.problems),
            )  # fmt: skip


@contextmanager
def _loading_lock(options: LoadOptions, say: Callable[[str], None]) -> Iterator[int]:
    """Hold `ingest.lock`; every worker keeps it too, so it is free when the last of them has ended."""
    with Directory(options.log) as directory, directory.open_or_create(INGEST_LOCK) as file:
        start_s = clock.monotonic()
        said = False
        while not try_lock_of_command(file.fd):
            waited_s = clock.monotonic() - start_s
            if waited_s >= options.wait_s:
                raise CommandError(
                    Exit.BUSY, f"{options.log}: another ingest or demo, or a worker that one left, is still at work"
                )
            if waited_s >= SAY_AFTER_S and not said:
                said = True
                say(f"waiting up to {options.wait_s:g} s for another ingest or demo on this log to end")
            clock.sleep(LOOK_AGAIN_S)
        with forks.kept_by_children(file.fd) as shared:
            yield shared  # the workers have ended when this returns, so the close frees the lock


@contextmanager
def _first_interrupt(crew: Crew, feed: Feed) -> Iterator[list[int]]:
    """The first Ctrl-C, SIGTERM or SIGHUP ends the loading in order, and is in the list; the second interrupts it."""
    interrupts: list[int] = []

    def on_signal(number: int) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt
        if feed.end_early():
            crew.wake()
        else:
            crew.stop()

    with signals.handled(on_signal):
        yield interrupts
