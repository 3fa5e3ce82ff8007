"""fMRIPrep's folders: what goes with a run, several folders side by side, links of DataLad."""

from pathlib import Path

import pytest

from cohort_files import bids_path, write_bytes, write_table
from dtg_ray.cohort.layouts import bids
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan

SPACE = "space-MNI152NLin6Asym"


def touch(root, subject, *entities, suffix="bold", extension=".nii.gz"):
    """An empty file under a BIDS name: layouts look at names only."""
    return write_bytes(bids_path(root, subject, *entities, suffix=suffix, extension=extension), b"")


def preprocessed(root, *entities, confounds="timeseries", space=(SPACE, "res-2")):
    """One run as fMRIPrep writes it: BOLD, its mask, its confounds."""
    run = ["task-rest", *entities]
    return Scan(
        touch(root, "01", *run, *space, "desc-preproc"),
        mask=touch(root, "01", *run, *space, "desc-brain", suffix="mask"),
        confounds=touch(root, "01", *run, "desc-confounds", suffix=confounds, extension=".tsv"),
    )


class TestCompanions:
    @pytest.mark.parametrize("confounds", ["timeseries", "regressors"])
    @pytest.mark.parametrize("space", [(SPACE, "res-2"), (SPACE,), ("space-T1w",), ()])
    def test_are_the_mask_and_the_confounds_of_the_same_run(self, tmp_path, confounds, space):
        runs = [preprocessed(tmp_path, f"run-{run}", confounds=confounds, space=space) for run in (1, 2)]
        chosen = space[0].removeprefix("space-") if space else "native"
        (person,) = bids.find(str(tmp_path), select={"space": chosen}).participants
        assert person.rest == runs

    def test_of_sessions_are_not_mixed_up(self, root):
        runs = [preprocessed(root, f"ses-{session}") for session in (1, 2)]
        (person,) = bids.find(root).participants
        assert person.rest == runs

    @pytest.mark.parametrize(
        "entities",
        [["space-T1w", "desc-brain"], [SPACE, "res-1", "desc-brain"], ["desc-brain"], [SPACE, "res-2", "desc-aseg"]],
    )
    def test_a_mask_in_another_space_is_none(self, tmp_path, entities):
        run = touch(tmp_path, "01", "task-rest", SPACE, "res-2", "desc-preproc")
        touch(tmp_path, "01", "task-rest", *entities, suffix="mask")
        (person,) = bids.find(str(tmp_path)).participants
        assert person.rest == [Scan(run)]

    @pytest.mark.parametrize(
        ("entities", "suffix"),
        [
            (["task-rest", "run-2", "desc-confounds"], "timeseries"),
            (["task-rest", "desc-confounds"], "timeseries"),
            (["task-rest", "run-1", "desc-carpetplot"], "timeseries"),
            (["task-rest", "run-1", "desc-confounds"], "events"),
        ],
    )
    def test_confounds_of_another_run_or_kind_are_none(self, tmp_path, entities, suffix):
        run = touch(tmp_path, "01", "task-rest", "run-1", SPACE)
        touch(tmp_path, "01", *entities, suffix=suffix, extension=".tsv")
        (person,) = bids.find(str(tmp_path)).participants
        assert person.rest == [Scan(run)]

    def test_todays_name_of_the_confounds_goes_before_the_old_one(self, tmp_path):
        preprocessed(tmp_path, confounds="regressors")
        run = preprocessed(tmp_path, confounds="timeseries")
        (person,) = bids.find(str(tmp_path)).participants
        assert person.rest == [run]

    def test_are_found_whatever_is_selected(self, tmp_path):
        run = preprocessed(tmp_path)
        touch(tmp_path, "01", "task-rest", "space-T1w", "desc-preproc")
        select = {"space": "MNI152NLin6Asym", "res": "2", "desc": "preproc"}
        (person,) = bids.find(str(tmp_path), select=select).participants
        assert person.rest == [run]


