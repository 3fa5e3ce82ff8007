"""Learning rates, margins and stopping as functions of history, against torch's stateful ones."""

import numpy as np
import pytest
import torch

from dtg_ray.models.schedule import Plateau, annealed_margins, cosine_factor, plateau_factor, should_stop


def torch_rates(scores, patience, threshold, factor):
    """Learning rates of torch's ReduceLROnPlateau after each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience, threshold=threshold, factor=factor, eps=0
    )
    rates = []
    for score in scores:
        scheduler.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


class TestPlateau:
    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize(("patience", "threshold"), [(0, 1e-4), (3, 1e-4), (10, 1e-4), (2, 0.05)])
    def test_is_that_of_torch_at_every_epoch(self, seed, patience, threshold):
        rng = np.random.default_rng(seed)
        scores = (2 * np.exp(-np.arange(60) / 10) + 1 + 0.1 * rng.normal(size=60)).tolist()
        expected = torch_rates(scores, patience, threshold, 0.5)
        plateau = Plateau(patience, threshold)
        got = [plateau_factor(scores[: epoch + 1], plateau, 0.5) for epoch in range(60)]
        np.testing.assert_allclose(got, expected)
        assert patience == 10 or len(set(got)) > 1

    def test_a_score_that_is_no_number_is_never_better(self):
        assert Plateau(2).times([1.0, float("nan"), float("nan"), float("nan")]) == 1

    def test_nothing_has_ended_before_the_first_epoch(self):
        assert Plateau(0).times([]) == 0


class TestStopping:
    def test_waits_for_its_patience_since_the_best_epoch(self):
        scores = [3.0, 2.0, 1.0, 1.5, 1.2, 1.1]
        assert not should_stop(scores[:5], 2)
        assert should_stop(scores, 2)
        assert not should_stop(scores, 3)

    def test_never_stops_without_patience(self):
        assert not should_stop([1.0] * 1000, None)


class TestCosine:
    def test_rises_to_one_and_falls_to_zero(self):
        factors = [cosine_factor(share) for share in np.linspace(0, 1, 101)]
        assert factors[0] == pytest.approx(0.05)
        assert max(factors) == factors[20] == pytest.approx(1)
        assert factors[-1] == pytest.approx(0, abs=1e-12)
        assert all(np.diff(factors[:21]) > 0)
        assert all(np.diff(factors[20:]) < 0)


class TestMargins:
    def test_are_those_of_the_published_code_which_changes_them_every_ten_epochs(self):
        within, between = 4.0, 5.0
        for epoch in range(200):
            if epoch % 10 == 0 and epoch > 0:
                within, between = max(within * 0.9, 1.0), min(between * 1.1, 10.0)
            assert annealed_margins(epoch) == pytest.approx((within, between))
        assert annealed_margins(199) == (1.0, 10.0)
