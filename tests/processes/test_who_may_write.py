"""Users and groups: who may write to a log, by real user ids. Needs root, which the tests may not be."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from walpool import UnsafeLog, WALReader, WALWriter

ANN, BOB, BOTH = 5001, 5002, 6000  # two users, each with a group of the same number, and one of both
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")


@pytest.fixture
def place() -> Iterator[Path]:
    """Where both can make a log, and nobody else."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, ANN, BOTH)
    folder.chmod(0o770)
    yield folder
    shutil.rmtree(folder)


def as_user(uid: int, groups: list[int], do: Callable[[], object]) -> str:
    """What `do` returned or raised, as that user."""

    def give_up_rights() -> object:
        os.setgroups(groups)
        os.setgid(uid)
        os.setuid(uid)
        os.umask(0o077)
        return do()

    return in_a_child(give_up_rights)


def in_a_child(do: Callable[[], object]) -> str:
    """What `do` returned or raised."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = str(do())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def append(log: Path, count: int, mode: int = 0o660) -> Callable[[], int]:
    def do() -> int:
        with WALWriter(log, size_limit=4096, mode=mode) as writer:
            for _ in range(count):
                last = writer.put(b"k", bytes(100))
            return last

    return do


@pytest.mark.parametrize("setgid", [True, False], ids=["setgid", "without"])
def test_two_users_of_a_group_share_a_log_whoever_rotates(place: Path, setgid: bool) -> None:
    log = place / "log"
    if setgid:
        place.chmod(0o2770)
    else:
        log.mkdir()
        os.chown(log, ANN, BOTH)
        log.chmod(0o770)
    assert as_user(ANN, [BOTH], append(log, 5)) == "5"
    assert as_user(BOB, [BOTH], append(log, 100)) == "105"
    assert as_user(ANN, [BOTH], append(log, 100)) == "205"
    assert as_user(BOB, [BOTH], lambda: len(WALReader(log).read_all())) == "205"
    for file in log.iterdir():
        assert file.stat().st_gid == BOTH, file


def test_a_log_that_is_made_for_a_group_hands_its_group_on(place: Path) -> None:
    place.chmod(0o2770)
    assert as_user(ANN, [BOTH], append(place / "log", 1)) == "1"
    assert stat.S_IMODE((place / "log").stat().st_mode) == 0o2770
    assert (place / "log").stat().st_gid == BOTH


def test_whoever_is_not_in_the_group_hears_the_rule_and_the_way_out(place: Path) -> None:
    place.chmod(0o2777)
    assert as_user(ANN, [BOTH], append(place / "log", 1)) == "1"
    said = as_user(BOB, [], append(place / "log", 1))
    assert said.startswith("UnsafeLog") and "Permission denied" in said
    (place / "log").chmod(0o2777)
    said = as_user(BOB, [], append(place / "log", 1))
    assert said.startswith("UnsafeLog") and "chmod o-w" in said


def test_a_user_of_another_log_hears_whose_it_is(place: Path) -> None:
    assert as_user(ANN, [BOTH], append(place / "log", 1, 0o600)) == "1"
    (place / "log").chmod(0o755)
    said = as_user(BOB, [BOTH], append(place / "log", 1, 0o600))
    assert said.startswith("UnsafeLog") and f"belongs to user {ANN}" in said and "mode=0o660" in said


def test_a_server_that_gives_up_its_rights_appends_on_and_is_told_when_it_cannot(place: Path) -> None:
    """What is open stays open; the next segment needs rights in the directory, and the error says so."""
    log = place / "log"

    def serve() -> str:
        writer = WALWriter(log, size_limit=4096)
        writer.put(b"as root", b"")
        os.setgroups([])
        os.setgid(BOB)
        os.setuid(BOB)
        for count in range(2_000):
            try:
                writer.put(b"as bob", b"")
            except UnsafeLog as error:
                return f"{count} {error}"
        return "never refused"

    pid_said = in_a_child(serve)
    count, _, said = pid_said.partition(" ")
    assert int(count) > 20, pid_said
    assert "Permission denied" in said
    assert len(WALReader(log).read_all()) == int(count) + 1
