"""What every network is compared with: the group mean, the linear model of Tavor et al. (2016), a second visit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import ModelError
from dtg_ray.float16 import as_float16
from dtg_ray.imaging.grid import Grid

Float = NDArray[np.floating]
Stored = Literal["float32", "float16"]
"""Types in which maps are wanted."""


class RunningMean:
    """Mean over subjects that leaves NaN out, one subject at a time, in float64.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array of one subject.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._total = np.zeros(shape)
        self._count = np.zeros(shape, dtype=np.int32)

    def add(self, values: Float) -> None:
        """Take in the array of one subject.

        Raises
        ------
        ValueError
            When its shape is another one.
        """
        if values.shape != self._total.shape:
            raise ValueError(f"got an array of shape {values.shape}, expected {self._total.shape}")
        valid = ~np.isnan(values)
        np.add(self._total, values, out=self._total, where=valid)
        self._count += valid

    def mean(self) -> NDArray[np.float64]:
        """Mean over the subjects so far; NaN where none had a value."""
        return np.divide(self._total, self._count, out=np.full(self._total.shape, np.nan), where=self._count > 0)


@dataclass(frozen=True, eq=False)
class GroupMean:
    """Predicts the mean map of the training subjects for everybody.

    Parameters
    ----------
    maps : (C, V) float32
        Mean map of each contrast.
    contrasts : tuple of str
        Names of the contrasts.
    grid : Grid
    n_rois : int
        K of the connectomes it is given, which it does not look at.
    """

    maps: NDArray[np.float32]
    contrasts: tuple[str, ...]
    grid: Grid
    n_rois: int
    kind: ClassVar[str] = "group_mean"

    def __post_init__(self) -> None:
        """Check the shape."""
        expected = (len(self.contrasts), self.grid.n_voxels)
        if self.maps.shape != expected:
            raise ModelError(f"got mean maps of shape {self.maps.shape}, expected {expected}")

    def predict(self, connectome: Float, dtype: Stored = "float32") -> NDArray[Any]:
        """Connectomes (N, K, V) -> maps (N, C, V), the same for everybody.

        Raises
        ------
        ValueError
            When the shape does not fit.
        """
        check_connectome(connectome, self.n_rois, self.grid)
        return np.repeat(as_stored(self.maps[None], dtype), len(connectome), axis=0)

    def select(self, contrasts: Sequence[str]) -> GroupMean:
        """The model of these contrasts alone, in this order; ModelError for one it does not have."""
        rows = rows_of(contrasts, self.contrasts)
        return replace(self, maps=self.maps[rows], contrasts=tuple(contrasts))


@dataclass(frozen=True, eq=False)
class Retest:
    """The maps of people's second visits as predictions of the first: what measuring again comes to.

    Parameters
    ----------
    contrasts : tuple of str
        Names of the contrasts.
    grid : Grid
    n_rois : int
        K of the study's connectomes.
    """

    contrasts: tuple[str, ...]
    grid: Grid
    n_rois: int
    kind: ClassVar[str] = "retest"

    def predict(self, connectome: Float, dtype: Stored = "float32") -> NDArray[Any]:  # noqa: ARG002 - as all models
        """Nothing: the maps were measured.

        Raises
        ------
        ModelError
            Always.
        """
        raise ModelError(
            f"got connectomes {connectome.shape}, expected none: the maps of a second visit are read, not predicted",
            hint="`dtg synthesize` reads them into synthetic/",
        )

    def select(self, contrasts: Sequence[str]) -> Retest:
        """The model of these contrasts alone, in this order; ModelError for one it does not have."""
        rows_of(contrasts, self.contrasts)
        return replace(self, contrasts=tuple(contrasts))


@dataclass(frozen=True, eq=False)
class Linear:
    """Within a parcel, maps are linear in connectivity (Tavor et al. 2016, doi 10.1126/science.aad8127).

    Parameters
    ----------
    coefficients : (C, P, K + 1) float64
        Per contrast and parcel the constant, then the weights of the z-scored connectivity: the mean over
        subjects of `fit_linear_subject`.
    parcels : (V,) int
        Parcel of each voxel, 0 .. P - 1; negative: none, predicted as 0.
    contrasts : tuple of str
        Names of the contrasts.
    grid : Grid
    """

    coefficients: NDArray[np.float64]
    parcels: NDArray[np.int64]
    contrasts: tuple[str, ...]
    grid: Grid
    kind: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        """Check the shapes."""
        shape, names, voxels = self.coefficients.shape, len(self.contrasts), self.grid.n_voxels
        if len(shape) != 3 or shape[0] != names or self.parcels.shape != (voxels,):
            raise ModelError(
                f"got coefficients of shape {shape} and parcels of shape {self.parcels.shape}, "
                f"expected ({names}, P, K + 1) and ({voxels},)"
            )
        if self.parcels.max() >= shape[1]:
            raise ModelError(f"got a parcel {self.parcels.max()}, expected parcels below {shape[1]}")

    @property
    def n_rois(self) -> int:
        """K of the connectomes it is given."""
        return self.coefficients.shape[2] - 1

    def predict(self, connectome: Float, dtype: Stored = "float32") -> NDArray[Any]:
        """Connectomes (N, K, V) -> maps (N, C, V).

        Raises
        ------
        ValueError
            When the shape does not fit.
        """
        check_connectome(connectome, self.n_rois, self.grid)
        maps = np.zeros((len(connectome), len(self.contrasts), self.grid.n_voxels), dtype=dtype)
        for parcel, voxels in _members(self.parcels):
            for subject, rest in enumerate(connectome):
                values = self.coefficients[:, parcel] @ _design(rest[:, voxels])  # (C, n)
                maps[subject][:, voxels] = as_stored(values, dtype)
        return maps

    def select(self, contrasts: Sequence[str]) -> Linear:
        """The model of these contrasts alone, in this order; ModelError for one it does not have."""
        rows = rows_of(contrasts, self.contrasts)
        return replace(self, coefficients=self.coefficients[rows], contrasts=tuple(contrasts))


