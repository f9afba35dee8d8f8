"""The programs in this folder pass mypy --strict and pyright, and what they must not do is found by both."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

WRONG = """
from walpool import WALReader, WALWriter

entry = WALReader("log", zero_copy=True).read_all()[0]
entry.value.decode()
WALReader("log", start="begin")
text: str = WALReader("log").read_all()[0].key
"""


def mypy(file: Path, work: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(work / "mypy"), file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout if done.returncode else ""


def pyright(file: Path, work: Path) -> str:
    """basedpyright, judging as pyright does; its node comes with it."""
    project = work / "pyrightconfig.json"
    project.write_text(json.dumps({"include": [str(file)], "typeCheckingMode": "strict", "pythonVersion": "3.11"}))
    command = [sys.executable, "-m", "basedpyright", "--project", str(project), "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout if done.returncode else ""


Check = Callable[[Path, Path], str]
each_checker = pytest.mark.parametrize("check", [mypy, pyright])


@each_checker
def test_programs_of_users_pass(check: Check, tmp_path: Path) -> None:
    assert check(HERE / "programs.py", tmp_path) == ""


@each_checker
def test_an_lsn_is_an_int(check: Check, tmp_path: Path) -> None:
    assert check(HERE / "lsns.py", tmp_path) == ""


@each_checker
def test_what_is_wrong_is_found(check: Check, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    told = check(file, tmp_path)
    for line in (5, 6, 7):
        assert f"wrong.py:{line}:" in told, told
