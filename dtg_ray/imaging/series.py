"""NIfTI files as streams of volumes: nothing is unpacked to disk and never more than one raw volume is in memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, SpatialImage
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from dtg_ray.errors import CorruptFileError, GeometryError, ShapeError, TooLargeError, ValueRangeError
from dtg_ray.imaging.sampling import Sampler
from dtg_ray.imaging.streams import DAMAGE, Stream, open_stream, read_all

Memory = Callable[[int, int], NDArray[np.float32]]
MAGIC_SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
SINGLE_FILE = (b"n+1", b"n+2")
MAXIMUM_BYTES = 64 * 2**30
"""A header that promises more than this, unpacked, is not believed."""
LARGEST_IMAGE = 2 * 2**30
"""Bytes of an image that is read whole, unpacked; a warp of the 1 mm MNI box has 87 MB."""
HEADER_BLOCK = 2**18
"""Bytes per request to an object store where only a header is wanted."""
MAXIMUM_VOLUME = 2**29
"""Bytes of one volume, which is in memory as a whole; one of 0.5 mm MNI in float64 has 462 MB."""
LONGEST_TR = 60.0
"""A repetition time above this, in s, is one in ms under another name, and not believed."""
SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
HEADER_ERRORS = (HeaderDataError, WrapStructError, KeyError, ValueError, OverflowError)
"""What nibabel raises for headers that end early, or hold impossible codes, quaternions or offsets."""
WEB_PAGE = (b"<!do", b"<!DO", b"<htm", b"<HTM", b"<?xm")


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says.

    Parameters
    ----------
    shape : tuple of int
        Three or four axes.
    affine : (4, 4) float64
        Voxels to mm.
    zooms : (3,) tuple of float
        Voxel sizes as the header gives them, mm; FSL's coordinates are made of these.
    placed : bool
        Whether the header says where the image lies (an sform or a qform), or the affine is a guess.
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
    zooms: tuple[float, float, float]
    placed: bool
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    offset: int
    tr: float

    @property
    def n_volumes(self) -> int:
        """Number of volumes; 1 for a 3-D image."""
        return self.shape[3] if len(self.shape) == 4 else 1

    @property
    def volume_bytes(self) -> int:
        """Bytes of one volume as stored."""
        return int(np.prod(self.shape[:3], dtype=object)) * self.dtype.itemsize

    @property
    def promised(self) -> int:
        """Bytes the whole unpacked file should have."""
        return self.offset + self.volume_bytes * self.n_volumes


class Series:
    """An open NIfTI image whose volumes are read one after the other.

    Use `open_series`.
    """

    def __init__(self, stream: Stream, path: str, maximum: int = MAXIMUM_BYTES) -> None:
        self._stream = stream
        self.path = path
        self.maximum = maximum
        self.header = _read_header(stream, path, maximum)

    def volumes(self) -> Iterator[NDArray[Any]]:
        """Raw volumes as stored: flat, (X*Y*Z,) in Fortran order of the box, unscaled, read-only.

        Raises
        ------
        CorruptFileError
            When the file ends before its last volume, or its checksum does not hold.
        """
        header, n_bytes = self.header, self.header.volume_bytes
        for number in range(header.n_volumes):
            try:
                raw = self._stream.read(n_bytes)
            except EOFError as error:
                raise self._cut_short(number, str(error)) from error
            except DAMAGE as error:
                raise self._damaged(number, error) from error
            if len(raw) < n_bytes:
                raise self._cut_short(number, f"{len(raw)} of {n_bytes} bytes")
            yield np.frombuffer(raw, dtype=header.dtype)
        try:
            self._stream.read(1)  # reads and checks the gzip trailer
        except DAMAGE as error:
            raise self._damaged(header.n_volumes - 1, error) from error

    def _damaged(self, number: int, error: Exception) -> CorruptFileError:
        message = f"got a damaged file ({error}), found in volume {number + 1} of {self.header.n_volumes}"
        return CorruptFileError(f"{message}, expected one whose checksum holds", path=self.path)

    def _cut_short(self, number: int, why: str) -> CorruptFileError:
        message = f"got a file that ends in volume {number + 1} ({why}), expected {self.header.n_volumes} volumes"
        return CorruptFileError(message, path=self.path)


@contextlib.contextmanager
def open_series(path: str, maximum: int = MAXIMUM_BYTES) -> Iterator[Series]:
    """Open a NIfTI-1 or NIfTI-2 image as a stream.

    Parameters
    ----------
    path : str
        .nii, .nii.gz or .nii.zst: a local path, any URI fsspec knows, such as s3://, or a member of a zip
        (`zip://MEMBER::ARCHIVE`).
    maximum : int
        Unpacked bytes beyond which it is refused.

    Raises
    ------
    MissingFileError
        When it is not there or may not be read.
    CorruptFileError
        When it is not a NIfTI image; TooLargeError when it promises more than it can hold, or than `maximum`.
    ShapeError
        When it has neither three nor four dimensions; GeometryError when its voxel sizes or affine make no sense.
    """
    with open_stream(path, maximum) as stream:
        yield Series(stream, path, maximum)


def read_header(path: str, maximum: int = MAXIMUM_BYTES) -> Header:
    """The header of an image anywhere, by as few bytes as possible; raises as `open_series`."""
    with open_stream(path, maximum, HEADER_BLOCK) as stream:
        return Series(stream, path, maximum).header


def read_image(uri: str) -> SpatialImage:
    """A small image, whole.

    Raises
    ------
    CorruptFileError
        When it is not a NIfTI image.
    """
    data = read_all(uri, LARGEST_IMAGE)
    try:
        kind = nib.Nifti2Image if data[:4] in {b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"} else nib.Nifti1Image
        image = kind.from_bytes(data)
        np.asanyarray(image.dataobj)
    except Exception as error:
        raise CorruptFileError(f"got a file that cannot be read ({error}), expected a NIfTI image", path=uri) from error
    return image


def read_sampled(series: Series, sampler: Sampler, memory: Memory | None = None) -> NDArray[np.float32]:
    """All volumes of a series through a sampler.

    Parameters
    ----------
    series : Series
    sampler : Sampler
    memory : callable, optional
        (T, V) -> (T, V) float32 where the result is written; fresh memory by default.

    Returns
    -------
    (T, V) float32
        Scaled values; 0 outside the field of view. May hold NaN and infinite values.

    Raises
    ------
    CorruptFileError
        When the file ends too early; TooLargeError when the result would be larger than the limit.
    """
    header = series.header
    n_bytes = header.n_volumes * len(sampler.inside) * 4
    if n_bytes > series.maximum:
        raise TooLargeError(
            f"got {header.n_volumes} volumes, {n_bytes} bytes on the grid, expected at most {series.maximum}",
            path=series.path,
        )
    vectors = (memory or _fresh)(header.n_volumes, len(sampler.inside))
    scaled = (header.slope, header.intercept) != (1.0, 0.0)
    for vector, volume in zip(vectors, series.volumes(), strict=True):
        sampler(volume, out=vector)
        if scaled:
            np.multiply(vector, np.float32(header.slope), out=vector)
            np.add(vector, np.float32(header.intercept), out=vector)
            vector[sampler.outside] = 0
    return vectors


def _fresh(n_volumes: int, n_voxels: int) -> NDArray[np.float32]:
    return np.empty((n_volumes, n_voxels), dtype=np.float32)


def check_finite(vectors: NDArray[np.float32], path: str) -> None:
    """Refuse a series with NaN or infinite values.

    Parameters
    ----------
    vectors : (T, V) float32

    Raises
    ------
    ValueRangeError
    """
    # a sum is finite only when all of its terms are; the other way round large terms may overflow
    suspicious = [number for number, vector in enumerate(vectors) if not np.isfinite(vector.sum())]
    bad = [(number, int((~np.isfinite(vectors[number])).sum())) for number in suspicious]
    total = sum(count for _, count in bad)
    if total:
        first = next(number for number, count in bad if count)
        raise ValueRangeError(
            f"got {total} NaN or infinite values inside the mask ({total / vectors.size:.1%}), first in volume "
            f"{first + 1}, expected none",
            path=path,
        )


def _read_header(stream: Stream, path: str, maximum: int) -> Header:
    """Read the header and leave the stream at the first voxel."""
    try:
        start = stream.read(4)
        kind = next((MAGIC_SIZES[size] for size in _sizes(start) if size in MAGIC_SIZES), None)
        if kind is None:
            what = "a web page" if start in WEB_PAGE else f"{start!r} as its first bytes"
            raise CorruptFileError(f"got {what}, expected a NIfTI header", path=path)
        raw = start + stream.read(kind.sizeof_hdr - 4)
        parsed = kind.from_fileobj(io.BytesIO(raw), check=False)
        header = _interpret(parsed, path)
        _check_promise(header, stream.most, path, maximum)
        stream.skip(header.offset - len(raw))
    except DAMAGE as error:
        raise CorruptFileError(
            f"got a file that cannot be unpacked ({error}), expected a NIfTI image", path=path
        ) from error
    except HEADER_ERRORS as error:
        raise CorruptFileError(f"got a NIfTI header that makes no sense: {error}", path=path) from error
    return header


def _sizes(start: bytes) -> tuple[int, int]:
    """The header's size in both byte orders."""
    return int.from_bytes(start, "little"), int.from_bytes(start, "big")


