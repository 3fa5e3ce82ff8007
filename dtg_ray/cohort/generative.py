"""A population with known truth: networks that differ in gain, shape and position, and what a scanner sees.

Everything here is arrays in, arrays out; `dtg_ray.cohort.simulate` writes the files.

The model, for subject s, network k, voxel v and volume t:

    network map   m_sk(v) = g_sk sum_b w_skb exp(-|v - c_kb - d_skb|^2 / 2 r_skb^2)
    rest          x_s(t, v) = baseline_s(v) (1 + sum_k a_sk(t) m_sk(v) + q_s(t) + e_s(t, v))
    task          y_sc(v) = sum_i beta_ci max(m_si(v) - threshold, 0) + sum_il gamma_cil m_si(v) m_sl(v)
                            + e_sc(v)

with gains g, blob weights w, centres c, displacements d and widths r, network time courses a, a global signal q
and white noise e. Task maps are rectified networks and products of neighbouring ones: out of reach of a linear
model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

POPULATION, FAMILY, SUBJECT, RETEST = range(4)
"""First key of every random stream; the second is the number of a subject or family, the third is below.

Of RETEST the third is the number of a contrast.
"""
TRAITS, REST, TASK = range(3)

VERSION = 1
"""Raised whenever the same options would give other bytes."""


@dataclass(frozen=True)
class Parameters:
    """Strengths of the generative model; lengths in mm, times in s, BOLD in units of a network's mean peak."""

    pairs: int = 2  # pairs of blobs per network, left and right
    width: tuple[float, float] = (8.0, 13.0)  # range of the standard deviation of a blob
    displacement: float = 6.6  # standard deviation per axis of a blob's shift
    shape_spread: float = 0.12  # standard deviation of log width
    weight_spread: float = 0.2  # standard deviation of log blob weight
    gain_spread: float = 0.3  # standard deviation of log gain
    common_gain: float = 0.5  # correlation of every network's gain with the factor common to all
    age_effect: float = 0.12  # fall of log gain per standard deviation of age
    family_share: float = 0.5  # share of the variance of gains that siblings have in common
    coupling: float = 0.25  # spread of the networks' loadings on fluctuations they share
    segregation: float = 0.4  # fall of log coupling per standard deviation of the weighted gain traits
    autocorrelation: float = 2.0  # decay time of time courses
    percent: float = 0.02  # BOLD change of a network at its mean peak, relative to the baseline
    voxel_noise: float = 2.0
    global_noise: float = 0.15
    threshold: float = 0.2  # networks act in a task above this
    product: float = 0.6  # strength of products of networks, relative to rectified ones
    task_noise: float = 1.0
    task_scale: float = 1.0  # standard deviation of a term of a contrast over voxels, z
    network_share: float = 0.7  # share of the variance of network_score that comes from the networks
    age_sex_share: float = 0.5


@dataclass(frozen=True)
class Contrast:
    """A task contrast: signed terms over networks.

    Parameters
    ----------
    task, name : str
        As in the file name.
    rectified : list of (network, weight)
    products : list of (network, network, weight)
    """

    task: str
    name: str
    rectified: list[tuple[int, float]]
    products: list[tuple[int, int, float]]


@dataclass(frozen=True)
class Population:
    """What all subjects have in common: K networks of B blobs.

    Parameters
    ----------
    centres : (K, B, 3) float64, mm
    widths : (K, B) float64, mm
    weights : (K, B) float64
    loadings : (K, 3) float64
        Of each network on fluctuations that networks share, in units of a subject's coupling.
    score_weights : (K,) float64
        Direction of the gain traits that drives `network_score`, scaled so that the sum has variance 1.
    contrasts : list of Contrast
    """

    centres: Float64
    widths: Float64
    weights: Float64
    loadings: Float64
    score_weights: Float64
    contrasts: list[Contrast] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """What is true of one person.

    Parameters
    ----------
    age : float, years
    sex : str
        F or M.
    site : int
    family : int
    gain_traits : (K,) float64
        Standard normal; the networks' part of `network_score` is `score_weights @ gain_traits`.
    gains : (K,) float64
        Amplitude of each network: gain traits and age.
    shapes : (K, B) float64
        Factor on the width of each blob.
    weights : (K, B) float64
        Factor on the height of each blob.
    displacements : (K, B, 3) float64, mm
    coupling : float
        How strongly the networks' time courses go together.
    scores : dict of str to float
        Phenotypes as written.
    expected : dict of str to float
        Phenotypes without their noise.
    """

    age: float
    sex: str
    site: int
    family: int
    gain_traits: Float64
    gains: Float64
    shapes: Float64
    weights: Float64
    displacements: Float64
    coupling: float
    scores: dict[str, float]
    expected: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Turn into plain lists and numbers, for JSON."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(self).items()}


