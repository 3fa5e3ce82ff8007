"""Work on tiles as tasks of Dask: what each task does, and which wait for which.

A task reads tiles from the scratch folder of the study, works on one processor with one thread of BLAS, and writes one
tile: memory is a few tiles, whatever the number of people, and the bytes are those of any scheduler and any number of
workers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dtg_ray.errors import MissingFileError
from dtg_ray.stages.prediction.scratch import Float, Scratch, Tiled, tile_name
from dtg_ray.stats import tiles

Compute = Callable[[Sequence[Any]], tuple[Any, ...]]
"""`dask.compute` on the scheduler that was asked for."""
TASKS = 20_000
"""Of one graph."""


class _Single:
    """One thread of BLAS while anybody in this process works on tiles: the number is one of the whole process."""

    def __init__(self) -> None:
        self._lock, self._inside, self._limits = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._limits.enter_context(threadpool_limits(1))
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._limits.close()


single_thread = _Single()


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a matrix: sign * A[rows, columns] - U V' + alpha I, the last where rows are columns.

    Parameters
    ----------
    source : Tiled
        A.
    rows, columns : (a,), (b,) int64
        Ascending.
    U, V : (a, q), (b, q) float64
    alpha : float
    """

    source: Tiled
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    U: Float
    V: Float
    alpha: float = 0.0

    def at(self, rows: slice, columns: slice) -> Block:
        """A part of it."""
        alpha = self.alpha if rows == columns else 0.0
        return Block(self.source, self.rows[rows], self.columns[columns], self.U[rows], self.V[columns], alpha)

    def values(self) -> Float:
        """The numbers, (a, b), from one tile after the other."""
        found = np.empty((len(self.rows), len(self.columns)))
        for i, rows in _of_tiles(self.rows, self.source.edges):
            for j, columns in _of_tiles(self.columns, self.source.edges):
                inside = np.ix_(self.rows[rows] - self.source.edges[i], self.columns[columns] - self.source.edges[j])
                found[rows, columns] = self.source.load(i, j)[inside]
        found *= self.source.sign
        found -= self.U @ self.V.T
        if self.alpha:
            found.flat[:: len(found) + 1] += self.alpha
        return found


def _of_tiles(rows: NDArray[np.int64], edges: tiles.Edges) -> Iterator[tuple[int, slice]]:
    """Which tiles some rows are in, and which of the rows."""
    for number, (first, last) in enumerate(pairwise(np.searchsorted(rows, edges))):
        if first < last:
            yield number, slice(int(first), int(last))


@dataclass(frozen=True, eq=False)
class Inversion:
    """A matrix to invert, symmetric and positive definite.

    Parameters
    ----------
    scratch : Scratch
        Where its tiles are put.
    edges : tuple of int
        Of its tiles.
    matrix : Block
    """

    scratch: Scratch
    edges: tiles.Edges
    matrix: Block

    @property
    def count(self) -> int:
        """Steps, and tiles in a row."""
        return len(self.edges) - 1

    def version(self, step: int) -> Tiled:
        """The tiles before a step; after the last one they are the inverse's."""
        last = step == self.count
        return Tiled(self.scratch.below(f"{step:04d}"), self.edges, -1.0 if last else 1.0)

    def done(self, there: set[str]) -> int:
        """The last step before which all tiles are there; -1 for none."""
        lower = self.version(0).lower
        for step in range(self.count, -1, -1):
            if all(_file(step, tile_name(i, j)) in there for i, j in lower):
                return step
        return -1


def _file(step: int, name: str) -> str:
    return f"{step:04d}/{name}"


def invert(jobs: Sequence[Inversion], compute: Compute) -> list[Tiled]:
    """Invert some matrices side by side; what is there of them is not made again.

    Raises
    ------
    LinAlgError
        When one is not positive definite.
    """
    while (before := _progress(jobs)) < sum(job.count for job in jobs):
        try:
            _invert(jobs, compute)
        except MissingFileError:  # another driver was faster, and has removed what it needs no more
            if _progress(jobs) <= before:
                raise
    return [job.version(job.count) for job in jobs]


def _progress(jobs: Sequence[Inversion]) -> int:
    return sum(job.done(job.scratch.names()) for job in jobs)


