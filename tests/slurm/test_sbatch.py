"""cluster/slurm/dtg.sbatch on a real SLURM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from slurm.controller import Slurm
from stage_tools import SETTINGS, Arrays, Tools, wait_for

pytestmark = pytest.mark.slow
QUIET = ("--quiet", "--keep-connectomes")
NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False)
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""


def ask(address: str, token: Path | None) -> subprocess.CompletedProcess[str]:
    """Ask a job's Ray for its nodes, as somebody who found its address."""
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)} if token else {"RAY_AUTH_MODE": "disabled"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {**known, "RAY_ADDRESS": address, "RAY_gcs_rpc_server_connect_timeout_s": "1"}
    return subprocess.run(
        [sys.executable, "-c", NODES], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def commands() -> str:
    """The command lines of all processes."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def nothing_left(cluster: Slurm, job: str) -> bool:
    deadline = time.monotonic() + 30
    while cluster.left(job) and time.monotonic() < deadline:
        time.sleep(0.3)
    return not cluster.left(job)


def test_two_jobs_on_one_node_know_only_their_own_and_give_the_bytes_of_an_embedded_run(
    cluster: Slurm, tools: Tools, finished: Path, tmp_path: Path, arrays: Arrays
) -> None:
    roots = [tools.init(str(tmp_path / name)) for name in ("one", "two")]
    shares = (
        ["--nodes=1", "--nodelist=n1", "--cpus-per-task=2", "--mem=5000"],
        ["--nodes=2", "--cpus-per-task=1", "--mem=5000", "--gres=gpu:1"],
    )
    jobs = [cluster.submit(share, "run", root, *QUIET) for share, root in zip(shares, roots, strict=True)]
    folders = [cluster.folder / "jobs" / job for job in jobs]
    for folder, count in zip(folders, (1, 2), strict=True):
        wait_for(folder, "*.up", count)
    assert [cluster.field(job, "JobState") for job in jobs] == ["RUNNING", "RUNNING"]

    nodes = []
    for folder in folders:
        token = folder / "token"
        assert (token.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
        local = list((cluster.folder / "tmp").glob(f"dtg-{folder.name}-*"))
        assert {path.stat().st_mode & 0o777 for path in local} == {0o700}
        assert token.read_text() not in commands() + cluster.log(folder.name)
        done = ask((folder / "n1.up").read_text(), token)
        assert done.returncode == 0, done.stderr
        nodes.append(json.loads(done.stdout.splitlines()[-1]))
    assert [[(node["CPU"], node.get("GPU", 0)) for node in job] for job in nodes] == [[(2, 0)], [(1, 1), (1, 1)]]
    assert all(node["memory"] + node["object_store_memory"] < 5000 * 2**20 for job in nodes for node in job)
    assert ask((folders[0] / "n1.up").read_text(), folders[1] / "token").returncode != 0, "the neighbour's token"
    assert ask((folders[0] / "n1.up").read_text(), None).returncode != 0, "no token"

    for job, root in zip(jobs, roots, strict=True):
        cluster.wait(job, "COMPLETED")
        assert cluster.field(job, "ExitCode") == "0:0"
        assert arrays(Path(root)) == arrays(finished)
        assert nothing_left(cluster, job), cluster.left(job)
        assert not (cluster.folder / "jobs" / job).exists()


def test_a_job_that_is_stopped_twice_goes_on_each_time_without_doing_anything_again(
    cluster: Slurm, tools: Tools, finished: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "models": {"linear": {"kind": "linear"}}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    root = tmp_path / "study"
    Tools(tools.data, tools.rois, tmp_path / "settings.yaml").init(str(root))
    job = cluster.submit(["--nodes=2", "--cpus-per-task=1", "--mem=5000"], "run", str(root), *QUIET)

    wait_for(root, "receipts/connectomes/block-*.parquet")
    cluster.call("scancel", "--signal=USR1", "--batch", job)  # what SLURM sends before the time limit
    cluster.wait(job, "PENDING")
    assert "back into the queue" in cluster.log(job)
    assert nothing_left(cluster, job), cluster.left(job)
    before = {path: path.stat().st_mtime_ns for path in (root / "receipts").rglob("block-*.parquet")}

    cluster.wait(job, "RUNNING")
    cluster.wait_for_text(job, "start 2")
    cluster.call("scontrol", "requeue", job)  # as when a node fails: nobody is asked
    cluster.wait_for_text(job, "start 3")
    cluster.wait(job, "COMPLETED")
    assert cluster.field(job, "Restarts") == "2"
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for array in ("connectomes.zarr", "contrasts.zarr", "synthetic/linear.zarr"):
        assert contents(root / array) == contents(finished / array), array


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items()}


def test_the_exit_code_of_the_stage_is_that_of_the_job(cluster: Slurm, tools: Tools, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tools.data, data)
    root = tools.init(str(tmp_path / "study"), data=data)
    next((data / "sub-0001" / "func").glob("*_bold.nii.gz")).unlink()
    share = ["--nodes=1", "--cpus-per-task=1", "--mem=3000"]
    jobs = [cluster.submit(share, "contrasts", root), cluster.submit(share, "connectomes", root)]
    cluster.wait(jobs[0], "COMPLETED")
    cluster.wait(jobs[1], "FAILED")
    assert cluster.field(jobs[1], "ExitCode") == "3:0"
    assert "sub-0001: " in cluster.log(jobs[1])


def test_a_job_that_is_cancelled_leaves_nothing_behind(cluster: Slurm, tools: Tools, tmp_path: Path) -> None:
    root = tools.init(str(tmp_path / "study"))
    job = cluster.submit(["--nodes=2", "--cpus-per-task=1", "--mem=3000"], "connectomes", root)
    folder = cluster.folder / "jobs" / job
    wait_for(folder, "*.up", 2)
    cluster.call("scancel", job)
    cluster.wait(job, "CANCELLED")
    assert nothing_left(cluster, job), cluster.left(job)
    assert not (folder / "token").exists()
