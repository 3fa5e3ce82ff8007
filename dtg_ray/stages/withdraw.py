"""`dtg withdraw`: participants who withdrew are erased from every array, table and receipt, and stay out.

Every step can be repeated: what was interrupted is finished by the same command. A scan of the whole study proves it.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dtg_ray import ledger
from dtg_ray.cohort import manifest
from dtg_ray.cohort.manifest import TRAINING
from dtg_ray.cohort.withdrawal import PREFIX, bare, digest
from dtg_ray.config import EnsembleConfig
from dtg_ray.stages.add import read_withdrawn
from dtg_ray.stages.models import provenance_of
from dtg_ray.stages.traces import Trace, find_traces, groups_of_arrays, rows_of_nobody
from dtg_ray.store.arrays import along, erase, write
from dtg_ray.store.receipts import INDEX, Receipts, Row
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import COHORT, LEFT_OUT, NOBODY, PEOPLE_LEFT_OUT, PHENOTYPES, WITHDRAWN, Study, cohort_bytes

log = logging.getLogger(__name__)
REPORT = ("report", "receipts/report")
RESULTS = (
    "evaluation",
    "interpretation",
    "prediction",
    "report",
    *(f"receipts/{stage}" for stage in ("evaluate", "comparison", "predict", "scores", "report", "interpret")),
)
"""What was computed of several people together: it is removed, and made again by the next run."""


@dataclass(frozen=True)
class Withdrawal:
    """What `dtg withdraw` did.

    Parameters
    ----------
    study : Study
        As it is now.
    names : list of str
        Who was named.
    erased : list of str
        Who of them was in the study.
    trained : dict of str to int
        Models whose training or validation some of them were in, and how many.
    files : int
        How many files were searched for traces.
    traces : list of Trace
        What was found of them; nothing, or something went wrong.
    """

    study: Study
    names: list[str]
    erased: list[str] = field(default_factory=list)
    trained: dict[str, int] = field(default_factory=dict)
    files: int = 0
    traces: list[Trace] = field(default_factory=list)


def withdraw(study: Study, names: list[str]) -> Withdrawal:
    """Erase participants from a study; no stage may run on it meanwhile.

    Parameters
    ----------
    study : Study
    names : list of str
        As in the study, with or without `sub-`; who is not in it is kept out of it from now on.
    """
    everywhere = {form for name in names for form in (bare(name), f"{PREFIX}{bare(name)}")}
    erased = [subject for subject in study.cohort["subject"] if subject in everywhere]
    _remember(study, names)
    trained = _sign_models_again(study, erased, everywhere)
    _remove(study, REPORT)  # it names those who were left out as well
    if erased:
        _remove(study, RESULTS)
        _empty_lines(study, erased)
    now = Study(study.uri)
    _erase_rows(now)
    _erase_from_receipts(now, everywhere)
    _erase_from_tables(now, everywhere)
    files, traces = find_traces(now, names)
    return Withdrawal(now, names, erased, trained, files, traces)


def _remember(study: Study, names: Iterable[str]) -> None:
    """Keep the digests of those who withdrew: first of all, so that nobody of them is added meanwhile."""
    before = read_withdrawn(study)
    salt = secrets.token_hex(16)
    date = pd.Timestamp.now(tz="UTC").strftime("%Y-%m-%d")
    lines = [
        {"digest": digest(name, salt), "salt": salt, "date": date}
        for name in dict.fromkeys(map(bare, names))
        if not before.has(name)
    ]
    if lines:
        write_table(study.storage, WITHDRAWN, pd.concat([before.table, pd.DataFrame(lines)], ignore_index=True))


def _sign_models_again(study: Study, erased: Collection[str], everywhere: Collection[str]) -> dict[str, int]:
    """Take people out of what models say of themselves. Their weights stay, and so does what was made with them.

    A model that was up to date stays so: it is signed as that of the people who are left.
    """
    before, after = ledger.Ledger(study), ledger.Ledger(study.without(erased))
    trained = {}
    for name in sorted({file.split("/")[1] for file in study.storage.names("models")}):
        there = provenance_of(study, name)
        if there is None:
            continue
        known = name in study.config.models and not isinstance(study.config.models[name], EnsembleConfig)
        stage, today = f"train/{name}", after.account(f"train/{name}").today() if known else None
        if known and not before.account(stage).pending() and today and today != before.account(stage).today():
            rows = Receipts(study.storage, stage).holding(ledger.MODEL, before.account(stage).owed[ledger.MODEL])
            row = Row(**{**vars(rows[name]), "fingerprint": today})
            Receipts(study.storage, stage).write(ledger.MODEL, [row], attempt=1, host="withdrawn")
            there["fingerprint"] = today
        if count := _rewrite_provenance(study, name, there.get("fingerprint"), everywhere):
            trained[name] = count
    return trained


def _rewrite_provenance(study: Study, name: str, today: str | None, everywhere: Collection[str]) -> int:
    """Take people out of model.json, of a model and of those kept beside it; how many were in it.

    The checkpoints of a training they were in are removed before.
    """
    most = 0
    files = [file for file in study.storage.names(f"models/{name}") if file.endswith("/model.json")]
    for file in files:
        document = json.loads(study.storage.read(file))
        provenance = document["provenance"]
        count = 0
        for who in ("training", "validation"):
            people = provenance.get(who, [])
            provenance[who] = [subject for subject in people if subject not in everywhere]
            count += len(people) - len(provenance[who])
        changed = count or provenance.get("fingerprint") != today
        if count:
            _remove(study, [f"train/{name}"])
            provenance["withdrawn"] = provenance.get("withdrawn", 0) + count
        if changed:
            provenance["fingerprint"] = today
            study.storage.write(file, json.dumps(document, indent=1).encode())
        most = max(most, count)
    return most


def _empty_lines(study: Study, erased: Collection[str]) -> None:
    """Make lines of the manifest nobody's: from here on no stage reads them."""
    table = study.manifest.copy()
    gone = table["subject"].isin(list(erased))
    learnt_from = table["split"].isin([*TRAINING, manifest.GONE_TRAINED])
    table.loc[gone, "split"] = np.where(learnt_from[gone], manifest.GONE_TRAINED, manifest.GONE)
    alone = gone & (table["group"] == table["subject"])  # who has no family is called so
    for column, value, which in (("group", "", alone), ("subject", NOBODY, gone), ("rest_bytes", 0, gone)):
        table.loc[which, column] = value
    table["rest"] = [[] if empty else runs for empty, runs in zip(gone, table["rest"], strict=True)]
    for column in ("contrasts", "retest"):
        table[column] = [{} if empty else maps for empty, maps in zip(gone, table[column], strict=True)]
    study.storage.write(COHORT, cohort_bytes(table))


