"""`dtg finetune`: a network that was trained elsewhere, trained further on the people of this study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from dtg_ray.config import ImportedConfig
from dtg_ray.errors import UsageError
from dtg_ray.stages import import_model, train
from dtg_ray.stages.runtime import Options
from dtg_ray.store.files import normalize
from dtg_ray.study import Study


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
    start = source if source in study.config.models else _imported(study, source)
    if start not in study.config.models:
        import_model.run(study, source, start, config, options)
        study = Study(study.uri)
    name = name or f"{start}-{head}"
    there = study.config.models.get(name)
    entry = {"kind": "finetuned", "start": start, "head": head, "train": dict(settings)}
    if there is not None and there.kind != "finetuned":
        raise UsageError(f"got the name {name!r}, which a {there.kind} model of this study has", hint="choose --name")
    import_model.add_to_config(study, {"models": {name: entry}})
    return train.run(Study(study.uri), options, name)


def _imported(study: Study, source: str) -> str:
    """The name of what is from elsewhere: under which it was imported, or `hcp-unet` for .../hcp/models/unet."""
    source = normalize(source)
    for name, model in study.config.models.items():
        if isinstance(model, ImportedConfig) and model.source == source:
            return name
    path = PurePosixPath(source)
    return f"{path.parts[-3]}-{path.name}" if path.parts[-2:-1] == ("models",) and len(path.parts) > 2 else path.stem
