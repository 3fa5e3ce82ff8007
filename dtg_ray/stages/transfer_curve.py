"""`dtg transfer-curve`: a fine-tuned network against one from scratch, on more and more training subjects.

The experiment of Thomas et al. (2019, arXiv 1907.01953) for map synthesis. At every size both ways see the same
subjects, take as many steps as a training on all of them, and are evaluated on the study's test subjects.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from dtg_ray import ledger
from dtg_ray.cohort import manifest
from dtg_ray.config import FinetunedConfig, NetworkConfig, TrainConfig, fingerprint
from dtg_ray.errors import StudyError, UsageError
from dtg_ray.report.pictures import curves
from dtg_ray.report.style import png
from dtg_ray.stages.cluster import session
from dtg_ray.stages.crews import Crew, map_units
from dtg_ray.stages.maps import SubjectReader, chosen_models, require_stored, usable, window_counts
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options, Resources, peak_memory
from dtg_ray.stages.train import plan as plan_training
from dtg_ray.stages.training.checkpoints import Checkpoints
from dtg_ray.stages.training.data import epoch_batches
from dtg_ray.stages.training.loop import Assignment, train
from dtg_ray.stages.training.networks import assign, collect
from dtg_ray.stages.training.validation import validate
from dtg_ray.stages.training.world import World
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.store.tables import write_table
from dtg_ray.study import Study

SIZES = ("3", "1%", "5%", "10%", "20%", "40%", "60%", "100%")
FIGURES = {"r": "validation_r", "identification": "validation_identification", "diagonality": "validation_diagonality"}
FEWEST = 2
"""Subjects of the smallest training: a contrastive loss compares two."""


@dataclass(frozen=True)
class Cell:
    """One training of the experiment.

    Parameters
    ----------
    way : "finetuned" or "scratch"
    model : str
        Whose settings it has.
    subjects : int
        How many it is trained on.
    seed : int
        Which of them, in which order, and the first weights.
    """

    way: str
    model: str
    subjects: int
    seed: int

    @property
    def unit(self) -> str:
        """Name of its receipt."""
        return f"{self.way}-{self.model}-{self.subjects:05d}-{self.seed}"


def run(
    study: Study, finetuned: str, scratch: str, options: Options, seeds: int = 5, sizes: Sequence[str] = SIZES
) -> pd.DataFrame:
    """Do the trainings that are not done yet; returns the table, a row per training.

    Parameters
    ----------
    study : Study
    finetuned, scratch : str
        Models of the study whose settings are compared: one of kind finetuned, one of kind network.
    options : Options
    seeds : int
        Repetitions of every size.
    sizes : sequence of str
        Numbers of subjects, or shares of the training subjects such as "10%".

    Returns
    -------
    DataFrame
        way, model, subjects, seed, r, identification, diagonality (means over the contrasts that both predict), steps.
        Also in the study: `transfer/<finetuned>-<scratch>.parquet` and `.png`.

    Raises
    ------
    UsageError
        For a model of another kind or a size that cannot be.
    StudyError
        When the model to start from is not trained, or there are less than two test subjects.
    """
    _check(study, finetuned, scratch)
    whole = {name: assign(study, name, "") for name in (finetuned, scratch)}
    people = [subject for subject in whole[scratch].training if subject in set(whole[finetuned].training)]
    counts = subject_counts(sizes, len(people))
    ways = (("finetuned", finetuned), ("scratch", scratch))
    cells = [Cell(way, name, n, seed) for n in counts for seed in range(seeds) for way, name in ways]
    stage = f"transfer/{finetuned}-{scratch}"
    owed = {cell.unit: _fingerprint(study, cell, people, whole[cell.model].validation) for cell in cells}
    rows = Receipts(study.storage, stage).read(list(owed))
    done = set(rows.loc[rows["fingerprint"] == rows["unit"].map(owed), "unit"]) if len(rows) else set()
    pending = [cell for cell in cells if cell.unit not in done]
    todo = plan_training(study, scratch, [ledger.MODEL])
    memory = todo.memory * study.config.models[scratch].train.workers  # type: ignore[union-attr]  # a cell has one worker
    todo = replace(todo, stage=stage, units=len(cells), pending=len(pending), memory=memory, waiting="")
    todo.show(options)
    if options.dry_run:
        return pd.DataFrame()
    _run_cells(study, stage, pending, owed, people, todo, options)
    return _write(study, stage, cells)


def subject_counts(sizes: Sequence[str], most: int) -> list[int]:
    """Numbers of subjects, in increasing order: shares are rounded up, what is less than two or too many is left out.

    Raises
    ------
    UsageError
        When a size is neither a number nor a share, or none is left.
    """
    counts = set()
    for size in sizes:
        try:
            number = math.ceil(float(size[:-1]) / 100 * most) if size.endswith("%") else int(size)
        except ValueError as error:
            raise UsageError(f"got the size {size!r}, expected a number of subjects or a share such as 10%") from error
        counts.add(number)
    kept = sorted(count for count in counts if FEWEST <= count <= most)
    if not kept:
        raise UsageError(f"got the sizes {', '.join(sizes)} of {most} subjects, expected one of at least {FEWEST}")
    return kept


def _check(study: Study, finetuned: str, scratch: str) -> None:
    for name, kind, what in ((finetuned, FinetunedConfig, "finetuned"), (scratch, NetworkConfig, "network")):
        chosen_models(study, name)
        if not isinstance(study.config.models[name], kind):
            raise UsageError(f"got {name}, a {study.config.models[name].kind} model, expected one of kind {what}")
    if waiting := require_stored(ledger.Ledger(study), manifest.SPLITS, "the transfer curve"):
        raise StudyError(f"the transfer curve waits for {waiting}", hint="run that stage first")
    if len(usable(ledger.Ledger(study), "test")) < FEWEST:
        raise StudyError("got less than 2 test subjects with a connectome and maps, expected at least 2")


def _fingerprint(study: Study, cell: Cell, people: list[str], validation: list[str]) -> str:
    owed = ledger.account(study, f"train/{cell.model}").today()
    if owed is None:
        start = getattr(study.config.models[cell.model], "start", "")
        raise StudyError(f"{cell.model} waits for train/{start}", hint=f"dtg train {study.uri} --model {start}")
    return fingerprint("transfer", owed, asdict(cell), people, validation, usable(ledger.Ledger(study), "test"))


def _run_cells(
    study: Study,
    stage: str,
    pending: Sequence[Cell],
    owed: Mapping[str, str],
    people: list[str],
    todo: Plan,
    options: Options,
) -> None:
    """Train, several at a time where there is room."""
    if not pending:
        return
    gpus = max(float(study.config.models[cell.model].train.gpu) for cell in pending)  # type: ignore[union-attr]
    shared = _shared(study, pending)
    cells = {cell.unit: asdict(cell) for cell in pending}
    with session(options), tqdm(total=len(pending), desc=stage, unit="training", disable=options.quiet) as bar:
        resources = Resources(todo.cpus, gpus, todo.memory)
        arguments = (study.uri, stage, cells, dict(owed), people, shared)
        for _ in map_units([Crew(CellWorker, arguments, resources)], list(cells), options):
            bar.update()


def _shared(study: Study, cells: Sequence[Cell]) -> list[str]:
    """Contrasts of the study that all of some models predict."""
    predicted = [set(study.config.contrasts_of(cell.model)) for cell in cells]
    return [name for name in study.config.contrasts if all(name in names for names in predicted)]


class CellWorker:
    """Does one training after the other, each committed by its receipt, which holds its figures.

    Parameters
    ----------
    uri : str
        The study's.
    stage : str
    cells : dict of str to dict
        By the name of their receipts.
    owed : dict of str to str
        Their fingerprints.
    people : list of str
        Whom both ways can be trained on.
    contrasts : list of str
        That are evaluated.
    """

    def __init__(
        self,
        uri: str,
        stage: str,
        cells: dict[str, Any],
        owed: dict[str, str],
        people: list[str],
        contrasts: list[str],
    ) -> None:
        self.study, self.cells, self.owed, self.people, self.contrasts = Study(uri), cells, owed, people, contrasts
        self.receipts, self.reader = Receipts(self.study.storage, stage), SubjectReader(self.study)

    def __call__(self, unit: str) -> dict[str, Any]:
        """Train and evaluate; a training that was killed goes on from its last checkpoint."""
        begin, cell, today = time.perf_counter(), Cell(**self.cells[unit]), self.owed[unit]
        attempt = self.receipts.withdraw(unit)
        assignment = self._assign(cell, today)
        checkpoints = Checkpoints(self.study.storage, assignment.folder)
        world = World() if not assignment.train["gpu"] else World(device=_gpu())
        train(assignment, world, lambda _message: None)
        figures = self._evaluate(cell, assignment)
        row = Row(unit, "done", today, seconds=time.perf_counter() - begin, peak_memory=peak_memory(), qc=figures)
        self.receipts.write(unit, [row], attempt=attempt, host=socket.gethostname())
        checkpoints.clear()
        return {"unit": unit}

    def _assign(self, cell: Cell, today: str) -> Assignment:
        """The training of the model, on some of the people, with as many steps as on all."""
        whole = replace(assign(self.study, cell.model, today), training=self.people)
        order = np.random.default_rng([cell.seed, 0]).permutation(len(self.people))
        chosen = [self.people[row] for row in sorted(order[: cell.subjects])]
        settings, folder = {**whole.train, "seed": cell.seed}, f"{self.receipts.stage}/{cell.unit}/{today}"
        return replace(whole, training=chosen, train=settings, passes=_passes(whole, chosen), folder=folder)

    def _evaluate(self, cell: Cell, assignment: Assignment) -> dict[str, float]:
        """Figures over the test subjects, of the contrasts that both ways predict."""
        fitted = collect(self.study, cell.model, assignment)
        model, grey = fitted.models[fitted.selected], self.study.grey_matter
        predicted = self.study.config.contrasts_of(cell.model)
        outputs = [predicted.index(name) for name in self.contrasts]
        measured = [self.study.config.contrasts.index(name) for name in self.contrasts]

        book = ledger.Ledger(self.study)
        people = usable(book, "test", self.contrasts)
        counts = window_counts(book, people)

        def look(subject: str) -> tuple[np.ndarray, np.ndarray]:
            maps = model.predict(self.reader.connectomes(subject, counts[subject])).mean(axis=0)  # over windows
            return maps[outputs][:, grey], self.reader.maps(subject)[measured][:, grey]

        figures = validate(people, self.contrasts, look, World())
        steps = len(fitted.history) * assignment.passes * _steps(assignment, assignment.training)
        return {**{name: figures[key] for name, key in FIGURES.items()}, "steps": float(steps)}


def _passes(whole: Assignment, chosen: list[str]) -> int:
    """How often an epoch shows some of the subjects, to have the steps of an epoch of all."""
    return max(round(_steps(whole, whole.training) / _steps(whole, chosen)), 1)


def _steps(assignment: Assignment, subjects: list[str]) -> int:
    """Steps of one pass."""
    config = TrainConfig.model_validate(assignment.train)
    return len(list(epoch_batches(subjects, config.batch_size, 0, 0, 0, 1)))


def _gpu() -> Any:
    import torch

    return torch.device("cuda")


def _write(study: Study, stage: str, cells: Sequence[Cell]) -> pd.DataFrame:
    """The table and the plot, from the receipts."""
    units = [cell.unit for cell in cells]
    rows = Receipts(study.storage, stage).read(units).set_index("unit")
    figures: list[dict[str, float]] = rows["qc"].loc[units].to_list()
    lines = [{**asdict(cell), **found} for cell, found in zip(cells, figures, strict=True)]
    table = pd.DataFrame(lines)[["way", "model", "subjects", "seed", "r", "identification", "diagonality", "steps"]]
    write_table(study.storage, f"{stage}.parquet", table)
    study.storage.write(f"{stage}.png", png(curves(table, ("r", "identification"), "training subjects")))
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds: a row per number of subjects, both ways side by side."""
    wide = table.pivot_table(index="subjects", columns="way", values=["r", "identification"])
    wide.columns = pd.Index([f"{column[1]} {column[0]}" for column in wide.columns.to_list()])
    order = [f"{way} {figure}" for figure in ("r", "identification") for way in ("finetuned", "scratch")]
    return wide[order].reset_index()