def fit_linear_subject(connectome: Float, maps: Float, parcels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Fit the linear model to one subject: least squares in every parcel, over its voxels.

    The features are a constant and the connectivity, z-scored over the voxels of the parcel (population
    standard deviation). A feature that does not vary in the parcel gets the coefficient 0; where there are
    fewer voxels than features, the solution is the shortest one.

    Parameters
    ----------
    connectome : (K, V) float
        Connectivity of each voxel with each ROI.
    maps : (C, V) float
        Contrast maps; NaN: not acquired.
    parcels : (V,) int
        Parcel of each voxel, from 0; negative: none.

    Returns
    -------
    (C, P, K + 1) float64
        The constant, then the K weights; P is one more than the highest parcel. NaN where the map is NaN
        anywhere in the parcel; 0 for a parcel without voxels.

    Raises
    ------
    ValueError
        When the voxels do not agree.
    """
    if connectome.ndim != 2 or maps.ndim != 2 or not connectome.shape[1] == maps.shape[1] == parcels.size:
        raise ValueError(
            f"got a connectome of shape {connectome.shape}, maps of shape {maps.shape} and parcels of shape "
            f"{parcels.shape}, expected (K, V), (C, V) and (V,)"
        )
    coefficients = np.zeros((len(maps), int(parcels.max()) + 1, len(connectome) + 1))
    for parcel, voxels in _members(parcels):
        targets = maps[:, voxels].astype(np.float64)  # (C, n)
        # one NaN on the right-hand side would spoil the solutions of all contrasts
        acquired = ~np.isnan(targets).any(axis=1)
        design = _design(connectome[:, voxels])  # (K + 1, n)
        coefficients[acquired, parcel] = np.linalg.lstsq(design.T, targets[acquired].T)[0].T
        coefficients[~acquired, parcel] = np.nan
    return coefficients


def parcels_from_rois(rois: Float) -> NDArray[np.int64]:
    """Hard parcels from soft ROI maps: per voxel the ROI with the highest value, the first of equals.

    Parameters
    ----------
    rois : (K, V) float

    Returns
    -------
    (V,) int64
        0 .. K - 1.
    """
    return np.argmax(rois, axis=0).astype(np.int64)


def check_connectome(connectome: NDArray[Any], n_rois: int, grid: Grid) -> None:
    """Check the shape of what a model is given.

    Raises
    ------
    ValueError
        When it is not (N, K, V).
    """
    if connectome.ndim != 3 or connectome.shape[1:] != (n_rois, grid.n_voxels):
        raise ValueError(
            f"got connectomes of shape {connectome.shape}, expected (N, {n_rois}, {grid.n_voxels}): "
            "subjects, ROIs, voxels"
        )


def rows_of(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """Where the contrasts that are wanted stand among those a model has.

    Raises
    ------
    ModelError
        When it does not have one, or none is wanted.
    """
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ModelError(f"got the contrasts {unknown or list(wanted)}, expected some of {', '.join(known)}")
    return [list(known).index(name) for name in wanted]


def as_stored(values: Float, dtype: Stored) -> NDArray[Any]:
    """Values as float32 or float16; beyond float16, its largest or smallest."""
    return as_float16(values) if dtype == "float16" else values.astype(dtype)


def _members(parcels: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Parcels that have voxels, each with its voxels."""
    for parcel in np.unique(parcels[parcels >= 0]):
        yield int(parcel), np.flatnonzero(parcels == parcel)


def _design(connectome: Float) -> NDArray[np.float64]:
    """Features of a parcel: (K, n) connectivity -> (K + 1, n), ones, then z-scores (0 where constant)."""
    features = connectome.astype(np.float64)
    mean = features.mean(axis=1, keepdims=True)
    deviation = features.std(axis=1, keepdims=True)
    # differences in the last bit of float32 are no signal
    flat = deviation <= 1e-7 * np.abs(mean)
    scores = np.where(flat, 0, features - mean) / np.where(flat, 1, deviation)
    return np.concatenate([np.ones((1, features.shape[1])), scores])
