"""`walpool doctor`: what it says is so, and it changes nothing."""

from __future__ import annotations

import platform
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest

import walpool
from walpool.cli import doctor
from walpool.native import select
from walpool.system import filesystems, processes

from .conftest import Run


def test_it_says_which_core_runs_and_why_not(run: Run) -> None:
    ended = run("doctor", "--json")
    assert ended.code == 0
    found = ended.json
    assert (found["walpool"], found["python"]) == (walpool.__version__, f"CPython {platform.python_version()}")
    assert found["core"]["in_use"] is walpool.core_in_use
    assert found["core"]["why_not"] == select.why_not
    assert bool(found["core"]["remedy"]) is bool(select.why_not)
    assert found["boot_id"] == "" and found["log"] is None
    text = run("doctor").text
    assert ("core      in use, checksums by" in text) is walpool.core_in_use
    assert select.why_not in text
    assert "prometheus: " in text


def test_it_says_where_a_log_is_or_would_be_and_makes_nothing(run: Run, tmp_path: Path) -> None:
    for log in (tmp_path, tmp_path / "a" / "log"):
        ended = run("doctor", log, "--json")
        assert ended.code == 0
        told = ended.json["log"]
        assert (told["path"], told["directory"]) == (str(log), str(tmp_path.resolve()))
        assert told["file_system"] and told["shared"] == ""
        assert abs(told["free_bytes"] - psutil.disk_usage(str(tmp_path)).free) < 1 << 30
        assert f"log       {log}: {told['file_system']}, " in run("doctor", log).text
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_or_unsafe_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_boot_id() -> tuple[int, int]:
        raise walpool.UnsafeLog("/proc/boot_id", "cannot be read")

    monkeypatch.setattr(doctor, "core", None)
    monkeypatch.setattr(doctor, "why_not", "WALPOOL_PURE is set")
    monkeypatch.setattr(doctor, "boot_id", no_boot_id)
    monkeypatch.setattr(doctor, "EXTRAS", {"monitor": "no-such-package", "zstd": "no-such-package"})
    monkeypatch.setattr(doctor, "BUILT_IN", {"zstd": (3, 11)})
    monkeypatch.setattr(filesystems, "network_file_system", lambda statfs: "NFS")
    text = "\n".join(doctor.render(doctor.look(str(tmp_path / "log"))))
    assert "core      not in use, pure Python runs: WALPOOL_PURE is set" in text
    assert "boot id   /proc/boot_id: cannot be read" in text
    assert "monitor: not installed" in text and "zstd: in the standard library" in text
    assert "NFS is shared by machines: appends are refused without --allow-network-fs" in text


ONCE_MORE = "install walpool again, from a wheel for this kind of machine or from its sdist"


@pytest.mark.parametrize(
    ("why_not", "compiler", "headers", "remedy"),
    [(select.CHOSEN, "", True, "unset WALPOOL_PURE"),
     (select.FREE_THREADED, "", True, "a Python of the usual kind runs it"),
     (select.STALE, "", True,
      "`python setup.py build_ext --inplace`, and every command of tools/dev.py, build it anew"),
     (select.NOT_BUILT, sys.executable, True, f"what it takes is here by now: {ONCE_MORE}"),
     (select.NOT_BUILT, "nobodys-cc -pipe", True,
      f"there is no C compiler (`nobodys-cc`; Debian's package gcc); with that, {ONCE_MORE}"),
     (select.NOT_BUILT, "nobodys-cc", False,
      "there is no C compiler (`nobodys-cc`; Debian's package gcc) and there is no /nowhere/Python.h"
      f" (Debian's package python3-dev); with that, {ONCE_MORE}"),
     ("it cannot be loaded: libc?", "", True, "install walpool again")],
    ids=["pure", "free-threaded", "stale", "all there", "no compiler", "nothing", "broken"],
)  # fmt: skip
def test_it_says_what_a_core_lacks_here(
    why_not: str, compiler: str, headers: bool, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "core", None)
    monkeypatch.setattr(doctor, "why_not", why_not)
    monkeypatch.setenv("CC", compiler)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path) if headers else "/nowhere")
    found = doctor.look(None)
    assert (found.core.why_not, found.core.remedy) == (why_not, remedy)
    assert doctor.render(found)[2:4] == [
        f"core      not in use, pure Python runs: {why_not}", f"          {remedy}",
    ]  # fmt: skip


def test_the_later_of_two_that_are_mounted_in_one_place_is_the_one_that_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path.resolve())
    Mounted = type(psutil.disk_partitions(all=True)[0])
    mounted = [Mounted("a", "/", "root", ""), Mounted("b", place, "zfs", ""), Mounted("c", place, "aufs", ""),
               Mounted("d", place + "x", "ext4", "")]  # fmt: skip
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounted)
    assert filesystems.volume_of(place + "/log").kind == "aufs"
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [])
    assert filesystems.volume_of(place).kind == ""


def test_the_limit_of_open_files_is_the_processs_own() -> None:
    assert processes.most_open_files() > 0
