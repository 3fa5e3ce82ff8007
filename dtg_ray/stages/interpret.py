"""`dtg interpret`: which ROIs and voxels of the connectome drive a synthetic contrast, or a predicted phenotype.

Attributions of single subjects are computed by Ray Data's actors, a few subjects at a time, and averaged. It answers a
question that is asked of a finished study, and is no part of `dtg run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from dtg_ray import ledger
from dtg_ray.config import feature_folder, fingerprint
from dtg_ray.errors import StudyError, UsageError
from dtg_ray.models.artifact import NetworkModel
from dtg_ray.models.attribution import batch_within, bytes_per_connectome
from dtg_ray.stages import connectomes, estimates
from dtg_ray.stages.cluster import session
from dtg_ray.stages.crews import Crew, map_units
from dtg_ray.stages.interpretation.parts import METHODS, Job, Method, Part, PartWorker, folder_of, write_array
from dtg_ray.stages.interpretation.results import clear, finish, result_name, table_name, write_images
from dtg_ray.stages.interpretation.targets import (
    Target,
    check_phenotypes,
    contrast_targets,
    direction_of,
    feature_of,
    fingerprint_parts,
    phenotype_targets,
)
from dtg_ray.stages.maps import chosen_models, require_settled, window_counts
from dtg_ray.stages.models import load_model, network_config
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options, Resources, progress
from dtg_ray.store.receipts import Receipts
from dtg_ray.store.tables import read_table
from dtg_ray.study import Study

FORMAT = 1
"""Raised when attributions change their meaning, so that old ones are made again."""
SUBJECTS_PER_PART = 4
"""A part is done by one worker and is what an interruption costs; who is in which must not depend on the workers."""
GRADIENT = 2
"""A gradient takes so many times what the network takes: forwards, and backwards to its input alone."""
COPIES = 10
"""Of attributions in double precision that a worker holds, what is being written included."""


@dataclass(frozen=True)
class Request:
    """What is asked.

    Parameters
    ----------
    model : str, optional
        By default the first network.
    contrasts, phenotypes : tuple of str
        Without any, all contrasts of the model.
    subjects : int
        At most so many, evenly chosen.
    split : str
        Of the cohort, from which they are; by default those whom no model was trained on and who have task maps.
    method : Method
    images : int
        Of so many ROIs, the most important ones, the attributions are written as NIfTI images as well.
    """

    model: str | None = None
    contrasts: tuple[str, ...] = ()
    phenotypes: tuple[str, ...] = ()
    subjects: int = 50
    split: str = "test"
    method: Method = field(default_factory=Method)
    images: int = 0


def run(study: Study, request: Request, options: Options) -> pd.DataFrame:
    """Compute what is owed of a request; returns the lines of its targets, of every ROI, the most important first.

    Parameters
    ----------
    study : Study
    request : Request
    options : Options

    Returns
    -------
    DataFrame
        See `results.roi_table`; with subjects, and completeness_error: by how much the sums of integrated gradients
        miss the differences of the scalar, as a share of these. Empty with --dry-run.

    Raises
    ------
    UsageError
        For a contrast, phenotype, split, number or model that cannot be.
    StudyError
        When a stage before this one is unfinished, or nobody is left.
    """
    model = request.model or study.default_model
    _check(study, model, request)
    book, stage = ledger.Ledger(study), f"interpret/{model}/{request.method.name}"
    if waiting := _waiting(book, model, request):
        Plan(stage, 1, 1, 0, waiting=waiting).show(options)
        if options.dry_run:
            return pd.DataFrame()
        raise StudyError(f"{stage} waits for {waiting}", hint="run that stage first, or `dtg run`")
    subjects = chosen_subjects(book, model, request)
    targets = chosen_targets(book, model, request)
    owed = {target: _fingerprint(book, stage, target, subjects, request.method) for target in targets}
    receipts = Receipts(study.storage, stage)
    pending = [target for target in targets if not receipts.holding(target.unit, {target.unit: owed[target]})]
    job = _job(book, stage, model, request.method, {target: owed[target] for target in pending}, subjects)
    left = _left(receipts, job)
    todo = plan(book, job, len(targets), left)
    todo.show(options)
    if options.dry_run:
        return pd.DataFrame()
    for target in targets:
        if target not in pending:
            clear(study, stage, target)  # what an interruption left
    if pending:
        _compute(study, job, owed, left, todo, options)
    for target in targets:
        write_images(study, stage, target, request.images)
    tables = [read_table(study.storage, f"{result_name(stage, target)}.parquet") for target in targets]
    return pd.concat(tables, ignore_index=True)


def chosen_subjects(book: ledger.Ledger, model: str, request: Request) -> list[str]:
    """Those of a split who have maps, at most as many as asked for, evenly over the cohort.

    Raises
    ------
    StudyError
        When there are none.
    """
    cohort = book.study.cohort
    done = set(book.account(f"synthesize/{model}").subjects("done"))
    people = [subject for subject in cohort.index[cohort["split"] == request.split] if subject in done]
    if not people:
        raise StudyError(f"got nobody of the split {request.split} with maps by {model}, expected at least one")
    count = min(request.subjects, len(people))
    return [people[number * len(people) // count] for number in range(count)]


def chosen_targets(book: ledger.Ledger, model: str, request: Request) -> list[Target]:
    """What is interpreted; without a wish all contrasts."""
    nothing = not (request.contrasts or request.phenotypes)
    contrasts = book.study.config.maps_of(model) if nothing else request.contrasts
    return contrast_targets(book.study, model, contrasts) + phenotype_targets(book, model, request.phenotypes)


def _check(study: Study, model: str, request: Request) -> None:
    """Refuse what can be refused before anything is waited for."""
    method = request.method
    chosen_models(study, model)
    kind = study.config.models[model].kind
    if kind not in {"network", "finetuned", "imported"}:
        hint = "its members can be interpreted one by one" if kind == "ensemble" else ""
        raise UsageError(f"got {model}, a {kind} model, expected a network, which has gradients", hint=hint)
    numbers = {"subjects": request.subjects, "steps": method.steps, "samples": method.samples}
    if wrong := [name for name, number in numbers.items() if number < 1]:
        raise UsageError(f"got --{wrong[0]} {numbers[wrong[0]]}, expected at least 1")
    if request.images < 0 or method.seed < 0 or not 0 <= method.noise < float("inf"):
        given = f"--images {request.images}, --seed {method.seed}, --noise {method.noise}"
        raise UsageError(f"got {given}, expected numbers of at least 0")
    if method.name not in METHODS:
        raise UsageError(f"got method {method.name!r}, expected one of {', '.join(METHODS)}")
    splits = sorted(set(study.cohort["split"]))
    if request.split not in splits:
        raise UsageError(f"got split {request.split!r}, expected one of {', '.join(splits)}")
    contrast_targets(study, model, request.contrasts)
    check_phenotypes(study, model, request.phenotypes)


def _waiting(book: ledger.Ledger, model: str, request: Request) -> str:
    """What has to be done before, in words."""
    if ledger.model_hash(book.study, model) is None:
        return f"train/{model}"
    predicted = [f"predict/{feature_folder(feature_of(model))}"] if request.phenotypes else []
    return require_settled(book, [f"synthesize/{model}", *predicted], "its interpretation")


def _fingerprint(book: ledger.Ledger, stage: str, target: Target, subjects: Sequence[str], method: Method) -> str:
    model = stage.split("/")[1]
    weights, parts = ledger.model_hash(book.study, model), fingerprint_parts(book, model, target, subjects)
    return fingerprint(FORMAT, stage, weights, method.identity(), parts)


def _job(
    book: ledger.Ledger,
    stage: str,
    model: str,
    method: Method,
    owed: dict[Target, str],
    subjects: Sequence[str],
) -> Job:
    """The parts of some targets, those of one target after the other."""
    study = book.study
    network = load_model(study, model)
    if not isinstance(network, NetworkModel):
        raise UsageError(f"got {model}, a {network.kind} model, expected a network, which has gradients")
    starts = range(0, len(subjects), SUBJECTS_PER_PART)
    groups = [tuple(subjects[start : start + SUBJECTS_PER_PART]) for start in starts]
    parts = [
        Part(target, number, group, fingerprint(today, number))
        for target, today in owed.items()
        for number, group in enumerate(groups)
    ]
    there = ledger.stored(book.account("connectomes"))
    windows = window_counts(book, [subject for subject in subjects if subject in there])
    weights = str(ledger.model_hash(study, model))
    by_unit = {target.unit: today for target, today in owed.items()}
    return Job(stage, model, weights, method, {part.unit: part for part in parts}, windows, by_unit)


def _left(receipts: Receipts, job: Job) -> list[str]:
    """Parts without a receipt that holds."""
    rows = receipts.read(list(job.parts))
    there = set(zip(rows["unit"], rows["fingerprint"], strict=True))
    return [unit for unit, part in job.parts.items() if (unit, part.fingerprint) not in there]


def plan(book: ledger.Ledger, job: Job, n_targets: int, left: Sequence[str]) -> Plan:
    """Bytes, the memory of a worker, and time: parts are added up after they were done, so all targets are units."""
    study, config = book.study, book.study.config.synthesis
    pending = {part.target for part in job.parts.values()}
    if not pending:
        return Plan(job.stage, n_targets, 0, 0)
    people = [subject for unit in left for subject in job.parts[unit].subjects]
    rows = study.cohort.loc[people]
    values, network = study.n_rois * study.grid.n_voxels, network_config(study, job.model) or {}
    batch = batch_within(network, study.grid.shape) * bytes_per_connectome(network, study.grid.shape)
    unread = rows[~rows.index.isin(list(job.windows))]
    each = estimates.network_seconds(network, study.grid.shape, "float32") * GRADIENT / config.cpus_per_actor
    windows, made = study.config.connectomes.windows, connectomes.seconds_per_subject(book, unread)[0]
    stored = (len(rows) - len(unread)) * windows * values * 2
    chunks = 2 * study.n_rois * len(pending)
    objects = 2 * len(left) + chunks + 2 * len(pending)
    return Plan(
        stage=job.stage,
        units=n_targets,
        pending=len(pending),
        subjects=len(people),
        bytes_in=connectomes.bytes_of_runs(unread) + stored,
        bytes_out=len(left) * 2 * values * 8 + len(pending) * 2 * values * 4,
        objects=objects,
        memory=batch + COPIES * values * 8 + connectomes.memory_of_a_subject(study, unread) + 500 * 2**20,
        seconds=len(people) * windows * job.method.passes * each + len(unread) * made,
        requests=estimates.requests(study.uri, objects, len(left)) + estimates.image_requests(unread),
        cpus=config.cpus_per_actor,
        gpus=config.gpus_per_actor,
    )


def _compute(
    study: Study, job: Job, owed: dict[Target, str], left: Sequence[str], todo: Plan, options: Options
) -> None:
    """Do the parts that are left; a target is finished as soon as all of its parts are there."""
    targets = dict.fromkeys(part.target for part in job.parts.values())
    waiting = {target: {unit for unit in left if job.parts[unit].target == target} for target in targets}
    subjects = list(dict.fromkeys(subject for part in job.parts.values() for subject in part.subjects))
    for target, units in waiting.items():
        if units:
            direction = direction_of(study, job.model, target, subjects)
            write_array(study.storage, f"{folder_of(job.stage, target)}/direction.npy", direction)
        else:
            finish(study, job, target, owed[target])
    if not left:
        return
    with session(options):
        crew = Crew(PartWorker, (study.uri, job), Resources(todo.cpus, todo.gpus, todo.memory))
        for result in progress(map_units([crew], left, options), todo.subjects, todo.stage, options):
            target = job.parts[result["unit"]].target
            waiting[target].discard(result["unit"])
            if not waiting[target]:
                finish(study, job, target, owed[target])


def summary(table: pd.DataFrame, most: int = 3) -> pd.DataFrame:
    """The most important ROIs of every target, as `dtg interpret` shows them."""
    columns = ["kind", "target", "rank", "roi", "importance", "signed", "x", "y", "z", "completeness_error"]
    shown = table.loc[table["rank"] <= most, columns]
    return shown.rename(columns={"completeness_error": "error"}).reset_index(drop=True)


def where(study: Study, request: Request) -> str:
    """Where the table of a request is."""
    return study.storage.uri(table_name(request.model or study.default_model))
