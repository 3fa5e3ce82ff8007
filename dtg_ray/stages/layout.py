"""What all arrays of a study share: who the rows are, where the voxels lie, and how they are made."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dtg_ray.errors import StudyError
from dtg_ray.ledger import Account, array_of
from dtg_ray.store.arrays import ArraySpec, check, prepare
from dtg_ray.study import Study


def make_or_check(
    study: Study,
    name: str,
    specs: Mapping[str, ArraySpec],
    places: Mapping[str, tuple[str, np.ndarray]],
    dry: bool,
) -> None:
    """Make a Zarr group of a study, or check the one that is there; a dry one only checks it."""
    if dry:
        check(study.storage, name, specs, places)
    else:
        prepare(study.storage, name, specs, places, space(study))


def refuse_gone(study: Study, account: Account) -> None:
    """Refuse to go on where maps that receipts call done were taken away as a whole: nobody may notice otherwise.

    Raises
    ------
    StudyError
    """
    name, done = array_of(account.stage), account.subjects("done")
    if done and not study.storage.read_many([f"{name}/maps/zarr.json"]):
        raise StudyError(
            f"{study.storage.uri(name)}: not there, or not whole; expected maps of {len(done)} subjects that are done",
            hint=f"put it back; or remove it and receipts/{account.stage}, and the same command makes it again",
        )


def space(study: Study) -> dict[str, object]:
    """Where the voxel axis lies, so that an array can be understood without the rest of the study."""
    return {"affine": study.grid.affine.tolist(), "grid_shape": list(study.grid.shape), "voxel_order": "C, mask only"}


def coordinates(study: Study) -> dict[str, tuple[str, np.ndarray]]:
    """Who the rows belong to and positions of the voxels (mm), shared by all arrays of a study."""
    places = study.grid.coordinates
    return {
        "subject": ("subject", study.row_names),
        **{axis: ("voxel", places[:, number]) for number, axis in enumerate("xyz")},
    }
