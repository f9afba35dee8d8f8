"""The programs in this folder pass mypy --strict and pyright, and what they must not do is found by both."""

import json
import subprocess
import sys
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


def mypy(files: list[Path], work: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(work / "mypy"), *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def pyright(files: list[Path], work: Path) -> str:
    """basedpyright, judging as pyright does; its node comes with it."""
    project = work / "pyrightconfig.json"
    include = [str(file) for file in files]
    project.write_text(json.dumps({"include": include, "typeCheckingMode": "strict", "pythonVersion": "3.11"}))
    command = [sys.executable, "-m", "basedpyright", "--project", str(project), "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=[mypy, pyright])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of one run over all three: a checker's start costs more than what it looks at."""
    work = tmp_path_factory.mktemp("typed")
    wrong = work / "wrong.py"
    wrong.write_text(WRONG)
    told: str = request.param([HERE / "programs.py", HERE / "lsns.py", wrong], work)
    return told.splitlines()


@pytest.mark.slow
def test_programs_of_users_pass_and_an_lsn_is_an_int(said: list[str]) -> None:
    assert not [line for line in said if "programs.py" in line or "lsns.py" in line], said


@pytest.mark.slow
def test_what_is_wrong_is_found(said: list[str]) -> None:
    for number in (5, 6, 7):
        assert any(f"wrong.py:{number}:" in line for line in said), said
