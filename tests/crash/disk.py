"""A disk that forgets: what walpool did to it, call by call, and the states that a power cut at any moment may leave.

`Recorder` writes down every call that changes a file or a directory, every store into a mapping, every sync, and
what the caller was told meanwhile, in one order. `Disk` plays that back and keeps apart what a sync has made durable
and what it has not; `draw` makes up one state that may be found after a cut.

Two models. STRONG is like ext4: names change in order, and a sync that has to commit the journal commits all of them;
what was never written reads as zeros. WEAK promises no more than POSIX: only a directory's own sync makes its names
durable, those not synced may survive in any combination, a rename between two directories may be half done, and space
that was never written may hold anything, other segments' frames among it. In both, what was not synced survives in any
combination of sectors, each in any version it had, and the size of a file may be ahead of its data or behind it.
"""

from __future__ import annotations

import mmap
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from walpool.system.calls import calls

SECTOR = 512
PAGE = 4096
STORED_IN_PIECES = (0, 0, 1, 2, 4)  # one more
CACHES = ("control", "metrics")  # everything in them can be had from elsewhere
ROOT = 0  # the directory that everything is in; it was there before


class Model(Enum):
    STRONG = "strong"
    WEAK = "weak"


class Event(NamedTuple):
    kind: str
    what: tuple[Any, ...]


class Image(NamedTuple):
    """What is on a disk: paths below its root."""

    directories: tuple[str, ...]  # parents first
    files: dict[str, bytes]
    links: dict[str, str]  # further names of a file -> its name in `files`
    caches: dict[str, File]  # not drawn yet

    def write(self, root: Path) -> None:
        base = str(root)
        os.mkdir(base, 0o700)
        for path in self.directories:
            os.mkdir(f"{base}/{path}", 0o700)
        for path, data in self.files.items():
            fd = os.open(f"{base}/{path}", os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, data)
            os.close(fd)
        for path, other in self.links.items():
            os.link(f"{base}/{other}", f"{base}/{path}")


# Recording


