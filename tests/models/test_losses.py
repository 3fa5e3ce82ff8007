"""Losses against brute force in float64, with and without missing targets."""

from itertools import combinations

import numpy as np
import pytest
import torch

from dtg_ray.models import losses
from reference import PUBLISHED, needs_published

LOSSES = {
    "mse": losses.mse,
    "mae": losses.mae,
    "contrastive": losses.contrastive,
    "crr": lambda p, t: losses.crr_loss(p, t, margin=1, alpha=0.25),
    "rc": lambda p, t: losses.rc_loss(p, t, within_margin=0.5, between_margin=0.6),
}

PUBLISHED_LOSSES = {
    "mse": losses.mse,
    "mae": losses.mae,
    "contrastive": losses.contrastive,
    "crr_margin1_alpha0.10": lambda p, t: losses.crr_loss(p, t, margin=1, alpha=0.10),
    "crr_margin1_alpha0.25": lambda p, t: losses.crr_loss(p, t, margin=1, alpha=0.25),
    "crr_margin3_alpha0.25": lambda p, t: losses.crr_loss(p, t, margin=3, alpha=0.25),
    "rc_within0.5_between0.6": lambda p, t: losses.rc_loss(p, t, within_margin=0.5, between_margin=0.6),
}


def brute_mse(prediction, target):
    errors = [(p - t) ** 2 for p, t in zip(prediction.ravel(), target.ravel(), strict=True) if not np.isnan(t)]
    return np.mean(errors) if errors else np.nan


def brute_contrastive(prediction, target):
    pairs = combinations(range(len(prediction)), 2)
    return np.nanmean([brute_mse(prediction[i], target[j]) for i, j in pairs])


def brute_force(name, prediction, target):
    recon, contrast = brute_mse(prediction, target), brute_contrastive(prediction, target)
    return {
        "mse": recon,
        "mae": np.nanmean(np.abs(prediction - target)),
        "contrastive": contrast,
        "crr": recon + 0.25 * max(recon - contrast + 1, 0),
        "rc": max(recon - 0.5, 0) + max(recon - contrast + 0.6, 0),
    }[name]


