"""What a study owes: the units of every stage, the fingerprint of everybody in them today, and which receipts hold.

Nothing here looks at arrays: "done" means a row of a receipt with today's fingerprint.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from dtg_ray import __version__
from dtg_ray.cohort.manifest import TRAINING
from dtg_ray.config import (
    EnsembleConfig,
    FinetunedConfig,
    ImportedConfig,
    feature_folder,
    fingerprint,
    to_yaml,
    training_settings,
)
from dtg_ray.errors import MissingFileError
from dtg_ray.store.receipts import Receipts
from dtg_ray.study import LEFT_OUT, Study

log = logging.getLogger(__name__)
FORMAT = 3
"""Raised when the meaning of a stage's output changes, so that old results are made again."""
MODEL = "model"
"""The unit of stages that have one."""
COMMON = "+common"
"""After the name of a target: predicted once more for the subjects that all feature sets have, to compare these."""
Owed = dict[str, dict[str, str | None]]
"""Unit -> subject (or model, or feature set) -> fingerprint; None where the stage before has not got that far."""


@dataclass(frozen=True)
class Account:
    """One stage: what it owes and what it has.

    Parameters
    ----------
    stage : str
        For example `synthesize/unet`.
    owed : mapping of unit to mapping of subject to fingerprint
    rows : DataFrame
        The rows of all receipts that hold today.
    """

    stage: str
    owed: Mapping[str, Mapping[str, str | None]]
    rows: pd.DataFrame

    @property
    def settled(self) -> set[str]:
        """Units all of whose subjects have a row that holds."""
        counts = self.rows["unit"].value_counts().to_dict()
        return {unit for unit, members in self.owed.items() if counts.get(unit, 0) == len(members)}

    @property
    def troubled(self) -> set[str]:
        """Units with a failed subject, or one that broke a rule."""
        return set(self.rows.loc[self.rows["error_type"] != "", "unit"])

    def pending(self, *, retry_failed: bool = False) -> list[str]:
        """Units to do, in order; with `retry_failed` those with a failed subject, or one that broke a rule, too."""
        again = self.troubled if retry_failed else set()
        settled = self.settled
        return [unit for unit in self.owed if unit not in settled or unit in again]

    def today(self) -> str | None:
        """The fingerprint of a stage with one unit."""
        (one,) = self.owed[MODEL].values()
        return one

    def subjects(self, status: str) -> list[str]:
        """Subjects with a status, in no particular order."""
        return list(self.rows.loc[self.rows["status"] == status, "subject"])


def block_unit(block: int) -> str:
    """Name of a block's receipt."""
    return f"block-{block:05d}"


def block_number(unit: str) -> int:
    """The block of a receipt's name."""
    return int(unit.removeprefix("block-"))


