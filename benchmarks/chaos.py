"""Actors, nodes and drivers of a cluster are killed at random moments; the study ends as if nothing had happened.

Twenty runs with different seeds (`--quick`: three) on a cluster of several nodes on this machine. In each, `dtg run` is
started, something is killed, and the command is run again until it has ended well; then every array, table and
receipt is compared with those of an undisturbed run. The last line says how much was killed, and which runs ended in
other bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml

from dtg_ray.cohort.simulate import simulate
from dtg_ray.store.receipts import VARYING

NETWORK = {"kind": "network", "width": 8, "train": {"epochs": 1, "batch_size": 4, "cpus_per_worker": 1, "readers": 0}}
SETTINGS = {
    "grid": {"resolution": 6},
    "cohort": {"block_size": 4, "validation": 0.1, "test": 0.7},
    "synthesis": {"slab": 3000},
    "models": {"linear": {"kind": "linear"}, "unet": NETWORK},
    "prediction": {"permutations": 20, "folds": 3},
}
KINDS = ("actor", "node", "driver")
COMPARED = (".zarr/", "evaluation/", "prediction/", "models/")
TRIES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    seeds = range(options.seeds or (3 if options.quick else 20))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trained = prepare(folder)
        expected = undisturbed(trained, folder)
        killed: Counter[str] = Counter()
        different = []
        with cluster() as nodes:
            for seed in seeds:
                begin, root = time.perf_counter(), folder / f"study-{seed}"
                shutil.copytree(trained, root)
                events = disturb(root, nodes, seed)
                killed.update(events)
                other = differences(contents(root), expected)
                different += [seed] if other else []
                verdict = f"OTHER BYTES: {', '.join(other[:9])}" if other else "same bytes"
                print(f"seed {seed}: {', '.join(events)}; {verdict}, {time.perf_counter() - begin:.0f} s", flush=True)
                shutil.rmtree(root)
    figures = {f"{kind}s_killed": killed[kind] for kind in KINDS}
    print(json.dumps({"name": "chaos", "runs": len(seeds), "different": different, **figures}))
    sys.exit(bool(different))


def prepare(folder: Path, subjects: int = 48) -> Path:
    """A study whose models are trained, and nothing else: all of the rest is owed."""
    simulate(folder / "data", subjects=subjects, resolution=6, volumes=120, rois=8, contrasts=3, seed=3, missing=0.2)
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS))
    atlas, root = next((folder / "data").glob("tpl-*_probseg.nii.gz")), folder / "trained"
    dtg("init", root, "--bids", folder / "data", "--rois", atlas, "--config", settings)
    for stage in ("connectomes", "contrasts", "train"):
        dtg(stage, root, "--inline", "--quiet")
    for name in ("connectomes.zarr", "contrasts.zarr", "receipts/connectomes", "receipts/contrasts"):
        shutil.rmtree(root / name)
    return root


def undisturbed(trained: Path, folder: Path) -> dict[str, Any]:
    """What the study is in the end when nothing is killed, without Ray."""
    root = folder / "undisturbed"
    shutil.copytree(trained, root)
    dtg("run", root, "--inline", "--quiet")
    return contents(root)


def contents(root: Path) -> dict[str, Any]:
    """All arrays, tables and models to the byte; receipts but for times, hosts and attempts."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith(".partial"))
    found: dict[str, Any] = {}
    for path in files:
        name = path.relative_to(root).as_posix()
        if name.startswith("receipts/"):
            found[name] = pq.read_table(path).drop_columns(list(VARYING)).to_pylist()
        elif any(part in name for part in COMPARED):
            found[name] = path.read_bytes()
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same in two studies."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


@contextlib.contextmanager
def cluster() -> Iterator[Nodes]:
    """Two nodes with a CPU each, beside a head that works for nobody; protected by a token."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    try:
        yield Nodes(started)
    finally:
        started.shutdown()


class Nodes:
    """The nodes that may be killed."""

    def __init__(self, started: Any) -> None:
        self.cluster = started
        self.there = [self._one() for _ in range(2)]

    @property
    def address(self) -> str:
        """Of the cluster."""
        return str(self.cluster.address)

    def _one(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=10**8)

    def kill_node(self, rng: np.random.Generator) -> bool:
        """Kill a raylet, with all of its workers, and let another node come."""
        node = self.there.pop(int(rng.integers(len(self.there))))
        self.cluster.remove_node(node, allow_graceful=False)
        self.there.append(self._one())
        return True

    def kill_actor(self, rng: np.random.Generator) -> bool:
        """Kill one of the processes that work; False when there is none now."""
        working = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "MapWorker" in " ".join(process.cmdline()):
                    working.append(process)
        if not working:
            return False
        working[int(rng.integers(len(working)))].kill()
        return True


def disturb(root: Path, nodes: Nodes, seed: int) -> list[str]:
    """Run a study to its end, killing something from time to time; returns what was killed."""
    rng, events = np.random.default_rng(seed), []
    planned = int(rng.integers(2, 5))
    for _ in range(TRIES):
        driver = start("run", root, "--quiet", "--address", nodes.address)
        try:
            while len(events) < planned and not ended_within(driver, float(rng.uniform(2, 10))):
                kind = str(rng.choice(KINDS))
                if kind == "driver":
                    driver.kill()
                    driver.wait()
                elif not (nodes.kill_node(rng) if kind == "node" else nodes.kill_actor(rng)):
                    continue
                events.append(kind)
            if driver.wait(timeout=300) == 0:
                return events
        finally:
            driver.kill()
            driver.wait()
    raise SystemExit(f"seed {seed}: not at its end after {TRIES} tries; killed: {events}")


def ended_within(driver: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a driver ends by itself before some time has passed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(timeout=seconds)
    return driver.poll() is not None


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Start `dtg` and leave it running."""
    command = [sys.executable, "-m", "dtg_ray.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def dtg(*arguments: object) -> None:
    """Run `dtg` to its end."""
    if code := start(*arguments).wait():
        raise SystemExit(f"dtg {arguments[0]} ended with {code}")


def protect(folder: Path) -> None:
    """What Ray reads once: a token of its own, and a shorter wait before a lost node is missed."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0")
    missed = {"initial_delay_ms": 1000, "period_ms": 500, "timeout_ms": 500, "failure_threshold": 3}
    os.environ.update({f"RAY_health_check_{name}": str(value) for name, value in missed.items()})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        protect(Path(place))
        main()
