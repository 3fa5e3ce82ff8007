"""BIDS derivatives: names, versions of a run, runs in order, and who is left out."""

import doctest

import pytest

from cohort_files import bids_path, task_map, write_bytes, write_cohort, write_image, write_map, write_rest, write_table
from dtg_ray.cohort.layouts import bids
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan

SPACE = "space-MNI152NLin6Asym"


def touch(root, subject, *entities, suffix="bold", extension=".nii.gz"):
    """An empty file under a BIDS name: layouts look at names only."""
    return write_bytes(bids_path(root, subject, *entities, suffix=suffix, extension=extension), b"")


def file_names(scans):
    return [scan.image.rsplit("/", 1)[1] for scan in scans]


class TestNames:
    def test_the_example_in_the_documentation_holds(self):
        assert doctest.testmod(bids) == doctest.TestResults(failed=0, attempted=1)

    @pytest.mark.parametrize(
        ("name", "entities", "suffix"),
        [
            ("sub-01_task-rest_bold.nii", {"sub": "01", "task": "rest"}, "bold"),
            (
                "sub-A1/ses-2/func/sub-A1_ses-2_task-rest_dir-AP_run-10_space-T1w_res-2_desc-preproc_bold.nii.gz",
                {"sub": "A1", "ses": "2", "task": "rest", "dir": "AP", "run": "10", "space": "T1w", "res": "2"}
                | {"desc": "preproc"},
                "bold",
            ),
            ("sub-1_space-MNI152NLin2009cAsym+MNI_bold.nii", {"sub": "1", "space": "MNI152NLin2009cAsym+MNI"}, "bold"),
            (
                "sub-7_task-MOTOR_contrast-LHvsRH_stat-z_statmap.nii.gz",
                {"sub": "7", "task": "MOTOR", "contrast": "LHvsRH", "stat": "z"},
                "statmap",
            ),
            ("sub-01_task-rest_bold.nii.zst", {"sub": "01", "task": "rest"}, "bold"),
            (
                "sub-01_task-rest_den-91k_bold.dtseries.nii",
                {"sub": "01", "task": "rest", "den": "91k"},
                "bold.dtseries",
            ),
            ("sub-01_task-rest_bold.json", {}, ""),
            ("sub-01_task-rest_bold.tsv", {}, ""),
            ("sub-01_task-rest_bold.nii.gz.part", {}, ""),
            ("participants.tsv", {}, ""),
            ("T1w.nii.gz", {}, "T1w"),
            ("sub-01_desc-brain_mask.nii.gz", {"sub": "01", "desc": "brain"}, "mask"),
            ("my_own_file-name_.nii", {"file": "name"}, ""),
        ],
    )
    def test_are_taken_apart(self, name, entities, suffix):
        assert bids.parse(name) == (entities, suffix)


