"""The models of a study where they are used: loaded once, again when they change; maps of a subject or a block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.config import EnsembleConfig, fingerprint
from dtg_ray.errors import PredictionError
from dtg_ray.models.artifact import Model, NetworkModel
from dtg_ray.models.inference import reuse_memory
from dtg_ray.stages.connectomes import Windows
from dtg_ray.stages.models import load_with_hash
from dtg_ray.study import Study

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """The maps of one subject by one model.

    Parameters
    ----------
    mean : (C, V) float32
        Over windows; of an ensemble over its members.
    spread : (C, V) float32
        Standard deviation (n - 1) over windows, or members; NaN where there is one.
    """

    mean: Maps
    spread: Maps


def members_of(study: Study, name: str) -> Sequence[str]:
    """The models an ensemble is made of; of any other model itself."""
    config = study.config.models[name]
    return config.members if isinstance(config, EnsembleConfig) else [name]


def summarized(maps: Maps) -> Prediction:
    """Mean and standard deviation over the first axis of maps (N, C, V)."""
    if len(maps) == 1:
        return Prediction(maps[0], np.full_like(maps[0], np.nan))
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is told by `check_finite`
        return Prediction(maps.mean(axis=0), maps.std(axis=0, ddof=1))


class Predictor:
    """The models of a study, each loaded once, or again when it changed, where they are used.

    Parameters
    ----------
    study : Study
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._models: dict[str, tuple[str, Model]] = {}

    def load(self, name: str) -> str:
        """Have a model ready as it is in the study now; returns the hash of its weights, as `ledger.model_hash`.

        Raises
        ------
        ModelError
            When it is not there, damaged, or does not fit the study: no subject is to blame for that.
        """
        hashes = [self._load(member) for member in members_of(self.study, name)]
        return fingerprint(hashes) if isinstance(self.study.config.models[name], EnsembleConfig) else hashes[0]

    def _load(self, name: str) -> str:
        if name not in self._models or self._models[name][0] != ledger.model_hash(self.study, name):
            self._models[name] = self._read(name)
        return self._models[name][0]

    def predict(self, name: str, windows: Windows, made: dict[str, Prediction]) -> Prediction:
        """The maps of a model from the windows (W, K, V) of a subject.

        `made` are those of other models from the same windows: what ensembles share is computed once.
        """
        if name not in made:
            config = self.study.config.models[name]
            if isinstance(config, EnsembleConfig):
                maps = np.stack([self.predict(member, windows, made).mean for member in config.members])
            else:
                maps = self._model(name).predict(windows)
            made[name] = summarized(maps)
        return made[name]

    def predict_together(
        self, names: Iterable[str], windows: Mapping[str, Windows]
    ) -> dict[str, dict[str, Prediction]]:
        """The same by subject and model, all subjects' windows at once: as many in a batch as a GPU has room for."""
        made: dict[str, dict[str, Prediction]] = {subject: {} for subject in windows}
        if not windows:
            return made
        together = np.concatenate(list(windows.values()))
        ends = np.cumsum([len(one) for one in windows.values()])[:-1]
        members = dict.fromkeys(member for name in names for member in members_of(self.study, name))
        for member in members:
            parts = np.split(self._model(member).predict(together), ends)
            for subject, maps in zip(windows, parts, strict=True):
                made[subject][member] = summarized(maps)
        return made

    def _model(self, name: str) -> Model:
        if name not in self._models:
            self._load(name)
        return self._models[name][1]

    def _read(self, name: str) -> tuple[str, Model]:
        """A model, ready; with a set number of threads, so that all actors compute alike."""
        import torch

        config, contrasts = self.study.config.synthesis, self.study.config.maps_of(name)
        torch.set_num_threads(config.cpus_per_actor)
        reuse_memory()
        model, weights = load_with_hash(self.study, name)
        if isinstance(model, NetworkModel):
            device = "cuda" if config.gpus_per_actor else "cpu"
            model.prepare_for_inference(device, config.precision, contrasts=contrasts, compile=config.compile)
        elif model.contrasts != contrasts:
            model = model.select(contrasts)
        return weights, model


def check_finite(model: str, maps: Maps) -> None:
    """Refuse maps that would stand in the study as if they had never been made.

    Raises
    ------
    PredictionError
    """
    if bad := int((~np.isfinite(maps)).sum()):
        raise PredictionError(
            f"got maps by {model} with {bad} of {maps.size} values that are not finite, expected numbers alone",
            hint="is the connectome unlike those it was trained on? precision: float32 has more room",
        )
