"""Simulated cohorts: real NIfTI files with known truth, the same bytes for the same options."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from dtg_ray.cohort.layouts import bids
from dtg_ray.cohort.simulate import contrast_names, simulate
from dtg_ray.errors import UsageError
from dtg_ray.imaging.grid import Grid

OPTIONS: dict[str, Any] = {
    "subjects": 6,
    "resolution": 8,
    "volumes": 20,
    "rois": 5,
    "contrasts": 3,
    "seed": 7,
    "missing": 0.5,
    "tr": 1.5,
}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "data"
    simulate(folder, **OPTIONS, workers=2)
    return folder


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cohort, half of whom come for a second visit."""
    folder = tmp_path_factory.mktemp("twice") / "data"
    simulate(folder, **OPTIONS, retest=0.5)
    return folder


class TestBytes:
    def test_are_the_same_for_any_number_of_workers(self, cohort: Path, tmp_path: Path) -> None:
        simulate(tmp_path / "again", **OPTIONS, workers=1)
        assert digests(tmp_path / "again") == digests(cohort)

    def test_are_others_for_another_seed(self, cohort: Path, tmp_path: Path) -> None:
        simulate(tmp_path / "other", **{**OPTIONS, "seed": 8})
        first, second = digests(cohort), digests(tmp_path / "other")
        images = [name for name in first if name.endswith(".nii.gz")]
        assert all(first[name] != second.get(name) for name in images)


class TestImages:
    def test_lie_on_the_grid_and_carry_the_repetition_time(self, cohort: Path) -> None:
        grid = Grid.mni152(8)
        for path in cohort.rglob("*_bold.nii.gz"):
            image = nib.load(path)
            assert image.shape == (*grid.shape, 20)
            assert_allclose(image.affine, grid.affine)
            assert image.header.get_zooms()[3] == 1.5
            assert image.header.get_xyzt_units() == ("mm", "sec")
            assert (
                json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["RepetitionTime"] == 1.5
            )
        for path in cohort.rglob("*_statmap.nii.gz"):
            assert nib.load(path).shape == grid.shape

    def test_are_zero_outside_the_brain_and_vary_inside(self, cohort: Path) -> None:
        grid = Grid.mni152(8)
        bold = nib.load(next(cohort.rglob("*_bold.nii.gz"))).get_fdata()
        assert not bold[~grid.mask].any()
        assert (bold[grid.mask].std(axis=1) > 0).all()
        assert bold[grid.mask].mean() > 20 * bold[grid.mask].std(axis=1).mean(), "BOLD changes little about a baseline"

    def test_have_names_that_the_bids_layout_finds(self, cohort: Path) -> None:
        found = bids.find(str(cohort))
        assert [person.subject for person in found.participants] == [f"sub-000{number}" for number in range(1, 7)]
        known = {f"{task}_{name}" for task, name in contrast_names(3)}
        assert {name for person in found.participants for name in person.contrasts} == known
        assert list(found.phenotypes.columns[1:5]) == ["age", "sex", "site", "family"]

    def test_are_missing_for_the_fraction_asked_for(self, cohort: Path) -> None:
        counts = [len(person.contrasts) for person in bids.find(str(cohort)).participants]
        assert sum(count < 3 for count in counts) == 3
        assert min(counts) >= 1

    def test_of_the_atlas_are_one_map_per_network(self, cohort: Path) -> None:
        atlas = nib.load(next(cohort.glob("tpl-*_probseg.nii.gz")))
        assert atlas.shape == (*Grid.mni152(8).shape, 5)


class TestTruth:
    def test_tells_the_phenotypes_apart_from_their_noise(self, tmp_path: Path) -> None:
        simulate(tmp_path / "many", **{**OPTIONS, "subjects": 150, "volumes": 2, "resolution": 16, "contrasts": 1})
        truth = json.loads((tmp_path / "many" / "truth.json").read_text())
        table = pd.read_csv(tmp_path / "many" / "phenotypes.tsv", sep="\t", index_col="participant_id")
        people = (
            pd.DataFrame(truth["subjects"]).T
            if isinstance(truth["subjects"], dict)
            else pd.DataFrame(truth["subjects"])
        )
        traits = np.array(people["gain_traits"].tolist())
        networks = traits @ np.array(truth["networks"]["score_weights"])
        ceilings = {name: entry["noise_ceiling"] for name, entry in truth["phenotypes"].items()}
        r = {name: np.corrcoef(networks, table[name])[0, 1] for name in table}
        assert r["network_score"] == pytest.approx(ceilings["network_score"], abs=0.12)
        assert abs(r["noise_score"]) < 0.25
        assert ceilings["noise_score"] == 0

    def test_is_written_last_and_completes_the_folder(self, cohort: Path, tmp_path: Path) -> None:
        folder = tmp_path / "begun"
        simulate(folder, **OPTIONS)
        (folder / "truth.json").unlink()
        lost = next(folder.rglob("sub-0004*_bold.nii.gz"))
        lost.unlink()
        summary = simulate(folder, **OPTIONS)
        assert not summary["complete_before"]
        assert digests(folder) == digests(cohort)
        assert simulate(folder, **OPTIONS)["complete_before"]


