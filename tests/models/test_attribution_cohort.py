"""Attributions of a network that was trained on a cohort whose truth is known: do they name what drives a contrast?

Each contrast is the rectified map of one functional network alone, which voxel-to-ROI connectomes of simulated rest
runs show among five others. Two of the driving networks share three of their four places, so that their ROI maps
correlate with 0.87: where something happens does not say which of them it is.

Grad-CAM, the gradient-weighted sum of the last layer's activations (Selvaraju et al. 2017), is computed for comparison.
It has no axis of ROIs. The place it finds is the right one, but it fits the wrong ROI's map nearly as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dtg_ray.cohort import generative
from dtg_ray.cohort.generative import Contrast, Parameters, Population
from dtg_ray.imaging.connectome import connectome, roi_timeseries
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import build
from dtg_ray.models.artifact import NetworkModel
from dtg_ray.models.attribution import integrated_gradients, readout, smooth_grad
from dtg_ray.models.losses import mse

DRIVERS = {"first": 2, "second": 3, "third": 0}
"""Contrast -> the network that drives it; the first two share places."""
ROIS, VOLUMES, TRAINED, HELD_OUT, EPOCHS = 6, 120, 40, 6, 30
SEED = 4
METHODS: dict[str, Callable] = {
    "integrated_gradients": lambda f, x: integrated_gradients(f, x, torch.zeros_like(x), 16, batch=16),
    "smooth_grad": lambda f, x: smooth_grad(f, x, 0.15, 16, (SEED,), batch=16),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other in networks this small take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Cohort:
    """Connectomes (n, K, V), true maps (n, C, V), and ROI maps (K, V)."""

    grid: Grid
    connectomes: np.ndarray
    truth: np.ndarray
    rois: np.ndarray

    def region(self, number: int) -> np.ndarray:
        """The tenth of the voxels where a contrast is strongest, (V,)."""
        mean = self.truth[:, number].mean(axis=0)
        return mean > np.quantile(mean, 0.9)


def networks(grid: Grid, parameters: Parameters) -> Population:
    """Six functional networks, and three contrasts that one of them drives each."""
    drawn = generative.draw_population(SEED, grid.coordinates, ROIS, [], parameters)
    drawn.centres[DRIVERS["second"], :3] = drawn.centres[DRIVERS["first"], :3]
    typical = generative.network_maps(grid.coordinates, drawn, replace(parameters, displacement=0))
    strengths = 2 / np.maximum(typical - parameters.threshold, 0).std(axis=1)
    contrasts = [Contrast("", name, [(k, float(strengths[k]))], []) for name, k in DRIVERS.items()]
    return replace(drawn, contrasts=contrasts)


def rest_run(population: Population, number: int, grid: Grid, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """A person's rest run (T, V) and network maps (K, V)."""
    subject = generative.draw_subject(SEED, number, number, population, parameters)
    maps = generative.network_maps(grid.coordinates, population, parameters, subject)
    rng = generative.generator(SEED, generative.SUBJECT, number, generative.REST)
    series, common = generative.rest_timecourses(rng, subject.coupling * population.loadings, VOLUMES, 2.0, parameters)
    noise = parameters.voxel_noise * rng.standard_normal((VOLUMES, grid.n_voxels), dtype=np.float32)
    return (series @ maps + parameters.global_noise * common * maps.sum(axis=0) + noise).astype(np.float32), maps


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    grid, parameters = Grid.mni152(10), Parameters()
    population = networks(grid, parameters)
    rois = generative.network_maps(grid.coordinates, population, parameters)
    connectomes, truth = [], []
    for number in range(TRAINED + HELD_OUT):
        bold, maps = rest_run(population, number, grid, parameters)
        connectomes.append(connectome(bold, roi_timeseries(bold, rois).astype(np.float32)))
        truth.append([generative.task_map(maps, contrast, parameters) for contrast in population.contrasts])
    return Cohort(grid, np.stack(connectomes), np.array(truth, dtype=np.float32), rois)


@pytest.fixture(scope="module")
def model(cohort: Cohort) -> NetworkModel:
    """The attention U-Net after a short training on measured, which is to say noisy, maps."""
    torch.manual_seed(0)
    config = {"architecture": "attention_unet", "n_rois": ROIS, "n_contrasts": len(DRIVERS), "width": 8}
    network, rng = build(config), np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    boxes = torch.from_numpy(cohort.grid.volume(cohort.connectomes[:TRAINED]))
    noise = rng.standard_normal(cohort.truth[:TRAINED].shape, dtype=np.float32)
    targets, voxels = torch.from_numpy(cohort.truth[:TRAINED] + noise), torch.from_numpy(cohort.grid.flat_index)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - epoch / EPOCHS)
        for batch in np.array_split(rng.permutation(TRAINED), 5):
            optimizer.zero_grad()
            mse(network(boxes[batch]).flatten(2)[:, :, voxels], targets[batch]).backward()
            optimizer.step()
    return NetworkModel(network, config, tuple(DRIVERS), cohort.grid)


