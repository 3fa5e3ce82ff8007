"""A study, opened: tables in order, maps as images and as xarray."""

import numpy as np
import pandas as pd
import pytest

import dtg_ray
from cohort_files import GRID, make_study
from dtg_ray.errors import StudyError, UsageError
from dtg_ray.ledger import stages
from dtg_ray.store.arrays import ArraySpec, prepare, write_rows
from dtg_ray.study import COHORT, PHENOTYPES, Study, cohort_bytes

MAPS = np.random.default_rng(0).normal(size=(2, 6, GRID.n_voxels)).astype(np.float16)


def write_maps(study, name):
    """Maps of everybody but the last person."""
    shape = (2, 6, GRID.n_voxels)
    coordinates = {
        key: (key, np.array(names, dtype=np.dtypes.StringDType()))
        for key, names in {"contrast": study.config.contrasts, "subject": study.cohort["subject"].tolist()}.items()
    }
    spec = ArraySpec(shape, (1, 2, 100), ("contrast", "subject", "voxel"))
    array = prepare(study.storage, name, {"maps": spec}, coordinates, {})["maps"]
    data = MAPS.copy()
    data[:, -1] = np.nan
    write_rows(array, 1, slice(0, 6), data)


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


class TestTables:
    def test_are_in_the_order_of_the_cohort(self, study):
        assert study.cohort.index.tolist() == study.phenotypes.index.tolist()
        assert study.cohort["rest"].iloc[1][0].image.endswith("sub-02_task-rest_bold.nii.gz")
        assert set(study.cohort["contrasts"].iloc[0]) == {"MOTOR_LH", "MOTOR_RH"}
        assert study.cohort["contrasts"].iloc[5] == {}

    def test_blocks_are_rows_of_the_arrays(self, study):
        assert study.blocks() == [0, 1, 2]
        assert [study.rows(block) for block in study.blocks()] == [slice(0, 2), slice(2, 4), slice(4, 6)]
        assert study.block(1)["subject"].tolist() == ["sub-03", "sub-04"]
        assert study.positions(["sub-05", "sub-01"]).tolist() == [4, 0]

    def test_the_manifest_is_the_same_bytes_when_written_again(self, study):
        assert cohort_bytes(study.cohort) == study.storage.read(COHORT)

    def test_somebody_without_phenotypes_has_empty_ones(self, study):
        table = pd.read_parquet(study.storage.uri(PHENOTYPES))
        study.storage.write(PHENOTYPES, table.iloc[::-1].iloc[:4].to_parquet(index=False))
        ages = Study(study.uri).phenotypes["age"]
        assert ages.index.tolist() == study.cohort["subject"].tolist()
        assert ages.isna().tolist() == [True, True, False, False, False, False]
        assert ages.iloc[5] == 55


class TestMaps:
    def test_open_as_lazy_xarray(self, root):
        study = make_study(root)
        write_maps(study, "synthetic/unet.zarr")
        write_maps(study, "contrasts.zarr")
        for maps in (study.synthetic("unet"), study.measured()):
            assert maps.dims == ("contrast", "subject", "voxel")
            assert maps.dtype == np.float16
            assert maps["subject"].to_numpy().tolist() == study.cohort["subject"].tolist()
            np.testing.assert_array_equal(maps.sel(contrast="MOTOR_RH", subject="sub-03"), MAPS[1, 2])
            assert np.isnan(maps.sel(subject="sub-06")).all()

    def test_one_map_is_an_image_on_the_grid(self, study):
        write_maps(study, "synthetic/unet.zarr")
        image = study.map("sub-02", "MOTOR_LH")
        np.testing.assert_array_equal(image.affine, GRID.affine)
        np.testing.assert_array_equal(image.get_fdata()[GRID.mask], MAPS[0, 1])
        assert (image.get_fdata()[~GRID.mask] == 0).all()

    def test_the_measured_map_goes_by_its_name(self, study):
        write_maps(study, "contrasts.zarr")
        image = study.map("sub-02", "MOTOR_RH", model="measured")
        np.testing.assert_array_equal(image.get_fdata()[GRID.mask], MAPS[1, 1])

    def test_a_map_that_was_not_made_is_an_error(self, study):
        write_maps(study, "synthetic/unet.zarr")
        with pytest.raises(StudyError, match="sub-06: MOTOR_LH of unet has not been made") as caught:
            study.map("sub-06", "MOTOR_LH")
        assert "dtg status" in caught.value.hint

    @pytest.mark.parametrize(
        ("subject", "contrast", "message"),
        [
            ("sub-9", "MOTOR_LH", "got subject 'sub-9', expected one of sub-01, sub-02"),
            ("sub-01", "LH", "got contrast 'LH', expected one of MOTOR_LH, MOTOR_RH"),
        ],
    )
    def test_unknown_names_are_errors(self, study, subject, contrast, message):
        with pytest.raises(UsageError, match=message):
            study.map(subject, contrast)

    def test_arrays_that_are_not_there_are_errors(self, root):
        study = make_study(root)
        for read in (study.measured, lambda: study.synthetic("unet"), lambda: study.map("sub-01", "MOTOR_LH")):
            with pytest.raises(StudyError, match="zarr: not there"):
                read()


class TestOpening:
    def test_by_its_uri(self, root):
        study = make_study(root)
        again = dtg_ray.Study(f"{study.uri}/")
        assert again.uri == study.uri
        assert repr(again) == f"Study({study.uri!r})"
        assert again.config == study.config
        assert (again.n_rois, again.grid.n_voxels) == (4, GRID.n_voxels)
        assert again.space_fingerprint == study.space_fingerprint

    def test_what_is_no_study_is_an_error(self, root):
        for name in ("config", "cohort"):
            with pytest.raises(StudyError, match=r"root: got no .*, expected a study") as caught:
                getattr(Study(root), name)
            assert "dtg init" in caught.value.hint

    def test_status_has_a_line_per_stage(self, study):
        assert study.status()["stage"].tolist() == stages(study)

    @pytest.mark.parametrize(
        ("models", "name"),
        [
            ({"mean": {"kind": "group_mean"}, "net": {"kind": "network"}}, "net"),
            ({"lin": {"kind": "linear"}, "mean": {"kind": "group_mean"}}, "lin"),
        ],
    )
    def test_the_default_model_is_the_first_network(self, tmp_path, models, name):
        assert make_study(tmp_path, models=models).default_model == name


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'Stdy'"):
        _ = dtg_ray.Stdy
