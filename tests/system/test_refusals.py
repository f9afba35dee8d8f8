"""Refusals: what the machine or a place says no to, told in words that say where, why, and what to do."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import walpool
from tests.support import Channel, Start, open_under
from walpool import (
    IOFailed,
    LogFull,
    LogNotFound,
    RecoveryMode,
    SyncMode,
    UnsafeLog,
    WALError,
    WALMetrics,
    WALReader,
    WALWriter,
)
from walpool.system.calls import calls
from walpool.system.failures import typed_error
from walpool.upkeep.repair import plan_repair
from walpool.upkeep.verify import verify

ANYWHERE = "nothing was appended"


def fill(log: Path, count: int = 40, mode: SyncMode = SyncMode.NORMAL) -> None:
    with WALWriter(log, mode, 2048) as writer:
        for number in range(count):
            writer.put(b"%d" % number, b"v" * 60)


def read_all(log: Path) -> object:
    with WALReader(log) as reader:
        return reader.read_all()


def read_the_end(log: Path) -> object:
    with WALReader(log, "end", pin=True) as reader:
        return reader.last_lsn, reader.read_all()


def figures(log: Path) -> object:
    with WALMetrics.attach(log) as metrics:
        found = metrics.snapshot()
    return found.writers, found.killed_writers, found.segments, found.checkpoint, found.rotation_count


def checked(log: Path) -> object:
    return verify(log)


def planned(log: Path) -> object:
    return plan_repair(log, RecoveryMode.TOLERATE_TAIL)


def copied(log: Path) -> object:
    report = walpool.copy(log, log.parent / "copy")
    (log.parent / "copy").rename(log.parent / f"copy{len(list(log.parent.iterdir()))}")
    return report.segments, report.next_lsn


LOOKS: dict[str, Callable[[Path], object]] = {
    "read": read_all,
    "read from the end": read_the_end,
    "figures": figures,
    "verify": checked,
    "plan a repair": planned,
    "copy": copied,
    "checkpoint": walpool.checkpoint,
}
each_look = pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)


def open_writer(log: Path) -> None:
    WALWriter(log).close()


# Links


OPENS: dict[str, Callable[[Path], object]] = {**LOOKS, "writer": open_writer}
each_open = pytest.mark.parametrize("use", OPENS.values(), ids=OPENS)


@each_open
def test_a_link_in_the_place_of_a_log_is_refused_by_its_name_and_with_the_path_to_use(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    fill(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UnsafeLog) as caught:
        use(tmp_path / "link")
    assert str(caught.value) == (
        f"{tmp_path}/link: refused: a symbolic link, to {tmp_path.resolve()}/real: use that path"
    )


@each_open
def test_a_link_that_leads_nowhere_or_in_a_circle_is_refused_as_that(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    (tmp_path / "nowhere").symlink_to("nothing")
    (tmp_path / "round").symlink_to("about")
    (tmp_path / "about").symlink_to("round")
    with pytest.raises(UnsafeLog, match="nowhere: refused: a symbolic link that leads nowhere"):
        use(tmp_path / "nowhere")
    with pytest.raises(UnsafeLog, match="round: refused: a symbolic link that leads in a circle"):
        use(tmp_path / "round")
    with pytest.raises(UnsafeLog, match="round/log: refused: Too many levels of symbolic links"):
        use(tmp_path / "round" / "log")
    with pytest.raises(UnsafeLog if use is open_writer else LogNotFound):
        use(tmp_path / "nowhere" / "log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["about", "nowhere", "round"]


@each_open
def test_links_above_a_log_are_followed(tmp_path: Path, use: Callable[[Path], object]) -> None:
    fill(tmp_path / "parent" / "log")
    (tmp_path / "link").symlink_to("parent")
    use(tmp_path / "link" / "log")


@each_open
def test_a_file_in_the_place_of_a_log_is_called_one(tmp_path: Path, use: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_bytes(b"hello")
    with pytest.raises(UnsafeLog, match=r"file: refused: .*(a file, and a log is a directory|nor a segment file)"):
        use(tmp_path / "file")
    with pytest.raises(UnsafeLog if use is open_writer else LogNotFound, match="on the way to it is a file"):
        use(tmp_path / "file" / "log")


@pytest.mark.parametrize("name", [f"{1:020d}.wal", "append.lock", "control"])
def test_a_link_in_the_place_of_a_file_of_a_log_is_refused_as_one(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "log", 3)
    (tmp_path / "log" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "log" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeLog) as caught:
        WALWriter(tmp_path / "log")
    place = (tmp_path / "elsewhere").resolve()
    assert caught.value.path == str(tmp_path / "log" / name)
    assert caught.value.reason == f"refused: a symbolic link, to {place}: put the file itself there"


# No descriptors


def in_a_child(channel: Channel, target: Callable[..., object], *args: object) -> object:
    return target(*args)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def with_ever_more_descriptors(use: Callable[[Path], object], log: Path) -> int:
    """How often it was refused; each time in the same words, and with nothing left open by what was refused."""
    expected = use(log)
    before = open_under(log.parent)
    refused = 0
    for count in range(20):
        with descriptors_left(count):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            try:
                found = use(log)
            except IOFailed as error:
                assert error.errno == errno.EMFILE
                assert str(log.parent) in str(error)
                assert f": Too many open files: this process may have {limit}; raise the limit (ulimit -n)" in str(
                    error
                )
                assert ANYWHERE not in str(error)
                refused += 1
            else:
                assert found == expected
        assert open_under(log.parent) == before, "before the collector has come by"
    return refused


@pytest.mark.usefixtures("linux")
@each_open
def test_without_descriptors_the_limit_is_named_and_nothing_is_left_open(
    child: Start, log: Path, use: Callable[[Path], object]
) -> None:
    fill(log)
    walpool.WALWriter(log).close()
    with WALWriter(log, name="another"):
        assert child(in_a_child, with_ever_more_descriptors, use, log).result() >= 2


@each_look
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO], ids=errno.errorcode.get)
def test_an_open_that_fails_is_never_taken_for_a_file_that_is_not_there(
    log: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object], number: int
) -> None:
    """Else what is said of the log would be less than there is: no writer, no checkpoint, the end of its entries."""
    fill(log)
    with WALWriter(log, name="another") as writer:
        writer.checkpoint(7)
        expected = look(log)
        really_open = calls.open
        failed = 0
        for nth in range(1, 200):
            opens = iter(range(1, 1000))

            def open_all_but_one(*args: Any, opens: Iterator[int] = opens, nth: int = nth, **named: Any) -> int:
                if next(opens) == nth:
                    raise OSError(number, os.strerror(number))
                return really_open(*args, **named)

            monkeypatch.setattr(calls, "open", open_all_but_one)
            try:
                assert look(log) == expected
            except IOFailed as error:
                assert error.errno == number
                assert str(log.parent) in str(error)
                failed += 1
            monkeypatch.setattr(calls, "open", really_open)
            if next(opens) <= nth:
                break
        assert failed >= 2


def test_a_system_without_descriptors_says_whose_limit_it_is(tmp_path: Path) -> None:
    text = str(typed_error(OSError(errno.ENFILE, ""), str(tmp_path)))
    assert "all processes together" in text and "fs.file-max" in text


# Places that cannot be written to


def mount_read_only(place: Path) -> bool:
    """Whether `place` is a mount of its own now that nobody can write to."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(place)
    bind, remount, read_only = 4096, 32, 1
    if libc.mount(path, path, None, bind, None) != 0:
        return False
    return bool(libc.mount(None, path, None, bind | remount | read_only, None) == 0)


