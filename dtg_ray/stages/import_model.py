"""`dtg import-model`: a checkpoint of the published code, or a model of another study, becomes a model of this one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtg_ray.cohort.layouts.hcp import contrast_copes
from dtg_ray.config import ImportedConfig, parse, read_yaml, to_yaml
from dtg_ray.errors import ConfigError, ModelError, UsageError
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import published
from dtg_ray.models.artifact import Model, NetworkModel, dump
from dtg_ray.stages.models import provenance_of, read_model, save_model
from dtg_ray.stages.runtime import Options
from dtg_ray.store.files import Storage, normalize, read
from dtg_ray.study import CONFIG, Study


class PublishedModel(BaseModel):
    """What a checkpoint of the published code does not say of itself, under the names of its command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str = Field(description="attentionunet, unet, attentionunetminimal, unetminimal, resunet or vnet")
    max_depth: int
    n_conv_layers: int
    fdim: int
    n_channels: int = 50
    n_out_channels: int = 47
    activation: str = "relu"
    batch_norm: bool = True
    contrasts: tuple[str, ...] = Field((), description="names of the outputs; of 47 by default those of HCP")
    resolution: float | None = Field(2.0, description="of the MNI152 grid it was trained on, mm; null: this study's")
    mask_input: bool = Field(True, description="by grey matter, as the published predictor does")


def run(study: Study, source: str, name: str, config: str | None, options: Options) -> str:
    """Read a model, check that it fits, write it into the study and, last, into study.yaml.

    Parameters
    ----------
    study : Study
    source : str
        URI of a Lightning checkpoint (.ckpt), or of the folder of a model, such as `s3://bucket/hcp/models/unet`.
    name : str
        Of the model in this study.
    config : str, optional
        URI of a YAML file with the fields of `PublishedModel`; for a checkpoint alone.
    options : Options

    Returns
    -------
    str
        Hash of the weights.

    Raises
    ------
    UsageError
        When a model of that name is there, or the source is not of a kind that goes with `config`.
    ModelError
        When the source cannot be read, holds pickled code, or was made for another grid or ROI set.
    """
    _check_name(study, name, options)
    model, origin, entry = read_source(study, normalize(source), config)
    changed = with_models(study, {name: entry})
    sha256 = save_model(study, f"models/{name}", model, origin)
    study.storage.write(CONFIG, changed)
    return sha256


def read_source(study: Study, source: str, config: str | None) -> tuple[Model, dict[str, Any], ImportedConfig]:
    """A model from elsewhere that fits a study, its provenance, and its entry in study.yaml; nothing is written."""
    if re.search(r"\.(ckpt|pt|pth)$", source):
        if config is None:
            raise UsageError(
                f"got {source} without --config, expected a YAML file with architecture, max_depth, n_conv_layers, "
                "fdim, n_channels, n_out_channels, as the network was trained with"
            )
        model, origin = _published(study, source, _settings(config))
    elif config is not None:
        raise UsageError(f"got --config with {source}, expected it with a checkpoint (.ckpt)")
    else:
        model, origin = _from_folder(study, source)
    if model.kind == "retest":
        raise UsageError(f"got {source}, the maps of second visits, expected a model that predicts")
    sha256 = dump(model)[1]["sha256"]
    entry = ImportedConfig(kind="imported", source=source, sha256=sha256, contrasts=model.contrasts)
    return model, {"source": source, **origin}, entry


def with_models(study: Study, models: Mapping[str, BaseModel]) -> bytes:
    """study.yaml with some models added or replaced.

    Raises
    ------
    ConfigError
        When the result does not hold.
    """
    document = read_yaml(study.storage.read(CONFIG).decode(), study.storage.uri(CONFIG))
    entries = {name: model.model_dump(mode="json") for name, model in models.items()}
    return to_yaml(parse({**document, "models": {**document["models"], **entries}})).encode()


def _check_name(study: Study, name: str, options: Options) -> None:
    """Refuse to replace a model, unless it is told to and the old one was imported too."""
    there = study.config.models.get(name)
    if there is None and provenance_of(study, name) is None:
        return
    if not (options.overwrite and (there is None or isinstance(there, ImportedConfig))):
        hint = "choose another --name" + (", or --overwrite" if isinstance(there, ImportedConfig) else "")
        raise UsageError(f"got the name {name!r}, which a model of this study has", hint=hint)


def _settings(path: str) -> PublishedModel:
    document = read_yaml(read(normalize(path)).decode(), path)
    try:
        return PublishedModel.model_validate(document)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{path}: does not hold: " + "; ".join(lines)) from error


def _published(study: Study, source: str, settings: PublishedModel) -> tuple[Model, dict[str, Any]]:
    """A Lightning checkpoint as a model on the study's grid."""
    _check_size(study, source, settings)
    contrasts = settings.contrasts or tuple(contrast_copes())
    if len(contrasts) != settings.n_out_channels:
        raise ConfigError(
            f"{source}: got {len(contrasts)} names of contrasts for {settings.n_out_channels} outputs, "
            "expected one for each: `contrasts` in --config"
        )
    chosen = settings.model_dump(exclude={"contrasts", "resolution", "mask_input"})
    config = published.published_config(**chosen)
    data = read(source)
    network = published.read_network(data, config, source)
    mask = study.grey_matter if settings.mask_input else None
    origin = {"file_sha256": hashlib.sha256(data).hexdigest(), "settings": settings.model_dump(mode="json")}
    return NetworkModel(network, config, contrasts, study.grid, mask), origin


def _check_size(study: Study, source: str, settings: PublishedModel) -> None:
    """A checkpoint says nothing of grid and ROIs: its settings do."""
    if settings.n_channels != study.n_rois:
        raise ModelError(
            f"{source}: got a network for {settings.n_channels} ROIs, expected {study.n_rois} as the study"
        )
    if settings.resolution is None:
        return
    if study.grid.fingerprint != Grid.mni152(settings.resolution).fingerprint:
        raise ModelError(
            f"{source}: got a network trained on the MNI152 grid of {settings.resolution:g} mm, expected the "
            f"study's, of {'x'.join(map(str, study.grid.shape))} voxels",
            hint="if it was trained on this very grid, say `resolution: null` in --config",
        )


def _from_folder(study: Study, source: str) -> tuple[Model, dict[str, Any]]:
    """A model of another study."""
    model, description = read_model(Storage(source.rsplit("/", 1)[0]), source.rsplit("/", 1)[1])
    rois = description.get("provenance", {}).get("rois")
    if model.grid.fingerprint != study.grid.fingerprint or model.n_rois != study.n_rois:
        raise ModelError(
            f"{source}: got a model for {model.n_rois} ROIs on a grid of {'x'.join(map(str, model.grid.shape))} "
            f"({model.grid.fingerprint}), expected {study.n_rois} on {'x'.join(map(str, study.grid.shape))} "
            f"({study.grid.fingerprint}) as the study"
        )
    if rois != study.space_fingerprint:
        raise ModelError(
            f"{source}: got a model for ROI maps {rois}, expected those of the study, {study.space_fingerprint}",
            hint="make the study with the ROI maps that the model was trained with: `dtg init --rois`",
        )
    return model, {"imported": description.get("provenance", {})}
