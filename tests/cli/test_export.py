"""`walpool export` and the collector: what Prometheus gets is what happened, under names that the dashboard uses."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.conftest import Run, Running, Start, assert_no_traceback
from walpool import Cursor, SyncMode, WALEntry, WALMetrics, WALWriter
from walpool.cli.export import LONGEST_LINE, MOST_AT_ONCE, Server
from walpool.integrations.prometheus import WALCollector
from walpool.shared.figures.snapshot import Snapshot

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).resolve().parents[2]


def scrape(collector: WALCollector) -> dict[str, Any]:
    """Metric families by name, as a Prometheus would parse them."""
    registry = CollectorRegistry()
    registry.register(collector)
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def values(family: Any, **labels: str) -> list[float]:
    return [sample.value for sample in family.samples if labels.items() <= sample.labels.items()]


def test_the_metrics_are_what_happened(log: Path) -> None:
    collector = WALCollector(log)
    with WALWriter(log, SyncMode.FULL, name="it") as writer, WALWriter(log) as other:
        writer.put(b"key", b"value")
        writer.append_batch([WALEntry.put(b"k", b"v")] * 7)
        with pytest.raises(ValueError):
            other.append_batch([WALEntry.put(b"k", bytes(10 << 20))] * 7)
        found = scrape(collector)
        assert values(found["walpool_up"]) == [1]
        assert values(found["walpool_entries"]) == [8]
        assert values(found["walpool_batches"]) == [2]
        assert values(found["walpool_syncs"]) == [2]
        assert values(found["walpool_next_lsn"]) == [9]
        assert values(found["walpool_durable_lsn"]) == [8]
        assert values(found["walpool_append_failures"], kind="too_large") == [1]
        assert values(found["walpool_writers"], state="alive") == [2]
        assert values(found["walpool_writer_entries"], slot="0") == [8]
        assert values(found["walpool_writer_failures"], slot="1") == [1]
        assert all(sample.labels["log"] == log.name for family in found.values() for sample in family.samples)


def test_histograms_are_whole_and_have_the_same_bounds_at_every_scrape(log: Path) -> None:
    collector = WALCollector(log, name="it")
    bounds = []
    with WALWriter(log, SyncMode.FULL) as writer:
        for _ in range(3):
            writer.append_batch([WALEntry.put(b"k", b"v")] * 7)
            writer.put(b"key", b"value")
            found = scrape(collector)
            for name, count in (("sync_duration_seconds", None), ("batch_entries", None), ("lock_wait_seconds", None)):
                samples = found[f"walpool_{name}"].samples
                buckets = [(s.labels["le"], s.value) for s in samples if s.name.endswith("_bucket")]
                (count,) = [s.value for s in samples if s.name.endswith("_count")]
                assert [value for _, value in buckets] == sorted(value for _, value in buckets)
                assert buckets[-1] == ("+Inf", count)
                bounds.append([bound for bound, _ in buckets])
    assert bounds[:3] == bounds[3:6] == bounds[6:]
    by_bound = {float(s.labels["le"]): s.value for s in found["walpool_batch_entries"].samples if "le" in s.labels}
    assert (by_bound[1], by_bound[3], by_bound[7]) == (3, 3, 6)


def test_a_log_that_is_not_there_is_down_until_it_is(log: Path) -> None:
    collector = WALCollector(log)
    assert {name: values(family) for name, family in scrape(collector).items()} == {"walpool_up": [0]}
    WALWriter(log).close()
    assert values(scrape(collector)["walpool_up"]) == [1]
    shutil.rmtree(log)
    assert values(scrape(collector)["walpool_up"]) == [0]
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
        assert values(scrape(collector)["walpool_entries"]) == [1]
    collector._metrics.close()  # type: ignore[union-attr]


def test_a_scrape_in_the_middle_of_a_scrape_waits_for_nothing(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a signal handler; or in a child that was forked by another thread in the middle of one."""
    WALWriter(log).close()
    collector = WALCollector(log)
    snapshot = WALMetrics.snapshot
    inner: list[float] = []

    def interrupted(metrics: WALMetrics) -> Snapshot:
        if not inner:
            inner.append(0)
            inner.extend(values(scrape(collector)["walpool_up"]))
        return snapshot(metrics)

    monkeypatch.setattr(WALMetrics, "snapshot", interrupted)
    assert values(scrape(collector)["walpool_up"]) == [1]
    assert inner == [0, 1]
    collector._metrics.close()  # type: ignore[union-attr]