class Recorder:
    """Taps on the calls that change a disk. Files outside `root` are not its business."""

    def __init__(self, root: Path, image: Image | None = None) -> None:
        self._root = str(root) + "/"
        self.events: list[Event] = []
        self._mutex = threading.RLock()
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self._fds: dict[int, int] = {}
        self._maps: list[tuple[int, int, weakref.ref[mmap.mmap], bytes]] = []
        # Segments: it is told of stores into them, and a look at one that is shorter by now would kill us.
        self._stored_into: list[tuple[int, int, weakref.ref[mmap.mmap]]] = []
        self._nodes = ROOT
        self.fault: Callable[[str], int | None] = lambda name: None  # may raise, or say how much of a write is done
        self.sync_takes_s = 0.0  # as a disk would: other threads go on meanwhile
        if image is not None:
            self._start_from(image)

    def _start_from(self, image: Image) -> None:
        for path in image.directories:
            self._enter("mkdir", path)
        for path, data in image.files.items():
            self._enter("create", path)
            self.events.append(Event("write", (self._nodes, 0, data)))
        for path, other in image.links.items():
            directory, name = self._at(path)
            self._names[directory][name] = self._node(other)
            self.events.append(Event("create", (directory, name, self._node(other))))
        self.events.append(Event("all durable", ()))

    def _enter(self, kind: str, path: str) -> None:
        directory, name = self._at(path)
        self._nodes += 1
        if kind == "mkdir":
            self._names[self._nodes] = {}
        self._names[directory][name] = self._nodes
        self.events.append(Event(kind, (directory, name, self._nodes)))

    # Where a call leads

    def _at(self, path: str, fd: int | None = None) -> tuple[int, str]:
        """The directory's node and the name in it; (-1, ...) outside of the root."""
        directory = ROOT
        if fd is not None:
            directory = self._fds.get(fd, -1)
        elif path.startswith("/"):
            if not path.startswith(self._root):
                return (ROOT, "") if path + "/" == self._root else (-1, path)
            path = path[len(self._root) :]
        *parents, name = path.split("/")
        for parent in parents:
            directory = self._names.get(directory, {}).get(parent, -1)
        return directory, name

    def _segments(self) -> set[int]:
        return {node for names in self._names.values() for name, node in names.items() if name.endswith(".wal")}

    def _node(self, path: str, fd: int | None = None) -> int:
        directory, name = self._at(path, fd)
        if name in ("", "."):
            return directory
        return self._names.get(directory, {}).get(name, -1)

    # What is told

    def note(self, kind: str, *what: Any) -> None:
        """Something that a caller of walpool's learnt, or began."""
        with self._mutex:
            self._record(kind, *what)

    def _record(self, kind: str, *what: Any) -> None:
        self._look_at_maps()
        self.events.append(Event(kind, what))

    def _look_at_maps(self) -> None:
        """A store into a mapping is no call: what changed since the last look is written down now, sector by sector."""
        for at, (node, offset, reference, before) in enumerate(self._maps):
            mapping = reference()
            if mapping is None:
                continue
            now = mapping[:]
            if now != before:
                for start in range(0, len(now), SECTOR):
                    sector = now[start : start + SECTOR]
                    if sector != before[start : start + SECTOR]:
                        self.events.append(Event("write", (node, offset + start, sector)))
                self._maps[at] = (node, offset, reference, now)

    # The taps

    @contextmanager
    def recording(self) -> Iterator[None]:
        taps = {
            "open": self._open, "close": self._close, "mkdir": self._mkdir, "rename": self._rename, "link": self._link,
            "unlink": self._unlink, "ftruncate": self._ftruncate, "pwrite": self._pwrite, "mmap": self._mmap,
            "store": self._store,
            "fsync": partial(self._sync, "fsync"), "fdatasync": partial(self._sync, "fdatasync"),
        }  # fmt: skip
        before = {name: getattr(calls, name) for name in taps}
        for name, tap in taps.items():
            setattr(calls, name, self._through(name, tap, before[name]))
        try:
            yield
        finally:
            for name, call in before.items():
                setattr(calls, name, call)

    def _through(self, name: str, tap: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
        def through(*args: Any, **kwargs: Any) -> Any:
            if name not in ("pwrite", "fsync", "fdatasync", "close", "store"):
                self.fault(name)
            return tap(call, *args, **kwargs)

        return through

    def _open(self, call: Any, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self._mutex:
            fd: int = call(path, flags, mode, dir_fd=dir_fd)
            directory, name = self._at(path, dir_fd)
            if flags & os.O_CREAT and directory >= 0:
                assert flags & os.O_EXCL, f"{path} is made by an open that does not say whether it was there"
                self._nodes += 1
                self._names[directory][name] = self._nodes
                self._record("create", directory, name, self._nodes)
            self._fds[fd] = self._node(path, dir_fd)
            return fd

    def _close(self, call: Any, fd: int) -> None:
        with self._mutex:
            self._fds.pop(fd, None)
            call(fd)

    def _mkdir(self, call: Any, path: str, mode: int, *, dir_fd: int | None = None) -> None:
        with self._mutex:
            call(path, mode, dir_fd=dir_fd)
            directory, name = self._at(path, dir_fd)
            if directory >= 0:
                self._nodes += 1
                self._names[directory][name] = self._nodes
                self._names[self._nodes] = {}
                self._record("mkdir", directory, name, self._nodes)

    def _rename(self, call: Any, name: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        with self._mutex:
            call(name, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            node = self._node(name, src_dir_fd)
            source, target = self._at(name, src_dir_fd), self._at(to, dst_dir_fd)
            del self._names[source[0]][source[1]]
            self._names[target[0]][target[1]] = node
            self._record("rename", *source, *target, node)

    def _link(self, call: Any, name: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        with self._mutex:
            call(name, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            directory, new = self._at(to, dst_dir_fd)
            self._names[directory][new] = self._node(name, src_dir_fd)
            self._record("create", directory, new, self._names[directory][new])

    def _unlink(self, call: Any, name: str, *, dir_fd: int) -> None:
        with self._mutex:
            call(name, dir_fd=dir_fd)
            directory, name = self._at(name, dir_fd)
            del self._names[directory][name]
            self._record("unlink", directory, name)

    def _ftruncate(self, call: Any, fd: int, size: int) -> None:
        with self._mutex:
            call(fd, size)
            self._record("size", self._fds[fd], size)

    def _pwrite(self, call: Any, fd: int, data: bytes | memoryview, offset: int) -> int:
        with self._mutex:
            count: int = call(fd, memoryview(data)[: self.fault("pwrite")], offset)
            self._record("write", self._fds[fd], offset, bytes(data[:count]))
            return count

    def _mmap(self, call: Any, fd: int, size: int, **how: Any) -> mmap.mmap:
        with self._mutex:
            mapping: mmap.mmap = call(fd, size, **how)
            if fd in self._fds and self._fds[fd] in self._segments():
                mine = os.dup(fd)
                weakref.finalize(mapping, os.close, mine)
                self._stored_into.append((self._fds[fd], mine, weakref.ref(mapping)))
            elif how["prot"] & mmap.PROT_WRITE:
                self._maps.append((self._fds[fd], how.get("offset", 0), weakref.ref(mapping), mapping[:]))
            return mapping

    def _store(self, call: Any, mapped: memoryview, start: int, data: bytes) -> None:
        """Its pages may reach the disk at any moment of it: word by word, in whatever order words are stored."""
        with self._mutex:
            self._look_at_maps()
            node, mine = next((node, fd) for node, fd, reference in self._stored_into if reference() is mapped.obj)
            for low, high in _pieces(start, start + len(data), random.Random(len(self.events))):
                self.events.append(Event("write", (node, low, data[low - start : high - start])))
            call(mapped, start, data)
            assert os.pread(mine, len(data), start) == data, "a store has gone behind the end of its file"

    def _sync(self, name: str, call: Any, fd: int) -> None:
        with self._mutex:
            self._look_at_maps()
            node, begun = self._fds.get(fd, -1), len(self.events)
        try:
            self.fault(name)
            call(fd)
            if self.sync_takes_s:
                calls.sleep(self.sync_takes_s)
        except OSError:
            self.note("sync failed", node, begun)
            raise
        self.note("sync", node, begun, name == "fsync")


def _pieces(start: int, end: int, chance: random.Random) -> list[tuple[int, int]]:
    """Of a store, cut between words, in any order."""
    words = range(start + 8 - start % 8, end, 8)
    cuts = sorted(chance.sample(words, min(len(words), chance.choice(STORED_IN_PIECES))))
    pieces = list(zip([start, *cuts], [*cuts, end], strict=True))
    chance.shuffle(pieces)
    return pieces


# Playing back


class Write(NamedTuple):
    at: int  # of the event
    offset: int
    data: bytes | None  # None: the size becomes `offset`


class File:
    def __init__(self) -> None:
        self.durable = b""
        self.pending: list[Write] = []
        self.orphans: list[Write] = []  # a failed sync took them for written: a later sync leaves them out

    def sync(self, begun: int) -> None:
        now = [write for write in self.pending if write.at < begun]
        if not now:
            return
        self.pending = [write for write in self.pending if write.at >= begun]
        pages = {page for write in now for page in _pages(write)}
        saved = [write for write in self.orphans if _pages(write) <= pages]  # dirty again, so written with the others
        self.orphans = [write for write in self.orphans if not _pages(write) <= pages]
        self.durable = bytes(applied(bytearray(self.durable), sorted(saved + now)))

    def fail(self, begun: int) -> None:
        for write in [write for write in self.pending if write.at < begun]:
            self.pending.remove(write)
            data = write.data or b""
            for page in sorted(_pages(write)):
                start = max(write.offset, page * PAGE)
                end = min(write.offset + len(data), (page + 1) * PAGE)
                self.orphans.append(Write(write.at, start, data[start - write.offset : end - write.offset]))
            if write.data is None:
                self.pending.append(write)

    def unsynced(self) -> list[Write]:
        return sorted(self.orphans + self.pending) if self.orphans else self.pending


def _pages(write: Write) -> set[int]:
    if not write.data:
        return set()
    return set(range(write.offset // PAGE, (write.offset + len(write.data) - 1) // PAGE + 1))


def applied(data: bytearray, writes: list[Write]) -> bytearray:
    for _, offset, new in writes:
        if new is None:
            del data[offset:]
            data += bytes(offset - len(data))
        else:
            if offset > len(data):
                data += bytes(offset - len(data))
            data[offset : offset + len(new)] = new
    return data


class Naming(NamedTuple):
    """Names that change together."""

    at: int
    changes: tuple[tuple[int, str, int | None], ...]  # directory, name, node


class Disk:
    """What is durable after the events so far, and what is under way."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.at = 0
        self.files: dict[int, File] = {}
        self.names: dict[int, dict[str, int]] = {ROOT: {}}
        self.namings: list[Naming] = []

    def play(self, event: Event) -> None:
        what = event.what
        match event.kind:
            case "write":
                self.files[what[0]].pending.append(Write(self.at, what[1], what[2]))
            case "size":
                self.files[what[0]].pending.append(Write(self.at, what[1], None))
            case "create" | "mkdir":
                if event.kind == "mkdir":
                    self.names[what[2]] = {}
                else:
                    self.files.setdefault(what[2], File())
                self.namings.append(Naming(self.at, (what,)))
            case "unlink":
                self.namings.append(Naming(self.at, ((*what, None),)))
            case "rename":
                old, new = (what[0], what[1], None), (what[2], what[3], what[4])
                if self.model is Model.STRONG or what[0] == what[2]:
                    self.namings.append(Naming(self.at, (old, new)))
                else:
                    self.namings += [Naming(self.at, (new,)), Naming(self.at, (old,))]
            case "sync":
                self._sync(*what)
            case "sync failed":
                if what[0] in self.files:
                    self.files[what[0]].fail(what[1])
            case "all durable":
                for node in [*self.files, *self.names]:
                    self._sync(node, self.at, True)
        self.at += 1

    def _sync(self, node: int, begun: int, whole: bool) -> None:
        file = self.files.get(node)
        commits = whole
        if file is not None:
            size = len(file.durable)
            file.sync(begun)
            commits = whole or len(file.durable) != size
        if self.model is Model.STRONG:
            if commits:
                self._name_now(lambda naming: naming.at < begun)
        elif file is None:
            self._name_now(lambda naming: naming.at < begun and any(change[0] == node for change in naming.changes))

    def _name_now(self, which: Callable[[Naming], bool]) -> None:
        left = []
        for naming in self.namings:
            if which(naming):
                _name(self.names, naming)
            else:
                left.append(naming)
        self.namings = left

    # One state

    def draw(self, chance: random.Random, sector: int, strangers: list[bytes]) -> Image:
        """A state that a cut now may leave. `strangers`: what may stand in space that was never written."""
        kind = chance.choice(_KINDS)
        last = chance.randrange(self.at + 1)  # for "until": of the events, the last that reached the disk
        names = self.names
        namings = self._draw_namings(chance, kind, last)
        if namings:
            names = {node: dict(entries) for node, entries in names.items()}
            for naming in namings:
                _name(names, naming)
        junk = chance.choice(strangers) if self.model is Model.WEAK and chance.random() < 0.3 else b""
        image = Image((), {}, {}, {})
        directories: list[str] = []
        seen: dict[int, str] = {}
        waiting = [(ROOT, "")]
        while waiting:
            directory, prefix = waiting.pop()
            for name, node in names[directory].items():
                path = prefix + name
                if node in names:
                    directories.append(path)
                    waiting.append((node, path + "/"))
                elif name in CACHES:
                    image.caches[path] = self.files[node]
                elif node in seen:
                    image.links[path] = seen[node]
                else:
                    seen[node] = path
                    image.files[path] = self._draw_file(self.files[node], chance, kind, last, sector, junk)
        return image._replace(directories=tuple(directories))

    def draw_caches(self, image: Image, chance: random.Random, sector: int) -> None:
        """What only speeds things up; drawn apart, because it makes no two states different that are else the same."""
        for path, file in image.caches.items():
            image.files[path] = self._draw_file(file, chance, chance.choice(_KINDS), chance.randrange(self.at + 1),
                                                sector, b"")  # fmt: skip

    def _draw_namings(self, chance: random.Random, kind: str, last: int) -> list[Naming]:
        namings = self.namings
        if not namings or kind == "nothing":
            return []
        if kind == "everything":
            return namings
        if kind == "until":
            return [naming for naming in namings if naming.at <= last]
        if self.model is Model.STRONG:
            return namings[: chance.randrange(len(namings) + 1)]
        if kind == "one":
            return [chance.choice(namings)]
        keep = chance.choice((0.1, 0.5, 0.9))
        return [naming for naming in namings if chance.random() < keep]

    def _draw_file(self, file: File, chance: random.Random, kind: str, last: int, sector: int, junk: bytes) -> bytes:
        writes = file.unsynced()
        if not writes or kind == "nothing":
            return file.durable
        if kind == "random":
            kind = chance.choice(_FILE_KINDS)
        match kind:
            case "nothing":
                return file.durable
            case "everything":
                return bytes(applied(bytearray(file.durable), writes))
            case "until":
                before = [write for write in writes if write.at < last]
                torn = [_torn(write, chance) for write in writes if write.at == last]
                data = applied(bytearray(file.durable), before + torn)
                return bytes(data)
            case "one":
                return bytes(applied(bytearray(file.durable), [chance.choice(writes)]))
            case _:
                return self._draw_sectors(file.durable, writes, chance, sector, junk)

    def _draw_sectors(
        self, durable: bytes, writes: list[Write], chance: random.Random, sector: int, junk: bytes
    ) -> bytes:
        """Each sector in one of the versions that it had; the size in one of those, or none of them."""
        sizes = [len(durable)]
        for _, offset, new in writes:
            sizes.append(offset if new is None else max(sizes[-1], offset + len(new)))
        largest = max(sizes)
        data = bytearray(durable)
        if len(junk) and largest > len(data):
            data += (junk * (largest // len(junk) + 1))[len(data) : largest]
        data += bytes(largest - len(data))
        keep = chance.choice((0.1, 0.5, 0.8, 0.95))
        left: dict[int, int] = {}  # of a sector, how many writes more reach it
        for _, offset, new in writes:
            if new is None:
                continue
            end = offset + len(new)
            for number in range(offset // sector, (end - 1) // sector + 1):
                start = number * sector
                count = left.get(number)
                if count is None:
                    count = 0 if chance.random() >= keep else chance.choice((1, 1 << 30, 1 << 30, chance.randrange(5)))
                    if count and start + sector > len(durable):
                        fresh = max(start, len(durable))
                        data[fresh : start + sector] = bytes(max(0, min(start + sector, largest) - fresh))
                if count:
                    low, high = max(start, offset), min(start + sector, end)
                    data[low:high] = new[low - offset : high - offset]
                    count -= 1
                left[number] = count
        size = largest
        if chance.random() < 0.4:
            size = chance.choice(sizes)
            if self.model is Model.WEAK and chance.random() < 0.3:
                size = chance.randrange(min(sizes), largest + 1)
        del data[size:]
        return bytes(data)


_KINDS = ("nothing", "everything", "until", "until", "one", "random", "random", "random", "random", "random")
_FILE_KINDS = ("nothing", "everything", "until", "one", "sectors", "sectors", "sectors", "sectors")


def _torn(write: Write, chance: random.Random) -> Write:
    return write if write.data is None else write._replace(data=write.data[: chance.randrange(len(write.data) + 1)])


def _name(names: dict[int, dict[str, int]], naming: Naming) -> None:
    for directory, name, node in naming.changes:
        if node is None:
            names[directory].pop(name, None)
            continue
        if len(naming.changes) > 1:  # a rename never leaves a file with two names in one directory
            for old in [old for old, other in names[directory].items() if other == node]:
                del names[directory][old]
        names[directory][name] = node
