"""The window on a frame that is too large to get its memory before its checksum was found to be right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.format import layout
from walpool.format.frame import Damage, Frame
from walpool.read import window as module
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment, open_segment
from walpool.system.files import Directory

SIZE = 1000  # of the large frame
BETWEEN = 400


@pytest.fixture(autouse=True)
def a_large_frame_is_one_of_more_than_four_hundred_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_FIRST_BYTES", BETWEEN)
    monkeypatch.setattr(module, "CHUNK_BYTES", 300)  # four pieces, the last of them short


@pytest.fixture
def data() -> bytes:
    """A small frame, the large one, and a small one."""
    value = bytes(range(256)) * 4
    large = layout.frame(2, [(layout.PUT, b"k" * 8, value[: SIZE - 48 - 16 - 8], 0)])
    assert len(large) == SIZE
    parts = [layout.frame(1, [layout.item(1)]), large, layout.frame(3, [layout.item(3)])]
    return layout.header() + b"".join(parts)


@pytest.fixture
def segment(data: bytes, log: Path) -> Iterator[Segment]:
    directory = Directory(layout.write_segments(log, {1: data}))
    opened = open_segment(directory, 1)
    yield opened
    opened.file.close()
    directory.close()


def at_the_large_frame(segment: Segment, data: bytes) -> FrameWindow:
    window = FrameWindow(128)
    window.start(segment, 64)
    assert isinstance(window.next(1, len(data)), Frame)
    return window


def test_a_large_frame_whose_checksum_fits_is_read_and_so_is_what_follows(segment: Segment, data: bytes) -> None:
    window = at_the_large_frame(segment, data)
    found = window.next(2, len(data))
    assert isinstance(found, Frame)
    assert bytes(window.data[found.offset : found.end]) == data[window.offset - SIZE : window.offset]
    assert isinstance(window.next(3, len(data)), Frame)


@pytest.mark.parametrize("at", [4, 12, 30, 48, 48 + 299, 48 + 300, SIZE - 1])
def test_a_large_frame_with_a_changed_byte_is_damage_and_gets_no_memory(
    segment: Segment, data: bytes, log: Path, at: int
) -> None:
    window, changed = FrameWindow(128), bytearray(data)
    offset = len(data) - len(layout.frame(3, [layout.item(3)])) - SIZE
    changed[offset + at] ^= 0x02  # the count, too, is a possible one
    (log / layout.name(1)).write_bytes(changed)
    window.start(segment, offset)
    found = window.next(2, len(data))
    assert isinstance(found, Damage)
    assert found.reason == "the frame's checksum does not match"
    assert window.capacity < BETWEEN


def test_a_large_frame_that_the_file_ends_in_is_damage_and_gets_no_memory(
    segment: Segment, data: bytes, log: Path
) -> None:
    """Cut by somebody after its size was looked at."""
    window = at_the_large_frame(segment, data)
    (log / layout.name(1)).write_bytes(data[: window.offset + SIZE - 1])
    assert isinstance(window.next(2, len(data)), Damage)
    assert window.capacity < BETWEEN


def test_a_frame_of_no_more_bytes_than_that_is_read_at_once(data: bytes, log: Path, segment: Segment) -> None:
    """It is not gone through twice: its checksum is that of what was read into the buffer."""
    window = at_the_large_frame(segment, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHECK_FIRST_BYTES", SIZE)
        patch.setattr(FrameWindow, "_sums_up", lambda *_: pytest.fail("it was summed up first"))
        assert isinstance(window.next(2, len(data)), Frame)