class TestFind:
    def test_a_cohort_with_its_tables(self, root):
        write_cohort(root, subjects=3, without_maps=1)
        found = bids.find(root)
        assert [person.subject for person in found.participants] == ["sub-01", "sub-02", "sub-03"]
        assert found.participants[0].rest == [Scan(bids_path(root, "01", "task-rest", suffix="bold"))]
        assert [sorted(person.contrasts) for person in found.participants] == [["MOTOR_LH", "MOTOR_RH"]] * 2 + [[]]
        assert file_names([found.participants[1].contrasts["MOTOR_RH"]]) == [
            "sub-02_task-MOTOR_contrast-RH_stat-z_statmap.nii.gz"
        ]
        assert found.left_out == {}
        assert found.phenotypes.to_dict("list") == {
            "subject": ["sub-01", "sub-02", "sub-03"],
            "sex": ["M", "F", "M"],
            "age": [50, 51, 52],
        }

    def test_runs_and_sessions_in_natural_order(self, tmp_path):
        for run in (10, 2, 1):
            touch(tmp_path, "01", "ses-1", "task-rest", f"run-{run}")
        touch(tmp_path, "01", "ses-2", "task-rest", "run-1")
        (person,) = bids.find(str(tmp_path)).participants
        assert file_names(person.rest) == [
            "sub-01_ses-1_task-rest_run-1_bold.nii.gz",
            "sub-01_ses-1_task-rest_run-2_bold.nii.gz",
            "sub-01_ses-1_task-rest_run-10_bold.nii.gz",
            "sub-01_ses-2_task-rest_run-1_bold.nii.gz",
        ]

    def test_only_rest_runs_and_z_maps_are_taken(self, tmp_path):
        write_rest(tmp_path, "01")
        touch(tmp_path, "01", "task-MOTOR")
        touch(tmp_path, "01", "task-rest", suffix="boldref")
        touch(tmp_path, "01", "task-rest", extension=".json")
        touch(tmp_path, "01", "task-rest", "desc-brain", suffix="mask")
        touch(tmp_path, "01", "task-MOTOR", "contrast-LH", "stat-t", suffix="statmap")
        touch(tmp_path, "01", "task-MOTOR", "contrast-LH", "stat-effect", suffix="statmap")
        touch(tmp_path, "01", "task-MOTOR", "stat-z", suffix="statmap")
        write_map(tmp_path, "01", "LH")
        write_image(f"{tmp_path}/group/task-rest_bold.nii.gz", task_map())
        (person,) = bids.find(str(tmp_path)).participants
        assert file_names(person.rest) == ["sub-01_task-rest_bold.nii.gz"]
        assert person.contrasts == {
            "MOTOR_LH": Scan(bids_path(tmp_path, "01", *["task-MOTOR", "contrast-LH", "stat-z"], suffix="statmap"))
        }

    def test_a_contrast_is_named_after_its_task_too(self, tmp_path):
        write_rest(tmp_path, "01")
        for task in ("WM", "GAMBLING"):
            write_map(tmp_path, "01", "REWARD", task=task)
        touch(tmp_path, "01", "contrast-ODD", suffix="statmap")
        (person,) = bids.find(str(tmp_path)).participants
        assert set(person.contrasts) == {"WM_REWARD", "GAMBLING_REWARD", "ODD"}

    def test_the_rest_task_can_have_another_name(self, tmp_path):
        touch(tmp_path, "01", "task-eyesopen")
        touch(tmp_path, "01", "task-rest")
        (person,) = bids.find(str(tmp_path), rest_task="eyesopen").participants
        assert file_names(person.rest) == ["sub-01_task-eyesopen_bold.nii.gz"]


