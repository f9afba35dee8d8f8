"""What pyproject.toml cannot say: the compiled core, which is left out where it cannot be built.

With WALPOOL_PURE=1 it is not tried, and a wheel is one for every machine.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

NATIVE = Path("src") / "walpool" / "native"  # setuptools wants it relative to here
HEADERS = ["bytes.h", "call.h", "crc.h", "entries.h", "frames.h", "make.h", "place.h", "placing.h"]
OLDEST = "0x030B0000"  # of the limited API: one file for Python 3.11 and every later one


def sources() -> str:
    """What the core is built from, so that a stale one is known."""
    digest = hashlib.sha256()
    for file in sorted((Path(__file__).parent / NATIVE).glob("*.[ch]")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def core() -> Any:
    from setuptools import Extension

    return Extension(
        "walpool._core",
        [str(NATIVE / "core.c")],
        depends=[str(NATIVE / name) for name in HEADERS],
        define_macros=[("Py_LIMITED_API", OLDEST), ("WALPOOL_SOURCES", f'"{sources()}"')],
        extra_compile_args=["-O3", "-g0", "-fvisibility=hidden"],
        py_limited_api=True,
        optional=True,
    )


def main() -> None:
    from setuptools import setup

    free_threaded = "t" in getattr(sys, "abiflags", "")  # there is no limited API for those, and select.py says why not
    pure = os.environ.get("WALPOOL_PURE", "") not in ("", "0")
    if pure or free_threaded or sys.implementation.name != "cpython":
        setup()
    else:
        setup(ext_modules=[core()], options={"bdist_wheel": {"py_limited_api": "cp311"}})


if __name__ == "__main__":
    main()
