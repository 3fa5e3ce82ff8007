"""`dtg evaluate`: how well models' maps agree with measured ones, above all of people they have never seen."""

from __future__ import annotations

import os
import time

import dask
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dtg_ray import ledger
from dtg_ray.results import HELD_OUT, model_table
from dtg_ray.stages.evaluation.figures import Compared, compare
from dtg_ray.stages.evaluation.pairs import TOGETHER, Pairs, pairs
from dtg_ray.stages.evaluation.summary import summarise
from dtg_ray.stages.maps import chosen_models, require_settled
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.single import settle
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import Study

BASE_BYTES = 300 * 2**20
MOST_BYTES = 3 * 2**30
"""That contrasts which are compared side by side may take together: as many threads as fit, at least one."""


def run(study: Study, options: Options, model: str | None = None) -> pd.DataFrame:
    """Evaluate one model or all, then all that were evaluated with each other; returns the rows of receipts."""
    book = ledger.Ledger(study)
    rows = [_run_one(book, name, options) for name in chosen_models(study, model)]
    return pd.concat([*rows, _compare_models(study, options)], ignore_index=True)


def read_summary(study: Study) -> pd.DataFrame:
    """Means over contrasts, a row per model that has been evaluated, in the order of study.yaml."""
    lines = []
    book = ledger.Ledger(study)
    for model in study.config.models:
        if book.account(f"evaluate/{model}").subjects("done"):
            table = read_table(study.storage, model_table(model, "contrasts"))
            figures = table.drop(columns=["contrast", "subjects"]).mean()
            lines.append({"model": model, "subjects": int(table["subjects"].max()), **figures.to_dict()})
    return pd.DataFrame(lines)


def _run_one(book: ledger.Ledger, name: str, options: Options) -> pd.DataFrame:
    study, stage = book.study, f"evaluate/{name}"
    account = book.account(stage)
    pending = account.pending()
    waiting = require_settled(book, [f"synthesize/{name}", "contrasts"], "evaluation") if pending else ""
    todo = pairs(book, name) if pending and not waiting else []
    each = memory(study, todo)
    workers = max(1, min(options.cpus or _cpus(), MOST_BYTES // max(each, 1)))
    plan = Plan(
        stage,
        1,
        len(pending),
        len({who for one in todo for who in one.subjects}),
        sum(len(one.subjects) for one in todo) * study.grid.n_voxels * 4,
        memory=workers * each + BASE_BYTES,
        cpus=workers,
        waiting=waiting,
    )
    return settle(study, account, plan, lambda _today: _evaluate(study, name, todo, workers, options), options)


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def memory(study: Study, todo: list[Pairs]) -> int:
    """Bytes that comparing the maps of one contrast takes: two half-precision matrices, and what is made of parts."""
    most = min(max((len(one.subjects) for one in todo), default=0), TOGETHER)
    return most * study.grid.n_voxels * 5 + 3 * 8 * most * most


def _evaluate(study: Study, name: str, todo: list[Pairs], workers: int, options: Options) -> Row:
    """Compare all contrasts and write what came out."""
    held_out = [one for one in todo if one.split == HELD_OUT]
    if not held_out:
        return Row(name, "excluded", message=f"{name}: got no contrast of which two held-out people have both maps")
    begin, n_maps = time.perf_counter(), sum(len(one.subjects) for one in todo)
    found = evaluate(study, name, todo, workers, quiet=options.quiet)
    write_table(study.storage, model_table(name, "subjects"), pd.concat([one.table for one in found]))
    lines = [one.line for one, of in zip(found, todo, strict=True) if of.split == HELD_OUT]
    write_table(study.storage, model_table(name, "contrasts"), pd.DataFrame(lines))
    rate = n_maps / (time.perf_counter() - begin)
    if not options.quiet:
        tqdm.write(f"evaluate/{name}: {n_maps} pairs of maps, {rate:.0f} a second")
    most = max(len(one.subjects) for one in held_out)
    return Row(name, "done", qc={"subjects": float(most)})


def evaluate(study: Study, model: str, todo: list[Pairs], workers: int, *, quiet: bool = True) -> list[Compared]:
    """Compare maps, a contrast and at most `TOGETHER` people at a time in memory of each worker.

    Parameters
    ----------
    study : Study
    model : str
    todo : list of Pairs
    workers : int
        Threads.

    Returns
    -------
    list of Compared

    Raises
    ------
    StudyError
        When a map was lost that is done.
    """
    with tqdm(total=len(todo), desc=f"evaluate/{model}", unit="contrast", disable=quiet) as bar:

        def one(pair: Pairs) -> Compared:
            found = compare(study.uri, model, pair)
            bar.update()
            return found

        tasks = [dask.delayed(one)(pair) for pair in todo]
        with threadpool_limits(1):  # workers keep all processors busy, and one thread always gives the same bits
            return list(dask.compute(*tasks, scheduler="threads", num_workers=workers))


def _compare_models(study: Study, options: Options) -> pd.DataFrame:
    """Put all models side by side, once all of them were evaluated."""
    book = ledger.Ledger(study)
    account = book.account("comparison")
    pending = account.pending()
    stages = [f"evaluate/{name}" for name in study.config.models]
    waiting = require_settled(book, stages, "comparison") if pending else ""
    plan = Plan("comparison", 1, len(pending), 0, waiting=waiting)
    if waiting and not options.dry_run:
        return account.rows  # of one model alone
    return settle(study, account, plan, lambda _today: summarise(book), options)
