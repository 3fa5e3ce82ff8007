"""What a study owes: the units of every stage, the fingerprint each has today, and which receipts hold.

Nothing here looks at arrays: "done" means a receipt with today's fingerprint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dtg_ray.config import FinetunedConfig, ImportedConfig, fingerprint, training_settings
from dtg_ray.errors import MissingFileError
from dtg_ray.store.receipts import Receipts

if TYPE_CHECKING:
    from dtg_ray.study import Study

log = logging.getLogger(__name__)
FORMAT = 2
"""Raised when the meaning of a stage's output changes, so that old results are made again."""
MODEL = "model"


@dataclass(frozen=True)
class Account:
    """One stage: what it owes and what it has.

    Parameters
    ----------
    stage : str
        For example `synthesize/unet`.
    owed : dict of unit to fingerprint
        None where the stage before has not got that far.
    rows : DataFrame
        The rows of all receipts that hold today.
    """

    stage: str
    owed: Mapping[str, str | None]
    rows: pd.DataFrame

    @property
    def settled(self) -> set[str]:
        """Units whose receipt holds."""
        return set(self.rows["unit"])

    def pending(self, *, retry_failed: bool = False) -> list[str]:
        """Units to do, in order; with `retry_failed` those with a failed subject, or one that broke a rule, too."""
        again = set(self.rows.loc[self.rows["error_type"] != "", "unit"]) if retry_failed else set()
        return [unit for unit in self.owed if unit not in self.settled or unit in again]

    def subjects(self, status: str) -> list[str]:
        """Subjects with a status, in no particular order."""
        return list(self.rows.loc[self.rows["status"] == status, "subject"])


def block_unit(block: int) -> str:
    """Name of a block's receipt."""
    return f"block-{block:05d}"


def block_number(unit: str) -> int:
    """The block of a receipt's name."""
    return int(unit.removeprefix("block-"))


def account(study: Study, stage: str) -> Account:
    """The account of a stage: `connectomes`, `contrasts`, `train/M`, `synthesize/M`, `evaluate/M`, `predict/F`."""
    verb, _, name = stage.partition("/")
    owed: dict[str, str | None] = OWED[verb](study, name)
    rows = Receipts(study.storage, stage).read([unit for unit, today in owed.items() if today])
    if verb == "train" and model_hash(study, name) is None:
        rows = rows[:0]  # model.json is what commits a model: somebody took it away
    valid = rows["fingerprint"] == rows["unit"].map(owed) if len(rows) else np.zeros(0, dtype=bool)
    return Account(stage, owed, rows[valid].reset_index(drop=True))


def stages(study: Study) -> list[str]:
    """All stages of a study, in the order in which they run."""
    models = list(study.config.models)
    return [
        "connectomes",
        "contrasts",
        *(f"train/{model}" for model in models),
        *(f"synthesize/{model}" for model in models),
        *(f"evaluate/{model}" for model in models),
        *(f"predict/{feature_folder(feature)}" for feature in study.config.feature_sets()),
        "report",
    ]


def feature_folder(feature: str) -> str:
    """`synthetic:unet` as it is written in paths: `synthetic-unet`."""
    return feature.replace(":", "-")


def status(study: Study) -> pd.DataFrame:
    """Counts per stage: units, settled units, and subjects done, failed, excluded and pending, which add up to all."""
    lines = []
    for stage in stages(study):
        one = account(study, stage)
        counts = {key: len(one.subjects(key)) for key in ("done", "failed", "excluded")}
        by_block = stage.split("/")[0] in {"connectomes", "contrasts", "synthesize"}
        expected = len(study.cohort) if by_block else len(one.owed)
        counts["pending"] = expected - sum(counts.values())
        lines.append({"stage": stage, "units": len(one.owed), "settled": len(one.settled), **counts})
    return pd.DataFrame(lines)


def failures(study: Study) -> pd.DataFrame:
    """Everybody who failed or broke a rule of `quality`: stage, subject, status, error_type, message."""
    rows = [account(study, stage).rows for stage in stages(study)]
    return troubles(pd.concat(rows, ignore_index=True))


