"""From the connectomes of a block to the maps of one or more models: computed together, committed model by model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.config import EnsembleConfig
from dtg_ray.errors import DamagedError
from dtg_ray.float16 import as_float16
from dtg_ray.stages.blocks import commit, kept_rows, recorded, take_back, withdraw
from dtg_ray.stages.connectomes import ConnectomeWorker, Windows
from dtg_ray.stages.maps import recorded_windows
from dtg_ray.stages.predictor import Prediction, Predictor, check_finite
from dtg_ray.store.arrays import erase, read, write_rows
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.study import Study

log = logging.getLogger(__name__)


def array_name(model: str) -> str:
    """Where the maps of a model are."""
    return ledger.array_of(f"synthesize/{model}")


NOTHING: dict[str, dict[str, Prediction]] = {}


def arrays_of(study: Study) -> dict[str, str]:
    """The arrays of every model's maps, and what is in them."""
    maps = {"maps": "contrast map"}
    return {**maps, "spread": "standard deviation"} if study.config.synthesis.spread else maps


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
    weights : mapping of model to str
        Hashes of the weights that make its maps.
    held, read : dict
        What was read of the receipts of maps, and whose maps are whole.
    """

    study: Study
    number: int
    connectomes: Mapping[str, str | None]
    rows: Mapping[str, Row]
    weights: Mapping[str, str | None]
    held: dict[str, dict[str, Row]] = field(default_factory=dict)
    read: dict[str, dict[str, Row]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Name of its receipts."""
        return ledger.block_unit(self.number)

    def done(self, model: str) -> dict[str, Row]:
        """Whose maps of a model are there, and hold; read once."""
        if model not in self.read:
            done = {subject: row for subject, row in self.holding(model).items() if row.status == "done"}
            self.read[model] = self._without_lost(model, done)
        return self.read[model]

    def holding(self, model: str) -> dict[str, Row]:
        """The rows of the receipt of a model's maps that hold; read once."""
        if model not in self.held:
            self.held[model] = self._holding(model)
        return self.held[model]

    def _holding(self, model: str) -> dict[str, Row]:
        of = ledger.synthesis_fingerprint(self.study, self.weights[model])
        today = {name: of(self.connectomes[name], row.status == "done") for name, row in self.rows.items()}
        return receipts_of(self.study, model).holding(self.unit, today)

    def _without_lost(self, model: str, done: dict[str, Row]) -> dict[str, Row]:
        """Those whose maps are whole: the others are made again, for what is kept is written anew with them."""
        for name in arrays_of(self.study) if done else ():
            rows = self.study.rows(self.number)
            places = self.study.positions(list(done)) - rows.start
            try:
                values = read(self.study.storage.open_array(array_name(model), name), (slice(None), rows))
                lost = np.isnan(values).any(axis=(0, 2))[places]
            except DamagedError as error:
                log.warning("%s: its maps are made again: %s", self.unit, error)
                return {}
            done = {
                subject: row
                for gone, (subject, row) in zip(lost, done.items(), strict=True)
                if not gone or (name == "spread" and has_no_spread(self.study, model, row))
            }
        return done

    def missing(self, models: Iterable[str]) -> set[str]:
        """Whose maps are to be made by one of some models, where there is a connectome."""
        return set[str]().union(*(self.connectomes.keys() - self.done(model) for model in models))


