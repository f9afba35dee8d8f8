"""Unpacking: bytes that are gzip, zstd, xz or bz2 by their first bytes become what was packed; others stay as they are.

Holds: no more than `STEP_BYTES` are unpacked at once, however small what they were packed into. Several packed streams
behind each other are one, as the tools that make them have it; a stream that ends early is damage.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Protocol

from walpool.cli.exits import CommandError, Exit

STEP_BYTES = 256 * 1024
GZIP, ZSTD, XZ, BZ2 = "gzip", "zstd", "xz", "bz2"
MAGIC = {
    b"\x1f\x8b\x08": GZIP,
    b"\x28\xb5\x2f\xfd": ZSTD,
    **{
        bytes((first,)) + b"\x2a\x4d\x18": ZSTD for first in range(0x50, 0x60)
    },  # a frame to skip: pzstd begins with one
    b"\xfd7zXZ\x00": XZ,
    **{b"BZh%d1AY&SY" % level: BZ2 for level in range(1, 10)},
    **{b"BZh%d\x17rE8P\x90" % level: BZ2 for level in range(1, 10)},  # of nothing
}
MAGIC_BYTES = max(map(len, MAGIC))
PADDED = {GZIP, XZ}  # zeros may stand between their streams, and at the end


class Damaged(Exception):
    """What was packed cannot be had."""


class Stream(Protocol):
    """One packed stream, as the standard library's decompressors have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Gzip:
    """zlib's, as a Stream."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)
        self._full = False  # it may hold more that it has unpacked

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._full and not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        unpacked = self._stream.decompress(self._stream.unconsumed_tail + data, max_length)
        self._full = len(unpacked) == max_length
        return unpacked


def format_of(start: bytes) -> str | None:
    """What the first MAGIC_BYTES of an input say it is packed with, if at all."""
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)


def stream_maker(name: str) -> Callable[[], Stream]:
    """Raises CommandError where an extra is missing."""
    if name == ZSTD:
        return _zstd()
    if name == XZ:
        return lzma.LZMADecompressor
    return bz2.BZ2Decompressor if name == BZ2 else Gzip


def _zstd() -> Callable[[], Stream]:
    for name in ("compression.zstd", "backports.zstd"):  # of Python 3.14; of the extra
        with suppress(ImportError):
            maker: Callable[[], Stream] = import_module(name).ZstdDecompressor
            return maker
    raise CommandError(Exit.USAGE, "zstd input needs an extra: pip install 'walpool[zstd]'")


class Unpacker:
    """Takes the bytes of one input as they come."""

    def __init__(self) -> None:
        self.format: str | None = None
        self._start: bytes | None = b""  # until it is known what it is
        self._make: Callable[[], Stream] | None = None  # None: it is not packed
        self._stream: Stream | None = None  # in the middle of which we are

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises Damaged; CommandError where an extra is missing."""
        if self._start is not None:
            self._start += data
            if len(self._start) < MAGIC_BYTES and any(magic.startswith(self._start[: len(magic)]) for magic in MAGIC):
                return
            data = self._begin()
        yield from self._unpack(data)

    def finish(self) -> Iterator[bytes]:
        """What is left at the end of the input. Raises Damaged."""
        if self._start is not None:
            yield from self._unpack(self._begin())
        if self._stream is not None:
            raise Damaged(f"the {self.format} data ends in the middle")

    def _begin(self) -> bytes:
        assert self._start is not None
        start, self._start = self._start, None
        self.format = format_of(start)
        if self.format is not None:
            self._make = stream_maker(self.format)
        return start

    def _unpack(self, data: bytes) -> Iterator[bytes]:
        """What comes out, in steps; where one packed stream ends, the next begins with what is left of the input."""
        if self._make is None:
            if data:
                yield data
            return
        while True:
            if self._stream is None:
                if self.format in PADDED:
                    data = data.lstrip(b"\0")
                if not data:
                    return
                self._stream = self._make()
            try:
                unpacked = self._stream.decompress(data, STEP_BYTES)
            except Exception as error:  # each format has an error of its own, and some have OSError or EOFError
                raise Damaged(f"the {self.format} data is damaged ({error})") from error
            data = b""
            if unpacked:
                yield unpacked
            if self._stream.eof:
                data = self._stream.unused_data
                self._stream = None
            elif self._stream.needs_input:
                return
