"""`dtg run`: all stages of a study, in order."""

from __future__ import annotations

import contextlib

import pandas as pd

from dtg_ray import ledger
from dtg_ray.stages import connectomes, contrasts, evaluate, predict, report, synthesize, train
from dtg_ray.stages.runtime import Options, session
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


def run(study: Study, options: Options) -> pd.DataFrame:
    """Run everything that is owed; the rows of all receipts. Ray is only started when one of its stages has work."""
    with contextlib.ExitStack() as stack:
        if not options.dry_run and any(_has_work(study, stage, options) for stage in ledger.stages(study)):
            stack.enter_context(session(options))
        return pd.concat([stage(study, options) for stage in STAGES.values()], ignore_index=True)


def _has_work(study: Study, stage: str, options: Options) -> bool:
    return stage.split("/", maxsplit=1)[0] in ON_RAY and bool(
        ledger.account(study, stage).pending(retry_failed=options.retry_failed)
    )
