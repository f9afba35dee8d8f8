"""Where a log may stand: what is made with which mode, and what is refused without touching anything outside."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import Channel, Start, read_log
from walpool import IOFailed, UnsafeLog, WALError, WALWriter
from walpool.options import WriterOptions
from walpool.write.validate import check_options

NAMES = ["control", "append.lock", "sync.lock", "slots.lock", "maintenance.lock"]
FIRST, SECOND = f"{1:020d}.wal", f"{2:020d}.wal"
NOBODY = 65534
SECRET = b"must not change"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that any user may go through, which pytest's own are not."""
    place = Path(tempfile.mkdtemp(prefix="walpool-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def modes(log: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in log.rglob("*")}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
def test_only_the_owner_may_read_or_write_whatever_the_umask(log: Path, mask: int) -> None:
    os.umask(mask)
    with WALWriter(log, size_limit=200) as writer:
        for _ in range(3):
            writer.put(b"k", b"v" * 50)
        writer.sync()
    assert stat.S_IMODE(log.stat().st_mode) == 0o700
    found = modes(log)
    assert set(found) >= {*NAMES, FIRST, SECOND}
    assert set(found.values()) == {0o600}, found


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0, 0o777])
def test_who_may_read_still_cannot_hold_a_lock(log: Path, mask: int) -> None:
    os.umask(mask)
    with WALWriter(log, mode=0o644) as writer:
        writer.put(b"k", b"v")
        writer.rotate()
    assert stat.S_IMODE(log.stat().st_mode) == 0o755
    found = modes(log)
    assert {found.pop(name) for name in NAMES if name.endswith(".lock")} == {0o600}
    assert set(found.values()) == {0o644}


@pytest.mark.usefixtures("umask")
def test_a_group_may_write_if_the_mode_says_so(log: Path) -> None:
    os.umask(0o022)
    with WALWriter(log, mode=0o660) as writer:
        writer.put(b"k", b"v")
    assert set(modes(log).values()) <= {0o660, 0o600}


@pytest.mark.parametrize(
    ("mode", "possible"),
    [(0o600, True), (0o601, True), (0o664, True), (0o775, True), (0o1600, False), (0o400, False), (0o200, False),
     (0o602, False), (0o666, False), (0o777, False)],
)  # fmt: skip
def test_a_mode_is_possible_if_the_owner_can_use_it_and_not_all_can_write(mode: int, possible: bool) -> None:
    with nullcontext() if possible else pytest.raises(ValueError, match="never writable by all"):
        check_options(WriterOptions(mode=mode))


@pytest.mark.parametrize("name", ["metrics", "allow_network_fs", "allow_other_files"])
def test_a_choice_is_true_or_false_and_nothing_like_it(name: str) -> None:
    for value in (1, 0, None, "yes"):
        with pytest.raises(TypeError, match=f"{name} must be a bool"):
            check_options(replace(WriterOptions(), **{name: value}))


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with WALWriter(tmp_path / "a" / "b" / "events.wal") as writer:
        assert writer.put(b"k", b"v") == 1


def test_a_directory_that_is_there_and_empty_becomes_a_log(log: Path) -> None:
    log.mkdir(0o750)
    with WALWriter(log) as writer:
        assert writer.put(b"k", b"v") == 1
    assert stat.S_IMODE(log.stat().st_mode) == 0o750


def test_files_that_are_none_of_ours_are_left_alone(log: Path) -> None:
    log.mkdir()
    others = ["README", "1.wal", f"{1:019d}.wal", f"{7:020d}.wal.bak", "x" + FIRST, ".hidden", f"{0:020d}.wal"]
    for name in others:
        (log / name).write_bytes(SECRET)
    (log / "folder").mkdir()
    (log / "link").symlink_to("/nowhere")
    os.mkfifo(log / "fifo")
    with WALWriter(log, size_limit=200, allow_other_files=True) as writer:
        for n in range(1, 4):
            assert writer.put(b"k", b"v" * 50) == n
    assert len(read_log(log)) == 3
    for name in others:
        assert (log / name).read_bytes() == SECRET


KINDS = ["symlink", "dangling symlink", "fifo", "directory", "hard link", "device"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "file").write_bytes(SECRET)
    return place


def plant(path: Path, kind: str, outside: Path) -> None:
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
    elif os.geteuid() == 0:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    else:
        pytest.skip("only root can make a device")


def assert_untouched(outside: Path) -> None:
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == SECRET
    assert stat.S_IMODE((outside / "file").stat().st_mode) == 0o644


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NAMES, FIRST])
def test_what_was_planted_before_the_first_opening_is_refused(log: Path, outside: Path, name: str, kind: str) -> None:
    log.mkdir()
    plant(log / name, kind, outside)
    for _ in range(2):
        with pytest.raises(WALError) as refused:
            WALWriter(log)
        assert isinstance(refused.value, UnsafeLog), refused.value
        assert name in str(refused.value)
    assert_untouched(outside)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "maintenance.lock"])
