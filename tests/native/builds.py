"""The core, built in other ways than it is installed: with which compilers, and by which command."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sysconfig
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from tests.support import ROOT

NATIVE = ROOT / "src" / "walpool" / "native"
COMPILER = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Werror")


def defined() -> list[str]:
    """What every build needs."""
    setup = runpy.run_path(str(ROOT / "setup.py"))
    return [f"-DPy_LIMITED_API={setup['OLDEST']}", f"-I{sysconfig.get_path('include')}"]


@cache
def cannot_compile(compiler: str = COMPILER) -> str:
    """Why nothing can be; empty: it can."""
    command = [compiler, "-fsyntax-only", *defined(), "-x", "c", "-"]
    try:
        done = subprocess.run(command, input=b"#include <Python.h>", capture_output=True, check=False)
    except FileNotFoundError:
        return f"there is no {compiler}"
    return "" if done.returncode == 0 else f"{compiler} does not find Python.h"


def compiled(to: Path, *flags: str, source: Path = NATIVE / "core.c", compiler: str = COMPILER) -> Path:
    """The file that came of it. Any warning is an error."""
    command = [compiler, *STRICT, *flags, *defined(), str(source), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return to


def loaded(file: Path) -> ModuleType:
    """As a module of its own, beside the one that is installed."""
    spec = spec_from_file_location("walpool._core", file, loader=ExtensionFileLoader("walpool._core", str(file)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
