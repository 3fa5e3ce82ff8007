"""Zarr arrays written by many workers in whole chunks: made once, in any process, always with the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from dtg_ray.errors import StudyError
from dtg_ray.store.files import Storage

COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")


@dataclass(frozen=True)
class ArraySpec:
    """One array of a Zarr group, before it exists.

    Parameters
    ----------
    shape, chunks : tuple of int
    dimensions : tuple of str
        Names of the axes, for xarray.
    dtype : str
    attributes : mapping
        Anything JSON can hold.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dimensions: tuple[str, ...]
    dtype: str = "float16"
    attributes: Mapping[str, Any] = field(default_factory=dict)


def prepare(
    storage: Storage,
    name: str,
    arrays: Mapping[str, ArraySpec],
    coordinates: Mapping[str, tuple[str, NDArray[Any]]],
    attributes: Mapping[str, Any],
) -> zarr.Group:
    """Make a Zarr group with its arrays and coordinates, or open the one that is there.

    Parameters
    ----------
    storage : Storage
    name : str
        Path of the group below the root.
    arrays : mapping of name to ArraySpec
        Filled with NaN where nothing has been written.
    coordinates : mapping of name to (dimension, values)
        One-dimensional.
    attributes : mapping
        Of the group; anything JSON can hold.

    Raises
    ------
    StudyError
        When an array is there with another shape, chunking or dtype: it is never overwritten in silence.
    """
    group = zarr.open_group(storage.zarr_store(name), mode="a", zarr_format=3)
    for key, spec in arrays.items():
        if key in group:
            _check(group[key], spec, storage.uri(f"{name}/{key}"))
        else:
            _create(group, key, spec)
    for key, (dimension, values) in coordinates.items():
        if key not in group or not np.array_equal(np.asarray(group[key][:]), values):
            group.create_array(key, data=values, dimension_names=(dimension,), overwrite=True)
    # "coordinates" is where CF, and so xarray, looks for them
    wanted = {**attributes, "coordinates": " ".join(coordinates)}
    if dict(group.attrs) != wanted:
        group.attrs.put(wanted)
    return group


def _create(group: zarr.Group, key: str, spec: ArraySpec) -> None:
    group.create_array(
        key,
        shape=spec.shape,
        chunks=spec.chunks,
        dtype=spec.dtype,
        fill_value=np.nan,
        compressors=COMPRESSOR,
        dimension_names=spec.dimensions,
        attributes=dict(spec.attributes),
    )


def _check(array: zarr.Array, spec: ArraySpec, uri: str) -> None:
    got = (tuple(array.shape), tuple(array.chunks), str(array.dtype))
    expected = (spec.shape, spec.chunks, spec.dtype)
    if got != expected:
        raise StudyError(
            f"{uri}: got an array with shape, chunks, dtype {got}, expected {expected}",
            hint="the configuration or cohort was changed after it was made; use a new study, or remove that folder",
        )


def write_rows(array: zarr.Array, axis: int, rows: slice, data: NDArray[Any]) -> None:
    """Write the rows of one block: `data` covers `rows` of `axis` and all of the other axes.

    Raises
    ------
    StudyError
        When the rows do not begin and end with chunks: two writers could then undo each other's work.
    """
    chunk, size = array.chunks[axis], array.shape[axis]
    if rows.start % chunk or (rows.stop % chunk and rows.stop != size):
        raise StudyError(f"got rows {rows.start}:{rows.stop} of {array.name}, expected whole chunks of {chunk}")
    array[(*[slice(None)] * axis, rows)] = data


def erase(array: zarr.Array, index: tuple[Any, ...]) -> None:
    """Set a part back to "nothing written" (NaN), so that no result of an earlier attempt survives."""
    array[index] = np.nan
