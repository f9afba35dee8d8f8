"""What is shown on stderr: a bar on a terminal, colour only if wanted, and nothing that hides a message."""

from __future__ import annotations

import io

import pytest

from walpool.cli.progress import CLEAR_LINE, GREEN, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every update is due."""
    monkeypatch.setattr("walpool.cli.progress.REDRAW_S", 0.0)
    monkeypatch.setattr("walpool.cli.progress.PLAIN_S", 0.0)


@pytest.mark.usefixtures("hurried")
def test_a_terminal_gets_a_bar_with_the_share_that_is_done() -> None:
    terminal = Terminal()
    Progress("appending", 1000, terminal).update(10, 250, skipped_bytes=250)
    assert "[############............]" in terminal.getvalue()
    assert " 50%" in terminal.getvalue()
    assert GREEN in terminal.getvalue()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    terminal = Terminal()
    Progress("appending", 1000, terminal).update(10, 500)
    assert GREEN not in terminal.getvalue()
    assert "50%" in terminal.getvalue()


@pytest.mark.usefixtures("hurried")
def test_a_file_gets_lines_and_no_escapes() -> None:
    stream = io.StringIO()
    progress = Progress("appending", 1000, stream)
    progress.update(10, 500)
    progress.clear()
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    assert stream.getvalue().startswith("appending:  50%")


@pytest.mark.usefixtures("hurried")
def test_a_bar_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    Progress("appending", 1000, terminal).update(10**9, 500)
    assert len(terminal.getvalue().removeprefix(CLEAR_LINE)) < 40


@pytest.mark.usefixtures("hurried")
def test_a_message_stands_above_the_bar() -> None:
    terminal = Terminal()
    progress = Progress("appending", 1000, terminal)
    progress.update(10, 500)
    progress.say("worker 7 died")
    assert terminal.getvalue().endswith(f"{CLEAR_LINE}worker 7 died\n")


def test_updates_between_two_drawings_cost_no_output() -> None:
    terminal = Terminal()
    progress = Progress("appending", 1000, terminal)
    for number in range(1000):
        progress.update(number, number)
    assert terminal.getvalue().count(CLEAR_LINE) < 100
