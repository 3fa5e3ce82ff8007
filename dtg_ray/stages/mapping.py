"""From the connectomes of a block to the maps of one or more models: computed together, committed model by model."""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.config import EnsembleConfig
from dtg_ray.models.artifact import Model, NetworkModel
from dtg_ray.models.inference import reuse_memory
from dtg_ray.stages.blocks import commit, kept_rows, recorded
from dtg_ray.stages.connectomes import ConnectomeWorker, Windows
from dtg_ray.stages.maps import recorded_windows
from dtg_ray.stages.models import load_model
from dtg_ray.store.arrays import write_rows
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.study import Study

Maps = NDArray[np.float32]
log = logging.getLogger(__name__)
HALF = float(np.finfo(np.float16).max)


def array_name(model: str) -> str:
    """Where the maps of a model are."""
    return f"synthetic/{model}.zarr"


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


NOTHING: dict[str, dict[str, Prediction]] = {}


def arrays_of(study: Study) -> dict[str, str]:
    """The arrays of every model's maps, and what is in them."""
    maps = {"maps": "contrast map"}
    return {**maps, "spread": "standard deviation"} if study.config.synthesis.spread else maps


def members_of(study: Study, name: str) -> Sequence[str]:
    """The models an ensemble is made of; of any other model itself."""
    config = study.config.models[name]
    return config.members if isinstance(config, EnsembleConfig) else [name]


def summarized(maps: Maps) -> Prediction:
    """Mean and standard deviation over the first axis of maps (N, C, V)."""
    if len(maps) == 1:
        return Prediction(maps[0], np.full_like(maps[0], np.nan))
    return Prediction(maps.mean(axis=0), maps.std(axis=0, ddof=1))


class Predictor:
    """The models of a study, each loaded once, in the process and on the device that use them.

    Parameters
    ----------
    study : Study
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._models: dict[str, Model] = {}

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
        """A model, ready; with a set number of threads, so that all actors compute alike."""
        if name not in self._models:
            import torch

            config, contrasts = self.study.config.synthesis, self.study.config.maps_of(name)
            torch.set_num_threads(config.cpus_per_actor)
            reuse_memory()
            model = load_model(self.study, name)
            if isinstance(model, NetworkModel):
                device = "cuda" if config.gpus_per_actor else "cpu"
                model.prepare_for_inference(device, config.precision, contrasts=contrasts, compile=config.compile)
            elif model.contrasts != contrasts:
                model = model.select(contrasts)
            self._models[name] = model
        return self._models[name]


@dataclass(frozen=True)
class Block:
    """A block and what is known of its connectomes before its maps are made.

    Parameters
    ----------
    study : Study
    number : int
    connectomes : mapping of subject to fingerprint
        Today's.
    rows : mapping of subject to Row
        What the receipt says of them that holds.
    read : dict
        What was read of the receipts of maps.
    """

    study: Study
    number: int
    connectomes: Mapping[str, str | None]
    rows: Mapping[str, Row]
    read: dict[str, dict[str, Row]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Name of its receipts."""
        return ledger.block_unit(self.number)

    def done(self, model: str) -> dict[str, Row]:
        """Whose maps of a model are there, and hold; read once."""
        if model not in self.read:
            self.read[model] = self._read(model)
        return self.read[model]

    def _read(self, model: str) -> dict[str, Row]:
        of = ledger.synthesis_fingerprint(self.study, model)
        today = {name: of(self.connectomes[name], row.status == "done") for name, row in self.rows.items()}
        holding = receipts_of(self.study, model).holding(self.unit, today)
        return {subject: row for subject, row in holding.items() if row.status == "done"}

    def missing(self, models: Iterable[str]) -> set[str]:
        """Whose maps are to be made by one of some models, where there is a connectome."""
        return set[str]().union(*(self.connectomes.keys() - self.done(model) for model in models))


def receipts_of(study: Study, model: str) -> Receipts:
    """Of the maps of a model."""
    return Receipts(study.storage, f"synthesize/{model}")


class BlockMaps:
    """The maps of one model for one block, until they are committed.

    Parameters
    ----------
    block : Block
    model : str
    """

    def __init__(self, block: Block, model: str) -> None:
        study = block.study
        self.model, self._block, self._rows = model, block, study.rows(block.number)
        self._fingerprint = ledger.synthesis_fingerprint(study, model)
        self._receipts = receipts_of(study, model)
        self._place = (study.block(block.number)["row"] - self._rows.start).astype(int).to_dict()
        self._group = zarr.open_group(study.storage.zarr_store(array_name(model)), mode="r+", zarr_format=3)
        self._done = block.done(model)
        self._attempt = self._receipts.withdraw(block.unit, self._done.values(), socket.gethostname())
        places = [self._place[subject] for subject in self._done]
        self._values = {name: kept_rows(self._group[name], 1, self._rows, places) for name in arrays_of(study)}
        self._new: list[Row] = []

    def add(self, connectome: Row, windows: Windows | None, predict: Callable[[str, Windows], Prediction]) -> None:
        """Take in one subject: what happened to the connectome, and its windows (W, K, V) where there is one."""
        subject = connectome.subject
        if subject in self._done:
            return
        row = Row(subject, "excluded", message=f"{subject}: no connectome, see stage connectomes")
        if windows is not None:
            row.message = ""
            with recorded(row):
                prediction = predict(self.model, windows)
                row.qc = {"windows": float(len(windows)), "mean_abs": float(np.abs(prediction.mean).mean())}
                self._put(subject, prediction)
        row.fingerprint = self._fingerprint(self._block.connectomes[subject], connectome.status == "done") or ""
        self._new.append(row)

    def _put(self, subject: str, prediction: Prediction) -> None:
        made = {"maps": prediction.mean, "spread": prediction.spread}
        for name, values in self._values.items():
            values[:, self._place[subject]] = np.clip(made[name], -HALF, HALF)

    def commit(self) -> list[Row]:
        """Write the maps, then the receipt; returns what is new in it."""
        for name, values in self._values.items():
            write_rows(self._group[name], 1, self._rows, values)
        rows = [*self._done.values(), *self._new]
        made = {row.subject: row.fingerprint for row in rows}
        today = {subject: made[subject] for subject in self._block.connectomes}
        commit(self._receipts, self._block.unit, rows, today, self._attempt)
        return self._new


