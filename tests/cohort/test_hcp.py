"""HCP Young Adult: runs, 47 contrasts, versions of the maps, and what is listed."""

import gzip
import threading
from collections import Counter

import pytest
from fsspec.implementations.local import LocalFileSystem

from cohort_files import write_bytes, write_table
from dtg_ray.cohort.layouts import hcp
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan

RESULTS = "MNINonLinear/Results"
COUNTS = {"LANGUAGE": 3, "RELATIONAL": 3, "SOCIAL": 3, "EMOTION": 3, "WM": 19, "MOTOR": 13, "GAMBLING": 3}
VOLUME = "tfMRI_{task}_hp200_s{smoothing}_level2vol.feat/cope{cope}.feat/stats/zstat1.nii.gz"
CONVERTED = "tfMRI_{task}_hp200_s{smoothing}_level2_MSMAll.feat/GrayordinatesStats/cope{cope}.feat/zstat1.nii.gz"


def write_run(root, subject, run, motion=True):
    """One rest run with what lies beside it."""
    folder = f"{root}/{subject}/{RESULTS}/rfMRI_{run}"
    for name in (f"rfMRI_{run}.nii.gz", f"rfMRI_{run}_Atlas_hp2000_clean.dtseries.nii", "Movement_RelativeRMS.txt"):
        write_bytes(f"{folder}/{name}", b"")
    beside = write_bytes(f"{folder}/Movement_RelativeRMS_mean.txt", b"0.1") if motion else ""
    return Scan(write_bytes(f"{folder}/rfMRI_{run}_hp2000_clean.nii.gz", b"run"), motion=beside)


def write_map(root, subject, task="EMOTION", cope=3, smoothing=4, pattern=VOLUME):
    path = pattern.format(task=task, cope=cope, smoothing=smoothing)
    return Scan(write_bytes(f"{root}/{subject}/{RESULTS}/tfMRI_{task}/{path}", b"map"))


class TestContrasts:
    def test_are_47_with_the_numbers_of_their_copes(self):
        known = hcp.contrast_copes()
        assert Counter(task for task, _ in known.values()) == COUNTS
        assert len(set(known.values())) == 47
        for name, (task, cope) in {
            "EMOTION_FACES": ("EMOTION", 1),
            "EMOTION_FACES-SHAPES": ("EMOTION", 3),
            "SOCIAL_TOM-RANDOM": ("SOCIAL", 6),
            "WM_2BK_BODY": ("WM", 1),
            "WM_2BK-0BK": ("WM", 11),
            "WM_TOOL-AVG": ("WM", 22),
            "MOTOR_T-AVG": ("MOTOR", 13),
            "LANGUAGE_MATH-STORY": ("LANGUAGE", 3),
            "RELATIONAL_MATCH-REL": ("RELATIONAL", 3),
            "GAMBLING_PUNISH-REWARD": ("GAMBLING", 3),
        }.items():
            assert known[name] == (task, cope)

    def test_of_all_tasks_are_found(self, tmp_path):
        write_run(tmp_path, "100307", "REST1_LR")
        known = hcp.contrast_copes()
        maps = {name: write_map(tmp_path, "100307", task, cope) for name, (task, cope) in known.items()}
        write_map(tmp_path, "100307", "EMOTION", cope=4)
        (person,) = hcp.find(str(tmp_path)).participants
        assert person.contrasts == maps

    def test_may_be_some(self, tmp_path):
        write_run(tmp_path, "100307", "REST1_LR")
        image = write_map(tmp_path, "100307", "WM", 11)
        write_map(tmp_path, "100307", "WM", 10)
        write_map(tmp_path, "100307", "EMOTION", 3)
        (person,) = hcp.find(str(tmp_path), contrasts=["WM_2BK-0BK"]).participants
        assert person.contrasts == {"WM_2BK-0BK": image}

    def test_that_are_not_known_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"got contrasts \['FACES'\], expected names such as LANGUAGE_MATH, "):
            hcp.find(str(tmp_path), contrasts=["FACES", "WM_2BK"])


