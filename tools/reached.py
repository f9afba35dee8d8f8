"""Which tests reach which lines of walpool: a plugin for pytest that takes it down, and the map that comes of it.

The tests run under coverage, with the processes that they start and fork (pyproject.toml's patches); what those have
written by the end of a test is that test's. A process that is killed writes nothing, so a line may be reached by more
tests than the map knows. The map is a file outside of git. Tests that have changed since are taken down anew, and lines
that have moved are found by the text that they had.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    from coverage import CoverageData

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "walpool"
MAP = ROOT / ".reached.json"
NOTES = "WALPOOL_REACHED"  # the environment's word for the folder that notes go to
# They change walpool themselves, read its source or its documents, or need the core, which a mutant goes without.
LEFT_OUT = ("tests/crash/test_seeded_bugs.py", "tests/test_", "tests/typed/", "tests/native/")
SLOW = "tests/crash/"  # what is marked so there takes minutes


# The plugin: `pytest -p tools.reached`


class Notes:
    """What one pytest process, or worker of it, takes down."""

    def __init__(self, folder: Path) -> None:
        from coverage import Coverage

        folder.mkdir()
        self._folder = folder
        # Set in the environment by coverage's patches, so children write into this worker's folder.
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
        self._coverage = Coverage(
            data_file=str(folder / "data"), config_file=str(ROOT / "pyproject.toml"), branch=False
        )
        # As coverage does for children: a test that reaches nothing of walpool is no news.
        self._coverage._warn_no_data = self._coverage._warn_unimported_source = False
        self._coverage.start()
        self.seconds: dict[str, float] = defaultdict(float)
        self._reached: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))

    def begin(self, test: str) -> None:
        collector = self._coverage._collector
        assert collector is not None
        collector.stop()  # a test that traces by itself leaves a tracer behind that sees nothing any more
        collector.start()  # and Coverage.start would watch forks once more
        self._coverage.switch_context(test)

    def end(self, test: str) -> None:
        from coverage import CoverageData
        from coverage.exceptions import CoverageException

        self._coverage.switch_context("")
        mine = self._coverage.get_data().data_filename()
        for file in self._folder.glob("data.*"):
            if str(file) != mine and not file.name.endswith("-journal"):
                data = CoverageData(str(file))
                with suppress(CoverageException, OSError):  # still being written: the next test's
                    data.read()
                    self._take(test, data)
                    data.close(force=True)
                    file.unlink()

    def _take(self, test: str, data: CoverageData) -> None:
        for file in data.measured_files():
            path = os.path.join(ROOT, file)
            if path.startswith(f"{SOURCE}{os.sep}"):
                self._reached[test][os.path.relpath(path, SOURCE)].update(data.lines(file) or ())

    def save(self) -> None:
        self._coverage.stop()
        self._coverage._auto_save = False
        data = self._coverage.get_data()
        for test in self.seconds:
            data.set_query_context(test)
            self._take(test, data)
        said = {
            test: {
                "seconds": round(seconds, 3),
                "lines": {file: sorted(lines) for file, lines in self._reached[test].items() if lines},
            }
            for test, seconds in self.seconds.items()
        }
        (self._folder / "notes.json").write_text(json.dumps(said))


class Plugin:
    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left = [item for item in items if is_left_out(item)]
        if left:
            items[:] = [item for item in items if item not in left]
            config.hook.pytest_deselected(items=left)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._notes.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._notes.seconds[report.nodeid] += report.duration

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._notes.end(nodeid)

    def pytest_sessionfinish(self) -> None:
        self._notes.save()  # no later: a worker that has said that it is finished gets ten seconds to end


def is_left_out(item: pytest.Item) -> bool:
    name = item.nodeid
    return name.startswith(LEFT_OUT) or (name.startswith(SLOW) and item.get_closest_marker("slow") is not None)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) is None or hasattr(config, "workerinput"):  # not who only hands out
        worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
        config.pluginmanager.register(Plugin(Notes(Path(os.environ[NOTES]) / worker)))


# The map


class Reached:
    """tests: by node id, what they reach and how long they took; texts: the sources they reached it in."""

    def __init__(self, path: Path = MAP) -> None:
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._path = path
        self.tests: dict[str, dict[str, Any]] = kept.get("tests", {})
        self._files: dict[str, str] = kept.get("files", {})  # of tests, with their hashes
        self._texts: dict[str, str] = kept.get("texts", {})
        self._moved: dict[str, dict[int, int]] = {}
        self._by_line: dict[str, dict[int, set[str]]] = {}

    def update(self, jobs: int) -> None:
        """Take down again what the tests that have changed reach; all of them, when walpool has changed much."""
        now = {
            path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
        }
        new = [file for file, digest in now.items() if self._files.get(file) != digest]
        self.tests = {test: said for test, said in self.tests.items() if test.split("::")[0] in now}
        new = [file for file in new if not file.startswith(LEFT_OUT)]
        if new:
            print(f"taking down what the tests of {len(new)} files reach", flush=True)
            self._take(new, take_down(new, jobs))
        self._files = now
        self._path.write_text(json.dumps({"tests": self.tests, "files": self._files, "texts": self._texts}))

    def _take(self, files: list[str], found: dict[str, dict[str, Any]]) -> None:
        """In lines of the texts that are kept: those of today, if nothing is kept yet."""
        for path in sorted(SOURCE.rglob("*.py")):
            self._texts.setdefault(path.relative_to(SOURCE).as_posix(), path.read_text())
        self.tests = {test: said for test, said in self.tests.items() if test.split("::")[0] not in files}
        for said in found.values():
            said["lines"] = {
                file: sorted({self._line(file, line) for line in lines} - {0}) for file, lines in said["lines"].items()
            }
        self.tests.update(found)

    def _line(self, file: str, line: int) -> int:
        """Where a line of today stood; 0: it is new."""
        if file not in self._moved:
            before, after = self._texts[file].splitlines(), (SOURCE / file).read_text().splitlines()
            self._moved[file] = {}
            for start, then, length in difflib.SequenceMatcher(
                None, before, after, autojunk=False
            ).get_matching_blocks():
                for at in range(length):
                    self._moved[file][then + at + 1] = start + at + 1
        return self._moved[file].get(line, 0)

    def of(self, file: str, lines: Iterable[int]) -> list[str]:
        """The tests that reach any of these lines of today: those of its room first, of them the quickest.

        Of lines that are younger than the map, those that reach anything in the file.
        """
        if file not in self._by_line:
            by_line: dict[int, set[str]] = defaultdict(set)
            for test, said in self.tests.items():
                for line in said["lines"].get(file, ()):
                    by_line[line].add(test)
            self._by_line[file] = by_line
        known = self._by_line[file]
        stood = {self._line(file, line) for line in lines} - {0} or known.keys()
        found = set[str]().union(*(known.get(line, ()) for line in stood))
        room = f"tests/{file.split('/')[0]}/"
        return sorted(found, key=lambda test: (not test.startswith(room), self.tests[test]["seconds"], test))

    def knows(self, file: str, lines: Iterable[int]) -> bool:
        """Not of lines that are younger than the map."""
        return file in self._texts and any(self._line(file, line) for line in lines)

    def seconds(self, tests: Iterable[str]) -> float:
        return float(sum(self.tests[test]["seconds"] for test in tests))

    def within(self, tests: Iterable[str], seconds: float) -> Iterator[str]:
        """As many as take so long together, and one at least."""
        for number, test in enumerate(tests):
            seconds -= self.tests[test]["seconds"]
            if number and seconds < 0:
                return
            yield test


def take_down(files: list[str], jobs: int) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="walpool-") as folder:
        words = ["-q", "-p", "tools.reached", "-p", "no:cacheprovider", "--tb=line"]
        words += ["-n", str(jobs), "--dist", "worksteal"] if jobs > 1 else []
        environment = {**os.environ, NOTES: folder, "PYTEST_ADDOPTS": ""}
        ended = subprocess.run([sys.executable, "-m", "pytest", *words, *files], cwd=ROOT, env=environment, check=False)
        if ended.returncode not in (0, 1, 5):  # tests that fail reach something, too; or there were none
            sys.exit(f"pytest ended with {ended.returncode}")
        found: dict[str, dict[str, Any]] = {}
        for notes in Path(folder).glob("*/notes.json"):
            found.update(json.loads(notes.read_text()))
        assert found, "the plugin has taken nothing down"
        return found
