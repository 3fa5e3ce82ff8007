"""`dtg synthesize`: contrast maps of everybody, whole blocks at a time, from rest runs or stored connectomes.

All models that owe maps of a block make them together, so that nobody's rest runs are read twice. The maps of a second
visit take the place of a model's as they were measured.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from dtg_ray import ledger
from dtg_ray.models import activation_values
from dtg_ray.models.inference import ACTIVATIONS
from dtg_ray.stages import connectomes, estimates
from dtg_ray.stages.blocks import run_blocks
from dtg_ray.stages.contrasts import ContrastWorker, make_maps, read_maps
from dtg_ray.stages.crews import Crew
from dtg_ray.stages.layout import refuse_gone
from dtg_ray.stages.mapping import ConnectomeSource, MapSink, SynthesisWorker, array_name, arrays_of
from dtg_ray.stages.maps import chosen_models
from dtg_ray.stages.models import load_model, network_config, refuse_damaged
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.predictor import members_of
from dtg_ray.stages.runtime import Options, Resources
from dtg_ray.study import Study

log = logging.getLogger(__name__)
HANDED_ON = 3
"""Copies of a block's connectomes between two crews: where it was made, on its way, and where it is used."""


def run(study: Study, options: Options, model: str | None = None) -> pd.DataFrame:
    """Synthesize the maps that are owed, of one model or all; returns the rows of all receipts, connectomes' too."""
    names = chosen_models(study, model)
    made = [name for name in names if not is_retest(study, name)]
    book = _make(study, made, options) if made else ledger.Ledger(study)
    visits = [_read_visit(study, name, options) for name in names if is_retest(study, name)]
    stages = ["connectomes", *(f"synthesize/{name}" for name in made)] if made else []
    return pd.concat([*(book.account(stage).rows for stage in stages), *visits], ignore_index=True)


def is_retest(study: Study, model: str) -> bool:
    """Whether a model is the maps of second visits."""
    return study.config.models[model].kind == "retest"


def _read_visit(study: Study, name: str, options: Options) -> pd.DataFrame:
    """Read the maps of second visits."""
    waiting = "" if ledger.model_hash(study, name) else f"train/{name}"
    return read_maps(study, f"synthesize/{name}", VisitWorker, array_name(name), options, waiting)


class VisitWorker(ContrastWorker):
    """One block of the maps of second visits."""

    column = "retest"
    none = "no map of a second visit in the manifest"

    @property
    def name(self) -> str:
        """Where the array is."""
        return array_name(self.receipts.stage.split("/")[1])


def _make(study: Study, names: Sequence[str], options: Options) -> ledger.Ledger:
    """Show the plan of every model, then make all their maps together; returns the accounts as they are then."""
    book = ledger.Ledger(study)
    for member in dict.fromkeys(member for name in names for member in members_of(study, name)):
        refuse_damaged(study, member)
        if book.account(f"train/{member}").pending() and ledger.model_hash(study, member):
            log.warning("%s: trained by other settings or on other people than now: `dtg train` says which", member)
    for name in names:
        refuse_gone(study, book.account(f"synthesize/{name}"))
    owed = {name: owed_units(book, name, options) for name in names}
    plans = [plan(book, name, owed[name]) for name in names]
    ready = [name for name, one in zip(names, plans, strict=True) if not one.waiting]
    for one in plans:
        (replace(one, seconds=None) if len(ready) > 1 else one).show(options)
    units = sorted(set[str]().union(*(owed[name] for name in ready)))
    if not units:
        return book
    by_model = {name: set(owed[name]) for name in ready}
    models = {unit: [name for name in ready if unit in by_model[name]] for unit in units}
    team = crews(study, models, ready, options)
    whole = together(book, [one for one in plans if one.pending and not one.waiting], units, team)
    if len(ready) > 1 and options.dry_run and not options.json:
        whole.show(options)
    prepare = functools.partial(_prepare, study, ready)
    stages = [connectomes.STAGE, *(f"synthesize/{name}" for name in ready)]
    changed = run_blocks(study, whole, units, stages, team, prepare, options)
    return ledger.Ledger(study) if changed else book


