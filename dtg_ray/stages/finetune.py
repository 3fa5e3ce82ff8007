"""`dtg finetune`: a network that was trained elsewhere, trained further on the people of this study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from dtg_ray.errors import UsageError
from dtg_ray.stages import import_model, train
from dtg_ray.stages.runtime import Options
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
    start = source
    if source not in study.config.models:
        start = PurePosixPath(source.rstrip("/")).stem
        import_model.run(study, source, start, config, options)
        study = Study(study.uri)
    name = name or f"{start}-{head}"
    there = study.config.models.get(name)
    entry = {"kind": "finetuned", "start": start, "head": head, "train": dict(settings)}
    if there is not None and there.kind != "finetuned":
        raise UsageError(f"got the name {name!r}, which a {there.kind} model of this study has", hint="choose --name")
    import_model.add_to_config(study, {"models": {name: entry}})
    return train.run(Study(study.uri), options, name)
