"""What breaks a prediction in tiles: lost nodes, killed workers and drivers, two at once. The same bytes come out."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest

from dtg_ray import Study
from dtg_ray.stages import predict
from dtg_ray.stages.prediction import tiled
from prediction_tools import QUIET, Make, attempts, change, copier, everything
from stage_tools import Tools, wait_for

TILES: dict[str, Any] = {
    "tiles": 5,
    "features": ["synthetic:linear"],
    "targets": {"network_score": {}, "age": {"confounds": ["sex"]}},
}
IN_THE_MIDDLE = "prediction/synthetic-linear/tiles/*/of-*/inverse-*/000[12]/*.tile"


@pytest.fixture
def make(finished: Path, tmp_path: Path) -> Make:
    """A copy of the finished study, not predicted yet, with other settings of `prediction`."""
    return copier(finished, tmp_path)


@pytest.fixture
def expected(make: Make) -> dict[str, bytes]:
    study = make(**TILES)
    predict.run(study, QUIET)
    return everything(study)


def in_the_middle(driver: subprocess.Popen[bytes], study: Study) -> None:
    wait_for(Path(study.uri), IN_THE_MIDDLE)
    assert driver.poll() is None, "it came too late to interrupt anything"


class TestDriver:
    def test_that_was_killed_goes_on_where_it_was(
        self, tools: Tools, make: Make, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = make(**TILES)
        driver = tools.start("predict", study.uri, "--quiet")
        in_the_middle(driver, study)
        driver.kill()
        driver.wait()
        assert not attempts(study)

        def again(*_: object) -> None:
            raise AssertionError("inner products that were there were made again")

        monkeypatch.setattr(tiled, "gram_tile", again)
        predict.run(Study(study.uri), QUIET)
        assert everything(study) == expected
        assert not list(Path(study.uri).rglob("tiles"))

    @pytest.mark.parametrize("tiles", [7, None])
    def test_that_was_killed_leaves_nothing_of_use_to_other_tiles(
        self, tools: Tools, make: Make, tiles: int | None
    ) -> None:
        study, undisturbed = make(**TILES), make(**{**TILES, "tiles": tiles})
        predict.run(undisturbed, QUIET)
        driver = tools.start("predict", study.uri, "--quiet")
        in_the_middle(driver, study)
        driver.kill()
        driver.wait()
        predict.run(change(study, tiles=tiles), QUIET)
        assert everything(study) == everything(undisturbed)
        assert not list(Path(study.uri).rglob("tiles"))

    def test_two_at_once_do_each_other_no_harm(self, tools: Tools, make: Make, expected: dict[str, bytes]) -> None:
        study = make(**TILES)
        both = [tools.start("predict", study.uri, "--quiet") for _ in range(2)]
        assert [process.wait(timeout=240) for process in both] == [0, 0]
        assert everything(study) == expected


def at_work(raylet: psutil.Process, driver: subprocess.Popen[bytes]) -> psutil.Process:
    """A worker of a node that has a task now."""
    while driver.poll() is None:
        for process in raylet.children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::dask"):
                    return process
            except psutil.Error:
                continue
    raise AssertionError("it came too late to kill anybody")


@pytest.mark.slow
@pytest.mark.timeout(400)
class TestCluster:
    """Three nodes on this machine, the first of which does no work."""

    @pytest.fixture
    def cluster(self):
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
        yield cluster
        cluster.shutdown()

    def test_a_node_that_is_lost_costs_its_tiles(
        self, cluster: Any, tools: Tools, make: Make, expected: dict[str, bytes]
    ) -> None:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
        study = make(**TILES)
        driver = tools.start("predict", study.uri, "--quiet", "--scheduler", "ray", "--address", cluster.address)
        try:
            in_the_middle(driver, study)
            cluster.remove_node(nodes[0], allow_graceful=False)
            assert driver.wait(timeout=300) == 0
        finally:
            driver.kill()
        assert everything(study) == expected
        assert set(attempts(study).values()) == {1}

    def test_workers_that_are_killed_cost_their_tiles(
        self, cluster: Any, tools: Tools, make: Make, expected: dict[str, bytes]
    ) -> None:
        node = cluster.add_node(num_cpus=2, object_store_memory=10**8)
        study = make(**TILES)
        driver = tools.start("predict", study.uri, "--quiet", "--scheduler", "ray", "--address", cluster.address)
        try:
            in_the_middle(driver, study)
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for _ in range(3):
                at_work(raylet, driver).kill()
            assert driver.wait(timeout=300) == 0
        finally:
            driver.kill()
        assert everything(study) == expected


@pytest.mark.s3
def test_tiles_may_be_in_a_bucket(s3: Any, make: Make, expected: dict[str, bytes]) -> None:
    study, uri = make(**TILES), f"{s3()}/study"
    fsspec.filesystem("s3").put(study.uri, uri, recursive=True)
    predict.run(Study(uri), QUIET)
    storage = Study(uri).storage
    assert storage.read_many(list(expected)) == expected
    assert not [name for name in storage.names("prediction") if "/tiles/" in name]
