"""`walpool export`: serve a log's figures over HTTP, for Prometheus at /metrics and for people at /.

It answers on this machine only, unless --host says otherwise, and says nothing of what is in the log.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import BoundedSemaphore, Lock
from typing import Any

from walpool import WALMetrics
from walpool.cli.exits import CommandError, Exit, describe, one_line
from walpool.cli.live.watch import Watch, as_dict
from walpool.cli.output import SCHEMA, warn
from walpool.errors import WALError
from walpool.system import clock

PORT = 9187
MOST_AT_ONCE = 8  # requests; one silent client must not block every scrape, and many must not eat the machine
TIMEOUT_S = 5.0
LONGEST_LINE = 4096
LOOK_AGAIN_S = 0.5
LOOPBACK = {"127.0.0.1", "localhost", "::1", "[::1]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="the log's directory")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"0 takes any that is free ({PORT})")
    parser.add_argument("--host", default="127.0.0.1", help="the address to answer on (127.0.0.1: this machine only)")
    parser.add_argument("--name", help="the label `log` of each metric (the directory's name)")


def run(args: argparse.Namespace) -> Exit:
    try:
        from prometheus_client import CollectorRegistry

        from walpool.integrations.prometheus import WALCollector
    except ImportError as error:
        raise CommandError(Exit.USAGE, str(error)) from None
    WALMetrics.attach(args.log).close()  # a log that is not there is said now, not at the first scrape
    registry = CollectorRegistry()
    registry.register(WALCollector(args.log, args.name))
    try:
        server = Server(args.host, args.port, args.log, registry)
    except (OSError, OverflowError) as error:
        raise CommandError(Exit.IO, f"{args.host} port {args.port}: {one_line(str(error))}") from None
    with closing(server):
        host, port = server.server_address[:2]
        try:
            warn(f"walpool export: http://{host!s}:{port}/metrics, and / for people; Ctrl-C ends it")
            server.serve_forever()
        except KeyboardInterrupt:
            pass  # that is how one ends it
    return Exit.OK


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, log: str, registry: Any) -> None:
        self.log = log
        self.registry = registry
        self.local_only = host in LOOPBACK
        self.places = BoundedSemaphore(MOST_AT_ONCE)
        self.watch: Watch | None = None
        self.watch_lock = Lock()
        self.looked_s = -LOOK_AGAIN_S
        self.found: dict[str, object] = {}
        super().__init__((host, port), Handler)

    def close(self) -> None:
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.places.acquire(timeout=TIMEOUT_S):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's concern."""

    def look(self) -> dict[str, object]:
        """What happened since the look before, as JSON says it. Pages that look at about the same time see the same."""
        with self.watch_lock:
            if clock.monotonic() - self.looked_s < LOOK_AGAIN_S:
                return self.found
            self.looked_s = clock.monotonic()
            self.found = {"schema": SCHEMA, **self._look()}
            return self.found

    def _look(self) -> dict[str, object]:
        try:
            if self.watch is None:
                self.watch = Watch(self.log)
            return as_dict(self.watch.look())
        except WALError as error:
            if self.watch is not None:
                self.watch.close()
                self.watch = None
            return {"error": describe(error)[1]}


class Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    protocol_version = "HTTP/1.0"
    server_version = "walpool"
    sys_version = ""
    server: Server

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        host = (self.headers.get("Host") or "127.0.0.1").rsplit(":", 1)[0]
        if self.server.local_only and host not in LOOPBACK:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"not for this host name\n", body=body)
        elif len(self.requestline) > LONGEST_LINE:
            self._send(HTTPStatus.REQUEST_URI_TOO_LONG, "text/plain", b"too long\n", body=body)
        elif self.path == "/metrics":
            from prometheus_client.exposition import choose_encoder

            encode, kind = choose_encoder(self.headers.get("Accept") or "")
            self._send(HTTPStatus.OK, kind, encode(self.server.registry), body=body)
        elif self.path == "/look.json":
            self._send(HTTPStatus.OK, "application/json", json.dumps(self.server.look()).encode(), body=body)
        elif self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page(), body=body)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there are / and /metrics\n", body=body)

    def _send(self, status: HTTPStatus, kind: str, data: bytes, *, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


def page() -> bytes:
    return files("walpool.cli.live").joinpath("page.html").read_bytes()
