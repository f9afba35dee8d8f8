"""Retention in a run that is cut: what each rule keeps, by the bytes of the segments, and steps that make it remove.

What a rule may remove is worked out here a second time, from the files and the rule's words alone, and noted before
anything can be removed: nothing behind it may be missing after a cut.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from unittest.mock import patch

import walpool
from tests.crash.power_cut import Told, next_lsn
from tests.crash.taps import untapped
from tests.format import layout
from walpool import Retention, SyncFailed, SyncMode, WALReader, WALWriter
from walpool.system.calls import calls
from walpool.upkeep.retention import PruneReport, apply_retention

START_NS = 1_700_000_000 * 10**9
FAR = 1 << 62
COPY = "copy.wal"


class Kept(NamedTuple):
    """A segment, as its bytes are."""

    first_lsn: int
    used: int  # bytes up to its last frame
    made_ns: int


def look(log: Path) -> list[Kept]:
    """All that have a header, oldest first."""
    found = []
    for name in sorted(os.listdir(log)):
        if name.endswith(".wal"):
            data = (log / name).read_bytes()
            end = max((end for _, end, _, _ in layout.spans(data)), default=64)
            found.append(Kept(int(name[:20]), end, struct.unpack_from("<Q", data, 24)[0]))
    return found


def kept_from(segments: list[Kept], rule: Retention, checkpoint: int, pin: int, now_ns: int) -> int:
    """The first LSN that is left once the rule was applied."""
    for at, segment in enumerate(segments[:-1]):
        following = segments[at + 1]
        bytes_left = sum(each.used for each in segments[at:])
        asked = (
            (rule.checkpointed and following.first_lsn <= checkpoint + 1)
            or (rule.max_segments is not None and len(segments) - at > rule.max_segments)
            or (rule.max_bytes is not None and bytes_left > rule.max_bytes)
            or (rule.max_age is not None and now_ns - following.made_ns > rule.max_age * 1e9)
        )
        pinned = pin < following.first_lsn and bytes_left <= rule.max_pinned_bytes
        if not asked or pinned:
            return segment.first_lsn
    return segments[-1].first_lsn


class Pruned:
    """A writer with rules, what pins it, and the time by which it goes."""

    def __init__(self, told: Told, chance: random.Random) -> None:
        self.told = told
        self.chance = chance
        self.now_ns = START_NS
        self.checkpoint = 0
        self.readers: list[tuple[WALReader, list[int]]] = []
        self.copied = False
        self.in_background = chance.random() < 0.4  # then by one rule; else by another each time
        self.rule = self.draw_rule(3, 900, 60) if self.in_background else Retention(checkpointed=False)
        self.limit = chance.choice((600, 1200))

    def __enter__(self) -> Pruned:
        self._time = patch.object(calls, "time_ns", lambda: self.now_ns)
        self._time.start()
        self.told.coordinators.about_to_work = self.begin
        self.open()
        return self

    def draw_rule(self, segments: int, used: int, age_s: float) -> Retention:
        """One kind or two, at what is so now, or one less or more."""
        chance = self.chance
        kinds = chance.choices(["segments", "bytes", "age", "checkpoint"], k=chance.choice((1, 1, 2)))
        by = chance.choice((-1, 0, 1))
        return Retention(
            checkpointed="checkpoint" in kinds,
            max_segments=max(0, segments + by) if "segments" in kinds else None,
            max_bytes=max(0, used + by) if "bytes" in kinds else None,
            max_age=max(0.0, age_s + by) if "age" in kinds else None,
            max_pinned_bytes=chance.choice((1500, 1 << 30, 1 << 30)),
        )

    def open(self) -> None:
        retention = self.rule if self.in_background else None
        self.writer = WALWriter(self.told.log, size_limit=self.limit, retention=retention)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader, _ in self.readers:
            reader.close()
        self.writer.close()
        self._time.stop()

    def begin(self, *, pinned: bool = True) -> int:
        """Note what may be removed from now on; the first LSN that is to be left."""
        pin = min((lsns[0] for _, lsns in self.readers), default=FAR) if pinned else FAR
        with untapped():
            first_lsn = kept_from(look(self.told.log), self.rule, self.checkpoint, pin, self.now_ns)
        self.told.recorder.note("prune begins", first_lsn)
        return first_lsn

    # Steps

    def step(self) -> None:
        chance = self.chance
        match chance.randrange(14):
            case 0 | 1:
                self.grow()
                self.prune()
            case 2:
                self.now_ns += chance.choice((1, 29, 30, 31, 91)) * 10**9
            case 3 | 4 | 5:
                self.writer.rotate()
            case 6:
                self.checkpoint_at(chance.randrange(next_lsn(self.writer)))
            case 7:
                self.read()
            case 8 if not self.copied:
                self.copy()
            case 9 if chance.random() < 0.5:
                self.fail_a_sync()
            case _:
                self.told.append(self.writer, SyncMode.NORMAL)

    def checkpoint_at(self, lsn: int) -> None:
        self.told.checkpoint(self.writer, lsn)
        self.checkpoint = max(self.checkpoint, lsn)

    def grow(self) -> None:
        """Have more than one segment, and now and then more than eight."""
        wanted = 10 if self.chance.random() < 0.05 else self.chance.choice((2, 3, 4))
        while len(look(self.told.log)) < wanted and not (self.in_background and self.chance.random() < 0.3):
            self.told.append(self.writer, SyncMode.NORMAL)
            self.writer.rotate()
            self.now_ns += self.chance.choice((0, 1, 30)) * 10**9

    def prune(self) -> None:
        if not self.in_background:
            there = look(self.told.log)
            at = self.chance.randrange(len(there) > 1, len(there))
            age_s = (self.now_ns - there[min(at + 1, len(there) - 1)].made_ns) / 1e9
            self.rule = self.draw_rule(len(there) - at, sum(each.used for each in there[at:]), age_s)
        expected = self.begin()
        report = self.apply()
        assert report.first_lsn == expected, f"{report} by {self.rule}, and LSN {expected} is the first that it keeps"
        self.told.recorder.note("pruned", expected)

    def apply(self) -> PruneReport:
        handle = self.writer._handle
        options = replace(handle.options, retention=self.rule)
        return handle.call(lambda session: apply_retention(session.log, options))

    def read(self) -> None:
        """A reader with a pin, which may read on a little, or is closed."""
        if not self.readers:
            self.readers.append((WALReader(self.told.log, pin=True), [look(self.told.log)[0].first_lsn]))
            return
        reader, at = self.chance.choice(self.readers)
        if self.chance.random() < 0.4 or at[0] < look(self.told.log)[0].first_lsn:  # overruled
            reader.close()
            self.readers.remove((reader, at))
            return
        entry = reader.read_entry()
        if entry is not None:
            at[0] = max(each.first_lsn for each in look(self.told.log) if each.first_lsn <= entry.lsn)

    def copy(self) -> None:
        """What is not copied yet stays, though a rule is applied in the middle."""
        self.copied = True

        def in_the_middle(copied: int, total: int) -> None:
            self.begin(pinned=False)
            self.apply()

        report = walpool.copy(self.told.log, self.told.log.parent / COPY, in_the_middle)
        self.told.recorder.note("copied", COPY, report.first_lsn, report.next_lsn)

    def fail_a_sync(self) -> None:
        """A poisoned log is not pruned; opened again it goes on."""
        failed = []

        def fail(name: str) -> None:
            if name == "fdatasync" and not failed:
                failed.append(name)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        before, self.told.recorder.fault = self.told.recorder.fault, fail
        try:
            self.told.sync(self.writer)
        except SyncFailed:
            pass
        finally:
            self.told.recorder.fault = before
        if failed:
            try:
                self.apply()
            except SyncFailed:
                pass
            else:
                raise AssertionError("a poisoned log was pruned")
            self.writer.close()
            self.open()
