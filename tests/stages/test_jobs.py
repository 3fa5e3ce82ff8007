"""Stages as jobs on a real Ray cluster that is protected by a token."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtg_ray import Study
from ray_head import RAY, REPOSITORY, answer, ray_head
from stage_tools import Arrays, Tools

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a head's dashboard."""
    with ray_head(tmp_path_factory.mktemp("cluster") / "head.log") as head:
        yield head.dashboard


def submit(address: str, *script: str) -> str:
    """`ray job submit --working-dir . -- python jobs/...`; returns its log."""
    done = subprocess.run(
        [*RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", sys.executable, *script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_whole_run_is_a_job_and_gives_the_same_bytes(
    cluster: str, tools: Tools, finished: Path, tmp_path: Path, arrays: Arrays
) -> None:
    root = tools.init(str(tmp_path / "study"))
    submit(cluster, "jobs/run.py", root, "--keep-connectomes")
    assert (Study(root).status()["pending"] == 0).all()
    assert arrays(Path(root)) == arrays(finished)
    assert "nothing to do" in submit(cluster, "jobs/run.py", root)
    submit(cluster, "jobs/interpret.py", root, "--subjects", "2", "--steps", "2")
    assert (tmp_path / "study/interpretation/unet.parquet").exists()


@pytest.mark.parametrize("script", sorted((REPOSITORY / "jobs").glob("*.py")), ids=lambda script: script.stem)
def test_a_script_is_of_the_stage_that_it_is_named_after(script: Path) -> None:
    said = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"usage: dtg {script.stem.replace('_', '-')} ")


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
