"""`walpool export`: serve a log's figures over HTTP, for Prometheus at /metrics and for people at /.

It answers on this machine only, unless --host says otherwise, and says nothing of what is in the log.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from io import BufferedReader, RawIOBase
from threading import BoundedSemaphore, Lock
from typing import Any

from walpool import WALMetrics
from walpool.cli import arguments
from walpool.cli.exits import CommandError, Exit, describe, one_line
from walpool.cli.live.watch import Watch, as_dict
from walpool.cli.output import SCHEMA, warn
from walpool.errors import WALError
from walpool.system import clock

PORT = 9187
MOST_AT_ONCE = 8  # requests: many must not eat the machine
TIMEOUT_S = 5.0  # of a whole request, however it comes
LONGEST_LINE = 4096
LOOK_AGAIN_S = 0.5
SHUT_RDWR = 2  # of both directions
LOOPBACK = {"127.0.0.1", "localhost", "::1", "[::1]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG", help="the log's directory")
    parser.add_argument(
        "--port", type=arguments.number(0, 65535), default=PORT, metavar="N", help=f"0 takes any that is free ({PORT})"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to answer on (127.0.0.1: this machine only)")
    parser.add_argument("--name", help="the label `log` of each metric (the directory's name)")


def run(args: argparse.Namespace) -> Exit:
    try:
        from prometheus_client import CollectorRegistry

        from walpool.integrations.prometheus import WALCollector
    except ImportError as error:
        text = f"this needs an extra: pip install 'walpool[prometheus]' ({error.name or error} is missing)"
        raise CommandError(Exit.USAGE, text) from None
    WALMetrics.attach(args.log).close()  # a log that is not there is said now, not at the first scrape
    registry = CollectorRegistry()
    registry.register(WALCollector(args.log, args.name))
    try:
        server = Server(args.host, args.port, args.log, registry)
    except OSError as error:
        raise CommandError(Exit.IO, f"{args.host} port {args.port}: {one_line(error.strerror or str(error))}") from None
    with closing(server):
        host, port = server.server_address[:2]
        try:
            warn(f"walpool export: http://{host!s}:{port}/metrics, and / for people; Ctrl-C ends it")
            server.serve_forever()
        except KeyboardInterrupt:
            pass  # that is how one ends it
    return Exit.OK


class Server(ThreadingHTTPServer):
    """Answers a few requests at once, each within TIMEOUT_S.

    When all places are taken, the client that has been asking for longest, without an end, loses its own. So clients
    that send slowly, or nothing, keep nobody out, however many they are.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, log: str, registry: Any) -> None:
        self.log = log
        self.registry = registry
        self.local_only = host in LOOPBACK
        self.places = BoundedSemaphore(MOST_AT_ONCE)
        self.asking: dict[Any, None] = {}  # connections whose request has not come yet, the oldest first
        self.asking_lock = Lock()
        self.watch: Watch | None = None
        self.watch_lock = Lock()
        self.looked_s = -LOOK_AGAIN_S
        self.found: dict[str, object] = {}
        super().__init__((host, port), Handler)

    def close(self) -> None:
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.places.acquire(blocking=False):
            self._dismiss_slowest()
            if not self.places.acquire(timeout=TIMEOUT_S):
                self.shutdown_request(request)
                return
        with self.asking_lock:
            self.asking[request] = None
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread can be started; at a Ctrl-C it may run, and gives its place back itself
            self.asked(request)
            self.places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.asked(request)
            self.places.release()

    def asked(self, request: Any) -> None:
        with self.asking_lock:
            self.asking.pop(request, None)

    def _dismiss_slowest(self) -> None:
        with self.asking_lock:
            slowest = next(iter(self.asking), None)
            if slowest is not None:
                del self.asking[slowest]
                with suppress(OSError):
                    slowest.shutdown(SHUT_RDWR)  # its thread waits in recv, and sees the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a client that went away is nobody's concern
            say_error("a connection", error)

    def look(self) -> dict[str, object]:
        """What happened since the look before, as JSON says it. Pages that look at about the same time see the same."""
        with self.watch_lock:
            if clock.monotonic() - self.looked_s < LOOK_AGAIN_S:
                return self.found
            self.found = {"schema": SCHEMA, **self._look()}
            self.looked_s = clock.monotonic()
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


def say_error(what: str, error: BaseException | None) -> None:
    warn(f"walpool export: {one_line(what)}: {type(error).__name__}: {one_line(str(error))}")


class Request(RawIOBase):
    """What a client sends, up to a moment: a timeout of the socket alone would begin anew with each byte."""

    def __init__(self, connection: Any, ends_s: float) -> None:
        self._connection = connection
        self._ends_s = ends_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._connection.settimeout(left_s(self._ends_s))
        received: int = self._connection.recv_into(buffer)
        return received


def left_s(ends_s: float) -> float:
    """Until then. Raises TimeoutError when it has passed."""
    left = ends_s - clock.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # one request for each connection
    server_version = "walpool"
    sys_version = ""
    server: Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._ends_s = clock.monotonic() + TIMEOUT_S
        self.rfile = BufferedReader(Request(self.connection, self._ends_s))

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        self.server.asked(self.connection)
        try:
            status, kind, data = self._found()
        except Exception as error:
            say_error(f"{self.command} {self.path}", error)
            status, kind, data = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"this failed; stderr says why\n"
        self._send(status, kind, data, body=body)

    def _found(self) -> tuple[HTTPStatus, str, bytes]:
        host = (self.headers.get("Host") or "127.0.0.1").rsplit(":", 1)[0]
        if self.server.local_only and host not in LOOPBACK:
            return HTTPStatus.FORBIDDEN, "text/plain", b"not for this host name\n"
        if len(self.requestline) > LONGEST_LINE:
            return HTTPStatus.REQUEST_URI_TOO_LONG, "text/plain", b"too long\n"
        if self.path == "/metrics":
            from prometheus_client.exposition import choose_encoder

            encode, kind = choose_encoder(self.headers.get("Accept") or "")
            return HTTPStatus.OK, kind, encode(self.server.registry)
        if self.path == "/look.json":
            return HTTPStatus.OK, "application/json", json.dumps(self.server.look()).encode()
        if self.path == "/":
            return HTTPStatus.OK, "text/html; charset=utf-8", page()
        return HTTPStatus.NOT_FOUND, "text/plain", b"there are / and /metrics\n"

    def _send(self, status: HTTPStatus, kind: str, data: bytes, *, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def flush_headers(self) -> None:
        self.connection.settimeout(left_s(self._ends_s))  # of all that is sent: the system takes it in one piece
        super().flush_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


def page() -> bytes:
    return files("walpool.cli.live").joinpath("page.html").read_bytes()
