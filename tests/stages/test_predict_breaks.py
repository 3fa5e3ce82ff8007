"""What goes wrong with a prediction: bad input, interruptions, two at once, a full disk; and other schedulers."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dtg_ray import Study
from dtg_ray.errors import ConfigError
from dtg_ray.results import FEATURE_COMPARISONS, SCORES
from dtg_ray.stages import pipeline, predict
from dtg_ray.stages.prediction import cells
from dtg_ray.stages.runtime import Options
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.store.tables import read_table
from dtg_ray.study import PEOPLE
from prediction_tools import (
    QUIET,
    Make,
    attempts,
    change,
    copier,
    everything,
    reasons,
    result,
    set_phenotypes,
)
from small_disk import Disk, on, until_done, whole_files
from stage_tools import Tools, wait_for


@pytest.fixture
def make(finished: Path, tmp_path: Path) -> Make:
    """A copy of the finished study, not predicted yet, with other settings of `prediction`."""
    return copier(finished, tmp_path)


class TestBadInput:
    def test_a_constant_target_is_left_out_by_name(self, make: Make) -> None:
        study = set_phenotypes(make(targets=["constant", "network_score"]), constant=1.0)
        rows = predict.run(study, QUIET)
        assert reasons(study)["constant"] == "constant: got nothing but 1 of 24 subjects, expected a target that varies"
        assert set(rows.loc[rows["subject"] == "network_score", "status"]) == {"done"}
        assert set(read_table(study.storage, SCORES)["target"]) == {"network_score"}

    def test_a_class_smaller_than_the_folds_is_left_out(self, make: Make) -> None:
        study = make(targets={"kind": {"kind": "classification"}})
        study = set_phenotypes(study, kind=["a"] * 22 + ["b"] * 2)
        predict.run(study, QUIET)
        assert reasons(study)["kind"] == "kind: got 2 subjects of class b, expected at least 3, one for each fold"

    def test_fewer_subjects_than_folds_are_left_out(self, make: Make) -> None:
        study = set_phenotypes(make(targets=["rare"]), rare=[1.0, 2.0] + [np.nan] * 22)
        predict.run(study, QUIET)
        assert reasons(study)["rare"] == "rare: got 2 subjects with all that is needed, expected at least 6"

    def test_text_is_no_number(self, make: Make) -> None:
        study = set_phenotypes(make(targets=["word"]), word=["low"] * 24)
        with pytest.raises(ConfigError, match=r"word: got 'low' of sub-0001, expected numbers"):
            predict.run(study, QUIET)

    def test_an_unknown_column_is_named(self, make: Make) -> None:
        with pytest.raises(ConfigError, match=r"got no column nothing, nowhere, expected some of age"):
            predict.run(make(targets=["nothing"], confounds=["nowhere", "age"]), QUIET)

    def test_a_group_in_two_folds(self, make: Make) -> None:
        study = make(fold_column="fold", groups="family", targets=["network_score"])
        study = set_phenotypes(study, fold=[0, 1] * 12, family=["f"] * 2 + [str(one) for one in range(22)])
        with pytest.raises(ConfigError, match="got group f in fold 0 and in another one"):
            predict.run(study, QUIET)

    def test_fewer_groups_than_folds_are_left_out(self, make: Make) -> None:
        study = set_phenotypes(make(groups="site", targets=["network_score"]), site=["x", "y"] * 12)
        predict.run(study, QUIET)
        assert reasons(study)["network_score"] == "network_score: got 2 groups for 3 folds, expected at least as many"

    def test_a_confound_that_does_not_vary_in_training(self, make: Make) -> None:
        study = make(confounds=["only"], targets=["network_score"])
        study = set_phenotypes(study, only=[1.0] + [0.0] * 23)
        predict.run(study, QUIET)
        assert "confounds of which one is constant or follows from others" in reasons(study)["network_score"]

    def test_a_whole_block_in_two_blocks(self, make: Make) -> None:
        study = make(within="site", whole="family", targets=["network_score"])
        study = set_phenotypes(study, site=["x", "y"] * 12, family=["f"] * 24)
        with pytest.raises(ConfigError, match="got block family=f in two blocks"):
            predict.run(study, QUIET)

    def test_who_has_no_block_of_within_divides_no_family(self, make: Make) -> None:
        study = make(within="site", whole="family", targets=["network_score"])
        study = set_phenotypes(study, site=[None, *["x"] * 23], family=[f"f{number // 2}" for number in range(24)])
        predict.run(study, QUIET)
        assert result(study, "connectome", "scores", "network_score")["subjects"].tolist() == [23]

    def test_blocks_that_leave_everybody_in_their_place(self, make: Make) -> None:
        study = set_phenotypes(make(whole="family", targets=["network_score"]), family=["a"] * 10 + ["b"] * 14)
        predict.run(study, QUIET)
        assert "got blocks in which nobody can take anybody's place" in reasons(study)["network_score"]

    def test_folds_of_one_person_have_no_figure(self, make: Make) -> None:
        study = set_phenotypes(make(fold_column="fold", targets=["network_score"]), fold=range(24))
        predict.run(study, QUIET)
        folds = result(study, "connectome", "folds", "network_score")
        assert len(folds) == 24
        assert folds["r"].isna().all()
        assert np.isfinite(result(study, "connectome", "scores", "network_score")["p"]).all()
        table = read_table(study.storage, FEATURE_COMPARISONS)
        assert table["folds"].tolist() == [0]
        assert table["p_t"].isna().all()
        assert np.isfinite(table["p_permutation"]).all()

    def test_a_feature_set_of_nobody_takes_no_part_in_comparisons(
        self, make: Make, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = make(features=["synthetic:linear", "connectome", "measured:MOTOR_LH"], targets=["network_score"])
        receipts = Receipts(study.storage, "contrasts")
        for unit in receipts.units():
            names, prints = receipts.read([unit])[["subject", "fingerprint"]].to_numpy().T
            lost = [Row(name, "failed", one, "MissingFileError") for name, one in zip(names, prints, strict=True)]
            receipts.write(unit, lost, attempt=1, host="")
        predict.run(Study(study.uri), Options())
        assert "predict: nobody has the features of measured:MOTOR_LH" in capsys.readouterr().out
        assert len(read_table(study.storage, FEATURE_COMPARISONS)) == 1

    def test_families_in_several_folds_of_equal_shares(self, make: Make) -> None:
        study = set_phenotypes(make(stratify=True, whole="family", targets=["network_score"]), family=["f"] * 24)
        predict.run(study, QUIET)
        assert "got block family=f in two blocks of `within`, or in two folds" in reasons(study)["network_score"]

    def test_nobody_with_the_features(self, make: Make) -> None:
        """All maps of one contrast are missing."""
        study = make(features=["measured:MOTOR_LH"], targets=["network_score"], subjects="unseen", folds=12)
        predict.run(study, QUIET)
        assert "expected at least 24" in reasons(study)["network_score"]


class TestTables:
    def write(self, path: Path, study: Study, **columns: Any) -> str:
        names = [name.removeprefix("sub-") for name in study.cohort["subject"]]
        pd.DataFrame({"eid": [*names[1:], "9999999"], **columns}).to_csv(path, index=False)
        return str(path)

    def test_are_read_by_column_and_who_is_missing_is_counted_and_listed(
        self, make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        study = make()
        values = np.arange(24.0)
        path = self.write(tmp_path / "more.csv", study, extra=values, unused=values)
        study = change(study, tables=[path], targets=["extra"])
        predict.run(study, Options())
        table = read_table(study.storage, "prediction/left_out.parquet").set_index("subject")["reason"]
        first = study.cohort["subject"].iloc[0]
        assert table.to_dict() == {
            "9999999": "in the tables, but not in the study",
            first: "in the study, but in no table",
        }
        assert "1 people are not in the study, 1 of the study are in no table" in "".join(capfd.readouterr())
        people = read_table(study.storage, "prediction/people.parquet")
        assert list(people.columns) == ["subject", "extra"]
        done = result(study, "connectome", "predictions", "extra").set_index("subject")["actual"]
        assert done.tolist() == values[:-1].tolist()
        assert first not in done.index

    def test_stand_over_the_phenotypes_of_the_study(self, make: Make, tmp_path: Path) -> None:
        study = make()
        path = self.write(tmp_path / "more.csv", study, age=np.arange(24.0))
        study = change(study, tables=[path], targets=["age"])
        predict.run(study, QUIET)
        assert Study(study.uri).people["age"].iloc[1] == 0
        assert Study(study.uri).people["sex"].notna().all()

    def test_a_new_value_redoes_its_target_alone(self, make: Make, tmp_path: Path) -> None:
        study = make()
        path = tmp_path / "more.csv"
        self.write(path, study, one=np.arange(24.0), two=np.arange(24.0) ** 2)
        study = change(study, tables=[str(path)], targets=["one", "two"], features=["connectome"])
        predict.run(study, QUIET)
        self.write(path, study, one=np.arange(24.0), two=np.arange(24.0) ** 3)
        predict.run(Study(study.uri), QUIET)
        assert attempts(study) == {"predict/connectome:one": 1, "predict/connectome:two": 2}


class TestBeforeAnythingElse:
    """`dtg run` finds what is wrong with `prediction:` before it computes anything."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"targets": ["nothing"]}, "got no column nothing, expected some of"),
            ({"mask": "nowhere.nii.gz"}, "prediction: mask .*nowhere.nii.gz"),
            ({"tables": ["nowhere.csv"]}, "nowhere.csv: got no such file"),
        ],
    )
    def test_mistakes_are_found(self, make: Make, settings: dict[str, Any], message: str) -> None:
        study = make(**settings)
        shutil.rmtree(Path(study.uri) / "receipts")
        with pytest.raises(ConfigError, match=message):
            pipeline.run(Study(study.uri), QUIET)
        assert not (Path(study.uri) / "receipts").exists()

    def test_a_plan_needs_no_table_to_be_read(self, make: Make, tmp_path: Path, capsys: Any) -> None:
        more = pd.DataFrame({"subject": ["sub-0001"], "more": [1.0]})
        more.to_csv(tmp_path / "more.csv", index=False)
        study = make(tables=[str(tmp_path / "more.csv")], targets=["more"])
        predict.run(study, Options(dry_run=True))
        assert "predict/connectome: 2 of 2 to do" in capsys.readouterr().out
        assert not study.storage.exists(PEOPLE)


