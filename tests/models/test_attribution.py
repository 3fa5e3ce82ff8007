"""Attributions: identities they satisfy, finite differences, and what a number of points or a batch may change."""

import numpy as np
import pytest
import torch

from dtg_ray.errors import ModelError
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import attribution, build
from dtg_ray.models.artifact import NetworkModel
from dtg_ray.models.attribution import (
    batch_within,
    bytes_per_connectome,
    difference,
    gradients,
    integrated_gradients,
    readout,
    smooth_grad,
)

ROIS, CONTRASTS = 3, ("faces", "2back")
ARCHITECTURES = ["attention_unet", "unet_minimal", "resunet", "vnet"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other in networks this small take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def grid():
    x, y, z = np.indices((9, 10, 8))
    return Grid(np.diag([-2.0, 2, 2, 1]), (x - 4) ** 2 + (y - 5) ** 2 + (z - 4) ** 2 < 14)


def make(grid, input_mask=None, architecture="attention_unet", **more):
    torch.manual_seed(0)
    config = {"architecture": architecture, "n_rois": ROIS, "n_contrasts": 2, "width": 4, **more}
    return NetworkModel(build(config), config, CONTRASTS, grid, input_mask)


@pytest.fixture
def direction(grid):
    return np.random.default_rng(2).standard_normal((2, grid.n_voxels)).astype(np.float32)


@pytest.fixture
def connectome(grid):
    values = np.random.default_rng(1).uniform(-0.8, 0.8, (ROIS, grid.n_voxels))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture
def linear(connectome):
    """A scalar with known gradients, and their weights."""
    weights = torch.from_numpy(np.random.default_rng(3).standard_normal(connectome.shape))
    return (lambda x: (x.double() * weights).sum(dim=(1, 2)) + 7), weights


class TestReadout:
    def test_is_the_inner_product_with_the_maps_the_model_predicts(self, grid, connectome, direction):
        model = make(grid)
        maps = model.predict(connectome.numpy()[None])[0]
        found = readout(model, direction)(connectome[None])
        np.testing.assert_allclose(found.numpy(), [(maps.astype(float) * direction).sum()], rtol=1e-5)

    def test_each_connectome_has_its_own(self, grid, connectome, direction):
        scalar_of = readout(make(grid), direction)
        both = torch.stack([connectome, -connectome])
        np.testing.assert_allclose(scalar_of(both)[1], scalar_of(both[1:])[0], rtol=1e-6)
        assert gradients(lambda x: scalar_of(x)[:1].expand(len(x)) / len(x), both)[1].abs().max() == 0

    def test_voxels_outside_the_input_mask_get_nothing_even_where_they_are_nan(self, grid, connectome, direction):
        mask = np.arange(grid.n_voxels) % 3 > 0
        scalar_of = readout(make(grid, mask), direction)
        holes = connectome.masked_fill(torch.from_numpy(~mask), torch.nan)
        found = gradients(scalar_of, holes[None])[0].numpy()
        assert (found[:, ~mask] == 0).all()
        assert (found[:, mask] != 0).mean() > 0.9

    def test_leaves_the_model_alone(self, grid, connectome, direction):
        model = make(grid)
        gradients(readout(model, direction), connectome[None])
        assert all(weight.requires_grad and weight.grad is None for weight in model.network.parameters())

    @pytest.mark.parametrize("wrong", [np.ones((1, 3)), None])
    def test_refuses_another_shape_and_what_is_not_finite(self, grid, wrong):
        direction = np.full((2, grid.n_voxels), np.nan) if wrong is None else wrong
        with pytest.raises(ValueError, match="expected finite numbers"):
            readout(make(grid), direction)


class TestGradients:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_are_those_of_finite_differences(self, grid, connectome, direction, architecture):
        """Of the smooth ELU, in double precision, for the voxels of every ROI that matter most and some others."""
        model = make(grid, architecture=architecture, activation="elu")
        scalar_of = readout(model, direction)
        found = gradients(scalar_of, connectome[None])[0].numpy()
        maps_of = model.network.double()

        def exact(values):
            boxes = torch.from_numpy(grid.volume(values)[None])
            with torch.no_grad():
                return float((grid.vectorize(maps_of(boxes).numpy()[0]) * direction).sum())

        values, step = connectome.numpy().astype(np.float64), 1e-4
        places = [(k, v) for k in range(ROIS) for v in (int(np.abs(found[k]).argmax()), 0, 17)]
        for place in places:
            change = np.zeros_like(values)
            change[place] = step
            expected = (exact(values + change) - exact(values - change)) / (2 * step)
            assert found[place] == pytest.approx(expected, rel=2e-3, abs=2e-4 * float(np.abs(found).max()))

    def test_want_one_number_of_each(self, connectome):
        with pytest.raises(ValueError, match="got scalars of shape"):
            gradients(lambda x: x.sum(), connectome[None])


class TestIntegratedGradients:
    def test_of_a_linear_model_are_weight_times_input(self, connectome, linear):
        scalar_of, weights = linear
        baseline = torch.full_like(connectome, 0.1)
        for steps in (1, 7):
            found = integrated_gradients(scalar_of, connectome, baseline, steps)
            np.testing.assert_allclose(found, weights * (connectome - baseline), rtol=1e-5)

    def test_of_a_polynomial_are_its_integral(self, connectome):
        """F = sum x^3 has gradient 3 x^2, and so the attribution x^3 - b^3 where b and x differ alone by a factor."""
        found = integrated_gradients(lambda x: (x.double() ** 3).sum(dim=(1, 2)), connectome, connectome / 2, 400)
        np.testing.assert_allclose(found, connectome.double() ** 3 * (1 - 1 / 8), atol=1e-5)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_add_up_to_the_difference_of_the_scalar(self, grid, connectome, direction, architecture):
        """Completeness (Sundararajan et al., proposition 1)."""
        scalar_of = readout(make(grid, architecture=architecture), direction)
        baseline = torch.zeros_like(connectome)
        wanted = difference(scalar_of, connectome, baseline)
        found = integrated_gradients(scalar_of, connectome, baseline, 128, batch=16)
        assert float(found.sum()) == pytest.approx(wanted, abs=5e-4 * float(found.abs().sum()))
        assert abs(wanted) > 0.01 * float(found.abs().sum()), "else anything would do"

    def test_what_does_not_differ_from_the_baseline_gets_nothing(self, grid, connectome, direction):
        baseline = torch.zeros_like(connectome)
        baseline[1] = connectome[1]
        found = integrated_gradients(readout(make(grid), direction), connectome, baseline, 4)
        assert (found[1] == 0).all()
        assert (found[0] != 0).any()

    def test_a_batch_changes_rounding_only(self, grid, connectome, direction):
        scalar_of = readout(make(grid), direction)
        one, three, seven = (
            integrated_gradients(scalar_of, connectome, torch.zeros_like(connectome), 7, batch=n) for n in (1, 3, 9)
        )
        for other in (three, seven):
            np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6 * one.abs().max())

    @pytest.mark.parametrize("numbers", [{"steps": 0}, {"batch": 0}])
    def test_refuses_no_points(self, connectome, linear, numbers):
        with pytest.raises(ValueError, match="expected at least 1"):
            integrated_gradients(linear[0], connectome, connectome, **{"steps": 3, **numbers})

    def test_refuses_another_baseline(self, connectome, linear):
        for call in (
            lambda b: integrated_gradients(linear[0], connectome, b, 3),
            lambda b: difference(linear[0], connectome, b),
        ):
            with pytest.raises(ValueError, match="a baseline of"):
                call(torch.zeros(2, 2))