class TestMaps:
    @pytest.mark.parametrize(
        ("entities", "suffix"),
        [
            (["contrast-LH", "stat-z"], "statmap"),
            (["contrast-LH"], "statmap"),
            (["contrast-LH"], "zmap"),
            (["contrast-LH"], "zstat"),
            (["feature-taskBased", "taskcontrast-LH", "stat-z"], "statmap"),
            (["taskcontrast-LH", "model-acrossRuns", "contrast-intercept", "stat-z"], "statmap"),
        ],
    )
    def test_of_any_tool_are_known_by_their_contrast(self, tmp_path, entities, suffix):
        touch(tmp_path, "01", "task-rest")
        path = touch(tmp_path, "01", "task-MOTOR", *entities, suffix=suffix)
        (person,) = bids.find(str(tmp_path)).participants
        assert person.contrasts == {"MOTOR_LH": Scan(path)}

    @pytest.mark.parametrize(
        ("entities", "suffix"),
        [
            *((["contrast-LH", f"stat-{stat}"], "statmap") for stat in ("t", "effect", "p", "variance", "F")),
            (["contrast-LH", "stat-t"], "zmap"),
            (["stat-z"], "statmap"),
            ([], "zmap"),
            (["contrast-LH"], "tstat"),
            (["contrast-LH"], "mask"),
        ],
    )
    def test_of_other_statistics_are_not_taken(self, tmp_path, entities, suffix):
        touch(tmp_path, "01", "task-rest")
        touch(tmp_path, "01", "task-MOTOR", *entities, suffix=suffix)
        (person,) = bids.find(str(tmp_path)).participants
        assert person.contrasts == {}

    @pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".nii.zst"])
    def test_and_runs_may_be_packed_in_any_way(self, tmp_path, extension):
        run = touch(tmp_path, "01", "task-rest", extension=extension)
        image = touch(tmp_path, "01", "task-MOTOR", "contrast-LH", suffix="zmap", extension=extension)
        (person,) = bids.find(str(tmp_path)).participants
        assert (person.rest, person.contrasts) == ([Scan(run)], {"MOTOR_LH": Scan(image)})

    def test_in_several_spaces_are_chosen_by_entities(self, tmp_path):
        touch(tmp_path, "01", "task-rest", SPACE)
        for space in ("space-MNI152NLin2009cAsym", SPACE):
            touch(tmp_path, "01", "task-MOTOR", space, "contrast-LH", "stat-z", suffix="statmap")
        with pytest.raises(ConfigError, match="got 2 versions of statmap sub-01 MOTOR_LH"):
            bids.find(str(tmp_path))
        (person,) = bids.find(str(tmp_path), select={"space": "MNI152NLin6Asym"}).participants
        assert SPACE in person.contrasts["MOTOR_LH"].image

    @pytest.mark.parametrize("space", [["space-T1w"], ["space-individual"], []])
    def test_in_the_space_of_a_person_are_taken_only_when_that_is_selected(self, tmp_path, space):
        run = touch(tmp_path, "01", "task-rest", *space, "desc-preproc")
        image = touch(tmp_path, "01", "task-MOTOR", *space, "contrast-LH", "stat-z", "desc-preproc", suffix="statmap")
        other = touch(tmp_path, "02", "task-rest", SPACE, "desc-preproc")
        found = bids.find(str(tmp_path))
        assert [person.rest for person in found.participants] == [[Scan(other)]]
        assert found.left_out == {"sub-01": "no rest run (task-rest) as selected, or only in an individual space"}
        chosen = space[0].removeprefix("space-") if space else "native"
        (person,) = bids.find(str(tmp_path), select={"space": chosen}).participants
        assert (person.rest, person.contrasts["MOTOR_LH"]) == ([Scan(run)], Scan(image))

    def test_an_entity_that_no_image_has_cannot_be_selected(self, tmp_path):
        touch(tmp_path, "01", "task-rest", SPACE)
        with pytest.raises(ConfigError, match="got --select spcae, an entity that no image has"):
            bids.find(str(tmp_path), select={"spcae": "MNI152NLin6Asym"})


class TestSizes:
    def test_are_those_of_the_images_in_the_listing(self, root):
        run = write_bytes(bids_path(root, "01", "task-rest", suffix="bold", extension=".nii"), bytes(100))
        image = write_bytes(f"{root}/sub-01/sub-01_task-MOTOR_contrast-LH_zmap.nii", bytes(20))
        write_bytes(f"{root}/sub-01/anat/sub-01_T1w.nii", bytes(3))
        assert bids.find(root).sizes == {run: 100, image: 20}


