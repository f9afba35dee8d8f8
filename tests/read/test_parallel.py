"""map_batches: what reading in one process gives, from several; and how it ends when something goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from tests.read.logs import entries, fill, make, read, segment_files
from tests.read.test_plan import random_log
from tests.support import until
from walpool import (
    CorruptLog,
    LogNotFound,
    LogReplaced,
    LSNUnavailable,
    ReadBatch,
    Retention,
    WALError,
    WALReader,
    WALWriter,
    WorkerFailed,
    map_batches,
)  # fmt: skip
from walpool.read import parallel
from walpool.read.plan import Ground, LSNRange

FORK = {"method": "fork", "workers": 2}  # a tenth of a start's work; what new interpreters do is tried where it differs
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PART_BYTES", 700)
    monkeypatch.setattr(parallel, "LEAST_BYTES", 100)


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    helpers = "resource_tracker", "forkserver"  # multiprocessing's own: they end with this process
    after = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert [child for child in after if not any(name in "".join(child.cmdline()) for name in helpers)] == []


@pytest.fixture
def log(tmp_path: Path) -> Path:
    make(tmp_path / "log", 300, size_limit=3000)
    return tmp_path / "log"


def itself(batch: ReadBatch) -> ReadBatch:
    return batch


def batches_of(log: Path, **options: Any) -> list[ReadBatch]:
    with WALReader(log, **options) as reader:
        return list(reader.batches())


first_lsn = attrgetter("first_lsn")


# What it gives


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_the_results_are_those_of_one_reader_in_order(log: Path, method: str) -> None:
    assert list(map_batches(log, itself, workers=2, method=method)) == batches_of(log)


def test_any_log_and_any_range_gives_what_one_reader_gives(tmp_path: Path, seed: int) -> None:
    chance = Random(seed)
    for number in range(6):
        log = random_log(chance, tmp_path / f"log{number}")
        end = chance.choice([None, chance.randint(1, 900)])
        start = chance.choice([None, chance.randint(1, 300)])
        wanted = batches_of(log, start=start, end=end)
        options: dict[str, Any] = {"start": start, "end": end, "method": "fork", "workers": chance.randint(1, 3)}
        assert list(map_batches(log, itself, **options)) == wanted, (seed, number)
        unordered = map_batches(log, itself, ordered=False, **options)
        assert sorted(unordered, key=first_lsn) == wanted, (seed, number)


def test_a_cut_inside_a_batch_leaves_it_whole_and_gives_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bytes that were made to look like frames could have it."""
    log = tmp_path / "log"
    with WALWriter(log) as writer:
        for first, count in ((1, 1), (2, 50), (52, 3), (55, 45)):
            writer.append_batch(entries(first, first + count))
    cuts = [1, 2, 10, 30, 31, 52, 53, 90, 100]
    parts = [LSNRange(start, end) for start, end in pairwise(cuts)]
    monkeypatch.setattr(Ground, "parts", lambda self, count: iter(parts))
    assert list(map_batches(log, itself, **FORK)) == batches_of(log)


def test_what_is_appended_meanwhile_is_not_read(log: Path) -> None:
    with WALWriter(log) as writer:
        results = map_batches(log, first_lsn, **FORK)
        fill(writer, 50)
        found = [next(results)]
        fill(writer, 50)
        assert found + list(results) == [batch.first_lsn for batch in batches_of(log, end=301)]


