"""`dtg init`: a study from files, once; never over another one; whole or to be made again."""

import gzip

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from cohort_files import (
    GRID,
    SETTINGS,
    image_bytes,
    make_study,
    roi_maps,
    task_map,
    write_bytes,
    write_cohort,
    write_image,
    write_map,
    write_rest,
    write_table,
)
from dtg_ray.cohort.layouts import bids, table
from dtg_ray.config import merge
from dtg_ray.errors import ConfigError, StudyError, UsageError
from dtg_ray.stages import init
from dtg_ray.store.files import Storage
from dtg_ray.study import COHORT, CONFIG, PHENOTYPES, Study


def contents(root):
    storage = Storage(f"{root}/study")
    return {name: storage.read(name) for name in storage.names("")}


def again(root, **settings):
    """`dtg init` with the same files."""
    found = bids.find(f"{root}/data")
    return init.init(f"{root}/study", found, [f"{root}/data/rois.nii.gz"], merge(SETTINGS, settings))


class TestMade:
    def test_from_bids(self, root):
        study = make_study(root)
        assert study.config.contrasts == ("MOTOR_LH", "MOTOR_RH")
        assert study.config.rois == (f"{root}/data/rois.nii.gz",)
        assert study.cohort["subject"].tolist() == [f"sub-{number:02d}" for number in range(1, 7)]
        assert study.cohort["block"].tolist() == [0, 0, 1, 1, 2, 2]
        assert study.cohort["split"].tolist()[-1] == "synthesis"
        assert set(study.cohort["split"][:-1]) == {"train", "validation", "test"}
        assert (study.cohort["rest_bytes"] > 1000).all()
        assert study.phenotypes["age"].tolist() == [50, 51, 52, 53, 54, 55]
        assert study.grid.fingerprint == GRID.fingerprint
        np.testing.assert_array_equal(study.rois, roi_maps()[GRID.mask].T)
        np.testing.assert_array_equal(study.grey_matter, GRID.grey_matter())

    def test_from_a_table(self, tmp_path):
        rows = [
            {
                "subject": f"{number:03d}",
                "rest": write_rest(tmp_path, f"{number:03d}"),
                "contrast:LH": write_map(tmp_path, f"{number:03d}", "LH"),
                "sex": "M",
            }
            for number in (3, 1, 2)
        ]
        rois = [write_image(tmp_path / f"rois/map{n}.nii", roi_maps()[..., n]) for n in (1, 2)]
        found = table.find(write_table(tmp_path / "people.csv", rows))
        study = init.init(str(tmp_path / "study"), found, [str(tmp_path / "rois")], SETTINGS).study
        assert study.cohort["subject"].tolist() == ["001", "002", "003"]
        assert study.config.rois == tuple(rois)
        np.testing.assert_array_equal(study._rois_group["roi"][:], ["map1", "map2"])

    def test_phenotypes_are_in_the_order_of_the_cohort_whatever_the_table(self, tmp_path):
        write_cohort(tmp_path / "data")
        people = pd.read_csv(tmp_path / "data/participants.tsv", sep="\t")
        people.loc[len(people)] = ["sub-99", "F", 60]
        write_table(tmp_path / "data/participants.tsv", people.iloc[::-1])
        study = again(tmp_path).study
        table = pd.read_parquet(study.storage.uri(PHENOTYPES))
        assert table["subject"].tolist() == study.cohort["subject"].tolist()
        assert table["age"].tolist() == [50, 51, 52, 53, 54, 55]

    def test_settings_are_those_given(self, tmp_path):
        study = make_study(tmp_path, connectomes={"tr": 2.4}, models={"mean": {"kind": "group_mean"}})
        assert study.config.connectomes.tr == 2.4
        assert list(study.config.models) == ["mean"]
        assert study.config.cohort.block_size == 2
        assert yaml.safe_load((tmp_path / "study" / CONFIG).read_text())["connectomes"]["tr"] == 2.4

    def test_contrasts_can_be_chosen_and_ordered(self, tmp_path):
        assert make_study(tmp_path, contrasts=["MOTOR_RH"]).config.contrasts == ("MOTOR_RH",)

    def test_on_the_grid_of_a_mask(self, tmp_path):
        mask = (GRID.mask & (np.arange(10)[:, None, None] < 5)).astype(np.uint8)
        for name in ("mask.nii", "mask.nii.gz"):
            path = write_image(tmp_path / name, mask)
            study = make_study(tmp_path / name.replace(".", "_"), grid={"mask": path})
            np.testing.assert_array_equal(study.grid.mask, mask != 0)
            np.testing.assert_array_equal(study.grid.affine, GRID.affine)

    def test_a_grid_without_grey_matter_uses_all_voxels(self, tmp_path):
        far = GRID.affine.copy()
        far[:3, 3] += 1000
        settings = {"grid": {"mask": write_image(tmp_path / "mask.nii", GRID.mask.astype(np.uint8), far)}}
        rois = write_image(tmp_path / "rois.nii", roi_maps(), far)
        write_cohort(tmp_path / "data")
        study = init.init(str(tmp_path / "study"), bids.find(str(tmp_path / "data")), [rois], settings).study
        assert study.grey_matter.all()