class Ledger:
    """The accounts of a study at one moment: each is read once.

    Parameters
    ----------
    study : Study
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._accounts: dict[str, Account] = {}

    @functools.cached_property
    def columns(self) -> Mapping[str, str]:
        """A hash of what is known about the people, by column."""
        table = self.study.people
        return {name: fingerprint(table[name].astype("str").tolist()) for name in table.columns}

    def account(self, stage: str) -> Account:
        """The account of a stage: `connectomes`, `contrasts`, `train/M`, `synthesize/M`, `evaluate/M`, `predict/F`."""
        if stage not in self._accounts:
            self._accounts[stage] = self._read(stage)
        return self._accounts[stage]

    def _read(self, stage: str) -> Account:
        verb, _, name = stage.partition("/")
        owed = OWED[verb](self, name)
        rows = Receipts(self.study.storage, stage).read([unit for unit, members in owed.items() if _known(members)])
        if verb == "train" and model_hash(self.study, name) is None:
            rows = rows[:0]  # model.json is what commits a model: somebody took it away
        today = {subject: one for members in owed.values() for subject, one in members.items()}
        holds = rows["fingerprint"] == rows["subject"].map(today) if len(rows) else np.zeros(0, dtype=bool)
        return Account(stage, owed, rows[holds].reset_index(drop=True))


def array_of(stage: str) -> str:
    """The Zarr group that a stage writes; empty for one that writes none."""
    verb, _, name = stage.partition("/")
    return {"connectomes": "connectomes.zarr", "contrasts": "contrasts.zarr"}.get(
        stage, f"synthetic/{name}.zarr" if verb == "synthesize" else ""
    )


def _known(members: Mapping[str, str | None]) -> bool:
    return any(one is not None for one in members.values())


def account(study: Study, stage: str) -> Account:
    """The account of one stage, see `Ledger.account`."""
    return Ledger(study).account(stage)


def stages(study: Study) -> list[str]:
    """All stages of a study, in the order in which they run."""
    models = study.config.models
    return [
        "connectomes",
        "contrasts",
        *(f"train/{name}" for name, model in models.items() if not isinstance(model, EnsembleConfig)),
        *(f"synthesize/{name}" for name in models),
        *(f"evaluate/{name}" for name in models),
        "comparison",
        *(f"predict/{feature_folder(feature)}" for feature in study.config.feature_sets()),
        "scores",
        "report",
    ]


def status(book: Ledger) -> pd.DataFrame:
    """Counts per stage: units, settled units, and subjects done, failed, excluded and pending, which add up to all."""
    lines = []
    for stage in stages(book.study):
        one = book.account(stage)
        counts = {key: len(one.subjects(key)) for key in ("done", "failed", "excluded")}
        expected = sum(map(len, one.owed.values()))
        counts["pending"] = expected - sum(counts.values())
        lines.append({"stage": stage, "units": len(one.owed), "settled": len(one.settled), **counts})
    return pd.DataFrame(lines)


def failures(book: Ledger) -> pd.DataFrame:
    """Everybody who failed or broke a rule of `quality`: stage, subject, status, error_type, message."""
    return troubles(pd.concat([book.account(stage).rows for stage in stages(book.study)], ignore_index=True))


def troubles(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of some rows that failed or broke a rule: stage, subject, status, error_type, message."""
    columns = ["stage", "subject", "status", "error_type", "message"]
    return rows.loc[rows["error_type"] != "", columns].reset_index(drop=True)


def stored(account: Account) -> set[str]:
    """Of the account of connectomes: those whose connectomes are in the study, not only made on the way to maps."""
    done = account.rows[account.rows["status"] == "done"]
    return {subject for subject, qc in zip(done["subject"], done["qc"], strict=True) if qc["stored"]}


def model_hash(study: Study, model: str) -> str | None:
    """Hash of a trained model's weights, None before it is trained; of an ensemble that of all its members'."""
    config = study.config.models[model]
    if isinstance(config, EnsembleConfig):
        members = [model_hash(study, name) for name in config.members]
        return None if None in members else fingerprint(members)
    try:
        return str(json.loads(study.storage.read(f"models/{model}/model.json"))["sha256"])
    except MissingFileError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s: damaged; the model counts as not there", study.storage.uri(f"models/{model}/model.json"))
        return None


def connectome_fingerprints(study: Study, block: int | None = None) -> Owed:
    """Of everybody's connectome, by unit; of one block or all."""
    config = study.config
    shared = fingerprint(
        FORMAT, "connectomes", config.connectomes, config.cleaning, config.quality, study.space_fingerprint
    )
    return _by_block(study, shared, "rest", block)


def map_fingerprints(study: Study, column: str, block: int | None = None) -> Owed:
    """Of everybody's measured maps, of a column of the cohort, by unit; of one block or all."""
    shared = fingerprint(FORMAT, column, list(study.config.contrasts), study.space_fingerprint)
    return _by_block(study, shared, column, block)