def batch(subjects, seed=0, *, missing=False):
    """Predictions and targets (N, 3, 20) float64; the last subject has one contrast only, the second none."""
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((subjects, 3, 20))
    prediction = 0.6 * target + rng.standard_normal(target.shape)
    if missing:
        target[0, 1, 3:9] = np.nan
        target[-1, 1:] = np.nan
        target[1] = np.nan if subjects > 2 else target[1]
    return prediction, target


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("subjects", [2, 3, 7])
class TestAgainstBruteForce:
    def test_value(self, name, subjects, missing):
        prediction, target = batch(subjects, missing=missing)
        value = LOSSES[name](torch.from_numpy(prediction), torch.from_numpy(target))
        assert value.shape == ()
        assert value.item() == pytest.approx(brute_force(name, prediction, target), rel=1e-12)

    def test_gradient(self, name, subjects, missing):
        prediction, target = batch(subjects, seed=1, missing=missing)
        leaf = torch.from_numpy(prediction.copy()).requires_grad_()
        LOSSES[name](leaf, torch.from_numpy(target)).backward()
        rng = np.random.default_rng(2)
        direction = rng.standard_normal(prediction.shape)
        high, low = (brute_force(name, prediction + step * direction, target) for step in (1e-6, -1e-6))
        assert (leaf.grad.numpy() * direction).sum() == pytest.approx((high - low) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
class TestMissingTargets:
    def test_the_gradient_is_finite_in_float32(self, name):
        prediction, target = (torch.from_numpy(array).float() for array in batch(4, missing=True))
        prediction.requires_grad_()
        LOSSES[name](prediction, target).backward()
        assert torch.isfinite(prediction.grad).all()
        assert prediction.grad.abs().sum() > 0

    def test_predictions_where_nobody_has_a_target_do_not_count(self, name):
        prediction, target = (torch.from_numpy(array) for array in batch(4))
        target[:, 2] = float("nan")
        changed = prediction.clone()
        changed[:, 2] += 100
        assert LOSSES[name](prediction, target) == LOSSES[name](changed, target)

    def test_a_batch_without_any_target_is_an_error(self, name):
        prediction, _ = (torch.from_numpy(array) for array in batch(3))
        with pytest.raises(ValueError, match="expected at least one"):
            LOSSES[name](prediction, torch.full_like(prediction, float("nan")))

    def test_a_prediction_that_is_nan_is_not_hidden(self, name):
        prediction, target = (torch.from_numpy(array) for array in batch(3))
        prediction[0, 0, 0] = float("nan")
        assert torch.isnan(LOSSES[name](prediction, target))


@pytest.mark.parametrize("name", LOSSES)
class TestTypesAndShapes:
    def test_half_precision_is_summed_in_float32(self, name):
        prediction, target = (torch.from_numpy(300 * array).half() for array in batch(3))
        value = LOSSES[name](prediction, target)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(LOSSES[name](prediction.double(), target.double()).item(), rel=1e-5)

    def test_shapes_have_to_be_equal(self, name):
        with pytest.raises(ValueError, match=r"got predictions of shape \(2, 3, 5\) and targets of shape \(2, 1, 5\)"):
            LOSSES[name](torch.zeros(2, 3, 5), torch.zeros(2, 1, 5))


@pytest.mark.parametrize("name", ["contrastive", "crr", "rc"])
def test_one_subject_cannot_be_contrasted(name):
    with pytest.raises(ValueError, match="got a batch of 1 subject, expected at least 2"):
        LOSSES[name](torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))


class TestIdentities:
    def test_contrastive_of_equal_maps_is_zero(self):
        maps = torch.randn(1, 3, 50).expand(5, 3, 50)
        assert losses.contrastive(maps, maps) == 0

    def test_contrastive_is_exact_far_from_zero(self):
        prediction, target = batch(6)
        expected = brute_contrastive(prediction, target)
        shifted = [torch.from_numpy(array + 1e6) for array in (prediction, target)]
        assert losses.contrastive(*shifted).item() == pytest.approx(expected, rel=1e-8)

    def test_only_earlier_predictions_meet_later_targets(self):
        prediction, target = (torch.from_numpy(array) for array in batch(4))
        prediction.requires_grad_()
        losses.contrastive(prediction, target).backward()
        assert prediction.grad[3].abs().sum() == 0
        assert (prediction.grad[:3].abs().sum(dim=(1, 2)) > 0).all()

    def test_margins_switch_terms_off(self):
        prediction, target = (torch.from_numpy(array) for array in batch(4))
        recon = losses.mse(prediction, target)
        assert losses.crr_loss(prediction, target, margin=-1e3, alpha=0.5) == recon
        assert losses.rc_loss(prediction, target, within_margin=1e3, between_margin=-1e3) == 0
        within = losses.rc_loss(prediction, target, within_margin=0.25, between_margin=-1e3)
        assert within.item() == pytest.approx(recon.item() - 0.25)


@needs_published
@pytest.mark.parametrize("which", ["nomask", "mask"])
@pytest.mark.parametrize("name", PUBLISHED_LOSSES)
def test_published(name, which):
    with np.load(PUBLISHED / "losses.npz") as file:
        voxels = file["mask"] > 0 if which == "mask" else np.ones(file["mask"].shape, dtype=bool)
        prediction, target = (torch.from_numpy(file[key][..., voxels]) for key in ("prediction", "target"))
        expected = file[f"expected_{name}_{which}"]
    assert prediction.shape == (4, 3, voxels.sum())
    assert PUBLISHED_LOSSES[name](prediction, target).item() == pytest.approx(expected, abs=1e-6)