class TestSeveralFolders:
    def test_are_joined_by_subject(self, tmp_path, root):
        run = preprocessed(f"{root}/fmriprep")
        image = touch(f"{tmp_path}/fitlins", "01", "task-MOTOR", "contrast-LH", "stat-z", suffix="statmap")
        touch(f"{tmp_path}/fitlins", "02", "task-MOTOR", "contrast-LH", "stat-z", suffix="statmap")
        write_table(f"{root}/fmriprep/participants.tsv", [{"participant_id": "sub-01", "age": 50}])
        write_table(f"{tmp_path}/fitlins/phenotypes.tsv", [{"participant_id": "sub-01", "score": 2}])
        found = bids.find([f"{root}/fmriprep", f"{tmp_path}/fitlins"])
        (person,) = found.participants
        assert (person.subject, person.rest, person.contrasts) == ("sub-01", [run], {"MOTOR_LH": Scan(image)})
        assert found.left_out == {"sub-02": "no rest run (task-rest)"}
        assert found.phenotypes.to_dict("records") == [{"subject": "sub-01", "age": 50, "score": 2}]

    def test_may_hold_copies_of_the_same_table(self, tmp_path):
        for folder in ("a", "b"):
            write_table(tmp_path / folder / "participants.tsv", [{"participant_id": "sub-01", "age": 50}])
        touch(tmp_path / "a", "01", "task-rest")
        found = bids.find([str(tmp_path / "a"), str(tmp_path / "b")])
        assert found.phenotypes.to_dict("records") == [{"subject": "sub-01", "age": 50}]

    def test_what_cleaned_data_lack_comes_from_where_they_were_made(self, tmp_path):
        """XCP-D's runs have the masks and confounds of fMRIPrep; a folder's own mask goes first."""
        made = preprocessed(tmp_path / "fmriprep")
        cleaned = touch(tmp_path / "xcpd", "01", "task-rest", SPACE, "res-2", "desc-denoised")
        folders = [str(tmp_path / name) for name in ("fmriprep", "xcpd")]
        (person,) = bids.find(folders, select={"desc": "denoised"}).participants
        assert person.rest == [Scan(cleaned, mask=made.mask, confounds=made.confounds)]
        own = touch(tmp_path / "xcpd", "01", "task-rest", SPACE, "res-2", "desc-brain", suffix="mask")
        (person,) = bids.find(folders, select={"desc": "denoised"}).participants
        assert person.rest == [Scan(cleaned, mask=own, confounds=made.confounds)]

    def test_of_one_file_are_no_versions_of_it(self, tmp_path):
        path = touch(tmp_path / "a", "01", "task-rest")
        (person,) = bids.find([str(tmp_path), str(tmp_path / "a"), f"{tmp_path}/a/"]).participants
        assert person.rest == [Scan(path)]

    def test_one_that_is_not_there_is_an_error(self, tmp_path):
        touch(tmp_path / "a", "01", "task-rest")
        with pytest.raises(ConfigError, match="nowhere: got no file below it"):
            bids.find([str(tmp_path / "a"), str(tmp_path / "nowhere")])


class TestLinks:
    """DataLad keeps files as links into its annex, whether it has fetched them or not."""

    def test_to_files_are_files(self, tmp_path):
        content = write_bytes(tmp_path / "annex" / "MD5E-s5--0123.nii.gz", b"12345")
        run = bids_path(tmp_path / "data", "01", "task-rest", suffix="bold")
        Path(run).parent.mkdir(parents=True)
        Path(run).symlink_to(content)
        found = bids.find(str(tmp_path / "data"))
        assert [person.rest for person in found.participants] == [[Scan(run)]]
        assert found.sizes == {run: Path(content).stat().st_size}

    def test_to_what_was_not_fetched_are_files_without_a_size(self, tmp_path):
        run = bids_path(tmp_path, "01", "task-rest", suffix="bold")
        Path(run).parent.mkdir(parents=True)
        Path(run).symlink_to("../../.git/annex/objects/nowhere")
        found = bids.find(str(tmp_path))
        assert [person.rest for person in found.participants] == [[Scan(run)]]
        assert found.sizes == {run: -1}

    def test_to_folders_of_people_are_followed(self, tmp_path):
        touch(tmp_path / "archive", "01", "task-rest")
        own = touch(tmp_path / "data", "02", "task-rest")
        (tmp_path / "data" / "sub-01").symlink_to(tmp_path / "archive" / "sub-01")
        (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
        linked = bids_path(tmp_path / "data", "01", "task-rest", suffix="bold")
        assert [person.rest for person in bids.find(str(tmp_path / "data")).participants] == [
            [Scan(linked)],
            [Scan(own)],
        ]
