"""The commands of a checkout, each with all its set-up: `python3 tools/dev.py COMMAND [args]`.

    demo    walpool's main job on real input                       args go to `walpool demo`
    test    every test; then the quick ones in pure Python; then those of interrupts, forks and kills, and of the core,
            under each other Python at hand
            args go to pytest, and then it runs under this Python alone
    matrix  every test under every Python at hand                  args go to pytest
            --wheel: the quick ones, of the wheel that `build` makes, in clean environments; then args go to pytest
    build   sdist and wheels, checked, into dist/                  args go to tools/build.py
    lint    formatting, lint rules and types                       --fix mends what can be mended
    check   lint, then the tests that are not slow                 args go to pytest
    coverage  every test; what they reach goes to docs/coverage.md
    mutate  changes that no test notices                           args go to tools/mutate.py
    bench   walpool against LMDB, SQLite and plain files           args go to tools/bench.py
    prove   try to break walpool for --minutes, and write a report args go to tools/prove.py
    sanitize  the compiled core under the sanitizers of the compiler   args go to pytest
            --valgrind: under memcheck, by the newest Python at hand; then args go to pytest

The first run makes .venv in the checkout with the Python that runs this file and installs walpool there, editable, with
what the command needs; its compiled core is built where there is a C compiler. Later runs start at once. Only the
standard library is imported, and what runs before the version check runs on Python 3.8 too.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 14)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PROJECT = ROOT / "pyproject.toml"
SETUP = ROOT / "setup.py"
BUILD = ROOT / "tools" / "build.py"
CORE = ROOT / "src" / "walpool" / "_core.abi3.so"


def demo(args: Sequence[str]) -> NoReturn:
    set_up()
    become([VENV / "bin" / "walpool", "demo", *args])


TEST_EXTRAS = ("dev", "package", "monitor", "prometheus", "zstd")
# Where interpreters differ: where they look for signals, when they collect, what a fork runs, what their C does.
VITAL = (
    "tests/crash/test_any_bytecode.py",
    "tests/crash/test_interrupts.py",
    "tests/crash/test_kill_sweep.py",
    "tests/native",
    "tests/processes/test_forked_anywhere.py",
    "tests/processes/test_lock_holders.py",
    "tests/processes/test_reentrance.py",
    "tests/write/test_closing.py",
    "tests/write/test_interrupted_helpers.py",
)


def test(args: Sequence[str]) -> int:
    set_up(*TEST_EXTRAS)
    if args:
        os.chdir(ROOT)
        become(pytest(*args))
    code = run(pytest())
    if CORE.exists():
        say("the tests that are not slow, in pure Python")
        code = run(pytest("-m", "not slow", "--ignore=tests/native"), WALPOOL_PURE="1") or code
    for home in other_homes():
        say(f"interrupts, forks and kills under Python {home.version}")
        set_up(*TEST_EXTRAS, home=home)
        code = run(pytest(*VITAL, home=home)) or code
    return code


def matrix(args: Sequence[str]) -> int:
    if args and args[0] == "--wheel":
        return wheel_matrix(args[1:])
    code = 0
    for home in (HOME, *other_homes()):
        say(f"Python {home.version}")
        set_up(*TEST_EXTRAS, home=home)
        code = run(pytest(*args, home=home)) or code
    return code


def wheel_matrix(args: Sequence[str]) -> int:
    set_up("package")
    made = VENV / "dist"
    if run([PYTHON, BUILD, "--to", made]) != 0:
        return 1
    os.environ.pop("PYTHONPATH", None)  # the checkout is not to be imported
    code = 0
    for home in (HOME, *other_homes(free_threaded=True)):
        tried = replace(home, venv=ROOT / f".venv-wheel-{home.version}")
        say(f"the wheel for Python {home.version}")
        make_venv(tried)
        install(tried, ["--no-index", "--no-deps", "--only-binary", ":all:", "--find-links", str(made), "walpool"])
        project = read_project()
        extras = [each for extra in TEST_EXTRAS for each in project["optional-dependencies"][extra]]
        if home.version.endswith("t"):  # not all of them are to be had there
            wanted = ("pytest", "hypothesis", "textual", "prometheus-client")
            extras = [each for each in extras if each.startswith(wanted)]
            extras += ["--only-binary", "hypothesis"]  # the newest is Rust, and has no wheel for those
        install(tried, [*project["dependencies"], *extras])
        run([tried.venv / "bin" / "walpool", "doctor"])
        code = run(pytest("-m", "not slow", *args, home=tried)) or code
        shutil.rmtree(tried.venv)
    return code


def build(args: Sequence[str]) -> NoReturn:
    set_up("package")
    become([PYTHON, BUILD, *args])


def lint(args: Sequence[str]) -> int:
    if list(args) not in ([], ["--fix"]):
        say("lint takes no arguments but --fix")
        return 2
    set_up(*TEST_EXTRAS)
    fix = bool(args)
    steps: dict[str, list[str | Path]] = {
        "ruff format": [PYTHON, "-m", "ruff", "format", *([] if fix else ["--check"])],
        "ruff check": [PYTHON, "-m", "ruff", "check", *(["--fix"] if fix else [])],
        "mypy": [PYTHON, "-m", "mypy"],
    }
    failed = [name for name, command in steps.items() if run(command) != 0]
    if failed:
        say(f"lint failed: {', '.join(failed)}")
    return 1 if failed else 0


def check(args: Sequence[str]) -> int:
    lint_code = lint([])
    tests_code = run(pytest("-m", "not slow", *args))
    return tests_code or lint_code


def coverage(args: Sequence[str]) -> int:
    set_up(*TEST_EXTRAS)
    data = VENV / "coverage"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    # Every Python that a test starts reads these, wherever it runs. What the core does, nobody would see.
    os.environ.update(COVERAGE_RCFILE=str(PROJECT), COVERAGE_FILE=str(data / "data"), WALPOOL_PURE="1")
    python, _, *words = pytest(*args)
    code = run([python, "-m", "coverage", "run", "-m", *words])
    report = data / "report.json"
    for step in (["combine", "--quiet"], ["json", "--quiet", "-o", report]):
        if run([PYTHON, "-m", "coverage", *step]) != 0:
            return 1
    return run([PYTHON, ROOT / "tools" / "coverage_doc.py", report]) or code


def mutate(args: Sequence[str]) -> NoReturn:
    set_up(*TEST_EXTRAS)
    os.environ["WALPOOL_PURE"] = "1"  # what is changed is Python
    become([PYTHON, ROOT / "tools" / "mutate.py", *args])


def bench(args: Sequence[str]) -> NoReturn:
    set_up("bench")
    become([PYTHON, ROOT / "tools" / "bench.py", *args])


def prove(args: Sequence[str]) -> NoReturn:
    set_up(*TEST_EXTRAS, "fuzz")
    become([PYTHON, ROOT / "tools" / "prove.py", *args])


def sanitize(args: Sequence[str]) -> NoReturn:
    home = HOME
    if args[:1] == ["--valgrind"]:
        home = max((HOME, *other_homes()), key=lambda each: [int(part) for part in each.version.split(".")])
    set_up(*TEST_EXTRAS, home=home)
    become([home.python, ROOT / "tools" / "sanitize.py", *args])


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "test": test,
    "matrix": matrix,
    "build": build,
    "lint": lint,
    "check": check,
    "coverage": coverage,
    "mutate": mutate,
    "bench": bench,
    "prove": prove,
    "sanitize": sanitize,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("args", nargs=argparse.REMAINDER, help="passed on")
    chosen = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        have, need = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        fail(f"walpool needs Python {need} or newer, and {sys.executable} is {have}: run this with a newer one")
    try:
        return COMMANDS[chosen.command](chosen.args)
    except KeyboardInterrupt:
        return 130


@dataclass(frozen=True)
class Home:
    """One Python, and the environment that is made with it."""

    base: str  # the interpreter
    version: str  # 3.12.1
    venv: Path

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.venv / "walpool-dev.json"  # what the last complete set-up made; written last


# Behind the number a t, where there is no interpreter's lock.
TELL_VERSION = "import sys, venv, ensurepip; print(*sys.version_info[:3], sep='.', end='t' * ('t' in sys.abiflags))"
HOME = Home(sys.executable, ".".join(map(str, sys.version_info[:3])) + "t" * ("t" in sys.abiflags), VENV)


def other_homes(*, free_threaded: bool = False) -> list[Home]:
    """One for each other minor version that is on the path or under pyenv's folder: the newest of it.

    Of those without the interpreter's lock, whose versions end in t, only if they are asked for.
    """
    found: dict[tuple[int, str], tuple[list[int], Home]] = {}
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
    for minor in range(OLDEST_PYTHON[1], NEWEST_PYTHON[1] + 1):
        for python in [folder / f"python3.{minor}{kind}" for folder in folders for kind in ("", "t")]:
            if not os.access(python, os.X_OK):
                continue
            asked = subprocess.run(
                [python, "-c", TELL_VERSION], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
            )
            number, kind = asked.stdout.rstrip("t"), "t" * asked.stdout.endswith("t")
            if asked.returncode != 0 or not number.startswith(f"3.{minor}."):
                continue
            if (kind and not free_threaded) or (number.rpartition(".")[0], kind) == minor_of(HOME.version):
                continue
            home = Home(str(python), number + kind, ROOT / f".venv-3.{minor}{kind}")
            as_numbers = [int(part) for part in number.split(".")]
            found[minor, kind] = max(found.get((minor, kind), ([], home)), (as_numbers, home), key=lambda each: each[0])
    return [home for _, (_, home) in sorted(found.items())]


def minor_of(version: str) -> tuple[str, str]:
    return version.rpartition(".")[0], "t" * version.endswith("t")


def pytest(*args: str, home: Home = HOME) -> list[str | Path]:
    # Three for two cores: the tests wait for disks, locks and other processes four tenths of their time. Left alone,
    # pytest-xdist asks psutil for physical cores, which are fewer than those we may run on.
    os.environ.setdefault("PYTEST_XDIST_AUTO_NUM_WORKERS", str(usable_cores() * 3 // 2))
    # worksteal: long tests lie side by side, and who has none left takes them from the other. A skipped one says why.
    return [home.python, "-m", "pytest", "-n", "auto", "--dist", "worksteal", "-rs", *args]


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(command: Sequence[str | Path], **environment: str) -> int:
    """Run one of several steps from the root of the checkout; its exit code, as a shell would say it."""
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False).returncode
    return code if code >= 0 else 128 - code


def become(command: Sequence[str | Path]) -> NoReturn:
    """Replace this process: the command's exit code and signals are then ours."""
    os.execv(command[0], [str(word) for word in command])


