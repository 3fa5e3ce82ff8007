"""What a study owes: which receipts hold today, what makes them stale, and counts that add up."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from cohort_files import make_study, roi_maps, write_image
from dtg_ray import ledger
from dtg_ray.imaging.scan import Scan
from dtg_ray.ledger import account, block_number, block_unit, failures, model_hash, stages
from dtg_ray.stages.init import write_space
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.study import COHORT, CONFIG, PHENOTYPES, ROIS, Study, cohort_bytes

BLOCKS = ["block-00000", "block-00001", "block-00002"]
MODELS = {"mean": {"kind": "group_mean"}, "unet": {"kind": "network", "train": {"epochs": 3}}}
PREDICTIONS = ["predict/synthetic-unet", "predict/measured", "predict/connectome", "scores"]
"""All of them: what has changed in one feature set changes who is in the comparison of all."""
ORDER = [
    "connectomes",
    "contrasts",
    "train/mean",
    "train/unet",
    "synthesize/mean",
    "synthesize/unet",
    "evaluate/mean",
    "evaluate/unet",
    "comparison",
    *PREDICTIONS,
    "report",
]


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, models=MODELS)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A study with all receipts, not to be changed."""
    study = make_study(tmp_path_factory.mktemp("template"), models=MODELS)
    finish(study)
    return study


@pytest.fixture
def finished(template, tmp_path):
    """A study with all receipts."""
    shutil.copytree(template.uri, tmp_path / "study")
    return Study(str(tmp_path / "study"))


def settle(study, stage, failed=(), units=None):
    """Commit units of a stage as today's work."""
    owed = account(study, stage).owed
    for unit in units or owed:
        rows = [
            Row(who, "failed", str(today), error_type="ShapeError", message=f"{who}: bad")
            if who in failed
            else Row(who, "done", str(today), qc={"stored": 1.0})
            for who, today in owed[unit].items()
        ]
        Receipts(study.storage, stage).write(unit, rows, attempt=1, host="here")


def fingerprints(study, stage):
    """Of everybody in a stage."""
    return [today for members in account(study, stage).owed.values() for today in members.values()]


def train(study, model, weights="w1"):
    study.storage.write(f"models/{model}/model.json", json.dumps({"sha256": weights}).encode())
    settle(study, f"train/{model}")


def finish(study):
    """Everything, in order."""
    for stage in stages(study):
        verb, _, name = stage.partition("/")
        train(study, name) if verb == "train" else settle(study, stage)


def change(study, **settings):
    """study.yaml with other settings, opened anew."""
    document = yaml.safe_load(study.storage.read(CONFIG))
    for key, value in settings.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    study.storage.write(CONFIG, yaml.safe_dump(document).encode())
    return Study(study.uri)


def stale(study):
    return [stage for stage in stages(study) if account(study, stage).pending()]


class TestOrder:
    def test_is_that_in_which_stages_run(self, study):
        assert stages(study) == ORDER

    def test_a_stage_waits_for_the_one_before(self, study):
        """None is owed where nobody can say yet what the work will be."""
        for stage in ORDER:
            assert account(study, stage).pending()
        assert None not in fingerprints(study, "connectomes")
        assert set(fingerprints(study, "synthesize/unet")) == {None}
        for stage in ORDER:
            assert None not in fingerprints(study, stage), stage
            verb, _, name = stage.partition("/")
            train(study, name) if verb == "train" else settle(study, stage)
            assert account(study, stage).pending() == []
        assert stale(study) == []

    def test_what_maps_depend_on_is_known_as_soon_as_their_connectomes_are_there(self, study):
        train(study, "unet")
        settle(study, "connectomes", units=BLOCKS[1:2])
        owed = account(study, "synthesize/unet").owed
        assert [unit for unit, members in owed.items() if None not in members.values()] == [BLOCKS[1]]

    def test_units_are_named_by_their_block(self):
        assert (block_unit(7), block_number("block-00007")) == ("block-00007", 7)


class TestRetest:
    @pytest.fixture
    def study(self, study):
        """With a second visit of one person in the middle block."""
        study.cohort["retest"] = [{}, {}, {}, {"MOTOR_LH": Scan("again/l.nii")}, {}, {}]
        study.storage.write(COHORT, cohort_bytes(study.cohort))
        return change(study, models={"again": {"kind": "retest"}})

    def test_maps_wait_for_their_model_alone(self, study):
        assert set(fingerprints(study, "synthesize/again")) == {None}
        train(study, "again")
        assert None not in fingerprints(study, "synthesize/again")
        settle(study, "synthesize/again")
        assert account(study, "evaluate/again").today() is None, "waits for the first visit's maps"
        settle(study, "contrasts")
        assert account(study, "evaluate/again").today()

    def test_maps_are_read_again_where_the_files_are_others(self, study):
        train(study, "again")
        settle(study, "synthesize/again")
        study.cohort["retest"]["sub-04"]["MOTOR_RH"] = Scan("again/r.nii")
        study.storage.write(COHORT, cohort_bytes(study.cohort))
        changed = Study(study.uri)
        assert account(changed, "synthesize/again").pending() == [BLOCKS[1]]
        assert not account(changed, "train/again").pending()


