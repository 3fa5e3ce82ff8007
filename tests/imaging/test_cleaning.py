"""Preparation of runs that are not clean yet, against nilearn called the usual way on a whole run."""

import json

import fsspec
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds
from nilearn.maskers import NiftiMasker
from nilearn.signal import clean as nilearn_clean

from cohort_files import GRID, TR, rest_run, write_image
from dtg_ray.errors import MissingFileError, TableError, TooShortError, ValueRangeError
from dtg_ray.imaging import cleaning as cleaning_module
from dtg_ray.imaging.cleaning import Cleaning, clean, load
from dtg_ray.imaging.rest import Recipe, read_run
from dtg_ray.imaging.scan import Scan

VOLUMES = 80
NAME = "sub-01_task-rest"
MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]


def confounds_table(volumes=VOLUMES, spikes=()):
    """A table as fMRIPrep writes it: derivatives have no first value."""
    rng = np.random.default_rng(5)
    table = {}
    for name in [*MOTION, "csf", "white_matter", "global_signal"]:
        values = np.cumsum(rng.normal(size=volumes))
        change = np.diff(values, prepend=np.nan)
        table |= {name: values, f"{name}_derivative1": change}
        table |= {f"{name}_power2": values**2, f"{name}_derivative1_power2": change**2}
    displacement = np.full(volumes, 0.1)
    displacement[0] = np.nan
    displacement[list(spikes)] = 2.0
    table |= {"framewise_displacement": displacement, "std_dvars": np.where(np.isnan(displacement), np.nan, 1.0)}
    table |= {f"cosine{number:02d}": np.cos(np.pi * (number + 1) * np.arange(volumes) / volumes) for number in range(3)}
    return pd.DataFrame(table)


