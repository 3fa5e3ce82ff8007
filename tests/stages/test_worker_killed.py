"""Workers of a training that are killed at random moments: it ends as if nothing had happened.

`DTG_KILLS=10 pytest tests/stages/test_worker_killed.py` kills more of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from stage_tools import Arrays, Tools

KILLS = int(os.environ.get("DTG_KILLS", "3"))
pytestmark = pytest.mark.slow


def worker_of(driver: subprocess.Popen[bytes], known: set[int]) -> psutil.Process:
    """The worker that trains for a driver now; fails when the driver ends first."""
    while driver.poll() is None:
        for process in psutil.Process(driver.pid).children(recursive=True):
            try:
                if process.pid not in known and process.cmdline()[:1] == ["ray::RayTrainWorker"]:
                    return process
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError(f"training ended (exit code {driver.returncode}) before {KILLS} workers were killed")


def position(root: Path) -> str:
    """The newest checkpoint."""
    names = sorted(path.name for path in (root / "train" / "unet").glob("*/checkpoint-*.pt"))
    return names[-1] if names else ""


def prepare(tools: Tools, root: Path, **train: int) -> None:
    """A study with a network to train, its connectomes and maps."""
    settings = root.parent / "settings.yaml"
    quick = {"batch_size": 4, "cpus_per_worker": 1, "checkpoint_minutes": 0, **train}
    models = {"unet": {"kind": "network", "width": 4, "train": quick}}
    settings.write_text(yaml.safe_dump({**yaml.safe_load(tools.settings.read_text()), "models": models}))
    source = ("--bids", str(tools.data), "--rois", str(tools.rois), "--config", str(settings))
    tools.dtg("init", str(root), *source)
    for stage in ("connectomes", "contrasts"):
        tools.dtg(stage, str(root), "--inline")


def wait_for_progress(driver: subprocess.Popen[bytes], root: Path) -> None:
    """Wait for another checkpoint: where there is none in between, training gives up in the end."""
    before = position(root)
    while position(root) == before:
        assert driver.poll() is None, f"training ended (exit code {driver.returncode}) before it was disturbed"
        time.sleep(0.01)


@pytest.mark.timeout(300 + 60 * KILLS)
def test_workers_killed_at_random_moments_cost_a_checkpoint_at_most(
    tools: Tools, tmp_path: Path, arrays: Arrays
) -> None:
    root, whole = tmp_path / "study", tmp_path / "whole"
    prepare(tools, root, epochs=40 * KILLS)
    shutil.copytree(root, whole)
    rng = np.random.default_rng()
    driver = tools.start("train", str(root), "--quiet")
    try:
        killed: set[int] = set()
        for _ in range(KILLS):
            worker = worker_of(driver, killed)
            wait_for_progress(driver, root)
            time.sleep(float(rng.uniform(0, 1.5)))
            worker.kill()
            killed.add(worker.pid)
        assert driver.wait(timeout=280) == 0
    finally:
        driver.kill()
    assert len(killed) == KILLS
    tools.dtg("train", str(whole), "--inline", "--quiet")
    assert arrays(root) == arrays(whole)


@pytest.mark.timeout(500)
def test_a_node_that_is_lost_is_replaced_by_another(tools: Tools, tmp_path: Path, arrays: Arrays) -> None:
    from ray.cluster_utils import Cluster

    root, whole = tmp_path / "study", tmp_path / "whole"
    prepare(tools, root, epochs=120, workers=2)
    shutil.copytree(root, whole)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    driver = None
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
        driver = tools.start("train", str(root), "--quiet", "--address", cluster.address)
        wait_for_progress(driver, root)
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=10**8)
        wait_for_progress(driver, root)
        assert driver.wait(timeout=300) == 0
    finally:
        if driver is not None:
            driver.kill()
        cluster.shutdown()
    tools.process("train", str(whole), "--quiet")
    assert arrays(root) == arrays(whole)