def _invert(jobs: Sequence[Inversion], compute: Compute) -> None:
    there = [job.scratch.names() for job in jobs]
    start = [max(job.done(names), 0) for job, names in zip(jobs, there, strict=True)]
    most = max(job.count for job in jobs)
    window = max(1, TASKS // (len(jobs) * most * (most + 5) // 2))
    for first in range(min(start), most, window):
        last: list[Any] = []
        for job, names, begin in zip(jobs, there, start, strict=True):
            steps = range(max(first, begin), min(first + window, job.count))
            last += _Graph(job, names).steps(steps)
        compute(last)


class _Graph:
    """Tasks of some steps of an inversion."""

    def __init__(self, job: Inversion, there: set[str]) -> None:
        self.job, self.there = job, there
        self.made: dict[str, Any] = {}

    def steps(self, steps: range) -> list[Any]:
        """Tasks that wait for all others."""
        if steps.start == 0:
            first, rows = self.job.version(0), tiles.slices(self.job.edges)
            for i, j in first.lower:
                self._task(0, tile_name(i, j), prepare, (first, i, j, self.job.matrix.at(rows[i], rows[j])))
        return [task for step in steps for task in self._step(step)]

    def _step(self, k: int) -> list[Any]:
        """One step: the pivot, what is beside it, all tiles, and then away with those before."""
        job, before, after = self.job, self.job.version(k), self.job.version(k + 1)
        names = [f"strip-{i:04d}" for i in range(job.count)]
        self._task(k, names[k], pivot, (before, k), [_file(k, tile_name(k, k))])
        for i in range(job.count):
            if i != k:
                needed = [_file(k, names[k]), _file(k, tile_name(max(i, k), min(i, k)))]
                self._task(k, names[i], strip, (before, i, k), needed)
        for i, j in before.lower:
            needed = [_file(k, name) for name in (names[i], names[j], tile_name(i, j))]
            self._task(k + 1, tile_name(i, j), update, (before, after, i, j, k), needed)
        tasks = [self.made.get(_file(k + 1, tile_name(i, j))) for i, j in before.lower]
        return [dask.delayed(forget, pure=False)(before.scratch, tasks)]

    def _task(
        self, step: int, name: str, work: Callable[..., None], given: tuple[Any, ...], needed: Sequence[str] = ()
    ) -> None:
        """Something to do, after what it needs, unless it is there."""
        if (file := _file(step, name)) not in self.there:
            self.made[file] = dask.delayed(work, pure=False)(*given, [self.made.get(one) for one in needed])


def prepare(target: Tiled, i: int, j: int, block: Block, _: object = None) -> None:
    """Put a tile together of those of another matrix."""
    with single_thread():
        tile = block.values()
        target.save(i, j, tiles.mirrored(tile) if i == j else tile)


def pivot(before: Tiled, k: int, _: object = None) -> None:
    """Factorise the diagonal tile of a step."""
    with single_thread():
        L, F = tiles.pivot(before.load(k, k))
        before.scratch.save("factor", L)
        before.scratch.save(f"strip-{k:04d}", F)


def strip(before: Tiled, i: int, k: int, _: object = None) -> None:
    """Divide a tile beside it by its factor."""
    with single_thread():
        L = before.scratch.load("factor", (before.size(k), before.size(k)))
        before.scratch.save(f"strip-{i:04d}", tiles.strip(before.load(i, k), L))


def update(before: Tiled, after: Tiled, i: int, j: int, k: int, _: object = None) -> None:
    """Take what a step takes from a tile."""
    with single_thread():
        F = _strip(before, i, k)
        G = F if i == j else _strip(before, j, k)
        tile = None if k in {i, j} else before.load(i, j).copy()
        after.save(i, j, tiles.update(tile, F, G))


def _strip(before: Tiled, i: int, k: int) -> Float:
    return before.scratch.load(f"strip-{i:04d}", (before.size(i), before.size(k)))


def forget(scratch: Scratch, _: object = None) -> None:
    """Remove the tiles before a step, when it is done."""
    scratch.remove()


def products(pairs: Sequence[tuple[Tiled, Float]], scratch: Scratch, compute: Compute) -> list[Float]:
    """Products of matrices (n, n) with columns (n, B), all side by side: (n, B) each.

    The columns go through a file, since every task needs them.
    """
    for number, (_, columns) in enumerate(pairs):
        scratch.save(f"{number}", columns)
    tasks = [
        dask.delayed(row_product, pure=False)(matrix, i, scratch, f"{number}", columns.shape[1])
        for number, (matrix, columns) in enumerate(pairs)
        for i in range(matrix.count)
    ]
    rows = iter(compute(tasks))
    found = [np.concatenate([next(rows) for _ in range(matrix.count)]) for matrix, _ in pairs]
    scratch.remove()
    return found


def row_product(matrix: Tiled, i: int, scratch: Scratch, name: str, width: int) -> Float:
    """The rows of one row of tiles of a product."""
    with single_thread():
        columns = scratch.load(name, (matrix.n, width))
        total = np.zeros((matrix.size(i), width))
        for j, rows in enumerate(tiles.slices(matrix.edges)):
            total += matrix.load(i, j) @ columns[rows]
        return matrix.sign * total
