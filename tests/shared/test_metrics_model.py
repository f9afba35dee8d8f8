"""Every figure, beside a model that counts for itself, whatever was done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared.metrics_model import COUNTERS, Figures, WriterFigures
from walpool.shared.figures.fields import OF_LOG, OF_ROW, OF_WRITER, Kind

pytest.importorskip("prometheus_client")
from tests.shared import metrics_play


def test_every_figure_has_a_model() -> None:
    """And the model has no other: one more in the table needs a method of its name."""
    for model, table in ((Figures, OF_LOG), (WriterFigures, OF_WRITER)):
        told = {name for name in vars(model) if name[0] != "_"}
        assert table.keys() <= told
        assert told - table.keys() <= {"total", "tally"}
    assert {name for name, figure in OF_ROW.items() if figure.kind is Kind.COUNTER} == set(COUNTERS)


def test_whatever_one_process_does_is_counted(memory: Path, seed: int, linux: None) -> None:
    print(dict(metrics_play.prove(memory, seed, 400, children=0)))


def test_whatever_several_processes_do_is_counted_whoever_is_killed(memory: Path, seed: int, linux: None) -> None:
    print(dict(metrics_play.prove(memory, seed, 150)))
