"""Hostile places: whatever stands at any name of a log is refused or left alone, and nothing outside changes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Channel, Start
from walpool import Retention, SyncMode, UnsafeLog, WALError, WALReader, WALWriter
from walpool.system.calls import calls
from walpool.write import coordinator

FIRST, SECOND = f"{1:020d}.wal", f"{2:020d}.wal"
# What an opening needs, and refuses at once.
NEEDED = ["control", "append.lock", "sync.lock", "slots.lock", "maintenance.lock", "pins.lock", "sync.failed", FIRST]
# What is used later, or done without.
LATER = [
    "metrics", "checkpoint", "checkpoint.tmp", "next.segment", "next.segment.tmp", "rewrite.tmp", "quarantine", SECOND,
]  # fmt: skip
OPENED_AGAIN = ["control", "append.lock", "sync.lock", "slots.lock"]  # by every opening, of files that were there
SECRET = b"must not change"
KINDS = [
    "symlink", "dangling symlink", "fifo", "directory", "hard link", "socket", "device", "foreign owner",
    "writable by all",
]  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def prepare_small_segments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "PREPARE_FROM_BYTES", 0)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "file").write_bytes(SECRET)
    (place / "file").chmod(0o640)
    return place


def assert_untouched(outside: Path) -> None:
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == SECRET
    assert stat.S_IMODE((outside / "file").stat().st_mode) == 0o640


def plant(path: Path, kind: str, outside: Path, data: bytes = b"") -> Callable[[], None]:
    """Put it there; what is returned takes it away again, if it is still there."""
    if kind == "symlink":
        path.symlink_to(outside / "file")
    elif kind == "dangling symlink":
        path.symlink_to(outside / "new")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "hard link":
        os.link(outside / "file", path)
    elif kind == "socket":
        here = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's own path may have 108 bytes
        os.close(here)
    elif kind == "writable by all":
        path.write_bytes(data)
        path.chmod(0o666)
    elif os.geteuid() != 0:
        pytest.skip("only root can make a device, or a file of another user")
    elif kind == "device":
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    else:
        path.write_bytes(data)
        path.chmod(0o600)
        os.chown(path, 1234, 1234)
    planted = path.lstat().st_ino

    def remove() -> None:
        if os.path.lexists(path) and path.lstat().st_ino == planted:
            if kind != "directory":
                path.unlink()
            elif not any(path.iterdir()):  # a directory is what quarantine has to be
                path.rmdir()

    return remove


class Use:
    """A life in which every file of a log is used: a writer's, its checkpoint, a failed sync, and the next opening."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.acknowledged: list[bytes] = []
        self.refused: list[WALError] = []
        self.refused_at: list[str] = []

    def run(self, interfere: Callable[[], None] = lambda: None) -> Use:
        """`interfere` comes in the middle of it."""
        if self._live(interfere):
            self._live(lambda: None)
        return self

    def _live(self, interfere: Callable[[], None]) -> bool:
        opened: list[WALWriter] = []
        if not self._attempt("open", lambda: opened.append(WALWriter(self.log, size_limit=600, retention=Retention()))):
            return False
        (writer,) = opened
        for _ in range(2):
            self._attempt("put", lambda: self._put(writer))
        interfere()
        for _ in range(6):
            self._attempt("put", lambda: self._put(writer))
        steps = [writer.rotate, writer.sync, lambda: writer.checkpoint(1), writer.prune, lambda: self._put(writer)]
        for step in steps:
            self._attempt("use", step)
        fdatasync, calls.fdatasync = calls.fdatasync, _fails
        self._attempt("sync", writer.sync)
        calls.fdatasync = fdatasync
        self._attempt("close", writer.close)
        return True

    def _put(self, writer: WALWriter) -> None:
        key = b"%d" % len(self.acknowledged)
        writer.put(key, b"v" * 100)
        self.acknowledged.append(key)

    def _attempt(self, name: str, step: Callable[[], object]) -> bool:
        try:
            step()
        except WALError as error:
            self.refused.append(error)
            self.refused_at.append(name)
            return False
        return True

    def assert_kept(self) -> None:
        """With nothing in the way any more, the log holds what was acknowledged, and goes on."""
        for _ in range(2):  # the first may have to recover
            with WALWriter(self.log, size_limit=600) as writer:
                writer.put(b"last", b"")
        with WALReader(self.log) as reader:
            found = [bytes(entry.key) for entry in reader.read_all()]
        expected = [*self.acknowledged, b"last", b"last"]
        assert found == expected[-len(found) :]
        assert len(found) >= min(len(expected), 3)


