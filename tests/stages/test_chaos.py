"""A cluster that falls apart and grows while a study runs on it; all twenty runs are in benchmarks/chaos.py."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import chaos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    chaos.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    return chaos.undisturbed(place / "trained", place)


@pytest.fixture(scope="module")
def nodes() -> Iterator[chaos.Nodes]:
    with chaos.cluster() as started:
        yield started


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_it_ends_in_the_same_bytes(
    place: Path, expected: dict[str, Any], nodes: chaos.Nodes, tmp_path: Path, seed: int
) -> None:
    shutil.copytree(place / "trained", tmp_path / "study")
    events = chaos.disturb(tmp_path / "study", nodes, seed)
    assert events, "the run ended before anything was killed"
    assert chaos.differences(chaos.contents(tmp_path / "study"), expected) == []


def working_on(node: Any) -> list[str]:
    """Processes of actors on a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [" ".join(process.cmdline()) for process in raylet.children() if "MapWorker" in " ".join(process.cmdline())]


def test_a_node_that_comes_later_is_used(
    place: Path, expected: dict[str, Any], nodes: chaos.Nodes, tmp_path: Path
) -> None:
    shutil.copytree(place / "trained", tmp_path / "study")
    for node in nodes.there[1:]:
        nodes.cluster.remove_node(node)
    driver = chaos.start("run", tmp_path / "study", "--quiet", "--address", nodes.address)
    try:
        while not working_on(nodes.there[0]):
            assert driver.poll() is None
            time.sleep(0.1)
        newcomer = nodes.cluster.add_node(num_cpus=1, object_store_memory=10**8)
        while not working_on(newcomer):
            assert driver.poll() is None, "the run ended without it"
            time.sleep(0.1)
        assert driver.wait(timeout=300) == 0
    finally:
        driver.kill()
    assert chaos.differences(chaos.contents(tmp_path / "study"), expected) == []