class TestOnce:
    def test_again_changes_not_a_byte(self, root):
        make_study(root)
        before = contents(root)
        summary = again(root)
        assert not summary.created
        assert contents(root) == before
        assert "nothing was changed" in init.describe(summary)[0]

    def test_two_studies_of_the_same_files_are_the_same_bytes(self, tmp_path):
        make_study(tmp_path)
        before = contents(tmp_path)
        (tmp_path / "study").rename(tmp_path / "first")
        again(tmp_path)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"cohort": {"block_size": 3}}, "cohort, the cohort's files or splits"),
            ({"connectomes": {"windows": 2}}, "differs in connectomes;"),
            ({"grid": {"resolution": 8}, "prediction": {"folds": 3}}, "differs in grid, prediction;"),
        ],
    )
    def test_another_study_is_never_touched(self, tmp_path, settings, named):
        make_study(tmp_path)
        before = contents(tmp_path)
        with pytest.raises(UsageError, match=named) as caught:
            again(tmp_path, **settings)
        assert "dtg init --add" in caught.value.hint
        assert contents(tmp_path) == before

    def test_another_cohort_is_another_study(self, tmp_path):
        make_study(tmp_path)
        write_rest(tmp_path / "data", "07")
        with pytest.raises(UsageError, match="differs in the cohort's files or splits; it was not touched"):
            again(tmp_path)


class TestInterrupted:
    @pytest.mark.parametrize("step", ["write_table", "cohort_bytes", "to_yaml"])
    def test_without_study_yaml_it_is_no_study_and_is_made_again(self, tmp_path, monkeypatch, step):
        make_study(tmp_path)
        expected = contents(tmp_path)
        other = tmp_path / "other"
        write_cohort(other / "data")

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(init, step, killed)
        with pytest.raises(KeyboardInterrupt):
            again(other)
        monkeypatch.undo()
        storage = Storage(f"{other}/study")
        assert storage.names("")
        assert not storage.exists(CONFIG)
        with pytest.raises(StudyError, match=r"got no study.yaml, expected a study"):
            _ = Study(storage.root).config
        assert again(other).created
        assert {name: data for name, data in contents(other).items() if name not in {CONFIG, "cohort.parquet"}} == {
            name: data for name, data in expected.items() if name not in {CONFIG, "cohort.parquet"}
        }
        assert Study(storage.root).cohort["split"].equals(Study(f"{tmp_path}/study").cohort["split"])

    def test_what_an_earlier_attempt_left_behind_is_replaced(self, tmp_path):
        """Killed with other ROI maps, then made with these."""
        study = make_study(tmp_path)
        expected, config = contents(tmp_path), study.config
        study.storage.delete(CONFIG)
        init.write_space(study, config.model_copy(update={"rois": config.rois * 2}))
        assert contents(tmp_path) != expected
        assert again(tmp_path).created
        assert contents(tmp_path) == expected


