"""UK Biobank bulk files: zips, unpacked folders, instances, and who is left out."""

import io
import zipfile

import pytest

from cohort_files import write_bytes, write_table
from dtg_ray.cohort.layouts import ukb
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.streams import read_all

ICA, FEAT = "fMRI/rfMRI.ica", "fMRI/tfMRI.feat"
IMAGE = f"{ICA}/filtered_func_data_clean.nii.gz"
MASK = f"{ICA}/mask.nii.gz"
WARP = f"{ICA}/reg/example_func2standard_warp.nii.gz"
MOTION = f"{ICA}/mc/prefiltered_func_data_mcf_rel_mean.rms"
ZSTAT = f"{FEAT}/stats/zstat5.nii.gz"
TASK_MASK = f"{FEAT}/mask.nii.gz"
TASK_WARP = f"{FEAT}/reg/example_func2standard_warp.nii.gz"
REST_FILES = (IMAGE, MASK, WARP, MOTION)
TASK_FILES = (ZSTAT, TASK_MASK, TASK_WARP)
OTHERS = (f"{ICA}/filtered_func_data.nii.gz", f"{ICA}/reg/standard2example_func_warp.nii.gz", "fMRI/rfMRI.nii.gz")
CONTRAST = "EMOTION_FACES-SHAPES"


def zipped(root, name, data=b"no zip at all"):
    return write_bytes(f"{root}/{name}.zip", data)


def unpacked(root, name, files):
    for file in files:
        write_bytes(f"{root}/{name}/{file}", b"")
    return f"{root}/{name}"


def rest_in(place):
    return Scan(f"{place}/{IMAGE}", warp=f"{place}/{WARP}", mask=f"{place}/{MASK}", motion=f"{place}/{MOTION}")


def task_in(place, image=ZSTAT):
    return Scan(f"{place}/{image}", warp=f"{place}/{TASK_WARP}", mask=f"{place}/{TASK_MASK}")


def in_zip(scan_in, archive, **options):
    """The same files as members of a zip."""
    scan = scan_in("", **options)
    return Scan(**{part: f"zip://{path.removeprefix('/')}::{archive}" for part, path in scan.entry().items()})


class TestZips:
    def test_of_a_cohort_with_a_table(self, root):
        archives = [zipped(root, f"{eid}_20227_2_0", bytes(int(eid[-1]))) for eid in ("1000011", "1000022")]
        task = zipped(root, "1000022_20249_2_0")
        zipped(root, "1000011_20252_2_0")
        table = write_table(f"{root}/t.csv", [{"eid": "1000022", "age": 60}, {"eid": "1000033", "age": 70}])
        found = ukb.find(root, tables=[table])
        one, two = found.participants
        assert (one.subject, one.rest, one.contrasts) == ("1000011", [in_zip(rest_in, archives[0])], {})
        assert (two.subject, two.rest) == ("1000022", [in_zip(rest_in, archives[1])])
        assert two.contrasts == {CONTRAST: in_zip(task_in, task)}
        assert found.left_out == {"1000033": "in the tables, but without any image"}
        assert found.phenotypes.to_dict("records") == [
            {"subject": "1000022", "age": 60},
            {"subject": "1000033", "age": 70},
        ]
        assert found.sizes == {archives[0]: 1, archives[1]: 2, task: len(b"no zip at all")}

    def test_may_lie_in_any_folder(self, tmp_path):
        flat = zipped(tmp_path, "1000011_20227_2_0")
        deep = zipped(tmp_path / "Bulk" / "fMRI" / "10", "1000022_20227_2_0")
        found = ukb.find(str(tmp_path))
        assert [person.rest for person in found.participants] == [[in_zip(rest_in, flat)], [in_zip(rest_in, deep)]]

    @pytest.mark.parametrize(
        "name", ["1000022_20227_2_0.zip.part", "1000022_20227_2_0.bulk", "x1000022_20227_2_0.zip", "1000022_20227.zip"]
    )
    def test_of_other_names_are_none(self, tmp_path, name):
        zipped(tmp_path, "1000011_20227_2_0")
        write_bytes(tmp_path / name, b"")
        found = ukb.find(str(tmp_path))
        assert [person.subject for person in found.participants] == ["1000011"]
        assert found.left_out == {}

    def test_open_where_their_members_are_said_to_be(self, root):
        for field, files in (("20227", REST_FILES), ("20249", TASK_FILES)):
            data = io.BytesIO()
            with zipfile.ZipFile(data, "w") as archive:
                for file in files:
                    archive.writestr(file, file)
            zipped(root, f"1000011_{field}_2_0", data.getvalue())
        (person,) = ukb.find(root).participants
        uris = [uri for scan in (*person.rest, *person.contrasts.values()) for uri in scan.entry().values()]
        assert [read_all(uri, 1000).decode() for uri in uris] == [
            IMAGE,
            WARP,
            MASK,
            MOTION,
            ZSTAT,
            TASK_WARP,
            TASK_MASK,
        ]


