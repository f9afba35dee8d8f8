"""The catalog: which segments there are, opening one, making one."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.format import layout
from tests.support import open_under
from walpool import CorruptLog, UnsafeLog, UnsupportedVersion, WALHeader
from walpool.shared import catalog
from walpool.shared.catalog import create_segment, list_segments, open_segment
from walpool.shared.origin import new_origin, read_origin, write_origin
from walpool.system.calls import calls
from walpool.system.files import Directory


@pytest.fixture
def directory(log: Path) -> Iterator[Directory]:
    log.mkdir()
    opened = Directory(log)
    yield opened
    opened.close()


def header(first_lsn: int, sequence: int = 1) -> WALHeader:
    return WALHeader(created_at=5, sequence=sequence, first_lsn=first_lsn, durable_lsn=0, marker=77)


def test_segments_are_listed_by_their_first_lsn_and_all_else_is_ignored(directory: Directory, log: Path) -> None:
    assert list_segments(directory) == []
    for lsn in (100, 9, 1, (1 << 63) - 1, 20):
        (log / layout.name(lsn)).touch()
    for other in ("control", "1.wal", "00000000000000000000.wal", "00000000000000000002.wal.tmp", "quarantine"):
        (log / other).touch()
    assert list_segments(directory) == [1, 9, 20, 100, (1 << 63) - 1]


def test_two_listings_at_once_both_see_everything(directory: Directory, log: Path) -> None:
    """A descriptor has one position: listings that shared it would each see a part."""
    for lsn in range(1, 800):
        (log / layout.name(lsn)).touch()
    import threading

    wrong: list[int] = []

    def look() -> None:
        for _ in range(20):
            found = len(list_segments(directory))
            if found != 799:
                wrong.append(found)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_too_many_segments_are_refused(directory: Directory, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_SEGMENTS", 3)
    for lsn in (1, 2, 3):
        (log / layout.name(lsn)).touch()
    assert list_segments(directory) == [1, 2, 3]
    (log / layout.name(4)).touch()
    with pytest.raises(UnsafeLog, match="4 segments"):
        list_segments(directory)


def test_a_made_segment_is_opened_again(directory: Directory, log: Path) -> None:
    made = create_segment(directory, header(41, 3), 0o640)
    assert (log / layout.name(41)).read_bytes() == made.header.encode()
    assert (log / layout.name(41)).stat().st_mode & 0o777 == 0o640
    made.file.close()
    opened = open_segment(directory, 41)
    assert opened.header == header(41, 3)
    opened.file.close()


@pytest.mark.parametrize("left", [b"", b"W", layout.header(41)[:63], layout.header(41, sequence=9), bytes(64)])
def test_a_segment_that_was_left_without_a_frame_is_made_anew(directory: Directory, log: Path, left: bytes) -> None:
    (log / layout.name(41)).write_bytes(left)
    create_segment(directory, header(41), 0o600).file.close()
    assert (log / layout.name(41)).read_bytes() == header(41).encode()


@pytest.mark.parametrize("behind", [b"x", layout.frame(41, [layout.item(41)])])
def test_a_segment_that_holds_more_than_a_header_is_never_written_over(
    directory: Directory, log: Path, behind: bytes
) -> None:
    data = layout.header(41) + behind
    (log / layout.name(41)).write_bytes(data)
    with pytest.raises(UnsafeLog, match="in the way"):
        create_segment(directory, header(41), 0o600)
    assert (log / layout.name(41)).read_bytes() == data


def test_a_missing_segment_is_a_missing_file(directory: Directory) -> None:
    with pytest.raises(FileNotFoundError):
        open_segment(directory, 5)


def test_a_segment_under_another_ones_name_is_damage(directory: Directory, log: Path) -> None:
    (log / layout.name(5)).write_bytes(layout.segment(6, layout.single(6, 2)))
    with pytest.raises(CorruptLog, match="starts at LSN 6") as caught:
        open_segment(directory, 5)
    assert (caught.value.path, caught.value.lsn) == (str(log / layout.name(5)), 5)


@pytest.mark.parametrize("data", [b"", b"short", bytes(64), layout.header(5)[:40] + bytes(24)])
def test_a_segment_without_a_header_is_damage(directory: Directory, log: Path, data: bytes) -> None:
    (log / layout.name(5)).write_bytes(data)
    with pytest.raises(CorruptLog):
        open_segment(directory, 5)


def test_a_segment_of_a_newer_format_is_newer(directory: Directory, log: Path) -> None:
    (log / layout.name(5)).write_bytes(layout.header(5, version=0x0300))
    with pytest.raises(UnsupportedVersion):
        open_segment(directory, 5)


def test_what_cannot_be_opened_gives_its_descriptor_back(directory: Directory, log: Path) -> None:
    (log / layout.name(5)).write_bytes(bytes(64))
    before = open_under(log)
    for _ in range(5):
        with pytest.raises(CorruptLog):
            open_segment(directory, 5)
    assert open_under(log) == before


def test_a_note_that_we_may_not_read_says_nothing_and_is_not_replaced(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader goes on; who would write another needs the id that is in it."""
    write_origin(directory, new_origin(7), 0o600, durable=False)
    found = read_origin(directory)
    assert found is not None
    assert found.first_lsn == 7

    def refuse(*args: Any, **kwargs: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(calls, "open", refuse)
    assert read_origin(directory) is None
    with pytest.raises(UnsafeLog):
        read_origin(directory, to_replace=True)