def names_exported(log: Path) -> set[str]:
    """Names of samples, as a query has them."""
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
        registry = CollectorRegistry()
        collector = WALCollector(log)
        registry.register(collector)
        text = generate_latest(registry).decode()
        collector._metrics.close()  # type: ignore[union-attr]
    return {match[1] for match in re.finditer(r"^(walpool_\w+)[{ ]", text, re.MULTILINE)}


def test_the_dashboard_asks_for_what_there_is(log: Path) -> None:
    exported = names_exported(log)
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"walpool_\w+", target["expr"]))
    assert len(asked) > 10
    assert asked <= exported


def test_the_page_of_metrics_has_every_name(log: Path) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names_exported(log)}
    families = {name for name in families if not name.endswith("_created")}
    assert {name for name in families if not re.search(rf"`{name}[`{{]", text)} == set()


# The command


@pytest.fixture
def address(start: Start, log: Path) -> Iterator[tuple[Running, int]]:
    with WALWriter(log, name="it") as writer:
        writer.put(b"key", b"value")
        Cursor(log, "etl").close()
        running = start("export", log, "--port", "0")
        assert running.process.stderr is not None
        line = running.process.stderr.readline().decode()
        yield running, int(re.search(r"127\.0\.0\.1:(\d+)/metrics", line)[1])  # type: ignore[index]


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_what_is_served(address: tuple[Running, int]) -> None:
    running, port = address
    status, kind, body = ask(port, "/metrics")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert b"walpool_entries_total{" in body and b"} 1.0" in body
    assert ask(port, "/metrics", "HEAD")[::2] == (200, b"")
    status, kind, body = ask(port, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"<svg" in body and not re.search(rb"(src|href)=", body)
    told = json.loads(ask(port, "/look.json")[2])
    assert (told["schema"], told["now"]["writes_total"]) == (1, 1)
    assert told["now"]["writers"][0]["name"] == "it"
    assert json.loads(ask(port, "/look.json")[2])["time"] >= told["time"]
    assert ask(port, "/elsewhere")[0] == 404
    assert ask(port, "/../../etc/passwd")[0] == 404
    assert ask(port, "/metrics", Host="evil.example")[0] == 403
    assert ask(port, "/metrics?" + "x" * LONGEST_LINE)[0] in (404, 414)
    assert ask(port, "/metrics", "POST")[0] == 501
    running.process.send_signal(signal.SIGINT)
    ended = running.wait()
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH to open the page with")
def test_the_page_in_a_browser(address: tuple[Running, int], tmp_path: Path) -> None:
    """What its script makes of the figures; nothing is fetched from elsewhere, or the page would stay empty."""
    _, port = address
    assert BROWSER is not None
    ended = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom", f"http://127.0.0.1:{port}/",
        ],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    drawn = ended.stdout
    assert "LSN 1, durable 0, checkpoint 0; 1 segments; 0 failed appends" in drawn, ended.stderr[-2000:]
    assert re.search(r'<td class="text">it</td><td class="text">normal</td>', drawn)
    assert re.search(
        r'<td class="text">etl</td><td>0</td><td>1</td><td>72 B</td><td>[^<]+</td><td>0</td><td>–</td>', drawn
    )
    plots = re.findall(r'<polyline points="([^"]*)"', drawn)
    assert len(plots) == 6
    assert all(points for points in plots)
    assert 'role="status"></p>' in drawn, "no trouble is shown"


def test_silent_clients_do_not_keep_others_out_for_ever(address: tuple[Running, int]) -> None:
    _, port = address
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(MOST_AT_ONCE + 1)]
    assert ask(port, "/metrics")[0] == 200
    for each in silent:
        each.close()


def test_more_clients_than_places_that_send_a_byte_now_and_then_keep_nobody_out(address: tuple[Running, int]) -> None:
    _, port = address
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * MOST_AT_ONCE)]
    for _ in range(3):
        for each in slow:
            try:
                each.send(b"G")
            except OSError:
                pass  # it lost its place
        assert ask(port, "/metrics")[0] == 200
    for each in slow:
        each.close()