def test_an_empty_range_starts_no_worker(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walpool.system.workers.Workers._hire", None)
    assert list(map_batches(log, itself, start=301)) == list(map_batches(log, itself, start=9, end=9)) == []


def test_progress_rises_to_all_there_is(log: Path) -> None:
    said: list[tuple[int, int]] = []
    for _ in map_batches(log, len, start=11, progress=lambda *numbers: said.append(numbers), **FORK):
        pass
    assert said == sorted(set(said)) and said[-1] == (290, 290) and len(said) > 3


def test_no_more_is_read_ahead_than_the_bound(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walpool.system.workers.AHEAD_BYTES", 1 << 20)
    monkeypatch.setattr("walpool.system.workers.AHEAD_TASKS", 1000)
    notes = tmp_path / "notes"
    results = map_batches(log, partial(large, notes), **FORK)
    there = len(batches_of(log))
    pause = threading.Event()
    for _ in range(there // 2):  # slower than they are
        assert len(next(results)) == 200_000
        pause.wait(0.01)
    size = -1
    while size != notes.stat().st_size:  # until the workers wait for us
        size = notes.stat().st_size
        pause.wait(0.2)
    # The bound and a message of each worker that is over it, what stands in the pipes, and what is being made.
    assert there // 2 < size < there // 2 + 20
    assert there // 2 + sum(1 for _ in results) == there == notes.stat().st_size


def large(notes: Path, batch: ReadBatch) -> bytes:
    with notes.open("ab") as file:
        file.write(b".")
    return bytes(200_000)


# Retention, and other logs


def test_retention_keeps_what_was_not_read_yet_and_no_more(log: Path) -> None:
    wanted = [batch.first_lsn for batch in batches_of(log)]
    with WALWriter(log, size_limit=3000) as writer:
        writer.checkpoint(300)
        results = map_batches(log, first_lsn, **FORK)
        assert not writer.prune().removed
        found = []
        removed = 0
        for each in results:
            found.append(each)
            removed += len(writer.prune().removed)
        assert found == wanted and removed


def test_what_retention_removes_beyond_the_pins_is_said(log: Path) -> None:
    with WALWriter(log, size_limit=3000, retention=Retention(max_segments=1, max_pinned_bytes=0)) as writer:
        results = map_batches(log, first_lsn, **FORK)
        fill(writer, 300)
        writer.rotate()
        writer.prune()
        with pytest.raises(LSNUnavailable):
            list(results)


def test_another_log_in_its_place_is_not_read(log: Path, tmp_path: Path) -> None:
    results = map_batches(log, first_lsn, **FORK)
    log.rename(tmp_path / "moved")
    make(log, 300, size_limit=3000)
    with pytest.raises(LogReplaced, match="another log"):
        list(results)


def test_damage_is_raised_behind_all_that_stands_before_it(log: Path) -> None:
    file = segment_files(log)[3]
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    wanted = read(log)
    found: list[ReadBatch] = []
    with pytest.raises(CorruptLog) as caught:
        found.extend(map_batches(log, itself, **FORK))  # list.extend takes what came before the error
    assert str(caught.value) == str(wanted.error)
    assert [entry for batch in found for entry in batch.entries] == wanted.entries
    assert "In worker" in "".join(caught.value.__notes__)


# Workers that fail


class Odd(Exception):
    """Cannot be unpickled: that calls it with its one argument."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def at(lsn: int, act: Callable[[], Any], batch: ReadBatch) -> Any:
    return act() if batch.first_lsn <= lsn < batch.first_lsn + batch.count else batch.first_lsn


def raise_key_error() -> None:
    raise KeyError("nothing is called so")


def raise_odd() -> None:
    raise Odd(1, 2)


def give_a_lambda() -> Any:
    return lambda: None


def give_odd() -> Any:
    return Odd(1, 2)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAILURES = {
    "raises": (
        raise_key_error,
        "the function raised KeyError: 'nothing is called so', given the batch with LSN",
        KeyError,
    ),
    "raises what cannot be sent": (raise_odd, "the function raised .*Odd: odd", type(None)),
    "exits": (partial(sys.exit, 3), "the function raised SystemExit: 3", SystemExit),
    "interrupts": (partial(signal.raise_signal, signal.SIGTERM), "was killed by SIGTERM", type(None)),
    "ends": (partial(os._exit, 7), "ended with code 7", type(None)),
    "is killed": (die, "was killed by SIGKILL", type(None)),
    "gives what cannot be sent": (give_a_lambda, "cannot be sent back", Exception),
    "gives what cannot be taken": (give_odd, "cannot be unpickled here", TypeError),
}


@pytest.mark.parametrize(
    ("case", "method"), [*((case, "fork") for case in FAILURES), ("raises", "spawn"), ("is killed", "spawn")]
)
def test_a_worker_that_fails_is_an_error_behind_the_results_before_it(log: Path, case: str, method: str) -> None:
    act, words, cause = FAILURES[case]
    found: list[int] = []
    with pytest.raises(WorkerFailed, match=words) as caught:
        found.extend(map_batches(log, partial(at, 200, act), workers=2, method=method))
    error = caught.value
    assert isinstance(error, WALError) and error.start <= 200 < error.end
    assert isinstance(error.__cause__, cause)
    wanted = [batch.first_lsn for batch in batches_of(log) if batch.first_lsn + batch.count <= 200]
    whole = [lsn for lsn in wanted if lsn < error.start]  # what a worker that dies has not sent yet is lost with it
    assert found == wanted[: len(found)] and len(found) >= len(whole)
    if case in ("raises", "exits", "gives what cannot be taken"):
        assert found == wanted
    if case.startswith("raises"):
        assert "in raise_" in "".join(traceback.format_exception(error))  # the worker's traceback
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.start, again.reason) == (str(error), error.start, error.reason)


def test_out_of_order_a_failure_is_raised_as_it_comes(log: Path) -> None:
    with pytest.raises(WorkerFailed, match="KeyError"):
        for _ in map_batches(log, partial(at, 150, raise_key_error), ordered=False, **FORK):
            pass


def test_a_killed_worker_is_noticed_though_a_grandchild_has_its_connection(log: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(WorkerFailed, match="SIGKILL"):
        list(map_batches(log, partial(at, 150, partial(leave_a_child, note)), **FORK))
    child = psutil.Process(int(note.read_text()))
    child.kill()
    until(lambda: not child.is_running(), "the grandchild's end")


def leave_a_child(note: Path) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    note.write_text(str(pid))
    die()


def test_functions_that_cannot_be_sent_are_refused_at_once(log: Path) -> None:
    with pytest.raises(TypeError, match="at the top level of a module"):
        map_batches(log, lambda batch: batch.count, workers=2)
    with pytest.raises(TypeError, match="function must be callable"):
        map_batches(log, 5)  # type: ignore[arg-type]
    assert list(map_batches(log, lambda batch: batch.first_lsn, **FORK)) == [
        batch.first_lsn for batch in batches_of(log)
    ]


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": 1.0}, {"start": 0}, {"end": -1}, {"method": "thread"}, {"workers": True}]
)
def test_options_that_cannot_be_are_refused(log: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        map_batches(log, len, **options)


def test_a_log_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        map_batches(tmp_path / "nothing", len)


def test_inside_a_pool_of_multiprocessing_it_is_refused(log: Path) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(RuntimeError, match="daemonic"):
        pool.apply(partial(drain, log))
    pool.join()


def drain(log: Path) -> list[int]:
    return list(map_batches(log, len, method="fork"))


# Its end


def test_an_iterator_that_is_dropped_or_closed_reaps_its_workers(log: Path) -> None:
    for end in (
        lambda results: results.close(),
        lambda results: None,
        lambda results: results.throw(KeyboardInterrupt),
    ):
        results = map_batches(log, first_lsn, **FORK)
        next(results)
        if len(psutil.Process().children()) < 2:
            pytest.fail("the workers are not there")
        try:
            end(results)
        except KeyboardInterrupt:
            pass
        del results


def test_one_that_was_never_started_holds_nothing(log: Path) -> None:
    with WALWriter(log, size_limit=3000) as writer:
        writer.checkpoint(300)
        results = map_batches(log, first_lsn)
        assert not writer.prune().removed
        del results
        assert writer.prune().removed


PROGRAM = """
import os, sys, time
from walpool import map_batches

def slowly(batch):
    time.sleep(0.02)
    return os.getpid()

if __name__ == "__main__":
    import walpool.read.parallel as parallel
    parallel.PART_BYTES = parallel.LEAST_BYTES = 700
    pids = set()
    try:
        for pid in map_batches(sys.argv[1], slowly, workers=2, method=sys.argv[2]):
            if pid not in pids:
                pids.add(pid)
                print(pid, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


ENDS = [(method, how) for method in ("spawn", "fork") for how in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM)]


@pytest.mark.parametrize(("method", "how"), [*ENDS, ("forkserver", signal.SIGKILL)])
def test_a_program_that_is_ended_leaves_nobody_behind(
    log: Path, tmp_path: Path, method: str, how: signal.Signals
) -> None:
    """Ctrl-C is for all processes of the terminal; the others are sent to the program alone."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, program, log, method],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    pids = [int(process.stdout.readline()), int(process.stdout.readline())]
    if how is signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    out, err = process.communicate(timeout=60)
    until(lambda: not any(map(is_at_work, pids)), "the workers' end")
    assert "Traceback" not in err, err
    assert (out, process.returncode) == (("interrupted\n", 0) if how is signal.SIGINT else (out, -how))


def is_at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_program_without_its_guard_is_told_so(log: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom operator import attrgetter\nfrom walpool import map_batches\n"
        "print(sum(map_batches(sys.argv[1], attrgetter('count'), workers=2)))\n"
    )
    done = subprocess.run([sys.executable, program, log], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1 and done.stdout == ""
    assert "RuntimeError: this process is a worker that imports the main program" in done.stderr
    assert "WorkerFailed" in done.stderr.splitlines()[-1] and '__name__ == "__main__"' in done.stderr.splitlines()[-1]


def test_a_function_that_a_new_process_cannot_find_is_told_so(log: Path) -> None:
    """As of a program that was typed in, or given as -c."""
    program = "import walpool, sys\ndef count(batch): return batch.count\nlist(walpool.map_batches(sys.argv[1], count))"
    done = subprocess.run([sys.executable, "-c", program, log], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1 and "could not begin (AttributeError" in done.stderr
    assert "at the top level of a module that can be imported" in done.stderr
