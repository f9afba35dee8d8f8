"""Pins and the checkpoint file: what readers want kept, and what nobody needs any more."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from walpool import CorruptLog
from walpool.format.names import MAX_LSN
from walpool.shared.checkpoint import CHECKPOINT_BYTES, read_checkpoint, write_checkpoint
from walpool.shared.pins import Pin, oldest_pin
from walpool.system.calls import calls
from walpool.system.files import Directory


@pytest.fixture
def directory(log: Path) -> Iterator[Directory]:
    log.mkdir()
    (log / "pins.lock").touch()
    opened = Directory(log)
    yield opened
    opened.close()


def test_the_oldest_pin_counts_and_a_closed_one_does_not(directory: Directory) -> None:
    assert oldest_pin(directory) == MAX_LSN
    one, other = Pin(directory), Pin(directory)
    one.move(500)
    other.move(7)
    assert oldest_pin(directory) == 7
    other.close()
    assert oldest_pin(directory) == 500
    one.close()
    assert oldest_pin(directory) == MAX_LSN


def test_a_pin_moves_with_its_reader(directory: Directory) -> None:
    pin = Pin(directory)
    for lsn in (1, 10, 10, 5000, MAX_LSN - 1):
        pin.move(lsn)
        assert oldest_pin(directory) == lsn
    pin.close()


def test_a_pin_that_moves_is_never_gone(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by somebody who looks before and after every call that moves it."""
    pin = Pin(directory)
    pin.move(10)
    real, seen = calls.fcntl, []

    def fcntl(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(calls, "fcntl", real)
            seen.append(oldest_pin(directory))
        return real(*args)

    monkeypatch.setattr(calls, "fcntl", fcntl)
    pin.move(20)
    monkeypatch.undo()
    seen.append(oldest_pin(directory))
    assert seen == [10, 10, 20]
    pin.close()


def test_many_readers_may_pin_the_same_place(directory: Directory) -> None:
    pins = [Pin(directory) for _ in range(20)]
    for pin in pins:
        pin.move(42)
    for pin in pins[:-1]:
        pin.close()
        assert oldest_pin(directory) == 42
    pins[-1].close()
    assert oldest_pin(directory) == MAX_LSN


def test_the_lowest_of_many_pins_is_found(directory: Directory) -> None:
    """The kernel names some lock of a range, not the lowest."""
    places = [900, 20, 3_000_000, 21, 19, 55, 18, 1 << 40, 17]
    pins = [Pin(directory) for _ in places]
    for pin, place in zip(pins, places, strict=True):
        pin.move(place)
    for pin, place in sorted(zip(pins, places, strict=True), key=lambda pair: pair[1]):
        assert oldest_pin(directory) == place
        pin.close()


def test_a_copy_has_no_pins(directory: Directory, log: Path) -> None:
    (log / "pins.lock").unlink()
    assert oldest_pin(directory) == MAX_LSN
    with pytest.raises(FileNotFoundError):
        Pin(directory)


def test_a_checkpoint_comes_back_as_it_was_stated(directory: Directory, log: Path) -> None:
    assert read_checkpoint(directory) == 0
    for lsn in (1, 17, MAX_LSN):
        write_checkpoint(directory, lsn, 0o640)
        assert read_checkpoint(directory) == lsn
        assert (log / "checkpoint").stat().st_mode & 0o777 == 0o640
        assert len((log / "checkpoint").read_bytes()) == CHECKPOINT_BYTES
    assert sorted(path.name for path in log.iterdir()) == ["checkpoint", "pins.lock"]


def test_what_a_killed_statement_left_is_cleared_away(directory: Directory, log: Path) -> None:
    write_checkpoint(directory, 5, 0o600)
    (log / "checkpoint.tmp").write_bytes(b"half")
    assert read_checkpoint(directory) == 5
    write_checkpoint(directory, 6, 0o600)
    assert read_checkpoint(directory) == 6
    assert not (log / "checkpoint.tmp").exists()


@pytest.mark.parametrize("data", [b"", b"WALPCKPT", bytes(32), b"x" * 32, bytes(33)])
def test_a_checkpoint_that_is_not_one_is_damage(directory: Directory, log: Path, data: bytes) -> None:
    (log / "checkpoint").write_bytes(data)
    with pytest.raises(CorruptLog) as caught:
        read_checkpoint(directory)
    assert caught.value.path == str(log / "checkpoint")
