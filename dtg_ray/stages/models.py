"""The models of a study as files: `models/<name>/model.safetensors` and, written last, `model.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError

from dtg_ray import __version__
from dtg_ray.config import (
    BaselineConfig,
    FinetunedConfig,
    ImportedConfig,
    NetworkConfig,
    fingerprint,
    training_settings,
)
from dtg_ray.errors import ConfigError, MissingFileError, ModelError
from dtg_ray.ledger import model_hash
from dtg_ray.models import complete_config
from dtg_ray.models.artifact import Model, NetworkModel, dump, load
from dtg_ray.store.files import Storage
from dtg_ray.study import Study

DAMAGED = "train or import it again with --overwrite, or put the files back"
"""What to do about files of a model."""


def read_model(storage: Storage, folder: str) -> tuple[Model, dict[str, Any]]:
    """A model from its folder, with what its model.json says.

    Raises
    ------
    MissingFileError
        When there is none.
    ModelError
        When its files are damaged.
    """
    place = storage.uri(folder)
    try:
        description = json.loads(storage.read(f"{folder}/model.json"))
    except ValueError as error:
        raise ModelError(f"{place}/model.json: not JSON: {error}", hint=DAMAGED) from error
    if not isinstance(description, dict):
        kind = type(description).__name__
        raise ModelError(f"{place}/model.json: got a {kind}, expected a description of a model", hint=DAMAGED)
    try:
        return load(storage.read(f"{folder}/model.safetensors"), description), description
    except ModelError as error:
        raise ModelError(f"{place}: {error}", hint=error.hint or DAMAGED) from error
    except (TypeError, AttributeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{place}: got files that are no model ({error}), expected one", hint=DAMAGED) from error


def load_model(study: Study, name: str) -> Model:
    """A trained model of a study.

    Raises
    ------
    ModelError
        When it has not been trained, its files are damaged, a weight is not finite, or it was made for another grid,
        ROI set or list of contrasts, or is not what study.yaml says.
    """
    return load_with_hash(study, name)[0]


def load_with_hash(study: Study, name: str) -> tuple[Model, str]:
    """As `load_model`, with the hash of the very weights that were read: others may take their place at any time."""
    try:
        model, description = read_model(study.storage, f"models/{name}")
    except MissingFileError as error:
        raise ModelError(
            f"models/{name}: got no model there, expected one ({error})",
            hint=f"`dtg train {study.uri} --model {name}` trains it; an imported one: dtg import-model",
        ) from error
    provenance = description.get("provenance")
    check_fit(study, name, model, provenance.get("rois") if isinstance(provenance, dict) else None)
    _check_weights(study, name, model)
    return model, str(description["sha256"])


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
    except (MissingFileError, ValueError, KeyError, TypeError):
        return None
    return provenance


def check_fit(study: Study, name: str, model: Model, rois: str | None) -> None:
    """Refuse a model made for another grid, ROI set or list of contrasts, or not the one that study.yaml asks for.

    Parameters
    ----------
    study : Study
    name : str
    model : Model
    rois : str or None
        Hash of grid and ROI maps it was trained with.

    Raises
    ------
    ModelError
    """
    config = study.config.models[name]
    facts: dict[str, tuple[object, object]] = {
        "the grid": (model.grid.fingerprint, study.grid.fingerprint),
        "numbers of ROIs": (model.n_rois, study.n_rois),
        "ROI maps": (rois, study.space_fingerprint),
        "contrasts": (list(model.contrasts), list(study.config.contrasts_of(name))),
    }
    if not isinstance(config, ImportedConfig):
        facts["models of kind"] = (model.kind, config.kind if isinstance(config, BaselineConfig) else NetworkModel.kind)
        expected = network_config(study, name)
        facts["networks"] = (model.config if expected and isinstance(model, NetworkModel) else expected, expected)
    for what, (got, wanted) in facts.items():
        if got != wanted:
            again = f"train it again: dtg train {study.uri} --model {name} --overwrite"
            raise ModelError(
                f"models/{name}: got a model that does not fit the study: of {what} it has {got}, expected {wanted}",
                hint="import it again: dtg import-model" if isinstance(config, ImportedConfig) else again,
            )


def _check_weights(study: Study, name: str, model: Model) -> None:
    """Refuse a network with a weight that is not finite: all of its maps would be NaN."""
    if not isinstance(model, NetworkModel):
        return
    for key, values in model.network.state_dict().items():
        if not torch.isfinite(values).all():
            raise ModelError(
                f"models/{name}: got weights that are not finite ({key}), expected numbers",
                hint=f"train it again: dtg train {study.uri} --model {name} --overwrite",
            )


def refuse_damaged(study: Study, name: str) -> None:
    """Refuse a model.json that is there but says nothing: its model would count as one that is still to be trained.

    Raises
    ------
    ModelError
    """
    if model_hash(study, name) is None and study.storage.exists(f"models/{name}/model.json"):
        load_model(study, name)


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
    ModelError
        As `load_model`.
    """
    model = load_model(study, name)
    if not isinstance(model, NetworkModel):
        raise ConfigError(f"start: got {name!r}, which is a {model.kind} model, expected a network")
    return model
