"""Files and directories: what is opened is what was meant, every error is typed, every byte is written."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Channel, Start, run_threads
from walpool import IOFailed, LogFull, LogNotFound, UnsafeLog, WALError
from walpool.system import files
from walpool.system.calls import calls
from walpool.system.failures import typed_error
from walpool.system.files import CREATE, READ, WIPED_BYTES, WRITE, Directory, wipe, write_rest
from walpool.system.paths import create_directory, is_directory, split, sync_path_to


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    opened = Directory(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
@pytest.mark.usefixtures("umask")
def test_a_new_file_has_exactly_the_mode_asked_for(directory: Directory, mask: int, mode: int) -> None:
    os.umask(mask)
    file = directory.open("new", CREATE, mode)
    assert stat.S_IMODE(os.fstat(file.fd).st_mode) == mode
    file.close()


def test_a_file_that_is_there_is_not_made_again(directory: Directory) -> None:
    directory.open("file", CREATE).close()
    with pytest.raises(FileExistsError):
        directory.open("file", CREATE)
    with pytest.raises(FileNotFoundError):
        directory.open("missing", READ)


def test_a_descriptor_is_not_inherited_by_programs(directory: Directory) -> None:
    file = directory.open("file", CREATE)
    assert not os.get_inheritable(file.fd)
    assert not os.get_inheritable(directory.fd)
    file.close()


def test_what_is_refused_leaves_no_descriptor_open(directory: Directory, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "one").write_bytes(b"")
    os.link(tmp_path / "one", tmp_path / "two")
    probe = os.open("/dev/null", os.O_RDONLY)
    os.close(probe)
    for name in ("fifo", "folder", "link", "one"):
        for flags in (READ, WRITE):
            with pytest.raises(UnsafeLog) as refused:
                directory.open(name, flags)
            assert refused.value.path == str(tmp_path / name)
    again = os.open("/dev/null", os.O_RDONLY)
    os.close(again)
    assert again == probe


def test_a_file_that_is_removed_while_it_is_opened_is_missing(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstat = calls.fstat

    def remove_first(fd: int) -> os.stat_result:
        (tmp_path / "file").unlink(missing_ok=True)
        return fstat(fd)

    directory.open("file", CREATE).close()
    monkeypatch.setattr(calls, "fstat", remove_first)
    with pytest.raises(FileNotFoundError):
        directory.open("file", READ)


def test_listings_of_one_directory_do_not_disturb_each_other(directory: Directory, tmp_path: Path) -> None:
    """os.listdir of a descriptor rewinds an offset that all who share the descriptor share."""
    for number in range(60):
        (tmp_path / str(number)).touch()
    expected = {str(number) for number in range(60)}
    wrong: list[set[str]] = []

    def list_often() -> None:
        for _ in range(1_500):
            names = directory.names()
            if len(names) != 60 or set(names) != expected:
                wrong.append(set(names))

    run_threads(list_often, list_often, list_often)
    assert not wrong, f"{len(wrong)} of 4500 listings were not whole"


def open_or_create(channel: Channel, place: Path) -> int:
    directory = Directory(place)
    channel.send("ready")
    channel.receive()
    file = directory.open_or_create("file")
    inode = file.stat.st_ino
    file.close()
    directory.close()
    return inode


def test_all_who_make_a_file_at_once_get_the_same_one(child: Start, tmp_path: Path) -> None:
    children = [child(open_or_create, tmp_path) for _ in range(4)]
    for each in children:
        assert each.receive() == "ready"
    for each in children:
        each.send("go")
    assert {each.result() for each in children} == {(tmp_path / "file").stat().st_ino}


def test_a_read_gives_what_there_is(directory: Directory, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    file = directory.open("file")
    assert file.read(4, 3) == b"3456"
    assert file.read(100, 8) == b"89"
    assert file.read(100, 10) == file.read(100, 1000) == b""
    view = memoryview(bytearray(6))
    assert file.read_into(view, 2) == 6 and bytes(view) == b"234567"
    assert file.read_into(view, 8) == 2 and bytes(view[:2]) == b"89"
    assert file.read_into(view, 10) == 0
    assert file.size() == 10
    file.close()
    file.close()


def test_short_reads_are_read_on(directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    monkeypatch.setattr(calls, "pread", lambda fd, length, offset: os.pread(fd, min(length, 3), offset))
    file = directory.open("file")
    assert file.read(9, 1) == b"123456789"
    file.close()


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_short_writes_are_written_on(directory: Directory, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(calls, "pwrite", lambda fd, data, offset: os.pwrite(fd, bytes(data)[:step], offset))
    file = directory.open("file", CREATE)
    file.write(b"0123456789", 5)
    write_rest(file.fd, b"abcdef", 15, 2)
    assert file.read(100, 0) == bytes(5) + b"0123456789" + b"\0\0cdef"
    file.close()


def test_a_write_that_makes_no_progress_is_a_full_disk(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "pwrite", lambda fd, data, offset: 0)
    file = directory.open("file", CREATE)
    with pytest.raises(LogFull) as full:
        file.write(b"data", 0)
    assert full.value.errno == errno.ENOSPC
    file.close()


def test_a_wipe_leaves_zeros_and_the_length(directory: Directory) -> None:
    file = directory.open("file", CREATE)
    file.write(b"0123456789", 0)
    assert wipe(file.fd, 20, 30) and wipe(file.fd, 10, 30)
    assert file.read(100, 0) == b"0123456789"
    assert wipe(file.fd, 4, 7)
    assert file.read(100, 0) == b"0123" + bytes(3) + b"789"
    assert wipe(file.fd, 7, 1 << 40)
    assert file.read(100, 0) == b"0123" + bytes(6)
    file.write(b"x" * (2 * WIPED_BYTES + 7), 0)
    assert wipe(file.fd, 1, 2 * WIPED_BYTES + 6)
    assert file.read(4 * WIPED_BYTES, 0) == b"x" + bytes(2 * WIPED_BYTES + 5) + b"x"
    file.close()


def test_a_wipe_that_is_refused_says_so(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    file = directory.open("file", CREATE)
    file.write(b"0123456789", 0)
    monkeypatch.setattr(calls, "pwrite", lambda fd, data, offset: 0)
    assert not wipe(file.fd, 4, 10) and wipe(file.fd, 10, 12)
    assert file.read(100, 0) == b"0123456789"
    file.close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, LogFull), (errno.EDQUOT, LogFull), (errno.EFBIG, LogFull),
        (errno.ELOOP, UnsafeLog), (errno.EACCES, UnsafeLog), (errno.EPERM, UnsafeLog), (errno.ENOTDIR, UnsafeLog),
        (errno.EIO, IOFailed), (errno.EMFILE, IOFailed), (errno.ENFILE, IOFailed), (errno.EROFS, IOFailed),
        (errno.ENOLCK, IOFailed), (errno.ESTALE, IOFailed),
    ],
)  # fmt: skip
def test_every_errno_has_its_error(number: int, kind: type[WALError]) -> None:
    error = typed_error(OSError(number, "what"), "/some/path")
    assert type(error) is kind
    assert "/some/path" in str(error)
    if isinstance(error, OSError):
        assert error.errno == number


def test_an_error_that_is_typed_already_stays_as_it_is() -> None:
    for error in (LogFull(errno.ENOSPC, "x"), IOFailed(errno.EIO, "x"), LogNotFound("x", "y")):
        assert typed_error(error, "/some/path") is error


def test_identity_and_size_are_those_of_the_name_now(directory: Directory, tmp_path: Path) -> None:
    file = directory.open("file", CREATE)
    file.write(b"123", 0)
    assert directory.identity("file") == (file.stat.st_dev, file.stat.st_ino)
    assert directory.size_of("file") == 3
    directory.rename("file", "other")
    assert directory.identity("file") is None
    directory.open("file", CREATE).close()
    assert directory.identity("file") != (file.stat.st_dev, file.stat.st_ino)
    directory.unlink("file")
    assert directory.names() == ["other"]
    file.close()


def test_a_name_leads_into_the_directory_that_was_opened_though_it_was_moved(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    directory = Directory(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "here").mkdir()
    directory.open("file", CREATE).close()
    directory.close()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
    assert list((tmp_path / "here").iterdir()) == []


def test_no_directory_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        Directory(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(UnsafeLog):
        Directory(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafeLog):
        Directory(tmp_path / "link")


def test_a_directory_is_told_from_a_file_and_from_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    assert is_directory(tmp_path) is True
    assert is_directory(tmp_path / "file") is False
    with pytest.raises(UnsafeLog):
        is_directory(tmp_path / "link")
    for missing in ("missing", "file/below"):
        with pytest.raises(LogNotFound):
            is_directory(tmp_path / missing)


def test_an_opening_that_is_interrupted_does_not_close_another_threads_file(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner was made and is freed again before anybody has it; then another thread opens a file."""
    others: list[int] = []

    def made_and_freed(fd: int) -> None:
        real(fd)
        others.append(os.open(os.devnull, os.O_RDONLY))
        assert others == [fd], "it has the same number"
        raise KeyboardInterrupt

    real = files._Owner
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "_Owner", made_and_freed)
        directory.open("new", CREATE)
    os.close(others[0])  # it is still open


