"""What every Ray Train worker runs: one network, from the first epoch or the last checkpoint to the last epoch.

Given a seed and the same number of workers and threads, an interrupted and resumed training ends in the same bits as an
undisturbed one: the order of subjects and the choice of windows come from (seed, epoch, subject) alone.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn

from dtg_ray.config import NetworkConfig, TrainConfig
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import build, losses, schedule
from dtg_ray.stages.maps import SubjectReader
from dtg_ray.stats.metrics import pearson
from dtg_ray.stats.reconstruction import diagonality_index, identification_accuracy, subject_correlation
from dtg_ray.study import Study

STATE = "state.pt"
MEMORY_FOR_SUBJECTS = 2 * 2**30
"""Subjects' data stay in memory up to this many bytes per worker; beyond, they are read again each epoch."""


def train(settings: Mapping[str, Any]) -> None:
    """Train on one worker.

    Parameters
    ----------
    settings : mapping
        `study` (URI), `network` (settings of the network), `train` (`TrainConfig` as a dict), `training` and
        `validation` (subjects), `reporter` (an actor with a method `put`, or None).
    """
    config = TrainConfig.model_validate(settings["train"])
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.cpus_per_worker)
    study, device = Study(settings["study"]), get_device()
    data = Subjects(study, device)
    network = prepare_model(channels_last(build(settings["network"])))
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state = _restore(network, optimizer, device)
    while not is_over(state["history"], config):
        epoch, past = state["epoch"] + 1, scores(state["history"])
        loss = _train_epoch(network, optimizer, data, settings["training"], config, epoch, past)
        figures = _validate(network, data, settings["validation"], config) if settings["validation"] else {}
        rate = {"learning_rate": config.learning_rate * learning_rate_factor(epoch, config, past)}
        state = _advance(state, network, {"epoch": epoch, "loss": loss, **figures, **rate})
        _report(state, optimizer, config, settings["reporter"])


@dataclass(frozen=True)
class Part:
    """Some subjects of a batch.

    Parameters
    ----------
    members : sequence of str
    weight : float
        Their share of the batch.
    last : bool
        Whether the batch ends with them.
    """

    members: Sequence[str]
    weight: float
    last: bool


class Subjects:
    """Connectomes and maps as tensors, and the way between boxes and vectors.

    Parameters
    ----------
    study : Study
    device : torch.device
    """

    def __init__(self, study: Study, device: torch.device) -> None:
        self.reader, self.grid, self.device = SubjectReader(study), study.grid, device
        self.index = torch.from_numpy(self.grid.flat_index).to(device)
        self.grey_matter = torch.from_numpy(np.flatnonzero(study.grey_matter)).to(device)
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._kept_bytes = 0

    def load(self, subject: str) -> tuple[np.ndarray, np.ndarray]:
        """Windows (W, K, V) and maps (C, V) of a subject."""
        if subject in self._kept:
            return self._kept[subject]
        pair = (self.reader.connectomes(subject), self.reader.maps(subject))
        size = sum(array.nbytes for array in pair)
        if self._kept_bytes + size <= MEMORY_FOR_SUBJECTS:
            self._kept[subject] = pair
            self._kept_bytes += size
        return pair

    def batch(self, subjects: Sequence[str], window: Callable[[str, int], int]) -> tuple[Tensor, Tensor]:
        """Boxes (N, K, X, Y, Z) and grey-matter maps (N, C, G) of some subjects; `window` chooses one of each."""
        pairs = [self.load(subject) for subject in subjects]
        rest = [windows[window(subject, len(windows))] for subject, (windows, _) in zip(subjects, pairs, strict=True)]
        vectors = torch.from_numpy(np.stack(rest)).to(self.device)  # (N, K, V)
        maps = torch.from_numpy(np.stack([maps for _, maps in pairs])).to(self.device)  # (N, C, V)
        return to_box(vectors, self.grid, self.index), maps[..., self.grey_matter]

    def grey(self, boxes: Tensor) -> Tensor:
        """Grey-matter voxels of boxes: (N, C, X, Y, Z) -> (N, C, G)."""
        return boxes.flatten(2)[..., self.index[self.grey_matter]]


