"""What is let loose on a walpool with one changed module: pytest on some tests, or the explorer of power cuts.

The module is imported from the changed text in place of its file, in this process and in every Python that it starts:
nothing is copied, and the text becomes no bytecode that anybody else could find. A finder is forked from a nursery
that has imported pytest, and nothing of walpool. Nor does this file: Python runs it before a program starts.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

CUTS = "tests.crash.seeded"  # instead of what pytest is given; then come the scripts

_START = """\
import importlib.util
spec = importlib.util.spec_from_file_location("tests_crash_finders", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.change({name!r}, {text!r})
"""


def run(
    name: str, text: str, words: Sequence[str], environment: dict[str, str], folder: Path, longest_s: float
) -> tuple[int, str]:
    """Its exit code, and what it said."""
    from tests import nursery

    (folder / "sitecustomize.py").write_text(_START.format(file=__file__, name=name, text=text))
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": "", **environment}
    mine, theirs = multiprocessing.Pipe()
    with (folder / "said").open("w+b") as said, mine, theirs:
        streams = 0, said.fileno(), said.fileno()
        finder = nursery.fork("tests.crash.finders:main", "pytest", theirs.fileno(), streams)
        try:
            mine.send((environment, name, text, words))
            code = finder.wait(longest_s)
        finally:
            finder.end(longest_s)
        assert code is not None, f"the finder still runs after {longest_s} s"
        said.seek(0)
        return code, said.read().decode(errors="replace")


def main() -> None:
    import pytest

    from tests import nursery

    connection = nursery.serve()
    if connection is None:
        return
    environment, name, text, words = connection.recv()
    connection.close()
    os.environ.clear()
    os.environ.update(environment)
    change(name, text)
    if words[0] != CUTS:
        sys.exit(pytest.main([*words]))
    from tests.crash import seeded

    sys.exit(seeded.cut(words[1:]))


# The changed module


def change(name: str, text: str) -> None:
    assert name not in sys.modules, f"{name} is imported already"
    sys.meta_path.insert(0, _Finder(name, text))


class _Finder(MetaPathFinder):
    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self._text)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._text, self.path, "exec", dont_inherit=True)
        return code

    def get_source(self, fullname: str) -> str:
        return self._text