class MapWorker:
    """Makes the maps of blocks from their connectomes, whoever made those.

    Parameters
    ----------
    uri : str
        The study's.
    models : mapping of unit to list of str
        Whose maps are to be made of each block.
    """

    def __init__(self, uri: str, models: Mapping[str, Sequence[str]]) -> None:
        self.study, self.models = Study(uri), models
        self.connectomes = ConnectomeWorker(uri)
        self.predictor = Predictor(self.study)

    def block(self, unit: str) -> Block:
        """A block, as its receipts are now."""
        number = ledger.block_number(unit)
        return Block(self.study, number, self.connectomes.today(number), self.connectomes.holding(number))

    def finish(
        self,
        block: Block,
        connectomes: Iterable[tuple[Row, Windows | None]],
        ready: Mapping[str, dict[str, Prediction]] = NOTHING,
    ) -> dict[str, Any]:
        """Make the maps of a block, unless they are ready, by subject and model, and commit them."""
        jobs = [BlockMaps(block, name) for name in self.models[block.unit]]
        rows = []
        for row, windows in connectomes:
            predict = functools.partial(self.predictor.predict, made=ready.get(row.subject, {}))
            for job in jobs:
                job.add(row, windows, predict)
            rows.append(row)
        for job in jobs:
            rows += job.commit()
        failed = {row.subject for row in rows if row.status == "failed"}
        return {"unit": block.unit, "subjects": len(block.connectomes), "failed": len(failed)}


class SynthesisWorker(MapWorker):
    """Makes connectomes and maps of blocks: a crew that does it all, so that no core waits for another.

    Parameters
    ----------
    uri, models
        As `MapWorker`.
    keep : bool
        Store the connectomes that are made on the way.
    retry : bool
        Try again whose connectome failed.
    """

    def __init__(
        self, uri: str, models: Mapping[str, Sequence[str]], *, keep: bool = False, retry: bool = False
    ) -> None:
        super().__init__(uri, models)
        self.keep, self.retry = keep, retry

    def __call__(self, unit: str) -> dict[str, Any]:
        """Do one block."""
        block = self.block(unit)
        return self.finish(block, self.stream(block))

    def stream(self, block: Block) -> Iterator[tuple[Row, Windows | None]]:
        """The connectomes of a block, one subject after the other."""
        needed = block.missing(self.models[block.unit])
        return self.connectomes.stream(block.number, block.rows, needed, keep=self.keep, retry=self.retry)


class ConnectomeSource(SynthesisWorker):
    """The first of two crews: it makes the connectomes of a block and hands them on in memory."""

    def __call__(self, unit: str) -> dict[str, Any]:
        """A block's name, and (n, W, K, V) float16 of the n subjects who have a connectome that is needed."""
        block = self.block(unit)
        shape = self.connectomes.arrays[0].shape[1:]
        found = {row.subject: padded(windows, shape) for row, windows in self.stream(block) if windows is not None}
        windows = np.stack(list(found.values())) if found else np.empty((0, *shape), dtype=np.float16)
        return {"unit": unit, "subjects": "\n".join(found), "connectomes": windows}


class MapSink(MapWorker):
    """The second of two crews: it takes the connectomes of a block and makes the maps."""

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Do one block."""
        block = self.block(str(given["unit"]))
        padded = zip(str(given["subjects"]).splitlines(), given["connectomes"], strict=True)
        found = {subject: recorded_windows(one) for subject, one in padded}
        try:
            ready = self.predictor.predict_together(self.models[block.unit], found)
        except Exception:  # whoever is to blame fails alone, below
            log.exception("%s: trying its subjects one by one", block.unit)
            ready = {}
        return self.finish(block, ((row, found.get(subject)) for subject, row in block.rows.items()), ready)


def padded(windows: Windows, shape: tuple[int, ...]) -> Windows:
    """Windows (w, K, V) as (W, K, V): NaN where none was recorded."""
    whole = np.full(shape, np.nan, dtype=windows.dtype)
    whole[: len(windows)] = windows
    return whole
