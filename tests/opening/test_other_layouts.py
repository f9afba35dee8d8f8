"""A log that another version of walpool has made or has open: what is taken over, and what is left alone.

The block of the other layout is written here, word by word, as docs and docstrings promise that every layout has it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from tests.format import layout as frames
from tests.read.logs import entries, fill, make, read, segment_files
from tests.support import Channel, Start
from walpool import UnsafeLog, WALMetrics, WALWriter
from walpool.opening import opening
from walpool.shared.control import ControlUnusable
from walpool.shared.poison import first_doubtful
from walpool.system import processes
from walpool.system.files import Directory

COUNT = 14
POISONED = 2
SIZES = [1 << 12, (512 + 1024) * 8, (512 + 4096) * 8]  # smaller, as large, and larger than ours


def write_block(log: Path, layout: int, size: int, *, stop: int = 0, durable_lsn: int = COUNT) -> None:
    """Over the block that is there, so that the file is the one that it says it is; all but the syncs is as it was."""
    path = log / "control"
    old, status = path.read_bytes(), path.stat()
    (commit,) = struct.unpack_from("=Q", old, 16 * 8)
    state = struct.unpack_from("=11Q", old, (48 if commit & 1 else 32) * 8)
    image = bytearray(size)
    magic = int.from_bytes(b"WALPCTRL", "big")
    struct.pack_into("=8Q", image, 0, magic, layout, size, *processes.boot_id(), 99, stop, 0)
    struct.pack_into("=2Q", image, 8 * 8, status.st_dev, status.st_ino)
    image[10 * 8 : 13 * 8] = old[10 * 8 : 13 * 8]  # inodes of the lock files
    struct.pack_into("=2Q", image, 16 * 8, 1, 0)
    struct.pack_into("=3Q", image, 24 * 8, durable_lsn, 77, 7_000_000_000)
    struct.pack_into("=11Q", image, 48 * 8, *state)
    struct.pack_into("=Q", image, 7 * 8, crc32c(bytes(image[64:104]), crc32c(bytes(image[:48]))))
    with path.open("r+b") as file:
        file.truncate(size)
        file.write(image)


def damaged(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def harm(log: Path) -> None:
        block = bytearray((log / "control").read_bytes())
        change(block)
        with (log / "control").open("r+b") as file:
            file.write(block)

    return harm


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [1, 2, 7])
def test_a_block_of_another_layout_is_replaced_and_its_totals_are_kept(log: Path, layout: int, size: int) -> None:
    if layout == 1 and size == SIZES[1]:
        return  # that is ours
    make(log, COUNT)
    with WALMetrics.attach(log) as metrics:
        before = metrics.snapshot()
    write_block(log, layout, size)
    with pytest.raises(ControlUnusable, match="another layout"):
        WALMetrics.attach(log)
    assert read(log).entries == entries(1, COUNT + 1)
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
        assert writer.recovery_report.reason == "the control block has another layout"
        found = writer.metrics.snapshot()
        assert (found.sync_total, found.sync_seconds_total) == (77, 7.0)
        for name in ("writes_total", "batches_total", "bytes_written", "max_entry_size", "next_lsn"):
            assert getattr(found, name) == getattr(before, name), name
        fill(writer, 3)
    with WALWriter(log) as writer:
        assert writer.recovery_report is None
    assert read(log).entries == entries(1, COUNT + 4)


@pytest.mark.parametrize("size", SIZES)
def test_poison_that_only_the_block_of_another_layout_has_is_seen(log: Path, size: int) -> None:
    """No mark says so: whoever poisoned it could not write one. What is in doubt is written anew, into another file."""
    make(log, COUNT, size_limit=4000)
    assert [file.name for file in segment_files(log)] == [frames.name(1)]
    write_block(log, 2, size, stop=POISONED, durable_lsn=5)
    directory = Directory(log)
    assert first_doubtful(directory, None) == 6
    directory.close()
    with WALWriter(log) as writer:
        assert (log / frames.name(6)).exists()
        fill(writer, 3)
    assert read(log).entries == entries(1, COUNT + 4)


@pytest.mark.parametrize(
    "harm",
    [
        damaged(lambda block: block.__setitem__(5 * 8, block[5 * 8] ^ 1)),  # its identity has another checksum
        damaged(lambda block: block.__setitem__(24, block[24] ^ 1)),
        lambda log: (log / "control").write_bytes((log / "control").read_bytes()[:-8]),
        lambda log: (log / "control").write_bytes((log / "control").read_bytes()[:104]),
    ],
    ids=["generation", "boot", "a word short", "a head alone"],
)
def test_what_is_no_whole_block_poisons_nothing(log: Path, harm: Callable[[Path], None]) -> None:
    make(log, COUNT)
    write_block(log, 2, SIZES[2], stop=POISONED, durable_lsn=5)
    harm(log)
    directory = Directory(log)
    assert first_doubtful(directory, None) is None
    directory.close()
    WALWriter(log).close()
    assert read(log).entries == entries(1, COUNT + 1)


def test_poison_of_another_boot_or_of_another_file_is_none(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache that held what was in doubt is gone, or it is another file's."""
    make(log, COUNT)
    write_block(log, 2, SIZES[2], stop=POISONED, durable_lsn=5)
    directory = Directory(log)
    with monkeypatch.context() as rebooted:
        rebooted.setattr(processes, "boot_id", lambda: (1, 2))
        assert first_doubtful(directory, None) is None
    (log / "control").rename(log / "aside")
    (log / "control").write_bytes((log / "aside").read_bytes())
    assert first_doubtful(directory, None) is None
    directory.close()


def hold(channel: Channel, log: Path) -> None:
    with WALWriter(log) as writer:
        fill(writer, 3)
        channel.send("open")
        channel.receive()


@pytest.mark.parametrize("stop", [0, POISONED])
@pytest.mark.parametrize("size", SIZES[1:])
def test_beside_a_living_writer_of_another_layout_the_error_says_so(
    log: Path, child: Start, size: int, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "TRANSIENT_S", 0.0)
    make(log, COUNT)
    writer = child(hold, log)
    assert writer.receive() == "open"
    write_block(log, 2, size, stop=stop)
    left = (log / "control").read_bytes()
    with pytest.raises(UnsafeLog, match="another version of walpool has this log open") as refused:
        WALWriter(log)
    assert f"the writers in slots 0 (process {writer.pid} " in str(refused.value)
    assert not {"removed", "replaced", "sandboxes"} & set(str(refused.value).replace(",", " ").split())
    assert (log / "control").read_bytes() == left
    writer.kill()
    writer.died()
    with WALWriter(log) as own:
        assert own.recovery_report is not None
        assert own.put(b"key", b"value") == COUNT + 4
