"""`walpool doctor`: what walpool runs with here: the Python, the compiled core or why there is none, limits, extras.

With LOG also the file system that it is on, or would be on. Nothing is made, locked or opened to be written, and the
exit code is 0 whatever it says.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import shutil
import sys
import sysconfig
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from walpool import UnsafeLog, __version__
from walpool.cli import arguments
from walpool.cli.exits import Exit, one_line
from walpool.cli.output import amount, print_json
from walpool.format.entry import MAX_KEY_BYTES, MAX_VALUE_BYTES
from walpool.native.select import CHOSEN, FREE_THREADED, NOT_BUILT, STALE, core, why_not
from walpool.system.console import setting
from walpool.system.filesystems import volume_of
from walpool.system.processes import boot_id, most_open_files

# Each extra that something needs at run time, and the package that it brings.
EXTRAS = {"monitor": "textual", "prometheus": "prometheus-client", "zstd": "backports.zstd"}
BUILT_IN = {"zstd": (3, 14)}  # from this Python on it is in the standard library


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", nargs="?", type=arguments.place, metavar="LOG", help="the log's directory, or its place")


def run(args: argparse.Namespace) -> Exit:
    found = look(args.log)
    if args.json:
        print_json(asdict(found))
    else:
        print("\n".join(render(found)))
    return Exit.OK


@dataclass(frozen=True, slots=True)
class Core:
    in_use: bool
    why_not: str  # empty: it is in use
    remedy: str  # what to do about that; empty: nothing is to be done, or nobody knows
    checksum: str  # how it sums: by which instruction, or by a table


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log is, or would be."""

    path: str
    directory: str  # the nearest one above it that there is
    file_system: str
    shared: str  # the network file system that this is
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Checkup:
    walpool: str
    python: str
    platform: str
    core: Core
    boot_id: str  # empty: it can be read; else why not
    key_bytes: int  # at most
    value_bytes: int
    open_files: int
    extras: dict[str, str | None]  # version of what it brings; None: not installed
    log: Place | None


def look(log: str | None) -> Checkup:
    """What there is. Raises OSError where nobody may look at the log's place."""
    return Checkup(
        walpool=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=platform.platform(),
        core=Core(core is not None, why_not, _remedy(why_not), "" if core is None else core.CHECKSUM),
        boot_id=_boot_id(),
        key_bytes=MAX_KEY_BYTES,
        value_bytes=MAX_VALUE_BYTES,
        open_files=most_open_files(),
        extras={extra: _version(extra) for extra in EXTRAS},
        log=None if log is None else _place(log),
    )


def _remedy(why_not: str) -> str:
    if why_not == CHOSEN:
        return "unset WALPOOL_PURE"
    if why_not == FREE_THREADED:
        return "a Python of the usual kind runs it"
    if why_not == STALE:
        return "`python setup.py build_ext --inplace`, and every command of tools/dev.py, build it anew"
    if why_not == NOT_BUILT:
        lacks = _lacks()
        install = "install walpool again, from a wheel for this kind of machine or from its sdist"
        return f"{' and '.join(lacks)}; with that, {install}" if lacks else f"what it takes is here by now: {install}"
    return "install walpool again" if why_not else ""


def _lacks() -> list[str]:
    """What a core cannot be built without, and is not here."""
    lacks = []
    compiler = shlex.split(setting("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        lacks.append(f"there is no C compiler (`{compiler}`; Debian's package gcc)")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        lacks.append(f"there is no {header} (Debian's package python3-dev)")
    return lacks


def _boot_id() -> str:
    try:
        boot_id()
    except UnsafeLog as error:
        return str(error)
    return ""


def _version(extra: str) -> str | None:
    if extra in BUILT_IN and sys.version_info >= BUILT_IN[extra]:
        return "in the standard library"
    try:
        return metadata.version(EXTRAS[extra])
    except metadata.PackageNotFoundError:
        return None


def _place(log: str) -> Place:
    volume = volume_of(log)
    return Place(log, volume.directory, volume.kind, volume.shared, volume.free_bytes)


def render(found: Checkup) -> list[str]:
    """For people."""
    core = found.core
    runs = f"in use, checksums by {core.checksum}" if core.in_use else f"not in use, pure Python runs: {core.why_not}"
    largest = f"keys {found.key_bytes >> 20} MiB, values {found.value_bytes >> 20} MiB"
    lines = [
        f"walpool   {found.walpool}",
        f"python    {found.python} on {found.platform}",
        f"core      {runs}",
        *([f"          {core.remedy}"] if core.remedy else []),
        f"boot id   {found.boot_id or 'can be read'}",
        f"limits    {largest}; {found.open_files:,} open files",
    ]
    for extra, version in found.extras.items():
        lines.append(f"extra     {extra}: {version or 'not installed'}")
    if found.log is not None:
        kind = found.log.file_system or "an unknown file system"
        where = f"{kind}, {amount(found.log.free_bytes)} free"
        if found.log.shared:
            where += f"; {found.log.shared} is shared by machines: appends are refused without --allow-network-fs"
        lines.append(f"log       {one_line(found.log.path)}: {where}")
    return lines