@pytest.fixture
def read_only_log(log: Path) -> Iterator[Path]:
    fill(log)
    if not mount_read_only(log):
        pytest.skip("only root can mount, and not everywhere")
    yield log
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.umount2(os.fsencode(log), 2) == 0


@each_look
def test_whoever_only_looks_needs_no_place_to_write_to(read_only_log: Path, look: Callable[[Path], object]) -> None:
    look(read_only_log)


def test_a_writer_on_read_only_media_hears_what_it_needs_and_that_readers_do_not(read_only_log: Path) -> None:
    for path in (read_only_log, read_only_log / "new"):
        with pytest.raises(IOFailed) as caught:
            WALWriter(path)
        assert caught.value.errno == errno.EROFS
        assert re.search(f"{read_only_log}.*: Read-only file system: .*readers do not mind", str(caught.value))
        assert ANYWHERE not in str(caught.value)


def with_no_room(size: str, log: Path) -> str | None:
    """What an opening says on a file system of that size, which is full; or why there is none."""
    log.parent.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or libc.mount(b"tmpfs", os.fsencode(log.parent), b"tmpfs", 0, size.encode()) != 0:
        return None
    try:
        try:
            (log.parent / "ballast").write_bytes(bytes(1 << 20))
        except OSError:
            pass
        try:
            WALWriter(log).close()
        except LogFull as error:
            assert error.errno == errno.ENOSPC
            return str(error)
        raise AssertionError("a log on a full disk")
    finally:
        libc.umount2(os.fsencode(log.parent), 2)


@pytest.mark.parametrize("size", ["size=64k", "size=64k,nr_inodes=4"])
def test_an_opening_on_a_full_disk_is_told_in_words_of_opening(child: Start, tmp_path: Path, size: str) -> None:
    log = tmp_path / "small" / "log"
    said = child(in_a_child, with_no_room, size, log).result()
    if said is None:
        pytest.skip("only root can mount, and not everywhere")
    assert str(log) in said
    assert said.endswith("No space left on device: make room, and try again")