class TestRetest:
    """A second visit of some of the six people, the last of whom did no task on the first."""

    def visit(self, root, people=("02", "04"), contrasts=("LH", "RH")):
        """Write task maps of a second visit; returns its root."""
        for name in people:
            for number, contrast in enumerate(contrasts):
                write_map(f"{root}/again", name, contrast, data=task_map(500 + 10 * int(name) + number))
        return f"{root}/again"

    def init(self, root, again, **settings):
        write_cohort(f"{root}/data")
        found = init.find_retest(bids.find(f"{root}/data"), "bids", again, {})
        return init.init(f"{root}/study", found, [f"{root}/data/rois.nii.gz"], merge(SETTINGS, settings))

    def test_is_in_the_manifest_and_its_people_are_held_out(self, root):
        study = self.init(root, self.visit(root, ("02", "04", "06"))).study
        have = study.cohort["retest"].map(len)
        assert have[have > 0].to_dict() == {"sub-02": 2, "sub-04": 2, "sub-06": 2}
        scan = study.cohort["retest"]["sub-04"]["MOTOR_RH"]
        assert scan.image == f"{root}/again/sub-04/func/sub-04_task-MOTOR_contrast-RH_stat-z_statmap.nii.gz"
        assert study.cohort["split"][["sub-02", "sub-04", "sub-06"]].tolist() == ["test", "test", "synthesis"]
        assert set(study.cohort["contrasts"]["sub-06"]) == set()

    def test_is_a_model_unless_the_models_are_named(self, tmp_path):
        study = self.init(tmp_path, self.visit(tmp_path)).study
        assert list(study.config.models) == ["group_mean", "linear", "unet", "retest"]
        assert study.config.models["retest"].kind == "retest"
        found = init.find_retest(bids.find(f"{tmp_path}/data"), "bids", f"{tmp_path}/again", {})
        named = init.complete(found, ["rois.nii"], {"models": {"mean": {"kind": "group_mean"}}})
        assert list(named.models) == ["mean"]

    def test_is_needed_for_a_model_of_it(self, tmp_path):
        with pytest.raises(ConfigError, match=r"models\.again: got no second visit of anybody"):
            make_study(tmp_path, models={"again": {"kind": "retest"}})

    def test_has_only_contrasts_of_the_study(self, tmp_path):
        again = self.visit(tmp_path, contrasts=("LH", "T"))
        study = self.init(tmp_path, again).study
        assert study.config.contrasts == ("MOTOR_LH", "MOTOR_RH")
        assert list(study.cohort["retest"]["sub-02"]) == ["MOTOR_LH"]

    def test_is_told_with_those_who_take_no_part(self, tmp_path):
        summary = self.init(tmp_path, self.visit(tmp_path, ("02", "04", "11", "12")))
        assert "  second visit: 4 maps of 2 subjects; 2 others there take no part" in init.describe(summary)

    def test_is_compared_when_the_study_is_there_already(self, tmp_path):
        again = self.visit(tmp_path)
        self.init(tmp_path, again)
        assert not self.init(tmp_path, again).created
        with pytest.raises(UsageError, match="the cohort's files or splits"):
            self.init(tmp_path, self.visit(tmp_path, ("03",)))

    def test_of_nobody_in_the_study_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"got a second visit of 1 people \(sub-77\), nobody of whom"):
            self.init(tmp_path, self.visit(tmp_path, ("77",)))

    def test_of_other_contrasts_alone_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="got a second visit with maps of MOTOR_T alone"):
            self.init(tmp_path, self.visit(tmp_path, contrasts=("T",)))

    def test_that_is_the_first_one_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"sub-01.*LH.* as a map of both visits of sub-01"):
            self.init(tmp_path, f"{tmp_path}/data")

    def test_of_uk_biobank_is_the_next_instance(self, tmp_path):
        for field, instance in ((20227, 2), (20249, 2), (20227, 3), (20249, 3), (20249, 4)):
            write_bytes(tmp_path / f"1000011_{field}_{instance}_0.zip", b"")
        for settings, numbers in (({}, (2, 3)), ({"instance": 3}, (3, 4))):
            found = init.find("ukb", str(tmp_path), None, settings)
            (person,) = init.find_retest(found, "ukb", str(tmp_path), settings).participants
            for maps, number in zip((person.contrasts, person.retest), numbers, strict=True):
                assert maps["EMOTION_FACES-SHAPES"].image.endswith(f"1000011_20249_{number}_0.zip")

    def test_of_uk_biobank_in_folders_that_do_not_tell_visits_is_refused(self, tmp_path):
        for part in ("rfMRI.ica/filtered_func_data_clean", "tfMRI.feat/stats/zstat5"):
            write_bytes(tmp_path / f"1000011/fMRI/{part}.nii.gz", b"")
        found = init.find("ukb", str(tmp_path), None, {})
        with pytest.raises(ConfigError, match="as a map of both visits of 1000011"):
            init.find_retest(found, "ukb", str(tmp_path), {})

    def test_of_a_study_from_before_there_was_one_is_told_apart(self, tmp_path):
        study = self.init(tmp_path, self.visit(tmp_path)).study
        path = study.storage.uri(COHORT)
        pq.write_table(pq.read_table(path).drop_columns("retest"), path)
        with pytest.raises(StudyError, match="older version of dtg_ray"):
            Study(study.uri).cohort  # noqa: B018 - read when asked for


