"""`dtg init`: a study from files, once; never over another one; whole or to be made again."""

import gzip

import numpy as np
import pandas as pd
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
from dtg_ray.study import CONFIG, PHENOTYPES, Study


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
        assert "delete that study first" in caught.value.hint
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
