"""`dtg finetune`: a network that was trained elsewhere, trained further on the people of this study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from dtg_ray import ledger
from dtg_ray.config import FinetunedConfig, ImportedConfig
from dtg_ray.errors import ConfigError, MissingFileError, UsageError
from dtg_ray.stages import import_model, train
from dtg_ray.stages.maps import usable
from dtg_ray.stages.models import save_model
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.training.checkpoints import differences
from dtg_ray.store.files import normalize, read
from dtg_ray.study import CONFIG, Study


def run(
    study: Study,
    source: str,
    head: str,
    name: str | None,
    settings: Mapping[str, Any],
    config: str | None,
    options: Options,
) -> pd.DataFrame:
    """Write a fine-tuned model into study.yaml, and train it; returns the rows of its receipt.

    Parameters
    ----------
    study : Study
    source : str
        A model of this study, or what `dtg import-model` takes, which is imported first.
    head : "frozen" or "new"
    name : str, optional
        By default `<start>-<head>`.
    settings : mapping
        Of `TrainConfig`.
    config : str, optional
        For a checkpoint: see `dtg_ray.stages.import_model`.
    options : Options

    Raises
    ------
    UsageError
        When another model of that name is there.
    ConfigError
        When a setting does not hold, or none of the study's contrasts is predicted with a frozen head.
    """
    start = source if source in study.config.models else _name_of(study, normalize(source))
    new: dict[str, BaseModel] = {}
    if start != source and start not in study.config.models:
        model, origin, new[start] = import_model.read_source(study, normalize(source), config)
    name = name or f"{start}-{head}"
    new[name] = _entry({"kind": "finetuned", "start": start, "head": head, "train": dict(settings)}, name)
    _check_name(study, name, new[name], options)
    changed = import_model.with_models(study, new)
    if options.dry_run:
        Plan(f"train/{name}", 1, 1, len(usable(ledger.Ledger(study), "train"))).show(options)
        return pd.DataFrame(columns=["stage", "subject", "status", "error_type", "message"])
    if start in new:
        save_model(study, f"models/{start}", model, origin)
    study.storage.write(CONFIG, changed)
    return train.run(Study(study.uri), options, name)


def _entry(document: Mapping[str, Any], name: str) -> FinetunedConfig:
    try:
        return FinetunedConfig.model_validate(document)
    except ValidationError as error:
        lines = [f"models.{name}.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError("; ".join(lines)) from error


def _check_name(study: Study, name: str, entry: BaseModel, options: Options) -> None:
    """Leave another model of that name alone."""
    there = study.config.models.get(name)
    if there is None or there == entry:
        return
    if not (options.overwrite and isinstance(there, FinetunedConfig)):
        changed = differences(there.model_dump(mode="json"), entry.model_dump(mode="json"))
        hint = "choose another --name" + (", or --overwrite" if isinstance(there, FinetunedConfig) else "")
        raise UsageError(f"got the name {name!r}, which a model of this study has that differs in {changed}", hint=hint)


def _name_of(study: Study, source: str) -> str:
    """The name of what is from elsewhere: under which it was imported, or `hcp-unet` for .../hcp/models/unet.

    Raises
    ------
    UsageError
        When another model has that name, or what was imported has changed where it came from.
    """
    for name, model in study.config.models.items():
        if isinstance(model, ImportedConfig) and model.source == source:
            _check_unchanged(model, name)
            return name
    path = PurePosixPath(source)
    is_folder = path.parts[-2:-1] == ("models",) and len(path.parts) > 2
    name = f"{path.parts[-3]}-{path.name}" if is_folder else path.stem
    if name in study.config.models:
        raise UsageError(
            f"got {source}, which would be called {name!r} as another model of this study",
            hint=f"import it first: dtg import-model {study.uri} {source} --name NAME, then --from NAME",
        )
    return name


def _check_unchanged(model: ImportedConfig, name: str) -> None:
    """What was imported has to be what is there now; checkpoints are taken to stay as they are."""
    if model.source.endswith((".ckpt", ".pt", ".pth")):
        return
    try:
        now = json.loads(read(f"{model.source}/model.json"))["sha256"]
    except (MissingFileError, ValueError, KeyError):
        return  # the study has its own copy
    if now != model.sha256:
        raise UsageError(
            f"got {model.source}, which has changed since it was imported as {name!r}",
            hint=f"--from {name} starts from what was imported; dtg import-model --name takes in the new one",
        )
