"""Whether the core runs, and why not; and that the one which runs here was built from these sources."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import walpool
from tests.support import ROOT
from walpool.native import select

needs_core = pytest.mark.skipif(not walpool.core_in_use, reason="the compiled core does not run here")
NATIVE = ROOT / "src" / "walpool" / "native"

PROGRAM = """
import sys
import walpool
from walpool.native import select
with walpool.WALWriter(sys.argv[1]) as writer:
    writer.append_batch([walpool.WALEntry.put(b"key", b"%d" % at, at) for at in range(20)])
    writer.put(b"alone", b"", 1)
with walpool.WALReader(sys.argv[1]) as reader:
    print(walpool.core_in_use, "walpool._core" in sys.modules, len(reader.read_all()), select.why_not, sep="|")
"""


def told(log: Path, *options: str, **environment: str) -> list[str]:
    command = [sys.executable, *options, "-c", PROGRAM, log]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip().split("|")


def test_walpool_works_without_its_core(tmp_path: Path) -> None:
    assert told(tmp_path / "log", WALPOOL_PURE="1") == ["False", "False", "21", "WALPOOL_PURE is set"]


@needs_core
@pytest.mark.parametrize("value", ["", "0"])
def test_the_core_runs_unless_it_is_told_not_to(tmp_path: Path, value: str) -> None:
    assert told(tmp_path / "log", WALPOOL_PURE=value) == ["True", "True", "21", ""]


def test_core_in_use_is_a_bool() -> None:
    assert walpool.core_in_use is (select.core is not None)
    assert (select.why_not == "") is walpool.core_in_use


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ModuleNotFoundError("no", name="walpool._core"), "not built"),
     (ImportError("symbol?"), "cannot be loaded: symbol?"),
     (ModuleNotFoundError("no x", name="x"), "cannot be loaded: no x")],
    ids=["not there", "not for this system", "something else"],
)  # fmt: skip
def test_a_core_that_cannot_be_loaded_is_no_error(
    error: ImportError, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(select, "import_module", fail)
    monkeypatch.delenv("WALPOOL_PURE", raising=False)
    core, why_not = select._load()
    assert core is None and reason in why_not


def test_a_free_threaded_python_is_told_that_it_runs_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "abiflags", "t")
    monkeypatch.delenv("WALPOOL_PURE", raising=False)
    core, why_not = select._load()
    assert core is None and "free-threaded" in why_not


def the_setup() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "setup.py"))


def test_the_core_was_built_from_these_sources() -> None:
    assert select.why_not != select.STALE, "any command of tools/dev.py builds it anew"
    if select.core is not None:
        assert the_setup()["sources"]() == select.core.SOURCES


def test_a_core_of_other_sources_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WALPOOL_PURE", raising=False)
    monkeypatch.setattr(sys, "abiflags", "")
    others = ModuleType("walpool._core")
    others.SOURCES = "of yesterday"  # type: ignore[attr-defined]
    monkeypatch.setattr(select, "__file__", str(NATIVE / "select.py"))  # wherever the one is from that runs
    monkeypatch.setattr(
        select, "import_module", lambda name: others if name == "walpool._core" else import_module(name)
    )
    assert select._load() == (None, select.STALE)
    others.SOURCES = the_setup()["sources"]()  # type: ignore[attr-defined]
    assert select._load() == (others, "")
    monkeypatch.setattr(select, "__file__", "/nowhere/select.py")  # installed, where there is no C to compare with
    others.SOURCES = "of the wheel"  # type: ignore[attr-defined]
    assert select._load() == (others, "")


def test_the_core_is_built_anew_when_any_of_its_files_changes() -> None:
    assert the_setup()["HEADERS"] == sorted(file.name for file in NATIVE.glob("*.h"))


# The sources


def test_the_core_is_small_enough_to_be_read() -> None:
    lines = {file.name: len(file.read_text().splitlines()) for file in NATIVE.glob("*.[ch]")}
    assert sum(lines.values()) < 1600 and max(lines.values()) <= 350, lines


@pytest.mark.parametrize("file", sorted(NATIVE.glob("*.[ch]")), ids=lambda file: file.name)
def test_a_c_file_begins_with_what_it_is_and_what_holds(file: Path) -> None:
    head = re.match(r"/\* [A-Z].*?\*/", file.read_text(), re.S)
    assert head is not None and "\n * Holds: " in head.group()
