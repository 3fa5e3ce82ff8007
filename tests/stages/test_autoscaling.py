"""Clusters that grow and shrink: nodes are asked for, used when they come, given back when idle, and may be lost."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml

from dtg_ray import Study
from dtg_ray.errors import StudyError
from dtg_ray.stages.cluster import session
from dtg_ray.stages.crews import Crew, map_units
from dtg_ray.stages.runtime import Options, Resources
from fake_nodes import Watch, autoscaled, raylet_of
from stage_tools import Arrays, Tools, wait_for

pytestmark = pytest.mark.slow


class Connectomes:
    """Fast for the first blocks, slow for the others."""

    def __call__(self, unit: str) -> dict[str, Any]:
        time.sleep(0.3 if int(unit) < 60 else 9)
        return {"unit": unit, "made": True}


class Maps:
    """On a GPU."""

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        time.sleep(1)
        return {**given, "node": ray.get_runtime_context().get_node_id(), "subjects": 1, "failed": 0}


def test_gpu_nodes_come_when_maps_wait_for_them_and_go_while_connectomes_are_still_made() -> None:
    nodes = {"cpu": ({"CPU": 2}, 1), "gpu": ({"CPU": 0, "GPU": 1}, 2)}
    crews = [Crew(Connectomes, (), Resources(1, 0, 10**8)), Crew(Maps, (), Resources(1, 1, 10**8))]
    units = [str(number) for number in range(80)]
    with autoscaled(nodes) as address:
        options = Options(address=address)
        with session(options), Watch("GPU") as watch:
            results = list(map_units(crews, units, options))
    assert sorted(result["unit"] for result in results) == sorted(units)
    assert len({result["node"] for result in results}) == 2
    counts = watch.counts()
    assert counts[0] == 0
    assert 1 in counts[counts.index(2) :], "no idle node was given back while connectomes were still made"


def test_a_node_that_is_taken_back_costs_its_blocks_and_another_one_comes(
    tools: Tools, tmp_path: Path, arrays: Arrays
) -> None:
    root, reference = prepare(tools, tmp_path)
    with autoscaled({"cpu": ({"CPU": 1}, 1)}) as address, session(Options(address=address)), Watch("CPU") as watch:
        driver = tools.start("synthesize", str(root), "--address", address)
        wait_for(root, "receipts/synthesize/linear/block-*.parquet", 3)
        (first,) = watch.seen[-1][1]
        raylet_of(first).kill()
        assert driver.wait(timeout=300) == 0
    assert len({node for _, alive in watch.seen for node in alive}) == 2
    assert arrays(root) == arrays(reference)
    receipts = pd.concat([pd.read_parquet(path) for path in root.glob("receipts/synthesize/linear/block-*.parquet")])
    assert set(receipts["status"]) == {"done"}
    assert len(receipts) == len(Study(str(root)).cohort)
    assert receipts.loc[receipts["attempt"] > 1, "subject"].nunique() <= 2


def prepare(tools: Tools, folder: Path) -> tuple[Path, Path]:
    """A study that owes its maps, in small blocks; and another one that was done in one process."""
    settings = yaml.safe_load(tools.settings.read_text())
    del settings["models"]["unet"]
    settings["cohort"]["block_size"] = 1
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    root, reference = folder / "study", folder / "reference"
    source = ("--bids", str(tools.data), "--rois", str(tools.rois), "--config", str(folder / "settings.yaml"))
    tools.dtg("init", str(root), *source)
    for stage in ("connectomes", "contrasts", "train"):
        tools.dtg(stage, str(root), "--inline")
    shutil.rmtree(root / "receipts/connectomes")
    shutil.copytree(root, reference)
    tools.dtg("synthesize", str(reference), "--inline")
    return root, reference


def test_a_worker_for_whom_no_node_comes_is_an_error_that_says_what_there_is() -> None:
    with autoscaled({"cpu": ({"CPU": 1}, 1)}) as address:
        options = Options(address=address, wait_for_nodes=0.1)
        with session(options), pytest.raises(StudyError, match=r"got nodes of 0 CPU.*; a worker needs 64 CPU"):
            next(map_units([Crew(Connectomes, (), Resources(64))], ["0"], options))
