"""NIfTI streams against nibabel, and files that must be refused."""

import gzip
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from cohort_files import GRID, image_bytes, patched, rest_run, task_map, write_bytes, write_image
from dtg_ray.errors import CorruptFileError, GeometryError, MissingFileError, ShapeError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.series import open_series
from dtg_ray.imaging.space import read_masked

DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
BOX = (4, 5, 6)
AFFINE = np.array([[-3.0, 0, 0, 10], [0, 3, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
WHOLE = Grid(AFFINE, np.ones(BOX, dtype=bool))


def read(path, grid=GRID, **options):
    with open_series(path) as series:
        return read_masked(series, grid, **options)[0]


def put(path, data):
    """Bytes as they are, whatever the name says."""
    path.write_bytes(data)
    return path


def header_of(path):
    with open_series(path) as series:
        return series.header


def numbers(dtype, shape=(*BOX, 3)):
    """Numbers over much of the type's range that float32 can hold."""
    values = np.random.default_rng(0).normal(size=shape)
    if dtype[0] == "f":
        return (values * 1e3).astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(values * 2**20), max(limits.min, -(2**23)), min(limits.max, 2**23)).astype(dtype)


class TestAgreesWithNibabel:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
    @pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
    def test_for_every_stored_type(self, tmp_path, dtype, order, kind, extension):
        for number, scale in enumerate([(1.0, 0.0), (0.25, -3.0), (0.0, 7.0), (np.nan, np.nan)]):
            path = tmp_path / f"{number}{extension}"
            write_image(path, numbers(dtype), AFFINE, kind=kind, order=order, scale=scale)
            expected = nib.load(path).get_fdata()
            vectors = read(str(path), WHOLE)
            assert vectors.dtype == np.float32
            np.testing.assert_allclose(WHOLE.volume(vectors), np.moveaxis(expected, 3, 0), rtol=1e-6)

    def test_for_files_that_nibabel_writes(self, tmp_path):
        path = tmp_path / "scaled.nii.gz"
        image = nib.Nifti1Image(rest_run(), GRID.affine)
        image.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
        image.to_filename(path)
        assert header_of(str(path)).slope != 1
        expected = nib.load(path).get_fdata()[GRID.mask].T
        np.testing.assert_allclose(read(str(path)), expected, rtol=1e-6)

    @pytest.mark.parametrize("size", [16, 4096])
    def test_for_headers_with_extensions(self, tmp_path, size):
        image = nib.Nifti1Image(rest_run(), GRID.affine)
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * size))
        image.to_filename(tmp_path / "run.nii")
        np.testing.assert_array_equal(read(str(tmp_path / "run.nii")), rest_run()[GRID.mask].T)

    @pytest.mark.parametrize("qform", [True, False])
    def test_for_affines(self, tmp_path, qform):
        """The sform where there is one, then the qform."""
        image = nib.Nifti1Image(task_map(), None)
        image.header.set_qform(AFFINE, code=1)
        image.header.set_sform(AFFINE if qform else AFFINE * [[1], [1], [2], [1]], code=0 if qform else 2)
        image.to_filename(tmp_path / "map.nii")
        np.testing.assert_allclose(header_of(str(tmp_path / "map.nii")).affine, nib.load(tmp_path / "map.nii").affine)

    @pytest.mark.s3
    @pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
    def test_from_s3(self, s3, name):
        path = write_image(f"{s3()}/sub-01/{name}", rest_run())
        np.testing.assert_array_equal(read(path), rest_run()[GRID.mask].T)


