"""Maps for the slice viewer of a page: masked voxels in steps of one scale, in axes that run right, forward and up."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtg_ray.imaging.grid import Grid

STEPS = 127
NO_VALUE = -128
SATURATED_PERCENTILE = 99.5
"""Of |value|: where the colours end, as in the pictures of dtg_ray.report.pictures."""
ROTATION = 1e-3
"""Relative size of an affine's off-axis elements above which it counts as rotated."""


@dataclass(frozen=True, eq=False)
class Box:
    """How a grid's box is turned so that its axes run to the right, forward and up (RAS+).

    Parameters
    ----------
    order : (3,) int
        The voxel axis that runs along each axis of the world.
    spacing : (3,) float
        Distance between voxel centres in mm along each axis of the world, negative where the voxel axis runs backwards.
    origin : (3,) float
        Centre of the first voxel of the turned box, mm.
    """

    order: NDArray[np.int64]
    spacing: NDArray[np.float64]
    origin: NDArray[np.float64]

    @classmethod
    def of(cls, grid: Grid) -> Box:
        """The turns that a grid needs.

        Raises
        ------
        ValueError
            When an axis of the grid runs along none of the world's.
        """
        linear = grid.affine[:3, :3]
        along = np.abs(linear).argmax(axis=0)
        across = np.abs(linear)
        across[along, range(3)] = 0
        if sorted(along) != [0, 1, 2] or across.max() > ROTATION * np.abs(linear).max():
            raise ValueError(
                f"got a rotated or sheared affine {linear.tolist()}, "
                "expected voxel axes that run along x, y and z, in any order and direction"
            )
        order = np.argsort(along)
        spacing = linear[range(3), order]
        last = np.array(grid.shape)[order] - 1
        return cls(order, spacing, grid.affine[:3, 3] + np.minimum(spacing, 0) * last)

    def turn(self, volume: NDArray[Any]) -> NDArray[Any]:
        """(X, Y, Z) in the grid's axes -> the same voxels in the world's."""
        backwards = tuple(slice(None, None, -1 if step < 0 else 1) for step in self.spacing)
        return volume.transpose(*self.order)[backwards]


def viewer_data(
    grid: Grid, maps: Mapping[str, NDArray[np.floating]], unit: str, background: NDArray[np.floating] | None
) -> dict[str, Any]:
    """What the template and the script of a viewer need.

    Parameters
    ----------
    grid : Grid
    maps : mapping of str to (V,) float
    unit : str
    background : (V,) float or None

    Returns
    -------
    dict
        `axes` for the template (letter, lowest, highest and step in mm), `names`, `step` (of the values) and `data`
        for the script: `mask` is a bit per voxel of the turned box in C order, first bit highest; `maps` one int8 per
        masked voxel in that order, times `step` the value, -128 where there is none; `background` one uint8.

    Raises
    ------
    ValueError
        When the affine is rotated.
    """
    box = Box.of(grid)
    mask = box.turn(grid.mask)
    spacing = np.abs(box.spacing)
    stacked = np.stack([np.asarray(vector, dtype=np.float32) for vector in maps.values()])
    sizes = np.abs(stacked[np.isfinite(stacked)])
    largest = float(sizes.max(initial=0)) or 1.0
    limit = float(np.percentile(sizes, SATURATED_PERCENTILE)) if sizes.size else 0.0
    step = largest / STEPS
    highest = box.origin + spacing * (np.array(mask.shape) - 1)

    def encoded(vector: NDArray[Any]) -> str:
        return base64.b64encode(box.turn(grid.volume(vector))[mask].tobytes()).decode()

    return {
        "axes": [
            {"letter": letter, "lowest": _mm(low), "highest": _mm(high), "step": _mm(size)}
            for letter, low, high, size in zip("xyz", box.origin, highest, spacing, strict=True)
        ],
        "names": list(maps),
        "step": step,
        "data": {
            "shape": list(mask.shape),
            "origin": [_mm(value) for value in box.origin],
            "spacing": [_mm(value) for value in spacing],
            "unit": unit,
            "step": step,
            "limit": limit or largest,
            "mask": base64.b64encode(np.packbits(mask).tobytes()).decode(),
            "names": list(maps),
            "maps": [encoded(_codes(vector, step)) for vector in stacked],
            "background": None if background is None else encoded(_greys(background)),
        },
    }


def _codes(vector: NDArray[np.float32], step: float) -> NDArray[np.int8]:
    """(V,) values as steps of the scale; what is not finite has no value."""
    rounded = np.rint(np.where(np.isfinite(vector), vector / step, NO_VALUE))
    return np.clip(rounded, NO_VALUE, STEPS).astype(np.int8)


def _greys(background: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(V,) values as shades: black is the 1st percentile, white the 99th."""
    values = np.nan_to_num(np.asarray(background, dtype=np.float32))
    low, high = np.percentile(values, [1, 99])
    return np.asarray(np.clip((values - low) / ((high - low) or 1) * 255, 0, 255), dtype=np.uint8)


def _mm(value: float) -> float:
    """A millionth of a mm is more than a page needs; whole numbers are written as such."""
    rounded = round(float(value), 6)
    return int(rounded) if rounded.is_integer() else rounded