class TestRuns:
    def test_of_a_cohort_with_a_table(self, root):
        runs = [write_run(root, "100307", run) for run in ("REST2_RL", "REST1_RL", "REST2_LR", "REST1_LR")]
        image = write_map(root, "100307")
        other = write_run(root, "211417", "REST1_LR", motion=False)
        write_map(root, "999999")
        write_bytes(f"{root}/999998/T1w/T1w_acpc_dc.nii.gz", b"")
        write_bytes(f"{root}/S1200_release/100307.txt", b"")
        table = write_table(f"{root}/unrestricted.csv", [{"Subject": 100307, "Age": "26-30"}, {"Subject": 100206}])
        found = hcp.find(root, tables=[table])
        one, two = found.participants
        assert (one.subject, one.rest, one.contrasts) == (
            "100307",
            [runs[3], runs[1], runs[2], runs[0]],
            {"EMOTION_FACES-SHAPES": image},
        )
        assert (two.subject, two.rest, two.contrasts) == ("211417", [other], {})
        assert found.left_out == {
            "100206": "in the tables, but without any image",
            "999998": "no rest run (rfMRI_REST*_hp2000_clean.nii.gz)",
            "999999": "no rest run (rfMRI_REST*_hp2000_clean.nii.gz)",
        }
        assert found.phenotypes.set_index("subject")["Age"].to_dict()["100307"] == "26-30"
        sizes = {scan.image: len(gzip.compress(b"run", 1)) for scan in (*runs, other)}
        assert found.sizes == {**sizes, image.image: len(gzip.compress(b"map", 1))}

    def test_that_were_not_cleaned_are_none(self, tmp_path):
        run = write_run(tmp_path, "100307", "REST1_LR")
        write_bytes(f"{tmp_path}/100307/{RESULTS}/rfMRI_REST1_RL/rfMRI_REST1_RL.nii.gz", b"")
        write_bytes(f"{tmp_path}/100307/{RESULTS}/rfMRI_REST1_7T_PA/rfMRI_REST1_7T_PA_hp2000_clean.nii.gz", b"")
        (person,) = hcp.find(str(tmp_path)).participants
        assert person.rest == [run]

    def test_not_fetched_by_datalad_have_no_size(self, tmp_path):
        run = write_run(tmp_path, "100307", "REST1_LR")
        path = tmp_path / run.image.removeprefix(f"{tmp_path}/")
        path.unlink()
        path.symlink_to("nowhere")
        found = hcp.find(str(tmp_path))
        assert found.participants[0].rest == [run]
        assert found.sizes == {run.image: -1}

    def test_folders_of_subjects_may_be_links(self, tmp_path):
        write_run(tmp_path / "archive", "100307", "REST1_LR")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "100307").symlink_to(tmp_path / "archive" / "100307")
        assert [person.subject for person in hcp.find(str(tmp_path / "data")).participants] == ["100307"]

    def test_nobody_with_one_is_an_error(self, root):
        write_map(root, "100307")
        with pytest.raises(ConfigError, match="got 1 folders of subjects, none with a rest run") as caught:
            hcp.find(root)
        assert "100307/MNINonLinear/Results/rfMRI_REST1_LR" in caught.value.hint
        with pytest.raises(ConfigError, match="nowhere: got 0 folders of subjects"):
            hcp.find(f"{root}/nowhere")


class TestSubjects:
    def test_may_be_some(self, root):
        for subject in ("100307", "100408", "211417"):
            write_run(root, subject, "REST1_LR")
        found = hcp.find(root, subjects=["211417", "100307", "599999", "211417"])
        assert [person.subject for person in found.participants] == ["100307", "211417"]
        assert found.left_out == {"599999": "no rest run (rfMRI_REST*_hp2000_clean.nii.gz)"}

    @pytest.mark.parametrize("name", ["../100307", "1003", "sub-100307", ""])
    def test_are_numbers(self, tmp_path, name):
        with pytest.raises(ConfigError, match="expected numbers of six digits"):
            hcp.find(str(tmp_path), subjects=["100307", name])

    def test_keep_their_order_and_their_files_when_there_are_many(self, tmp_path):
        names = [f"{100000 + number}" for number in range(60)]
        runs = {name: write_run(tmp_path, name, "REST1_LR") for name in reversed(names)}
        maps = {name: write_map(tmp_path, name) for name in names}
        found = hcp.find(str(tmp_path))
        assert [person.subject for person in found.participants] == names
        assert all(person.rest == [runs[person.subject]] for person in found.participants)
        assert all(list(person.contrasts.values()) == [maps[person.subject]] for person in found.participants)


