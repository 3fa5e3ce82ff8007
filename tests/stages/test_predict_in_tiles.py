"""`dtg predict` with `prediction.tiles`: the tables of one piece, the same bytes on every scheduler, after any kill."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from dtg_ray import Study, ledger
from dtg_ray.errors import StudyError
from dtg_ray.stages import predict
from dtg_ray.stages.prediction import schedulers, size
from dtg_ray.stages.prediction.features import Features, members
from dtg_ray.stages.runtime import Options, Resources
from prediction_tools import QUIET, Make, change, copier, everything, matrix, reasons, result, set_phenotypes

TILES: dict[str, Any] = {
    "tiles": 7,
    "alpha": 30.0,
    "features": ["synthetic:linear", "measured", "connectome"],
    "targets": {"network_score": {}, "sex": {"kind": "classification"}, "age": {"confounds": []}},
    "confounds": ["age"],
}
"""24 people, some without measured maps: tiles of 7, 7, 7 and 3. Connectomes have fewer features than people: none."""


@pytest.fixture
def make(finished: Path, tmp_path: Path) -> Make:
    """A copy of the finished study, not predicted yet, with other settings of `prediction`."""
    return copier(finished, tmp_path)


def with_gaps(study: Study) -> Study:
    """Somebody has no score, and families of two."""
    score = study.phenotypes["network_score"].to_numpy(dtype=float).copy()
    score[[2, 11]] = np.nan
    return set_phenotypes(study, network_score=score, family=[f"f{number // 2}" for number in range(24)])


def tables(study: Study) -> dict[str, pd.DataFrame]:
    return {
        name: pd.read_parquet(io.BytesIO(data)) for name, data in everything(study).items() if name.endswith(".parquet")
    }


def assert_alike(one: Study, other: Study, tolerance: float = 1e-8) -> None:
    first, second = tables(one), tables(other)
    assert first.keys() == second.keys()
    assert len(first) > 10
    for name, table in first.items():
        pd.testing.assert_frame_equal(table, second[name], rtol=tolerance, atol=tolerance, obj=name)


class TestTables:
    @pytest.mark.parametrize("more", [{}, {"groups": "family", "whole": "family"}, {"stratify": True}, {"tiles": 1000}])
    def test_are_those_of_one_piece(self, make: Make, more: dict[str, Any]) -> None:
        study = with_gaps(make(**{**TILES, **more}))
        one_piece = with_gaps(make(**{**TILES, **more, "tiles": None}))
        for one in (study, one_piece):
            predict.run(one, QUIET)
        assert not reasons(study)
        assert_alike(study, one_piece)

    def test_of_the_published_penalty_are_those_of_one_piece_to_single_precision(self, make: Make) -> None:
        settings = {**TILES, "alpha": "features/samples", "permutations": 0}
        study, one_piece = make(**settings), make(**{**settings, "tiles": None})
        for one in (study, one_piece):
            predict.run(one, QUIET)
        assert_alike(study, one_piece, 1e-5)

    def test_are_those_of_scikit_learn(self, make: Make) -> None:
        study = make(**{**TILES, "confounds": []})
        predict.run(study, QUIET)
        for feature in study.config.feature_sets():
            subjects = members(ledger.Ledger(study), feature)
            X, y = matrix(study, feature, subjects), study.people.loc[subjects, "network_score"].to_numpy(dtype=float)
            X -= X.mean(axis=0)
            expected = np.empty(len(y))
            for train, test in KFold(3, shuffle=True, random_state=42).split(X):
                expected[test] = Ridge(alpha=30.0).fit(X[train], y[train]).predict(X[test])
            assert_allclose(result(study, feature, "predictions", "network_score")["predicted"], expected, atol=1e-8)

    def test_of_a_feature_set_of_fewer_columns_than_people_are_as_without_tiles(self, make: Make) -> None:
        settings = {"features": ["connectome"], "targets": ["network_score"]}
        study, one_piece = make(**settings, tiles=5), make(**settings)
        assert study.n_rois * (study.n_rois - 1) // 2 < 12
        for one in (study, one_piece):
            predict.run(one, QUIET)
        assert everything(study) == everything(one_piece)

    def test_weight_maps_are_those_of_one_piece(self, make: Make) -> None:
        settings = {**TILES, "weight_maps": True, "features": ["synthetic:linear:MOTOR_LH"], "confounds": ["age"]}
        study, one_piece = make(**settings), make(**{**settings, "tiles": None})
        for one in (study, one_piece):
            predict.run(one, QUIET)
        images = [name for name in everything(study) if name.endswith(".nii.gz")]
        assert len(images) == 6
        for name in images:
            found, expected = (nib.load(Path(one.uri, name)).get_fdata() for one in (study, one_piece))
            assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())

    def test_nothing_is_left_of_the_tiles(self, make: Make) -> None:
        study = make(**TILES)
        predict.run(study, QUIET)
        assert not list(Path(study.uri).rglob("tiles"))

    def test_tiles_make_no_result_of_another_time_old(self, make: Make) -> None:
        study = make(**{**TILES, "tiles": None})
        predict.run(study, QUIET)
        before = everything(study)
        predict.run(change(study, tiles=6), QUIET)
        assert everything(study) == before


class TestSchedulers:
    """Wherever tasks run, the same bytes come out."""

    @pytest.fixture
    def expected(self, make: Make) -> dict[str, bytes]:
        study = make(**TILES)
        predict.run(study, QUIET)
        return everything(study)

    def test_ray(self, make: Make, expected: dict[str, bytes]) -> None:
        study = make(**TILES)
        predict.run(study, Options(quiet=True, scheduler="ray", cpus=2))
        assert everything(study) == expected

    def test_distributed(self, make: Make, expected: dict[str, bytes]) -> None:
        from distributed import LocalCluster

        study = make(**TILES)
        with LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster:
            predict.run(study, Options(quiet=True, scheduler=cluster.scheduler_address))
        assert everything(study) == expected


class TestPlan:
    def plan(self, study: Study, feature: str = "synthetic:linear") -> predict.Plan:
        return predict.plan(ledger.Ledger(study), feature)

    def test_memory_is_that_of_a_tile(self, make: Make) -> None:
        study = make(**TILES)
        features = Features(study, "synthetic:linear", members(ledger.Ledger(study), "synthetic:linear"))
        widest = max(len(piece.columns) for piece in features.pieces(14))
        assert self.plan(study).memory == 2**28 + 40 * 7**2 + 12 * 7 * widest
        assert self.plan(study).bytes_in == 4 * self.plan(change(study, tiles=None)).bytes_in

    def test_of_few_features_is_as_without_tiles(self, make: Make) -> None:
        study = make(tiles=7)
        assert self.plan(study, "connectome") == self.plan(change(study, tiles=None), "connectome")

    @pytest.mark.parametrize(("n", "p"), [(24, 5), (100_000, 1225), (20_000, 158_680)])
    def test_memory_of_one_piece_is_that_of_features_or_of_inner_products(self, n: int, p: int) -> None:
        needed = size.memory_in_one_piece(n, p, 1.0)
        assert needed < (6e9 if p < 2000 else 14e9)
        assert needed > 8 * n * min(n, p)

    def test_says_what_to_do_where_the_machine_is_too_small(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(size, "machine_memory", lambda: 10**6)
        study = make(**{**TILES, "tiles": None})
        predict.run(study, Options(dry_run=True))
        said = capsys.readouterr().out
        assert "got 1.0 MB of memory here, " in said
        assert "prediction.tiles: 4096 in study.yaml" in said
        assert "--scheduler ray" in said
        predict.run(change(study, tiles=7), Options(dry_run=True))
        assert "a smaller number of prediction.tiles" in capsys.readouterr().out

    def test_a_machine_that_is_too_small_is_refused_before_anything_is_read(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(schedulers, "machine_memory", lambda: 10**6)
        with pytest.raises(StudyError, match=r"got a machine with 1.0 MB of memory, a feature set needs") as told:
            predict.run(make(**{**TILES, "tiles": None}), QUIET)
        assert "prediction.tiles: 4096" in told.value.hint

    def test_a_cluster_of_small_nodes_is_refused_likewise(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(size, "memory_in_one_piece", lambda *_: 10**15)
        with pytest.raises(StudyError, match=r"a worker needs .* 1000.0 TB of memory") as told:
            predict.run(make(**{**TILES, "tiles": None}), Options(quiet=True, scheduler="ray", cpus=1))
        assert "prediction.tiles: 4096" in told.value.hint

    def test_fewer_tasks_run_side_by_side_where_memory_is_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for there, expected in ((10**9, 1), (10**15, len(os.sched_getaffinity(0)))):
            monkeypatch.setattr(schedulers, "machine_memory", lambda there=there: there)
            with schedulers.scheduler(QUIET, Resources(1, memory=6 * 10**8), "") as chosen:
                assert chosen.places == expected
