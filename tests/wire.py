"""TCP proxies: one whose connections can be cut, frozen and refused, and one that speaks TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PIECE = 4096


class Wire:
    """Passes bytes on to a server, until it does not.

    Parameters
    ----------
    url : str
        Of the server.

    Attributes
    ----------
    budgets : list of int
        After so many bytes of answers the next connections are cut, one number for each.
    only : bytes
        Requests without this are neither counted nor cut.
    broken : bool
        Every connection is closed at once.
    frozen : bool
        Nothing passes, and nobody is told.
    cuts : int
        How many connections were cut after their bytes.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.server = (str(parts.hostname), int(parts.port or 80))
        self.budgets: list[int] = []
        self.only = b""
        self.broken = self.frozen = False
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._live: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset all connections."""
        for end in list(self._live):
            _reset(end)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.broken:
            _reset(client)
            return
        server = socket.create_connection(self.server)
        self._live |= {client, server}
        with contextlib.suppress(OSError):
            first = client.recv(PIECE)
            budget = self.budgets.pop(0) if self.budgets and self.only in first else None
            server.sendall(first)
            threading.Thread(target=self._pass_on, args=(client, server, None), daemon=True).start()
            self._pass_on(server, client, budget)
        for end in (client, server):
            _reset(end)
        self._live -= {client, server}

    def _pass_on(self, source: socket.socket, target: socket.socket, budget: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                while self.frozen:
                    time.sleep(0.05)
                if budget is not None and len(data) >= budget:
                    target.sendall(data[:budget])
                    time.sleep(0.05)  # a reset throws away what was not read yet
                    self.cuts += 1
                    return
                if budget is not None:
                    budget -= len(data)
                target.sendall(data)


def _reset(end: socket.socket) -> None:
    """End a connection without an orderly end."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextlib.contextmanager
def wire(url: str) -> Iterator[Wire]:
    """A proxy before a server, for the time of the block."""
    proxy = Wire(url)
    try:
        yield proxy
    finally:
        proxy.close()


@contextlib.contextmanager
def tls(url: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """A proxy before a server that speaks TLS: its https URL, and the certificate to believe."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    ends: list[Any] = []
    parts, ready = urlsplit(url), threading.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there = await asyncio.open_connection(parts.hostname, parts.port)
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

    async def listen() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda *_: None)  # who does not believe us hangs up
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        ends.extend((server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(stop.set)))
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(listen()), daemon=True)
    thread.start()
    assert ready.wait(30)
    port, stop = ends
    try:
        yield f"https://127.0.0.1:{port}", certificate
    finally:
        stop()
        thread.join(30)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
    writer.close()