class Registry(CollectorRegistry):
    """Whose metrics cannot be had."""

    def collect(self) -> Iterator[Any]:
        raise ValueError("no such\nfigure")


@pytest.fixture
def server(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An exporter in this process, which is in a hurry, and whose metrics raise."""
    monkeypatch.setattr("walpool.cli.export.TIMEOUT_S", 0.3)
    WALWriter(log).close()
    with closing(Server("127.0.0.1", 0, str(log), Registry())) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()
        if serving.watch is not None:
            serving.watch.close()


def test_a_request_has_a_deadline_however_it_comes(server: Server) -> None:
    with socket.create_connection(server.server_address[:2]) as slow:
        slow.settimeout(0.05)  # between two bytes: far below the deadline of the request
        for _ in range(1000):
            try:
                slow.send(b"G")
                if not slow.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return  # it was closed while we sent
    raise AssertionError("nobody ended the request")


def test_what_fails_is_answered_and_said(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(server.server_address[1], "/metrics")[::2] == (500, b"this failed; stderr says why\n")
    assert capsys.readouterr().err == "walpool export: GET /metrics: ValueError: no such\\nfigure\n"
    assert ask(server.server_address[1], "/look.json")[0] == 200


def test_a_place_is_given_back_when_no_thread_can_be_started(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        for _ in range(MOST_AT_ONCE + 1):
            with socket.create_connection(server.server_address[:2]) as client, suppress(ConnectionError):
                client.settimeout(30)
                client.send(b"GET / HTTP/1.0\r\n\r\n")
                assert client.recv(1) == b""
    assert "can't start new thread" in capsys.readouterr().err
    assert ask(server.server_address[1], "/")[0] == 200


def test_an_interrupt_once_the_thread_runs_gives_no_place_back_twice(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[object] = []

    def start(self: threading.Thread) -> None:
        real(self)
        self.join(30)
        raise KeyboardInterrupt

    WALWriter(log).close()
    real = threading.Thread.start
    monkeypatch.setattr(threading, "excepthook", ended.append)
    with closing(Server("127.0.0.1", 0, str(log), None)) as server, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with socket.create_connection(server.server_address[:2]) as client:
            client.send(b"GET /elsewhere HTTP/1.0\r\n\r\n")
            with pytest.raises(KeyboardInterrupt):
                server.handle_request()
    assert ended == []


def test_a_name_that_is_not_utf_8_is_escaped(start: Start, tmp_path: Path) -> None:
    log = tmp_path / os.fsdecode(b"caf\xe9.wal")
    WALWriter(log).close()
    running = start("export", log, "--port", "0")
    assert running.process.stderr is not None
    port = int(re.search(rb":(\d+)/metrics", running.process.stderr.readline())[1])  # type: ignore[index]
    status, _, body = ask(port, "/metrics")
    assert status == 200 and rb'walpool_up{log="caf\\xe9.wal"} 1.0' in body
    assert ask(port, "/look.json")[0] == ask(port, "/")[0] == 200


@pytest.mark.parametrize(("command", "extra"), [("export", "prometheus"), ("monitor", "monitor")])
def test_a_missing_extra_is_a_line_with_what_to_install(log: Path, tmp_path: Path, command: str, extra: str) -> None:
    WALWriter(log).close()
    for package in ("prometheus_client", "textual"):
        (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module {package}', name='{package}')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from walpool.cli import main, monitor\n"
        f"monitor.screen_is_possible = lambda: True; sys.exit(main.run([{command!r}, {str(log)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"pip install 'walpool[{extra}]'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_log_that_goes_is_said_on_the_page(address: tuple[Running, int], log: Path) -> None:
    _, port = address
    shutil.rmtree(log)
    assert "no such log" in json.loads(ask(port, "/look.json")[2])["error"]
    assert b"walpool_up" in ask(port, "/metrics")[2]


def test_what_cannot_be_served_is_a_line(run: Run, log: Path) -> None:
    ended = run("export", log)
    assert ended.code == 3
    assert_no_traceback(ended)
    WALWriter(log).close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run("export", log, "--port", taken.getsockname()[1])
    assert ended.code == 74 and "in use" in ended.err
    assert_no_traceback(ended)
    for port in ("-1", "70000", "x"):
        ended = run("export", log, "--port", port)
        assert ended.code in (2, 74) and "Traceback" not in ended.err