def _erase_rows(study: Study) -> None:
    """Set all rows of nobody back to NaN in every array with an axis of subjects."""
    empty = rows_of_nobody(study)
    for name in groups_of_arrays(study):
        group = study.storage.open_zarr(name, writable=True)
        for _, array, axis in along(group):
            erase(array, axis, [row for row in empty if row < array.shape[axis]])
        names = group["subject"]
        write(names, slice(None), study.row_names[: names.shape[0]])


def _erase_from_receipts(study: Study, everywhere: Collection[str]) -> None:
    """Write receipts again without the lines of some people; the others hold as before."""
    _remove(study, [INDEX])
    stages = {name.removeprefix("receipts/").rsplit("/", 1)[0] for name in study.storage.names("receipts")}
    for stage in sorted(stages):
        receipts = Receipts(study.storage, stage)
        table = receipts.read(receipts.units())
        for unit in sorted(set(table.loc[table["subject"].isin(list(everywhere)), "unit"])):
            receipts.erase(unit, everywhere)


def _erase_from_tables(study: Study, everywhere: Collection[str]) -> None:
    """Write the tables about people again without some of them."""
    for name in (PHENOTYPES, LEFT_OUT, PEOPLE_LEFT_OUT):
        if not study.storage.exists(name):
            continue
        table = read_table(study.storage, name)
        fewer = table[~table["subject"].isin(list(everywhere))]
        if len(fewer) < len(table):
            write_table(study.storage, name, fewer.reset_index(drop=True))


def _remove(study: Study, folders: Iterable[str]) -> None:
    for folder in folders:
        for name in reversed(study.storage.names(folder)):  # receipts of a model come before its tables
            study.storage.delete(name)


def describe(done: Withdrawal) -> list[str]:
    """What was erased and what the scan says, in words without names."""
    if not done.erased:
        return [
            f"{done.study.uri}: none of the {len(done.names)} participants named is in the study; nothing was erased",
            "  is this the right list? those who were named are kept out from now on",
            f"  scan: {done.files} files read, {verdict(done)}",
        ]
    lines = [
        f"{done.study.uri}: {len(done.erased)} of {len(done.names)} participants were in the study and are erased",
        f"  {len(done.study.cohort)} subjects are left; all who were named are kept out from now on",
    ]
    for model, count in done.trained.items():
        lines.append(
            f"  {model} was trained or validated on {count} of them: its weights stay as they are; "
            f"`dtg train {done.study.uri} --model {model} --overwrite` trains it without them"
        )
    if done.erased:
        lines.append("  evaluation, prediction and report were removed: the next `dtg run` makes them without them")
        lines.append("  so were interpretations: `dtg interpret` makes them again")
    lines.append(f"  scan: {done.files} files read, {verdict(done)}")
    return lines + [f"    {trace.file}: {trace.where}" for trace in done.traces[:20]]


def verdict(done: Withdrawal) -> str:
    """What the scan found, in words."""
    return "no trace of them" if not done.traces else f"TRACES in {len(done.traces)} places:"
