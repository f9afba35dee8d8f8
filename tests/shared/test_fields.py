"""The table of figures: what stands in a word shows under its name wherever figures are told; so does a new line."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from walpool import WALMetrics, WALWriter
from walpool.shared.figures import fields
from walpool.shared.figures.fields import (
    OF_LOG,
    OF_ROW,
    OF_WRITER,
    SHOWN_BY_BOTH,
    Failures,
    Kind,
    LogFigures,
    WriterRow,
)

ROOT = Path(__file__).resolve().parents[2]
ROW = 1 << 14


def test_each_word_of_a_row_shows_under_the_name_that_the_table_gives_it(log: Path) -> None:
    """A number of its own in each, and nothing at the claim."""
    WALWriter(log, name="it").close()
    numbers = {name: 1000 + figure.word for name, figure in OF_ROW.items() if figure.word is not None}
    numbers["state"] = 2  # it names something
    with (log / "metrics").open("r+b") as file:
        for name, figure in OF_ROW.items():
            assert figure.word is not None
            file.seek(2 * ROW + figure.word * 8)
            file.write(struct.pack("=Q", numbers[name]))
        file.seek(2 * ROW + 5 * 8 + 8)
        file.write(bytes(8))  # not closed
    with WALMetrics.attach(log) as metrics:
        found = metrics.snapshot()
    (row,) = found.killed_writers
    for name, figure in OF_WRITER.items():
        if figure.word is not None:
            assert getattr(row, name) == numbers[name], name
    for name in SHOWN_BY_BOTH:
        assert getattr(found, name) == numbers[name], name
    assert row.entries == numbers["batches"] + numbers["more_entries"]
    assert row.failures_by_kind == found.failures_by_kind == tuple(numbers[kind] for kind in Failures._fields)
    assert (row.state, row.last_append_at) == ("waiting for a sync", numbers["last_append_ns"] / 1e9)
    for name, figure in OF_LOG.items():
        if figure.kind is Kind.HISTOGRAM and name not in ("lock_wait", "batch_entries"):
            assert getattr(found, name).counts[0] == numbers[name], name


def test_the_table_has_a_line_for_every_field_and_no_other() -> None:
    for kind, lines in ((LogFigures, OF_LOG), (WriterRow, OF_WRITER)):
        assert {each.name for each in dataclasses.fields(kind)} == set(lines)
        assert len(set(lines)) == len(lines)
    metrics = [figure.prometheus for figure in (*OF_LOG.values(), *OF_WRITER.values()) if figure.prometheus]
    twice = {name for name in metrics if metrics.count(name) > 1}
    assert twice == {"writers", *(OF_LOG[name].prometheus for name in SHOWN_BY_BOTH)}
    assert all(figure.text and figure.text[-1] not in ".;" for figure in (*OF_LOG.values(), *OF_WRITER.values()))


ADDED = """    lost_waits: Annotated[int, Figure(
        C, "appends", "appends that waited in vain", By.ROWS, "lost_waits", {word})] = 0

"""
COUNTING = """
import json, sys
from walpool import WALMetrics, WALWriter
from walpool.shared.figures.fields import WORDS

one, two = WALWriter(sys.argv[1]), WALWriter(sys.argv[1])
one._handle.open().row.add(WORDS["lost_waits"], 3)
two._handle.open().row.add(WORDS["lost_waits"], 4)
with WALMetrics.attach(sys.argv[1]) as metrics:
    found = metrics.snapshot()
    told = found.as_dict()
assert [row["lost_waits"] for row in told["writers"]] == [3, 4] and told["lost_waits"] == found.lost_waits == 7
assert "lost_waits (default 0): appends that waited in vain." in WALMetrics.snapshot.__annotations__["return"].__doc__
two.close()
three = WALWriter(sys.argv[1])
with WALMetrics.attach(sys.argv[1]) as metrics:
    found = metrics.snapshot()
assert [row.lost_waits for row in found.writers] == [3, 0] and found.lost_waits == 7
"""


def with_a_line_more(place: Path, word: int) -> dict[str, str]:
    """The environment in which walpool is a copy of this one with the line added."""
    shutil.copytree(ROOT / "src" / "walpool", place / "walpool", ignore=shutil.ignore_patterns("__pycache__"))
    table = place / "walpool" / "shared" / "figures" / "fields.py"
    at = "    lock_waits: Annotated[int, Figure("
    text = table.read_text()
    assert text.count(at) == 1
    table.write_text(text.replace(at, ADDED.format(word=word) + at))
    return {**os.environ, "PYTHONPATH": str(place)}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_line_more_is_a_counter_more_in_every_place(log: Path, tmp_path: Path) -> None:
    environment = with_a_line_more(tmp_path, fields.COUNTERS[-1])
    done = run(environment, "-c", COUNTING, str(log))
    assert (done.returncode, done.stderr) == (0, "")
    told = run(environment, "-m", "walpool", "stat", str(log), "--json")
    assert '"lost_waits": 7' in told.stdout or '"lost_waits":7' in told.stdout, told
    pytest.importorskip("prometheus_client")
    scrape = "import sys; from prometheus_client import CollectorRegistry as R, generate_latest as g\n"
    scrape += "from walpool.integrations.prometheus import WALCollector as C\n"
    scrape += "r = R(); r.register(C(sys.argv[1], 'it')); print(g(r).decode())"
    done = run(environment, "-c", scrape, str(log))
    assert "# HELP walpool_lost_waits_total appends that waited in vain\n" in done.stdout, done
    assert 'walpool_lost_waits_total{log="it"} 7.0\n' in done.stdout


def test_who_does_not_know_a_counter_yet_leaves_its_total_and_counts_none(log: Path, tmp_path: Path) -> None:
    """A row that a newer walpool counted in, claimed by this one: no new layout is needed for a word in the room."""
    environment = with_a_line_more(tmp_path, fields.COUNTERS[-1])
    done = run(environment, "-c", COUNTING, str(log))
    assert (done.returncode, done.stderr) == (0, "")
    script = "import sys; from walpool import WALMetrics\n"
    script += "f = WALMetrics.attach(sys.argv[1]).snapshot(); print([r.lost_waits for r in f.writers], f.lost_waits)"
    with WALWriter(log, name="this one"):
        done = run(environment, "-c", script, str(log))
    assert (done.stdout, done.stderr) == ("[0] 7\n", "")


@pytest.mark.parametrize("word", [fields.WORDS["lock_waits"], fields.GAUGES[0], fields.COUNTERS.stop])
def test_a_line_in_a_word_that_is_taken_or_no_counters_is_no_walpool(tmp_path: Path, word: int) -> None:
    done = run(with_a_line_more(tmp_path, word), "-c", "import walpool")
    assert "AssertionError" in done.stderr
