"""What every worker runs: one network, from its first step or its last checkpoint to its last epoch.

Given a seed and the same number of workers and threads, an interrupted and resumed training ends in the same bits as an
undisturbed one: the order of subjects and the choice of windows come from (seed, epoch, subject) alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtg_ray.config import TrainConfig
from dtg_ray.errors import StudyError
from dtg_ray.models import build, output_layer
from dtg_ray.models.compiling import trouble_of
from dtg_ray.models.unet import channels_last, load_weights
from dtg_ray.stages.models import starting_model
from dtg_ray.stages.training.checkpoints import Checkpoints
from dtg_ray.stages.training.data import MAPS, Boxes, Chunks, Feed, Item, epoch_batches, random_window
from dtg_ray.stages.training.recipe import is_over, learning_rate_factor, loss_of, parts_of, scores
from dtg_ray.stages.training.validation import validate
from dtg_ray.stages.training.world import World, bare
from dtg_ray.study import Study

BEST = {
    "best_loss": ("validation_loss", -1),
    "best_corr": ("validation_r", 1),
    "best_diag": ("validation_diagonality", 1),
}
"""Weights that are kept beside the last: by which figure, and whether more of it (1) or less (-1) is better."""
ATTEMPTS, PAUSE = 3, 1.0
"""How often a checkpoint is written before training goes on without it; seconds after the first attempt."""


@dataclass(frozen=True)
class Assignment:
    """What is to be trained, on whom: small, and plain enough to travel to every worker.

    Parameters
    ----------
    study : str
        URI.
    network : dict
        For `dtg_ray.models.build`.
    train : dict
        `TrainConfig`.
    training, validation : list of str
    windows : dict of str to int
        Number of windows of each of them.
    contrasts : list of str
        That are compared.
    outputs : list of int
        Which of the network's outputs they are.
    folder : str
        Of its checkpoints, in the study.
    start : str, optional
        The model whose weights it starts from.
    head : "frozen" or "new"
        What becomes of its output layer.
    passes : int
        How often an epoch shows every subject.
    """

    study: str
    network: dict[str, Any]
    train: dict[str, Any]
    training: list[str]
    validation: list[str]
    windows: dict[str, int]
    contrasts: list[str]
    outputs: list[int]
    folder: str
    start: str | None = None
    head: str = "new"
    passes: int = 1


@dataclass
class Progress:
    """Where a training is; with weights, optimizer and generator this is its checkpoint.

    Parameters
    ----------
    epoch, step : int
        Epochs done, and steps of the one under way.
    losses : list of float
        Of these steps.
    waited, spent : float
        Seconds of the epoch under way that were spent waiting for data, and in all.
    history : list of dict
        A line of figures per epoch.
    best : dict
        Per name of `BEST` the epoch, its score, and the weights.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    waited: float = 0.0
    spent: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)


def train(assignment: Assignment, world: World, report: Callable[[dict[str, Any]], None]) -> None:
    """Train, from wherever the last checkpoint is, to the end.

    Parameters
    ----------
    assignment : Assignment
    world : World
    report : callable
        Told what happens, by the first process alone: `{"history": [...]}` after every epoch, `{"warning": ...}`.

    Raises
    ------
    StudyError
        When data are lost or the last checkpoint cannot be written.
    """
    Training(assignment, world, report if world.rank == 0 else lambda _message: None).run()


