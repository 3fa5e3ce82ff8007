"""What changes from epoch to epoch: learning rate, margins, when to stop.

All are functions of the epoch and of the history alone, so that a training that is resumed needs no state of theirs and
goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RISE, FIRST = 0.2, 0.05
"""A cosine schedule rises for this share of the epochs, from this share of the learning rate."""
WITHIN, BETWEEN, ANNEALED_EVERY = (4.0, 0.9, 1.0), (5.0, 1.1, 10.0), 10
"""First margin, factor and last margin, and after how many epochs the factor is applied (published code)."""


@dataclass(frozen=True)
class Plateau:
    """When a score counts as no longer getting better, as torch's `ReduceLROnPlateau` has it.

    Parameters
    ----------
    patience : int
        Epochs without a better score that are waited for.
    threshold : float
        Share of the best score by which a lower one has to be better.
    """

    patience: int = 10
    threshold: float = 1e-4

    def times(self, scores: Sequence[float]) -> int:
        """How often patience ran out; after each time it begins anew.

        Parameters
        ----------
        scores : sequence of float
            One per epoch so far; lower is better, NaN is never better.
        """
        best, waited, ended = math.inf, 0, 0
        for score in scores:
            # of a negative score a share would be the wrong way round, as in torch
            if score < best * (1 - self.threshold):
                best, waited = score, 0
            else:
                waited += 1
            if waited > self.patience:
                waited, ended = 0, ended + 1
        return ended


def cosine_factor(share: float) -> float:
    """Share of the learning rate after a share of the training, 0..1: a linear rise, then half a cosine down to 0."""
    if share < RISE:
        return FIRST + (1 - FIRST) * share / RISE
    return 0.5 * (1 + math.cos(math.pi * (share - RISE) / (1 - RISE)))


def plateau_factor(scores: Sequence[float], plateau: Plateau, factor: float) -> float:
    """Share of the learning rate that is left after the epochs so far."""
    return factor ** plateau.times(scores)


def should_stop(scores: Sequence[float], patience: int | None) -> bool:
    """Whether the last better score is more than `patience` epochs ago; never without patience."""
    return patience is not None and Plateau(patience, 0.0).times(scores) > 0


def annealed_margins(epoch: int) -> tuple[float, float]:
    """Margins (within, between) of the RC loss in an epoch.

    The own map may be less and less far away, the maps of others have to be further and further (Ngo et al. 2022, with
    the numbers of the published DeepTaskGen code): 4 falls by 10% every 10 epochs down to 1, 5 rises by 10% up to 10.
    """
    steps = epoch // ANNEALED_EVERY
    within, between = WITHIN, BETWEEN
    return max(within[0] * within[1] ** steps, within[2]), min(between[0] * between[1] ** steps, between[2])