class TestPending:
    def test_is_what_has_no_receipt(self, study):
        assert account(study, "connectomes").pending() == BLOCKS
        settle(study, "connectomes", units=BLOCKS[1:2])
        assert account(study, "connectomes").pending() == [BLOCKS[0], BLOCKS[2]]
        assert account(study, "connectomes").settled == {BLOCKS[1]}

    def test_failed_subjects_are_settled_until_asked_for(self, study):
        settle(study, "connectomes", failed=["sub-03"])
        assert account(study, "connectomes").pending() == []
        assert account(study, "connectomes").pending(retry_failed=True) == [BLOCKS[1]]

    def test_a_receipt_of_other_work_does_not_hold(self, study):
        settle(study, "connectomes")
        Receipts(study.storage, "connectomes").write(BLOCKS[0], [Row("sub-01", "done", "0" * 16)], attempt=2, host="")
        assert account(study, "connectomes").pending() == BLOCKS[:1]
        assert "sub-01" not in account(study, "connectomes").subjects("done")

    def test_a_torn_receipt_does_not_hold(self, study):
        settle(study, "connectomes")
        study.storage.write(Receipts(study.storage, "connectomes").name(BLOCKS[2]), b"torn")
        assert account(study, "connectomes").pending() == BLOCKS[2:]

    def test_a_receipt_of_a_block_that_is_no_more_is_not_looked_at(self, study):
        settle(study, "connectomes")
        Receipts(study.storage, "connectomes").write("block-00099", [Row("sub-99", "done", "x")], attempt=1, host="")
        assert len(account(study, "connectomes").rows) == 6

    def test_a_unit_is_pending_until_all_of_its_subjects_have_a_row(self, study):
        settle(study, "connectomes")
        receipts = Receipts(study.storage, "connectomes")
        rows = receipts.holding(BLOCKS[1], account(study, "connectomes").owed[BLOCKS[1]])
        receipts.write(BLOCKS[1], [rows["sub-03"]], attempt=1, host="")
        assert account(study, "connectomes").pending() == [BLOCKS[1]]
        assert sorted(account(study, "connectomes").subjects("done")) == [f"sub-0{n}" for n in (1, 2, 3, 5, 6)]

    def test_other_files_of_one_subject_concern_nobody_else(self, finished):
        finished.cohort["rest"]["sub-03"][:] = [Scan("other.nii")]
        finished.storage.write(COHORT, cohort_bytes(finished.cohort))
        changed = Study(finished.uri)
        for stage in ("connectomes", "synthesize/unet"):
            assert account(changed, stage).pending() == [BLOCKS[1]]
            assert "sub-04" in account(changed, stage).subjects("done")


