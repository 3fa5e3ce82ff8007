"""How much memory a prediction takes, and what to do where that is too much."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from dtg_ray.config import PredictionConfig
from dtg_ray.stages.prediction.features import COLUMN_BYTES, Features
from dtg_ray.stages.prediction.tiled import memory_in_tiles
from dtg_ray.stages.runtime import gigabytes

MANY = 1000
"""Subjects from which on the arithmetic of one feature set keeps all processors busy."""
GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
IN_TILES = (
    "prediction.tiles: 4096 in study.yaml cuts the Gram matrix into tiles, of which a worker holds a few; with "
    "--scheduler ray all nodes of a cluster work on them"
)
SMALLER = "a smaller number of prediction.tiles takes less memory, and more tasks"


def memory(config: PredictionConfig, features: Features) -> int:
    """Bytes that a worker takes to predict from a feature set: of all of it, or of a tile."""
    n, p = len(features.subjects), features.n_features
    if tile := tile_of(config, n, p):
        return memory_in_tiles(features, tile)
    return memory_in_one_piece(n, p, config.alpha)


def memory_in_one_piece(n: int, n_features: int, alpha: object) -> int:
    """Bytes that predicting from features of n subjects takes.

    Four (n, n) matrices, or one and what is read meanwhile; eight where folds keep their eigenvectors, to choose alpha.
    Where features are few, four times them and the covariances of ten folds.
    """
    read = min(2 * n * n_features, 6 * 2**30) + 2 * min(COLUMN_BYTES, 4 * n * n_features)
    if not uses_gram(n, n_features):
        return 2**28 + read + 8 * n_features * (4 * n + 10 * n_features)
    matrices = 8 if isinstance(alpha, tuple) else 4
    return 2**28 + max(matrices * 8 * n * n, 12 * n * n + read)


def uses_gram(n: int, n_features: int) -> bool:
    """Whether subjects are predicted from their inner products, the features being too many to be kept."""
    return 0 < n <= 2 * n_features + 1


def tile_of(config: PredictionConfig, n: int, n_features: int) -> int | None:
    """People in a tile of a feature set's Gram matrix; None where that is in one piece, or there is none."""
    return min(config.tiles, n) if config.tiles and uses_gram(n, n_features) else None


def cpus(n: int) -> int:
    """Processors that n subjects in one piece keep busy."""
    return len(os.sched_getaffinity(0)) if n >= MANY else 1


def machine_memory() -> int:
    """Bytes of this machine, or of what a container, a control group or SLURM gives of it to this process."""
    limits = [int(psutil.virtual_memory().total)]
    told = [path.read_text().strip() for path in _limits() if path.exists()]
    limits += [int(text) for text in told if text.isdecimal()]
    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    if megabytes.isdecimal() and int(megabytes):  # 0: all of the node
        limits.append(int(megabytes) * 2**20)
    return min(limits)


def _limits() -> list[Path]:
    """Where limits of this process's control group, and of those that it is in, would be."""
    lines = OWN_GROUP.read_text().splitlines() if OWN_GROUP.exists() else []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [GROUPS / folder / "memory.max" for folder in (group, *map(str, Path(group).parents))]


def advice(config: PredictionConfig, needed: int) -> str:
    """What to say of a plan that this machine cannot do; empty when it can."""
    if needed <= (there := machine_memory()):
        return ""
    return f"got {gigabytes(there)} of memory here, {gigabytes(needed)} are needed: {hint(config)}"


def hint(config: PredictionConfig) -> str:
    """What to do where memory does not suffice."""
    return SMALLER if config.tiles else IN_TILES