def synthesis_fingerprint(study: Study, weights: str | None) -> Callable[[str | None, bool], str | None]:
    """How somebody's synthetic maps follow from the fingerprint of their connectome, and from whether there is one.

    `weights` is the hash of those that make the maps, see `model_hash`.
    """
    shared = fingerprint(FORMAT, "synthesize", weights, study.config.synthesis.identity())

    def of(connectome: str | None, done: bool) -> str | None:
        return None if weights is None or connectome is None else fingerprint(shared, connectome, done)

    return of


def _by_block(study: Study, shared: str, files: str, block: int | None) -> Owed:
    """Every subject with the hash of what its files are."""
    rows = study.cohort if block is None else study.block(block)
    owed: Owed = {}
    for subject, number, entry in zip(rows["subject"], rows["block"], rows[files], strict=True):
        owed.setdefault(block_unit(number), {})[subject] = fingerprint(shared, subject, _plain(entry))
    return owed


def _plain(entry: Any) -> object:
    """Scans as JSON can hold them: a list of runs, or a mapping of maps."""
    if isinstance(entry, Mapping):
        return {name: scan.entry() for name, scan in entry.items()}
    return [scan.entry() for scan in entry]


def _connectomes(book: Ledger, _: str) -> Owed:
    return connectome_fingerprints(book.study)


def _contrasts(book: Ledger, _: str) -> Owed:
    return map_fingerprints(book.study, "contrasts")


def _train(book: Ledger, model: str) -> Owed:
    return {MODEL: {model: _training(book, model)}}


def _training(book: Ledger, model: str) -> str | None:
    """A model depends on its settings and on who is trained and validated on, not on who turned out unreadable."""
    study = book.study
    config = study.config.models[model]
    if isinstance(config, ImportedConfig):
        return fingerprint(FORMAT, "imported", config.sha256)
    if config.kind == "retest":
        return fingerprint(FORMAT, "retest", list(study.config.contrasts), study.space_fingerprint)
    start = model_hash(study, config.start) if isinstance(config, FinetunedConfig) else ""
    if start is None:
        return None
    people = study.cohort[study.cohort["split"].isin(TRAINING)]
    inputs = [_flat(book.account(stage).owed) for stage in ("connectomes", "contrasts")]
    lines = [
        [subject, split, *(one[subject] for one in inputs)]
        for subject, split in zip(people["subject"], people["split"], strict=True)
    ]
    return fingerprint(FORMAT, "train", training_settings(config), lines, start)


def _flat(owed: Mapping[str, Mapping[str, str | None]]) -> dict[str, str | None]:
    return {subject: one for members in owed.values() for subject, one in members.items()}


def _synthesize(book: Ledger, model: str) -> Owed:
    """Maps depend on the model and on whose connectomes there are; of second visits on the files alone."""
    study = book.study
    if study.config.models[model].kind == "retest":
        owed = map_fingerprints(study, "retest")
        there = model_hash(study, model) is not None
        return owed if there else {unit: dict.fromkeys(members) for unit, members in owed.items()}
    connectomes, of = book.account("connectomes"), synthesis_fingerprint(study, model_hash(study, model))
    status = dict(zip(connectomes.rows["subject"], connectomes.rows["status"], strict=True))
    return {
        unit: {
            subject: of(today, status[subject] == "done") if subject in status else None
            for subject, today in members.items()
        }
        for unit, members in connectomes.owed.items()
    }


def _evaluate(book: Ledger, model: str) -> Owed:
    return {MODEL: {model: _outcome(book, [f"synthesize/{model}", "contrasts"], "evaluation")}}


def _comparison(book: Ledger, _: str) -> Owed:
    """All models side by side: they depend on the groups of people as well."""
    config = book.study.config
    groups = [[name, book.columns.get(name)] for name in config.evaluation.by]
    families = book.study.cohort["group"].tolist()
    stages = [f"evaluate/{name}" for name in config.models]
    return {MODEL: {"comparison": _outcome(book, stages, config.evaluation.model_dump(), groups, families)}}


