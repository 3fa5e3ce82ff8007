"""How long the work of a plan takes and how many requests it makes: by the receipts there are, or by benchmarks."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dtg_ray.imaging.streams import archive_of
from dtg_ray.ledger import Account
from dtg_ray.models import forward_operations
from dtg_ray.store.files import is_remote

SECONDS_PER_VOXEL_AND_VOLUME = 2.1 / (235_375 * 490)
"""Of a connectome, from a .nii.gz in MNI space: benchmarks/connectome.py."""
SECONDS_PER_MAP_VOXEL = 0.1 / 235_375
"""Of a measured map, from a .nii.gz."""
OPERATIONS_PER_SECOND = {"bfloat16": 0.23e12, "float32": 0.095e12}
"""Of a network on one core: benchmarks/synthesis.py."""
BASELINE_SECONDS_PER_VALUE = 1e-9
"""Of a model that is no network, per value of its maps and ROI."""
BYTES_PER_REQUEST = 32 * 2**20
"""Of an image, as it is read from an object store."""
PER_BLOCK = 5
"""Requests of a block besides its chunks: its receipt is looked at twice, taken back and written, a chunk read back."""


def measured(account: Account) -> tuple[float, int]:
    """Mean seconds per subject of a stage by its receipts, and of how many subjects."""
    done = account.rows.loc[account.rows["status"] == "done", "seconds"]
    return (float(done.mean()), len(done)) if len(done) else (0.0, 0)


def network_seconds(network: dict[str, Any], shape: tuple[int, ...], precision: str) -> float:
    """Seconds that a network takes for one window on one core."""
    return forward_operations(network, shape) / OPERATIONS_PER_SECOND[precision]


def image_requests(rows: pd.DataFrame) -> int:
    """Requests for reading the rest runs of some of the cohort; none for local files."""
    count = 0
    for runs, size in zip(rows["rest"], rows["rest_bytes"], strict=True):
        remote = sum(is_remote(archive_of(run.image)) for run in runs)
        count += 2 * remote + (max(int(size), 0) // BYTES_PER_REQUEST if remote else 0)
    return count


def requests(uri: str, objects: int, blocks: int) -> int:
    """Requests to a study for writing objects, in some blocks; none to a local one."""
    return objects + PER_BLOCK * blocks if is_remote(uri) else 0


def chunk_count(n_maps: int, n_voxels: int, slab: int) -> int:
    """Chunks of the maps of one block."""
    return n_maps * -(-n_voxels // slab)
