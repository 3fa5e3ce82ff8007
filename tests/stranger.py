"""Somebody without a token on a machine of the network: knocks at ports and tells, as JSON, what each of them is.

python stranger.py HOST PORT ...
"""

from __future__ import annotations

import http.client
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator

import grpc

PATHS = ("/", "/api/jobs/", "/api/version", "/api/cluster_status", "/nodes?view=summary", "/logs", "/api/v0/logs/file")
OBJECTS = [f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")]
"""Methods of the one service whose description is not part of Ray's Python package."""
SECONDS = 10


def methods() -> Iterator[tuple[str, bool, bool]]:
    """Every method of every service of Ray: its path, and whether requests and answers are streams."""
    import ray.core.generated as described

    for module in pkgutil.walk_packages(described.__path__, "ray.core.generated."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    yield f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming
    yield from ((path, False, False) for path in OBJECTS)


def call(channel: grpc.Channel, path: str, asks: bool, tells: bool) -> str:
    """What comes of calling a method with nothing: a status of gRPC."""
    try:
        if asks:
            next(iter(channel.stream_stream(path)(iter([b""]), timeout=SECONDS)), None)
        elif tells:
            next(iter(channel.unary_stream(path)(b"", timeout=SECONDS)), None)
        else:
            channel.unary_unary(path)(b"", timeout=SECONDS)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def of_grpc(host: str, port: int) -> dict[str, list[str]] | None:
    """Methods by the status they answer with, but for those that the port has not; None where it speaks no gRPC."""
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=3)
        except grpc.FutureTimeoutError:
            return None
        answers: dict[str, list[str]] = {}
        for path, asks, tells in methods():
            answers.setdefault(call(channel, path, asks, tells), []).append(path)
    answers.pop("UNIMPLEMENTED", None)
    return answers


def of_http(host: str, port: int) -> dict[str, tuple[int, str]] | None:
    """Status and beginning of the answer by path; None where it speaks no HTTP."""
    answers = {}
    for path in PATHS:
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answers[path] = (answer.status, answer.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
    return answers


if __name__ == "__main__":
    host, *ports = sys.argv[1:]
    print(json.dumps({port: {"grpc": of_grpc(host, int(port)), "http": of_http(host, int(port))} for port in ports}))
