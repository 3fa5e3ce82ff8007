"""NIfTI files as streams of volumes: nothing is unpacked to disk and never more than one raw volume is in memory."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from dtg_ray.errors import CorruptFileError, MissingFileError, ShapeError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.sampling import Sampler

MAGIC_SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
MAXIMUM_BYTES = 64 * 2**30
"""A header that promises more than this, unpacked, is not believed."""
SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub calls the class an instance
READ_ERRORS = (EOFError, gzip.BadGzipFile, ISAL_ERROR)
"""What damage inside a file raises; trouble on the way to it, such as a lost connection, is told as what it is."""
HEADER_ERRORS = (HeaderDataError, WrapStructError, KeyError, ValueError, OverflowError)
"""What nibabel raises for headers that end early, or hold impossible codes, quaternions or offsets."""
PIECE = 64 * 2**20
"""Bytes asked for at once: memory is taken for what a file holds, not for what its header promises."""


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says.

    Parameters
    ----------
    shape : tuple of int
        Three or four axes.
    affine : (4, 4) float64
        Voxels to mm.
    dtype : numpy dtype
        As stored, with its byte order.
    slope, intercept : float
        Stored values to real ones.
    offset : int
        Where the data begin, bytes.
    tr : float
        Repetition time in s; 0 where there is none.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    offset: int
    tr: float

    @property
    def n_volumes(self) -> int:
        """Number of volumes; 1 for a 3-D image."""
        return self.shape[3] if len(self.shape) == 4 else 1


class Series:
    """An open NIfTI image (.nii or .nii.gz, local or s3://) whose volumes are read one after the other.

    Use `open_series`.
    """

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self._stream = stream
        self.path = path
        self.header = _read_header(stream, path)

    def volumes(self) -> Iterator[NDArray[Any]]:
        """Raw volumes as stored: flat, (X*Y*Z,) in Fortran order of the box, unscaled, read-only.

        Raises
        ------
        CorruptFileError
            When the file ends before its last volume, or its checksum does not hold.
        """
        header = self.header
        n_bytes = int(np.prod(header.shape[:3])) * header.dtype.itemsize
        for number in range(header.n_volumes):
            try:
                raw = _read_exactly(self._stream, n_bytes)
            except EOFError as error:
                raise self._cut_short(number, str(error)) from error
            except READ_ERRORS as error:
                raise self._damaged(number, error) from error
            if len(raw) < n_bytes:
                raise self._cut_short(number, f"{len(raw)} of {n_bytes} bytes")
            yield np.frombuffer(raw, dtype=header.dtype)
        try:
            self._stream.read(1)  # reads and checks the gzip trailer
        except READ_ERRORS as error:
            raise self._damaged(header.n_volumes - 1, error) from error

    def _damaged(self, number: int, error: Exception) -> CorruptFileError:
        message = f"got a damaged file ({error}), found in volume {number + 1} of {self.header.n_volumes}"
        return CorruptFileError(f"{message}, expected one whose checksum holds", path=self.path)

    def _cut_short(self, number: int, why: str) -> CorruptFileError:
        message = f"got a file that ends in volume {number + 1} ({why}), expected {self.header.n_volumes} volumes"
        return CorruptFileError(message, path=self.path)


@contextlib.contextmanager
def open_series(path: str) -> Iterator[Series]:
    """Open a NIfTI image as a stream.

    Parameters
    ----------
    path : str
        .nii or .nii.gz; a local path or any URI fsspec knows, such as s3://.

    Raises
    ------
    MissingFileError
        When it is not there or may not be read.
    CorruptFileError
        When it is not a NIfTI image.
    ShapeError
        When it has neither three nor four dimensions or its affine is singular.
    """
    try:
        file = fsspec.open(path, "rb").open()
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise MissingFileError(
            f"got no file that can be read ({type(error).__name__}), expected a NIfTI image", path=path
        ) from error
    with contextlib.closing(file):
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield Series(igzip.IGzipFile(fileobj=file, mode="rb") if packed else file, path)


def read_masked(
    series: Series, grid: Grid, *, minimum_coverage: float = 0, interpolation: str = "linear"
) -> tuple[NDArray[np.float32], float]:
    """All volumes of a series on the grid's masked voxels.

    Parameters
    ----------
    series : Series
    grid : Grid
    minimum_coverage : float
        Share of the mask that has to lie inside the image.
    interpolation : "linear" or "nearest"
        Used only where the image's voxels are not those of the grid.

    Returns
    -------
    vectors : (T, V) float32
        Scaled values; 0 outside the field of view.
    coverage : float
        Share of the mask inside the image.

    Raises
    ------
    ShapeError
        When too little of the mask is covered.
    CorruptFileError
        When the file ends too early.
    """
    header = series.header
    sampler = Sampler.affine(header.shape[:3], header.affine, grid, interpolation)
    if sampler.coverage <= max(minimum_coverage, 0) and sampler.coverage < 1:
        raise ShapeError(
            f"got an image of shape {header.shape} that covers {sampler.coverage:.0%} of the mask, "
            f"expected more than {minimum_coverage:.0%}: another space or field of view?",
            path=series.path,
        )
    vectors = np.empty((header.n_volumes, grid.n_voxels), dtype=np.float32)
    for vector, volume in zip(vectors, series.volumes(), strict=True):
        sampler(volume, out=vector)
    if (header.slope, header.intercept) != (1.0, 0.0):
        vectors *= np.float32(header.slope)
        vectors += np.float32(header.intercept)
        vectors[:, ~sampler.inside] = 0
    return vectors, sampler.coverage


def _read_exactly(stream: IO[bytes], n_bytes: int) -> bytes:
    """Up to `n_bytes`, fewer only at the end of the stream."""
    data = stream.read(min(n_bytes, PIECE))
    if len(data) == n_bytes or not data:
        return data
    parts, missing = [data], n_bytes - len(data)
    while missing and (data := stream.read(min(missing, PIECE))):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _skip(stream: IO[bytes], n_bytes: int) -> None:
    """Go on by `n_bytes`, or to the end of the stream."""
    while n_bytes > 0 and (data := stream.read(min(n_bytes, PIECE))):
        n_bytes -= len(data)


def _read_header(stream: IO[bytes], path: str) -> Header:
    """Read the header and leave the stream at the first voxel."""
    try:
        start = _read_exactly(stream, 4)
        kind = next((MAGIC_SIZES[size] for size in _sizes(start) if size in MAGIC_SIZES), None)
        if kind is None:
            raise CorruptFileError(f"got {start!r} as its first bytes, expected a NIfTI header", path=path)
        raw = start + _read_exactly(stream, kind.sizeof_hdr - 4)
        parsed = kind.from_fileobj(io.BytesIO(raw), check=False)
        header = _interpret(parsed, path)
        _skip(stream, header.offset - len(raw))
    except READ_ERRORS as error:
        raise CorruptFileError(
            f"got a file that cannot be unpacked ({error}), expected a NIfTI image", path=path
        ) from error
    except HEADER_ERRORS as error:
        raise CorruptFileError(f"got a NIfTI header that makes no sense: {error}", path=path) from error
    return header


def _sizes(start: bytes) -> tuple[int, int]:
    """The header's size in both byte orders."""
    return int.from_bytes(start, "little"), int.from_bytes(start, "big")


def _interpret(header: Any, path: str) -> Header:
    """Check a parsed header and take from it what is needed."""
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ShapeError(f"got an image of shape {shape}, expected three or four dimensions", path=path)
    dtype = header.get_data_dtype()
    # where a single file says nothing of its offset, the data follow the header and four bytes of flags
    offset = max(int(header.get_data_offset()), header.sizeof_hdr + 4)
    promised = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.kind not in "iuf" or promised > MAXIMUM_BYTES:
        raise CorruptFileError(
            f"got {promised} bytes of {dtype}, expected real numbers and at most {MAXIMUM_BYTES} bytes",
            path=path,
        )
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ShapeError("got a singular affine, expected one that maps voxels to mm", path=path)
    slope, intercept = header.get_slope_inter()
    return Header(
        shape=shape,
        affine=affine,
        dtype=dtype,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        offset=offset,
        tr=_repetition_time(header) if len(shape) == 4 else 0.0,
    )


def _repetition_time(header: Any) -> float:
    """Seconds per volume, 0 where the header does not know."""
    try:
        unit = header.get_xyzt_units()[1]
    except KeyError:
        unit = "unknown"
    return float(header.get_zooms()[3]) * SECONDS_PER_UNIT.get(unit, 1.0)