class TestAgain:
    def test_nothing_is_done_twice(self, make: Make) -> None:
        study = make()
        predict.run(study, QUIET)
        before = everything(study)
        predict.run(Study(study.uri), QUIET)
        assert everything(study) == before
        assert set(attempts(study).values()) == {1}

    def test_goes_on_after_the_last_target_that_was_done(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"targets": ["age", "network_score", "noise_score"], "features": ["connectome", "synthetic:linear"]}
        undisturbed, study = make(**settings), make(**settings)
        predict.run(undisturbed, QUIET)
        real, calls = cells.null_distributions, iter(range(100))

        def dies(*arguments: Any) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(cells, "null_distributions", dies)
        with pytest.raises(KeyboardInterrupt):
            predict.run(study, QUIET)
        monkeypatch.undo()
        there = attempts(study)
        assert 0 < len(there) < len(attempts(undisturbed))
        predict.run(Study(study.uri), QUIET)
        assert everything(study) == everything(undisturbed)
        assert {name: attempts(study)[name] for name in there} == there, "what was done was not done again"

    def test_another_target_leaves_the_others_as_they_are(self, make: Make) -> None:
        study = make(features=["connectome"], targets=["network_score"])
        predict.run(study, QUIET)
        study = change(study, targets=["network_score", "age"])
        predict.run(study, QUIET)
        assert attempts(study) == {"predict/connectome:network_score": 1, "predict/connectome:age": 1}
        assert set(read_table(study.storage, SCORES)["target"]) == {"network_score", "age"}

    def test_another_confound_redoes_its_target_alone(self, make: Make) -> None:
        study = make(features=["connectome"], targets={"network_score": {}, "noise_score": {}})
        predict.run(study, QUIET)
        study = change(study, targets={"network_score": {"confounds": ["age"]}, "noise_score": {}})
        predict.run(study, QUIET)
        assert attempts(study) == {"predict/connectome:network_score": 2, "predict/connectome:noise_score": 1}

    def test_a_name_of_any_characters_is_one_of_a_file(self, make: Make) -> None:
        study = set_phenotypes(make(targets=["a/b c: 21003-2.0"]), **{"a/b c: 21003-2.0": np.arange(24.0)})
        predict.run(study, QUIET)
        assert read_table(study.storage, SCORES)["target"].tolist() == ["a/b c: 21003-2.0"] * 2


