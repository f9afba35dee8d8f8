"""The twins of the core beside their Python functions: both called alike, and what came of it told exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from walpool.format import body, entry, frame, run
from walpool.native.select import python_of

if TYPE_CHECKING:
    import pytest

MODULES = (entry, frame, body, run)
TWINS: dict[str, Callable[..., Any]] = {
    name: value
    for module in MODULES
    for name, value in vars(module).items()
    if callable(value) and python_of(value) is not value
}


def use_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the Python functions call each other, and not each other's twins."""
    for module in MODULES:
        for name, function in TWINS.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, python_of(function))


def exactly(value: Any) -> Any:
    """The value, with the types of all that it holds."""
    if isinstance(value, tuple | list):
        return type(value), [exactly(each) for each in value]
    return type(value), bytes(value) if isinstance(value, memoryview) else value


def outcome(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    try:
        return exactly(function(*args, **named))
    except Exception as error:
        return type(error), str(error)


def agree(name: str, *args: Any, **named: Any) -> Any:
    """Call both, and say what came of it; where the core does not run, there is nothing to compare."""
    if name not in TWINS:
        return None
    wanted = outcome(python_of(TWINS[name]), *args, **named)
    assert outcome(TWINS[name], *args, **named) == wanted, (name, args, named)
    return wanted