def test_a_path_is_split_into_directory_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split("name") == split(tmp_path / "name") == (str(tmp_path), "name")


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mode", "bits"), [(0o600, 0o700), (0o640, 0o750), (0o660, 0o2770), (0o644, 0o755)])
def test_a_directory_can_be_entered_by_whoever_may_read_its_files(tmp_path: Path, mode: int, bits: int) -> None:
    for mask in (0, 0o777):
        os.umask(mask)
        create_directory(tmp_path / f"made-{mask}", mode)
        assert stat.S_IMODE((tmp_path / f"made-{mask}").stat().st_mode) == bits


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(0o750)
    create_directory(tmp_path / "there", 0o600)
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o750


def test_threads_make_the_same_directory_and_its_parents_at_once(tmp_path: Path) -> None:
    for number in range(20):
        place = tmp_path / str(number) / "a" / "b"
        run_threads(*[lambda place=place: create_directory(place, 0o600) for _ in range(4)])
        assert place.is_dir()


def test_every_name_on_the_way_to_a_new_directory_can_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    fsync = calls.fsync

    def record(fd: int) -> None:
        found = os.fstat(fd)
        synced.append((found.st_dev, found.st_ino))
        fsync(fd)

    monkeypatch.setattr(calls, "fsync", record)
    place = tmp_path / "some" / "where" / "made"
    create_directory(place, 0o600)
    sync_path_to(Directory(place))
    on_the_way = [tmp_path / "some" / "where", tmp_path / "some", tmp_path]
    assert synced[:3] == [(parent.stat().st_dev, parent.stat().st_ino) for parent in on_the_way]


@pytest.mark.parametrize("of_parents", [False, True])
def test_a_directory_of_a_disk_that_has_failed_is_not_synced_though_the_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_parents: bool
) -> None:
    """As XFS does it: fsync gives 0, and stat EIO."""
    directory = Directory(tmp_path)
    failed: list[int] = []
    fstat = calls.fstat

    def look(fd: int) -> os.stat_result:
        if fd in failed:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fstat(fd)

    monkeypatch.setattr(calls, "fsync", failed.append)
    monkeypatch.setattr(calls, "fstat", look)
    with pytest.raises(OSError) as raised:
        sync_path_to(directory) if of_parents else directory.sync()
    assert raised.value.errno == errno.EIO
