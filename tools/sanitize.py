"""The compiled core under the sanitizers for addresses and for undefined behaviour, or under valgrind's memcheck, which
also sees values that nobody stored: what `tools/dev.py sanitize` runs.

    python tools/sanitize.py [--valgrind] [args of pytest]

It is built for them into a folder of its own, and is in place before the tests import walpool (`-p tools.sanitize`).
Whatever they find ends the run. Needs gcc or clang with their libraries, or valgrind, and for that Python 3.12 or
later: earlier ones look at a digit of zero that was never stored, and what comes of that is everywhere.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
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
# All takes fifty times as long there: so fewer rounds are made. Left out is what makes memory fail or counts it, and
# what needs threads that take turns by the clock.
VALGRIND_TESTS = ["tests/native/test_twins.py", "tests/native/test_place.py", "tests/golden"]
NOT_UNDER_VALGRIND = "not other_threads and not not_there and not left_behind and not goes_as_far and not wrong_number"
SUPPRESSED = Path(__file__).with_name("valgrind.supp")
PLACE = "WALPOOL_SANITIZED_CORE"


def build(place: Path, checks: Sequence[str]) -> None:
    setup = runpy.run_path(str(ROOT / "setup.py"))
    source = ROOT / setup["NATIVE"] / "core.c"
    defined = [f"-DPy_LIMITED_API={setup['OLDEST']}", f'-DWALPOOL_SOURCES="{setup["sources"]()}"']
    flags = [*STRICT, *checks, "-O1", "-g", "-shared", "-fPIC", *defined, f"-I{sysconfig.get_path('include')}"]
    subprocess.run([compiler(), *flags, source, "-o", place], check=True)


def compiler() -> str:
    return os.environ.get("CC", "cc")


def library(name: str) -> str:
    """What has to be in the process first, because Python itself was built without it."""
    command = [compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(args: Sequence[str]) -> int:
    with_valgrind = args[:1] == ["--valgrind"]
    with tempfile.TemporaryDirectory() as folder:
        core = Path(folder) / "_core.abi3.so"
        build(core, [] if with_valgrind else CHECKS)
        variables = {**os.environ, PLACE: str(core), "PYTHONMALLOC": "malloc"}  # or Python's would hide what is read
        pytest = [sys.executable, "-m", "pytest", "-p", "tools.sanitize", "-q", "-rs"]
        if with_valgrind:
            variables.setdefault("WALPOOL_ROUNDS", "40")
            return under_valgrind([*pytest, *(args[1:] or [*VALGRIND_TESTS, "-k", NOT_UNDER_VALGRIND])], variables)
        variables["WALPOOL_FAILPOINTS_CFLAGS"] = " ".join(CHECKS)  # for the core that tests build
        variables["LD_PRELOAD"] = f"{library('libasan.so')} {library('libubsan.so')}"
        variables["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"  # Python leaks at its end
        command = [*pytest, *(args or [*TESTS, "-k", NOT_THESE])]
        return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


def under_valgrind(pytest: Sequence[str], variables: dict[str, str]) -> int:
    if shutil.which("valgrind") is None:
        print("sanitize: there is no valgrind (the package of that name)", file=sys.stderr)
        return 1
    if sys.version_info < (3, 12):
        print("sanitize: valgrind needs Python 3.12 or later, and this is an earlier one", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "valgrind.%p"
        command = ["valgrind", "--error-exitcode=99", "--track-origins=yes", f"--suppressions={SUPPRESSED}"]
        command += ["--gen-suppressions=all", f"--log-file={said}", *pytest, "-p", "no:xdist", "--timeout=0"]
        code = subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode
        for file in sorted(Path(folder).iterdir()):
            text = file.read_text(errors="replace")
            if re.search(r"ERROR SUMMARY: [1-9]", text):
                print(text)
                code = code or 1
    return code


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
