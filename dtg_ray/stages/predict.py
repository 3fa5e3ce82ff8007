"""`dtg predict`: phenotypes from maps and connectomes, by ridge regression with permutation tests.

Each feature set is read once into a Gram matrix; then one target after the other is predicted and committed. Dask runs
feature sets side by side: in threads here, as tasks of the Ray cluster the job is in, or on a dask.distributed one.
With `prediction.tiles` it runs one feature set after the other, and the tiles of its matrices side by side.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dtg_ray import ledger
from dtg_ray.config import feature_folder, fingerprint
from dtg_ray.errors import MissingFileError, StudyError
from dtg_ray.ledger import COMMON
from dtg_ray.results import prediction_table
from dtg_ray.stages.cluster import session
from dtg_ray.stages.maps import require_settled
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.prediction import people, size
from dtg_ray.stages.prediction.cells import Engines, predict_repeatedly, predict_target
from dtg_ray.stages.prediction.clock import Clock
from dtg_ray.stages.prediction.features import Features, members, parts
from dtg_ray.stages.prediction.gram import gram_sum, precision
from dtg_ray.stages.prediction.people import Target, target_of
from dtg_ray.stages.prediction.schedulers import RAY, THREADS, scheduler
from dtg_ray.stages.prediction.scores import summarise
from dtg_ray.stages.prediction.scratch import Scratch
from dtg_ray.stages.prediction.sweep import Compute, single_thread
from dtg_ray.stages.prediction.tiled import TiledGram, tiled_gram
from dtg_ray.stages.prediction.weights import Learnt, learn, write_weights
from dtg_ray.stages.runtime import Options, Resources, peak_memory
from dtg_ray.stages.single import settle
from dtg_ray.stages.telemetry import logs, watch
from dtg_ray.stats.gram import Gram, GramSum, gram
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.store.tables import write_table
from dtg_ray.study import PEOPLE, Study


def run(study: Study, options: Options) -> pd.DataFrame:
    """Predict every target from every feature set, then test them all together; returns the rows of the receipts."""
    study = prepare(study, options)
    book = ledger.Ledger(study)
    todo = [name for name in study.config.feature_sets() if _show(book, name, options)]
    for feature in () if options.dry_run else set(study.config.feature_sets()) - set(todo):
        tiles_of(study, feature).remove()  # of a driver that was killed after its last receipt
    if todo and not options.dry_run:
        with watch.stage(study.uri, "predict"):
            _compute(book, todo, options)
        book = ledger.Ledger(study)
    stages = [f"predict/{feature_folder(feature)}" for feature in study.config.feature_sets()]
    rows = [book.account(stage).rows for stage in stages]
    return pd.concat([*rows, _summarise(book, stages, options)], ignore_index=True)


def prepare(study: Study, options: Options) -> Study:
    """Read the tables of `prediction`, and check all that it says: before hours are spent on maps to predict from.

    Raises
    ------
    ConfigError
        When a table, a column, a mask or a block cannot be used.
    """
    if not options.dry_run:
        study, listed = people.refresh(study)
        _say(listed.describe(study), options)
    elif study.config.prediction.tables and not study.storage.exists(PEOPLE):
        return study  # nobody has read the tables yet
    people.check_targets(study)
    people.exchangeability(study)
    for feature in study.config.feature_sets():
        parts(study, feature)
    return study


def _say(lines: Sequence[str], options: Options) -> None:
    for line in lines if not options.quiet else ():
        tqdm.write(line)


def _show(book: ledger.Ledger, feature: str, options: Options) -> bool:
    """Show the plan of a feature set; whether there is something to do.

    Raises
    ------
    StudyError
        When a stage before this one is unfinished.
    """
    account = book.account(f"predict/{feature_folder(feature)}")
    todo = plan(book, feature)
    todo.show(options)
    if todo.pending and todo.waiting and not options.dry_run:
        raise StudyError(f"{account.stage} waits for {todo.waiting}", hint="run that stage first, or `dtg run`")
    return bool(todo.pending)


def plan(book: ledger.Ledger, feature: str) -> Plan:
    """What predicting from one feature set takes."""
    study = book.study
    account = book.account(f"predict/{feature_folder(feature)}")
    pending, units = account.pending(), len(account.owed)
    if not pending:
        return Plan(account.stage, units, 0, 0)
    sources = [part.stage for part in study.config.sources_of(feature)]
    if waiting := require_settled(book, list(dict.fromkeys(sources)), "prediction"):
        return Plan(account.stage, units, len(pending), 0, waiting=waiting)
    features = Features(study, feature, members(book, feature))
    n, p = len(features.subjects), features.n_features
    needed, tile = size.memory(study.config.prediction, features), _tile(book, feature)
    times = -(-n // tile) if tile else 1  # for each tile that a tile's people are multiplied with
    return Plan(
        account.stage,
        units,
        len(pending),
        n,
        times * 2 * n * p,
        memory=needed,
        cpus=1 if tile else size.cpus(n),
        advice=size.advice(study.config.prediction, needed),
    )


def _compute(book: ledger.Ledger, features: Sequence[str], options: Options) -> None:
    """Predict from some feature sets, side by side."""
    in_common = _common(book)
    _say(_about_comparisons(book, in_common), options)
    tiled = [feature for feature in features if _tile(book, feature)]
    whole = [feature for feature in features if feature not in tiled]
    with session(options) if options.scheduler == RAY else contextlib.nullcontext():  # one for both
        if whole:
            _compute_whole(book, whole, in_common, options)
        if tiled:
            _compute_tiled(book, tiled, in_common, options)


def _tile(book: ledger.Ledger, feature: str) -> int | None:
    features = Features(book.study, feature, members(book, feature))
    return size.tile_of(book.study.config.prediction, len(features.subjects), features.n_features)


def _compute_whole(book: ledger.Ledger, features: Sequence[str], in_common: list[str], options: Options) -> None:
    """Predict from feature sets whose Gram matrix is in one piece, each a task."""
    study = book.study
    sizes = [len(members(book, feature)) for feature in features]
    needs = Resources(size.cpus(max(sizes)), memory=max(plan(book, feature).memory for feature in features))
    with scheduler(options, needs, size.hint(book.study.config.prediction)) as chosen:
        shares = 1 if options.scheduler == THREADS else chosen.places // len(features)
        tasks = [
            _task(study, feature, in_common, shares if _by_products(book, feature) else 0, options)
            for feature in features
        ]
        with threadpool_limits(
            int(needs.cpus)
        ):  # of this process: feature sets in threads must not change it for others
            dask.compute(*tasks, **chosen.arguments)


def _compute_tiled(book: ledger.Ledger, features: Sequence[str], in_common: list[str], options: Options) -> None:
    """Predict from feature sets whose Gram matrix is in tiles, one after the other: the tiles are tasks."""
    needs = Resources(1, memory=max(plan(book, feature).memory for feature in features))
    with scheduler(options, needs, size.hint(book.study.config.prediction)) as chosen, single_thread():
        for feature in features:
            predict_in_tiles(
                book.study.uri, feature, in_common, options.quiet, lambda x: dask.compute(*x, **chosen.arguments)
            )


def _by_products(book: ledger.Ledger, feature: str) -> bool:
    """Whether the features are too many to be kept, and the inner products of subjects are added up in their place."""
    features = Features(book.study, feature, members(book, feature))
    return 0 < len(features.subjects) <= features.n_features


def _task(study: Study, feature: str, in_common: list[str], shares: int, options: Options) -> Any:
    """A feature set as a task of Dask; its Gram matrix in several, where there are more workers than feature sets."""
    sums = [
        dask.delayed(gram_share)(study.uri, feature, number, shares) for number in range(shares if shares > 1 else 0)
    ]
    return dask.delayed(predict_feature)(study.uri, feature, in_common, options.quiet, sums)


def _common(book: ledger.Ledger) -> list[str]:
    """Who has the features of all sets that are compared, in the order of the cohort; sets of nobody are not."""
    having = [these for feature in book.study.config.feature_sets() if (these := set(members(book, feature)))]
    return [subject for subject in book.study.cohort["subject"] if all(subject in these for these in having)]


def _about_comparisons(book: ledger.Ledger, in_common: Sequence[str]) -> list[str]:
    """What to say of feature sets that cannot be compared with each other."""
    if not ledger.compares(book.study):
        return []
    empty = [feature for feature in book.study.config.feature_sets() if not members(book, feature)]
    lines = [f"predict: nobody has the features of {', '.join(empty)}"] if empty else []
    needed = 2 * book.study.config.prediction.folds
    if len(in_common) < needed:
        told = f"got {len(in_common)} people who have all of them, expected at least {needed}"
        lines.append(f"predict: feature sets are not compared: {told}")
    return lines


def gram_share(uri: str, feature: str, number: int, shares: int) -> GramSum:
    """The products of every `shares`-th piece of a feature set."""
    study = Study(uri)
    features = Features(study, feature, members(ledger.Ledger(study), feature))
    return gram_sum(features, features.pieces()[number::shares], dtype=precision(study.config.prediction.alpha))


def predict_feature(uri: str, feature: str, in_common: list[str], quiet: bool, sums: Sequence[GramSum]) -> None:
    """Predict all targets that are owed from one feature set; each is committed by its receipt.

    Parameters
    ----------
    uri : str
        Of the study.
    feature : str
    in_common : list of str
        Who has all features that are compared.
    quiet : bool
    sums : sequence of GramSum
        The Gram matrix, where it was made elsewhere.
    """
    study = Study(uri)
    book = ledger.Ledger(study)
    account = book.account(f"predict/{feature_folder(feature)}")
    logs.at_work(study=study.uri, stage=account.stage)
    work = _Work(book, feature, in_common, quiet)
    with threadpool_limits(size.cpus(len(work.subjects))):
        work.do(account.pending(), functools.partial(work.in_one_piece, sums))


def predict_in_tiles(uri: str, feature: str, in_common: list[str], quiet: bool, compute: Compute) -> None:
    """As `predict_feature`, with tiles as tasks; they are removed when all targets are done, and not before.

    Parameters
    ----------
    uri, feature, in_common, quiet
        As of `predict_feature`.
    compute : callable
        See `sweep.Compute`.
    """
    folder = feature_folder(feature)
    before: list[str] = []
    while units := (book := ledger.Ledger(Study(uri))).account(f"predict/{folder}").pending():
        work = _Work(book, feature, in_common, quiet)
        try:
            work.do(units, functools.partial(work.in_tiles, compute))
            break
        except MissingFileError:  # another driver was faster, and has removed what it needs no more
            if units == before:
                raise
            before = units
    tiles_of(book.study, feature).remove()  # of another driver too, which is done


def tiles_of(study: Study, feature: str) -> Scratch:
    """Where the tiles of a feature set are, while they are needed."""
    return Scratch(study.storage, f"prediction/{feature_folder(feature)}/tiles")


class _Work:
    """The targets of one feature set."""

    def __init__(self, book: ledger.Ledger, feature: str, in_common: list[str], quiet: bool) -> None:
        self.book, self.study, self.feature, self.in_common, self.quiet = book, book.study, feature, in_common, quiet
        self.account = book.account(f"predict/{feature_folder(feature)}")
        self.subjects = members(book, feature)
        self.receipts = Receipts(self.study.storage, self.account.stage)
        self.exchange = people.exchangeability(self.study)
        self.number = {subject: number for number, subject in enumerate(self.study.cohort["subject"])}
        self.scratch = tiles_of(book.study, feature)
        self.clock = Clock()

    def do(self, units: list[str], read: Callable[[], Gram | TiledGram | NDArray[np.float64]]) -> None:
        """Predict what is owed from the features that are read, targets of the same subjects one after the other."""
        targets = {unit: self._target(unit) for unit in units}
        for unit, target in targets.items():
            if isinstance(target, str):
                self._commit(unit, functools.partial(Row, self._name(unit), "excluded", message=target))
        usable = {unit: target for unit, target in targets.items() if isinstance(target, Target)}
        if not usable:
            return
        engines = Engines(read(), self.subjects, self.study.config.prediction.alpha)
        ordered = sorted(usable, key=lambda unit: (len(usable[unit].subjects), usable[unit].subjects))
        if self.study.config.prediction.weight_maps:
            self._weights(engines, [usable[unit] for unit in ordered if COMMON not in unit])
        for unit in tqdm(ordered, desc=f"predict/{self.feature}", unit="phenotype", disable=self.quiet):
            self._commit(unit, functools.partial(self._predict, engines, unit, usable[unit]))
        self.scratch.remove()

    def _name(self, unit: str) -> str:
        (name,) = self.account.owed[unit]
        return name

    def _target(self, unit: str) -> Target | str:
        name = self._name(unit)
        if name.endswith(COMMON):
            return target_of(self.study, name.removesuffix(COMMON), self.in_common if self.subjects else [])
        return target_of(self.study, name, self.subjects)

    def in_one_piece(self, sums: Sequence[GramSum]) -> Gram | NDArray[np.float64]:
        """The features, as inner products or, where they are far fewer than subjects, as they are."""
        features, config = Features(self.study, self.feature, self.subjects), self.study.config.prediction
        if sums:
            total = GramSum(len(self.subjects))
            for other in sums:
                total.merge(other)
            return total.gram()
        if features.n_features < len(self.subjects):
            with self.clock("read"):
                X = features.matrix()
            return gram(X) if size.uses_gram(*X.shape) else X
        return gram_sum(features, features.pieces(), self.clock, dtype=precision(config.alpha)).gram()

    def in_tiles(self, compute: Compute) -> TiledGram:
        """Their inner products in tiles; those of other people or settings are removed."""
        features, config = Features(self.study, self.feature, self.subjects), self.study.config.prediction
        tile = config.tiles or len(self.subjects)
        dtype = precision(config.alpha) if features.n_features >= len(self.subjects) else np.float64
        known = ledger.features_fingerprint(self.book, self.feature)
        digest = fingerprint(known, self.subjects, tile, np.dtype(dtype).name)
        self.scratch.keep(digest)
        return tiled_gram(features, self.feature, tile, dtype, self.scratch.below(digest), compute)

    def _predict(self, engines: Engines, unit: str, target: Target) -> Row:
        """Write the tables of one target."""
        config = self.study.config.prediction
        try:
            if unit.endswith(COMMON):
                tables = predict_repeatedly(engines, target, config, self.clock)
            else:
                everybody = np.array([self.number[subject] for subject in target.subjects])
                tables = predict_target(engines, target, self.exchange, everybody, config, self.clock)
        except ValueError as error:  # folds or confounds that cannot be, of these subjects
            return Row(self._name(unit), "excluded", message=f"{target.name}: {error}")
        for what, table in tables.items():
            write_table(self.study.storage, prediction_table(self.feature, what, target.name), table)
        return Row(self._name(unit), "done", qc={"subjects": float(len(target.subjects))})

    def _commit(self, unit: str, work: Callable[[], Row]) -> None:
        """Do one target and write its receipt: from here on it is done."""
        if self.receipts.holding(unit, self.account.owed[unit]):
            return  # another driver was faster
        begin, attempt = time.perf_counter(), self.receipts.withdraw(unit)
        logs.at_work(block=unit)
        watch.begun(self.account.stage, unit, attempt)
        row = work()
        row.fingerprint = str(self.account.owed[unit][row.subject])
        row.seconds, row.peak_memory = time.perf_counter() - begin, peak_memory()
        self.receipts.write(unit, [row], attempt=attempt, host=socket.gethostname())
        watch.committed(self.account.stage, unit, attempt, [row])

    def _weights(self, engines: Engines, targets: list[Target]) -> None:
        """Write weights and patterns of all targets; their receipts come after them."""
        learnt: list[Learnt] = []
        for target in targets:
            with contextlib.suppress(ValueError):  # which its receipt will tell
                learnt += learn(engines, target, self.study.config.prediction)
        if learnt:
            features = Features(self.study, self.feature, self.subjects)
            write_weights(features, f"prediction/{feature_folder(self.feature)}/weights", learnt)


def _summarise(book: ledger.Ledger, stages: Sequence[str], options: Options) -> pd.DataFrame:
    """Test all targets and feature sets together."""
    account = book.account("scores")
    waiting = require_settled(book, stages, "scores") if account.pending() else ""
    if options.dry_run and waiting:
        Plan("scores", 1, 1, 0, waiting=waiting).show(options)
        return account.rows
    return settle(
        book.study,
        account,
        Plan("scores", 1, len(account.pending()), 0, waiting=waiting),
        lambda _today: summarise(book),
        options,
    )
