"""What tests share: child processes with a deadline, entries that name their author, and the judge of a log.

Holds: a child that a test started is reaped, and killed by its pid when the test ends, whatever went wrong; nothing
waits past DEADLINE_S. A target that runs in a child is a function of a module under tests/, with a Channel first.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from tests import nursery
from tests.nursery import Forked
from walpool import Operation, WALEntry, WALReader, WALWriter

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = float(os.environ.get("WALPOOL_DEADLINE_S", "60"))  # of every wait: only a bug comes near it
METHODS = ("spawn", "forkserver", "subprocess")  # how writers are started; fork has tests of its own
NURSERY = "nursery"  # the cheapest of all, for children of whose start nothing is claimed


# Children


class Channel:
    """Messages to and from a child: any picklable value; a wait past the deadline or a dead peer is an error."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, message: object) -> None:
        self.connection.send(message)

    def receive(self) -> Any:
        if not self.connection.poll(DEADLINE_S):
            raise AssertionError(f"no message came within {DEADLINE_S} s")
        return self.connection.recv()


class Child:
    """A process that runs one target. What the target returns is its `result`.

    Its process id stays taken until `end` has reaped it: a signal to a number that another process has by now would
    hit that one.
    """

    def __init__(self, method: str, target: Callable[..., object], args: tuple[object, ...]) -> None:
        self.name = f"{target.__module__}.{target.__qualname__}"
        self.code: int | None = None
        self._process: subprocess.Popen[bytes] | Forked | Any
        mine, theirs = multiprocessing.Pipe()
        self._channel = Channel(mine)
        if method == NURSERY:
            self._process = nursery.fork(nursery.CHILDREN, target.__module__, theirs.fileno())
        elif method == "subprocess":
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tests.support import child_main; child_main()", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # so that `end` reaches what it forks, too
            )
        else:
            self._process = multiprocessing.get_context(method).Process(target=run_first, args=(theirs,), daemon=True)
            self._process.start()
        self.pid: int = self._process.pid
        theirs.close()
        try:
            if method == NURSERY:
                self.send(dict(os.environ))
            self.send((target, args))
        except BaseException:
            self.end()
            raise

    def send(self, message: object) -> None:
        self._channel.send(message)

    def receive(self) -> Any:
        """The next message. What the target raised is raised here."""
        kind, value = self.next()
        assert kind == "message", f"{self.name} returned {value!r}, and a message was expected"
        return value

    def ask(self, message: object) -> Any:
        self.send(message)
        return self.receive()

    def result(self) -> Any:
        """What the target returned, once the child has ended in order."""
        kind, value = self.next()
        assert kind == "result", f"{self.name} sent {value!r}, and its result was expected"
        code = self.died()
        assert code == 0, f"{self.name} ended with {code}"
        return value

    def next(self) -> tuple[str, Any]:
        """What it says next, and whether that is a message or its result."""
        try:
            kind, value = self._channel.receive()
        except (EOFError, OSError):
            raise AssertionError(f"{self.name} (pid {self.pid}) ended with {self.died()} without a word") from None
        if kind == "error":
            raise AssertionError(f"in {self.name} (pid {self.pid}):\n{value}")
        return kind, value

    def kill(self) -> None:
        if isinstance(self._process, subprocess.Popen):
            os.kill(self.pid, signal.SIGKILL)  # Popen.kill would reap it if it has ended
        else:
            self._process.kill()

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        if isinstance(self._process, Forked):
            assert self._process.stop(DEADLINE_S), f"{self.name} ended instead of stopping"
            return
        os.kill(self.pid, signal.SIGSTOP)
        with deadline(self.kill):
            _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"{self.name} ended instead of stopping"

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def died(self) -> int:
        """Wait for its end: the exit code, or minus the signal that killed it."""
        if self.code is None:
            self.code = self._wait()
        assert self.code is not None, f"{self.name} (pid {self.pid}) still runs after {DEADLINE_S} s"
        return self.code

    def _wait(self) -> int | None:
        if isinstance(self._process, Forked):
            return self._process.wait(DEADLINE_S)
        if not isinstance(self._process, subprocess.Popen):
            self._process.join(DEADLINE_S)
            return self._process.exitcode
        late: list[bool] = []
        with deadline(lambda: (late.append(True), self.kill())):
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if late or ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def end(self) -> None:
        """Kill whatever is left of it, and reap it."""
        self._channel.connection.close()
        if isinstance(self._process, Forked):
            self._process.end(DEADLINE_S)
        elif isinstance(self._process, subprocess.Popen):
            try:
                os.killpg(self.pid, signal.SIGKILL)  # not reaped yet, so the group is its own
            except ProcessLookupError:
                pass
            self._process.wait(DEADLINE_S)
        elif self.code is None:
            self._process.kill()
            self._process.join(DEADLINE_S)


