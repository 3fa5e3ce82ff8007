"""How good a network is between two epochs, on people it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dtg_ray.float16 import as_float16
from dtg_ray.stages.training.world import World
from dtg_ray.stats.metrics import pearson
from dtg_ray.stats.reconstruction import diagonality_index, identification_accuracy, subject_correlation

IDENTIFIED = 64
"""People that are told apart from each other; their maps are in memory at once, shared among the workers."""

Maps = NDArray[np.floating]


def validate(
    subjects: Sequence[str], contrasts: Sequence[str], look: Callable[[str], tuple[Maps, Maps]], world: World
) -> dict[str, float]:
    """Figures of predicted against measured maps, the same in every process.

    Parameters
    ----------
    subjects : sequence of str
        Dealt out to the processes.
    contrasts : sequence of str
        Names of the C contrasts.
    look : callable
        Subject -> predicted and measured maps, (C, G) float32 each; NaN where not acquired.
    world : World

    Returns
    -------
    dict
        `validation_loss` (mean squared error), `validation_r`, `validation_diagonality` and
        `validation_identification` (means over contrasts of means over subjects; the last two over the first
        `IDENTIFIED` people), and `validation_r/<contrast>`.
    """
    figures, kept = {}, {}
    told_apart = set(subjects[:IDENTIFIED])
    for subject in world.share(subjects):
        predicted, actual = look(subject)
        figures[subject] = subject_figures(predicted, actual)
        if subject in told_apart:
            kept[subject] = (_half(predicted), _half(actual))
    everybody = {subject: line for part in world.everyone(figures) for subject, line in part.items()}
    r = np.array([everybody[subject][0] for subject in subjects])  # (n, C)
    squares, count = np.sum([everybody[subject][1:] for subject in subjects], axis=0)
    result = {"validation_loss": float(squares / count), **_correlations(r, contrasts)}
    pairs = []
    for number in range(len(contrasts)):
        parts = world.everyone({subject: (maps[0][number], maps[1][number]) for subject, maps in kept.items()})
        together = {subject: pair for part in parts for subject, pair in part.items()}
        chosen = [together[subject] for subject in subjects[:IDENTIFIED]]
        pairs.append(contrast_figures(*(np.stack([pair[side] for pair in chosen]) for side in (0, 1))))
    told = [pair for pair in pairs if pair is not None]
    if told:
        result["validation_diagonality"], result["validation_identification"] = map(float, np.mean(told, axis=0))
    return result


def _half(maps: Maps) -> NDArray[np.float16]:
    """Float16, as maps are stored: what is beyond its range becomes the end of it."""
    return as_float16(maps)


def subject_figures(predicted: Maps, actual: Maps) -> tuple[NDArray[np.float64], float, float]:
    """Of one subject: r per contrast (C,), NaN where not acquired; sum of squared errors, and their number."""
    acquired = ~np.isnan(actual).any(axis=1)
    r = np.full(len(actual), np.nan)
    if acquired.any():
        r[acquired] = pearson(actual[acquired], predicted[acquired])
    errors = (predicted - actual).astype(np.float64) ** 2
    return r, float(np.nansum(errors)), float((~np.isnan(errors)).sum())


def contrast_figures(predicted: Maps, actual: Maps) -> tuple[float, float] | None:
    """Of one contrast: diagonality index and identification accuracy of maps (n, G); None for less than two people."""
    measured = ~np.asarray(np.isnan(actual).any(axis=1))
    if measured.sum() < 2:
        return None
    matrix = subject_correlation(actual[measured].astype(np.float32), predicted[measured].astype(np.float32))
    return diagonality_index(matrix), identification_accuracy(matrix)


def _correlations(r: NDArray[np.float64], contrasts: Sequence[str]) -> dict[str, float]:
    """Mean r per contrast and over contrasts, of what was acquired."""
    count = (~np.isnan(r)).sum(axis=0)
    means = np.nansum(r, axis=0)[count > 0] / count[count > 0]
    names = [name for name, known in zip(contrasts, count, strict=True) if known]
    each = {f"validation_r/{name}": float(mean) for name, mean in zip(names, means, strict=True)}
    return {"validation_r": float(means.mean()), **each} if len(means) else {}