# --- set-up ---


def set_up(*extras: str, home: Home = HOME) -> None:
    """Bring an environment to where walpool imports, with what `extras` of pyproject.toml name, unless it is there."""
    text = PROJECT.read_text()
    here = {"python": home.version, "base": home.base, "venv": str(home.venv)}
    sources: str = runpy.run_path(str(SETUP))["sources"]()
    project = hashlib.sha256((text + SETUP.read_text() + sources).encode()).hexdigest()
    with one_at_a_time():
        done = read_stamp(home)
        if done.get("here") != here:  # another Python, or a checkout that was moved or copied with its .venv
            make_venv(home)
            done = {}
        installed = done.get("extras", []) if done.get("project") == project else None
        missing = [extra for extra in extras if extra not in (installed or [])]
        if installed is not None and not missing:
            return
        # walpool itself is installed once only: another command may be importing it at this moment.
        wanted = [] if installed is not None else ["--editable", str(ROOT)]
        optional = read_project()["optional-dependencies"]
        environment = {}
        if wanted and CORE.exists() and sources.encode() in CORE.read_bytes():
            environment["WALPOOL_PURE"] = "1"  # it was built already: one file for every Python
        elif wanted:
            CORE.unlink(missing_ok=True)  # not written over: somebody may be running it
        install(home, wanted + [requirement for extra in missing for requirement in optional[extra]], **environment)
        if wanted and not CORE.exists():
            say("the core was not built (no C compiler, or no header of Python?): walpool runs in pure Python here")
        write_stamp(home, {"here": here, "project": project, "extras": sorted({*(installed or []), *extras})})


