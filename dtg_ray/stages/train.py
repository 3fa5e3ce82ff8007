"""`dtg train`: the models of a study, networks by Ray Train, baselines by Ray Data; committed by model.json."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from dtg_ray import ledger
from dtg_ray.cohort.manifest import TRAINING
from dtg_ray.config import TRAINED_NETWORKS, BaselineConfig, TrainConfig
from dtg_ray.errors import ModelError, StudyError
from dtg_ray.models import activation_values
from dtg_ray.models.baselines import Retest
from dtg_ray.stages.cluster import session
from dtg_ray.stages.maps import chosen_models, require_stored, usable
from dtg_ray.stages.models import load_model, network_config, provenance_of, save_model, settings_of
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.single import settle
from dtg_ray.stages.training.baselines import fit_group_mean, fit_linear
from dtg_ray.stages.training.checkpoints import differences
from dtg_ray.stages.training.networks import Fitted, assign, claim_of, fit_network
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import write_table
from dtg_ray.study import Study


def run(study: Study, options: Options, model: str | None = None) -> pd.DataFrame:
    """Train one model of a study, or all; returns the rows of their receipts.

    Raises
    ------
    StudyError
        When connectomes or contrasts are unfinished, nobody is left to train on, or another model of that name is
        there.
    ModelError
        When the study has no such model.
    """
    names = [name for name in chosen_models(study, model) if study.config.models[name].kind != "ensemble"]
    with contextlib.ExitStack() as stack:
        if not options.dry_run and sum(bool(_pending(study, name, options)) for name in names) > 1:
            stack.enter_context(session(options))  # one for all: it takes seconds to start
        rows = [_run_one(study, name, options) for name in names]
    return pd.concat(rows, ignore_index=True)


def _pending(study: Study, name: str, options: Options) -> list[str]:
    """What is to be done of a model."""
    account = ledger.account(study, f"train/{name}")
    return [ledger.MODEL] if options.overwrite else account.pending(retry_failed=options.retry_failed)


def _run_one(study: Study, name: str, options: Options) -> pd.DataFrame:
    account, pending = ledger.account(study, f"train/{name}"), _pending(study, name, options)
    todo = plan(study, name, pending)
    work = NOTHING_TO_FIT.get(study.config.models[name].kind)
    if work is None:
        work = functools.partial(_train, options=options)
        if pending and not (todo.waiting or options.dry_run or options.overwrite):
            _refuse_to_overwrite(study, name, str(account.today()))
    return settle(study, account, todo, functools.partial(work, study, name), options)


def _commit_retest(study: Study, name: str, today: str) -> Row:
    """Write down that the maps of second visits are a model; there is nothing to fit."""
    model = Retest(study.config.contrasts, study.grid, study.n_rois)
    provenance = {"training": [], "validation": [], **settings_of(study, name), "fingerprint": today}
    save_model(study, f"models/{name}", model, provenance)
    return Row(name, "done")


def plan(study: Study, name: str, pending: list[str]) -> Plan:
    """Subjects and bytes of one pass; memory of a worker, mostly the activations of a batch."""
    config = study.config.models[name]
    if config.kind in NOTHING_TO_FIT:
        return Plan(f"train/{name}", 1, len(pending), 0)
    members = study.cohort[study.cohort["split"].isin(TRAINING)]
    one = study.grid.n_voxels * (study.n_rois + len(study.config.contrasts))
    memory, cpus, waiting = one * 8 + 500 * 2**20, 1.0, ""
    if pending:
        waiting = require_stored(ledger.Ledger(study), TRAINING, "training")
    if isinstance(config, TRAINED_NETWORKS):
        network = network_config(study, name) if pending and not waiting else None
        memory += _memory_of_a_batch(network, config.train, study) if network else 0
        memory += min(
            int(config.train.cache_gigabytes * 2**30), 2 * one * len(members) * study.config.connectomes.windows
        )
        cpus = config.train.cpus_per_worker
        if pending and not waiting and ledger.account(study, f"train/{name}").today() is None:
            waiting = f"train/{getattr(config, 'start', '')}, from which {name} starts"
    return Plan(
        stage=f"train/{name}",
        units=1,
        pending=len(pending),
        subjects=len(members),
        bytes_in=one * 2 * len(members),
        bytes_out=0,
        memory=memory,
        cpus=cpus,
        waiting=waiting,
    )


def _memory_of_a_batch(network: dict[str, Any], config: TrainConfig, study: Study) -> int:
    """Bytes of what a worker keeps of a batch between forward and backward pass, and of the largest gradient."""
    every, largest = activation_values(network, study.grid.shape)
    subjects = -(-config.batch_size // (config.workers * config.accumulate))
    inputs = study.grid.mask.size * (study.n_rois + 2 * network["n_contrasts"])
    return subjects * (every + largest + inputs) * 4


def _train(study: Study, name: str, today: str, options: Options) -> Row:
    """Fit a model and write it."""
    config, identity = study.config.models[name], {**settings_of(study, name), "fingerprint": today}
    if isinstance(config, BaselineConfig):
        training = usable(ledger.Ledger(study), "train")
        if len(training) < 2:
            raise StudyError(
                f"got {len(training)} subjects to train on with a connectome and a contrast map, expected at least 2",
                hint="`dtg status` says who failed; cohort.validation and cohort.test set the shares of the splits",
            )
        _check_contrasts(study, training, study.config.contrasts)
        fit = fit_group_mean if config.kind == "group_mean" else fit_linear
        with session(options):
            model = fit(study, training, options)
        save_model(study, f"models/{name}", model, {"training": training, "validation": [], **identity})
        return Row(name, "done", qc={"subjects": float(len(training))})
    assignment = assign(study, name, today)
    _check_contrasts(study, assignment.training, assignment.contrasts)
    with session(options):
        fitted = fit_network(study, name, today, options)
    people = {"training": fitted.assignment.training, "validation": fitted.assignment.validation}
    _commit(study, name, fitted, {**people, **identity})
    figures = {key: float(value) for key, value in fitted.history[-1].items() if "/" not in key}
    return Row(name, "done", qc={"subjects": float(len(people["training"])), **figures})


def _commit(study: Study, name: str, fitted: Fitted, provenance: dict[str, Any]) -> None:
    """Replace what is there by the models kept beside the selected one, the history, and, last, the selected one."""
    kept = [which for which in fitted.models if which != fitted.selected]
    for file in study.storage.names(f"models/{name}"):
        if file.split("/")[2:-1] not in ([], *([which] for which in kept)):  # of weights that were not selected before
            study.storage.delete(file)
    for which in kept:
        save_model(study, f"models/{name}/{which}", fitted.models[which], {**provenance, "weights": which})
    write_table(study.storage, f"models/{name}/history.parquet", pd.DataFrame(fitted.history))
    save_model(study, f"models/{name}", fitted.models[fitted.selected], {**provenance, "weights": fitted.selected})


def _check_import(study: Study, name: str, _today: str) -> Row:
    """An imported model has nothing to learn; it has to be there."""
    try:
        load_model(study, name)
    except ModelError as error:
        raise StudyError(f"{name}: {error}", hint="import it again: dtg import-model") from error
    return Row(name, "done")


NOTHING_TO_FIT: dict[str, Callable[[Study, str, str], Row]] = {"imported": _check_import, "retest": _commit_retest}
"""What is done instead, by kind of model."""


def _refuse_to_overwrite(study: Study, name: str, today: str) -> None:
    """Leave a model alone that was trained with other settings or on other people."""
    there = provenance_of(study, name)
    if there is None or there.get("fingerprint") == today or _is_being_replaced(study, name, today):
        return
    settings = settings_of(study, name)["settings"]
    raise StudyError(
        f"models/{name}: got a model there that differs in {differences(there.get('settings', {}), settings)}; "
        "it was not touched",
        hint="give the new one another name in study.yaml, or replace the old one with --overwrite",
    )


def _is_being_replaced(study: Study, name: str, today: str) -> bool:
    """Whether a training was begun with --overwrite that is to be continued."""
    if not isinstance(study.config.models[name], TRAINED_NETWORKS):
        return False
    claim = claim_of(study, name, assign(study, name, today))
    return (claim.there() or {}).get("key") == claim.key


def _check_contrasts(study: Study, training: list[str], contrasts: Sequence[str]) -> None:
    """Refuse a contrast without a training map: a network would make its maps up."""
    acquired = {name for subject in training for name in study.cohort.loc[[subject], "contrasts"].iloc[0]}
    if absent := [name for name in contrasts if name not in acquired]:
        raise StudyError(
            f"got no training subject with {', '.join(absent)}, expected at least one for each contrast",
            hint="leave them out (contrasts: in study.yaml), or change cohort.seed or the shares of the splits",
        )