def _check_promise(header: Header, most: int | None, path: str, maximum: int) -> None:
    """Refuse a header that promises more than is allowed or than the file can hold, before memory is taken."""
    if header.volume_bytes > MAXIMUM_VOLUME:
        message = (
            f"got a header that promises volumes of {header.volume_bytes} bytes, expected at most {MAXIMUM_VOLUME}"
        )
        raise TooLargeError(message, path=path)
    if header.promised > maximum:
        raise TooLargeError(
            f"got a header that promises {header.promised} bytes, expected at most {maximum}", path=path
        )
    if most is not None and header.promised > most:
        last = max(most - header.offset, 0) // header.volume_bytes + 1
        raise CorruptFileError(
            f"got a file that ends in volume {last} or before ({most} of {header.promised} bytes at most), "
            f"expected {header.n_volumes} volumes",
            path=path,
        )


def _interpret(header: Any, path: str) -> Header:
    """Check a parsed header and take from it what is needed."""
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ShapeError(f"got an image of shape {shape}, expected three or four dimensions", path=path)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise CorruptFileError(f"got voxels of {dtype}, expected real numbers", path=path)
    if bytes(header["magic"])[:3] not in SINGLE_FILE:
        raise CorruptFileError("got a header whose voxels are in another file (.img), expected one file", path=path)
    slope, intercept = header.get_slope_inter()
    affine, zooms = _geometry(header, path)
    return Header(
        shape=shape,
        affine=affine,
        zooms=zooms,
        placed=bool(int(header["sform_code"]) or int(header["qform_code"])),
        dtype=dtype,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        # where a single file says nothing of its offset, the data follow the header and four bytes of flags
        offset=max(int(header.get_data_offset()), header.sizeof_hdr + 4),
        tr=_repetition_time(header) if len(shape) == 4 else 0.0,
    )


def _geometry(header: Any, path: str) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    """Affine and voxel sizes, checked."""
    x, y, z = (float(size) for size in header["pixdim"][1:4])
    if not (np.isfinite([x, y, z]).all() and min(x, y, z) > 0):
        raise GeometryError(f"got voxels of {x:g} x {y:g} x {z:g} mm, expected sizes above zero", path=path)
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryError("got a singular affine, expected one that maps voxels to mm", path=path)
    return affine, (x, y, z)


def _repetition_time(header: Any) -> float:
    """Seconds per volume, 0 where the header does not know."""
    try:
        unit = header.get_xyzt_units()[1]
    except KeyError:
        unit = "unknown"
    seconds = float(header["pixdim"][4]) * SECONDS_PER_UNIT.get(unit, 1.0)
    return seconds if 0 < seconds <= LONGEST_TR else 0.0