class TestUnpacked:
    def test_in_folders_of_the_zips_names(self, root):
        rest = unpacked(root, "1000011_20227_2_0", (*REST_FILES, *OTHERS))
        task = unpacked(f"{root}/fMRI/tasks", "1000011_20249_2_0", TASK_FILES)
        found = ukb.find(root)
        (person,) = found.participants
        assert (person.subject, person.rest, person.contrasts) == (
            "1000011",
            [rest_in(rest)],
            {CONTRAST: task_in(task)},
        )
        assert set(found.sizes) == {f"{rest}/{IMAGE}", f"{task}/{ZSTAT}"}

    @pytest.mark.parametrize("instance", [2, 3])
    def test_in_one_folder_per_person_of_whatever_instance(self, tmp_path, instance):
        place = unpacked(tmp_path, "1000011", (*REST_FILES, *TASK_FILES, *OTHERS))
        (person,) = ukb.find(str(tmp_path), instance=instance).participants
        assert (person.subject, person.rest, person.contrasts) == (
            "1000011",
            [rest_in(place)],
            {CONTRAST: task_in(place)},
        )

    def test_may_stand_beside_a_zip(self, tmp_path):
        rest = unpacked(tmp_path, "1000011", REST_FILES)
        task = zipped(tmp_path, "1000011_20249_2_0")
        (person,) = ukb.find(str(tmp_path)).participants
        assert (person.rest, person.contrasts) == ([rest_in(rest)], {CONTRAST: in_zip(task_in, task)})

    def test_masks_and_motion_are_taken_where_they_are_there(self, tmp_path):
        place = unpacked(tmp_path, "1000011", (IMAGE, WARP, ZSTAT, TASK_WARP))
        (person,) = ukb.find(str(tmp_path)).participants
        assert person.rest == [Scan(f"{place}/{IMAGE}", warp=f"{place}/{WARP}")]
        assert person.contrasts == {CONTRAST: Scan(f"{place}/{ZSTAT}", warp=f"{place}/{TASK_WARP}")}

    def test_a_missing_warp_is_named_nevertheless(self, tmp_path):
        """Without it the image would be taken for one in standard space."""
        place = unpacked(tmp_path, "1000011", (IMAGE, ZSTAT))
        (person,) = ukb.find(str(tmp_path)).participants
        assert person.rest == [Scan(f"{place}/{IMAGE}", warp=f"{place}/{WARP}")]
        assert person.contrasts == {CONTRAST: Scan(f"{place}/{ZSTAT}", warp=f"{place}/{TASK_WARP}")}

    def test_a_missing_map_was_not_acquired(self, tmp_path):
        unpacked(tmp_path, "1000011", (*REST_FILES, TASK_MASK, TASK_WARP))
        (person,) = ukb.find(str(tmp_path)).participants
        assert person.contrasts == {}

    def test_a_missing_run_leaves_its_subject_out(self, tmp_path):
        unpacked(tmp_path, "1000011", REST_FILES)
        unpacked(tmp_path, "10/1000022_20227_2_0", (MASK, WARP))
        found = ukb.find(str(tmp_path))
        assert found.left_out == {"1000022": f"no {IMAGE} in 10/1000022_20227_2_0"}

    @pytest.mark.parametrize(
        "name", ["x1000022", "1000022_old", "1000022_20252_2_0", "1000022_20227_2_0_old", "sub-1000022"]
    )
    def test_in_folders_of_other_names_are_none(self, tmp_path, name):
        unpacked(tmp_path, "1000011", REST_FILES)
        unpacked(tmp_path, name, REST_FILES)
        found = ukb.find(str(tmp_path))
        assert [person.subject for person in found.participants] == ["1000011"]
        assert found.left_out == {}

    def test_folders_may_be_links(self, tmp_path):
        unpacked(tmp_path / "archive", "a", REST_FILES)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "1000011_20227_2_0").symlink_to(tmp_path / "archive" / "a")
        (person,) = ukb.find(str(tmp_path / "data")).participants
        assert person.rest == [rest_in(f"{tmp_path}/data/1000011_20227_2_0")]


