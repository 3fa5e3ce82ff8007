"""Zarr arrays written by many workers in whole chunks: made once, in any process, always with the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ContainsArrayError, ContainsGroupError

from dtg_ray.errors import DamagedError, StudyError
from dtg_ray.store.files import Storage, understood, written

COMPRESSORS = (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec())
"""With a checksum: Blosc unpacks what was cut off or changed into other numbers, and says nothing."""
COORDINATES_PER_CHUNK = 65_536
GROWING = "subject"
"""The axis along which an array that is there may become longer."""
CHANGED = (
    "study.yaml or the cohort was changed after it was made: change that back, which loses nothing, make a new study, "
    "or remove that .zarr folder and the receipts of its stage to have it made again"
)
"""What to do about an array that is there but different."""
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
        When an array is there that is larger, or has other chunks, another dtype or other coordinates: it is never
        overwritten in silence. When it cannot be written.
    DamagedError
        When what is there cannot be understood.
    """
    with written(storage.uri(name)), understood(storage.uri(name)):
        return _prepared(storage, name, arrays, coordinates, attributes)


def check(
    storage: Storage,
    name: str,
    arrays: Mapping[str, ArraySpec],
    coordinates: Mapping[str, tuple[str, NDArray[Any]]],
) -> None:
    """Refuse what `prepare` would refuse, before anything is begun; what is not there yet is in order."""
    with understood(storage.uri(name)):
        try:
            group = zarr.open_group(storage.zarr_store(name, read_only=True), mode="r", zarr_format=3)
        except FileNotFoundError:
            return
        for key in arrays.keys() & set(group):
            _check(group[key], arrays[key], storage.uri(f"{name}/{key}"))
        for key in coordinates.keys() & set(group) - {GROWING}:
            _is_filled(group[key], coordinates[key][1])


def _prepared(
    storage: Storage,
    name: str,
    arrays: Mapping[str, ArraySpec],
    coordinates: Mapping[str, tuple[str, NDArray[Any]]],
    attributes: Mapping[str, Any],
) -> zarr.Group:
    group = _open_or_create(storage, name)
    if GROWING in coordinates:
        _lengthen(group, len(coordinates[GROWING][1]))
    for key, spec in arrays.items():
        _make(group, key, spec, storage.uri(f"{name}/{key}"), fill_value=np.nan, compressors=COMPRESSORS)
    for key, (dimension, values) in coordinates.items():
        spec = ArraySpec(values.shape, (COORDINATES_PER_CHUNK,), (dimension,), str(values.dtype))
        _fill(_make(group, key, spec, storage.uri(f"{name}/{key}")), values, growing=dimension == GROWING)
    # "coordinates" is where CF, and so xarray, looks for them
    wanted = {**attributes, "coordinates": " ".join(coordinates)}
    if dict(group.attrs) != wanted:
        group.attrs.put(wanted)
    return group


def _fill(coordinate: zarr.Array, values: NDArray[Any], *, growing: bool) -> None:
    """Write a coordinate where that was not done yet."""
    if growing:
        if not np.array_equal(read(coordinate, slice(None)), values):
            coordinate[:] = values
    elif not _is_filled(coordinate, values):
        coordinate[:] = values


def _is_filled(coordinate: zarr.Array, values: NDArray[Any]) -> bool:
    """Whether a coordinate was written; what has a meaning gets no other one."""
    there = read(coordinate, slice(None))
    if np.array_equal(there, values):
        return True
    if (there != coordinate.fill_value).any():
        raise StudyError(f"{where(coordinate)}: got {_shown(there)}, expected {_shown(values)}", hint=CHANGED)
    return False


def _shown(values: NDArray[Any]) -> str:
    return ", ".join(map(str, values[:4])) + (" ..." if len(values) > 4 else "")


def _lengthen(group: zarr.Group, length: int) -> None:
    """Let all arrays grow, those that are not asked for today as well: xarray wants one length of an axis.

    The coordinate grows after them, so that who was interrupted does this again.
    """
    if GROWING not in group or group[GROWING].shape[0] >= length:
        return
    for _, array, axis in along(group):
        if array.shape[axis] < length:
            array.resize((*array.shape[:axis], length, *array.shape[axis + 1 :]))


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
            hint=CHANGED,
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
    write(array, (*[slice(None)] * axis, rows), data)


def write(array: zarr.Array, index: Any, data: Any) -> None:
    """Write a part of an array.

    Raises
    ------
    StudyError
        When it cannot be written.
    """
    with written(where(array)):
        array[index] = data


def read(array: zarr.Array, index: Any) -> NDArray[Any]:
    """A part of an array.

    Raises
    ------
    DamagedError
        When a chunk cannot be unpacked.
    """
    try:
        return np.asarray(array[index])
    except (RuntimeError, ValueError) as error:  # as the codecs say it
        raise DamagedError(
            f"{where(array)}: got a chunk that cannot be read ({error}), expected a whole one",
            hint="delete the receipts of its stage for that block: it is made again then",
        ) from error


def where(array: zarr.Array) -> str:
    """Where an array is."""
    return str(array.store_path).removeprefix("file://")


def along(group: zarr.Group, dimension: str = GROWING) -> Iterator[tuple[str, zarr.Array, int]]:
    """Arrays of a group with a certain axis, besides its coordinate: name, array, number of the axis."""
    for key, array in group.arrays():
        dimensions = array.metadata.dimension_names or ()
        if key != dimension and dimension in dimensions:
            yield key, array, dimensions.index(dimension)


def is_empty(array: zarr.Array, axis: int, rows: Collection[int]) -> bool:
    """Whether some rows of an axis hold nothing but NaN."""
    parts = _parts(array, axis, rows)
    return all(np.isnan(np.take(read(array, index), places, axis)).all() for index, places in parts)


def erase(array: zarr.Array, axis: int, rows: Collection[int]) -> None:
    """Set rows of an axis back to "nothing written" (NaN), so that nothing of them survives."""
    for index, places in _parts(array, axis, rows):
        values = read(array, index).copy()
        of_rows = np.moveaxis(values, axis, 0)
        if not np.isnan(of_rows[places]).all():
            of_rows[places] = np.nan
            write(array, index, values)


def _parts(array: zarr.Array, axis: int, rows: Collection[int]) -> Iterator[tuple[tuple[slice, ...], list[int]]]:
    """Whole chunks of an array that have any of some rows, so many at a time as fit in memory, and where these are."""
    chunk = array.chunks[axis]
    for first in sorted({row // chunk * chunk for row in rows}):
        places = [row - first for row in rows if first <= row < first + chunk]
        inside = slice(first, min(first + chunk, array.shape[axis]))
        before = range(0, array.shape[0], array.chunks[0]) if axis else ()
        for start in before:
            yield (slice(start, start + array.chunks[0]), *[slice(None)] * (axis - 1), inside), places
        if not axis:
            yield (inside,), places
