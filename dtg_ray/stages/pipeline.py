"""`dtg run`: all stages of a study, in order."""

from __future__ import annotations

import contextlib

import pandas as pd

from dtg_ray import ledger
from dtg_ray.cohort.manifest import TRAINING
from dtg_ray.stages import connectomes, contrasts, evaluate, predict, report, synthesize, train
from dtg_ray.stages.cluster import session
from dtg_ray.stages.runtime import Options
from dtg_ray.study import Study

STAGES = {
    "connectomes": connectomes.run,
    "contrasts": contrasts.run,
    "train": train.run,
    "synthesize": synthesize.run,
    "evaluate": evaluate.run,
    "predict": predict.run,
    "report": report.run,
}
"""Every stage by its verb, in the order in which they run."""
ON_RAY = ("connectomes", "contrasts", "train", "synthesize")
LEARNING = ("network", "finetuned", "linear", "group_mean")


def run(study: Study, options: Options) -> pd.DataFrame:
    """Run everything that is owed; the rows of all receipts. Ray is only started when one of its stages has work.

    Only the connectomes that a model is trained on are stored, unless all shall be kept: those of other people are made
    on the way to their maps.
    """
    with contextlib.ExitStack() as stack:
        book = ledger.Ledger(study)
        if not options.dry_run and any(_has_work(book, stage, options) for stage in ledger.stages(study)):
            study = predict.prepare(study, options)  # what is wrong there should not be found at the end
            stack.enter_context(session(options))
        stored = connectomes.run(study, options, _stored_splits(book, options))
        rows = [stage(study, options) for verb, stage in STAGES.items() if verb != "connectomes"]
    return pd.concat([stored, *rows], ignore_index=True).drop_duplicates(["stage", "subject"], keep="last")


def _stored_splits(book: ledger.Ledger, options: Options) -> tuple[str, ...] | None:
    """Of whom connectomes are stored before anything else is done; None for everybody."""
    models = book.study.config.models
    if options.keep_connectomes or all(model.kind == "retest" for model in models.values()):
        return None
    learning = [name for name, model in models.items() if model.kind in LEARNING]
    untrained = options.overwrite or any(book.account(f"train/{name}").pending() for name in learning)
    return TRAINING if learning and untrained else ()


def _has_work(book: ledger.Ledger, stage: str, options: Options) -> bool:
    return stage.split("/", maxsplit=1)[0] in ON_RAY and bool(
        book.account(stage).pending(retry_failed=options.retry_failed)
    )