class Training:
    """One training in one process; parameters as of `train`."""

    def __init__(self, assignment: Assignment, world: World, report: Callable[[dict[str, Any]], None]) -> None:
        self.assignment, self.world, self.report = assignment, world, report
        self.config = config = TrainConfig.model_validate(assignment.train)
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.cpus_per_worker)
        study = Study(assignment.study)
        network, input_mask = starting_network(study, assignment)
        self.network = world.wrap(channels_last(network))
        self.boxes = Boxes(study.grid, study.grey_matter, input_mask, world.device)
        self.feed = _feed(study, assignment, config, world)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.number = {subject: row for row, subject in enumerate(assignment.training)}
        self.checkpoints = Checkpoints(study.storage, assignment.folder)
        self.progress = self._restore()
        self.forward: Callable[[Tensor], Tensor] = self.network
        self._saved = time.monotonic()

    def run(self) -> None:
        """Train to the last epoch."""
        if self.config.compile and not is_over(self.progress.history, self.config):
            self._compile()
        while not is_over(self.progress.history, self.config):
            self._epoch()
            figures = self._validate() if self.assignment.validation else {}
            self._close_epoch(figures)
            if is_over(self.progress.history, self.config):
                self._save(last=True)
            else:
                self._save_when_due()
            self.report({"history": self.progress.history})

    def _epoch(self) -> None:
        """The steps of an epoch that are still to do."""
        progress, past = self.progress, scores(self.progress.history)
        self.network.train()
        batches = self._batches()
        todo = batches[progress.step :]
        chunks = self.feed([self._items(*batch) for batch in todo])
        self.feed.waited, begin = 0.0, time.perf_counter()
        for (_, members), tensors in zip(todo, chunks, strict=True):
            rate = learning_rate_factor(progress.epoch + progress.step / len(batches), self.config, past)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * rate
            progress.losses.append(self._checked(self.step(members, tensors)))
            progress.step += 1
            progress.spent, begin = progress.spent + time.perf_counter() - begin, time.perf_counter()
            progress.waited, self.feed.waited = progress.waited + self.feed.waited, 0.0
            self._save_when_due()

    def _batches(self) -> list[tuple[int, list[str]]]:
        """The batches of an epoch, each with the number of the pass it belongs to; a batch is this worker's share."""
        config, first = self.config, self.progress.epoch * self.assignment.passes
        ranks = (self.world.rank, self.world.size)
        return [
            (number, batch)
            for number in range(first, first + self.assignment.passes)
            for batch in epoch_batches(self.assignment.training, config.batch_size, config.seed, number, *ranks)
        ]

    def _items(self, number: int, members: Sequence[str]) -> list[Item]:
        """What a batch of a pass needs: everybody's maps, then everybody's window of this pass."""
        windows, seed = self.assignment.windows, self.config.seed
        shown = [random_window(seed, number, self.number[subject], windows[subject]) for subject in members]
        return [*((subject, MAPS) for subject in members), *zip(members, shown, strict=True)]

    def step(self, members: Sequence[str], chunks: Sequence[Tensor]) -> float:
        """One step of the optimizer; the mean loss of all workers."""
        self.optimizer.zero_grad(set_to_none=True)
        maps, windows = chunks[: len(members)], chunks[len(members) :]
        total = 0.0
        for part in parts_of(len(members), self.config):
            rows = slice(part.start, part.stop)
            # workers meet once per step, at its last part
            alone = not part.last and self.world.size > 1
            with self.network.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                try:
                    loss = self._loss(self.forward, windows[rows], maps[rows]) * part.weight
                except ValueError as error:  # a loss without any target
                    raise StudyError(f"{', '.join(members[rows])}: {error}") from error
                loss.backward()
            total += float(loss.detach())
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        return self.world.mean(total / (self.world.size if self.config.global_batch else 1))

    def _loss(self, forward: Callable[[Tensor], Tensor], windows: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
        """The loss of some subjects."""
        boxes, target = self.boxes.inputs(windows), self.boxes.targets(maps)
        with self._precision():
            prediction = self._compared(forward(boxes))
        prediction = prediction.float()
        if self.config.global_batch:
            # DDP takes the mean of gradients, each of which is that of the own part of one loss
            prediction, target = self.world.whole_batch(prediction), self.world.whole_batch(target)
        loss = loss_of(prediction, target, self.config, self.progress.epoch)
        return loss * self.world.size if self.config.global_batch else loss

    def _checked(self, figure: float) -> float:
        """Stop where weights become no numbers, before they are a checkpoint: the loss is the same in all processes."""
        if not math.isfinite(figure):
            raise StudyError(
                f"{self.assignment.folder}: training diverged, got {figure} in epoch {self.progress.epoch + 1}; "
                "the last checkpoint is from before",
                hint="a lower learning_rate, or clip, keeps training from diverging",
            )
        return figure

    def _compared(self, boxes: Tensor) -> Tensor:
        """Grey-matter voxels of the outputs that are compared, (N, C, G)."""
        outputs = self.assignment.outputs
        every = outputs == list(range(boxes.shape[1]))
        return self.boxes.grey(boxes if every else boxes[:, outputs])

    def _precision(self) -> torch.autocast:
        """Let convolutions compute in bfloat16, where the configuration asks for it."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _validate(self) -> dict[str, float]:
        """Figures of the validation subjects, by their first windows."""
        self.network.eval()
        self.world.align(self.network)
        mine = self.world.share(self.assignment.validation)
        chunks = iter(self.feed([[(subject, MAPS), (subject, 0)] for subject in mine]))

        def look(_subject: str) -> tuple[np.ndarray, np.ndarray]:
            maps, window = next(chunks)
            # not through DDP, which would have all workers do the same number of subjects
            with torch.inference_mode(), self._precision():
                predicted = self._compared(bare(self.network)(self.boxes.inputs([window]))).float()
            self._checked(float(predicted.sum()))
            return predicted.cpu().numpy()[0], self.boxes.targets([maps]).cpu().numpy()[0]

        return validate(self.assignment.validation, self.assignment.contrasts, look, self.world)

    def _close_epoch(self, figures: Mapping[str, float]) -> None:
        """Write the line of an epoch; keep the weights if they are the best by something."""
        progress = self.progress
        rate = self.config.learning_rate * learning_rate_factor(progress.epoch, self.config, scores(progress.history))
        line = {
            "epoch": progress.epoch,
            "loss": float(np.mean(progress.losses)),
            **figures,
            "learning_rate": rate,
            "seconds": progress.spent,
            "waiting": progress.waited / max(progress.spent, 1e-9),
            "ended": time.time(),
        }
        for name, (figure, sign) in BEST.items():
            score = sign * figures.get(figure, -math.inf * sign)
            if score > progress.best.get(name, {"score": -math.inf})["score"]:
                progress.best[name] = {"epoch": progress.epoch, "score": score, "network": _weights(self.network)}
        self._checked(float(sum(weight.detach().abs().sum() for weight in self.network.parameters())))
        progress.history.append(line)
        progress.epoch, progress.step, progress.losses = progress.epoch + 1, 0, []
        progress.waited = progress.spent = 0.0

    def _save_when_due(self) -> None:
        if time.monotonic() - self._saved >= self.config.checkpoint_minutes * 60:
            self._save()

    def _save(self, *, last: bool = False) -> None:
        """The first process writes a checkpoint; without one training goes on, except at its end."""
        self._saved = time.monotonic()
        if self.world.rank:
            return
        progress = self.progress
        state = {
            **vars(progress),
            "network": _weights(self.network),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
        }
        for attempt in range(ATTEMPTS):
            try:
                self.checkpoints.save(state, (progress.epoch, progress.step))
            except Exception as error:  # noqa: BLE001 - whatever the storage's client raises must not cost days of training
                trouble = f"{type(error).__name__}: {error}"
                time.sleep(PAUSE * 2**attempt)
            else:
                return
        where = f"the checkpoint after epoch {progress.epoch} could not be written in {ATTEMPTS} attempts ({trouble})"
        if last:
            raise StudyError(
                f"{where}; the one before it is kept",
                hint="make room or mend the connection: `dtg train` goes on from there",
            )
        self.report({"warning": f"{where}; training goes on, the one before it is kept"})

    def _restore(self) -> Progress:
        """The state of the last checkpoint, loaded into network and optimizer, or that before the first epoch."""
        progress, state = Progress(), self.checkpoints.newest()
        if state is not None:
            bare(self.network).load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["generator"])
            progress = Progress(**{name: state[name] for name in vars(progress)})
        self._check_agreement((progress.epoch, progress.step))
        if self.world.rank == 0:
            self.checkpoints.drop_after((progress.epoch, progress.step))
        return progress

    def _check_agreement(self, position: tuple[int, int]) -> None:
        """All processes have to go on from the same checkpoint; a second driver may have written one in between."""
        positions = self.world.everyone(position)
        if len(set(positions)) > 1:
            raise StudyError(
                f"{self.assignment.folder}: workers got the checkpoints {positions} (epoch, step), expected one",
                hint="is another `dtg train` at work on this model? Let one of them end",
            )

    def _compile(self) -> None:
        """Try torch.compile on a copy, forward and backward; where it cannot, training goes on without."""
        import copy

        number, members = self._batches()[0]
        tensors, rows = next(self.feed([self._items(number, members)])), parts_of(len(members), self.config)[0].stop

        def trial() -> None:
            network = torch.compile(copy.deepcopy(bare(self.network)).train())
            with self._precision():
                prediction = self._compared(network(self.boxes.inputs(tensors[len(members) : len(members) + rows])))
            prediction.float().square().mean().backward()

        trouble = trouble_of(trial)
        if troubles := [found for found in self.world.everyone(trouble) if found]:  # all of them, or none
            self.report({"warning": f"torch.compile failed ({troubles[0]}); training without it"})
            return
        self.forward = torch.compile(self.network)


def starting_network(study: Study, assignment: Assignment) -> tuple[nn.Module, np.ndarray | None]:
    """The network before its first step, and the mask of its input, (V,) or None.

    A new head is drawn from the seed; a frozen one does not learn.
    """
    network = build(assignment.network)
    if assignment.start is None:
        return network, None
    model = starting_model(study, assignment.start)
    weights = model.network.state_dict()
    if assignment.head == "new":
        own, head = network.state_dict(), output_layer(network)[0]
        weights = {name: own[name] if name.startswith(f"{head}.") else tensor for name, tensor in weights.items()}
    load_weights(network, weights, source=f"model {assignment.start}")
    if assignment.head == "frozen":
        output_layer(network)[1].requires_grad_(requires_grad=False)
    return network, model.input_mask


def _feed(study: Study, assignment: Assignment, config: TrainConfig, world: World) -> Feed:
    """What brings this worker its data."""
    everybody = [*assignment.training, *assignment.validation]
    window, maps = study.n_rois * study.grid.n_voxels * 2, len(assignment.contrasts) * study.grid.n_voxels * 2
    contrasts = [study.config.contrasts.index(name) for name in assignment.contrasts]
    return Feed(
        Chunks(study.uri, contrasts),
        cache_bytes=int(config.cache_gigabytes * 2**30),
        total_bytes=sum(assignment.windows[subject] * window + maps for subject in everybody),
        item_bytes=max(window, maps),
        readers=config.readers,
        ahead=2 * config.batch_size // world.size,
        pinned=world.device.type == "cuda",
    )


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in bare(network).state_dict().items()}