class TestVersions:
    @pytest.fixture
    def folder(self, tmp_path):
        for version in (["space-T1w"], [SPACE, "res-2"], [SPACE, "res-1"], [SPACE, "res-2", "desc-smooth"]):
            touch(tmp_path, "01", "task-rest", *version)
        write_map(tmp_path, "01", "LH")
        return str(tmp_path)

    def test_of_one_run_are_refused_with_a_hint(self, folder):
        with pytest.raises(ConfigError, match=r"got \d versions of bold sub-01 task-rest: sub-01_task-rest_") as caught:
            bids.find(folder)
        assert "--select space=" in caught.value.hint

    def test_are_chosen_by_entities(self, folder):
        for select, chosen in (
            ({"space": "T1w"}, "sub-01_task-rest_space-T1w_bold.nii.gz"),
            ({"space": "MNI152NLin6Asym", "res": "1"}, f"sub-01_task-rest_{SPACE}_res-1_bold.nii.gz"),
        ):
            (person,) = bids.find(folder, select=select).participants
            assert file_names(person.rest) == [chosen]

    def test_files_without_the_entity_are_not_turned_away(self, folder):
        (person,) = bids.find(folder, select={"space": "T1w"}).participants
        assert set(person.contrasts) == {"MOTOR_LH"}

    def test_bold_without_a_space_is_native(self, folder, tmp_path):
        touch(tmp_path, "01", "task-rest")
        (person,) = bids.find(folder, select={"space": "T1w"}).participants
        assert file_names(person.rest) == ["sub-01_task-rest_space-T1w_bold.nii.gz"]
        (person,) = bids.find(folder, select={"space": "native"}).participants
        assert file_names(person.rest) == ["sub-01_task-rest_bold.nii.gz"]

    def test_too_wide_a_choice_is_refused(self, folder):
        with pytest.raises(ConfigError, match="got 2 versions"):
            bids.find(folder, select={"space": "MNI152NLin6Asym", "res": "2"})

    @pytest.mark.parametrize("entity", ["echo", "part"])
    def test_echoes_and_phases_are_versions_not_runs(self, tmp_path, entity):
        for value in ("1", "2"):
            touch(tmp_path, "01", "task-rest", f"{entity}-{value}")
        with pytest.raises(ConfigError, match="got 2 versions of bold sub-01 task-rest"):
            bids.find(str(tmp_path))
        (person,) = bids.find(str(tmp_path), select={entity: "2"}).participants
        assert file_names(person.rest) == [f"sub-01_task-rest_{entity}-2_bold.nii.gz"]

    def test_of_runs_and_sessions_are_runs_of_their_own(self, tmp_path):
        for session in ("1", "2"):
            for run in ("1", "2"):
                touch(tmp_path, "01", f"ses-{session}", "task-rest", f"run-{run}")
        for select, count in (({}, 4), ({"ses": "2"}, 2), ({"run": "1"}, 2), ({"ses": "1", "run": "2"}, 1)):
            (person,) = bids.find(str(tmp_path), select=select).participants
            assert len(person.rest) == count

    def test_of_one_contrast_are_refused(self, tmp_path):
        write_rest(tmp_path, "01")
        for session in ("ses-1", "ses-2"):
            write_map(tmp_path, "01", "LH", session)
        with pytest.raises(ConfigError, match="got 2 versions of statmap sub-01 MOTOR_LH"):
            bids.find(str(tmp_path))
        (person,) = bids.find(str(tmp_path), select={"ses": "2"}).participants
        assert "ses-2" in person.contrasts["MOTOR_LH"].image


class TestDatasetsInside:
    def folder(self, root, description):
        write_cohort(root, subjects=2, without_maps=0)
        if description:
            write_bytes(f"{root}/dataset_description.json", b"{}")
        return root

    @pytest.mark.parametrize("place", ["derivatives/fitlins", "derivatives", "sub-01"])
    def test_are_read_as_derivatives_and_of_a_subject(self, root, place):
        self.folder(root, description=True)
        write_bytes(f"{root}/{place}/dataset_description.json", b"{}")
        write_map(f"{root}/{place}", "01", "T")
        assert set(bids.find(root).participants[0].contrasts) == {"MOTOR_LH", "MOTOR_RH", "MOTOR_T"}

    def test_are_others(self, root):
        self.folder(root, description=True)
        self.folder(f"{root}/retest", description=True)
        found = bids.find(root)
        assert [len(person.rest) for person in found.participants] == [1, 1]
        assert not any("/retest/" in scan.image for one in found.participants for scan in one.contrasts.values())

    def test_of_a_folder_that_is_none_are_all_read(self, root):
        for name in ("fmriprep", "fitlins"):
            write_bytes(f"{root}/{name}/dataset_description.json", b"{}")
        write_rest(f"{root}/fmriprep", "01")
        write_map(f"{root}/fitlins", "01", "LH")
        (person,) = bids.find(root).participants
        assert person.rest
        assert person.contrasts