def generator(seed: int, *key: int) -> np.random.Generator:
    """Start the random stream of a seed and a key, the same whoever asks."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_population(
    seed: int, coordinates: Float32, rois: int, names: list[tuple[str, str]], parameters: Parameters
) -> Population:
    """Draw the networks and the contrasts.

    Parameters
    ----------
    seed : int
    coordinates : (N, 3) float32, mm
        Where blobs may be centred, both hemispheres.
    rois : int
        Number of networks K.
    names : list of (task, contrast)
    parameters : Parameters
    """
    rng = generator(seed, POPULATION)
    blobs = 2 * parameters.pairs
    seeds = _spread(rng, coordinates, rois * parameters.pairs).reshape(rois, parameters.pairs, 3)
    centres = np.concatenate([seeds, seeds * [-1, 1, 1]], axis=1)  # (K, B, 3)
    widths = rng.uniform(*parameters.width, size=(rois, blobs))
    weights = rng.uniform(0.7, 1.0, size=(rois, blobs))
    loadings = rng.standard_normal((rois, 3))
    plain = Population(centres, widths, weights, loadings, _score_weights(rng, rois, parameters))
    typical = network_maps(coordinates, plain, replace(parameters, displacement=0))
    plain.contrasts.extend(_draw_contrast(rng, task, name, typical, parameters) for task, name in names)
    return plain


def draw_subject(seed: int, index: int, family: int, population: Population, parameters: Parameters) -> Subject:
    """Draw one person from (seed, index); siblings share a part of their gains through (seed, family)."""
    rng = generator(seed, SUBJECT, index, TRAITS)
    rois, blobs = population.widths.shape
    age, sex, site = float(np.round(rng.uniform(45, 80), 1)), "FM"[rng.integers(2)], int(rng.integers(3)) + 1
    ageing = (age - 62.5) / (35 / np.sqrt(12))  # mean 0, variance 1
    shared = _traits(generator(seed, FAMILY, family), rois, parameters.common_gain)
    own = _traits(rng, rois, parameters.common_gain)
    share = parameters.family_share
    traits = np.sqrt(share) * shared + np.sqrt(1 - share) * own  # (K,)
    overall = float(population.score_weights @ traits)
    expected, scores = _phenotypes(rng, overall, ageing, sex, parameters)
    return Subject(
        age=age,
        sex=sex,
        site=site,
        family=family,
        gain_traits=traits,
        gains=np.exp(parameters.gain_spread * traits - parameters.age_effect * ageing),
        shapes=np.exp(parameters.shape_spread * rng.standard_normal((rois, blobs))),
        weights=np.exp(parameters.weight_spread * rng.standard_normal((rois, blobs))),
        displacements=parameters.displacement * rng.standard_normal((rois, blobs, 3)),
        coupling=parameters.coupling * float(np.exp(parameters.age_effect * ageing - parameters.segregation * overall)),
        scores=scores,
        expected=expected,
    )


def network_maps(
    coordinates: Float32, population: Population, parameters: Parameters, subject: Subject | None = None
) -> Float32:
    """Amplitude of every network in every voxel.

    Without a subject, the mean over subjects' positions: the same blobs, wider by the spread of the displacements
    and lower, which is what a group decomposition sees.

    Parameters
    ----------
    coordinates : (V, 3) float32, mm
    population : Population
    parameters : Parameters
    subject : Subject, optional

    Returns
    -------
    (K, V) float32
    """
    if subject is None:
        widths = np.sqrt(population.widths**2 + parameters.displacement**2)
        centres, heights = population.centres, population.weights * (population.widths / widths) ** 3
    else:
        centres, widths = population.centres + subject.displacements, population.widths * subject.shapes
        heights = population.weights * subject.weights * subject.gains[:, None]
    maps = np.zeros((len(centres), len(coordinates)), dtype=np.float32)  # (K, V)
    for network, blob in np.ndindex(widths.shape):
        reach = np.float32(widths[network, blob] * np.sqrt(2))
        offsets = (coordinates - centres[network, blob].astype(np.float32)) / reach  # (V, 3)
        maps[network] += np.float32(heights[network, blob]) * np.exp(-np.einsum("vi,vi->v", offsets, offsets))
    return maps


def rest_timecourses(
    rng: np.random.Generator, loadings: Float64, volumes: int, tr: float, parameters: Parameters
) -> tuple[Float32, Float32]:
    """Autocorrelated time courses of variance 1: (T, K) of the networks and (T, 1) of the global signal.

    Networks with alike rows of `loadings` (K, F) go together; without loadings they are independent.
    """
    covariance = loadings @ loadings.T + np.eye(len(loadings))  # (K, K)
    scale = np.sqrt(np.diag(covariance))
    memory = float(np.exp(-tr / parameters.autocorrelation))
    burn_in = 50
    white = rng.standard_normal((volumes + burn_in, len(loadings) + 1)) * np.sqrt(1 - memory**2)
    series = lfilter([1.0], [1.0, -memory], white, axis=0)[burn_in:]  # (T, K + 1)
    networks = series[:, :-1] @ np.linalg.cholesky(covariance / np.outer(scale, scale)).T  # (T, K)
    return networks.astype(np.float32), series[:, -1:].astype(np.float32)


def baseline(coordinates: Float32, grey: NDArray[np.bool_], subject: Subject) -> Float32:
    """Mean image of a run, (V,) float32: bright grey matter, a smooth coil gradient, a scale per site."""
    gradient = 1 + 0.2 * np.sin(coordinates @ np.array([0.01, 0.03, 0.02], dtype=np.float32))
    return np.asarray((900 + 100 * subject.site) * gradient * np.where(grey, 1.2, 1.0), dtype=np.float32)


def task_map(maps: Float32, contrast: Contrast, parameters: Parameters) -> Float32:
    """Compute a contrast without noise: (K, V) network maps of one subject -> (V,) float32 z values."""
    total = np.zeros(maps.shape[1], dtype=np.float32)
    for network, weight in contrast.rectified:
        total += np.float32(weight) * np.maximum(maps[network] - np.float32(parameters.threshold), 0)
    for first, second, weight in contrast.products:
        total += np.float32(weight) * maps[first] * maps[second]
    return total * np.float32(parameters.task_scale)


def _spread(rng: np.random.Generator, coordinates: Float32, count: int) -> Float64:
    """Draw (count, 3) points of the right hemisphere that keep away from each other, each the best of three."""
    candidates = coordinates[coordinates[:, 0] > 6].astype(np.float64)
    chosen = np.full((count, 3), np.inf)
    for index in range(count):
        trial = candidates[rng.integers(len(candidates), size=3)]  # (3, 3)
        if index:
            gaps = np.linalg.norm(trial[:, None] - chosen[None, :index], axis=2).min(axis=1)
            trial = trial[[np.argmax(gaps)]]
        chosen[index] = trial[0]
    return chosen


def _score_weights(rng: np.random.Generator, rois: int, parameters: Parameters) -> Float64:
    """Positive weights on the gain traits such that their weighted sum has variance 1, (K,)."""
    weights = rng.uniform(0.5, 1.5, rois)
    loading = parameters.common_gain
    variance = (loading * weights.sum()) ** 2 + (1 - loading**2) * (weights**2).sum()
    return np.asarray(weights / np.sqrt(variance))


def _traits(rng: np.random.Generator, rois: int, loading: float) -> Float64:
    """Draw standard normal gain traits with one common factor, (K,)."""
    return np.asarray(loading * rng.standard_normal() + np.sqrt(1 - loading**2) * rng.standard_normal(rois))


def _draw_contrast(rng: np.random.Generator, task: str, name: str, maps: Float32, parameters: Parameters) -> Contrast:
    """Draw up to three rectified networks, one negative, and two products of neighbours, equally strong."""
    networks = rng.choice(len(maps), size=min(3, len(maps)), replace=False)
    neighbours = _neighbours(maps)
    pairs = rng.choice(neighbours, size=min(2, len(neighbours)), replace=False)
    weights, threshold = rng.uniform(0.8, 1.2, size=5), np.float32(parameters.threshold)
    signs = (1, 1, -1, parameters.product, -parameters.product)
    strengths = weights * signs
    return Contrast(
        task,
        name,
        [
            (int(k), float(strength / np.maximum(maps[k] - threshold, 0).std()))
            for k, strength in zip(networks, strengths[:3], strict=False)
        ],
        [
            (int(i), int(j), float(strength / (maps[i] * maps[j]).std()))
            for (i, j), strength in zip(pairs, strengths[3:], strict=False)
        ],
    )


def _neighbours(maps: Float32) -> NDArray[np.int64]:
    """Find the pairs of networks that overlap most, half as many as networks: (K // 2, 2)."""
    first, second = np.triu_indices(len(maps), 1)
    overlap = np.asarray(np.corrcoef(maps))[first, second]
    best = np.argsort(-overlap, kind="stable")[: len(maps) // 2]
    return np.stack([first[best], second[best]], axis=1)


def _phenotypes(
    rng: np.random.Generator, network: float, ageing: float, sex: str, parameters: Parameters
) -> tuple[dict[str, float], dict[str, float]]:
    """Draw phenotypes, expected and observed, each observed one of variance 1."""
    demographic = (ageing + (1.0 if sex == "M" else -1.0)) / np.sqrt(2)
    shares = {
        "network_score": parameters.network_share,
        "age_sex_score": parameters.age_sex_share,
        "noise_score": 0,
    }
    drivers = {"network_score": network, "age_sex_score": float(demographic), "noise_score": 0.0}
    noise = rng.standard_normal(len(shares))
    expected = {name: float(np.sqrt(share) * drivers[name]) for name, share in shares.items()}
    observed = {
        name: float(expected[name] + np.sqrt(1 - share) * error)
        for (name, share), error in zip(shares.items(), noise, strict=True)
    }
    return expected, observed
