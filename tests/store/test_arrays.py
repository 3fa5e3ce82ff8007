"""Zarr arrays: made once, written in whole chunks, empty until written."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr

from dtg_ray.errors import StudyError
from dtg_ray.store.arrays import ArraySpec, erase, prepare, write_rows

SPEC = ArraySpec((2, 10, 7), (1, 4, 5), ("contrast", "subject", "voxel"), attributes={"units": "1"})
NAMES = np.array([f"sub-{number}" for number in range(10)], dtype=np.dtypes.StringDType())
COORDINATES = {"subject": ("subject", NAMES), "x": ("voxel", np.arange(7, dtype=np.float32))}
COORDINATE_FILES = ("subject/c/0", "subject/zarr.json", "x/c/0", "x/zarr.json")
ATTRIBUTES = {"affine": np.eye(4).tolist()}


def make(storage, spec=SPEC, coordinates=COORDINATES, name="maps.zarr"):
    return prepare(storage, name, {"maps": spec}, coordinates, ATTRIBUTES)


def contents(storage):
    return {name: storage.read(name) for name in storage.names("maps.zarr")}


def chunks(storage):
    return [name for name in storage.names("maps.zarr/maps") if "/c/" in name]


def values(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float16)


class TestPrepare:
    def test_makes_empty_arrays(self, storage):
        array = make(storage)["maps"]
        assert (array.shape, array.chunks, array.dtype) == (SPEC.shape, SPEC.chunks, np.float16)
        assert np.isnan(array[:]).all()
        assert chunks(storage) == []

    def test_again_changes_not_a_byte(self, storage):
        write_rows(make(storage)["maps"], 1, slice(0, 4), values(2, 4, 7))
        before = contents(storage)
        np.testing.assert_array_equal(make(storage)["maps"][:, :4], values(2, 4, 7))
        assert contents(storage) == before

    @pytest.mark.parametrize("missing", ["maps.zarr/maps/zarr.json", "maps.zarr/x/zarr.json", "maps.zarr/x/c/0"])
    def test_finishes_what_was_interrupted(self, storage, missing):
        make(storage)
        before = contents(storage)
        storage.delete(missing)
        make(storage)
        assert contents(storage) == before

    @pytest.mark.parametrize(
        "spec",
        [
            ArraySpec((2, 9, 7), SPEC.chunks, SPEC.dimensions),
            ArraySpec((2, 10, 8), SPEC.chunks, SPEC.dimensions),
            ArraySpec(SPEC.shape, (1, 5, 5), SPEC.dimensions),
            ArraySpec(SPEC.shape, SPEC.chunks, SPEC.dimensions, "float32"),
        ],
    )
    def test_an_array_of_another_kind_is_never_overwritten(self, storage, spec):
        write_rows(make(storage)["maps"], 1, slice(0, 4), values(2, 4, 7))
        before = contents(storage)
        with pytest.raises(StudyError, match=r"maps.zarr/maps: got an array with shape, chunks, dtype") as caught:
            make(storage, spec)
        assert "new study" in caught.value.hint
        assert contents(storage) == before

    def test_coordinates_are_put_right(self, storage):
        make(storage, coordinates={"subject": ("subject", NAMES[::-1])})
        np.testing.assert_array_equal(make(storage)["subject"][:], NAMES)

    def test_several_at_once_make_one(self, storage):
        """Two drivers on one study: none of them takes away what the other has just made."""
        for turn in range(6):
            together = threading.Barrier(4)

            def make_one(name=f"maps-{turn}.zarr", together=together):
                together.wait()
                return np.asarray(make(storage, name=name)["subject"][:]).tolist()

            with ThreadPoolExecutor(4) as pool:
                assert [job.result() for job in [pool.submit(make_one) for _ in range(4)]] == [NAMES.tolist()] * 4
            assert storage.names(f"maps-{turn}.zarr") == [
                f"maps-{turn}.zarr/{name}" for name in ("maps/zarr.json", *COORDINATE_FILES, "zarr.json")
            ]

    def test_grows_along_the_subjects(self, storage):
        write_rows(make(storage)["maps"], 1, slice(4, 8), values(2, 4, 7))
        before = contents(storage)
        more = np.array([*NAMES, "sub-10", "sub-11", "sub-12"], dtype=np.dtypes.StringDType())
        longer = ArraySpec((2, 13, 7), SPEC.chunks, SPEC.dimensions, attributes={"units": "1"})
        group = make(storage, longer, {**COORDINATES, "subject": ("subject", more)})
        np.testing.assert_array_equal(group["maps"][:, 4:8], values(2, 4, 7))
        assert group["maps"].shape == (2, 13, 7)
        assert np.isnan(group["maps"][:, 8:]).all()
        np.testing.assert_array_equal(group["subject"][:], more)
        after = contents(storage)
        assert all(after[name] == data for name, data in before.items() if "maps/c/" in name)
        fresh = prepare(storage, "fresh.zarr", {"maps": longer}, {"subject": ("subject", more)}, ATTRIBUTES)
        write_rows(fresh["maps"], 1, slice(4, 8), values(2, 4, 7))
        assert after["maps.zarr/maps/zarr.json"] == storage.read("fresh.zarr/maps/zarr.json")
        assert after["maps.zarr/subject/c/0"] == storage.read("fresh.zarr/subject/c/0")

    def test_opens_with_xarray(self, storage):
        write_rows(make(storage)["maps"], 1, slice(4, 8), values(2, 4, 7))
        with xr.open_zarr(storage.uri("maps.zarr"), consolidated=False, zarr_format=3, mask_and_scale=False) as dataset:
            maps = dataset["maps"]
            assert maps.dims == ("contrast", "subject", "voxel")
            assert maps.attrs["units"] == "1"
            assert dataset.attrs["affine"] == np.eye(4).tolist()
            assert maps["subject"].to_numpy().tolist() == NAMES.tolist()
            np.testing.assert_array_equal(maps["x"], np.arange(7))
            np.testing.assert_array_equal(maps.sel(subject="sub-5"), values(2, 4, 7)[:, 1])
            assert np.isnan(maps.sel(subject=["sub-3", "sub-8"])).all()


class TestWriteRows:
    def test_other_rows_stay_empty(self, storage):
        array = make(storage)["maps"]
        write_rows(array, 1, slice(4, 8), values(2, 4, 7))
        np.testing.assert_array_equal(array[:, 4:8], values(2, 4, 7))
        assert np.isnan(array[:, :4]).all()
        assert np.isnan(array[:, 8:]).all()
        assert len(chunks(storage)) == 4  # two contrasts, two slabs of voxels

    @pytest.mark.parametrize("rows", [slice(0, 4), slice(4, 8), slice(8, 10), slice(0, 10), slice(4, 10)])
    def test_whole_chunks_are_written(self, storage, rows):
        array = make(storage)["maps"]
        data = values(2, rows.stop - rows.start, 7)
        write_rows(array, 1, rows, data)
        np.testing.assert_array_equal(array[:, rows], data)

    @pytest.mark.parametrize("rows", [slice(1, 4), slice(0, 3), slice(2, 6), slice(8, 9)])
    def test_parts_of_chunks_are_refused(self, storage, rows):
        array = make(storage)["maps"]
        with pytest.raises(
            StudyError, match=rf"got rows {rows.start}:{rows.stop} of .*maps, expected whole chunks of 4"
        ):
            write_rows(array, 1, rows, values(2, rows.stop - rows.start, 7))
        assert chunks(storage) == []

    def test_along_the_first_axis(self, storage):
        spec = ArraySpec((10, 6), (4, 6), ("subject", "edge"), "float32")
        array = make(storage, spec)["maps"]
        write_rows(array, 0, slice(8, 10), values(2, 6))
        np.testing.assert_array_equal(array[8:], values(2, 6))

    def test_nothing_of_an_earlier_attempt_survives(self, storage):
        array = make(storage)["maps"]
        write_rows(array, 1, slice(0, 4), values(2, 4, 7))
        write_rows(array, 1, slice(0, 4), np.full((2, 4, 7), np.nan, dtype=np.float16))
        assert np.isnan(array[:]).all()
        assert chunks(storage) == []


def test_erased_parts_are_as_if_never_written(storage):
    array = make(storage)["maps"]
    write_rows(array, 1, slice(0, 8), np.repeat(values(2, 4, 7), 2, axis=1))
    erase(array, 1, range(4))
    assert np.isnan(array[:, :4]).all()
    assert np.isfinite(array[:, 4:8]).all()
    assert all("/c/0/1/" in name or "/c/1/1/" in name for name in chunks(storage))


def test_arrays_that_are_not_asked_for_grow_with_the_others(storage):
    """Xarray wants one length of an axis."""
    group = prepare(storage, "maps.zarr", {"maps": SPEC, "spread": SPEC}, COORDINATES, ATTRIBUTES)
    write_rows(group["spread"], 1, slice(0, 4), values(2, 4, 7))
    more = np.array([*NAMES, "sub-10", "sub-11"], dtype=np.dtypes.StringDType())
    make(storage, ArraySpec((2, 12, 7), SPEC.chunks, SPEC.dimensions), {**COORDINATES, "subject": ("subject", more)})
    with xr.open_zarr(storage.uri("maps.zarr"), consolidated=False, zarr_format=3, mask_and_scale=False) as dataset:
        assert dataset["spread"].shape == dataset["maps"].shape == (2, 12, 7)
        np.testing.assert_array_equal(dataset["spread"][:, :4], values(2, 4, 7))
