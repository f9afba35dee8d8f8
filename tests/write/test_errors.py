"""Errors: what they are, and that they come whole out of another process."""

from __future__ import annotations

import copy
import errno
import pickle
from pathlib import Path

import pytest

import walpool
from tests.support import Channel, Start
from walpool import (
    BatchTooLarge,
    ControlUnusable,
    CorruptLog,
    EntryTooLarge,
    IOFailed,
    LogBusy,
    LogClosed,
    LogFull,
    LogNotFound,
    LogReplaced,
    LSNUnavailable,
    SyncFailed,
    UnsafeLog,
    Unsupported,
    UnsupportedVersion,
    WALError,
    WorkerFailed,
)

EXAMPLES: list[WALError] = [
    WALError("something"),
    LogClosed("closed"),
    LogNotFound(Path("/a/b"), "no such log"),
    LogBusy("busy for 3 s"),
    EntryTooLarge("key"),
    BatchTooLarge("batch"),
    SyncFailed(errno.EIO, "sync failed"),
    LogFull(errno.ENOSPC, "no space"),
    IOFailed(errno.EMFILE, "too many"),
    LSNUnavailable(3, 17),
    Unsupported("mapped=True: the directory is on btrfs"),
    UnsupportedVersion("2.0"),
    UnsafeLog("/a/b", "refused: a symbolic link"),
    LogReplaced("/a/b", "another directory is there"),
    ControlUnusable("the control block is of another boot"),
    CorruptLog(Path("/a/b"), 64, 12, "the checksum does not match"),
    WorkerFailed("/a/b", 3, 17, "worker 5 was killed by SIGKILL"),
]
KINDS = {
    LogNotFound: FileNotFoundError,
    LogBusy: TimeoutError,
    EntryTooLarge: ValueError,
    BatchTooLarge: ValueError,
    SyncFailed: OSError,
    LogFull: OSError,
    IOFailed: OSError,
    LSNUnavailable: LookupError,
    CorruptLog: ValueError,
}


def same(one: BaseException, other: BaseException) -> bool:
    numbers = [(error.errno, error.strerror) for error in (one, other) if isinstance(error, OSError)]
    return (
        type(one) is type(other)
        and one.args == other.args
        and str(one) == str(other)
        and vars(one) == vars(other)
        and len(set(numbers)) <= 1
    )


def test_every_public_error_has_an_example() -> None:
    public = {value for value in vars(walpool).values() if isinstance(value, type) and issubclass(value, WALError)}
    assert public == {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: WALError) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert same(copy.copy(error), error)
    assert same(copy.deepcopy(error), error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_can_be_caught_as_walpools_or_as_the_builtin_it_is(error: WALError) -> None:
    assert isinstance(error, WALError)
    builtin = KINDS.get(type(error))
    assert builtin is None or isinstance(error, builtin)


def test_an_error_carries_its_coordinates() -> None:
    corrupt = CorruptLog(Path("/a/b"), 64, 12, "the checksum does not match")
    assert (corrupt.path, corrupt.offset, corrupt.lsn, corrupt.reason) == (
        "/a/b", 64, 12, "the checksum does not match"
    )  # fmt: skip
    assert "/a/b" in str(corrupt) and "64" in str(corrupt) and "walpool verify" in str(corrupt)
    gone = LSNUnavailable(3, 17, "/a/b")
    assert (gone.lsn, gone.first_available, gone.path) == (3, 17, "/a/b")
    assert str(gone) == "/a/b: LSN 3 is no longer in the log: the first available is 17"
    assert LogFull(errno.EDQUOT, "quota").errno == errno.EDQUOT
    unsafe = UnsafeLog("/a/b", "refused")
    assert (unsafe.path, unsafe.reason) == ("/a/b", "refused")


def test_what_no_error_knows_it_does_not_say() -> None:
    """No LSN stands in a checkpoint file or a header; and no command reads bytes that are in no file."""
    assert str(CorruptLog("/a/b", 0, 0, "why")) == "/a/b: damage at offset 0: why; see `walpool verify`"
    with pytest.raises(CorruptLog) as caught:
        walpool.WALEntry.decode(b"?" * 100)
    assert "LSN" not in str(caught.value) and "walpool verify" not in str(caught.value)


def fail_each(channel: Channel) -> list[WALError]:
    return EXAMPLES


def test_an_error_survives_the_way_out_of_another_process(child: Start) -> None:
    assert all(map(same, child(fail_each).result(), EXAMPLES))