class TestHeader:
    @pytest.mark.parametrize(("unit", "tr"), [("sec", 2.4), ("msec", 2400), ("usec", 2.4e6), ("unknown", 2.4)])
    def test_repetition_time_is_in_seconds(self, tmp_path, unit, tr):
        path = write_image(tmp_path / "run.nii", rest_run(), tr=tr, unit=unit)
        assert header_of(path).tr == pytest.approx(2.4)

    @pytest.mark.parametrize("tr", [0, -1, 2000, np.nan, np.inf])
    def test_repetition_times_that_cannot_be_are_unknown(self, tmp_path, tr):
        raw = patched(image_bytes(rest_run()), pixdim=[1, 16, 16, 16, tr, 1, 1, 1])
        assert header_of(write_bytes(tmp_path / "run.nii", raw)).tr == 0

    def test_unit_that_does_not_exist_counts_as_seconds(self, tmp_path):
        raw = patched(image_bytes(rest_run(), tr=1.5), xyzt_units=2 + 56)
        assert header_of(write_bytes(tmp_path / "run.nii", raw)).tr == 1.5

    def test_a_map_has_one_volume_and_no_repetition_time(self, tmp_path):
        header = header_of(write_image(tmp_path / "map.nii", task_map()))
        assert (header.n_volumes, header.tr) == (1, 0)
        assert header.shape == GRID.shape

    def test_empty_axes_at_the_end_are_dropped(self, tmp_path):
        path = write_image(tmp_path / "map.nii", task_map()[..., None, None])
        assert header_of(path).shape == (*GRID.shape, 1)
        np.testing.assert_array_equal(read(path)[0], GRID.vectorize(task_map()))

    def test_a_single_file_without_an_offset_begins_after_the_header(self, tmp_path):
        path = write_bytes(tmp_path / "map.nii", patched(image_bytes(task_map()), vox_offset=0))
        np.testing.assert_array_equal(read(path)[0], GRID.vectorize(task_map()))


