"""The surface: what `help(walpool)` reaches says what it means, and says it truly.

A docstring has parts, as Sphinx and pydoc show them: `Args:` of what is called, `Attributes:` of what has fields,
members or public attributes, `Raises:`. A line of a part is `name (default X): what it means`. An error says in a line
`What to do:` whether to retry, reopen or stop.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import enum
import errno
import inspect
import itertools
import os
import pydoc
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import pytest

import walpool
from tests.crash.taps import Call, tapped
from walpool import SyncFailed, SyncMode, WALEntry, WALError, WALMetrics, WALReader, WALWriter
from walpool.options import WriterOptions
from walpool.system.locks import LOCK_UN

EXPORTED = {name: getattr(walpool, name) for name in walpool.__all__}
CLASSES = {name: value for name, value in EXPORTED.items() if inspect.isclass(value)}
ERRORS = {name: kind for name, kind in CLASSES.items() if issubclass(kind, Exception)}
# What a user makes and sets fields of; of what walpool makes, a default says what stands there when nothing is known.
MADE_BY_USERS = {"Retention", "WALEntry", "WALHeader"}
# They look at what is there already.
CANNOT_RAISE = {
    "WALWriter.path",
    "WALWriter.recovery_report",
    "WALReader.stats",
    "WALReader.next_lsn",
    "WALReader.close",
    "WALMetrics.close",
}

PART = re.compile(r"^(Args|Attributes|Raises):\n((?:(?: {4}.*)?\n)+)", re.M)
ITEM = re.compile(r"^ {4}((?:\w+, )*\w+)(?: \(default (.+?)\))?:(?: |\n)", re.M)
TO_DO = re.compile(r"^What to do: (retry|reopen|stop)\b", re.M)


class Documented(NamedTuple):
    name: str  # as a user says it: WALWriter.put
    object: Any
    text: str


def text_of(thing: Any) -> str:
    """Its own docstring: what was inherited from tuple, object, Exception or Enum is none."""
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "") + "\n"


def own(kind: type) -> Iterator[tuple[str, Any]]:
    """The public names of a class that are walpool's, also those that a base of walpool's defines."""
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("walpool"):
            for name, value in vars(base).items():
                if not name.startswith("_"):
                    yield name, value


def unwrapped(value: Any) -> Any:
    """The function behind a method or a property."""
    if isinstance(value, property):
        return value.fget
    return getattr(value, "__func__", value)


def callables() -> list[Documented]:
    found = [Documented(name, value, text_of(value)) for name, value in EXPORTED.items() if inspect.isfunction(value)]
    for name, kind in CLASSES.items():
        for attribute, value in own(kind):
            function = unwrapped(value)
            if isinstance(function, FunctionType):
                found.append(Documented(f"{name}.{attribute}", value, text_of(function)))
    return found


def fields_of(kind: type) -> dict[str, Any]:
    """Fields, members and attributes, each with its default: what a class's part `Attributes` is about."""
    if issubclass(kind, enum.Enum):
        return dict.fromkeys(kind.__members__, inspect.Parameter.empty)
    if dataclasses.is_dataclass(kind):
        return {
            each.name: inspect.Parameter.empty if each.default is dataclasses.MISSING else each.default
            for each in dataclasses.fields(kind)
        }
    if hasattr(kind, "_fields"):
        defaults: dict[str, Any] = kind._field_defaults
        return {name: defaults.get(name, inspect.Parameter.empty) for name in kind._fields}
    parameters = parameters_of(kind)
    return {name: parameters.get(name, inspect.Parameter.empty) for name in attributes_set_in(kind)}


def attributes_set_in(kind: type) -> set[str]:
    """Those of walpool's own classes that a method sets."""
    bases = [base for base in kind.__mro__ if base.__module__.startswith("walpool")]
    nodes = [node for base in bases for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base))))]
    stored = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return {node.attr for node in stored if ast.unparse(node.value) == "self" and node.attr[0] != "_"}


def parameters_of(thing: Any) -> dict[str, Any]:
    function = thing.__init__ if inspect.isclass(thing) else unwrapped(thing)
    if not isinstance(function, FunctionType):
        return {}
    names = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in names if each.name not in ("self", "cls")}


