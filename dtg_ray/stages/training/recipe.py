"""What `train:` in study.yaml means: parts of a batch, the loss, the learning rate, the end."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dtg_ray.config import TrainConfig
from dtg_ray.models import losses, schedule


@dataclass(frozen=True)
class Part:
    """Some subjects of a batch that are computed at once.

    Parameters
    ----------
    start, stop : int
        Their rows.
    weight : float
        Their share of the batch.
    last : bool
        Whether the batch ends with them.
    """

    start: int
    stop: int
    weight: float
    last: bool


def parts_of(members: int, config: TrainConfig) -> list[Part]:
    """What is computed at once of a worker's batch: equal parts of two subjects or more, as contrastive losses need."""
    count = max(min(config.accumulate, members // 2), 1)
    cuts = [members * number // count for number in range(count + 1)]
    return [Part(start, stop, (stop - start) / members, stop == members) for start, stop in itertools.pairwise(cuts)]


def loss_of(prediction: Tensor, target: Tensor, config: TrainConfig, epoch: int) -> Tensor:
    """The loss of a configuration between maps (N, C, G)."""
    if config.loss == "rc":
        within, between = schedule.annealed_margins(epoch)
        return losses.rc_loss(prediction, target, within_margin=within, between_margin=between)
    if config.loss == "crr":
        return losses.crr_loss(prediction, target, margin=config.margin, alpha=config.alpha)
    return losses.mse(prediction, target) if config.loss == "mse" else losses.mae(prediction, target)


def scores(history: Sequence[Mapping[str, float]]) -> list[float]:
    """What tells whether training gets better, per epoch: the validation loss, without validation the training loss."""
    return [line.get("validation_loss", line["loss"]) for line in history]


def is_over(history: Sequence[Mapping[str, float]], config: TrainConfig) -> bool:
    """Whether all epochs are done, or patience is at its end."""
    return len(history) >= config.epochs or schedule.should_stop(scores(history), config.stop_patience)


def learning_rate_factor(epochs_done: float, config: TrainConfig, past: Sequence[float]) -> float:
    """Share of the learning rate after some epochs; a function of time and past scores, so resuming needs no state."""
    if config.schedule == "cosine":
        return schedule.cosine_factor(epochs_done / config.epochs)
    if config.schedule == "plateau":
        return schedule.plateau_factor(past, schedule.Plateau(config.plateau_patience), config.plateau_factor)
    return 1.0
