"""The core with failpoints (failpoints.h): the same sources, built for tests alone, and what goes wrong at a point.

It is built once for each text of the sources, in a folder of this user's own; no log but those that are opened inside
`appends_by` sees it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from tests.native.builds import COMPILER, NATIVE, STRICT, cannot_compile, loaded
from tests.support import ROOT
from walpool.native import select
from walpool.write import place

HEADER = Path(__file__).with_suffix(".h")
GIVEN = "WALPOOL_FAILPOINTS_CORE"  # a file that was built, which is taken
FLAGS = shlex.split(os.environ.get("WALPOOL_FAILPOINTS_CFLAGS", ""))

KILL, SIGNAL, SHORT, TORN, STOP = -1, -2, -3, -4, -5  # what happens at a point; else the number of an error
MOMENTS = tuple(re.findall(r"AT\((\w+)\)", (NATIVE / "placing.h").read_text())[1:])  # the first is the macro
WRITES = ("pwrite", "pwritev")
CALLS = {
    "flock": (errno.EINTR, errno.EWOULDBLOCK, errno.ENOLCK, errno.EIO),
    "unlock": (errno.EINTR, errno.EIO),
    **dict.fromkeys(WRITES, (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, SHORT)),
}


@cache
def cannot_build() -> str:
    """Why there are no failpoints here; empty: there are."""
    if not select.core_in_use:
        return "the compiled core does not run here"
    return cannot_compile()


def built(*, changes: Sequence[tuple[str, str, str]] = ()) -> Path:
    """The file of the core with failpoints and `changes`: of each the file, what is there once, and what instead.

    A finder of a seeded bug is given the one with the bug.
    """
    if given := os.environ.get(GIVEN):
        return Path(given)
    texts = {file.name: file.read_text() for file in sorted(NATIVE.glob("*.[ch]"))}
    for name, old, new in changes:
        assert texts[name].count(old) == 1, f"{name} has changed: {old!r} is not there once"
        texts[name] = texts[name].replace(old, new)
    digest = hashlib.sha256(repr((texts, HEADER.read_text(), sys.version, COMPILER, FLAGS)).encode()).hexdigest()[:16]
    file = Path(tempfile.gettempdir()) / f"walpool-failpoints-{os.getuid()}" / f"{digest}.so"
    file.parent.mkdir(mode=0o700, exist_ok=True)
    assert file.parent.stat().st_uid == os.getuid(), f"{file.parent} is somebody else's"
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            for name, text in texts.items():
                Path(folder, name).write_text(text)
            defined = [f"-DPy_LIMITED_API={runpy.run_path(str(ROOT / 'setup.py'))['OLDEST']}"]
            defined.append(f'-DWALPOOL_FAILPOINTS="{HEADER}"')
            flags = [
                *(() if changes else STRICT),
                *FLAGS,
                "-O1",
                "-g",
                "-shared",
                "-fPIC",
                *defined,
                f"-I{sysconfig.get_path('include')}",
            ]
            new = Path(folder, "new.so")
            command = [COMPILER, *flags, str(Path(folder, "core.c")), "-o", str(new)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            new.rename(file)
    return file


class Failpoints:
    def __init__(self, file: Path) -> None:
        self.module = _load(file)
        self._library = ctypes.CDLL(str(file))

    def arm(self, point: str, what: int, after: int = 0) -> None:
        """Once it is met for the time after `after` others."""
        self._library.walpool_arm(point.encode(), what, ctypes.c_long(after))

    def disarm(self) -> None:
        self.arm("", 0)

    def met(self) -> Counter[str]:
        """How often each point was met since something was armed."""
        self._library.walpool_met.restype = ctypes.c_long
        names = (*MOMENTS, *CALLS)
        return Counter({name: self._library.walpool_met(name.encode()) for name in names})


_load = cache(loaded)


@contextmanager
def appends_by(core: ModuleType | bool | None) -> Iterator[None]:
    """Logs that are opened inside append by that core; with True by the one that is installed, else by Python."""
    before, place.core = place.core, select.core if core is True else core or None
    try:
        yield
    finally:
        place.core = before


class DieInCore:
    """Die at the n-th time that an append of the core comes to a point; see sweep.py, whose kind "core" this is."""

    def __init__(self, n: int, moment: str) -> None:
        self.met: Counter[str] = Counter()
        self._n = n
        self._moment = moment
        self._failpoints = Failpoints(built())
        self._core = place.core

    def start(self) -> None:
        point, _, torn = self._moment.partition(" ")
        place.core = self._failpoints.module
        self._failpoints.arm(point, TORN if torn else KILL, self._n)

    def stop(self) -> None:
        self.met = self._failpoints.met()
        place.core = self._core

    def points(self) -> list[tuple[int, str]]:
        """Where one can die, after a run in which nobody did."""
        moments = [*MOMENTS, *(f"{write} torn" for write in WRITES)]
        return [(n, moment) for moment in moments for n in range(self.met[moment.partition(" ")[0]])]
