"""The jobs of the benchmark: each does one piece of work in an empty directory and says what it measured.

Holds: one job is one process, `python tools/bench_work.py JOB DIRECTORY SCALE`, which prints its rates as JSON, so
nothing that an earlier job left in memory helps or hinders it. Keys and entries are built before the clock starts,
for walpool and for its peers alike; the garbage collector runs, but does not look at them.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import perf_counter, perf_counter_ns, process_time

import bench_peers as peers
from bench_peers import VALUE, PutAll, Store, make_keys
from walpool import (
    Cursor,
    CursorGroup,
    ReadBatch,
    SyncMode,
    WALEntry,
    WALMetrics,
    WALReader,
    WALWriter,
    map_batches,
)
from walpool.write import appender, coordinator

LOG = "log.wal"
BATCH_ENTRIES = 1_000
START_TOGETHER_S = 60.0

SEGMENT_BYTES = 64 << 20
SMALL_LOG_BYTES = 1_000_000
LARGE_LOG_BYTES = 1_000_000_000
NEVER = 1 << 62
GROWTH_BLOCKS = 200
GROWTH_BLOCK_PUTS = 100

Job = Callable[
    [Path, float], dict[str, float]
]  # directory, scale of the work -> figures by name: rates per second, or as the job says
BatchPeer = Callable[[Path, Sequence[Sequence[bytes]]], Callable[[], None]]


@contextmanager
def walpool_normal(directory: Path) -> Iterator[PutAll]:
    with WALWriter(directory / LOG, SyncMode.NORMAL) as writer:
        yield walpool_put_all(writer)


@contextmanager
def walpool_mapped(directory: Path) -> Iterator[PutAll]:
    with WALWriter(directory / LOG, SyncMode.NORMAL, mapped=True) as writer:
        yield walpool_put_all(writer)


@contextmanager
def walpool_full(directory: Path) -> Iterator[PutAll]:
    with WALWriter(directory / LOG, SyncMode.FULL) as writer:
        yield walpool_put_all(writer)


def walpool_put_all(writer: WALWriter) -> PutAll:
    def put_all(keys: Sequence[bytes]) -> None:
        put = writer.put
        for key in keys:
            put(key, VALUE)

    return put_all


def puts(store: Store, count: int, directory: Path, scale: float) -> dict[str, float]:
    """One process, one put at a time."""
    first, *keys = make_keys(1 + int(count * scale))
    with store(directory) as put_all:
        put_all([first])  # what a store makes at its first put is not counted
        return {"": rate(len(keys), partial(put_all, keys))}


def crowd(store: Store, processes: int, count: int, directory: Path, scale: float) -> dict[str, float]:
    """`processes` processes that start together, each with `count` puts: all puts over the time until the last."""
    with store(directory):
        pass  # made once, so that nobody waits for another to make it
    # fork: this process has one thread, and starting sixteen interpreters anew would take longer than the work
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)
    spans = context.SimpleQueue()
    each = max(1, int(count * scale))

    def member(number: int) -> None:
        first, *keys = make_keys(1 + each, writer=number)
        with store(directory) as put_all:
            put_all([first])
            gc.freeze()
            barrier.wait(START_TOGETHER_S)
            start = perf_counter()  # the system's monotonic clock: one for all processes
            put_all(keys)
            spans.put((start, perf_counter()))

    members = [context.Process(target=member, args=(number,)) for number in range(processes)]
    for process in members:
        process.start()
    for process in members:
        process.join()
    if any(process.exitcode for process in members):
        raise RuntimeError(f"a writer process failed: exit codes {[process.exitcode for process in members]}")
    starts, ends = zip(*(spans.get() for _ in members), strict=True)
    return {"": processes * each / (max(ends) - min(starts))}


def append_batches(directory: Path, scale: float) -> dict[str, float]:
    batches = make_batches(int(300 * scale))
    with WALWriter(directory / LOG, SyncMode.NORMAL) as writer:
        writer.append_batch(batches.pop())

        def work() -> None:
            append_batch = writer.append_batch
            for batch in batches:
                append_batch(batch)

        return {"": rate(len(batches) * BATCH_ENTRIES, work)}


def peer_batches(peer: BatchPeer, directory: Path, scale: float) -> dict[str, float]:
    keys = make_keys(int(300 * scale) * BATCH_ENTRIES)
    batches = [keys[at : at + BATCH_ENTRIES] for at in range(0, len(keys), BATCH_ENTRIES)]
    return {"": rate(len(keys), peer(directory, batches))}


def read_batched(directory: Path, scale: float) -> dict[str, float]:
    batches = make_batches(int(500 * scale))
    with WALWriter(directory / LOG, SyncMode.NORMAL) as writer:
        for batch in batches:
            writer.append_batch(batch)
    return {"": read_back(directory, len(batches) * BATCH_ENTRIES)}


def read_single(directory: Path, scale: float) -> dict[str, float]:
    keys = make_keys(int(200_000 * scale))
    with walpool_normal(directory) as put_all:
        put_all(keys)
    return {"": read_back(directory, len(keys))}


def read_back(directory: Path, count: int) -> float:
    with WALReader(directory / LOG) as reader:
        last: deque[WALEntry] = deque(maxlen=1)
        entries_per_s = rate(count, lambda: last.extend(reader))
    if not last or last[0].lsn != count:
        raise RuntimeError(f"the log has {count} entries, and reading it ended elsewhere")
    return entries_per_s


def follow(directory: Path, scale: float) -> dict[str, float]:
    """A cursor, and a group of one member, beside a plain reader: in turns, from a log that is durable."""
    batches = make_batches(int(500 * scale))
    count = len(batches) * BATCH_ENTRIES
    with WALWriter(directory / LOG, SyncMode.NORMAL) as writer:
        for batch in batches:
            writer.append_batch(batch)
        writer.sync()
    rates: dict[str, list[float]] = {"read": [], "follow": [], "group": []}
    for turn in range(3):
        rates["read"].append(read_back(directory, count))
        with Cursor(directory / LOG, f"cursor-{turn}") as cursor:
            rates["follow"].append(rate(count, lambda: deque(cursor.follow(timeout=0), 0)))
        with CursorGroup(directory / LOG, f"group-{turn}", 4) as group:
            rates["group"].append(rate(count, lambda: deque(group.follow(timeout=0), 0)))
    return {name: statistics.median(values) for name, values in rates.items()}


def commits(directory: Path, scale: float) -> dict[str, float]:
    count = int(4_000 * scale)
    with WALWriter(directory / LOG, SyncMode.NORMAL) as writer:
        writer.append_batch([WALEntry.put(b"key", b"")] * (2 * count))
        writer.sync()
    with Cursor(directory / LOG, "cursor") as cursor:
        synced = rate(count, lambda: [cursor.commit(lsn) for lsn in range(1, count + 1)])
        unsynced = rate(count, lambda: [cursor.commit(lsn, sync=False) for lsn in range(count + 1, 2 * count + 1)])
    with (directory / "plain").open("wb", buffering=0) as file:
        file.write(bytes(64))
        os.fsync(file.fileno())

        def write() -> None:
            for _ in range(count):
                os.pwrite(file.fileno(), bytes(32), 0)
                os.fdatasync(file.fileno())

        plain = rate(count, write)
    return {"synced": synced, "unsynced": unsynced, "plain": plain}


def growth(directory: Path, scale: float) -> dict[str, float]:
    """Puts into a log of 1 MB and into one of 1 GB, in turns; the median of many short blocks of each."""
    with (
        WALWriter(directory / "small.wal", SyncMode.NORMAL, SEGMENT_BYTES) as small,
        WALWriter(directory / "large.wal", SyncMode.NORMAL, SEGMENT_BYTES) as large,
    ):
        batch = make_batches(1)[0]
        for writer, want_bytes in (small, SMALL_LOG_BYTES), (large, int(LARGE_LOG_BYTES * scale)):
            for _ in range(want_bytes // (BATCH_ENTRIES * 132)):  # 116 bytes and 16 of overhead an entry
                writer.append_batch(batch)
            writer.sync()  # or the disk would still be busy with it
        keys = make_keys(GROWTH_BLOCK_PUTS)
        logs = [("small", walpool_put_all(small)), ("large", walpool_put_all(large))]
        blocks: dict[str, list[float]] = {"small": [], "large": []}
        gc.collect()
        gc.freeze()
        for _ in range(GROWTH_BLOCKS):
            logs.reverse()
            for name, put_all in logs:
                start = perf_counter()
                put_all(keys)
                blocks[name].append(len(keys) / (perf_counter() - start))
    return {name: statistics.median(rates) for name, rates in blocks.items()}


def rotations(prepared: bool, directory: Path, scale: float) -> dict[str, float]:
    """How long single NORMAL puts take, in us, while segments of 8 MiB rotate."""
    if not prepared:
        coordinator.PREPARE_FROM_BYTES = NEVER
    keys = make_keys(int(400_000 * scale))
    with WALWriter(directory / LOG, SyncMode.NORMAL, 8 << 20) as writer:
        put_ns = []
        put = writer.put
        gc.collect()
        gc.freeze()
        for key in keys:
            start = perf_counter_ns()
            put(key, VALUE)
            put_ns.append(perf_counter_ns() - start)
    put_ns.sort()
    return {
        name: put_ns[int(len(keys) * share)] / 1e3 for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    }


def full_into_growing_files(directory: Path, scale: float) -> dict[str, float]:
    """One FULL writer, and nothing was written where its frames go: each sync has a new size to make durable."""
    coordinator.PREPARE_FROM_BYTES = NEVER
    appender.AHEAD_BYTES = 0
    return crowd(walpool_full, 1, 8_000, directory, scale)


def waiting(directory: Path, scale: float) -> dict[str, float]:
    """8 FULL writers for 10 s: how evenly they come to their turn, and what it costs them."""
    seconds = 10 * scale
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    done = context.SimpleQueue()
    log = directory / LOG
    WALWriter(log).close()

    def member() -> None:
        with WALWriter(log, SyncMode.FULL) as writer:
            writer.put(b"first", VALUE)
            barrier.wait(START_TOGETHER_S)
            count, cpu, end = 0, process_time(), perf_counter() + seconds
            while perf_counter() < end:
                writer.put(b"0123456789abcdef", VALUE)
                count += 1
            done.put((count, process_time() - cpu))

    members = [context.Process(target=member) for _ in range(8)]
    for process in members:
        process.start()
    for process in members:
        process.join()
    counts, cpus = zip(*(done.get() for _ in members), strict=True)
    with WALMetrics.attach(log) as metrics:
        syncs = metrics.snapshot().sync_total
    return {
        "even": min(counts) / max(counts),
        "cpu": 100 * sum(cpus) / seconds / 8,
        "cpu_us": 1e6 * sum(cpus) / sum(counts),
        "group": sum(counts) / syncs,
    }


def make_batches(count: int) -> list[list[WALEntry]]:
    keys = make_keys(max(2, count) * BATCH_ENTRIES)
    entries = [WALEntry.put(key, VALUE, timestamp=1) for key in keys]
    return [entries[at : at + BATCH_ENTRIES] for at in range(0, len(entries), BATCH_ENTRIES)]


def rate(count: int, work: Callable[[], object]) -> float:
    gc.collect()
    gc.freeze()
    start = perf_counter()
    work()
    return count / (perf_counter() - start)


# The counts make each job last about a second or two.
def map_in_parallel(directory: Path, scale: float) -> dict[str, float]:
    """1 GiB in batches of 1,000: what a function gives for each, by one reader and by two workers, entries a second.

    `cpu`: what all processes used together, over one reader: the cost of dividing, also on a busy machine. New
    interpreters take 0.1 s each before they begin, forked ones nothing.
    """
    fill_with_batches(directory / LOG, int(scale * (1 << 30) / (BATCH_ENTRIES * 132)))

    def alone() -> list[int]:
        with WALReader(directory / LOG) as reader:
            return list(map(bytes_of_values, reader.batches()))

    def together(method: str) -> list[int]:
        return list(map_batches(directory / LOG, bytes_of_values, workers=2, method=method))

    figures: dict[str, float] = {}
    used: dict[str, float] = {}
    for name, work in (("one", alone), ("two", partial(together, "spawn")), ("forked", partial(together, "fork"))):
        cpu_s, start = cpu_of_all(), perf_counter()
        found = work()
        figures[name] = sum(found) / len(VALUE) / (perf_counter() - start)
        used[name] = cpu_of_all() - cpu_s
    return {**figures, "cpu": used["two"] / used["one"], "cpu-forked": used["forked"] / used["one"]}


def bytes_of_values(batch: ReadBatch) -> int:
    return sum(len(entry.value) for entry in batch.entries)


def cpu_of_all() -> float:
    """Seconds, of this process and its children that have ended."""
    return sum(times.ru_utime + times.ru_stime for times in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def seek_into_batches(directory: Path, scale: float) -> dict[str, float]:
    """A reader made for one entry out of batches of 1 MB: us of CPU, median."""
    entries = [WALEntry.put(bytes(16), VALUE)] * ((1 << 20) // 132)
    count = max(2, int(600 * scale))
    with WALWriter(directory / LOG, SyncMode.NORMAL) as writer:
        for _ in range(count):
            last = writer.append_batch(entries)[-1]
    took = []
    for lsn in range(1, last, last // 300):
        start = process_time()
        with WALReader(directory / LOG, lsn) as reader:
            reader.read_entry()
        took.append((process_time() - start) * 1e6)
    return {"p50": statistics.median(took)}


def fill_with_batches(log: Path, count: int) -> None:
    batch, *_ = make_batches(0)
    with WALWriter(log, SyncMode.NORMAL) as writer:
        for _ in range(max(1, count)):
            writer.append_batch(batch)


JOBS: dict[str, Job] = {
    "put": partial(puts, walpool_normal, 200_000),
    "put-mapped": partial(puts, walpool_mapped, 400_000),
    "put-lmdb": partial(puts, peers.lmdb_mapped, 200_000),
    "put-lmdb-files": partial(puts, peers.lmdb_unsynced, 100_000),
    "put-sqlite": partial(puts, peers.sqlite_off, 50_000),
    "put-plain": partial(puts, peers.plain_append, 400_000),
    "batch": append_batches,
    "batch-lmdb": partial(peer_batches, peers.lmdb_multi_batches),
    "batch-lmdb-puts": partial(peer_batches, peers.lmdb_put_batches),
    "read-batched": read_batched,
    "read-single": read_single,
    "cursor": follow,
    "commits": commits,
    "map": map_in_parallel,
    "seek": seek_into_batches,
    "writers-1": partial(crowd, walpool_normal, 1, 200_000),
    "writers-4": partial(crowd, walpool_normal, 4, 50_000),
    "growth": growth,
    "full-1": partial(crowd, walpool_full, 1, 8_000),
    "full-8": partial(crowd, walpool_full, 8, 3_000),
    "full-16": partial(crowd, walpool_full, 16, 1_500),
    "full-sqlite-8": partial(crowd, peers.sqlite_full, 8, 400),
    "full-plain-1": partial(crowd, peers.plain_synced, 1, 6_000),
    "full-lmdb-1": partial(crowd, peers.lmdb_synced, 1, 4_000),
    "full-1-growing": full_into_growing_files,
    "rotations": partial(rotations, True),
    "rotations-unprepared": partial(rotations, False),
    "waiting": waiting,
}


def main() -> None:
    job, directory, scale = sys.argv[1:]
    rates = JOBS[job](Path(directory), float(scale))
    print(json.dumps({f"{job}/{name}".rstrip("/"): value for name, value in rates.items()}))


if __name__ == "__main__":
    main()
