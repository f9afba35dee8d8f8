"""The house: which room may import which, who talks to the system, and what stands in one place only.

Read from the source, so that a shortcut taken in a hurry is seen in the same minute.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "walpool"
# Each may import itself and those before it.
ROOMS = ["native", "format", "system", "shared", "read", "opening", "upkeep", "staging", "write", "consume",
         "integrations", "cli"]  # fmt: skip
LEAVES = ["errors", "options"]  # anyone may import them
STRANGERS = [("write", "read"), ("read", "write")]  # never, in either direction

# The operating system, and what waits or measures: these belong to `system` ...
SYSTEM_MODULES = {
    "os", "io", "fcntl", "mmap", "time", "psutil", "filelock", "select", "socket", "resource", "ctypes", "errno",
    "stat", "tempfile", "shutil", "posix", "random", "secrets", "uuid",
}  # fmt: skip
# ... but for these names: paths are values, the clock is a timestamp's default (entry.py says why), and what chooses
# the core (native/select.py) is imported before `system` is.
ALLOWED_NAMES = {"os": {"PathLike", "fspath", "path"}}
ALLOWED_IMPORTS = {("format/entry.py", "time", "time_ns"), ("native/select.py", "os", "environ")}
# The commands are a program of their own: they start processes and read files that are no log's.
CLI_MODULES = {"signal", "subprocess", "sys", "sysconfig", "select", "io", "tempfile", "shutil"}

LONG_FILES: set[str] = set()  # over 350 lines, and known to be: one object with one idea
MOST_LINES = 350
# A file a command, one a thing that the machine has, and one a way of reading; else 12.
MOST_FILES = {"cli": 20, "shared": 13, "system": 16, "read": 15}

FILES = sorted(SOURCE.rglob("*.py"))
IDS = [str(file.relative_to(SOURCE)) for file in FILES]
each_file = pytest.mark.parametrize("file", FILES, ids=IDS)


def name_of(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def room_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imports_of(file: Path) -> Iterator[tuple[str, str | None, int]]:
    """(module, name or None, line) of every import, also inside functions."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield node.module or "", alias.name, node.lineno


def rooms_imported(file: Path) -> Iterator[tuple[str, int]]:
    for module, name, line in imports_of(file):
        parts = module.split(".")
        if parts[0] == "walpool":
            yield (parts[1] if len(parts) > 1 else name or ""), line


def test_the_rooms_are_those_of_the_house() -> None:
    found = {file.parent.relative_to(SOURCE).parts[0] for file in FILES if file.parent != SOURCE}
    assert found == set(ROOMS)
    assert {file.stem for file in SOURCE.glob("*.py")} == {"__init__", "__main__", *LEAVES}


@each_file
def test_a_room_imports_only_itself_and_those_before_it(file: Path) -> None:
    room = room_of(file)
    if room in ("__init__", "__main__"):
        return  # the public names, and the door
    wrong = []
    for imported, line in rooms_imported(file):
        if imported in LEAVES or imported == room:
            continue
        if room == "cli" and imported == "__version__":
            continue
        if room in LEAVES or imported not in ROOMS or ROOMS.index(imported) > ROOMS.index(room):
            public = room == "cli" and imported not in ROOMS  # the commands use what users use
            if not public:
                wrong.append(f"{name_of(file)}:{line} imports walpool.{imported}")
        if (room, imported) in STRANGERS:
            wrong.append(f"{name_of(file)}:{line}: {room} and {imported} never import each other")
    assert not wrong, "\n".join(wrong)


def test_the_public_module_holds_names_and_nothing_else() -> None:
    tree = tree_of(SOURCE / "__init__.py")
    for node in tree.body:
        assert isinstance(node, ast.ImportFrom | ast.Assign | ast.Expr), ast.unparse(node)
        if isinstance(node, ast.Assign):
            (target,) = node.targets
            assert isinstance(target, ast.Name)
            assert target.id in ("__all__", "__version__")
    import walpool

    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(walpool.__all__) == imported
    assert len(walpool.__all__) == len(set(walpool.__all__))


@each_file
def test_a_name_is_imported_from_where_it_lives(file: Path) -> None:
    """Not from a module that has it from another one; but from `walpool` itself, which has the public names."""
    wrong = []
    for module, name, line in imports_of(file):
        there = SOURCE.parent.joinpath(*module.split(".")).with_suffix(".py")
        if module.startswith("walpool.") and there.exists() and name in {each for _, each, _ in imports_of(there)}:
            wrong.append(f"{name_of(file)}:{line}: {name} does not live in {module}")
    assert not wrong, "\n".join(wrong)