class TestMapsAlone:
    def test_are_found_without_a_rest_run(self, tmp_path):
        write_map(tmp_path, "01", "LH")
        touch(tmp_path, "02", "task-rest")
        found = bids.find(str(tmp_path), needed="contrasts")
        assert [person.subject for person in found.participants] == ["sub-01"]
        assert found.left_out == {"sub-02": "no task map"}

    def test_need_not_have_the_entities_that_choose_runs(self, tmp_path):
        write_map(tmp_path, "01", "LH", SPACE)
        chosen = {"space": "MNI152NLin6Asym", "desc": "preproc"}
        assert bids.find(str(tmp_path), needed="contrasts", select=chosen).participants[0].contrasts

    def test_of_nobody_are_an_error(self, tmp_path):
        touch(tmp_path, "02", "task-rest")
        with pytest.raises(ConfigError, match=r"got no \*_contrast-\*_statmap.nii.gz below it"):
            bids.find(str(tmp_path), needed="contrasts")


class TestLeftOut:
    def test_everybody_has_a_reason(self, tmp_path):
        write_rest(tmp_path, "01")
        write_map(tmp_path, "02", "LH")
        write_table(
            tmp_path / "participants.tsv",
            [{"participant_id": f"sub-{name}"} for name in ("01", "02", "03", *range(10, 20))],
        )
        found = bids.find(str(tmp_path))
        assert [person.subject for person in found.participants] == ["sub-01"]
        assert list(found.left_out.items()) == [
            ("sub-02", "no rest run (task-rest)"),
            ("sub-03", "in the tables, but without any image"),
            *((f"sub-{number}", "in the tables, but without any image") for number in range(10, 20)),
        ]

    def test_a_run_that_was_not_selected_is_another_reason_than_none(self, tmp_path):
        touch(tmp_path, "01", "task-rest", SPACE)
        touch(tmp_path, "02", "task-rest", "space-T1w")
        touch(tmp_path, "03", suffix="T1w")
        found = bids.find(str(tmp_path), select={"space": "MNI152NLin6Asym"})
        assert found.left_out == {
            "sub-02": "no rest run (task-rest) as selected, or only in an individual space",
            "sub-03": "no rest run (task-rest)",
        }

    def test_nobody_with_a_rest_run_is_an_error(self, tmp_path):
        write_map(tmp_path, "01", "LH")
        with pytest.raises(ConfigError, match=r"got no \*_task-rest_\*_bold.nii.gz below it") as caught:
            bids.find(str(tmp_path))
        assert "--rest-task" in caught.value.hint

    def test_a_folder_that_is_not_there_is_an_error(self, root):
        with pytest.raises(ConfigError, match="got no"):
            bids.find(f"{root}/nowhere")


class TestTables:
    def test_are_joined_by_subject(self, tmp_path):
        write_rest(tmp_path, "01")
        write_rest(tmp_path, "02")
        write_table(tmp_path / "participants.tsv", [{"participant_id": "sub-02", "age": 70}])
        write_table(
            tmp_path / "phenotypes.tsv",
            [{"participant_id": "sub-01", "score": 1.5}, {"participant_id": "sub-02", "score": 2.5}],
        )
        table = bids.find(str(tmp_path)).phenotypes.set_index("subject")
        assert table.loc["sub-02"].to_dict() == {"age": 70, "score": 2.5}
        assert table["score"].to_dict() == {"sub-01": 1.5, "sub-02": 2.5}
        assert table["age"].isna().to_dict() == {"sub-01": True, "sub-02": False}

    def test_a_column_in_both_is_refused(self, tmp_path):
        write_rest(tmp_path, "01")
        write_table(tmp_path / "participants.tsv", [{"participant_id": "sub-01", "sex": "M"}])
        write_table(tmp_path / "phenotypes.tsv", [{"participant_id": "sub-01", "sex": "M", "score": 2}])
        with pytest.raises(
            ConfigError, match=r"phenotypes.tsv: got columns \['sex'\] that participants.tsv has as well"
        ):
            bids.find(str(tmp_path))
