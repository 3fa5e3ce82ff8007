"""Every stage as a job on a real Ray cluster that is protected by a token."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtg_ray import Study
from stage_tools import Arrays, Tools

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the dashboard of `ray start --head`, with token authentication.

    It has a folder of its own, by which Ray's jobs find their cluster: in that of all they may find a neighbour's.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))  # sockets want short paths
    port, dashboard = free_port(), free_port()
    command = [
        *(sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"),
        *(
            "start",
            "--head",
            "--block",
            f"--temp-dir={folder}",
            f"--port={port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
        ),
        *(f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"),
        *("--num-cpus=2", "--object-store-memory=300000000", "--disable-usage-stats"),
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    log = (tmp_path_factory.mktemp("cluster") / "head.log").open("wb")
    head = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_until_up(address, head, Path(log.name))
        yield address
    finally:
        head.terminate()
        try:
            head.wait(timeout=40)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def answer(address: str, token: str | None) -> int:
    """HTTP status of the jobs API."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)
        return int(urllib.request.urlopen(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_until_up(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    deadline = time.monotonic() + 90
    while answer(address, token) != 200:
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)


def submit(address: str, *script: str) -> str:
    """`ray job submit --working-dir . -- python jobs/...`; returns its log."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"),
            *("job", "submit", "--address", address, "--working-dir", ".", "--", sys.executable, *script),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_stage_runs_as_a_job_and_gives_the_same_bytes(
    cluster: str, tools: Tools, finished: Path, tmp_path: Path, arrays: Arrays
) -> None:
    root = tools.init(str(tmp_path / "study"))
    for stage in ("connectomes", "contrasts", "train", "synthesize", "evaluate", "predict", "report"):
        submit(cluster, f"jobs/{stage}.py", root)
    assert (Study(root).status()["pending"] == 0).all()
    assert arrays(Path(root)) == arrays(finished)
    assert "nothing to do" in submit(cluster, "jobs/run.py", root)
    submit(cluster, "jobs/interpret.py", root, "--subjects", "2", "--steps", "2")
    assert (tmp_path / "study/interpretation/unet.parquet").exists()


def test_without_the_token_nobody_gets_in(cluster: str) -> None:
    assert answer(cluster, None) == 401
    assert answer(cluster, "wrong") in {401, 403}


def test_a_failed_subject_shows_as_the_exit_code_of_the_job(cluster: str, tools: Tools, tmp_path: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    data = tmp_path / "data"
    shutil.copytree(tools.data, data)
    root = tools.init(str(tmp_path / "study"), data=data)
    next((data / "sub-0001" / "func").glob("*_bold.nii.gz")).unlink()
    client = JobSubmissionClient(cluster)
    job = client.submit_job(
        entrypoint=f"{sys.executable} jobs/connectomes.py {root}", runtime_env={"working_dir": str(REPOSITORY)}
    )
    deadline = time.monotonic() + 300
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert client.get_job_info(job).driver_exit_code == 3
    assert "sub-0001: " in client.get_job_logs(job)