class TestSmoothGrad:
    def test_without_noise_is_the_gradient(self, grid, connectome, direction):
        scalar_of = readout(make(grid), direction)
        found = smooth_grad(scalar_of, connectome, 0.0, 3, (0,))
        np.testing.assert_allclose(found, gradients(scalar_of, connectome[None])[0], rtol=1e-5, atol=1e-7)

    def test_of_a_linear_model_are_the_weights(self, connectome, linear):
        np.testing.assert_allclose(smooth_grad(linear[0], connectome, 0.3, 4, (0,)), linear[1], rtol=1e-6)

    def test_is_the_expected_gradient_under_noise_of_a_share_of_the_range(self, connectome):
        """F = sum x^3: the mean of 3 (x + e)^2 is 3 (x^2 + s^2)."""
        scale = 0.2 * float(connectome.max() - connectome.min())
        found = smooth_grad(lambda x: (x.double() ** 3).sum(dim=(1, 2)), connectome, 0.2, 200, (5,), batch=50)
        added = (found - 3 * connectome.double() ** 2).mean()
        assert float(added) == pytest.approx(3 * scale**2, rel=0.03)

    def test_noise_depends_on_the_seed_and_the_number_of_the_copy_alone(self, connectome, linear):
        def copies(samples, seed, batch):
            seen = []
            smooth_grad(
                lambda x: (seen.append(x.detach().clone()), linear[0](x))[1],
                connectome,
                0.2,
                samples,
                seed,
                batch=batch,
            )
            return torch.cat(seen)

        whole = copies(6, (5, 1), 1)
        assert len({copy.numpy().tobytes() for copy in whole}) == 6
        assert torch.equal(copies(6, (5, 1), 4), whole)
        assert torch.equal(copies(3, (5, 1), 2), whole[:3])
        assert not torch.isclose(copies(6, (5, 2), 1), whole).all(dim=(1, 2)).any()

    @pytest.mark.parametrize("noise", [-0.1, float("nan")])
    def test_refuses_negative_noise(self, connectome, linear, noise):
        with pytest.raises(ValueError, match="got noise"):
            smooth_grad(linear[0], connectome, noise, 3, (0,))


class TestMemory:
    def test_a_batch_stays_within_its_limit(self, grid):
        config, each = make(grid).config, bytes_per_connectome(make(grid).config, grid.shape)
        assert batch_within(config, grid.shape, 3 * each) == 3
        assert batch_within(config, grid.shape, 0) == 1
        assert batch_within(config, grid.shape, 10**12) == attribution.LARGEST_BATCH

    def test_of_the_published_network_one_connectome_is_a_batch(self):
        config = {"architecture": "attention_unet", "n_rois": 50, "n_contrasts": 47}
        assert batch_within(config, (76, 93, 78)) == 1

    def test_an_unknown_network_is_an_error(self):
        with pytest.raises(ModelError):
            bytes_per_connectome({"architecture": "none"}, (8, 8, 8))
