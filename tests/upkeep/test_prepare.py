"""Space made before it is needed: a segment whole or not at all, whatever a killed coordinator left; zeros ahead."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.format import layout
from walpool import LogFull
from walpool.system.calls import calls
from walpool.system.files import CREATE, Directory
from walpool.upkeep.prepare import prepare, trim, write_ahead

SIZE = 5_000


@pytest.fixture
def directory(log: Path) -> Iterator[Directory]:
    log.mkdir()
    opened = Directory(log)
    yield opened
    opened.close()


def test_a_segment_is_prepared_in_place_of_what_a_killed_coordinator_left(directory: Directory, log: Path) -> None:
    (log / "next.segment.tmp").write_bytes(b"half")
    assert prepare(directory, SIZE, 0o600) is None
    assert [path.name for path in log.iterdir()] == ["next.segment"]
    assert (log / "next.segment").read_bytes() == bytes(SIZE)


def test_its_zeros_are_on_disk_before_it_has_its_name(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def told(name: str) -> Callable[..., Any]:
        call = getattr(calls, name)
        return lambda *args, **kwargs: (made.append(name), call(*args, **kwargs))[1]

    for name in ("pwrite", "fdatasync", "rename"):
        monkeypatch.setattr(calls, name, told(name))
    prepare(directory, SIZE, 0o600)
    assert made == ["pwrite", "fdatasync", "rename"]


def test_one_that_is_there_stays(directory: Directory, log: Path) -> None:
    prepare(directory, SIZE, 0o600)
    made = (log / "next.segment").stat().st_ino
    assert prepare(directory, 2 * SIZE, 0o600) is None
    assert ((log / "next.segment").stat().st_ino, (log / "next.segment").stat().st_size) == (made, SIZE)


@pytest.mark.parametrize("call", ["open", "pwrite", "fdatasync"])
def test_without_room_there_is_none_and_the_answer_says_why(
    directory: Directory, log: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(calls, call, full)
    why = prepare(directory, SIZE, 0o600)
    assert isinstance(why, OSError)
    assert why.errno == errno.ENOSPC
    assert isinstance(why, LogFull) or call == "fdatasync"
    assert list(log.iterdir()) == []


def test_zeros_are_written_ahead_once_for_many_frames_and_never_past_the_limit(directory: Directory) -> None:
    with directory.open("segment", CREATE) as file:
        assert write_ahead(file, 100, 1_000, 5_000) == file.size() == 1_100
        assert write_ahead(file, 1_100, 1_000, 5_000) == file.size() == 1_100
        assert write_ahead(file, 1_101, 1_000, 5_000) == file.size() == 2_101
        assert write_ahead(file, 4_500, 1_000, 5_000) == file.size() == 5_000
        assert file.read(5_000, 0) == bytes(5_000)


@pytest.mark.parametrize(("behind", "stays"), [(b"", False), (bytes(100), False), (bytes(50) + b"evidence", True)])
def test_zeros_behind_the_last_frame_are_given_back_and_all_else_stays(
    directory: Directory, log: Path, behind: bytes, stays: bool
) -> None:
    data = layout.segment(1, layout.single(1, 3))
    layout.write_segments(log, {1: data + behind, 4: layout.segment(4, [], sequence=2)})
    trim(directory, 1, 4)
    assert (log / layout.name(1)).read_bytes() == (data + behind if stays else data)
    trim(directory, 1, 5)  # its frames do not reach up to there
    assert (log / layout.name(1)).read_bytes() == (data + behind if stays else data)
