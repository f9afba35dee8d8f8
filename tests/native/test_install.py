"""What is installed from an sdist: the core where there is a C compiler, and walpool in any case."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.native.test_select import PROGRAM
from tests.support import ROOT

pytestmark = pytest.mark.slow

COMPILER = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
NOT_BUILT = "it was not built: there was no C compiler, or no header of Python, when walpool was installed"


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    variables = {**os.environ, "WALPOOL_PURE": "", **environment}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built_with(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the setuptools that pyproject.toml asks for."""
    folder = tmp_path_factory.mktemp("setuptools")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "setuptools>=77.0.3")
    return folder


@pytest.fixture(scope="module")
def sdist(built_with: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy: setuptools writes where it works, and other tests run here."""
    copy = tmp_path_factory.mktemp("sdist") / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist"))
    run(sys.executable, "setup.py", "-q", "sdist", cwd=copy, PYTHONPATH=str(built_with))
    (made,) = (copy / "dist").glob("*.tar.gz")
    return made


def compiles() -> bool:
    command = [COMPILER, "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-x", "c", "-"]
    try:
        return subprocess.run(command, input=b"#include <Python.h>", capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def wheel(sdist: Path, built_with: Path, folder: Path, **environment: str) -> Path:
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sdist]
    run(sys.executable, "-m", "pip", "wheel", *options, PYTHONPATH=str(built_with), **environment)
    (made,) = folder.glob("*.whl")
    return made


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as packed:
        return set(packed.namelist())


def python_files() -> set[str]:
    source = ROOT / "src"
    kept = {file for file in source.rglob("walpool/**/*") if file.suffix in (".py", ".pyi", ".typed", ".html")}
    return {file.relative_to(source).as_posix() for file in kept}


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="git says what belongs to it")
def test_an_sdist_has_what_it_takes_to_build_to_test_and_to_read(sdist: Path) -> None:
    with tarfile.open(sdist) as packed:
        found = {name.partition("/")[2] for name in packed.getnames()}
    kept = [file for file in run("git", "ls-files").splitlines() if not file.startswith(".")]
    assert set(kept) <= found
    assert not [name for name in found if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize("how", ["with a compiler", "without a compiler", "pure"])
def test_walpool_is_installed_and_works(how: str, sdist: Path, built_with: Path, tmp_path: Path) -> None:
    if how == "with a compiler" and not compiles():
        pytest.skip(f"there is no {COMPILER}, or no Python.h")
    environment = {"with a compiler": {}, "without a compiler": {"CC": "/bin/false"}, "pure": {"WALPOOL_PURE": "1"}}
    made = wheel(sdist, built_with, tmp_path, **environment[how])
    core = {"walpool/_core.abi3.so"} if how == "with a compiler" else set()
    assert {name for name in names(made) if name.startswith("walpool/")} == python_files() | core
    if how == "pure":
        assert made.name.endswith("-py3-none-any.whl")
    else:
        assert "-cp311-abi3-" in made.name
    place = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place, made)
    path = os.pathsep.join([str(place), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    said = run(sys.executable, "-S", "-c", PROGRAM, tmp_path / "log", PYTHONPATH=path, WALPOOL_PURE="")
    expected = f"{bool(core)}|{bool(core)}|21|{'' if core else NOT_BUILT}\n"
    assert said == expected
