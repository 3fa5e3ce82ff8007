"""`dtg report`: one page that says what a study has found, with its figures and tables as files beside it."""

from __future__ import annotations

import time

import pandas as pd
from tqdm import tqdm

from dtg_ray import __version__, ledger
from dtg_ray.report.page import files, render
from dtg_ray.report.sections import sections
from dtg_ray.results import Results
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.single import settle
from dtg_ray.store.receipts import Row
from dtg_ray.study import Study

STAGE = "report"
FOLDER, PAGE = "report", "report/index.html"
MEMORY = 1024 * 2**20


def run(study: Study, options: Options) -> pd.DataFrame:
    """Make the page when a result has changed since; returns the rows of the receipt."""
    study = Study(study.uri)  # as it is by now: tables of people were read anew before predicting
    book = ledger.Ledger(study)
    account = book.account(STAGE)
    todo = Plan(STAGE, 1, len(account.pending()), len(study.cohort), memory=MEMORY)
    return settle(study, account, todo, lambda _today: _write(book, options), options)


def _write(book: ledger.Ledger, options: Options) -> Row:
    """Write the page last: what it links to is there by then."""
    study, begin = book.study, time.perf_counter()
    made = sections(Results(study), book)
    name = study.uri.rstrip("/").rsplit("/", 1)[-1]
    document = render(
        f"Synthetic task maps: {name}",
        f"{len(study.cohort):,} people, {len(study.config.contrasts)} contrasts, {len(study.config.models)} models",
        made,
        f"dtg_ray {__version__}. Participants' data: share it as you would share the study.",
    ).encode()
    beside = {f"{FOLDER}/{file}": data for file, data in files(made).items()}
    for file in study.storage.names(FOLDER):
        if file not in beside and file != PAGE:
            study.storage.delete(file)
    for file, data in beside.items():
        study.storage.write(file, data)
    study.storage.write(PAGE, document)
    if not options.quiet:
        size, seconds = len(document) / 2**20, time.perf_counter() - begin
        tqdm.write(f"report: {study.storage.uri(PAGE)}, {size:.1f} MB in {seconds:.0f} s")
    return Row(STAGE, "done", qc={"sections": float(sum(bool(one.parts) for one in made))})
