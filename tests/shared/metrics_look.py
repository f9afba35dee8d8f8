"""A look at the figures wherever they are told, beside what the model says: snapshot, delta, `stat --json`, Prometheus.

A figure that the model does not know is an error, and so is one that it knows and nobody tells.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.shared.metrics_model import KINDS, UNIT_NS, Between, Figures, Tally, WriterFigures
from walpool.cli.stat import NOT_TOTALS, look
from walpool.integrations.prometheus import WALCollector
from walpool.shared.figures.fields import OF_LOG, OF_WRITER, THIS_PROCESS, Kind
from walpool.shared.figures.histogram import Histogram
from walpool.shared.figures.snapshot import Delta, Snapshot

ABOUT = 1e-9  # of sums of floats
ERROR_BYTES = 128
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
TIME_BOUNDS = [1 << exponent for exponent in range(2, 28)]  # units: 1 us to 34 s
ENTRY_BOUNDS = [1 << exponent for exponent in range(1, 21)]  # one more than the bound


def unit_of(name: str) -> float:
    return 1.0 if name == "batch_entries" else UNIT_NS / 1e9


def same(found: Snapshot, figures: Figures) -> None:
    for name in OF_LOG:
        agree(name, getattr(found, name), getattr(figures, name)())


def agree(name: str, found: Any, expected: Any) -> None:
    """One figure is what the model says, whatever kind of value it is."""
    if isinstance(expected, Between):
        assert expected.low <= found <= expected.high, f"{name} is {found}, and should be from {expected}"
    elif isinstance(expected, Tally):
        agree_histogram(name, found, expected)
    elif name == "process":
        assert found in expected, f"{name} is {found!r}, and should be one of {expected}"
    elif name == "readers":
        assert [(row.first_lsn, row.lag) for row in found] == expected, name
    elif name == "last_error":
        cut = found.encode()
        assert expected.encode().startswith(cut), f"{name} is {found!r}, and should be {expected!r}"
        assert bool(cut) == bool(expected) and len(cut) <= ERROR_BYTES
    elif name in ("writers", "killed_writers"):
        assert [row.slot for row in found] == [row.slot() for row in expected], name
        for row, its in zip(found, expected, strict=True):
            for each in OF_WRITER:
                try:
                    agree(each, getattr(row, each), getattr(its, each)())
                except AssertionError as error:
                    raise AssertionError(f"of slot {row.slot}: {error}") from None
    else:
        assert found == expected, f"{name} is {found!r}, and should be {expected!r}"


def agree_histogram(name: str, found: Histogram, tally: Tally) -> None:
    unit = unit_of(name)
    assert found.unit == unit
    assert found.count == tally.count, f"{name} counts {found.count}, and should count {tally.count}"
    assert abs(found.sum - tally.total * unit) < ABOUT * max(1.0, found.sum), (
        f"{name}: {found.sum}, {tally.total * unit}"
    )
    values = sorted(tally.values)
    buckets = found.buckets()
    assert [seen for _, seen in buckets] == [tally.below(value + 1) for value in values], f"{name}: {buckets}, {values}"
    for (bound, _), value, beyond in zip(buckets, values, [*values, None][1:], strict=True):
        assert value * unit <= bound + ABOUT and (beyond is None or bound < beyond * unit)
    told = found.as_dict()
    for key, q in {**QUANTILES, "max": 1.0}.items():
        assert told[key] == found.quantile(q) == tally.quantile(q) * unit, f"{name}: {key}"
    assert (found.max, told["count"], told["sum"]) == (told["max"], found.count, found.sum)


# What happened between two looks


def between(now: Figures, before: Figures) -> dict[str, Any]:
    """What a Delta has to say, by its fields."""

    def since(name: str) -> int:
        return int(getattr(now, name)() - getattr(before, name)())

    def of_writers(name: str) -> dict[int, int]:
        known = {each.writer.key: each for each in before.writers()}
        return {
            each.slot(): getattr(each, name)()
            - (getattr(known[each.writer.key], name)() if each.writer.key in known else 0)
            for each in now.writers()
        }

    return {
        "seconds": now.taken_at() - before.taken_at(),
        "entries": since("writes_total"),
        "batches": since("batches_total"),
        "bytes": since("bytes_written"),
        "failures": since("writes_failed"),
        "lock_waits": since("lock_waits"),
        "syncs": since("sync_total"),
        "rotations": since("rotation_count"),
        "writer_entries": of_writers("entries"),
        "writer_bytes": of_writers("bytes"),
        **{name: getattr(now, name)().since(getattr(before, name)()) for name, figure in OF_LOG.items()
           if figure.kind is Kind.HISTOGRAM},
    }  # fmt: skip


def same_since(found: Delta, now: Figures, before: Figures) -> None:
    expected = between(now, before)
    assert expected.keys() == {each.name for each in dataclasses.fields(Delta)}
    for name, value in expected.items():
        agree(name, getattr(found, name), value)
    seconds = expected["seconds"]
    assert found.entries_per_s == (expected["entries"] / seconds if seconds else 0.0)
    assert found.bytes_per_s == (expected["bytes"] / seconds if seconds else 0.0)


# What the commands and Prometheus tell


def same_in_json(log: Path, figures: Figures) -> None:
    told = json.loads(json.dumps(look(str(log)).as_dict()))
    totals = told.pop("totals")
    assert told["next_lsn"] == figures.next_lsn() and told["durable_lsn"] == figures.durable_lsn()
    assert told["checkpoint"] == figures.checkpoint() and told["first_lsn"] == figures.of.segments[0]
    assert [row["first_lsn"] for row in told["segments"]] == figures.of.segments
    assert [row["state"] for row in told["segments"]] == ["sealed"] * (figures.segments() - 1) + ["active"]
    assert set(totals) == OF_LOG.keys() - {*NOT_TOTALS, "writers", "killed_writers", "readers", "cursors"}
    assert set(NOT_TOTALS) == {*THIS_PROCESS, "next_lsn", "durable_lsn", "segments", "taken_at"}
    for name, value in totals.items():
        expected = getattr(figures, name)()
        if isinstance(expected, Tally):
            count = {"count": expected.count, "max": expected.quantile(1.0) * unit_of(name)}
            count |= {key: expected.quantile(q) * unit_of(name) for key, q in QUANTILES.items()}
            assert abs(value.pop("sum") - expected.total * unit_of(name)) < 1e-6
            assert value == count, name
        elif name == "failures_by_kind":
            assert value == dict(zip(KINDS, expected, strict=True))
        else:
            agree(name, value, expected)
    for kind in ("writers", "killed_writers"):
        rows: list[WriterFigures] = getattr(figures, kind)()
        for row, its in zip(told[kind], rows, strict=True):
            assert row.keys() == OF_WRITER.keys()
            for name, value in row.items():
                expected = getattr(its, name)()
                if name == "failures_by_kind":
                    expected = dict(zip(KINDS, expected, strict=True))
                agree(name, value, expected)
    assert [(row["first_lsn"], row["lag"]) for row in told["readers"]] == figures.readers()
    assert [row["name"] for row in told["cursors"]] == list(figures.cursors())


def same_in_prometheus(log: Path, figures: Figures) -> None:
    registry = CollectorRegistry()
    registry.register(WALCollector(log, "it"))
    page = generate_latest(registry).decode()
    found = {
        (sample.name, *sorted((key, value) for key, value in sample.labels.items() if key != "log")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert found.pop(("walpool_up",)) == 1
    for name, value in on_the_page(figures).items():
        told = found.pop(name)
        low, high = value if isinstance(value, Between) else (value, value)
        about = ABOUT * max(1.0, abs(low))
        assert low - about <= told <= high + about, f"{name} is {told} on the page, and should be {value}"
    assert not found, f"nobody knows {found}"


def on_the_page(figures: Figures) -> dict[tuple[Any, ...], Any]:
    expected: dict[tuple[Any, ...], Any] = {}
    for name, figure in OF_LOG.items():
        if not figure.prometheus:
            continue
        metric, value = f"walpool_{figure.prometheus}", getattr(figures, name)()
        if isinstance(value, Tally):
            expected |= histogram_on_the_page(metric, name, value)
        elif name == "failures_by_kind":
            expected |= {(f"{metric}_total", ("kind", kind)): n for kind, n in zip(KINDS, value, strict=True)}
        elif name in ("writers", "killed_writers"):
            expected[metric, ("state", "alive" if name == "writers" else "killed")] = len(value)
        elif name == "readers":
            expected[metric,] = max((lag for _, lag in value), default=0)
        else:
            expected[f"{metric}_total" if figure.kind is Kind.COUNTER else metric,] = value
    for name, figure in OF_WRITER.items():
        if figure.prometheus and name not in OF_LOG:
            metric = f"walpool_{figure.prometheus}" + ("_total" if figure.kind is Kind.COUNTER else "")
            expected |= {
                (metric, ("slot", str(writer.slot()))): getattr(writer, name)() for writer in figures.writers()
            }
    return expected


def histogram_on_the_page(metric: str, name: str, tally: Tally) -> dict[tuple[Any, ...], float]:
    unit = unit_of(name)
    bounds = ENTRY_BOUNDS if name == "batch_entries" else TIME_BOUNDS
    less = 1 if name == "batch_entries" else 0
    page: dict[tuple[Any, ...], float] = {
        (f"{metric}_bucket", ("le", f"{(bound - less) * unit:.6g}")): tally.below(bound) for bound in bounds
    }
    counts = list(page.values())
    assert all(low <= high <= tally.count for low, high in pairwise(counts)), "a bucket has all below it, too"
    page[f"{metric}_bucket", ("le", "+Inf")] = page[f"{metric}_count",] = tally.count
    page[f"{metric}_sum",] = tally.total * unit
    return page