@each_file
def test_only_the_system_room_talks_to_the_system(file: Path) -> None:
    room = room_of(file)
    if room == "system":
        return
    wrong = []
    for module, name, line in imports_of(file):
        top = module.split(".")[0]
        if top not in SYSTEM_MODULES or (room == "cli" and top in CLI_MODULES):
            continue
        if (name_of(file), module, name) in ALLOWED_IMPORTS:
            continue
        if name is None and module in ALLOWED_NAMES:
            continue  # its uses are judged below
        if name is not None and name in ALLOWED_NAMES.get(module, set()):
            continue
        wrong.append(f"{name_of(file)}:{line} imports {module}{f'.{name}' if name else ''}")
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ALLOWED_NAMES:
            if node.attr not in ALLOWED_NAMES[node.value.id]:
                wrong.append(f"{name_of(file)}:{node.lineno} uses {node.value.id}.{node.attr}")
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open" and room != "cli"
        ):
            wrong.append(f"{name_of(file)}:{node.lineno} opens a file by itself")
    assert not wrong, "\n".join(wrong)


def path_calls(file: Path) -> Iterator[tuple[str, int]]:
    """Calls of os.path.X: only those that look at no file are values."""
    for node in ast.walk(tree_of(file)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Attribute)
            and isinstance(node.value.value, ast.Name)
            and (node.value.value.id, node.value.attr) == ("os", "path")
        ):
            yield node.attr, node.lineno


@each_file
def test_outside_the_system_room_a_path_is_only_a_value(file: Path) -> None:
    if room_of(file) == "system":
        return
    looks = [f"{name_of(file)}:{line} os.path.{name}" for name, line in path_calls(file)
             if name not in {"abspath", "join", "split", "basename", "dirname"}]  # fmt: skip
    assert not looks, "\n".join(looks)


@each_file
def test_live_words_are_never_packed_into(file: Path) -> None:
    """`pack_into` zeroes its target first, and others read the zeros. Only a state copy that is not in force may."""
    wrong = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Attribute) and node.attr == "pack_into":
            owner = ast.unparse(node.value)
            if owner != "STATE" or name_of(file) not in ("shared/control.py", "write/place.py"):
                wrong.append(f"{name_of(file)}:{node.lineno}: {owner}.pack_into")
    assert not wrong, "\n".join(wrong)


def stores_of(name: str) -> list[str]:
    """Places where `words[name]` is stored: by assignment, or through `__setitem__`."""
    found = []
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = [
                    each for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Subscript)
                ]
            elif isinstance(node, ast.AugAssign):
                targets = [node.target]
            elif isinstance(node, ast.Call) and "words" in ast.unparse(node.func):
                first = next(iter(node.args), None)
                if isinstance(first, ast.Name) and first.id == name:
                    found.append(f"{name_of(file)}:{node.lineno}")
            for target in targets:
                if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Name) and target.slice.id == name:
                    found.append(f"{name_of(file)}:{node.lineno}")
    return found


def test_the_durable_lsn_is_stored_in_one_line() -> None:
    """And once where a new block is made."""
    places = sorted(place.split(":")[0] for place in stores_of("DURABLE"))
    assert places == ["shared/control.py", "write/committer.py"], stores_of("DURABLE")


def test_the_commit_word_is_stored_by_the_two_that_publish() -> None:
    places = sorted(place.split(":")[0] for place in stores_of("COMMIT"))
    assert places == ["shared/control.py", "write/place.py"], stores_of("COMMIT")


def test_the_search_for_stores_sees_every_way_to_store(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "words[DURABLE] = 1",
        "words[A], words[DURABLE] = 1, 2",
        "words[DURABLE] += 1",
        "self._words.__setitem__(DURABLE, 1)",
    ]
    monkeypatch.setitem(globals(), "FILES", FILES[:1])
    monkeypatch.setattr(Path, "read_text", lambda self: "\n".join([*lines, "print(words[DURABLE])"]))
    assert [place.split(":")[1] for place in stores_of("DURABLE")] == ["1", "2", "3", "4"]


@each_file
def test_a_file_begins_with_a_sentence_that_says_what_it_is(file: Path) -> None:
    said = ast.get_docstring(tree_of(file))
    assert said, name_of(file)
    assert said.split("\n\n")[0].rstrip().endswith((".", ":")), said


@each_file
def test_a_file_is_short_enough_to_hold_one_idea(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    if name_of(file) in LONG_FILES:
        assert lines > MOST_LINES, f"{name_of(file)} has {lines} lines by now: take it from LONG_FILES"
    else:
        assert lines <= MOST_LINES, f"{name_of(file)} has {lines} lines"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_handful_of_files(room: str) -> None:
    files = [file for file in (SOURCE / room).glob("*.py") if file.name != "__init__.py"]
    assert len(files) <= MOST_FILES.get(room, 12), [file.name for file in files]
