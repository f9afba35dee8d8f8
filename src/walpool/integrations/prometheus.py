"""A Prometheus collector for one log (extra `prometheus`).

    from prometheus_client import REGISTRY
    from walpool.integrations.prometheus import WALCollector

    REGISTRY.register(WALCollector("events.wal"))

Holds: a scrape takes no lock and has no effect on writers; a log that is not there, or whose control block is of
another version, is `walpool_up 0` and nothing else. Labels are the log's name and slot numbers: never a path unless it
is given as the name, never a process id. docs/metrics.md lists the names; the dashboard in docs/ uses them.
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
from walpool.shared.histogram import Histogram
from walpool.shared.metrics import WALMetrics
from walpool.shared.snapshot import Snapshot

TIME_EXPONENTS = range(2, 29)  # bounds of 1 us to 69 s, each twice the one before
COUNT_EXPONENTS = range(1, 21)  # 1, 3, 7, ... to a million entries

COUNTERS = {
    "entries": ("writes_total", "entries appended in the life of the log"),
    "batches": ("batches_total", "frames appended; an entry put alone is a batch of one"),
    "written_bytes": ("bytes_written", "bytes of frames"),
    "syncs": ("sync_total", "syncs made"),
    "sync_waits": ("sync_waits", "appends and calls of sync() that another writer's sync made durable"),
    "lock_waits": ("lock_waits", "appends that found the append lock taken"),
    "rotations": ("rotation_count", "segments started after the first"),
}
GAUGES = {
    "next_lsn": ("next_lsn", "LSN that the next entry gets"),
    "durable_lsn": ("durable_lsn", "LSN of the last entry that is on disk"),
    "checkpoint_lsn": ("checkpoint", "LSN at or below which nothing is needed any more; 0 when nobody said so"),
    "segments": ("segments", "segment files"),
    "active_segment_bytes": ("current_file_size", "the active segment up to its last frame"),
    "largest_entry_bytes": ("max_entry_size", "16 + key + value of the largest entry"),
}
HISTOGRAMS = {
    "sync_duration_seconds": ("sync_duration", TIME_EXPONENTS, "how long syncs took"),
    "append_duration_seconds": (
        "append_duration",
        TIME_EXPONENTS,
        "how long appends took; one in 1,000 is timed",
    ),
    "lock_wait_seconds": ("lock_wait", TIME_EXPONENTS, "how long appends waited for the append lock; most 0"),
    "batch_entries": ("batch_entries", COUNT_EXPONENTS, "entries of a batch"),
}
WRITER_COUNTERS = {
    "writer_entries": ("entries", "entries appended by the slot's present writer"),
    "writer_written_bytes": ("bytes", "bytes of frames appended by the slot's present writer"),
    "writer_failures": ("failures", "appends of the slot's present writer that raised"),
}
WRITER_GAUGES = {
    "writer_buffered_bytes": ("buffered_bytes", "buffered by a writer in SyncMode.NONE, and not appended yet"),
    "writer_last_append_timestamp_seconds": ("last_append_at", "when the slot's writer appended last, to a tenth"),
}


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
        for name, (field, text) in COUNTERS.items():
            counter = CounterMetricFamily(f"walpool_{name}", text, labels=["log"])
            counter.add_metric([self._name], getattr(found, field))
            yield counter
        failures = CounterMetricFamily("walpool_append_failures", "appends that raised", labels=["log", "kind"])
        for kind, count in found.failures_by_kind._asdict().items():
            failures.add_metric([self._name, kind], count)
        yield failures
        for name, (field, text) in GAUGES.items():
            gauge = GaugeMetricFamily(f"walpool_{name}", text, labels=["log"])
            gauge.add_metric([self._name], getattr(found, field))
            yield gauge
        text = "writers: alive; killed: ended without close, however, and nobody has taken the slot since"
        writers = GaugeMetricFamily("walpool_writers", text, labels=["log", "state"])
        writers.add_metric([self._name, "alive"], len(found.writers))
        writers.add_metric([self._name, "killed"], len(found.killed_writers))
        yield writers
        lag = GaugeMetricFamily("walpool_reader_lag_entries", "entries behind which the last pin is", labels=["log"])
        lag.add_metric([self._name], max((row.lag for row in found.readers), default=0))
        yield lag
        for name, (field, exponents, text) in HISTOGRAMS.items():
            yield self._histogram(f"walpool_{name}", text, getattr(found, field), exponents)

    def _histogram(self, name: str, text: str, found: Histogram, exponents: range) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["log"])
        buckets = [(f"{bound:.6g}", float(count)) for bound, count in found.cumulative(exponents)]
        family.add_metric([self._name], [*buckets, ("+Inf", float(found.count))], found.sum)
        return family

    def _writer_metrics(self, found: Snapshot) -> Iterator[Metric]:
        for families, kind in ((WRITER_COUNTERS, CounterMetricFamily), (WRITER_GAUGES, GaugeMetricFamily)):
            for name, (field, text) in families.items():
                family = kind(f"walpool_{name}", text, labels=["log", "slot"])
                for row in found.writers:
                    family.add_metric([self._name, str(row.slot)], getattr(row, field))
                yield family