def to_box(vectors: Tensor, grid: Grid, index: Tensor) -> Tensor:
    """(N, K, V) -> (N, K, X, Y, Z) in channels-last order, 0 outside the mask."""
    n_subjects, n_rois, _ = vectors.shape
    boxes = vectors.new_zeros(n_subjects, grid.mask.size, n_rois)
    boxes[:, index] = vectors.transpose(1, 2)
    return boxes.reshape(n_subjects, *grid.shape, n_rois).permute(0, 4, 1, 2, 3)


def epoch_batches(
    subjects: Sequence[str], batch_size: int, seed: int, epoch: int, rank: int, world: int
) -> Iterator[list[str]]:
    """The batches of one worker in one epoch.

    All workers shuffle alike, by (seed, epoch), and take their share of each batch. Subjects that do not fill a
    last batch sit this epoch out; a cohort smaller than a batch is one batch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(subjects))
    size = min(batch_size, len(subjects) - len(subjects) % world)
    for start in range(0, len(order) - size + 1, size):
        yield [subjects[row] for row in order[start + rank : start + size : world]]


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


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Subjects,
    subjects: Sequence[str],
    config: TrainConfig,
    epoch: int,
    past: Sequence[float],
) -> float:
    """One pass over the training subjects; the mean loss of all batches of all workers."""
    network.train()
    context = ray.train.get_context()
    ranks = (context.get_world_rank(), context.get_world_size())
    number = {subject: row for row, subject in enumerate(subjects)}

    def random_window(subject: str, n_windows: int) -> int:
        return int(np.random.default_rng([config.seed, epoch, number[subject]]).integers(n_windows))

    total = []
    batches = list(epoch_batches(subjects, config.batch_size, config.seed, epoch, *ranks))
    for step, members in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(epoch + step / len(batches), config, past)
        optimizer.zero_grad(set_to_none=True)
        parts = parts_of(members, config)
        total.append(sum(_backward(network, data, part, random_window, config, epoch) for part in parts))
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
    return float(np.mean(_together(float(np.mean(total)))))


def parts_of(members: Sequence[str], config: TrainConfig) -> list[Part]:
    """What is computed at once of a worker's batch: equal parts of two subjects or more, as contrastive losses need."""
    count = max(min(config.accumulate, len(members) // 2), 1)
    cuts = [len(members) * number // count for number in range(count + 1)]
    return [
        Part(members[start:stop], (stop - start) / len(members), last=stop == len(members))
        for start, stop in itertools.pairwise(cuts)
    ]


def _backward(
    network: nn.Module, data: Subjects, part: Part, window: Callable[[str, int], int], config: TrainConfig, epoch: int
) -> float:
    """Add the gradient of a part of a batch; returns its share of the loss. Workers meet once, at the last part."""
    parallel = isinstance(network, nn.parallel.DistributedDataParallel)
    with network.no_sync() if parallel and not part.last else contextlib.nullcontext():  # type: ignore[operator]
        boxes, target = data.batch(part.members, window)
        with _precision(config, data.device):
            prediction = data.grey(network(boxes))
        loss = _loss(prediction.float(), target, config, epoch) * part.weight
        loss.backward()
    return float(loss.detach())


def _together(value: Any) -> list[Any]:
    """What every worker has, in the order of their ranks."""
    world = ray.train.get_context().get_world_size()
    parts = [value] * world
    if world > 1:
        torch.distributed.all_gather_object(parts, value)
    return parts


def _precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Let convolutions compute in bfloat16, where the configuration asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _loss(prediction: Tensor, target: Tensor, config: TrainConfig, epoch: int) -> Tensor:
    if config.loss == "rc":
        within, between = schedule.annealed_margins(epoch)
        return losses.rc_loss(prediction, target, within_margin=within, between_margin=between)
    if config.loss == "crr":
        return losses.crr_loss(prediction, target, margin=config.margin, alpha=config.alpha)
    return losses.mse(prediction, target) if config.loss == "mse" else losses.mae(prediction, target)


def _validate(network: nn.Module, data: Subjects, subjects: Sequence[str], config: TrainConfig) -> dict[str, float]:
    """MSE, r, diagonality and identification over grey matter, means over contrasts; subjects' first windows.

    Workers share the subjects, and all come to the same figures: whether training ends depends on them.
    """
    network.eval()
    context = ray.train.get_context()
    if context.get_world_size() > 1:  # batch norm's running figures are each worker's own after a step
        for buffer in _bare(network).buffers():
            torch.distributed.broadcast(buffer, src=0)
    mine = subjects[context.get_world_rank() :: context.get_world_size()]
    maps = {}
    with torch.inference_mode(), _precision(config, data.device):
        for subject in mine:
            boxes, target = data.batch([subject], lambda _subject, _n: 0)
            # not through DDP, which would have all workers do the same number of subjects
            predicted = data.grey(_bare(network)(boxes)).float()
            maps[subject] = (predicted.cpu().numpy()[0], target.cpu().numpy()[0])
    everybody = {subject: pair for part in _together(maps) for subject, pair in part.items()}
    both = (np.stack([everybody[subject][which] for subject in subjects]) for which in (0, 1))
    return validation_figures(*both)


def validation_figures(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Figures of predicted against actual maps, both (N, C, G), NaN in the actual ones where not acquired."""
    figures: dict[str, list[float]] = {"r": [], "diagonality": [], "identification": []}
    for contrast in range(actual.shape[1]):
        measured = ~np.asarray(np.isnan(actual[:, contrast]).any(axis=1))
        if not measured.any():
            continue
        maps = actual[measured, contrast], predicted[measured, contrast]
        figures["r"].append(float(np.nanmean(pearson(*maps))))
        if measured.sum() > 1:
            matrix = subject_correlation(*maps)
            figures["diagonality"].append(diagonality_index(matrix))
            figures["identification"].append(identification_accuracy(matrix))
    means = {f"validation_{name}": float(np.mean(values)) for name, values in figures.items() if values}
    return {"validation_loss": float(np.nanmean((predicted - actual) ** 2)), **means}


def _advance(state: dict[str, Any], network: nn.Module, line: dict[str, float]) -> dict[str, Any]:
    """The state after an epoch: its number, the history, and the weights that validated best."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in _bare(network).state_dict().items()}
    score = line.get("validation_loss", -line["epoch"])  # without validation the last epoch is the best
    better = score < state["best_score"]
    return {
        "epoch": line["epoch"],
        "history": [*state["history"], line],
        "network": weights,
        "best_score": score if better else state["best_score"],
        "best_epoch": line["epoch"] if better else state["best_epoch"],
        "best_network": weights if better else state["best_network"],
    }


def _report(state: dict[str, Any], optimizer: torch.optim.Optimizer, config: TrainConfig, reporter: Any) -> None:
    """Tell Ray Train and the driver; rank 0 hands over a checkpoint every few epochs and after the last."""
    rank, line = ray.train.get_context().get_world_rank(), state["history"][-1]
    if rank == 0 and reporter is not None:
        reporter.put.remote(line)
    due = (state["epoch"] + 1) % config.checkpoint_every == 0 or is_over(state["history"], config)
    if not due:
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            torch.save({**state, "optimizer": optimizer.state_dict()}, Path(folder) / STATE)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(line, checkpoint=checkpoint)


def _restore(network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Any]:
    """The state of the last checkpoint, loaded into network and optimizer, or that before the first epoch."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return {"epoch": -1, "history": [], "best_score": np.inf, "best_epoch": -1, "best_network": None}
    with checkpoint.as_directory() as folder:
        state = read_state((Path(folder) / STATE).read_bytes(), device)
    _bare(network).load_state_dict(state["network"])
    optimizer.load_state_dict(state.pop("optimizer"))
    return state


def read_state(data: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint's state; nothing is unpickled that is not a tensor or a number."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def channels_last(network: nn.Module) -> nn.Module:
    """Lay the weights out for 3-D convolutions, in place: about twice as fast on a CPU."""
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stub


def _bare(network: nn.Module) -> nn.Module:
    """The network inside its DDP wrapper, if it has one."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def network_settings(config: NetworkConfig, n_rois: int, n_contrasts: int) -> dict[str, Any]:
    """What `dtg_ray.models.build` wants to know."""
    return {**config.model_dump(exclude={"kind", "train"}), "n_rois": n_rois, "n_contrasts": n_contrasts}