class TestRefused:
    def refuse(self, tmp_path, kind, message, rois=None, **settings):
        if not (tmp_path / "data").exists():
            write_cohort(tmp_path / "data")
        rois = rois or [f"{tmp_path}/data/rois.nii.gz"]
        with pytest.raises(kind, match=message) as caught:
            init.init(f"{tmp_path}/study", bids.find(f"{tmp_path}/data"), rois, merge(SETTINGS, settings))
        assert not (tmp_path / "study" / CONFIG).exists()
        return caught.value

    def test_unknown_settings(self, tmp_path):
        self.refuse(tmp_path, ConfigError, "connectomes.window: Extra inputs", connectomes={"window": 1})

    def test_no_task_maps(self, tmp_path):
        write_cohort(tmp_path / "data", without_maps=6)
        error = self.refuse(tmp_path, ConfigError, "got no task map of anybody, expected at least one contrast")
        assert "statmap" in error.hint

    def test_rois_that_are_not_there(self, tmp_path):
        self.refuse(tmp_path, ConfigError, "ROI maps: .*none.nii: got no file", rois=[f"{tmp_path}/none.nii"])

    def test_a_folder_without_rois(self, tmp_path):
        (tmp_path / "empty").mkdir()
        self.refuse(tmp_path, ConfigError, "rois|ROI maps", rois=[f"{tmp_path}/empty"])

    @pytest.mark.parametrize("data", [b"text", image_bytes(np.zeros(GRID.shape, dtype=np.uint8))])
    def test_a_mask_that_is_none(self, tmp_path, data):
        mask = write_bytes(tmp_path / "mask.nii.gz", data)
        assert gzip.decompress((tmp_path / "mask.nii.gz").read_bytes()) == data
        self.refuse(tmp_path, ConfigError, "mask.nii.gz: cannot be used as a mask", grid={"mask": mask})


class TestROIs:
    def test_a_folder_stands_for_its_images_in_natural_order(self, root):
        names = [f"component{number}.nii.gz" for number in (1, 2, 10)]
        paths = [write_image(f"{root}/maps/{name}", task_map()) for name in names]
        write_bytes(f"{root}/maps/readme.txt", b"")
        assert init.expand([f"{root}/maps/"]) == paths
        assert init.expand(paths[::-1]) == paths[::-1]

    def test_one_image_of_several_maps_gives_them_numbers(self, tmp_path):
        study = make_study(tmp_path)
        assert study._rois_group["roi"][:].tolist() == ["roi-001", "roi-002", "roi-003", "roi-004"]


class TestDescribed:
    def test_what_was_found_and_what_was_left_out_and_why(self, tmp_path):
        rois = write_cohort(tmp_path / "data")
        write_map(tmp_path / "data", "98", "LH")
        people = pd.read_csv(tmp_path / "data/participants.tsv", sep="\t")
        people.loc[len(people)] = ["sub-99", "F", 60]
        write_table(tmp_path / "data/participants.tsv", people)
        run = tmp_path / "data/sub-03/func/sub-03_task-rest_bold.nii.gz"
        run.unlink()
        run.symlink_to(tmp_path / "annex/not-fetched")
        found = bids.find(str(tmp_path / "data"))
        text = "\n".join(init.describe(init.init(str(tmp_path / "study"), found, [rois], SETTINGS)))
        for part in (
            f"{tmp_path}/study: made",
            "6 subjects (",
            "1 synthesis) in 3 blocks of 2",
            "6 rest runs; maps: MOTOR_LH 5, MOTOR_RH 5",
            f"grid 10x12x10, {GRID.n_voxels} voxels, 4 ROIs",
            "phenotypes: sex, age",
            "1 subjects have rest runs that are not there: they will end as failed",
            "left out: 1 - no rest run (task-rest)",
            "left out: 1 - in the tables, but without any image",
        ):
            assert part in text

    def test_settings_come_from_a_file(self, root):
        path = write_bytes(f"{root}/settings.yaml", b"connectomes: {tr: 2.4}\n")
        assert init.load_settings(path) == {"connectomes": {"tr": 2.4}}
        assert init.load_settings(None) == {}