def expression(model: NetworkModel, cohort: Cohort, number: int) -> np.ndarray:
    """The mean predicted map of a contrast, of norm 1, as a direction (C, V)."""
    direction = np.zeros((len(DRIVERS), cohort.grid.n_voxels))
    direction[number] = model.predict(cohort.connectomes[TRAINED:])[:, number].mean(axis=0)
    return direction / np.linalg.norm(direction)


def attribution(model: NetworkModel, cohort: Cohort, number: int, method: str) -> np.ndarray:
    """Mean absolute attribution over held-out people, (K, V)."""
    scalar_of = readout(model, expression(model, cohort, number))
    people = torch.from_numpy(cohort.connectomes[TRAINED:])
    return np.mean([METHODS[method](scalar_of, one).abs().numpy() for one in people], axis=0)


def shares(values: np.ndarray) -> np.ndarray:
    """Importance of each ROI, (K,)."""
    return values.sum(axis=1) / values.sum()


def auc(values: np.ndarray, region: np.ndarray) -> float:
    """Probability that a voxel of the region has a larger value than another one."""
    ranks = np.argsort(np.argsort(values)) + 1
    inside = region.sum()
    return float((ranks[region].sum() - inside * (inside + 1) / 2) / (inside * (~region).sum()))


def grad_cam(model: NetworkModel, cohort: Cohort, number: int) -> np.ndarray:
    """The map of Grad-CAM at the input of the output layer, mean over held-out people, (V,)."""
    direction = torch.from_numpy(cohort.grid.volume(expression(model, cohort, number)))
    kept: list[torch.Tensor] = []
    hook = model.network.get_submodule("out_block.1").register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    maps = []
    for one in cohort.connectomes[TRAINED:]:
        kept.clear()
        scalar = (model.network(torch.from_numpy(cohort.grid.volume(one))[None])[0] * direction).sum()
        (gradient,) = torch.autograd.grad(scalar, kept[0])
        weighted = gradient.mean(dim=(2, 3, 4), keepdim=True) * kept[0]
        maps.append(cohort.grid.vectorize(torch.relu(weighted.sum(dim=1))[0].detach().numpy()))
    hook.remove()
    return np.mean(maps, axis=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("number", "contrast"), list(enumerate(DRIVERS)))
class TestAttributions:
    def test_rank_the_roi_first_that_drives_a_contrast(self, model, cohort, number, contrast, method) -> None:
        found = shares(attribution(model, cohort, number, method))
        assert found.argmax() == DRIVERS[contrast]
        assert found.max() > 1.2 * np.sort(found)[-2]

    def test_lie_where_it_drives_it(self, model, cohort, number, contrast, method) -> None:
        values, region = attribution(model, cohort, number, method)[DRIVERS[contrast]], cohort.region(number)
        assert auc(values, region) > 0.88
        assert region[np.argsort(-values)[: region.sum()]].mean() > 0.55, "of a tenth of all voxels"


def test_of_a_network_that_has_learnt_nothing_name_nothing(model, cohort) -> None:
    """What is found is found in the weights, not in the connectomes (Adebayo et al. 2018)."""
    torch.manual_seed(0)
    untrained = NetworkModel(build(model.config), model.config, tuple(DRIVERS), cohort.grid)
    found = [shares(attribution(untrained, cohort, number, "integrated_gradients")) for number in range(len(DRIVERS))]
    assert [one.argmax() for one in found] != list(DRIVERS.values())
    assert np.max(found) < 0.4


def test_grad_cam_finds_the_place_but_hardly_the_roi(model, cohort) -> None:
    driver, rival = DRIVERS["first"], DRIVERS["second"]
    cam = grad_cam(model, cohort, 0)
    assert cam.shape == (cohort.grid.n_voxels,), "no axis of ROIs"
    assert auc(cam, cohort.region(0)) > 0.95
    fits = [float(np.corrcoef(cam, cohort.rois[number])[0, 1]) for number in (driver, rival)]
    assert fits[1] > 0.85 * fits[0]
    importance = shares(attribution(model, cohort, 0, "integrated_gradients"))
    assert importance[rival] < 0.5 * importance[driver]
