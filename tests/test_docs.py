"""The README's example runs as printed, its commands exist, and docs/format.md is what the code says."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import format_doc
from walpool.shared.slot_rows import TOTALS
from walpool.shared.snapshot import Snapshot, WriterRow

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_in_the_readme_runs_as_printed(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    script = tmp_path / "example.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4008 entries, the last one LSN 4008\n"


@pytest.mark.parametrize("command", sorted(set(re.findall(r"tools/dev\.py (\w+)", README))))
def test_each_dev_command_in_the_readme_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "dev.py", "--help"], capture_output=True, text=True, timeout=60
    )
    assert re.search(rf"\b{command}\b", done.stdout)


@pytest.mark.parametrize("page", sorted({*re.findall(r"\]\((docs/[^)]+)\)", README), "CHANGELOG.md"}))
def test_each_page_the_readme_links_to_exists(page: str) -> None:
    assert (ROOT / page).read_bytes().strip()


def test_the_format_page_is_what_the_code_says() -> None:
    assert format_doc.PAGE.read_text() == format_doc.render(), "run python tools/format_doc.py"


def test_the_page_of_metrics_names_every_field() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    fields = [field.name for kind in (Snapshot, WriterRow) for field in dataclasses.fields(kind)]
    assert [name for name in (*fields, *TOTALS) if f"`{name}`" not in text] == []