SLOW = {"targets": ["age", "network_score", "noise_score"], "permutations": 5000}
"""Takes long enough to be met in the middle."""


class TestBroken:
    """Whatever ends a prediction, what was done stays done and the same bytes come out."""

    def test_by_a_kill(self, tools: Tools, make: Make) -> None:
        undisturbed, study = make(**SLOW), make(**SLOW)
        predict.run(undisturbed, QUIET)
        for count in (1, 5):
            process = tools.start("predict", study.uri, "--quiet")
            wait_for(Path(study.uri), "receipts/predict/*/*.parquet", count)
            process.kill()
            process.wait()
            there = attempts(study)
            assert count <= len(there) < len(attempts(undisturbed)), "it came too late to interrupt anything"
            assert not (Path(study.uri) / SCORES).exists()
        tools.process("predict", study.uri, "--quiet")
        assert everything(study) == everything(undisturbed)
        assert {name: attempts(study)[name] for name in there} == there

    def test_by_another_one_at_the_same_time(self, tools: Tools, make: Make) -> None:
        undisturbed, study = make(**SLOW), make(**SLOW)
        predict.run(undisturbed, QUIET)
        both = [tools.start("predict", study.uri, "--quiet") for _ in range(2)]
        assert [process.wait(timeout=240) for process in both] == [0, 0]
        assert everything(study) == everything(undisturbed)
        assert not list(Path(study.uri).rglob("*.partial"))

    def test_by_a_full_disk(self, disk: Disk, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
        undisturbed, study = make(), make()
        predict.run(undisturbed, QUIET)
        root = on(disk, Path(study.uri))
        said = "".join(until_done(disk, capsys, "predict", root, "--quiet", step=4096))
        for what in ("/scores/", "/nulls/", "receipts/predict/connectome/"):
            assert what in said, f"it never was full for {what}"
        whole_files(root)
        assert everything(Study(str(root))) == everything(undisturbed)


class TestSchedulers:
    """Wherever tasks run, the same bytes come out."""

    @pytest.fixture
    def expected(self, make: Make) -> dict[str, bytes]:
        study = make()
        predict.run(study, QUIET)
        return everything(study)

    def test_ray(self, make: Make, expected: dict[str, bytes]) -> None:
        study = make()
        predict.run(study, Options(quiet=True, scheduler="ray", cpus=2))
        assert everything(study) == expected

    def test_distributed(self, make: Make, expected: dict[str, bytes]) -> None:
        from distributed import LocalCluster

        study = make()
        with LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster:
            predict.run(study, Options(quiet=True, scheduler=cluster.scheduler_address))
        assert everything(study) == expected

    def test_more_workers_than_feature_sets_share_the_gram_matrix(self, make: Make) -> None:
        study, again = make(features=["synthetic:linear"]), make(features=["synthetic:linear"])
        predict.run(study, QUIET)
        predict.run(again, Options(quiet=True, scheduler="ray", cpus=2))
        for name, data in everything(study).items():
            first, second = (pd.read_parquet(io.BytesIO(one)) for one in (data, everything(again)[name]))
            pd.testing.assert_frame_equal(first, second, rtol=1e-6)

    def test_no_cluster_at_an_address(self, tools: Any, make: Make) -> None:
        done = tools.dtg("predict", make().uri, "--scheduler", "nonsense", check=2)
        assert "expected threads, ray or the address" in done.stderr