def has_no_spread(study: Study, model: str, row: Row) -> bool:
    """Whether the maps of somebody are of one window by one model, which have no standard deviation."""
    return row.qc["windows"] == 1 and not isinstance(study.config.models[model], EnsembleConfig)


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
        self._fingerprint = ledger.synthesis_fingerprint(study, block.weights[model])
        self._receipts = receipts_of(study, model)
        self._place = (study.block(block.number)["row"] - self._rows.start).astype(int).to_dict()
        self._done = block.done(model)
        self._attempt = withdraw(self._receipts, block.unit, self._done.values())
        place, storage = array_name(model), study.storage
        self._arrays = {name: storage.open_array(place, name, writable=True) for name in arrays_of(study)}
        asked_before = "spread" not in self._arrays and storage.exists(f"{place}/spread/zarr.json")
        self._dropped = [storage.open_array(place, "spread", writable=True)] if asked_before else []
        self._values = {name: self._kept(name) for name in self._arrays}
        self._new: list[Row] = []

    def add(self, connectome: Row, windows: Windows | None, predict: Callable[[str, Windows], Prediction]) -> None:
        """Take in one subject: what happened to the connectome, and its windows (W, K, V) where there is one."""
        subject = connectome.subject
        if subject in self._done:
            return
        if windows is None and connectome.status == "done":  # it was not needed when the crew before looked
            return
        row = Row(subject, "excluded", message=f"{subject}: no connectome, see stage connectomes")
        if windows is not None:
            row.message = ""
            with recorded(row):
                prediction = predict(self.model, windows)
                check_finite(self.model, prediction.mean)
                row.qc = {"windows": float(len(windows)), "mean_abs": float(np.abs(prediction.mean).mean())}
                self._put(subject, prediction)
        row.fingerprint = self._fingerprint(self._block.connectomes[subject], connectome.status == "done") or ""
        self._new.append(row)

    def _kept(self, name: str) -> NDArray[Any]:
        """An array of the block before its work: the rows of those who are done, NaN for the others."""
        study, model, done = self._block.study, self.model, self._done
        having = [who for who, row in done.items() if name != "spread" or not has_no_spread(study, model, row)]
        return kept_rows(self._arrays[name], 1, self._rows, {subject: self._place[subject] for subject in having})

    def _put(self, subject: str, prediction: Prediction) -> None:
        made = {"maps": prediction.mean, "spread": prediction.spread}
        for name, values in self._values.items():
            values[:, self._place[subject]] = as_float16(made[name])

    def commit(self) -> list[Row]:
        """Write the maps, then the receipt; returns what is new in it.

        Where somebody else has written the block at the same time, seeing other people fail, see `take_back`.
        """
        unit = self._block.unit
        for name, values in self._values.items():
            write_rows(self._arrays[name], 1, self._rows, values)
        for array in self._dropped:
            erase(array, 1, range(self._rows.start, self._rows.stop))
        rows = [*self._done.values(), *self._new]
        made = {row.subject: row.fingerprint for row in rows}
        today = {subject: made[subject] for subject in self._block.connectomes if subject in made}
        commit(self._receipts, unit, rows, today, self._attempt, self._done)
        take_back(self._receipts, unit, self._undone())
        return self._new

    def _undone(self) -> list[str]:
        """Those who are done but whose maps are not what was just written here, by a look at the first chunk."""
        first = (slice(0, 1), self._rows, slice(0, self._arrays["maps"].chunks[2]))
        same = (read(self._arrays["maps"], first) == self._values["maps"][0:1, :, first[2]]).all(axis=(0, 2))
        done = [*self._done, *(row.subject for row in self._new if row.status == "done")]
        return [subject for subject in done if not same[self._place[subject]]]


class MapWorker:
    """Makes the maps of blocks from their connectomes, whoever made those.

    Parameters
    ----------
    uri : str
        The study's.
    models : mapping of unit to list of str
        Whose maps are to be made of each block.
    retry : bool
        Make again what failed.
    """

    def __init__(self, uri: str, models: Mapping[str, Sequence[str]], *, retry: bool = False) -> None:
        self.study, self.models, self.retry = Study(uri), models, retry
        self.connectomes = ConnectomeWorker(uri)
        self.predictor = Predictor(self.study)

    def block(self, unit: str) -> Block:
        """A block, as its receipts are now."""
        number, weights = ledger.block_number(unit), {name: self.weights(name) for name in self.models[unit]}
        return Block(self.study, number, self.connectomes.today(number), self.connectomes.holding(number), weights)

    def owed(self, block: Block) -> list[str]:
        """Models whose maps of a block are to be made: not those of which another driver has made them meanwhile."""
        models, everybody = self.models[block.unit], len(block.connectomes)
        return [name for name in models if self.retry or len(block.holding(name)) < everybody]

    def weights(self, model: str) -> str | None:
        """Hash of the weights of a model, which is loaded."""
        return self.predictor.load(model)

    def finish(
        self,
        block: Block,
        connectomes: Iterable[tuple[Row, Windows | None]],
        ready: Mapping[str, dict[str, Prediction]] = NOTHING,
    ) -> dict[str, Any]:
        """Make the maps of a block, unless they are ready, by subject and model, and commit them."""
        jobs = [BlockMaps(block, name) for name in self.owed(block)]
        rows: list[Row] = []
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
        Make again what failed, of connectomes and of maps.
    """

    def __init__(
        self, uri: str, models: Mapping[str, Sequence[str]], *, keep: bool = False, retry: bool = False
    ) -> None:
        super().__init__(uri, models, retry=retry)
        self.keep = keep

    def __call__(self, unit: str) -> dict[str, Any]:
        """Do one block."""
        block = self.block(unit)
        return self.finish(block, self.stream(block))

    def stream(self, block: Block) -> Iterator[tuple[Row, Windows | None]]:
        """The connectomes of a block, one subject after the other."""
        needed = block.missing(self.owed(block))
        return self.connectomes.stream(block.number, block.rows, needed, keep=self.keep, retry=self.retry)


class ConnectomeSource(SynthesisWorker):
    """The first of two crews: it makes the connectomes of a block and hands them on in memory."""

    def weights(self, model: str) -> str | None:
        """Hash of the weights of a model: it is the other crew that loads it."""
        return ledger.model_hash(self.study, model)

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
            ready = self.predictor.predict_together(self.owed(block), found)
        except Exception:  # whoever is to blame fails alone, below
            log.exception("%s: trying its subjects one by one", block.unit)
            ready = {}
        return self.finish(block, ((row, found.get(subject)) for subject, row in block.rows.items()), ready)


def padded(windows: Windows, shape: tuple[int, ...]) -> Windows:
    """Windows (w, K, V) as (W, K, V): NaN where none was recorded."""
    whole = np.full(shape, np.nan, dtype=windows.dtype)
    whole[: len(windows)] = windows
    return whole