def read_project() -> dict[str, Any]:
    import tomllib  # new in Python 3.11

    project: dict[str, Any] = tomllib.loads(PROJECT.read_text())["project"]
    return project


@contextmanager
def one_at_a_time() -> Iterator[None]:
    with (ROOT / ".venv.lock").open("w") as lock:  # beside .venv, which may be removed and made anew
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_venv(home: Home) -> None:
    say(f"making {home.venv} with Python {home.version}")
    made = subprocess.run([home.base, "-m", "venv", "--clear", home.venv], stdout=sys.stderr, check=False)
    if made.returncode != 0:
        fail("could not make the environment: see above; on Debian and Ubuntu the package python3-venv is needed")


def install(home: Home, requirements: Sequence[str], **environment: str) -> None:
    say("installing " + ", ".join(word for word in requirements if word != "--editable"))
    pip: list[str | Path] = [
        home.python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *requirements,
    ]
    done = subprocess.run(pip, cwd=ROOT, env={**os.environ, **environment}, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        fail("pip could not install the above: mend what it names (usually the network) and run this again")


def read_stamp(home: Home) -> dict[str, Any]:
    try:
        stamp = json.loads(home.stamp.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and home.python.exists() else {}


def write_stamp(home: Home, stamp: dict[str, Any]) -> None:
    whole = home.stamp.with_suffix(".new")
    whole.write_text(json.dumps(stamp, indent=2))
    whole.replace(home.stamp)


def say(text: str) -> None:
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    say(text)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
