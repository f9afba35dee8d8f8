"""Sources: the files that a loading takes lines from, each as it was opened.

Holds: what is read is the file that was looked at, whatever its name leads to by then. One that was replaced or became
shorter, before or while it is read, is an error that names it, and none of the bytes behind are taken for its lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from walpool.cli.exits import CommandError, Exit, one_line
from walpool.cli.pool.unpack import MAGIC_BYTES, Damaged, Unpacker, format_of, stream_maker
from walpool.system.failures import in_words
from walpool.system.inputs import InputFile

READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """A file to load; `name` is what its keys begin with."""

    name: bytes
    path: Path
    size: int  # bytes, when it was looked at; 0 also where nobody knows it beforehand (/proc)
    identity: tuple[int, int]  # device and inode
    packed: bool = False

    @property
    def most_lines(self) -> int | None:
        """No more than these, if that is known: each takes a byte, but perhaps the last."""
        return None if self.packed or not self.size else self.size + 1


class SourceError(CommandError):
    """This source cannot be read, or not to its end; others can."""

    def __init__(self, name: bytes, code: Exit, what: str) -> None:
        super().__init__(code, f"{printable(name)}: {what}")


def printable(name: bytes) -> str:
    return one_line(name.decode("utf-8", "backslashreplace"))


def look(path: Path, name: bytes) -> Source:
    """The file at `path` as it is now. Raises OSError; CommandError where an extra is missing."""
    with InputFile(path) as file:
        packed = format_of(file.read(MAGIC_BYTES))
        if packed is not None:
            try:
                stream_maker(packed)
            except CommandError as error:
                raise SourceError(name, error.code, str(error)) from None
        return Source(name, path, file.size(), file.identity, packed is not None)


def read(source: Source) -> Iterator[bytes]:
    """The bytes of a source, unpacked, up to the size it has when it is opened. Raises SourceError."""
    unpacker = Unpacker()
    try:
        with InputFile(source.path) as file:
            if file.identity != source.identity:
                raise SourceError(source.name, Exit.DIFFERENCE, "it was replaced by another file since this began")
            for data in _read_to_its_size(file, source):
                yield from unpacker.feed(data)
        yield from unpacker.finish()
    except OSError as error:
        raise SourceError(source.name, Exit.IO, in_words(error)) from error
    except Damaged as error:
        raise SourceError(source.name, Exit.DIFFERENCE, str(error)) from error


def _read_to_its_size(file: InputFile, source: Source) -> Iterator[bytes]:
    size = file.size()
    end = size if size or source.size else None  # a file that shows no size is read to its end
    done, most = 0, max(size, source.size)
    while end is None or done < end:
        data = file.read(READ_BYTES if end is None else min(READ_BYTES, end - done))
        now = file.size()
        if now < most:
            raise SourceError(source.name, Exit.DIFFERENCE, f"it became shorter: {most:,} bytes before, {now:,} now")
        if not data:
            return  # the size was more than there is, as /sys has it
        most = now
        done += len(data)
        yield data