def part(text: str, title: str) -> str:
    return "".join(body for found, body in PART.findall(text) if found == title)


def items(text: str, *titles: str) -> dict[str, str]:
    """Name to stated default, empty when none is."""
    return {
        name: default
        for title in titles
        for names, default in ITEM.findall(part(text, title))
        for name in names.split(", ")
    }


def raised_in(text: str) -> set[str]:
    return {name for names, _ in ITEM.findall(part(text, "Raises")) for name in names.split(", ")}


def disagreements(text: str, real: dict[str, Any], *titles: str, must_state: bool = True) -> list[str]:
    """Between the parts of a docstring and what there is."""
    said = items(text, *titles)
    wrong = [f"{name} is not in {' or '.join(titles)}" for name in real if name not in said]
    wrong += [f"there is no {name}" for name in said if name not in real]
    for name, default in real.items():
        stated = said.get(name, "")
        if stated and (default is inspect.Parameter.empty or eval(stated, vars(walpool).copy()) != default):
            wrong.append(f"the default of {name} is {default!r}, and not {stated}")
        elif must_state and not stated and default is not inspect.Parameter.empty and name in said:
            wrong.append(f"{name} does not say that its default is {default!r}")
    return wrong


CALLABLES = callables()
each_callable = pytest.mark.parametrize("called", CALLABLES, ids=[each.name for each in CALLABLES])
each_class = pytest.mark.parametrize("name", CLASSES)


@each_class
def test_a_class_says_what_it_is(name: str) -> None:
    kind = CLASSES[name]
    inherited = [base.__doc__ for base in kind.__mro__[1:]]
    assert kind.__doc__ and kind.__doc__ not in inherited
    assert not kind.__doc__.startswith(f"{name}("), "what dataclass and NamedTuple make up is no docstring"


@each_callable
def test_a_function_or_property_says_what_it_does(called: Documented) -> None:
    assert called.text.strip(), called.name
    assert called.text.split("\n\n")[0].rstrip().endswith((".", ":")), called.text


@each_class
def test_each_field_member_and_attribute_is_explained_with_its_default(name: str) -> None:
    kind = CLASSES[name]
    real = fields_of(kind)
    if name in ERRORS and issubclass(kind, OSError) and "errno" in items(text_of(kind), "Attributes"):
        real["errno"] = inspect.Parameter.empty
    assert disagreements(text_of(kind), real, "Attributes", must_state=name in MADE_BY_USERS) == []


@each_callable
def test_each_parameter_is_explained_with_its_default(called: Documented) -> None:
    assert disagreements(called.text, parameters_of(called.object), "Args") == []


@pytest.mark.parametrize("name", [name for name in CLASSES if "__init__" in vars(CLASSES[name])])
def test_each_parameter_of_a_constructor_is_explained_with_its_default(name: str) -> None:
    kind = CLASSES[name]
    if dataclasses.is_dataclass(kind):
        return  # its fields are
    said = items(text_of(kind), "Args") or items(text_of(kind), "Attributes")
    real = parameters_of(kind)
    assert [parameter for parameter in real if parameter not in {**said, **items(text_of(kind), "Attributes")}] == []
    if items(text_of(kind), "Args"):
        named = {each: default for each, default in real.items() if each in said}
        assert disagreements(text_of(kind), named, "Args") == []


def test_an_option_that_is_not_given_means_the_same_in_a_writer_and_in_a_command() -> None:
    """Commands make WriterOptions without a writer."""
    given = inspect.signature(walpool.WALWriter).parameters
    for option in dataclasses.fields(WriterOptions):
        assert given[option.name].default == option.default


def test_what_a_user_sees_of_an_object_is_what_is_documented(log: Path) -> None:
    """dir() of a writer, a reader, a batch and figures: nothing that is only for walpool itself."""
    with WALWriter(log) as writer, writer.batch() as batch, WALReader(log) as reader, writer.metrics as metrics:
        for thing in (writer, batch, reader, metrics, metrics.snapshot()):
            kind = type(thing)
            known = {name for name, _ in own(kind)} | set(items(text_of(kind), "Attributes"))
            assert {name for name in dir(thing) if name[0] != "_"} - known == set()


# What is raised