class TestRetest:
    def test_leaves_the_first_visit_as_it_is(self, cohort: Path, twice: Path) -> None:
        first = {name: digest for name, digest in digests(twice).items() if not name.startswith("retest/")}
        changed = {name for name, digest in digests(cohort).items() if first.pop(name) != digest}
        assert changed == {"dataset_description.json", "truth.json"}, "they hold the options"
        assert not first

    def test_is_a_dataset_of_its_own(self, twice: Path) -> None:
        assert json.loads((twice / "retest/dataset_description.json").read_text())["DatasetType"] == "derivative"
        first = {person.subject: person for person in bids.find(str(twice)).participants}
        assert not any("/retest/" in scan.image for one in first.values() for scan in one.contrasts.values())
        again = bids.find(str(twice / "retest"), needed="contrasts").participants
        assert len(again) == 3
        for person in again:
            assert not person.rest
            assert set(person.contrasts) == set(first[person.subject].contrasts)

    def test_maps_have_the_same_truth_and_other_noise(self, twice: Path) -> None:
        mask = Grid.mni152(8).mask
        for path in twice.glob("retest/*/func/*"):
            before, after = (
                nib.load(one).get_fdata()[mask] for one in (twice / path.relative_to(twice / "retest"), path)
            )
            assert (after - before).std() == pytest.approx(np.sqrt(2), rel=0.1), "noise of both visits, of 1 each"
            assert np.corrcoef(before, after - before)[0, 1] < 0

    def test_is_continued_where_it_stopped(self, twice: Path, tmp_path: Path) -> None:
        simulate(tmp_path / "data", **OPTIONS, retest=0.5)
        lost = sorted((tmp_path / "data/retest").rglob("*_statmap.nii.gz"))[1]
        for path in (lost, tmp_path / "data/truth.json"):
            path.unlink()
        assert simulate(tmp_path / "data", **OPTIONS, retest=0.5)["written"] == 1
        assert digests(tmp_path / "data") == digests(twice)
        summary = simulate(tmp_path / "data", **OPTIONS, retest=0.5)
        assert summary["complete_before"]
        images = [name for name in digests(twice) if name.endswith((".nii.gz", "bold.json"))]
        assert summary["files"] == len(images)

    def test_is_an_option_that_cannot_be_changed_later(self, cohort: Path, twice: Path) -> None:
        with pytest.raises(UsageError, match=r"retest 0\.0 there, 0\.5 asked for"):
            simulate(cohort, **OPTIONS, retest=0.5)
        with pytest.raises(UsageError, match=r"retest 0\.5 there, 0\.0 asked for"):
            simulate(twice, **OPTIONS)


class TestRefuses:
    def test_a_folder_made_with_other_options(self, cohort: Path) -> None:
        before = digests(cohort)
        with pytest.raises(UsageError, match="volumes"):
            simulate(cohort, **{**OPTIONS, "volumes": 30})
        assert digests(cohort) == before

    def test_a_folder_with_something_else_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(UsageError):
            simulate(tmp_path, **OPTIONS)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("subjects", 0),
            ("rois", 1),
            ("missing", 2),
            ("contrasts", 48),
            ("volumes", 1),
            ("tr", 0),
            ("resolution", 0),
            ("retest", 1.5),
        ],
    )
    def test_options_out_of_range(self, tmp_path: Path, option: str, value: float) -> None:
        with pytest.raises(UsageError, match=f"{option}={value}"):
            simulate(tmp_path / "never", **{**OPTIONS, option: value})
        assert not (tmp_path / "never").exists()


def test_the_first_47_contrasts_have_names_of_their_own() -> None:
    names = contrast_names()
    assert len(set(names)) == len(names) == 47
    assert all(part.isalnum() for pair in names for part in pair)