@pytest.fixture
def folder(tmp_path):
    """A run and its confounds under their fMRIPrep names; trends and confounds are in the data."""
    table = confounds_table(spikes=(20, 21, 50))
    table.to_csv(tmp_path / f"{NAME}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    (tmp_path / f"{NAME}_desc-confounds_timeseries.json").write_text(json.dumps({}))
    data = rest_run(volumes=VOLUMES)
    weights = np.random.default_rng(6).normal(size=(*GRID.shape, 2))
    data += weights @ table[["trans_x", "csf"]].to_numpy().T + 0.1 * np.arange(VOLUMES)
    write_image(tmp_path / f"{NAME}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz", data.astype(np.float32))
    return tmp_path


def scan_of(folder):
    return Scan(
        str(folder / f"{NAME}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"),
        confounds=str(folder / f"{NAME}_desc-confounds_timeseries.tsv"),
    )


def masked(folder):
    return nib.load(scan_of(folder).image).get_fdata()[GRID.mask].T  # (T, V)


class TestAgreesWithNilearn:
    @pytest.mark.parametrize(
        ("strategy", "options", "band"),
        [
            (("motion",), {}, {}),
            (("motion", "wm_csf"), {"motion": "basic"}, {"low_pass": 0.1, "high_pass": 0.01}),
            (("high_pass", "wm_csf", "global_signal"), {"wm_csf": "full"}, {"detrend": True}),
            (("motion", "scrub"), {"motion": "basic", "scrub": 0, "fd_threshold": 0.5}, {}),
            (("motion", "scrub"), {"motion": "basic", "scrub": 5}, {"low_pass": 0.1, "high_pass": 0.01}),
        ],
    )
    def test_load_confounds_and_signal_clean(self, folder, strategy, options, band):
        run = read_run(scan_of(folder), GRID, Recipe(cleaning=Cleaning(strategy, options, **band)))
        confounds, kept = load_confounds(scan_of(folder).image, strategy=list(strategy), **options)
        arguments = {"detrend": False, "standardize": None, "t_r": TR, **band}
        arguments["filter"] = "butterworth" if "low_pass" in band else False
        expected = nilearn_clean(masked(folder), confounds=confounds, sample_mask=kept, **arguments)
        assert len(run.bold) == (VOLUMES if kept is None else len(kept))
        np.testing.assert_allclose(run.bold, expected - expected.mean(axis=0), atol=2e-3)
        assert run.quality.used == len(run.bold)

    def test_a_masker_on_the_whole_image(self, folder):
        run = read_run(
            scan_of(folder), GRID, Recipe(cleaning=Cleaning(("motion", "wm_csf"), low_pass=0.1, detrend=True))
        )
        confounds, _ = load_confounds(scan_of(folder).image, strategy=["motion", "wm_csf"])
        mask = nib.Nifti1Image(GRID.mask.astype(np.uint8), GRID.affine)
        masker = NiftiMasker(mask, detrend=True, standardize=None, low_pass=0.1, t_r=TR, dtype="float64")
        expected = masker.fit_transform(scan_of(folder).image, confounds=confounds)
        np.testing.assert_allclose(run.bold, expected - expected.mean(axis=0), atol=2e-3)

    def test_columns_by_name(self, folder):
        cleaning = Cleaning(columns=("trans_x", "csf_derivative1"))
        run = read_run(scan_of(folder), GRID, Recipe(cleaning=cleaning))
        table = confounds_table(spikes=(20, 21, 50))[list(cleaning.columns)]
        expected = nilearn_clean(
            masked(folder), confounds=table.fillna(table.mean()), detrend=False, standardize=None, filter=False
        )
        np.testing.assert_allclose(run.bold, expected - expected.mean(axis=0), atol=2e-3)

    def test_parts_of_voxels_change_nothing(self, folder, monkeypatch):
        recipe = Recipe(cleaning=Cleaning(("motion",), low_pass=0.1))
        expected = read_run(scan_of(folder), GRID, recipe).bold
        monkeypatch.setattr(cleaning_module, "NUMBERS_AT_ONCE", VOLUMES * 50)
        np.testing.assert_allclose(read_run(scan_of(folder), GRID, recipe).bold, expected, atol=1e-4)


class TestWhatIsLeft:
    def test_nothing_is_taken_out_by_default(self, folder):
        assert not Cleaning().wanted
        values = masked(folder)
        np.testing.assert_allclose(
            read_run(scan_of(folder), GRID, Recipe()).bold, values - values.mean(axis=0), atol=1e-3
        )

    def test_confounds_no_longer_correlate(self, folder):
        run = read_run(scan_of(folder), GRID, Recipe(cleaning=Cleaning(columns=("trans_x", "csf"))))
        table = confounds_table()[["trans_x", "csf"]].to_numpy()
        before, after = (np.abs(np.corrcoef(table.T, values.T)[:2, 2:]).mean() for values in (masked(folder), run.bold))
        assert before > 0.3
        assert after < 1e-4

    def test_the_quality_is_that_of_the_data_as_they_came(self, folder):
        figures = [
            read_run(scan_of(folder), GRID, Recipe(cleaning=cleaning)).quality
            for cleaning in (Cleaning(), Cleaning(("motion", "scrub"), {"scrub": 0}, detrend=True))
        ]
        assert figures[0].tsnr == figures[1].tsnr
        assert figures[0].motion == figures[1].motion == pytest.approx((76 * 0.1 + 3 * 2) / 79)
        assert (figures[1].volumes, figures[1].used) == (VOLUMES, VOLUMES - 3)


@pytest.mark.s3
def test_confounds_on_s3(s3, folder):
    root = s3()
    for path in folder.iterdir():
        fs, name = fsspec.url_to_fs(f"{root}/{path.name}")
        fs.pipe_file(name, path.read_bytes())
    remote = Scan(
        f"{root}/{NAME}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz",
        confounds=f"{root}/{NAME}_desc-confounds_timeseries.tsv",
    )
    recipe = Recipe(cleaning=Cleaning(("motion", "wm_csf")))
    np.testing.assert_array_equal(read_run(remote, GRID, recipe).bold, read_run(scan_of(folder), GRID, recipe).bold)


class TestRefused:
    def refuse(self, scan, cleaning, kind, message):
        with pytest.raises(kind, match=message) as caught:
            read_run(scan, GRID, Recipe(cleaning=cleaning))
        assert caught.value.path in {scan.image, scan.confounds}

    def test_no_table_where_one_is_needed(self, folder):
        scan = Scan(scan_of(folder).image)
        self.refuse(scan, Cleaning(("motion",)), MissingFileError, "got no table of confounds, expected one")
        read_run(scan, GRID, Recipe(cleaning=Cleaning(detrend=True)))

    def test_a_table_of_another_length(self, folder):
        confounds_table(VOLUMES - 1).to_csv(scan_of(folder).confounds, sep="\t", index=False)
        message = f"got {VOLUMES - 1} rows of confounds, expected {VOLUMES} volumes"
        self.refuse(scan_of(folder), Cleaning(("motion",)), TableError, message)

    def test_columns_that_are_not_there(self, folder):
        self.refuse(scan_of(folder), Cleaning(columns=("csf", "snow")), TableError, r"got no columns \['snow'\]")

    def test_a_strategy_that_the_table_does_not_serve(self, folder):
        self.refuse(scan_of(folder), Cleaning(("ica_aroma",)), TableError, "got confounds that nilearn cannot use")
        self.refuse(scan_of(folder), Cleaning(("compcor", "high_pass")), TableError, "nilearn cannot use")

    def test_options_that_nilearn_does_not_know(self, folder):
        self.refuse(scan_of(folder), Cleaning(("motion",), {"colour": 3}), TableError, "nilearn cannot use")

    @pytest.mark.parametrize("text", [b"", b"\x00\xff\x01" * 50, b"<html>403</html>"])
    def test_a_file_that_is_no_table(self, folder, text):
        (folder / f"{NAME}_desc-confounds_timeseries.tsv").write_bytes(text)
        self.refuse(scan_of(folder), Cleaning(columns=("csf",)), TableError, "no table|rows of confounds")

    def test_too_little_left_by_scrubbing(self, folder):
        table = confounds_table(spikes=range(10, VOLUMES))
        table.to_csv(scan_of(folder).confounds, sep="\t", index=False, na_rep="n/a")
        cleaning = Cleaning(("scrub",), {"scrub": 0})
        self.refuse(scan_of(folder), cleaning, TooShortError, r"got 10 volumes left by scrubbing, expected at least 30")


class TestBand:
    def run(self, folder, tr=TR, volumes=VOLUMES, **band):
        path = write_image(folder / "run.nii", rest_run(volumes=volumes), tr=tr)
        return read_run(Scan(path), GRID, Recipe(minimum_volumes=5, cleaning=Cleaning(**band)))

    def test_needs_a_repetition_time(self, tmp_path):
        with pytest.raises(ValueRangeError, match="got a header without a repetition time"):
            self.run(tmp_path, tr=0, low_pass=0.1)
        self.run(tmp_path, tr=0, detrend=True)

    def test_has_to_lie_below_half_the_sampling_rate(self, tmp_path):
        with pytest.raises(ValueRangeError, match=r"got a cut-off of 0.3 Hz for a repetition time of 2 s"):
            self.run(tmp_path, low_pass=0.3)

    def test_too_few_volumes_for_the_filter_are_told_with_the_file(self, tmp_path):
        with pytest.raises(TooShortError, match=r"run.nii: got 12 volumes that nilearn cannot clean"):
            self.run(tmp_path, volumes=12, low_pass=0.1, high_pass=0.01)


def test_confounds_are_not_read_where_they_are_not_needed():
    confounds = load("/not/there.tsv", "run.nii", 7, Cleaning(detrend=True))
    assert confounds.regressors.shape == (7, 0)
    assert confounds.kept.tolist() == list(range(7))


def test_cleaning_writes_over_the_series_it_is_given(folder):
    bold = masked(folder).astype(np.float32)
    result = clean(bold, load("", "run.nii", VOLUMES, Cleaning(detrend=True)), TR, Cleaning(detrend=True), "run.nii")
    assert np.shares_memory(result, bold)
