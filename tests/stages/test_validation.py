"""Validation between epochs: the figures of the whole cohort, whoever computed which part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dtg_ray.stages.training import validation
from dtg_ray.stages.training.world import World
from dtg_ray.stats.reconstruction import diagonality_index, identification_accuracy, subject_correlation

SUBJECTS = [f"sub-{number}" for number in range(6)]


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    actual, noise = rng.standard_normal((2, 6, 2, 300)).astype(np.float32)
    predicted = actual + 2 * noise
    actual[0, 1] = np.nan
    return predicted, actual


def figures(maps: tuple[np.ndarray, np.ndarray], world: World, subjects: Sequence[str] = SUBJECTS) -> dict[str, float]:
    predicted, actual = maps

    def look(subject: str) -> tuple[np.ndarray, np.ndarray]:
        row = SUBJECTS.index(subject)
        return predicted[row], actual[row]

    return validation.validate(subjects, ["A", "B"], look, world)


def test_leaves_out_what_was_not_acquired(maps: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, actual = maps
    found = figures(maps, World())
    r = [np.corrcoef(predicted[row, 0], actual[row, 0])[0, 1] for row in range(6)]
    assert found["validation_r/A"] == pytest.approx(np.mean(r), abs=1e-6)
    r_b = [np.corrcoef(predicted[row, 1], actual[row, 1])[0, 1] for row in range(1, 6)]
    assert found["validation_r/B"] == pytest.approx(np.mean(r_b), abs=1e-6)
    assert found["validation_r"] == pytest.approx((np.mean(r) + np.mean(r_b)) / 2, abs=1e-6)
    assert found["validation_loss"] == pytest.approx(np.nanmean((predicted - actual) ** 2), rel=1e-6)
    matrices = [
        subject_correlation(actual[:, 0], predicted[:, 0]),
        subject_correlation(actual[1:, 1], predicted[1:, 1]),
    ]
    assert found["validation_diagonality"] == pytest.approx(
        np.mean([diagonality_index(one) for one in matrices]), abs=1e-3
    )
    assert found["validation_identification"] == np.mean([identification_accuracy(one) for one in matrices])


def test_only_some_people_are_told_apart(maps: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "IDENTIFIED", 4)
    found = figures(maps, World())
    few = figures(maps, World(), SUBJECTS[:4])
    for name in ("validation_diagonality", "validation_identification"):
        assert found[name] == few[name]
    assert found["validation_r"] != few["validation_r"]


def test_one_person_is_told_apart_from_nobody(maps: tuple[np.ndarray, np.ndarray]) -> None:
    found = figures(maps, World(), SUBJECTS[1:2])
    assert "validation_identification" not in found
    assert np.isfinite(found["validation_r"])