def troubles(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of some rows that failed or broke a rule: stage, subject, status, error_type, message."""
    columns = ["stage", "subject", "status", "error_type", "message"]
    return rows.loc[rows["error_type"] != "", columns].reset_index(drop=True)


def model_hash(study: Study, model: str) -> str | None:
    """Hash of a trained model's weights, None before it is trained."""
    try:
        return str(json.loads(study.storage.read(f"models/{model}/model.json"))["sha256"])
    except MissingFileError:
        return None
    except (ValueError, KeyError):
        log.warning("%s: damaged; the model counts as not there", study.storage.uri(f"models/{model}/model.json"))
        return None


def _connectomes(study: Study, _: str = "") -> dict[str, str | None]:
    shared = fingerprint(
        FORMAT,
        "connectomes",
        study.config.connectomes,
        study.config.cleaning,
        study.config.quality,
        study.space_fingerprint,
    )
    return _by_block(study, shared, "rest")


def _contrasts(study: Study, _: str = "") -> dict[str, str | None]:
    return _maps(study, "contrasts")


def _maps(study: Study, column: str) -> dict[str, str | None]:
    """Blocks of measured maps, of a column of the cohort."""
    shared = fingerprint(
        FORMAT,
        column,
        list(study.config.contrasts),
        study.space_fingerprint,
        study.config.synthesis.slab,
    )
    return _by_block(study, shared, column)


def _by_block(study: Study, shared: str, files: str) -> dict[str, str | None]:
    """Every block with the hash of what its subjects' files are."""
    owed: dict[str, str | None] = {}
    for block in study.blocks():
        rows = study.block(block)
        inputs = [[subject, _plain(entry)] for subject, entry in zip(rows["subject"], rows[files], strict=True)]
        owed[block_unit(block)] = fingerprint(shared, inputs)
    return owed


def _plain(entry: Any) -> object:
    """Scans as JSON can hold them: a list of runs, or a mapping of maps."""
    if isinstance(entry, Mapping):
        return {name: scan.entry() for name, scan in entry.items()}
    return [scan.entry() for scan in entry]


def _train(study: Study, model: str) -> dict[str, str | None]:
    """A model depends on its settings and on who is trained and validated on, not on who turned out unreadable."""
    config = study.config.models[model]
    if isinstance(config, ImportedConfig):
        return {MODEL: fingerprint(FORMAT, "imported", config.sha256)}
    if config.kind == "retest":
        return {MODEL: fingerprint(FORMAT, "retest", list(study.config.contrasts), study.space_fingerprint)}
    start = model_hash(study, config.start) if isinstance(config, FinetunedConfig) else ""
    if start is None:
        return {MODEL: None}
    taking_part = study.cohort[study.cohort["split"].isin(["train", "validation"])]
    blocks = {block_unit(int(block)) for block in taking_part["block"]}
    inputs = [
        [unit, today]
        for owed in (_connectomes(study), _contrasts(study))
        for unit, today in owed.items()
        if unit in blocks
    ]
    members = taking_part[["subject", "split"]].to_numpy().tolist()
    return {MODEL: fingerprint(FORMAT, "train", training_settings(config), inputs, members, start)}


def _synthesize(study: Study, model: str) -> dict[str, str | None]:
    """A block's maps depend on the model and on whose connectomes there are; of second visits on the files alone."""
    weights = model_hash(study, model)
    if study.config.models[model].kind == "retest":
        owed_maps = _maps(study, "retest")
        return owed_maps if weights else dict.fromkeys(owed_maps)
    connectomes = account(study, "connectomes")
    done = connectomes.rows[connectomes.rows["status"] == "done"].groupby("unit")["subject"].agg(sorted).to_dict()
    slab = study.config.synthesis.slab
    owed: dict[str, str | None] = {}
    for unit, today in connectomes.owed.items():
        ready = weights is not None and unit in connectomes.settled
        owed[unit] = fingerprint(FORMAT, "synthesize", weights, today, done.get(unit, []), slab) if ready else None
    return owed


def _evaluate(study: Study, model: str) -> dict[str, str | None]:
    return {MODEL: _outcome(study, [f"synthesize/{model}", "contrasts"], "evaluate")}


def _predict(study: Study, folder: str) -> dict[str, str | None]:
    source = folder.removeprefix("synthetic-")
    needed = {"measured": "contrasts", "connectome": "connectomes"}.get(folder, f"synthesize/{source}")
    settings = study.config.prediction.model_dump(mode="json", exclude={"features"})
    table = pd.util.hash_pandas_object(study.phenotypes.astype("str"), index=True).to_numpy().tolist()
    splits = study.cohort["split"].tolist()
    return {MODEL: _outcome(study, [needed], "predict", settings, fingerprint(table), splits)}


def _report(study: Study, _: str = "") -> dict[str, str | None]:
    return {MODEL: _outcome(study, [*(f"evaluate/{model}" for model in study.config.models), "contrasts"], "report")}


def _outcome(study: Study, needed: list[str], *parts: object) -> str | None:
    """Hash of all results of some stages; None while one of them is unfinished."""
    digests: list[object] = []
    for stage in needed:
        one = account(study, stage)
        if one.pending():
            return None
        digests.append([stage, dict(one.owed), sorted(one.subjects("done"))])
    return fingerprint(FORMAT, digests, *parts)


OWED: dict[str, Callable[[Study, str], dict[str, str | None]]] = {
    "connectomes": _connectomes,
    "contrasts": _contrasts,
    "train": _train,
    "synthesize": _synthesize,
    "evaluate": _evaluate,
    "predict": _predict,
    "report": _report,
}
