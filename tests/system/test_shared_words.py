"""Words that all processes see: whole at every moment, and behind real blocks of the disk."""

from __future__ import annotations

from pathlib import Path

from tests.support import Channel, Start
from walpool.system.files import CREATE, WRITE, Directory
from walpool.system.shared_words import WORD, SharedWords, allocate

WORDS = 512
ONES = (1 << 64) - 1


def make(place: Path) -> None:
    directory = Directory(place)
    file = directory.open("words", CREATE)
    allocate(file, WORDS * WORD)
    file.close()
    directory.close()


def flicker(channel: Channel, place: Path) -> int:
    """Store one of two patterns into every word in turn, until told."""
    directory = Directory(place)
    file = directory.open("words", WRITE)
    words = SharedWords(file, WORDS * WORD, writable=True).words
    channel.send("ready")
    stores = 0
    while True:
        for at in range(WORDS):
            words[at] = ONES
            words[at] = 0
        stores += 2 * WORDS
        if channel.connection.poll():  # after a round, however late this process gets its turn
            return stores


def test_a_word_is_never_seen_half_stored(child: Start, tmp_path: Path) -> None:
    make(tmp_path)
    writer = child(flicker, tmp_path)
    assert writer.receive() == "ready"
    directory = Directory(tmp_path)
    file = directory.open("words")
    words = SharedWords(file, WORDS * WORD, writable=False).words
    seen = set()
    for _ in range(400):
        seen.update(words)
    writer.send("enough")
    assert writer.result() > 0
    assert seen <= {0, ONES}
    file.close()
    directory.close()


def test_allocated_space_is_zero_and_has_blocks(tmp_path: Path) -> None:
    make(tmp_path)
    found = (tmp_path / "words").stat()
    assert found.st_size == WORDS * WORD
    assert found.st_blocks * 512 >= WORDS * WORD, "a store into a hole on a full disk would be SIGBUS"
    assert (tmp_path / "words").read_bytes() == bytes(WORDS * WORD)


def test_a_mapping_that_is_not_writable_refuses_stores(tmp_path: Path) -> None:
    make(tmp_path)
    directory = Directory(tmp_path)
    file = directory.open("words")
    words = SharedWords(file, WORDS * WORD, writable=False).words
    try:
        words[0] = 1
    except TypeError:
        pass
    else:
        raise AssertionError("the store went through")
    file.close()
    directory.close()