@each_callable
def test_what_may_be_raised_is_said_in_names_that_a_user_can_catch(called: Documented) -> None:
    raised = raised_in(called.text)
    assert [name for name in raised if name not in ERRORS and name not in BUILTINS] == []
    of_a_log = called.name.split(".")[0] in ("WALWriter", "WALReader", "Batch", "WALMetrics") or "." not in called.name
    if of_a_log:
        assert (called.name in CANNOT_RAISE) != bool(raised), raised


BUILTINS = {"TypeError", "ValueError", "RuntimeError"}

AN_APPEND = {
    "TypeError", "ValueError", "EntryTooLarge", "BatchTooLarge", "LogFull", "IOFailed", "LogBusy", "SyncFailed",
    "LogReplaced", "UnsafeLog", "CorruptLog", "LogClosed",
}  # fmt: skip
READING = {"CorruptLog", "UnsupportedVersion", "LSNUnavailable", "LogReplaced", "UnsafeLog", "IOFailed", "LogClosed"}
RAISED = {
    "WALWriter": {"TypeError", "ValueError", "UnsafeLog", "LogBusy", "LogFull", "IOFailed", "SyncFailed", "CorruptLog",
                  "UnsupportedVersion"},
    "WALWriter.append": AN_APPEND,
    "WALWriter.put": AN_APPEND,
    "WALWriter.delete": AN_APPEND,
    "WALWriter.append_batch": AN_APPEND,
    "WALWriter.batch": AN_APPEND | {"RuntimeError"},
    "WALWriter.sync": {"LogBusy", "SyncFailed", "LogReplaced", "LogFull", "IOFailed", "UnsafeLog", "LogClosed"},
    "WALWriter.rotate": AN_APPEND - {"TypeError", "ValueError", "EntryTooLarge", "BatchTooLarge"},
    "WALWriter.checkpoint": {"TypeError", "ValueError", "LogBusy", "SyncFailed", "LogFull", "IOFailed", "UnsafeLog",
                             "LogReplaced", "LogClosed"},
    "WALWriter.prune": {"LogBusy", "SyncFailed", "CorruptLog", "LogFull", "IOFailed", "UnsafeLog", "LogClosed"},
    "WALWriter.close": {"LogBusy", "LogFull", "IOFailed", "SyncFailed", "LogReplaced", "UnsafeLog"},
    "WALReader": {"TypeError", "ValueError", "LogNotFound", "LSNUnavailable", "UnsafeLog", "CorruptLog",
                  "UnsupportedVersion", "IOFailed"},
    "WALReader.read_entry": READING,
    "WALReader.read_all": READING,
    "WALReader.batches": READING,
    "WALReader.follow": READING,
    "WALReader.first_lsn": {"LogReplaced", "LogClosed"},
    "WALReader.last_lsn": {"LogReplaced", "LogClosed"},
    "WALMetrics.attach": {"LogNotFound", "ControlUnusable", "UnsafeLog", "IOFailed"},
    "WALMetrics.snapshot": {"LogClosed", "LogReplaced", "ControlUnusable", "UnsafeLog", "IOFailed"},
    "Batch.put": {"RuntimeError", "TypeError", "ValueError"},
    "Batch.append": {"RuntimeError"},
    "checkpoint": {"LogNotFound", "CorruptLog", "UnsafeLog", "IOFailed"},
    "copy": {"LogNotFound", "UnsafeLog", "LogBusy", "CorruptLog", "UnsupportedVersion", "LogFull", "IOFailed"},
    "flush_at_signals": {"ValueError"},
    "WALEntry.put": {"TypeError", "ValueError"},
    "WALEntry.encode": {"TypeError", "ValueError", "EntryTooLarge"},
    "WALEntry.decode": {"TypeError", "CorruptLog", "UnsupportedVersion"},
    "WALHeader.encode": {"ValueError"},
    "WALHeader.decode": {"CorruptLog", "UnsupportedVersion"},
    "Histogram.quantile": {"ValueError"},
    "Retention": {"TypeError", "ValueError"},
}  # fmt: skip


def said_to_raise(name: str) -> set[str]:
    thing = (
        EXPORTED[name] if "." not in name else inspect.getattr_static(EXPORTED[name.split(".")[0]], name.split(".")[1])
    )
    return raised_in(text_of(unwrapped(thing)))


