"""What is published (tools/build.py), installed into clean environments: with the core where there is a compiler or a
wheel for it, and walpool in any case. `tools/dev.py matrix --wheel` runs the quick tests there as well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import walpool
from tests.native.builds import cannot_compile
from tests.support import ROOT
from tests.test_docs import README
from tools import build, dev

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = ["pyproject_hooks", "twine", "abi3audit", *(["auditwheel"] if sys.platform == "linux" else [])]
NO_COMPILER = {"CC": "/nowhere/cc", "WALPOOL_PURE": ""}


def run(*command: str | Path, **environment: str) -> str:
    """Of nothing that this environment would add."""
    ours = ("PYTHONPATH", "PYTHONPYCACHEPREFIX", "WALPOOL_PURE", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if name not in ours} | environment
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What is made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> list[Path]:
    """The sdist, the wheel for every machine, and the one with the core where it can be built: checked."""
    if any(util.find_spec(name) is None for name in NEEDED):
        pytest.skip("what builds and checks is not installed: the extra `package` of pyproject.toml")
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "made"  # that of all workers
    told = folder / "files.json"
    with FileLock(folder.with_suffix(".lock")):
        if not told.exists():
            files = build.build(folder, pure=bool(cannot_compile()))
            build.check(files)
            told.write_text(json.dumps([str(file) for file in files]))
    return [Path(file) for file in json.loads(told.read_text())]


def python_files() -> set[str]:
    source = ROOT / "src"
    kept = {file for file in source.rglob("walpool/**/*") if file.suffix in (".py", ".pyi", ".typed", ".html")}
    return {file.relative_to(source).as_posix() for file in kept}


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="git says what belongs to it")
def test_an_sdist_has_what_it_takes_to_build_to_test_and_to_read(made: list[Path]) -> None:
    with tarfile.open(made[0]) as packed:
        found = {name.partition("/")[2] for name in packed.getnames()}
    kept = [file for file in run("git", "-C", ROOT, "ls-files").splitlines() if not file.startswith(".")]
    assert set(kept) <= found


@pytest.mark.slow
def test_a_wheel_has_walpool_and_the_core_that_its_name_says(made: list[Path]) -> None:
    _, pure, *with_core = made
    assert pure.name == f"walpool-{PROJECT['version']}-py3-none-any.whl"
    for wheel, core in [(pure, set()), *((wheel, {build.CORE}) for wheel in with_core)]:
        assert {name for name in build.names(wheel) if re.match(r"walpool/.*[^/]$", name)} == python_files() | core


@pytest.mark.slow
def test_no_wheel_says_that_it_has_a_core_and_has_none(made: list[Path], tmp_path: Path) -> None:
    wheel = build.make_wheel(made[0], tmp_path / "without", **NO_COMPILER)
    with pytest.raises(SystemExit, match="a C compiler and the headers of Python are needed"):
        build.widened(wheel, tmp_path / "widened")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("walpool-1-cp311-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", ""),
     ("walpool-1-cp311-abi3-musllinux_1_2_aarch64.whl", ""),
     ("walpool-1-cp311-abi3-manylinux_2_34_x86_64.whl", "a newer C library than 2.17"),
     ("walpool-1-cp311-abi3-linux_x86_64.whl", "machines like this one alone")],
)  # fmt: skip
@pytest.mark.skipif(sys.platform != "linux", reason="tags of Linux")
def test_a_wheel_that_only_new_systems_take_is_none_to_publish(name: str, reason: str) -> None:
    if not reason:
        build.check_tag(name)
        return
    with pytest.raises(SystemExit, match=reason):
        build.check_tag(name)


# What is asked of others


def test_every_requirement_has_a_first_and_a_last_version() -> None:
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *(each for of in extras.values() for each in of)]:
        assert re.match(r"[\w.-]+(>=[\d.]+,<[\d.]+|\[[\w,]+\])(; .*)?$", requirement), requirement


def test_all_is_every_extra_for_who_uses_walpool() -> None:
    extras = PROJECT["optional-dependencies"]
    (every,) = extras["all"]
    assert set(every.removeprefix("walpool[").removesuffix("]").split(",")) == {
        extra for extra in extras if extra not in ("all", "bench", "dev", "fuzz", "package")
    }


def test_the_version_is_one_and_the_citation_has_it() -> None:
    told = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert [PROJECT["version"], *told] == [walpool.__version__] * 2
    assert f"## {walpool.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="an sdist has none")
def test_the_workflows_run_commands_that_there_are() -> None:
    text = "".join(file.read_text() for file in (ROOT / ".github" / "workflows").iterdir())
    assert set(re.findall(r"tools/dev\.py (\w+)", text)) <= dev.COMMANDS.keys()
    assert not re.search(r"https?://|pypi", text), "nothing is published from there"


# What is installed


def is_free_threaded(home: dev.Home) -> bool:
    return home.version.endswith("t")


def installed(home: dev.Home, venv: Path, *groups: list[str | Path], **environment: str) -> Path:
    """A clean environment of that Python, in which pip has installed those; its folder of commands.

    Our own pip, which is quicker than to install one there, may not know of Pythons without the interpreter's lock.
    """
    commands = venv / "bin"
    if not is_free_threaded(home):
        run(home.base, "-m", "venv", "--without-pip", venv)
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", commands / "python"]
    else:
        run(home.base, "-m", "venv", venv)
        pip = [commands / "python", "-m", "pip"]
    for group in groups:
        run(*pip, "install", "--quiet", "--disable-pip-version-check", *group, **environment)
    return commands


def works(commands: Path, folder: Path) -> dict[str, Any]:
    """Run the README's example there, and say what its doctor says."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (folder / "example.py").write_text(example)
    assert run(commands / "python", folder / "example.py") == "4008 entries, the last one LSN 4008\n"
    found: dict[str, Any] = json.loads(run(commands / "walpool", "doctor", "--json"))
    assert found["walpool"] == PROJECT["version"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["the sdist with a compiler", "the sdist without", "the wheel", "the pure wheel"])
def test_walpool_is_installed_and_works(how: str, made: list[Path], tmp_path: Path) -> None:
    if how in ("the sdist with a compiler", "the wheel") and cannot_compile():
        pytest.skip(cannot_compile())
    sdist, pure, *with_core = made
    what: list[str | Path] = [*{"the wheel": with_core, "the pure wheel": [pure]}.get(how, [sdist])]
    environment = NO_COMPILER if how == "the sdist without" else {}
    found = works(installed(dev.HOME, tmp_path / "venv", what, **environment), tmp_path)
    assert found["core"]["in_use"] is (how in ("the sdist with a compiler", "the wheel"))
    assert found["core"]["in_use"] or "it was not built" in found["core"]["why_not"]


OTHERS = dev.other_homes(free_threaded=True)
NEWEST = [home for home in OTHERS if not is_free_threaded(home)][-1:]


@pytest.mark.slow
@pytest.mark.parametrize("home", [*NEWEST, *filter(is_free_threaded, OTHERS)], ids=lambda home: home.version)
def test_another_python_takes_the_wheel_that_is_for_it(home: dev.Home, made: list[Path], tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for wheel in made[1:]:
        shutil.copy(wheel, wheels)
    ours: list[str | Path] = ["--no-index", "--find-links", wheels, "walpool"]
    commands = installed(home, tmp_path / "venv", PROJECT["dependencies"], ours)
    core = works(commands, tmp_path)["core"]
    assert core["in_use"] is (not cannot_compile() and not is_free_threaded(home)), core
    assert ("free-threaded" in core["why_not"]) is is_free_threaded(home)
