"""The compiled core under the sanitizers for addresses and for undefined behaviour: what `tools/dev.py sanitize` runs.

    python tools/sanitize.py [args of pytest]

It is built with them into a folder of its own, and is in place before the tests import walpool (`-p tools.sanitize`).
Whatever they find ends the run. Needs gcc or clang with their libraries.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
TESTS = [
    "tests/native", "tests/format", "tests/golden", "tests/read", "tests/write", "tests/crash/test_hostile_bytes.py",
    "tests/crash/test_core_place.py",
]  # fmt: skip
# They take memory, and their time; and who is killed by SIGBUS, as it should be, is a finding to a sanitizer.
NOT_THESE = "not takes_no_memory and not every_moment and not lose_nothing and not kills_the_process"
PLACE = "WALPOOL_SANITIZED_CORE"


def build(place: Path) -> None:
    setup = runpy.run_path(str(ROOT / "setup.py"))
    source = ROOT / setup["NATIVE"] / "core.c"
    defined = [f"-DPy_LIMITED_API={setup['OLDEST']}", f'-DWALPOOL_SOURCES="{setup["sources"]()}"']
    flags = [*STRICT, *CHECKS, "-O1", "-g", "-shared", "-fPIC", *defined, f"-I{sysconfig.get_path('include')}"]
    subprocess.run([compiler(), *flags, source, "-o", place], check=True)


def compiler() -> str:
    return os.environ.get("CC", "cc")


def library(name: str) -> str:
    """What has to be in the process first, because Python itself was built without it."""
    command = [compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(args: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        core = Path(folder) / "_core.abi3.so"
        build(core)
        environment = {
            **os.environ,
            PLACE: str(core),
            "WALPOOL_FAILPOINTS_CFLAGS": " ".join(CHECKS),  # for the core that tests build
            "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python leaks at its end
            "PYTHONMALLOC": "malloc",  # or its own allocator would hide what is read behind an object
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tools.sanitize",
            "-q",
            "-rs",
            *(args or [*TESTS, "-k", NOT_THESE]),
        ]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def have_the_sanitized_core(place: str) -> None:
    assert "walpool" not in sys.modules, "walpool was imported already"
    spec = spec_from_file_location("walpool._core", place, loader=ExtensionFileLoader("walpool._core", place))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["walpool._core"] = module


if PLACE in os.environ and __name__ != "__main__":
    have_the_sanitized_core(os.environ[PLACE])

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
