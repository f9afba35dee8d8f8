"""What is published, which `tools/dev.py build` makes: an sdist, a wheel with the compiled core, one for every machine.

    python tools/build.py [--to DIR] [--pure]

Holds: both wheels are built from the sdist, so that it has what it takes; and nothing comes out that was not looked at:
metadata, the symbols that the core takes from Python (those of its limited API alone) and from the system's library
(those of an old one), and the names inside. A wheel that says it has a core has one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# `clock_gettime` is in the C library itself since 2.17, of 2012, which is also the oldest for which anybody builds
# Python 3.11 wheels (manylinux2014). The next older one has it in a library that would have to be asked for.
OLDEST_GLIBC = (2, 17)
CORE = "walpool/_core.abi3.so"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "*.so", "build", "dist")
NO_CORE = "the core was not built: a C compiler and the headers of Python are needed (--pure does without, and says so)"


def main(args: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Build and check what is published.")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist in the checkout")
    parser.add_argument("--pure", action="store_true", help="no wheel with the core")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        made = build(Path(folder), pure=options.pure)
        check(made)
        options.to.mkdir(parents=True, exist_ok=True)
        for old in options.to.glob("walpool-*"):
            old.unlink()
        for file in made:
            shutil.move(file, options.to)
            print(f"{options.to / file.name}: {(options.to / file.name).stat().st_size:,} bytes")
    return 0


def build(folder: Path, *, pure: bool = False) -> list[Path]:
    """The sdist, then the wheels, in a folder of each."""
    sdist = make_sdist(folder)
    made = [sdist, make_wheel(sdist, folder / "pure", WALPOOL_PURE="1")]
    if not pure:
        made.append(widened(make_wheel(sdist, folder / "core", WALPOOL_PURE=""), folder / "widened"))
    return made


def make_sdist(folder: Path) -> Path:
    """Of a copy: setuptools writes where it works, and takes along what it once found there."""
    copy = folder / "copy"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder / "sdist", copy)
    (made,) = (folder / "sdist").iterdir()
    return made


def make_wheel(sdist: Path, folder: Path, **environment: str) -> Path:
    with tarfile.open(sdist) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (tree,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "wheel", tree, **environment)
    (made,) = (folder / "wheel").iterdir()
    return made


def widened(wheel: Path, folder: Path) -> Path:
    """The wheel, with the widest tag that its symbols allow in its name: on Linux this machine's says too little."""
    if CORE not in names(wheel):
        fail(NO_CORE)
    if sys.platform != "linux":
        return wheel
    run("auditwheel", "repair", "--wheel-dir", folder, wheel)
    (made,) = folder.iterdir()
    return made


def check(made: Sequence[Path]) -> None:
    sdist, *wheels = made
    run("twine", "check", "--strict", *made)
    with tarfile.open(sdist) as packed:
        compiled = [name for name in packed.getnames() if name.endswith((".so", ".pyc"))]
    assert not compiled, compiled
    for wheel in wheels:
        pure = wheel.name.endswith("-py3-none-any.whl")
        assert (CORE in names(wheel)) is not pure, wheel.name
        assert not [name for name in names(wheel) if name.endswith((".c", ".h"))], wheel.name
        if not pure:
            run("abi3audit", "--strict", wheel)
            check_tag(wheel.name)


def check_tag(name: str) -> None:
    """That a Linux wheel is for old systems too."""
    assert "-cp311-abi3-" in name, name
    if found := re.search(r"manylinux_(\d+)_(\d+)", name):
        needed = (int(found[1]), int(found[2]))
        if needed > OLDEST_GLIBC:
            fail(f"{name} needs a newer C library than {'.'.join(map(str, OLDEST_GLIBC))}: auditwheel show says why")
    elif sys.platform == "linux" and "musllinux" not in name:
        fail(f"{name} is for machines like this one alone: auditwheel show says why")


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as packed:
        return set(packed.namelist())


def run(*command: str | Path, **environment: str) -> None:
    """Silent, unless it fails. Commands are those of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    variables = {**os.environ, "PATH": path, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout + done.stderr, file=sys.stderr)
        fail(f"{' '.join(map(str, command))} ended with {done.returncode}")


def fail(text: str) -> None:
    sys.exit(f"build: {text}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