@pytest.mark.parametrize("name", RAISED)
def test_the_errors_that_come_are_said(name: str) -> None:
    assert RAISED[name] - said_to_raise(name) == set()


USES: dict[str, Callable[[WALWriter, WALReader], object]] = {
    "WALWriter.append": lambda writer, _: writer.append(WALEntry.put(b"k", b"v")),
    "WALWriter.put": lambda writer, _: writer.put(b"k", b"v"),
    "WALWriter.delete": lambda writer, _: writer.delete(b"k"),
    "WALWriter.append_batch": lambda writer, _: writer.append_batch([WALEntry.put(b"k", b"v")] * 2),
    "WALWriter.sync": lambda writer, _: writer.sync(),
    "WALWriter.rotate": lambda writer, _: writer.rotate(),
    "WALWriter.checkpoint": lambda writer, _: writer.checkpoint(3),
    "WALWriter.prune": lambda writer, _: writer.prune(),
    "WALWriter.size": lambda writer, _: writer.size,
    "WALWriter.close": lambda writer, _: writer.close(),
    "WALMetrics.snapshot": lambda writer, _: writer.metrics.snapshot(),
    "WALMetrics.attach": lambda writer, _: WALMetrics.attach(writer.path),
    "WALReader": lambda writer, _: WALReader(writer.path, 2),
    "WALReader.read_entry": lambda _, reader: reader.read_entry(),
    "WALReader.read_all": lambda _, reader: reader.read_all(),
    "WALReader.batches": lambda _, reader: list(reader.batches()),
    "WALReader.follow": lambda _, reader: list(reader.follow(timeout=0, durable_only=True)),
    "WALReader.first_lsn": lambda _, reader: reader.first_lsn,
    "WALReader.last_lsn": lambda _, reader: reader.last_lsn,
    "checkpoint": lambda writer, _: walpool.checkpoint(writer.path),
    "copy": lambda writer, _: walpool.copy(writer.path, writer.path + ".copy"),
}
CLOSED_AGAIN = {"WALWriter.close", "WALMetrics.attach", "WALReader", "checkpoint", "copy"}  # they need nothing open


@pytest.mark.parametrize("name", [name for name in USES if name not in CLOSED_AGAIN])
def test_a_closed_object_raises_what_its_docstring_says(log: Path, name: str) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
        reader = WALReader(log)
    reader.close()
    with pytest.raises(WALError) as raised:
        USES[name](writer, reader)
    assert type(raised.value).__name__ in said_to_raise(name)


@pytest.mark.parametrize("name", USES)
def test_what_the_system_refuses_comes_out_as_an_error_that_the_docstring_names(memory: Path, name: str) -> None:
    """Each system call fails, from the use on, with errors that mean three things: the disk, the right to, no room."""
    writes = name.startswith("WALWriter") or name == "copy"
    numbers = (errno.EIO, errno.EACCES, errno.ENOSPC) if writes else (errno.EIO, errno.EACCES)
    said = said_to_raise(name)
    came = 0
    for mode in SyncMode:
        made: set[str] = set()
        refused(memory / f"{mode.value}-dry", USES[name], mode, made.add)
        for at, (call_name, number) in enumerate(itertools.product(sorted(made), numbers)):

            def fail(call: str, failing: str = call_name, number: int = number) -> None:
                if call == failing:
                    raise OSError(number, os.strerror(number))

            raised = refused(memory / f"{mode.value}-{at}", USES[name], mode, fail)
            if raised is not None:
                came += 1
                kinds = {kind.__name__ for kind in type(raised).__mro__ if kind.__name__ in ERRORS}
                assert kinds & said, f"{call_name}, {errno.errorcode[number]}: {raised!r}"
    assert came or name == "WALWriter.size", "a test in which nothing fails"


