"""A Prometheus collector for one log (extra `prometheus`).

    from prometheus_client import REGISTRY
    from walpool.integrations.prometheus import WALCollector

    REGISTRY.register(WALCollector("events.wal"))

Holds: a scrape takes no lock and has no effect on writers; a log that is not there, or whose control block is of
another version, is `walpool_up 0` and nothing else. Labels are the log's name, slot numbers and cursors' names: no
path, unless it is given as the name, and no process id. The names are in figures/fields.py and docs/metrics.md; the
dashboard in docs/ uses them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(f"this needs an extra: pip install 'walpool[prometheus]' ({error})") from None

from walpool.errors import WALError
from walpool.shared.figures.fields import OF_CURSOR, OF_LOG, OF_WRITER, Failures, Figure, Kind
from walpool.shared.figures.histogram import Histogram
from walpool.shared.figures.snapshot import Snapshot
from walpool.shared.metrics import WALMetrics

TIME_EXPONENTS = range(2, 28)  # bounds of 1 us to 34 s, each twice the one before
COUNT_EXPONENTS = range(1, 21)  # 1, 3, 7, ... to a million entries


class WALCollector(Collector):
    """The metrics of one log, for a registry of prometheus_client. Nothing is raised when the log is not there.

    Args:
        path: the log's directory; it need not be there yet.
        name (default None): the label `log`; None is the directory's name.
    """

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self._path = os.path.abspath(os.fspath(path))
        found = os.path.basename(self._path) if name is None else name
        self._name = found.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # a label is text
        self._metrics: WALMetrics | None = None

    def describe(self) -> Iterable[Metric]:
        """No metrics: so that registering does not need the log to be there."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics now: `walpool_up` alone, as 0, while there is no log to read."""
        found = self._snapshot()
        up = GaugeMetricFamily("walpool_up", "1 when the log could be read", labels=["log"])
        up.add_metric([self._name], 0 if found is None else 1)
        yield up
        if found is not None:
            yield from self._log_metrics(found)
            yield from self._writer_metrics(found)
            yield from self._cursor_metrics(found)

    def _snapshot(self) -> Snapshot | None:
        """Without a lock: a forked child would wait for one that a thread of its parent held."""
        metrics = self._metrics
        try:
            if metrics is None:
                metrics = self._metrics = WALMetrics.attach(self._path)
            return metrics.snapshot()
        except (WALError, OSError):
            if metrics is not None:
                metrics.close()
                self._metrics = None
            return None

    def _log_metrics(self, found: Snapshot) -> Iterator[Metric]:
        for name, figure in OF_LOG.items():
            if not figure.prometheus or name in ("writers", "killed_writers"):
                continue
            value = getattr(found, name)
            if isinstance(value, Histogram):
                yield self._histogram(figure, value)
            elif isinstance(value, Failures):
                yield self._metric(figure, list(value._asdict().items()))
            elif name == "readers":
                yield self._metric(figure, [("", max((row.lag for row in found.readers), default=0))])
            else:
                yield self._metric(figure, [("", value)])
        alive, killed = OF_LOG["writers"], OF_LOG["killed_writers"]
        both = alive._replace(text=f"alive: {alive.text}; killed: {killed.text}")
        yield self._metric(both, [("alive", len(found.writers)), ("killed", len(found.killed_writers))])

    def _writer_metrics(self, found: Snapshot) -> Iterator[Metric]:
        for name, figure in OF_WRITER.items():
            if figure.prometheus and name not in OF_LOG:
                values = [(str(row.slot), getattr(row, name)) for row in found.writers]
                yield self._metric(figure._replace(label="slot"), values)

    def _cursor_metrics(self, found: Snapshot) -> Iterator[Metric]:
        for name, figure in OF_CURSOR.items():
            if figure.prometheus:
                yield self._metric(figure, [(row.name, getattr(row, name)) for row in found.cursors])

    def _metric(self, figure: Figure, values: list[tuple[str, float]]) -> Metric:
        """`values` with what the label says of each."""
        labels = ["log", figure.label] if figure.label else ["log"]
        kind = CounterMetricFamily if figure.kind is Kind.COUNTER else GaugeMetricFamily
        family = kind(f"walpool_{figure.prometheus}", figure.text, labels=labels)
        for of, value in values:
            family.add_metric([self._name, of][: len(labels)], value)
        return family

    def _histogram(self, figure: Figure, found: Histogram) -> Metric:
        family = HistogramMetricFamily(f"walpool_{figure.prometheus}", figure.text, labels=["log"])
        exponents = TIME_EXPONENTS if figure.unit == "seconds" else COUNT_EXPONENTS
        buckets = [(f"{bound:.6g}", float(count)) for bound, count in found.cumulative(exponents)]
        family.add_metric([self._name], [*buckets, ("+Inf", float(found.count))], found.sum)
        return family
