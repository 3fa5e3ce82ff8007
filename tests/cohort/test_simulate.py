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
        [("subjects", 0), ("rois", 1), ("missing", 2), ("contrasts", 48), ("volumes", 1), ("tr", 0), ("resolution", 0)],
    )
    def test_options_out_of_range(self, tmp_path: Path, option: str, value: float) -> None:
        with pytest.raises(UsageError, match=f"{option}={value}"):
            simulate(tmp_path / "never", **{**OPTIONS, option: value})
        assert not (tmp_path / "never").exists()


def test_the_first_47_contrasts_have_names_of_their_own() -> None:
    names = contrast_names()
    assert len(set(names)) == len(names) == 47
    assert all(part.isalnum() for pair in names for part in pair)
