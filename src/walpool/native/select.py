"""Select: whether the compiled core runs, and the one place that puts its functions in the place of Python's.

Python is the specification: everything works without the core, and whoever reads the Python alone understands walpool.
A function with a twin in C is marked with what that twin makes and compares with:

    @twin(Frame)
    def read_frame(buffer, offset, ...): ...

Holds: a twin has the name, the arguments and the results of its Python function. Whatever is unusual it hands to that
function, having changed nothing, so that every error is said by Python.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from os import environ  # the other call outside `system`: what is imported first can ask nobody else
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


CHOSEN = "WALPOOL_PURE is set"
FREE_THREADED = "this Python is free-threaded, and the core relies on the interpreter's lock"
NOT_BUILT = (
    "it was not built: walpool was installed from a wheel without it, or where a C compiler or Python.h was missing"
)
STALE = "it is stale: it was built from other sources than those beside it"


def _load() -> tuple[ModuleType | None, str]:
    """The core, or None and why it does not run."""
    if environ.get("WALPOOL_PURE", "") not in ("", "0"):
        return None, CHOSEN
    if "t" in getattr(sys, "abiflags", ""):
        return None, FREE_THREADED
    try:
        found = import_module("walpool._core")
    except ImportError as error:
        if error.name == "walpool._core" and isinstance(error, ModuleNotFoundError):
            return None, NOT_BUILT
        return None, f"it cannot be loaded: {error}"
    return (None, STALE) if _sources() not in ("", found.SOURCES) else (found, "")


def _sources() -> str:
    """What the core would be built from, in a checkout; as in setup.py. Empty: installed, where there is no C."""
    files = sorted(Path(__file__).parent.glob("*.[ch]"))
    if not files:
        return ""
    digest = import_module("hashlib").sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    text: str = digest.hexdigest()[:16]
    return text


core, why_not = _load()
core_in_use = core is not None


class Checksum(Protocol):
    def __call__(self, data: bytes | bytearray | memoryview, value: int = 0, /) -> int: ...


def _checksum() -> Checksum:
    """The core's where it runs: before the package of that name sums anything, it reads its version from its metadata,
    with a parser of e-mails: 49 of 235 modules that walpool imports.
    """
    if core is not None:
        core_checksum: Checksum = core.crc32c
        return core_checksum
    package = import_module("crc32c")
    package_checksum: Checksum = package.crc32c
    return package_checksum


crc32c = _checksum()


def twin(*needs: Any) -> Callable[[_Function], _Function]:
    """A decorator: the core's function of that name, where it runs, else the Python function itself."""

    def choose(python: _Function) -> _Function:
        return python if core is None else core.twin(python, *needs)

    return choose


def python_of(function: _Function) -> _Function:
    """The Python function behind `function`, which may be its twin."""
    bound = getattr(function, "__self__", None)
    return bound[0] if isinstance(bound, tuple) else function
