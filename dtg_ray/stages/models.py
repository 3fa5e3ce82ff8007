"""The models of a study as files: `models/<name>/model.safetensors` and, written last, `model.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dtg_ray import __version__
from dtg_ray.config import BaselineConfig, FinetunedConfig, NetworkConfig, fingerprint, training_settings
from dtg_ray.errors import ConfigError, MissingFileError, ModelError
from dtg_ray.models import complete_config
from dtg_ray.models.artifact import Model, NetworkModel, dump, load
from dtg_ray.store.files import Storage
from dtg_ray.study import Study


def read_model(storage: Storage, folder: str) -> tuple[Model, dict[str, Any]]:
    """A model from its folder, with what its model.json says.

    Raises
    ------
    MissingFileError
        When there is none.
    ModelError
        When its files are damaged.
    """
    try:
        description = json.loads(storage.read(f"{folder}/model.json"))
    except ValueError as error:
        raise ModelError(f"{storage.uri(folder)}/model.json: not JSON: {error}") from error
    return load(storage.read(f"{folder}/model.safetensors"), description), description


def load_model(study: Study, name: str) -> Model:
    """A trained model of a study.

    Raises
    ------
    MissingFileError
        When it has not been trained.
    ModelError
        When its files are damaged, or made for another grid, ROI set or list of contrasts.
    """
    model, _ = read_model(study.storage, f"models/{name}")
    check_fit(study, name, model)
    return model


def save_model(study: Study, folder: str, model: Model, provenance: Mapping[str, Any]) -> str:
    """Write the weights, then model.json: what has no model.json is no model. Returns the hash of the weights."""
    tensors, description = dump(model)
    study.storage.write(f"{folder}/model.safetensors", tensors)
    document = {
        **description,
        "provenance": {"dtg_ray": __version__, "rois": study.space_fingerprint, **provenance},
    }
    study.storage.write(f"{folder}/model.json", json.dumps(document, indent=1).encode())
    return str(description["sha256"])


def settings_of(study: Study, name: str) -> dict[str, Any]:
    """What a model's provenance says of its settings."""
    settings = training_settings(study.config.models[name])
    return {"settings": settings, "settings_fingerprint": fingerprint(settings)}


def provenance_of(study: Study, name: str) -> dict[str, Any] | None:
    """What the model that is there says of itself, None when none is there that can be read."""
    try:
        provenance: dict[str, Any] = json.loads(study.storage.read(f"models/{name}/model.json"))["provenance"]
    except (MissingFileError, ValueError, KeyError):
        return None
    return provenance


def check_fit(study: Study, name: str, model: Model) -> None:
    """Refuse a model made for another grid, ROI set or list of contrasts.

    Raises
    ------
    ModelError
    """
    got = (model.grid.fingerprint, model.n_rois, model.contrasts)
    expected = (study.grid.fingerprint, study.n_rois, study.config.contrasts_of(name))
    if got != expected:
        raise ModelError(
            f"{name}: got a model for grid, ROIs, contrasts {got}, expected {expected} as in the study",
            hint=f"train it again: dtg train {study.uri} --model {name} --overwrite",
        )


def network_config(study: Study, name: str) -> dict[str, Any] | None:
    """What `dtg_ray.models.build` wants to know of a model; None for one that is no network, or not there yet."""
    config, sizes = study.config.models[name], {"n_rois": study.n_rois}
    if isinstance(config, BaselineConfig):
        return None
    sizes["n_contrasts"] = len(study.config.contrasts_of(name))
    if isinstance(config, NetworkConfig):
        return complete_config({**config.model_dump(exclude={"kind", "train"}), **sizes})
    if isinstance(config, FinetunedConfig):
        start = network_config(study, config.start)
        return start and {**start, **sizes}
    try:
        model, _ = read_model(study.storage, f"models/{name}")
    except MissingFileError:
        return None
    return model.config if isinstance(model, NetworkModel) else None


def starting_model(study: Study, name: str) -> NetworkModel:
    """The network that another one starts from.

    Raises
    ------
    ConfigError
        When it is no network.
    MissingFileError, ModelError
        As `load_model`.
    """
    model = load_model(study, name)
    if not isinstance(model, NetworkModel):
        raise ConfigError(f"start: got {name!r}, which is a {model.kind} model, expected a network")
    return model