class TestInstances:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("1000011_20227_2_0", "1000011_20227_3_0", "1000022_20227_3_0", "1000022_20249_2_0"):
            zipped(tmp_path, name)
        for name in ("1000033_20227_2_0", "1000033_20249_3_0", "1000044_20249_2_0"):
            unpacked(tmp_path, name, TASK_FILES if "20249" in name else REST_FILES)
        return str(tmp_path)

    def test_the_first_visit_is_the_default(self, folder):
        found = ukb.find(folder)
        assert [person.subject for person in found.participants] == ["1000011", "1000033"]
        assert [person.rest[0].image.count("20227_2_0") for person in found.participants] == [1, 1]
        assert found.left_out == {
            "1000022": "no rest run (field 20227) of instance 2, only of instance 3",
            "1000044": "no rest run (field 20227) of instance 2",
        }

    def test_another_may_be_asked_for(self, folder):
        found = ukb.find(folder, instance=3)
        assert [person.subject for person in found.participants] == ["1000011", "1000022"]
        assert found.left_out == {
            "1000033": "no rest run (field 20227) of instance 3, only of instance 2",
            "1000044": "no rest run (field 20227) of instance 3",
        }

    def test_tasks_of_another_visit_are_not_taken(self, folder):
        assert all(person.contrasts == {} for person in ukb.find(folder).participants)
        assert all(person.contrasts == {} for person in ukb.find(folder, instance=3).participants)

    def test_nobody_with_it_is_an_error(self, folder):
        with pytest.raises(ConfigError, match="got nobody with a rest run of instance 4 among 4 people") as caught:
            ukb.find(folder, instance=4)
        assert "1000011: no rest run (field 20227) of instance 4, only of instance 2, 3" in caught.value.hint

    def test_nothing_at_all_is_an_error(self, root):
        with pytest.raises(ConfigError, match="nowhere: got nobody with a rest run of instance 2 among 0 people"):
            ukb.find(f"{root}/nowhere")


class TestMapsAlone:
    def test_are_found_without_a_rest_run(self, root):
        zipped(root, "1000011_20227_3_0")
        zipped(root, "1000011_20249_2_0")
        archive = zipped(root, "1000022_20249_3_0")
        unpacked(root, "1000033_20249_3_0", [TASK_WARP])
        found = ukb.find(root, instance=3, needed="contrasts")
        (person,) = found.participants
        assert (person.subject, person.rest, person.contrasts) == (
            "1000022",
            [],
            {CONTRAST: in_zip(task_in, archive)},
        )
        assert found.left_out == {
            "1000011": "no task map (field 20249) of instance 3, only of instance 2",
            "1000033": f"no {ZSTAT} in 1000033_20249_3_0",
        }

    def test_of_nobody_are_an_error(self, tmp_path):
        zipped(tmp_path, "1000011_20227_2_0")
        with pytest.raises(ConfigError, match=r"nobody with a task map of instance 3 .* expected <eid>_20249_3_0.zip"):
            ukb.find(str(tmp_path), instance=3, needed="contrasts")