def as_user(uid: int, use: Callable[[Path], object], log: Path) -> str:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    try:
        use(log)
    except WALError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@each_open
def test_whoever_has_no_rights_hears_who_it_is(
    child: Start, tmp_path_factory: pytest.TempPathFactory, use: Callable[[Path], object]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    log = tmp_path_factory.mktemp("rights") / "log"
    fill(log)
    (log.parent / "locked").mkdir(mode=0o700)
    for place in (log, log.parent / "locked" / "log"):
        said = child(in_a_child, as_user, 4321, use, place).result()
        assert said.startswith("UnsafeLog: ")
        assert said.endswith(": refused: Permission denied: this process is user 4321")


# Appends


@pytest.mark.parametrize("mode", list(SyncMode))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_only_an_append_says_that_nothing_was_appended(
    log: Path, monkeypatch: pytest.MonkeyPatch, mode: SyncMode, number: int
) -> None:
    def fails(*args: object, **named: object) -> int:
        raise OSError(number, os.strerror(number))

    with WALWriter(log, mode, linger_s=3600.0) as writer:
        writer.put(b"k", b"v")
        writer.sync()
        appender = writer._handle.open().appender
        monkeypatch.setattr(appender, "_pwrite", fails)
        appender._look_first()  # so that it is Python's
        with pytest.raises(WALError) as caught:
            writer.append_batch([walpool.WALEntry.put(b"k", b"v")])
        assert str(caught.value).endswith("; nothing was appended")
        monkeypatch.undo()
        real = calls.open
        monkeypatch.setattr(calls, "open", fails)
        for call in (writer.prune, lambda: writer.checkpoint(1), writer.rotate):
            with pytest.raises(WALError) as caught:
                call()
            assert ANYWHERE not in str(caught.value)
        monkeypatch.setattr(calls, "open", real)


# What is left


FAILING: dict[str, Callable[[Path], object]] = {
    "reader of nothing": lambda place: WALReader(place / "nothing"),
    "reader of an empty directory": lambda place: WALReader(place / "empty"),
    "reader of no segment": lambda place: WALReader(place / "stranger"),
    "reader of what was removed": lambda place: WALReader(place / "pruned", 1, pin=True),
    "metrics of an empty directory": lambda place: WALMetrics.attach(place / "empty"),
    "metrics of a copy": lambda place: WALMetrics.attach(place / "copy"),
    "writer in a directory of others": lambda place: WALWriter(place / "others"),
    "writer of a damaged log": lambda place: WALWriter(place / "damaged"),
    "writer that waits": lambda place: WALWriter(place / "held", lock_timeout=0),
    "copy to what is there": lambda place: walpool.copy(place / "held", place / "copy"),
    "copy of an empty directory": lambda place: walpool.copy(place / "empty", place / "new"),
    "copy of a damaged log": lambda place: walpool.copy(place / "damaged", place / "new"),
    "repair of an empty directory": lambda place: plan_repair(place / "empty", RecoveryMode.STRICT),
    "repair of a damaged log": lambda place: plan_repair(place / "damaged", RecoveryMode.STRICT),
    "checkpoint that is damaged": lambda place: walpool.checkpoint(place / "damaged"),
}


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "file").touch()
    (tmp_path / "stranger").write_bytes(b"hello" * 100)
    fill(tmp_path / "held")
    walpool.copy(tmp_path / "held", tmp_path / "copy")
    (tmp_path / "copy" / "control").write_bytes((tmp_path / "held" / "control").read_bytes())
    fill(tmp_path / "pruned")
    with WALWriter(tmp_path / "pruned") as writer:
        writer.checkpoint(30)
        assert writer.prune().removed
    fill(tmp_path / "damaged", mode=SyncMode.FULL)
    (tmp_path / "damaged" / "control").unlink()
    (tmp_path / "damaged" / "checkpoint").write_bytes(b"?")
    for path in tmp_path.glob("damaged/*.wal"):
        data = bytearray(path.read_bytes())
        data[100:102] = b"??"
        path.write_bytes(data)
    with (tmp_path / "held" / "append.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("use", FAILING.values(), ids=FAILING)
def test_what_could_not_be_opened_leaves_nothing_open_though_its_error_is_kept(
    places: Path, use: Callable[[Path], object]
) -> None:
    before, threads = open_under(places), threading.active_count()
    kept = []
    for _ in range(2):
        with pytest.raises(WALError) as caught:
            use(places)
        kept.append(caught.value)
    assert open_under(places) == before
    assert threading.active_count() == threads