def test_what_took_the_place_of_a_file_is_refused(log: Path, outside: Path, name: str, kind: str) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
    (log / name).unlink()
    plant(log / name, kind, outside)
    with pytest.raises(UnsafeLog, match=name):
        WALWriter(log)
    assert_untouched(outside)
    if kind == "directory":
        (log / name).rmdir()
    else:
        (log / name).unlink()
    with WALWriter(log) as writer:
        assert writer.put(b"k", b"v") == 2, "once it is gone, the log is as it was"


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_where_the_next_segment_goes_is_refused(log: Path, outside: Path, kind: str) -> None:
    with WALWriter(log, size_limit=200) as writer:
        writer.put(b"k", b"v" * 50)
        plant(log / SECOND, kind, outside)
        for _ in range(2):
            with pytest.raises(UnsafeLog, match=SECOND):
                writer.put(b"k", b"v" * 50)
            with pytest.raises(UnsafeLog, match=SECOND):
                writer.rotate()
        assert_untouched(outside)
        assert len(read_log(log)) == 1
        (log / SECOND).rmdir() if kind == "directory" else (log / SECOND).unlink()
        assert writer.put(b"k", b"v" * 50) == 2
    assert len(read_log(log)) == 2


def test_a_segment_that_the_log_does_not_know_is_not_overwritten(log: Path) -> None:
    with WALWriter(log, size_limit=200) as writer:
        writer.put(b"k", b"v" * 50)
        stray = (log / FIRST).read_bytes() + b"more"
        (log / SECOND).write_bytes(stray)
        with pytest.raises(UnsafeLog):
            writer.rotate()
        assert (log / SECOND).read_bytes() == stray


def test_a_link_to_a_log_is_refused(log: Path, tmp_path: Path) -> None:
    WALWriter(log).close()
    (tmp_path / "link").symlink_to(log)
    with pytest.raises(UnsafeLog):
        WALWriter(tmp_path / "link")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnsafeLog):
        WALWriter(tmp_path / "dangling")
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_reached_through_a_link_is_taken(log: Path, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    with WALWriter(tmp_path / "link" / "events.wal") as writer:
        assert writer.put(b"k", b"v") == 1
    assert len(read_log(tmp_path / "place" / "events.wal")) == 1


@pytest.mark.parametrize("below", ["", "below", "below/deeper"])
def test_a_path_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(SECRET)
    with pytest.raises(UnsafeLog):
        WALWriter(tmp_path / "file" / below)
    assert (tmp_path / "file").read_bytes() == SECRET


def test_a_directory_that_anyone_can_write_to_is_refused(log: Path) -> None:
    log.mkdir()
    log.chmod(0o777)
    with pytest.raises(UnsafeLog, match="o-w"):
        WALWriter(log)
    assert list(log.iterdir()) == []


def become_nobody() -> None:
    """Another user than root. When not started as root, this process is such a user already."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def try_as_nobody(channel: Channel, log: Path) -> WALError | None:
    become_nobody()
    try:
        with WALWriter(log) as writer:
            writer.put(b"k", b"v")
    except WALError as error:
        return error
    return None


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make files of other users")


def test_a_place_without_permission_is_refused(child: Start, open_place: Path) -> None:
    if os.geteuid() != 0:
        open_place.chmod(0o555)
    error = child(try_as_nobody, open_place / "events.wal").result()
    open_place.chmod(0o755)
    assert isinstance(error, (UnsafeLog, IOFailed))
    assert list(open_place.iterdir()) == []


def test_a_log_of_another_user_is_refused(child: Start, open_place: Path) -> None:
    needs_root()
    log = open_place / "events.wal"
    with WALWriter(log, mode=0o644) as writer:
        writer.put(b"k", b"v")
    assert isinstance(child(try_as_nobody, log).result(), UnsafeLog)
    assert len(read_log(log)) == 1


def test_a_user_without_privileges_has_a_log(child: Start, open_place: Path) -> None:
    open_place.chmod(0o777 | stat.S_ISVTX)
    assert child(try_as_nobody, open_place / "a" / "events.wal").result() is None
    assert stat.S_IMODE((open_place / "a" / "events.wal").stat().st_mode) == 0o700


def recover_as_nobody(channel: Channel, log: Path) -> None:
    become_nobody()
    os.umask(0o777)
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
    (log / "control").unlink()
    with open(os.open(log / SECOND, os.O_WRONLY | os.O_CREAT), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(b"half a header")
    with WALWriter(log) as writer:
        assert writer.put(b"k", b"v") == 2
        assert writer.recovery_report is not None and len(writer.recovery_report.quarantined) == 1


def test_a_recovery_under_any_umask_can_move_segments_aside(child: Start, open_place: Path) -> None:
    open_place.chmod(0o777 | stat.S_ISVTX)
    child(recover_as_nobody, open_place / "events.wal").result()
    assert set(modes(open_place / "events.wal").values()) == {0o600, 0o700}


@pytest.mark.parametrize("name", [*NAMES, FIRST])
def test_a_file_of_another_user_in_ones_own_directory_is_refused(child: Start, open_place: Path, name: str) -> None:
    needs_root()
    log = open_place / "events.wal"
    log.mkdir()
    (log / name).write_bytes(b"")
    (log / name).chmod(0o666)
    os.chown(log / name, 1234, 1234)
    os.chown(log, NOBODY, NOBODY)
    error = child(try_as_nobody, log).result()
    assert isinstance(error, UnsafeLog), error
    assert "1234" in str(error)


def test_root_may_write_to_the_log_of_a_user_who_can_go_on_then(child: Start, open_place: Path) -> None:
    needs_root()
    open_place.chmod(0o777 | stat.S_ISVTX)
    log = open_place / "events.wal"
    assert child(try_as_nobody, log).result() is None
    try:
        with WALWriter(log) as writer:
            assert writer.put(b"k", b"v") == 2
    except UnsafeLog:
        return  # refusing is as good: what must not happen is that the owner is locked out
    assert child(try_as_nobody, log).result() is None
