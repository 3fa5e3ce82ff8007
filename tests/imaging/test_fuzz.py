"""Whatever the bytes: a reader gives numbers, or an error that names the file.

It never crashes, hangs or fills the memory.
"""

import gzip
import io
import tracemalloc
import zipfile

import nibabel as nib
import numpy as np
import pytest
from backports import zstd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cohort_files import GRID, image_bytes, rest_run
from dtg_ray.errors import SubjectError
from dtg_ray.imaging.rest import Recipe, read_run
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.streams import member

RUN = image_bytes((rest_run(volumes=8) * 10).astype(np.int16))
RECIPE = Recipe(minimum_volumes=4, maximum_bytes=2**26)
MEMBER = "fMRI/run.nii.gz"
LARGEST_PEAK = 48 * 2**20
FIELDS = sorted(set(nib.Nifti1Header.template_dtype.names) - {"extents", "regular"})
relaxed = settings(
    max_examples=150,
    deadline=5000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def in_zip(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, data)
    return buffer.getvalue()


PACKED = {
    "plain": RUN,
    "gzip": gzip.compress(RUN, mtime=0),
    "zstd": zstd.compress(RUN),
    "zip": in_zip(gzip.compress(RUN, mtime=0)),
    "zip of plain": in_zip(RUN),
}


def survive(path, data, *, zipped=False):
    """Read some bytes as a rest run."""
    path.write_bytes(data)
    uri = member(str(path), MEMBER) if zipped else str(path)
    tracemalloc.start()
    message = ""
    try:
        run = read_run(Scan(uri), GRID, RECIPE)
    except SubjectError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < LARGEST_PEAK
    if message:
        assert str(path) in message
        assert "got " in message
    else:
        assert np.isfinite(run.bold).all()


@relaxed
@pytest.mark.parametrize("packing", PACKED)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes(tmp_path, packing, changes):
    data = bytearray(PACKED[packing])
    for place, value in changes:
        data[min(int(place * len(data)), len(data) - 1)] = value
    survive(tmp_path / "run", bytes(data), zipped=packing.startswith("zip"))


@relaxed
@pytest.mark.parametrize("packing", PACKED)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=12),
    end=st.booleans(),
)
def test_changed_bytes_where_formats_keep_their_headers(tmp_path, packing, changes, end):
    data = bytearray(PACKED[packing])
    for place, value in changes:
        data[-1 - place if end else place] = value
    survive(tmp_path / "run", bytes(data), zipped=packing.startswith("zip"))


@relaxed
@pytest.mark.parametrize("packing", PACKED)
@given(start=st.floats(0, 1), stop=st.floats(0, 1), junk=st.binary(max_size=64))
def test_missing_and_foreign_parts(tmp_path, packing, start, stop, junk):
    data = PACKED[packing]
    first, last = sorted((int(start * len(data)), int(stop * len(data))))
    survive(tmp_path / "run", data[:first] + junk + data[last:], zipped=packing.startswith("zip"))


@relaxed
@given(data=st.binary(max_size=2000), zipped=st.booleans())
@example(data=b"<!DOCTYPE html>", zipped=False)
@example(data=b"", zipped=True)
def test_any_bytes(tmp_path, data, zipped):
    survive(tmp_path / "run", data, zipped=zipped)


@relaxed
@given(
    values=st.dictionaries(
        st.sampled_from(FIELDS),
        st.one_of(st.integers(-(2**31), 2**31), st.floats(allow_nan=True, allow_infinity=True), st.binary(max_size=4)),
        min_size=1,
        max_size=5,
    ),
    packed=st.booleans(),
)
@example(values={"scl_slope": 9.230240488587633e-25}, packed=False)
@example(values={"scl_slope": 1e30}, packed=False)
def test_any_header(tmp_path, values, packed):
    header = nib.Nifti1Header(RUN[:348], check=False)
    for name, value in values.items():
        try:
            with np.errstate(all="ignore"):
                header[name] = value
        except (ValueError, OverflowError, TypeError, SystemError):
            continue  # what a field cannot hold cannot be in a file
    data = header.binaryblock + RUN[348:]
    survive(tmp_path / "run", gzip.compress(data) if packed else data)


@relaxed
@given(dims=st.lists(st.integers(-5, 32_767), min_size=8, max_size=8), kind=st.sampled_from([2, 4, 8, 16, 64, 512]))
def test_any_size_that_a_header_promises(tmp_path, dims, kind):
    header = nib.Nifti1Header(RUN[:348], check=False)
    header["dim"] = [4, *dims[1:]]
    header["datatype"] = kind
    survive(tmp_path / "run", gzip.compress(header.binaryblock + RUN[348:]))
