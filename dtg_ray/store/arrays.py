"""Zarr arrays written by many workers in whole chunks: made once, in any process, always with the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.errors import ContainsArrayError, ContainsGroupError

from dtg_ray.errors import StudyError
from dtg_ray.store.files import Storage

COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
COORDINATES_PER_CHUNK = 65_536
GROWING = "subject"
"""The axis along which an array that is there may become longer."""
STRINGS = str(np.dtypes.StringDType())


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
    """Make a Zarr group with its arrays and coordinates, or open the one that is there and let it grow.

    Several processes may do this at once: nothing is ever removed, and all of them write the same bytes.

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
        When an array is there that is larger, or has other chunks or another dtype: it is never overwritten in silence.
    """
    group = _open_or_create(storage, name)
    for key, spec in arrays.items():
        _make(group, key, spec, storage.uri(f"{name}/{key}"), fill_value=np.nan, compressors=COMPRESSOR)
    for key, (dimension, values) in coordinates.items():
        spec = ArraySpec(values.shape, (COORDINATES_PER_CHUNK,), (dimension,), str(values.dtype))
        array = _make(group, key, spec, storage.uri(f"{name}/{key}"))
        if not np.array_equal(np.asarray(array[:]), values):
            array[:] = values
    for _, array, axis in along(group):
        length = max(array.shape[axis], group[GROWING].shape[0] if GROWING in group else 0)
        if array.shape[axis] < length:  # not asked for today, but xarray wants one length of an axis
            array.resize((*array.shape[:axis], length, *array.shape[axis + 1 :]))
    # "coordinates" is where CF, and so xarray, looks for them
    wanted = {**attributes, "coordinates": " ".join(coordinates)}
    if dict(group.attrs) != wanted:
        group.attrs.put(wanted)
    return group


def _open_or_create(storage: Storage, name: str) -> zarr.Group:
    try:
        return zarr.open_group(storage.zarr_store(name), mode="a", zarr_format=3)
    except ContainsGroupError:  # another process was faster
        return zarr.open_group(storage.zarr_store(name), mode="r+", zarr_format=3)


def _make(group: zarr.Group, key: str, spec: ArraySpec, uri: str, **how: Any) -> zarr.Array:
    """An array as it should be: made, found there, or grown to its size."""
    if key not in group:
        with contextlib.suppress(ContainsArrayError):  # another process was faster
            return _create(group, key, spec, **how)
    array = group[key]
    _check(array, spec, uri)
    if tuple(array.shape) != spec.shape:
        array.resize(spec.shape)
    return array


def _create(group: zarr.Group, key: str, spec: ArraySpec, **how: Any) -> zarr.Array:
    dtype = np.dtypes.StringDType() if spec.dtype == STRINGS else spec.dtype
    return group.create_array(
        key,
        shape=spec.shape,
        chunks=spec.chunks,
        dtype=dtype,
        dimension_names=spec.dimensions,
        attributes=dict(spec.attributes),
        **how,
    )


def _check(array: zarr.Array, spec: ArraySpec, uri: str) -> None:
    got = (tuple(array.shape), tuple(array.chunks), str(array.dtype))
    growing = [name == GROWING for name in spec.dimensions]
    fits = len(got[0]) == len(spec.shape) and all(
        old == new or (grows and old < new) for old, new, grows in zip(got[0], spec.shape, growing, strict=True)
    )
    if not fits or got[1:] != (spec.chunks, spec.dtype):
        raise StudyError(
            f"{uri}: got an array with shape, chunks, dtype {got}, expected {(spec.shape, spec.chunks, spec.dtype)}",
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


def along(group: zarr.Group, dimension: str = GROWING) -> Iterator[tuple[str, zarr.Array, int]]:
    """Arrays of a group with a certain axis, besides its coordinate: name, array, number of the axis."""
    for key, array in group.arrays():
        dimensions = array.metadata.dimension_names or ()
        if key != dimension and dimension in dimensions:
            yield key, array, dimensions.index(dimension)


def is_empty(array: zarr.Array, axis: int, row: int) -> bool:
    """Whether a row holds nothing but NaN."""
    return bool(np.isnan(np.asarray(array[(*[slice(None)] * axis, row)])).all())


def erase(array: zarr.Array, index: tuple[Any, ...]) -> None:
    """Set a part back to "nothing written" (NaN), so that no result of an earlier attempt survives."""
    array[index] = np.nan
