"""A real HTTP proxy before the S3 server of the tests that throttles, cuts, truncates and delays, from a seed."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import s3fs

from dtg_ray.s3 import S3

XML = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>'
ANSWERS = {
    "slow_down": (503, XML % (b"SlowDown", b"Please reduce your request rate.")),
    "internal_error": (500, XML % (b"InternalError", b"We encountered an internal error. Please try again.")),
    "bad_gateway": (502, b"<html>not from S3 at all</html>"),
    "too_many": (429, XML % (b"TooManyRequests", b"Please reduce your request rate.")),
    "forbidden": (403, XML % (b"AccessDenied", b"Access Denied")),
    "half_deleted": (
        200,
        b"<DeleteResult><Error><Key>a</Key><Code>InternalError</Code><Message>oh</Message></Error></DeleteResult>",
    ),
    "expired": (400, XML % (b"ExpiredToken", b"The provided token has expired.")),
}
KINDS = (
    "slow_down",
    "internal_error",
    "bad_gateway",
    "unheard",  # cut while the request is sent: the server never hears of it
    "unanswered",  # cut when the server has done it: nobody hears of that
    "cut",  # reset in the middle of the answer
    "truncated",  # an orderly end, with fewer bytes than promised
    "delay",
)
"""What happens to a share of the requests, all equally often. An answer without a body is not cut but unanswered."""
SHORT = "short"
"""A part of what was asked for, which says that it is all of it."""
DELAY_SECONDS = 0.05
HANG, HANG_SECONDS = "hang", 1.0
"""No answer for longer than anybody should wait."""


@dataclass
class Faults:
    """What to do, and what was done.

    Parameters
    ----------
    share : float
        Of the requests that go wrong, by chance; `by_chance` sets it.
    script : list of str
        What happens to the next requests, in order: of ANSWERS or KINDS, SHORT, or "" for nothing.
    always : str
        What happens to every request after them, in place of chance.
    only : str
        Nothing happens to requests without this in their path.
    refused : tuple of str
        Methods that are forbidden, as to somebody who may only read.
    clock : float
        Seconds by which the server's clock is slow.
    counts : Counter
        By what was done; "requests" are all of them.
    log : list of str
        Method and path of each request.
    """

    share: float = 0.0
    script: list[str] = field(default_factory=list)
    always: str = ""
    only: str = ""
    refused: tuple[str, ...] = ()
    clock: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(), threading.Lock()

    def by_chance(self, share: float, seed: int) -> None:
        """From now on a share of the requests goes wrong."""
        self.share = share
        self._random.seed(seed)

    def forget(self) -> None:
        """Count from here."""
        self.counts.clear()
        self.log.clear()

    def next(self, request: str) -> str:
        """What happens to the next request; nothing: "" ."""
        with self._lock:
            self.counts["requests"] += 1
            self.log.append(request)
            unlucky, kind = self._random.random() < self.share, self._random.choice(KINDS)
            if self.only not in request:
                return ""
            if self.script:
                return self.script.pop(0)
            if request.startswith(self.refused):
                return "forbidden"
            return self.always or (kind if unlucky else "")

    def count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faults: Faults
    upstream: str

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client went away
            super().handle_one_request()
            return
        self.close_connection = True

    def forward(self) -> None:
        """Do one request, or whatever happens to it."""
        kind = self.faults.next(f"{self.command} {self.path}")
        if kind == "unheard":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.faults.count(kind)
            self.reset()
            return
        body = self.body()
        if kind in ANSWERS:
            self.faults.count(kind)
            self.answer(*ANSWERS[kind])
            return
        if kind in {"delay", HANG}:
            self.faults.count(kind)
            time.sleep(DELAY_SECONDS if kind == "delay" else HANG_SECONDS)
        self.pass_on(kind, body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward  # noqa: N815 - as http.server calls them

    def body(self) -> bytes:
        """The body as it came; chunks of aws-chunked are content, those of HTTP are not."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            data = self.rfile.read(length)
            if len(data) < length:
                raise ConnectionAbortedError("the client went away, and the server must not take this for all")
            return data
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def pass_on(self, kind: str, body: bytes) -> None:
        """Ask the server and give its answer, or some of it."""
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"connection", "expect", "transfer-encoding", "content-length"}:
                    connection.putheader(name, value)
            if body or self.command in {"PUT", "POST"}:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
        if kind == SHORT:
            self.faults.count(kind)
            data = data[: len(data) // 2]
        head = [
            (name, value)
            for name, value in response.getheaders()
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}
        ]
        if self.faults.clock:
            head = [(name, value) for name, value in head if name.lower() != "date"]
            head.append(("Date", formatdate(time.time() - self.faults.clock, usegmt=True)))
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.give(kind, response, [*head, ("Content-Length", length or "0")], data)

    def give(self, kind: str, response: http.client.HTTPResponse, headers: list[tuple[str, str]], data: bytes) -> None:
        if kind in {"cut", "truncated"} and not data:
            kind = "unanswered"
        if kind == "unanswered":
            self.faults.count(kind)
            self.reset()
            return
        self.wfile.write(f"HTTP/1.1 {response.status} {response.reason}\r\n".encode())
        self.wfile.write("".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1") + b"\r\n")
        if kind not in {"cut", "truncated"}:
            self.wfile.write(data)
            return
        self.faults.count(kind)
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if kind == "cut":
            time.sleep(0.01)  # a reset throws away what was not read yet
            self.reset()
        self.close_connection = True

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        """Cut the connection without an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.rfile.close()
        self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Somebody hung up."""

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with contextlib.suppress(OSError):
            super().shutdown_request(request)


@contextlib.contextmanager
def proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """URL of a proxy on this machine before the server at another URL."""
    handler = type("Handler", (_Handler,), {"faults": faults, "upstream": urlsplit(upstream).netloc})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def forget_connections() -> None:
    """Filesystems remember the endpoint and the credentials for which they were made."""
    for kind in (s3fs.S3FileSystem, S3):
        kind.clear_instance_cache()