def _fails(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_the_use_uses_every_name(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a test that plants something there proves nothing."""
    asked: set[str] = set()
    for name in ("open", "rename", "unlink", "mkdir"):
        real = getattr(calls, name)
        monkeypatch.setattr(
            calls, name, lambda *args, _real=real, **named: (asked.update(map(str, args[:2])), _real(*args, **named))[1]
        )
    use = Use(log).run()
    assert set(use.refused_at) == {"sync"}, use.refused
    assert {*NEEDED, *LATER} - asked <= {FIRST, SECOND}
    use.assert_kept()


@pytest.mark.slow
@each_kind
def test_what_was_planted_before_the_first_opening(tmp_path: Path, outside: Path, kind: str) -> None:
    for name in (*NEEDED, *LATER):
        log = tmp_path / f"{name}.log"
        log.mkdir(0o700)
        remove = plant(log / name, kind, outside)
        use = Use(log).run()
        if name in NEEDED:
            assert [type(error) for error in use.refused] == [UnsafeLog], f"{name}: {use.refused}"
            assert name in str(use.refused[0])
        assert_untouched(outside)
        remove()
        use.assert_kept()
        assert_untouched(outside)


@pytest.mark.slow
@each_kind
def test_what_took_the_place_of_a_file_of_a_closed_log(tmp_path: Path, outside: Path, kind: str) -> None:
    for name in (*NEEDED, *LATER):
        log = tmp_path / f"{name}.log"
        with WALWriter(log, size_limit=600) as writer:
            writer.put(b"first", b"")
            writer.checkpoint(0)
        there = (log / name).exists()
        if there:
            (log / name).rename(tmp_path / "kept")
        data = (tmp_path / "kept").read_bytes() if there else b""
        remove = plant(log / name, kind, outside, data)
        use = Use(log).run()
        if name in (*OPENED_AGAIN, "sync.failed", FIRST):
            assert isinstance(use.refused[0], UnsafeLog), f"{name}: {use.refused}"
            assert name in str(use.refused[0])
            assert use.refused_at == ["open"]
        assert_untouched(outside)
        remove()
        if there and not (log / name).exists():
            (tmp_path / "kept").rename(log / name)
        use.acknowledged.insert(0, b"first")
        use.assert_kept()
        assert_untouched(outside)


@pytest.mark.slow
@each_kind
def test_what_takes_the_place_of_a_file_while_a_writer_has_the_log_open(
    tmp_path: Path, outside: Path, kind: str
) -> None:
    """Whatever is acknowledged is in the log; what is not is refused with a typed error."""
    for name in (*NEEDED, *LATER):
        if name == FIRST:
            continue  # whoever takes away a segment takes away its entries
        log = tmp_path / f"{name}.log"
        removes: list[Callable[[], None]] = []

        def interfere(log: Path = log, name: str = name, removes: list[Callable[[], None]] = removes) -> None:
            path = log / name
            data = path.read_bytes() if path.is_file() else b""
            path.unlink(missing_ok=True)
            removes.append(plant(path, kind, outside, data))

        use = Use(log).run(interfere)
        assert_untouched(outside)
        for remove in removes:
            remove()
        use.assert_kept()
        assert_untouched(outside)


def test_a_copy_that_anyone_can_write_to_is_read(log: Path, tmp_path: Path) -> None:
    """Media without modes show every file so."""
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
    shutil.copytree(log, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        path.chmod(0o666)
    with WALReader(tmp_path / "copy") as reader:
        assert len(reader.read_all()) == 1
    with pytest.raises(UnsafeLog, match="o-w"):
        WALWriter(tmp_path / "copy")


# Another user


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that any user may go through, which pytest's own are not."""
    place = Path(tempfile.mkdtemp(prefix="walpool-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def meddle(channel: Channel, log: Path, names: list[str], uid: int) -> list[str]:
    """As another user: try everything with each file, keep what could be locked, and wait for the word."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    done: list[str] = []

    def attempt(what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError:
            return
        done.append(what)

    locked: list[int] = []
    for name in names:
        path = log / name
        attempt(f"write {name}", lambda path=path: os.close(os.open(path, os.O_WRONLY)))
        attempt(f"truncate {name}", lambda path=path: os.truncate(path, 0))
        attempt(f"unlink {name}", path.unlink)
        attempt(f"rename {name}", lambda path=path: path.rename(log / "other"))
        attempt(f"chmod {name}", lambda path=path: path.chmod(0o666))
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        done.append(f"read {name}")
        locked.append(fd)
        attempt(f"lock {name}", lambda fd=fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    attempt("make a file", (log / "new").touch)
    attempt("make a directory", (log / "new").mkdir)
    attempt("list", lambda: os.listdir(log))
    channel.send("held")
    channel.receive()
    for fd in locked:
        os.close(fd)
    return done


@pytest.mark.parametrize("mode", [0o600, 0o644], ids=oct)
@pytest.mark.parametrize("uid", [65534, 1234])
def test_another_user_can_at_most_read_and_holds_nobody_up(child: Start, open_place: Path, mode: int, uid: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    log = open_place / "events.wal"
    with WALWriter(log, SyncMode.FULL, 600, mode=mode, lock_timeout=30) as writer:
        for _ in range(4):
            writer.put(b"k", b"v" * 100)
        writer.checkpoint(1)
        names = sorted(path.name for path in log.iterdir())
        meddler = child(meddle, log, names, uid)
        assert meddler.receive() == "held"
        for _ in range(8):
            writer.put(b"k", b"v" * 100)
        writer.checkpoint(5)
        writer.prune()
        with WALWriter(log, lock_timeout=30) as other:
            assert other.put(b"k", b"") == 13
        meddler.send("enough")
        done = set(meddler.result())
    locks = {name for name in names if name.endswith(".lock") and name != "pins.lock"}
    if mode == 0o600:
        assert done == set()
    else:
        assert {what.split()[0] for what in done} == {"read", "lock", "list"}, done
        assert not {what.split()[-1] for what in done} & locks, "whoever may only read holds no lock of the writers"
    with WALWriter(log) as writer:
        assert writer.recovery_report is None
