"""What stands where a reader expects a log or a segment: links, FIFOs, directories. Refused, at once, untouched."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.read.logs import entries, make, read, segment_files
from walpool import UnsafeLog, WALMetrics, WALReader
from walpool.upkeep.verify import verify

COUNT = 12
PRECIOUS = b"somebody else's bytes"


def symlink(place: Path, elsewhere: Path) -> None:
    place.symlink_to(elsewhere)


def dangling_symlink(place: Path, elsewhere: Path) -> None:
    elsewhere.unlink()
    place.symlink_to(elsewhere)


def hard_link(place: Path, elsewhere: Path) -> None:
    place.hardlink_to(elsewhere)


def fifo(place: Path, elsewhere: Path) -> None:
    os.mkfifo(place)


def directory(place: Path, elsewhere: Path) -> None:
    place.mkdir()


PLANTED = [symlink, dangling_symlink, hard_link, fifo, directory]
Plant = Callable[[Path, Path], None]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    make(tmp_path / "log", COUNT)
    return tmp_path / "log"


def elsewhere_with(tmp_path: Path, data: bytes) -> Path:
    place = tmp_path / "elsewhere"
    place.write_bytes(data)
    return place


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_not_a_plain_file_in_a_segments_place_is_refused(log: Path, tmp_path: Path, plant: Plant) -> None:
    file = segment_files(log)[1]
    data = file.read_bytes()
    elsewhere = elsewhere_with(tmp_path, data)  # even when it holds the right bytes
    file.unlink()
    plant(file, elsewhere)
    found = read(log)
    assert isinstance(found.error, UnsafeLog)
    assert found.error.path == str(file)
    assert found.entries == entries(1, int(file.stem))
    with pytest.raises(UnsafeLog):
        verify(log)
    for attempt in (lambda: WALReader(file).read_all(), lambda: verify(file)):
        if plant is not directory:
            with pytest.raises(UnsafeLog):
                attempt()
    assert not elsewhere.exists() or elsewhere.read_bytes() == data


@pytest.mark.parametrize("plant", PLANTED)
def test_a_control_block_that_is_not_a_plain_file_is_not_believed(log: Path, tmp_path: Path, plant: Plant) -> None:
    data = (log / "control").read_bytes()
    elsewhere = elsewhere_with(tmp_path, data)
    (log / "control").unlink()
    plant(log / "control", elsewhere)
    found = read(log)
    assert (found.entries, found.error) == (entries(1, COUNT + 1), None)
    with WALReader(log) as reader:
        assert list(reader.follow(timeout=0)) == entries(1, COUNT + 1)
    with pytest.raises(UnsafeLog):
        WALMetrics.attach(log)
    assert not elsewhere.exists() or elsewhere.read_bytes() == data


@pytest.mark.parametrize("plant", PLANTED)
def test_a_lock_file_that_is_not_a_plain_file_does_not_stop_a_reader_that_found_damage(
    log: Path, tmp_path: Path, plant: Plant
) -> None:
    file = segment_files(log)[1]
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    (log / "append.lock").unlink()
    plant(log / "append.lock", elsewhere_with(tmp_path, PRECIOUS))
    found = read(log)
    assert found.error is not None
    assert found.entries == entries(1, int(file.stem))


def test_a_symlink_to_a_log_is_refused(log: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(log)
    for attempt in (lambda: WALReader(link), lambda: verify(link), lambda: WALMetrics.attach(link)):
        with pytest.raises(UnsafeLog):
            attempt()


def test_a_directory_above_the_log_may_be_a_symlink(log: Path, tmp_path: Path) -> None:
    (tmp_path / "above").symlink_to(tmp_path)
    assert read(tmp_path / "above" / "log").entries == entries(1, COUNT + 1)


@pytest.mark.parametrize("name", ["fifo", "00000000000000000001.wal", "plain.txt"])
def test_a_place_that_is_no_log_is_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    if name == "plain.txt":
        place.write_bytes(PRECIOUS)
    else:
        os.mkfifo(place)
    with pytest.raises(UnsafeLog):
        WALReader(place).read_all()