def together(book: ledger.Ledger, plans: Sequence[Plan], units: Sequence[str], team: Sequence[Crew]) -> Plan:
    """The plan of several models whose maps are made together: rest runs are read once for all of them."""
    study = book.study
    members = study.cohort[study.cohort["block"].isin([ledger.block_number(unit) for unit in units])]
    unstored_ = members[~members.index.isin(ledger.stored(book.account("connectomes")))]
    on_the_way = connectomes.seconds_per_subject(book, unstored_)[0] * len(unstored_)
    requests = estimates.image_requests(unstored_) * (len(plans) - 1)
    names = {one.stage.split("/")[1] for one in plans}
    costly = [one.seconds or 0 for one in plans if not _is_made_of(study, one.stage.split("/")[1], names)]
    return replace(
        plans[0],
        stage="synthesize" + (", all together" if len(plans) > 1 else ""),
        pending=len(units),
        subjects=len(members),
        bytes_in=max(one.bytes_in for one in plans),
        bytes_out=sum(one.bytes_out for one in plans),
        objects=sum(one.objects for one in plans),
        memory=sum(crew.resources.memory for crew in team),
        seconds=max(sum(costly) - on_the_way * (len(costly) - 1), 0),
        measured_on=min(one.measured_on for one in plans),
        requests=max(sum(one.requests for one in plans) - requests, 0),
    )


def _is_made_of(study: Study, name: str, others: set[str]) -> bool:
    """Whether a model is an ensemble of which some others are the members: it costs nothing beside them."""
    members = members_of(study, name)
    return name not in members and others.issuperset(members)


def owed_units(book: ledger.Ledger, name: str, options: Options) -> list[str]:
    """Blocks whose maps a model owes."""
    account, connectomes_ = book.account(f"synthesize/{name}"), book.account("connectomes")
    again = connectomes_.troubled if options.retry_failed else set()
    return sorted({*account.pending(retry_failed=options.retry_failed), *again})


def _prepare(study: Study, names: Sequence[str], dry: bool = False) -> None:
    """Look whether the models can be used at all, then make the arrays, unless dry, or check those that are there."""
    for member in dict.fromkeys(member for name in names for member in members_of(study, name)):
        load_model(study, member)
    connectomes.make_arrays(study, dry)
    for name in names:
        make_maps(study, array_name(name), study.config.maps_of(name), arrays_of(study), dry)


def crews(study: Study, models: Mapping[str, Sequence[str]], names: Sequence[str], options: Options) -> list[Crew]:
    """Who does it: one crew for everything, or one for connectomes and one, on GPUs, for maps."""
    config, blocks = study.config.synthesis, dict(models)
    first = connectomes.memory_of_a_subject(study, study.cohort) + 300 * 2**20
    second = memory_of_maps(study, names) + 500 * 2**20
    keep, retry = options.keep_connectomes, options.retry_failed
    if not config.two_pools:
        worker = functools.partial(SynthesisWorker, keep=keep, retry=retry)
        return [Crew(worker, (study.uri, blocks), Resources(config.cpus_per_actor, 0, first + second))]
    handed_on = HANDED_ON * study.config.cohort.block_size * bytes_of_a_connectome(study)
    source = functools.partial(ConnectomeSource, keep=keep, retry=retry)
    sink = functools.partial(MapSink, retry=retry)
    return [
        Crew(source, (study.uri, blocks), Resources(1, 0, first + handed_on)),
        Crew(sink, (study.uri, blocks), Resources(config.cpus_per_actor, config.gpus_per_actor, second + handed_on)),
    ]


def bytes_of_a_connectome(study: Study) -> int:
    """All windows of a subject, as they are stored."""
    return study.config.connectomes.windows * study.n_rois * study.grid.n_voxels * 2


