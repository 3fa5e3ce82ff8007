"""What many tests share: a real S3 server, and one root for each kind of storage."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import fsspec
import pytest

from browser import browser, open_page, screenshots  # noqa: F401 (fixtures)
from dtg_ray.store.files import Storage
from s3_faults import Faults, forget_connections, proxy

AWS_IS_FAR_AWAY = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
SECONDS_TO_START = 60


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """Call it to get the s3:// URI of a new, empty bucket on a server process of this session."""
    port = _free_port()
    with (
        _environment({**AWS_IS_FAR_AWAY, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}),
        _server(port, tmp_path_factory.mktemp("s3") / "log"),
    ):
        yield _new_bucket


@pytest.fixture
def faults(s3, monkeypatch):
    """What goes wrong on the way to the S3 server from now on; nothing, until the test says so."""
    chosen = Faults()
    with proxy(os.environ["AWS_ENDPOINT_URL"], chosen) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_connections()
        yield chosen
        forget_connections()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def root(request, tmp_path):
    """An empty place of each kind."""
    return str(tmp_path / "root") if request.param == "local" else f"{request.getfixturevalue('s3')()}/root"


@pytest.fixture
def storage(root):
    """Storage of each kind."""
    return Storage(root)


def _new_bucket():
    bucket = f"test-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _environment(variables):
    """Variables for the time of the session."""
    profiles = {name: os.environ.pop(name) for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN") if name in os.environ}
    before = {name: os.environ.get(name) for name in variables} | profiles
    os.environ.update(variables)
    forget_connections()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        forget_connections()


@contextlib.contextmanager
def _server(port, log):
    # it is not what is tested: no coverage in that process
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(process, port, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process, port, log):
    """Until the server answers."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/moto-api/")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not answer within {SECONDS_TO_START} s: {log.read_text()[-2000:]}")


def pytest_configure(config: pytest.Config) -> None:
    """Protect every Ray of the tests by a token of their own; Ray reads this once, when a test module imports it."""
    folder = tempfile.mkdtemp(prefix="dtg_ray_tests_")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    token = Path(folder) / "token"
    token.touch(mode=0o600)
    token.write_text("t" * 32)
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",  # other tests share the cores
        RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",  # nobody needs what a head still has to do when a test is over
    )