class TestVersions:
    def test_of_any_smoothing_are_found(self, tmp_path):
        write_run(tmp_path, "100307", "REST1_LR")
        image = write_map(tmp_path, "100307", smoothing=12)
        (person,) = hcp.find(str(tmp_path)).participants
        assert person.contrasts == {"EMOTION_FACES-SHAPES": image}

    @pytest.fixture
    def folder(self, tmp_path):
        """Volumes of two smoothings, and one CIFTI analysis that somebody made into volumes."""
        write_run(tmp_path, "100307", "REST1_LR")
        self.maps = {
            (smoothing, analysis): write_map(tmp_path, "100307", smoothing=smoothing, pattern=pattern)
            for smoothing, analysis, pattern in (
                (2, "level2vol", VOLUME),
                (4, "level2vol", VOLUME),
                (2, "level2_MSMAll", CONVERTED),
            )
        }
        return str(tmp_path)

    def test_are_refused_with_a_hint(self, folder):
        with pytest.raises(
            ConfigError,
            match=r"versions: level2_MSMAll s2 \(100307\), level2vol s2 \(100307\), level2vol s4 \(100307\), exp",
        ) as caught:
            hcp.find(folder)
        assert "--smoothing" in caught.value.hint
        assert "--analysis" in caught.value.hint

    @pytest.mark.parametrize(
        ("choice", "chosen"),
        [
            ({"smoothing": 4}, (4, "level2vol")),
            ({"analysis": "level2_MSMAll"}, (2, "level2_MSMAll")),
            ({"smoothing": 2, "analysis": "level2vol"}, (2, "level2vol")),
        ],
    )
    def test_are_chosen(self, folder, choice, chosen):
        (person,) = hcp.find(folder, **choice).participants
        assert person.contrasts == {"EMOTION_FACES-SHAPES": self.maps[chosen]}

    @pytest.mark.parametrize("choice", [{"smoothing": 2}, {"analysis": "level2vol"}])
    def test_too_wide_a_choice_is_refused(self, folder, choice):
        with pytest.raises(ConfigError, match="got task maps in several versions"):
            hcp.find(folder, **choice)

    def test_one_that_nobody_has_leaves_no_maps(self, folder):
        (person,) = hcp.find(folder, smoothing=8).participants
        assert person.contrasts == {}

    def test_are_the_same_for_all_subjects(self, tmp_path):
        for subject, smoothing in (("100307", 2), ("100408", 4), ("100409", 8)):
            if subject != "100409":
                write_run(tmp_path, subject, "REST1_LR")
            write_map(tmp_path, subject, smoothing=smoothing)
        with pytest.raises(ConfigError, match=r"level2vol s2 \(100307\), level2vol s4 \(100408\), expected"):
            hcp.find(str(tmp_path))

    def test_of_people_who_do_not_take_part_do_not_count(self, tmp_path):
        write_run(tmp_path, "100307", "REST1_LR")
        image = write_map(tmp_path, "100307", smoothing=2)
        write_map(tmp_path, "100408", smoothing=4)
        assert hcp.find(str(tmp_path)).participants[0].contrasts == {"EMOTION_FACES-SHAPES": image}

    def test_in_cifti_alone_are_none(self, tmp_path):
        """The release has them for everybody; only what was made into volumes can be read."""
        write_run(tmp_path, "100307", "REST1_LR")
        image = write_map(tmp_path, "100307", smoothing=4)
        cifti = CONVERTED.replace("zstat1.nii.gz", "zstat1.dtseries.nii")
        for smoothing in (2, 4):
            write_map(tmp_path, "100307", smoothing=smoothing, pattern=cifti)
        (person,) = hcp.find(str(tmp_path)).participants
        assert person.contrasts == {"EMOTION_FACES-SHAPES": image}

    def test_in_another_folder_are_none(self, tmp_path):
        write_run(tmp_path, "100307", "REST1_LR")
        for pattern in (
            VOLUME.replace("hp200", "hp100"),
            VOLUME.replace("/stats/", "/"),
            CONVERTED.replace("GrayordinatesStats/", ""),
            VOLUME.replace("zstat1", "tstat1"),
        ):
            write_map(tmp_path, "100307", pattern=pattern)
        (person,) = hcp.find(str(tmp_path)).participants
        assert person.contrasts == {}