class TestTwice:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("a/1000011_20227_2_0.zip", "b/1000011_20227_2_0.zip"),
            ("1000011_20227_2_0.zip", "1000011_20227_2_1.zip"),
            ("1000011_20227_2_0", "1000011_20227_2_0.zip"),
            ("1000011", "1000011_20227_2_0"),
            ("a/1000011", "b/1000011"),
        ],
    )
    def test_a_run_leaves_its_subject_out(self, tmp_path, one, other):
        zipped(tmp_path, "1000022_20227_2_0")
        for place in (one, other):
            if place.endswith(".zip"):
                zipped(tmp_path, place.removesuffix(".zip"))
            else:
                unpacked(tmp_path, place, REST_FILES)
        found = ukb.find(str(tmp_path))
        assert [person.subject for person in found.participants] == ["1000022"]
        assert found.left_out == {"1000011": f"got field 20227 of instance 2 in {one} and in {other}, expected it once"}

    def test_a_task_does_so_too(self, tmp_path):
        for name in ("1000011_20227_2_0", "a/1000011_20249_2_0", "b/1000011_20249_2_0", "1000022_20227_2_0"):
            zipped(tmp_path, name)
        found = ukb.find(str(tmp_path))
        assert found.left_out == {
            "1000011": "got field 20249 of instance 2 in a/1000011_20249_2_0.zip and in b/1000011_20249_2_0.zip, "
            "expected it once"
        }

    def test_of_another_visit_does_no_harm(self, tmp_path):
        for name in ("1000011_20227_2_0", "a/1000011_20227_3_0", "b/1000011_20227_3_0"):
            zipped(tmp_path, name)
        assert ukb.find(str(tmp_path)).left_out == {}


class TestContrasts:
    def test_are_called_as_in_hcp(self, tmp_path):
        zipped(tmp_path, "1000011_20227_2_0")
        archive = zipped(tmp_path, "1000011_20249_2_0")
        names = ("EMOTION_SHAPES", "EMOTION_FACES", "EMOTION_FACES-SHAPES")
        (person,) = ukb.find(str(tmp_path), contrasts=names).participants
        assert person.contrasts == {
            name: in_zip(task_in, archive, image=f"{FEAT}/stats/zstat{number}.nii.gz")
            for name, number in zip(names, (1, 2, 5), strict=True)
        }

    def test_may_have_names_of_ones_own(self, tmp_path):
        place = unpacked(tmp_path, "1000011", (*REST_FILES, *TASK_FILES, f"{FEAT}/stats/zstat3.nii.gz"))
        (person,) = ukb.find(str(tmp_path), contrasts={"MEAN": 3, "OTHER": 4}).participants
        assert person.contrasts == {"MEAN": task_in(place, f"{FEAT}/stats/zstat3.nii.gz")}

    def test_that_are_not_known_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"got contrasts \['FACES'\], expected some of \['EMOTION_SHAPES', "):
            ukb.find(str(tmp_path), contrasts=["FACES", "EMOTION_FACES"])


def test_several_tables_are_joined(tmp_path):
    zipped(tmp_path, "1000011_20227_2_0")
    tables = [
        write_table(tmp_path / "a.csv", [{"eid": "1000011", "age": 60}]),
        write_table(tmp_path / "b.tsv", [{"eid": "1000011", "sex": "F"}]),
    ]
    found = ukb.find(str(tmp_path), tables=tables)
    assert found.phenotypes.to_dict("records") == [{"subject": "1000011", "age": 60, "sex": "F"}]
