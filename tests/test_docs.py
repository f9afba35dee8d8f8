"""The README's example runs as printed, its commands exist, and docs/format.md is what the code says."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tools import format_doc
from walpool.shared.figures.fields import OF_CURSOR, OF_LOG, OF_ROW, OF_WRITER, Figure, Kind
from walpool.shared.figures.histogram import BUCKETS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_in_the_readme_runs_as_printed(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    script = tmp_path / "example.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4008 entries, the last one LSN 4008\n"


def programs(page: str) -> list[tuple[str, str]]:
    """Each program of a page, with what the page says that it prints."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)


PROGRAMS = [(page, at) for page in ("parallel-reading.md",) for at in range(len(programs(page)))]


@pytest.mark.parametrize(("page", "at"), PROGRAMS)
def test_a_program_on_a_page_prints_what_stands_below_it(page: str, at: int, tmp_path: Path) -> None:
    program, printed = programs(page)[at]
    script = tmp_path / "example.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", printed)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"tools/dev\.py (\w+)", README))))
def test_each_dev_command_in_the_readme_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "dev.py", "--help"], capture_output=True, text=True, timeout=60
    )
    assert re.search(rf"\b{command}\b", done.stdout)


@pytest.mark.parametrize("page", sorted({*re.findall(r"\]\((docs/[^)]+)\)", README), "CHANGELOG.md"}))
def test_each_page_the_readme_links_to_exists(page: str) -> None:
    assert (ROOT / page).read_bytes().strip()


@pytest.mark.parametrize("page", ["cursors"])
def test_the_programs_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another, as a reader would try them."""
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.S)
    assert programs
    exec(compile("\n".join(programs), page, "exec"), {})


def test_the_format_page_is_what_the_code_says() -> None:
    assert format_doc.PAGE.read_text() == format_doc.render(), "run python tools/format_doc.py"


def table(*columns: str, rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell or '–' for cell in row)} |" for row in rows)])


def figures(of: dict[str, Figure], elsewhere: dict[str, Figure]) -> str:
    """The lines of a class; a line that is also in `elsewhere` has its metric there."""

    def row(name: str, figure: Figure) -> list[str]:
        metric = f"walpool_{figure.prometheus}{'_total' if figure.kind is Kind.COUNTER else ''}"
        label = f"{{{figure.label}}}" if figure.label else ""
        text = f"{figure.text}; {figure.note}" if figure.note else figure.text
        shown = f"`{metric}{label}`" if figure.prometheus and name not in elsewhere else ""
        return [f"`{name}`", shown, figure.kind, figure.unit, text, figure.by]

    columns = ("name", "Prometheus", "kind", "unit", "what it says", "stored by")
    return table(*columns, rows=(row(*line) for line in of.items()))


def words() -> str:
    def row(name: str, figure: Figure) -> list[str]:
        assert figure.word is not None
        at = f"{figure.word}–{figure.word + BUCKETS - 1}" if figure.kind is Kind.HISTOGRAM else str(figure.word)
        return [at, f"`{name}`", figure.kind, figure.unit, figure.text]

    in_order = sorted(OF_ROW.items(), key=lambda line: line[1].word or 0)
    return table("word", "name", "kind", "unit", "what it counts", rows=(row(*line) for line in in_order))


TABLES = {
    "the log": figures(OF_LOG, {}),
    "each writer": figures(OF_WRITER, OF_LOG),
    "each cursor": figures(OF_CURSOR, {}),
    "a row": words(),
}


@pytest.mark.parametrize("wanted", TABLES.values(), ids=TABLES)
def test_the_page_of_metrics_has_the_table_of_figures(wanted: str) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert f"\n\n{wanted}\n\n" in page, f"docs/metrics.md wants this table:\n{wanted}"
