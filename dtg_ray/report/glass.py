"""Glass brains, and the MNI152 template behind slices, by nilearn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtg_ray.imaging.grid import Grid
from dtg_ray.report.style import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SATURATED_PERCENTILE = 99.5
THRESHOLD = 0.25
"""Of the limit of the colours: values below it are not drawn."""


def brains(maps: Mapping[str, NDArray[np.floating]], grid: Grid, unit: str = "z") -> Drawing:
    """Glass brains, one below the other, on one colour scale, from the left, front, right and above.

    Parameters
    ----------
    maps : mapping of str to (V,) float
        By title.
    grid : Grid
        In MNI152 space.
    unit : str
        Beside the colours.
    """
    import matplotlib as mpl
    from nilearn import plotting

    limit = float(np.percentile(np.abs(np.concatenate(list(maps.values()))), SATURATED_PERCENTILE))
    with canvas(8, 2.1 * len(maps), layout="none") as drawing:
        for row, (title, vector) in enumerate(maps.items()):
            height = 1 / len(maps)
            drawing.text(0.01, 1 - (row + 0.02) * height, title, fontweight="bold", va="top")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of nilearn about what it does by itself
                plotting.plot_glass_brain(
                    grid.image(vector.astype(np.float32)),
                    display_mode="lyrz",
                    figure=drawing,
                    axes=(0.0, 1 - (row + 1) * height, 0.9, 0.86 * height),
                    vmax=limit,
                    threshold=THRESHOLD * limit,
                    plot_abs=False,
                    symmetric_cbar=True,
                    cmap="RdBu_r",
                    colorbar=False,
                )
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(-limit, limit), "RdBu_r")
        drawing.colorbar(scale, cax=drawing.add_axes((0.905, 0.2, 0.012, 0.6)), label=unit)
    return drawing


def template(grid: Grid) -> NDArray[np.float32]:
    """The MNI152 template at the voxels of a grid, (V,)."""
    from nilearn.datasets import load_mni152_template
    from nilearn.image import resample_img

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = resample_img(
            load_mni152_template(resolution=2),
            grid.affine,
            grid.shape,
            interpolation="continuous",
            copy_header=True,
            force_resample=True,
        )
    return grid.vectorize(np.asarray(image.dataobj, dtype=np.float32))