def refused(
    log: Path, use: Callable[[WALWriter, WALReader], object], mode: SyncMode, fail: Callable[[str], object]
) -> Exception | None:
    """What `use` raises while `fail(name)` is called for each system call. The log works afterwards, or is closed."""
    using = False

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not using or (name == "flock" and args[1] == LOCK_UN):
            return call(*args, **kwargs)
        if name == "close":
            call(*args, **kwargs)  # whatever it says, the descriptor is gone
        fail(name)
        return None if name == "close" else call(*args, **kwargs)

    raised = None
    with tapped(tap), WALWriter(log, mode, 400, linger_s=60, lock_timeout=0.05) as writer:
        for _ in range(5):
            writer.put(b"k", b"v")
        if mode is SyncMode.NONE:
            writer.sync()
            writer.put(b"buffered", b"")
        with WALReader(log) as reader:
            using = True
            try:
                use(writer, reader)
            except Exception as error:
                raised = error
            using = False
        try:
            writer.close()
        except SyncFailed:
            writer._handle.buffer = None  # what it holds cannot be appended any more
            writer.close()
    return raised


# Errors


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_says_what_to_do_then(name: str) -> None:
    assert TO_DO.search(text_of(ERRORS[name])), "What to do: retry, reopen or stop"


def test_every_error_of_walpools_own_is_exported() -> None:
    """But those that stay inside: two tell a writer to open again, one tells a decoder what is wrong."""

    def below(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    inside = {kind.__name__ for kind in below(WALError) if kind not in ERRORS.values()}
    assert inside == {"Retired", "Left", "BodyError"}


# Types


@each_callable
def test_each_class_of_walpools_in_a_signature_is_exported(called: Documented) -> None:
    assert hidden_classes(unwrapped(called.object)) == set()


@each_class
def test_each_class_of_walpools_in_a_constructor_or_a_field_is_exported(name: str) -> None:
    kind = CLASSES[name]
    if "__init__" in vars(kind):
        assert hidden_classes(kind.__init__) == set()
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        assert hidden_classes(kind) == set()


def hidden_classes(thing: Any) -> set[type]:
    return {
        found
        for hint in typing.get_type_hints(thing).values()
        for found in classes_in(hint)
        if found.__module__.startswith("walpool") and found not in CLASSES.values()
    }


def classes_in(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint):
        yield hint
    origin = typing.get_origin(hint)
    if inspect.isclass(origin):
        yield origin
    for argument in typing.get_args(hint):
        for each in argument if isinstance(argument, list) else [argument]:
            yield from classes_in(each)


# As a whole


def test_help_shows_no_text_that_nobody_wrote() -> None:
    shown = pydoc.plain(pydoc.render_doc(walpool))
    assert "Alias for field number" not in shown
    for name in EXPORTED:
        assert re.search(rf"\b{name}\b", shown), name


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=True, exclude_empty=True)
    return [test for name, value in EXPORTED.items() for test in finder.find(value, name, globs=vars(walpool).copy())
            if test.examples]  # fmt: skip


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_in_a_docstring_gives_what_it_shows(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    assert runner.run(example).failed == 0


def test_there_are_examples_of_writing_reading_and_figures() -> None:
    assert {"WALWriter", "WALReader", "WALMetrics"} <= {example.name for example in examples()}


def test_the_collector_of_the_extra_prometheus_explains_itself() -> None:
    module = pytest.importorskip("walpool.integrations.prometheus")
    kind = module.WALCollector
    assert disagreements(text_of(kind), parameters_of(kind), "Args") == []
    assert [name for name, value in own(kind) if not text_of(value).strip()] == []


# The test itself


def test_a_docstring_that_says_too_little_or_what_is_not_so_is_seen() -> None:
    text = (
        "Do it.\n\nArgs:\n    one: first.\n    two, three (default 4): more\n        of it.\n\n"
        "Raises:\n    LogBusy: retry.\n"
    )
    empty = inspect.Parameter.empty
    assert items(text, "Args") == {"one": "", "two": "4", "three": "4"}
    assert raised_in(text) == {"LogBusy"}
    assert disagreements(text, {"one": empty, "two": 4, "three": 4}, "Args") == []
    assert disagreements(text, {"one": 1, "two": 4, "three": 4}, "Args") == ["one does not say that its default is 1"]
    assert disagreements(text, {"one": empty, "two": 5, "three": 4}, "Args") == ["the default of two is 5, and not 4"]
    assert disagreements(text, {"one": empty, "two": 4}, "Args") == ["there is no three"]
    assert disagreements(text, {"one": empty, "two": 4, "three": 4, "four": empty}, "Args") == ["four is not in Args"]