class TestStream:
    def test_volumes_come_as_stored_in_fortran_order(self, tmp_path):
        data = numbers("i2")
        with open_series(write_image(tmp_path / "run.nii.gz", data, order=">", scale=(2, 1))) as series:
            volumes = list(series.volumes())
        assert len(volumes) == 3
        for number, volume in enumerate(volumes):
            assert volume.dtype == np.dtype(">i2")
            np.testing.assert_array_equal(volume.reshape(BOX, order="F"), data[..., number])

    @pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
    def test_never_holds_more_than_a_few_volumes(self, tmp_path, extension):
        path = write_image(tmp_path / f"run{extension}", np.ones((32, 32, 32, 100), dtype=np.float32))
        with open_series(path) as series:
            tracemalloc.start()
            total = sum(float(volume[0]) for volume in series.volumes())
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert total == 100
        assert peak < 5 * 32**3 * 4

    def test_gzip_of_several_members_is_one_file(self, tmp_path):
        raw = image_bytes(rest_run())
        parts = [raw[:1000], raw[1000:5000], raw[5000:]]
        (tmp_path / "run.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)))
        np.testing.assert_array_equal(read(str(tmp_path / "run.nii.gz")), rest_run()[GRID.mask].T)

    def test_packing_is_told_by_the_bytes_not_by_the_name(self, tmp_path):
        raw = image_bytes(rest_run())
        (tmp_path / "packed.nii").write_bytes(gzip.compress(raw))
        (tmp_path / "plain.nii.gz").write_bytes(raw)
        for name in ("packed.nii", "plain.nii.gz"):
            np.testing.assert_array_equal(read(str(tmp_path / name)), rest_run()[GRID.mask].T)

    def test_a_volume_larger_than_a_piece_is_put_together(self, tmp_path, monkeypatch):
        monkeypatch.setattr("dtg_ray.imaging.streams.PIECE", 100)
        path = write_image(tmp_path / "run.nii.gz", rest_run())
        np.testing.assert_array_equal(read(path), rest_run()[GRID.mask].T)


class TestMasked:
    def test_outside_the_field_of_view_is_zero_whatever_the_intercept(self, tmp_path):
        path = write_image(tmp_path / "map.nii", task_map()[:, :6], scale=(2.0, 50.0))
        vector, inside = read(path)[0], np.argwhere(GRID.mask)[:, 1] < 6
        assert (vector[~inside] == 0).all()
        np.testing.assert_allclose(vector[inside], 2 * GRID.vectorize(task_map())[inside] + 50, rtol=1e-6)

    def test_coverage_is_counted(self, tmp_path):
        with open_series(write_image(tmp_path / "map.nii", task_map()[:, :6])) as series:
            _, coverage = read_masked(series, GRID)
        assert coverage == (np.argwhere(GRID.mask)[:, 1] < 6).mean()

    @pytest.mark.parametrize("minimum", [0, 0.5, 0.9])
    def test_too_little_overlap_is_refused(self, tmp_path, minimum):
        far = GRID.affine.copy()
        far[0, 3] += 1000
        path = write_image(tmp_path / "elsewhere.nii", task_map(), far)
        with pytest.raises(ShapeError, match=rf"elsewhere.nii: got an image .* covers 0% .* more than {minimum:.0%}"):
            read(path, minimum_coverage=minimum)

    def test_full_overlap_is_enough_for_any_minimum(self, tmp_path):
        path = write_image(tmp_path / "map.nii", task_map())
        assert read(path, minimum_coverage=1).shape == (1, GRID.n_voxels)

    def test_interpolation_is_passed_on(self, tmp_path):
        moved = GRID.affine.copy()
        moved[:3, 3] += 3
        path = write_image(tmp_path / "map.nii", task_map(), moved)
        nearest, linear = read(path, interpolation="nearest")[0], read(path)[0]
        assert set(nearest) <= {0, *task_map().ravel()}
        assert not set(linear) <= {0, *task_map().ravel()}


class TestRefused:
    """Every file that cannot be used has its own message, which names it."""

    def refuse(self, path, kind, message):
        with pytest.raises(kind, match=message) as caught:
            read(str(path))
        assert caught.value.path == str(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
    def test_truncated_gzip(self, tmp_path, keep):
        packed = gzip.compress(image_bytes(rest_run()))
        path = put(tmp_path / "run.nii.gz", packed[: int(keep * len(packed))])
        self.refuse(path, CorruptFileError, r"got a file that ends in volume \d+ .* expected 32 volumes")

    @pytest.mark.parametrize("keep", [352, 353, 20_000, -1])
    def test_truncated_plain_file(self, tmp_path, keep):
        path = write_bytes(tmp_path / "run.nii", image_bytes(rest_run())[:keep])
        self.refuse(path, CorruptFileError, r"ends in volume \d+ or before \(\d+ of \d+ bytes at most\)")

    @pytest.mark.parametrize("keep", [0, 1, 3, 4, 100, 347])
    @pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
    def test_truncated_header(self, tmp_path, keep, name):
        path = write_bytes(tmp_path / name, image_bytes(rest_run())[:keep])
        self.refuse(path, CorruptFileError, "expected a NIfTI header|makes no sense")

    @pytest.mark.parametrize("keep", [2, 5, 12, 40])
    def test_gzip_truncated_in_the_header(self, tmp_path, keep):
        path = put(tmp_path / "run.nii.gz", gzip.compress(image_bytes(rest_run()))[:keep])
        self.refuse(path, CorruptFileError, "cannot be unpacked")

    def test_wrong_checksum(self, tmp_path):
        packed = bytearray(gzip.compress(image_bytes(rest_run())))
        packed[-8] ^= 1
        path = put(tmp_path / "run.nii.gz", bytes(packed))
        self.refuse(
            path,
            CorruptFileError,
            r"got a damaged file \(CRC check failed .*volume \d+ of 32, expected one whose checksum holds",
        )

    @pytest.mark.parametrize("where", np.linspace(0.1, 0.99, 20))
    @pytest.mark.parametrize("dtype", ["f4", "i2"])
    def test_a_flipped_bit_is_noticed(self, tmp_path, where, dtype):
        packed = bytearray(gzip.compress(image_bytes(rest_run().astype(dtype)), mtime=0))
        packed[int(where * len(packed))] ^= 16
        self.refuse(
            put(tmp_path / "run.nii.gz", bytes(packed)),
            CorruptFileError,
            "got a damaged file|ends in volume|cannot be unpacked",
        )

    @pytest.mark.parametrize("name", ["page.nii.gz", "page.nii"])
    def test_web_page_saved_as_an_image(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"<!DOCTYPE html><html><body>403 Forbidden</body></html>" * 20)
        self.refuse(tmp_path / name, CorruptFileError, "got a web page, expected a NIfTI header")

    def test_gzip_of_something_else(self, tmp_path):
        self.refuse(write_bytes(tmp_path / "run.nii.gz", b"text" * 300), CorruptFileError, "got b'text'")

    def test_other_compression(self, tmp_path):
        path = put(tmp_path / "run.nii.gz", zlib.compress(image_bytes(rest_run())))
        self.refuse(path, CorruptFileError, "expected a NIfTI header")

    def test_missing_file(self, tmp_path):
        self.refuse(tmp_path / "none.nii.gz", MissingFileError, r"got no file that can be read \(FileNotFoundError\)")

    def test_folder(self, tmp_path):
        self.refuse(tmp_path, MissingFileError, r"got no file that can be read \(IsADirectoryError\)")

    def test_below_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        self.refuse(tmp_path / "file" / "run.nii", MissingFileError, "NotADirectoryError")

    @pytest.mark.s3
    def test_missing_on_s3(self, s3):
        self.refuse(f"{s3()}/none.nii.gz", MissingFileError, "FileNotFoundError")
        self.refuse("s3://no-such-bucket-anywhere/none.nii.gz", MissingFileError, "FileNotFoundError")

    @pytest.mark.parametrize("shape", [(9,), (9, 9), (*BOX, 3, 2), (*BOX, 1, 3)])
    def test_number_of_dimensions(self, tmp_path, shape):
        path = write_image(tmp_path / "run.nii", np.zeros(shape, dtype=np.int16))
        self.refuse(path, ShapeError, "got an image of shape .* expected three or four dimensions")

    @pytest.mark.parametrize("dim", [[4, 0, 5, 6, 3, 1, 1, 1], [4, -7, 5, 6, 3, 1, 1, 1], [0, 4, 5, 6, 3, 1, 1, 1]])
    def test_axes_of_impossible_length(self, tmp_path, dim):
        path = write_bytes(tmp_path / "run.nii", patched(image_bytes(numbers("i2")), dim=dim))
        self.refuse(path, ShapeError, "got an image of shape")

    @pytest.mark.parametrize("value", [0, np.nan, np.inf])
    def test_singular_affine(self, tmp_path, value):
        raw = patched(image_bytes(rest_run()), srow_x=[value] * 4)
        self.refuse(write_bytes(tmp_path / "run.nii", raw), ShapeError, "got a singular affine")

    @pytest.mark.parametrize("size", [0, -2, np.nan, np.inf])
    @pytest.mark.parametrize("axis", [1, 2, 3])
    def test_voxel_sizes_that_are_none(self, tmp_path, size, axis):
        sizes = [1, 16, 16, 16, 2, 1, 1, 1]
        sizes[axis] = size
        path = write_bytes(tmp_path / "run.nii", patched(image_bytes(rest_run()), pixdim=sizes))
        self.refuse(path, GeometryError, r"got voxels of .* mm, expected sizes above zero")

    def test_a_header_whose_voxels_are_in_another_file(self, tmp_path):
        path = write_bytes(tmp_path / "run.nii", patched(image_bytes(rest_run()), magic=b"ni1"))
        self.refuse(path, CorruptFileError, r"got a header whose voxels are in another file \(.img\)")

    def test_a_header_that_does_not_say_where_the_image_lies(self, tmp_path):
        path = write_bytes(tmp_path / "run.nii", patched(image_bytes(rest_run()), sform_code=0, qform_code=0))
        self.refuse(path, GeometryError, "got a header with neither sform nor qform")

    @pytest.mark.parametrize("dtype", ["c8", "c16"])
    def test_complex_numbers(self, tmp_path, dtype):
        path = write_image(tmp_path / "run.nii", numbers("f4").astype(dtype))
        self.refuse(path, CorruptFileError, r"got voxels of complex\d+, expected real numbers")

    def test_colours(self, tmp_path):
        colours = np.zeros(BOX, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        self.refuse(write_image(tmp_path / "run.nii", colours), CorruptFileError, "expected real numbers")

    @pytest.mark.parametrize(
        "fields",
        [
            {"datatype": 77},
            {"scl_slope": 2, "scl_inter": np.nan},
            {"vox_offset": np.inf},
            {"vox_offset": np.nan},
            {"sform_code": 0, "qform_code": 1, "quatern_b": 5},
        ],
    )
    def test_headers_that_make_no_sense(self, tmp_path, fields):
        raw = patched(image_bytes(rest_run()), **fields)
        self.refuse(write_bytes(tmp_path / "run.nii", raw), CorruptFileError, "got a NIfTI header that makes no sense")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"dim": [3, 30_000, 30_000, 30_000, 1, 1, 1, 1]}, "promises volumes of 108000000000000 bytes"),
            ({"dim": [4, 512, 512, 512, 30_000, 1, 1, 1]}, "expected at most 68719476736"),
            ({"vox_offset": 1e13}, "expected at most 68719476736"),
            (
                {"dim": [3, 2500, 2500, 2500, 1, 1, 1, 1]},
                "promises volumes of 62500000000 bytes",
            ),
            ({"vox_offset": 4e10}, "ends in volume 1 or before .* of 40000153600 bytes"),
        ],
    )
    @pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
    def test_a_header_that_promises_too_much_takes_no_memory(self, tmp_path, fields, message, name):
        path = write_bytes(tmp_path / name, patched(image_bytes(rest_run()), **fields))
        tracemalloc.start()
        with pytest.raises(CorruptFileError, match=message), open_series(path) as series:
            next(series.volumes())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200 * 2**20