Start = Callable[..., Child]


@contextmanager
def deadline(kill: Callable[[], object]) -> Iterator[None]:
    """Whatever the block waits for, `kill` ends it at the deadline."""
    timer = threading.Timer(DEADLINE_S, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def child_main() -> None:
    run_first(Connection(int(sys.argv[1])))


class _ToParent(Channel):
    def send(self, message: object) -> None:
        self.connection.send(("message", message))


def run_first(connection: Connection) -> None:
    """Run the target that the first message names. What a finaliser complains about counts as its failure, too."""
    complaints: list[str] = []

    def complain(unraisable: Any) -> None:
        complaints.append("".join(traceback.format_exception(unraisable.exc_value)))

    sys.unraisablehook = complain
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
    try:
        target, args = connection.recv()
        result = target(_ToParent(connection), *args)
        gc.collect()
        if complaints:
            raise AssertionError("complaints of finalisers:\n" + "\n".join(complaints))
        connection.send(("result", result))
    except BaseException:
        connection.send(("error", traceback.format_exc()))
        sys.exit(1)


def until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until it is so; for what nothing but a look can tell."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, f"not so after {DEADLINE_S} s: {what}"
        time.sleep(0.001)


def reap(pid: int) -> int:
    """Wait for the end of a forked child: its exit code, or less than 0 for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_ended(pid: int) -> bool:
    """Whether a child of ours has, which is reaped later."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def waits_for_flock(pid: int) -> bool:
    """Whether the kernel has this process in line for a flock (Linux)."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any(words[1] == "->" and words[2] == "FLOCK" and words[5] == str(pid) for words in map(str.split, lines))


def run_threads(*targets: Callable[[], object]) -> None:
    """Run all at once, wait for all; the first exception of any is raised."""
    errors: list[BaseException] = []

    def run(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + DEADLINE_S
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))
        assert not thread.is_alive(), f"a thread still runs after {DEADLINE_S} s"
    if errors:
        raise errors[0]


def open_under(place: Path) -> list[str]:
    """The files under `place` that this process has open, once for each descriptor (Linux).

    Others come and go meanwhile: a descriptor that an earlier test left is closed whenever its owner is freed.
    """
    return sorted(name for name in open_fds().values() if name.startswith(str(place)))


def open_fds() -> dict[int, str]:
    """What this process has open (Linux)."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the listing's own
    return found


# Entries that name their author


def entries_of(author: str, op: int) -> list[WALEntry]:
    """The entries of an author's operation number `op`: mostly one put, now and then a delete or a batch.

    An author whose name begins with "large" makes batches of 4 x 70,000 bytes: more than 256 KiB.
    """
    if author.startswith("large"):
        keys = [f"{author}/{op}/{index}/4".encode() for index in range(4)]
        return [WALEntry.put(key, (key * (70_000 // len(key) + 1))[:70_000], op) for key in keys]
    count = 2 + op % 4 if op % 7 == 6 else 1
    entries = []
    for index in range(count):
        key = f"{author}/{op}/{index}/{count}".encode()
        if op % 11 == 10:
            entries.append(WALEntry.delete(key, op))
        else:
            entries.append(WALEntry.put(key, _value(key, 3000 if op % 89 == 88 else 200), op))
    return entries


def _value(key: bytes, longest: int) -> bytes:
    size = crc32(key) % (longest + 1)
    return (key * (size // len(key) + 1))[:size]


def append_op(writer: WALWriter, author: str, op: int) -> range:
    """Append operation `op` in one of the ways there are; its LSNs."""
    entries = entries_of(author, op)
    if len(entries) > 1:
        return writer.append_batch(entries)
    (entry,) = entries
    if entry.operation is Operation.DELETE:
        lsn = writer.delete(entry.key, entry.timestamp)
    elif op % 2:
        lsn = writer.append(entry)
    else:
        lsn = writer.put(entry.key, entry.value, entry.timestamp)
    assert lsn is not None
    return range(lsn, lsn + 1)


MAPPED = sys.platform == "linux"  # whether a writer can have mapped=True, in a place like `memory`


class Ack(NamedTuple):
    """An operation whose append returned: its LSNs, and the monotonic time before and after the call."""

    op: int
    first_lsn: int
    end_lsn: int
    before_ns: int = 0
    after_ns: int = 0


class Ledger:
    """A file of acknowledgements that survives its writer's death."""

    _ACK = struct.Struct("<5Q")
    ACK_BYTES = _ACK.size

    def __init__(self, folder: Path, author: str) -> None:
        folder.mkdir(exist_ok=True)
        self.author = author
        self._fd = os.open(folder / author, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, writer: WALWriter, op: int) -> range:
        """Append an operation and note that it was acknowledged, before anything else happens."""
        before = time.monotonic_ns()
        lsns = append_op(writer, self.author, op)
        after = time.monotonic_ns()
        self.note(Ack(op, lsns.start, lsns.stop, before, after))
        return lsns

    def note(self, ack: Ack) -> None:
        os.write(self._fd, self._ACK.pack(*ack))

    def close(self) -> None:
        os.close(self._fd)

    @classmethod
    def read_all(cls, folder: Path) -> dict[str, list[Ack]]:
        acks = {}
        for path in folder.iterdir():
            data = path.read_bytes()
            whole = len(data) - len(data) % cls._ACK.size  # its writer may have been killed in the middle
            acks[path.name] = [Ack(*fields) for fields in cls._ACK.iter_unpack(data[:whole])]
        return acks


# The judge


def read_log(log: str | os.PathLike[str]) -> list[WALEntry]:
    with WALReader(log) as reader:
        return reader.read_all()


def keys(log: str | os.PathLike[str]) -> list[bytes]:
    return [bytes(entry.key) for entry in read_log(log)]


def digest(entries: Iterable[WALEntry]) -> str:
    state = hashlib.sha256()
    for entry in entries:
        state.update(pickle.dumps((int(entry.operation), bytes(entry.key), bytes(entry.value), entry[3:]), 5))
    return state.hexdigest()


def judge(
    entries: Sequence[WALEntry],
    acks: Mapping[str, Iterable[Ack]],
    in_doubt: Mapping[str, Iterable[int]] | None = None,
    first_lsn: int = 1,
) -> None:
    """Whether the log is what its authors were told: AssertionError says where it is not.

    Every acknowledged operation is there exactly once, byte for byte, at its LSNs, whole, in its author's order; an
    append that returned before another began stands before it; LSNs are dense. Nothing else is there, but for
    operations `in_doubt`, whose author got no answer: those at most once, and whole.
    """
    dense = list(range(first_lsn, first_lsn + len(entries)))
    assert [entry.lsn for entry in entries] == dense, f"LSNs are not dense from {first_lsn}"
    found: dict[str, dict[int, range]] = {}
    last: dict[str, int] = {}
    at = 0
    while at < len(entries):
        author, op = _author(entries[at])
        expected = entries_of(author, op)
        there = [entry._replace(lsn=0) for entry in entries[at : at + len(expected)]]
        lsn = first_lsn + at
        assert there == expected, f"LSN {lsn}: operation {op} of {author} is not as appended, or not whole"
        ops = found.setdefault(author, {})
        assert op not in ops, f"operation {op} of {author} is there twice, at {ops[op].start} and {lsn}"
        assert op > last.get(author, -1), f"operation {op} of {author} stands behind a later one"
        last[author] = op
        ops[op] = range(lsn, lsn + len(expected))
        at += len(expected)
    for author, theirs in acks.items():
        left = found.pop(author, {})
        for ack in theirs:
            place = left.pop(ack.op, None)
            assert place is not None, f"operation {ack.op} of {author} was acknowledged at {ack.first_lsn} and is lost"
            told = range(ack.first_lsn, ack.end_lsn)
            assert place == told, f"operation {ack.op} of {author} stands at {place}, acknowledged was {told}"
        surplus = set(left) - set((in_doubt or {}).get(author, ()))
        assert not surplus, f"{author} was not told that {sorted(surplus)} were appended, and they are there"
    assert not found, f"nobody appended this: {found}"
    _judge_real_time(ack for theirs in acks.values() for ack in theirs)


def _author(entry: WALEntry) -> tuple[str, int]:
    try:
        author, op, index, _ = bytes(entry.key).decode().split("/")
        assert index == "0"
        return author, int(op)
    except (ValueError, AssertionError):
        raise AssertionError(f"LSN {entry.lsn}: nobody starts an operation with the key {entry.key!r}") from None


def _judge_real_time(acks: Iterable[Ack]) -> None:
    moments = []
    for ack in acks:
        if ack.after_ns:
            moments.append((ack.before_ns, 1, ack))
            moments.append((ack.after_ns, 0, ack))  # at equal times it may have come first: then it must be before
    highest = Ack(0, 0, 0)
    for _, begins, ack in sorted(moments, key=lambda moment: (moment[0], -moment[1])):
        if begins:
            assert ack.first_lsn >= highest.end_lsn, f"{ack} began after {highest} had returned, and stands before it"
        elif ack.end_lsn > highest.end_lsn:
            highest = ack