def memory_of_maps(study: Study, names: Sequence[str]) -> int:
    """Bytes of a worker: the maps of a block by every model, those of one subject, and the largest activations."""
    n_voxels, block = study.grid.n_voxels, study.config.cohort.block_size
    maps = [len(study.config.maps_of(name)) * n_voxels for name in names]
    networks = [network_config(study, member) for name in names for member in members_of(study, name)]
    largest = max([activation_values(one, study.grid.shape)[1] for one in networks if one], default=0)
    of_blocks = sum(maps) * 2 * block * len(arrays_of(study))
    of_a_subject = 4 * max(maps, default=0) * (study.config.connectomes.windows + 2)
    of_a_network = ACTIVATIONS * largest * (2 if study.config.synthesis.precision == "bfloat16" else 4)
    return of_blocks + of_a_subject + study.n_rois * n_voxels * 12 + of_a_network


def seconds_per_subject(book: ledger.Ledger, name: str) -> tuple[float, int]:
    """How long a model takes for one subject, and on how many subjects of this study that was measured."""
    study, members = book.study, members_of(book.study, name)
    if name not in members:  # its own receipts say what it took where its members had been made a moment before
        each_, counts = zip(*(seconds_per_subject(book, member) for member in members), strict=True)
        return sum(each_), min(counts)
    each, count = estimates.measured(book.account(f"synthesize/{name}"))
    if count:
        return each, count
    networks = [network_config(study, member) for member in members]
    config, values = study.config.synthesis, len(study.config.maps_of(name)) * study.grid.n_voxels
    windows = study.config.connectomes.windows
    of_networks = sum(estimates.network_seconds(one, study.grid.shape, config.precision) for one in networks if one)
    of_baselines = networks.count(None) * values * study.n_rois * estimates.BASELINE_SECONDS_PER_VALUE
    return windows * (of_networks / config.cpus_per_actor + of_baselines), 0


def plan(book: ledger.Ledger, name: str, pending: list[str]) -> Plan:
    """Bytes, and the memory of a worker for this model alone."""
    study = book.study
    members = study.cohort[study.cohort["block"].isin([ledger.block_number(unit) for unit in pending])]
    is_stored = members.index.isin(ledger.stored(book.account("connectomes")))
    untrained = [member for member in members_of(study, name) if ledger.model_hash(study, member) is None]
    config, ready = study.config.synthesis, bool(pending) and not untrained
    first = connectomes.memory_of_a_subject(study, members[~is_stored]) if ready else 0
    chunks = estimates.chunk_count(len(study.config.maps_of(name)), study.grid.n_voxels, config.slab)
    objects = len(pending) * (chunks * len(arrays_of(study)) + 1)
    on_the_way, _ = connectomes.seconds_per_subject(book, members[~is_stored]) if ready else (0, 0)
    each, measured_on = seconds_per_subject(book, name) if ready else (0, 0)
    reads = int(is_stored.sum()) * study.config.connectomes.windows
    return Plan(
        stage=f"synthesize/{name}",
        units=len(study.blocks()),
        pending=len(pending),
        subjects=len(members),
        bytes_in=connectomes.bytes_of_runs(members[~is_stored]) + int(is_stored.sum()) * bytes_of_a_connectome(study),
        bytes_out=len(members) * len(study.config.maps_of(name)) * study.grid.n_voxels * 2 * len(arrays_of(study)),
        objects=objects,
        memory=first + memory_of_maps(study, [name]) + 800 * 2**20 if ready else 0,
        seconds=len(members) * each + int((~is_stored).sum()) * on_the_way,
        measured_on=measured_on,
        requests=estimates.requests(study.uri, objects + reads, 2 * len(pending))
        + estimates.image_requests(members[~is_stored]),
        cpus=config.cpus_per_actor,
        gpus=config.gpus_per_actor,
        waiting=" and ".join(f"train/{member}" for member in untrained),
    )