def _predict(book: Ledger, folder: str) -> Owed:
    """Two units per target: for all who have the features, and for those who have all features that are compared."""
    config = book.study.config
    feature = next(name for name in config.feature_sets() if feature_folder(name) == folder)
    shared, in_common = _features(book, [feature]), None
    compared = compares(book.study)
    if compared:
        in_common = _features(book, config.feature_sets(), config.prediction.repeats)
    owed: Owed = {}
    for target in target_names(book.study):
        columns = [book.columns.get(name) for name in config.prediction.columns_of(target)]
        own = None if None in columns else fingerprint(columns, config.prediction.identity_of(target))
        owed[target_unit(target)] = {target: own and shared and fingerprint(shared, own)}
        if compared:
            common = own and shared and in_common and fingerprint(shared, in_common, own)
            owed[target_unit(target) + COMMON] = {target + COMMON: common}
    return owed


def features_fingerprint(book: Ledger, feature: str) -> str | None:
    """Hash of all that is known of a feature set; None while it is unfinished."""
    return _features(book, [feature])


def _features(book: Ledger, features: Iterable[str], *parts: object) -> str | None:
    """Hash of all that is known of some feature sets; None while one is unfinished."""
    config, known = book.study.config, []
    for feature in features:
        sources = config.sources_of(feature)
        what = [[str(part) for part in sources], config.mask_of(feature), config.prediction.weight_maps]
        known.append(_outcome(book, dict.fromkeys(part.stage for part in sources), "predict", what))
    return None if None in known else fingerprint(known, book.study.cohort["split"].tolist(), *parts)


def target_names(study: Study) -> list[str]:
    """The phenotypes to predict: those of study.yaml, or all numeric ones that vary."""
    if study.config.prediction.targets:
        return list(study.config.prediction.targets)
    table = study.people
    numeric = [name for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
    return [name for name in numeric if table[name].min() < table[name].max()]


def target_unit(target: str) -> str:
    """A target as the name of its receipt and tables, of whatever characters it is."""
    return quote(target, safe="")


def compares(study: Study) -> bool:
    """Whether feature sets are compared with each other."""
    return bool(study.config.prediction.repeats) and len(study.config.feature_sets()) > 1


def _scores(book: Ledger, _: str) -> Owed:
    stages = [f"predict/{feature_folder(feature)}" for feature in book.study.config.feature_sets()]
    return {MODEL: {"scores": _outcome(book, stages, "scores")}}


def _report(book: Ledger, _: str) -> Owed:
    """A report tells what there is, finished or not."""
    known = []
    for stage in stages(book.study):
        if stage != "report":
            one = book.account(stage)
            counts = [sorted(one.subjects(status)) for status in ("done", "failed", "excluded")]
            known.append([stage, dict(one.owed), counts])
    storage = book.study.storage
    beside = [list(storage.stamps(f"receipts/{verb}").items()) for verb in ("transfer", "interpret")]
    left_out = storage.read(LEFT_OUT).hex() if storage.exists(LEFT_OUT) else ""
    shown = [__version__, to_yaml(book.study.config), fingerprint(left_out)]
    return {MODEL: {"report": fingerprint(FORMAT, "report", shown, known, beside)}}


def _outcome(book: Ledger, needed: Iterable[str], *parts: object) -> str | None:
    """Hash of all results of some stages; None while one of them is unfinished."""
    digests: list[object] = []
    for stage in needed:
        one = book.account(stage)
        if one.pending():
            return None
        digests.append([stage, dict(one.owed), sorted(one.subjects("done"))])
    return fingerprint(FORMAT, digests, *parts)


OWED: dict[str, Callable[[Ledger, str], Owed]] = {
    "connectomes": _connectomes,
    "contrasts": _contrasts,
    "train": _train,
    "synthesize": _synthesize,
    "evaluate": _evaluate,
    "comparison": _comparison,
    "predict": _predict,
    "scores": _scores,
    "report": _report,
}