class TestMapsAlone:
    def test_are_found_without_a_rest_run(self, root):
        write_run(root, "100307", "REST1_LR")
        scan = write_map(root, "100408")
        found = hcp.find(root, needed="contrasts")
        (person,) = found.participants
        assert (person.subject, person.rest, person.contrasts) == ("100408", [], {"EMOTION_FACES-SHAPES": scan})
        assert found.left_out == {"100307": "no task map (zstat1.nii.gz)"}

    def test_in_several_versions_are_refused(self, tmp_path):
        for smoothing in (2, 4):
            write_map(tmp_path, "100408", smoothing=smoothing)
        with pytest.raises(ConfigError, match=r"in several versions: level2vol s2 .* level2vol s4"):
            hcp.find(str(tmp_path), needed="contrasts")

    def test_of_nobody_are_an_error(self, tmp_path):
        write_run(tmp_path, "100307", "REST1_LR")
        with pytest.raises(ConfigError, match="got 1 folders of subjects, none with a task map"):
            hcp.find(str(tmp_path), needed="contrasts")


class TestListing:
    """The bucket holds millions of objects."""

    @pytest.fixture
    def listed(self, monkeypatch):
        listed = []
        ls = LocalFileSystem.ls

        def recorded(self, path, **options):
            listed.append(str(path).rstrip("/"))
            return ls(self, path, **options)

        monkeypatch.setattr(LocalFileSystem, "ls", recorded)
        return listed

    @pytest.fixture
    def folder(self, tmp_path):
        for subject in ("100307", "100408"):
            write_run(tmp_path, subject, "REST1_LR")
            write_map(tmp_path, subject)
            write_map(tmp_path, subject, "WM", 1, smoothing=2)
            for other in (
                "T1w/a",
                f"{RESULTS}/tfMRI_EMOTION_LR/b",
                "MNINonLinear/c",
                f"{RESULTS}/rfMRI_REST1_LR/ica/d",
            ):
                write_bytes(f"{tmp_path}/{subject}/{other}", b"")
        write_bytes(tmp_path / "release-notes" / "e", b"")
        return tmp_path

    def test_leaves_out_all_that_is_not_needed(self, folder, listed):
        hcp.find(str(folder), smoothing=4)
        results = f"100307/{RESULTS}"
        feat = f"{results}/tfMRI_EMOTION/tfMRI_EMOTION_hp200_s4_level2vol.feat"
        below = sorted(path.removeprefix(f"{folder}/") for path in listed if "100408" not in path)
        assert below == sorted(
            [
                str(folder),
                results,
                *(f"{results}/{name}" for name in ("rfMRI_REST1_LR", "tfMRI_EMOTION", "tfMRI_WM")),
                *(f"{feat}{name}" for name in ("", "/cope3.feat", "/cope3.feat/stats")),
            ]
        )

    def test_of_the_root_is_not_needed_for_known_subjects(self, folder, listed):
        hcp.find(str(folder), smoothing=4, subjects=["100408"])
        assert all(path.startswith(f"{folder}/100408/{RESULTS}") for path in listed)

    def test_ends_with_the_first_sign_of_a_mistake(self, tmp_path, listed):
        for number in range(200):
            write_run(tmp_path, f"{100000 + number}", "REST1_LR")
            write_map(tmp_path, f"{100000 + number}", smoothing=2 if number else 4)
        threads = set(threading.enumerate())
        with pytest.raises(ConfigError) as caught:
            hcp.find(str(tmp_path))
        assert set(threading.enumerate()) <= threads, "though the error still holds all that led to it"
        assert "several versions" in str(caught.value)
        assert len({path for path in listed if path.endswith(RESULTS)}) < 200