class TestStale:
    """A changed setting makes exactly that work stale that depends on it."""

    # what waits for stale work has no fingerprint, so it is pending as well
    AFTER_MODEL = ("synthesize/unet", "evaluate/unet", "comparison", *PREDICTIONS, "report")

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            (
                {"connectomes": {"windows": 2}},
                [stage for stage in ORDER if stage != "contrasts"],
            ),
            (
                {"contrasts": ["MOTOR_LH"]},
                [stage for stage in ORDER if stage != "connectomes" and not stage.startswith("synthesize")],
            ),
            ({"models": {"unet": {"kind": "network", "train": {"epochs": 4}}}}, ["train/unet", "report"]),
            (
                {"models": {"other": {"kind": "linear"}}},
                ["train/other", "synthesize/other", "evaluate/other", "comparison", "report"],
            ),
            ({"prediction": {"folds": 3}}, [*PREDICTIONS, "report"]),
            ({"prediction": {"weight_maps": True}}, [*PREDICTIONS, "report"]),
            ({"prediction": {"repeats": 3}}, [*PREDICTIONS, "report"]),
            ({"prediction": {"targets": {"age": {"confounds": []}}}}, ["report"]),
            ({"prediction": {"targets": {"age": {"kind": "classification"}}}}, [*PREDICTIONS, "report"]),
            ({"prediction": {"features": ["measured"]}}, ["scores", "report"]),
            (
                {"prediction": {"stacks": {"both": {"of": ["measured", "connectome"]}}}},
                [*PREDICTIONS[:-1], "predict/both", "scores", "report"],
            ),
            ({"synthesis": {"cpus_per_actor": 2, "compile": True, "pools": "two", "slab": 7}}, ["report"]),
            (
                {"synthesis": {"precision": "float32"}},
                ["synthesize/mean", "synthesize/unet", "evaluate/mean", *AFTER_MODEL[1:]],
            ),
        ],
    )
    def test_after_a_change(self, finished, settings, expected):
        assert stale(change(finished, **settings)) == expected

    def test_nothing_after_opening_again(self, root):
        study = make_study(root, models=MODELS)
        finish(study)
        assert stale(Study(study.uri)) == []

    def test_other_weights(self, finished):
        """The maps depend on what was learnt, not on how."""
        train(finished, "unet", weights="w2")
        assert stale(finished) == list(self.AFTER_MODEL)

    def test_other_rois(self, finished, tmp_path):
        rois = write_image(tmp_path / "other.nii.gz", roi_maps() * 2)
        write_space(finished, finished.config.model_copy(update={"rois": (rois,)}))
        assert stale(Study(finished.uri)) == ORDER

    def test_other_phenotypes(self, finished):
        table = pd.read_parquet(finished.storage.uri(PHENOTYPES))
        table.loc[2, "age"] += 1
        finished.storage.write(PHENOTYPES, table.to_parquet(index=False))
        assert stale(Study(finished.uri)) == [*PREDICTIONS, "report"]

    def test_other_values_of_a_phenotype_concern_its_own_tables_alone(self, finished):
        table = pd.read_parquet(finished.storage.uri(PHENOTYPES)).assign(more=[1, 2, 3, 4, 5, 6])
        finished.storage.write(PHENOTYPES, table.to_parquet(index=False))
        study = Study(finished.uri)
        assert account(study, "predict/measured").pending() == ["more", "more+common"]
        finish(study)
        table.loc[2, "more"] += 1
        study.storage.write(PHENOTYPES, table.to_parquet(index=False))
        study = Study(finished.uri)
        assert account(study, "predict/measured").pending() == ["more", "more+common"]
        assert stale(study) == [*PREDICTIONS, "report"]
        as_confound = change(study, prediction={"targets": {"age": {"confounds": ["more"]}}})
        assert account(as_confound, "predict/measured").pending() == ["age", "age+common"]

    def test_a_subject_that_fails_the_second_time(self, finished):
        """The block's maps then have another subject missing, and so have the tables made of them."""
        settle(finished, "connectomes", failed=["sub-05"])
        again = account(finished, "synthesize/unet")
        assert again.pending() == BLOCKS[2:]
        assert account(finished, "train/unet").pending() == []
        assert account(finished, "predict/connectome").pending() == ["age", "age+common"]


class TestCounts:
    def test_add_up_to_the_cohort_at_every_moment(self, study):
        by_block = [stage for stage in ORDER if stage.split("/")[0] in {"connectomes", "contrasts", "synthesize"}]

        def counts():
            table = study.status().set_index("stage")
            sums = table[["done", "failed", "excluded", "pending"]].sum(axis=1)
            assert sums[by_block].tolist() == [6] * len(by_block)
            assert sums[PREDICTIONS[:-1]].tolist() == [2, 2, 2], "by itself, and for the comparison"
            assert set(sums.drop([*by_block, *PREDICTIONS[:-1]])) == {1}
            assert (table >= 0).all(axis=None)
            return table

        assert counts()["done"].sum() == 0
        settle(study, "connectomes", units=BLOCKS[:2], failed=["sub-02"])
        assert counts().loc["connectomes"].to_dict() == {
            "units": 3,
            "settled": 2,
            "done": 3,
            "failed": 1,
            "excluded": 0,
            "pending": 2,
        }
        finish(study)
        table = counts()
        assert (table["pending"] == 0).all()
        assert (table["settled"] == table["units"]).all()

    def test_failures_are_listed_with_their_reason(self, study):
        assert len(failures(ledger.Ledger(study))) == 0
        settle(study, "connectomes", failed=["sub-02", "sub-06"])
        settle(study, "contrasts", failed=["sub-02"])
        assert failures(ledger.Ledger(study)).to_dict("records") == [
            {"stage": stage, "subject": who, "status": "failed", "error_type": "ShapeError", "message": f"{who}: bad"}
            for stage, who in (("connectomes", "sub-02"), ("connectomes", "sub-06"), ("contrasts", "sub-02"))
        ]

    def test_only_receipts_are_read(self, finished):
        """Counts must not depend on arrays, which can hold anything."""
        assert [name for name in finished.storage.names("") if ".zarr/" in name and not name.startswith(ROIS)] == []
        assert (finished.status()["pending"] == 0).all()


def test_a_model_that_is_not_trained_has_no_hash(study):
    assert model_hash(study, "unet") is None
    train(study, "unet", "abc")
    assert model_hash(study, "unet") == "abc"


def test_fingerprints_change_with_the_format_of_the_outputs(finished, monkeypatch):
    monkeypatch.setattr(ledger, "FORMAT", ledger.FORMAT + 1)
    assert stale(finished) == ORDER
