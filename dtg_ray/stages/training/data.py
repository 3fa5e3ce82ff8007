"""What a network is trained on: who is in which batch, and how their connectomes and maps come to the device."""

from __future__ import annotations

import functools
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dtg_ray.imaging.grid import Grid
from dtg_ray.stages.maps import SubjectReader
from dtg_ray.study import Study

log = logging.getLogger(__name__)
MAPS = -1
Item = tuple[str, int]
"""A subject, and the number of a window or `MAPS`."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where torch passes tensors between processes


def epoch_batches(
    subjects: Sequence[str], batch_size: int, seed: int, epoch: int, rank: int, world: int
) -> Iterator[list[str]]:
    """The batches of one worker in one pass over the subjects.

    All workers shuffle alike, by (seed, epoch), and take their share of each batch. Subjects that do not fill a
    last batch sit this epoch out; a cohort smaller than a batch is one batch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(subjects))
    size = min(batch_size, len(subjects) - len(subjects) % world)
    for start in range(0, len(order) - size + 1, size):
        yield [subjects[row] for row in order[start + rank : start + size : world]]


def random_window(seed: int, epoch: int, subject: int, n_windows: int) -> int:
    """Which window of a subject, by its number, is shown in an epoch."""
    return int(np.random.default_rng([seed, epoch, subject]).integers(n_windows))


class Chunks(Dataset[Tensor]):
    """Windows (K, V) and maps (C, V) of subjects as they are stored, float16; NaN where not acquired.

    Parameters
    ----------
    uri : str
        The study's. It is opened by the process that reads.
    contrasts : sequence of int
        Which of the study's contrasts, in the order wanted.
    """

    def __init__(self, uri: str, contrasts: Sequence[int]) -> None:
        self.uri, self.contrasts = uri, list(contrasts)

    def __getstate__(self) -> dict[str, Any]:
        """Travel to a reader without what is open."""
        return {"uri": self.uri, "contrasts": self.contrasts}

    @functools.cached_property
    def _reader(self) -> SubjectReader:
        return SubjectReader(Study(self.uri))

    def __getitem__(self, item: Item) -> Tensor:
        """Read one."""
        subject, number = item
        if number == MAPS:
            return torch.from_numpy(self._reader.stored_maps(subject)[self.contrasts])
        return torch.from_numpy(self._reader.stored_window(subject, number))


class Feed:
    """Brings chunks in the order in which they are needed: from memory, or read ahead by processes of its own.

    Parameters
    ----------
    chunks : Chunks
    cache_bytes : int
        What was read stays in memory up to this many bytes; an epoch's order is random, so nothing is dropped for
        something newer.
    total_bytes : int
        Of everything there is to read. What fits into memory is read once, in this process.
    item_bytes : int
        Of the largest chunk.
    readers : int
        Processes that read ahead, spawned when the first chunk is asked for; 0: read in this process.
    ahead : int
        Chunks that are read ahead.
    pinned : bool
        Whether chunks lie in memory that a GPU can read.
    """

    def __init__(
        self,
        chunks: Chunks,
        *,
        cache_bytes: int = 0,
        total_bytes: int,
        item_bytes: int,
        readers: int = 0,
        ahead: int = 2,
        pinned: bool = False,
    ) -> None:
        self.chunks, self.cache_bytes, self.pinned = chunks, cache_bytes, pinned
        self.fits = total_bytes <= cache_bytes
        self.readers = 0 if self.fits else _affordable(readers, ahead * item_bytes)
        self.waited = 0.0
        """Seconds that somebody waited for a chunk so far."""
        self._ahead = ahead
        self._kept: dict[Item, Tensor] = {}
        self._kept_bytes = 0
        self._order: list[Item] = []

    @functools.cached_property
    def _loader(self) -> DataLoader[Tensor]:
        # a list can be a sampler: torch iterates over it anew whenever the loader is
        sampler: Any = self._order
        if not self.readers:
            return DataLoader(self.chunks, batch_size=None, sampler=sampler, pin_memory=self.pinned)
        return DataLoader(
            self.chunks,
            batch_size=None,
            sampler=sampler,
            pin_memory=self.pinned,
            num_workers=self.readers,
            multiprocessing_context="spawn",  # s3fs is not fork-safe
            persistent_workers=True,
            prefetch_factor=math.ceil(self._ahead / self.readers),
        )

    def __call__(self, batches: Sequence[Sequence[Item]]) -> Iterator[list[Tensor]]:
        """The chunks of one batch after the other."""
        planned = self._plan(batches)
        self._order[:] = [item for batch in planned for item, read in batch if read]
        coming: Iterator[Tensor] = iter(self._loader) if self._order else iter(())
        for batch in planned:
            yield [self._receive(item, coming) if read else self._kept[item] for item, read in batch]

    def _plan(self, batches: Sequence[Sequence[Item]]) -> list[list[tuple[Item, bool]]]:
        """Every item of every batch, and whether it has to be read."""
        there = set(self._kept)
        plan = []
        for batch in batches:
            plan.append([(item, item not in there) for item in batch])
            if self.fits:  # then what was read once stays
                there.update(batch)
        return plan

    def _receive(self, item: Item, coming: Iterator[Tensor]) -> Tensor:
        begin = time.perf_counter()
        chunk = next(coming)
        self.waited += time.perf_counter() - begin
        if item not in self._kept and self._kept_bytes + chunk.nbytes <= self.cache_bytes:
            kept = chunk.clone()  # a reader's tensor lies in shared memory
            self._kept[item] = kept.pin_memory() if self.pinned else kept
            self._kept_bytes += chunk.nbytes
        return chunk


def _affordable(readers: int, n_bytes: int) -> int:
    """No readers where their chunks do not fit shared memory: they would die of a bus error."""
    if not readers or not Path(SHARED_MEMORY).exists():
        return readers
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < 2 * n_bytes:
        log.warning(
            "%s has %d MB free, readers need %d MB: training reads without them",
            SHARED_MEMORY,
            free >> 20,
            n_bytes >> 19,
        )
        return 0
    return readers


@dataclass(frozen=True)
class Boxes:
    """The way between vectors of voxels and the boxes that convolutions want.

    Parameters
    ----------
    grid : Grid
    grey_matter : (V,) bool
        Where maps are compared.
    input_mask : (V,) bool, optional
        Voxels outside are 0 in the input.
    device : torch.device
    """

    grid: Grid
    grey_matter: np.ndarray
    input_mask: np.ndarray | None
    device: torch.device

    @functools.cached_property
    def _inside(self) -> Tensor:
        return torch.from_numpy(self.grid.flat_index).to(self.device)

    @functools.cached_property
    def _shown(self) -> Tensor | None:
        return None if self.input_mask is None else torch.from_numpy(self.input_mask).to(self.device)

    @functools.cached_property
    def _grey(self) -> Tensor:
        return torch.from_numpy(np.flatnonzero(self.grey_matter)).to(self.device)

    def inputs(self, windows: Sequence[Tensor]) -> Tensor:
        """Windows (K, V) float16 -> boxes (N, K, X, Y, Z) float32 in channels-last order, 0 outside the mask."""
        first = windows[0]
        boxes = torch.zeros(len(windows), self.grid.mask.size, len(first), device=self.device)
        for box, window in zip(boxes, windows, strict=True):
            values = window.to(self.device, torch.float32, non_blocking=True).T
            box[self._inside] = values if self._shown is None else values * self._shown[:, None]
        return boxes.reshape(len(windows), *self.grid.shape, len(first)).permute(0, 4, 1, 2, 3)

    def targets(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (C, V) float16 -> (N, C, G) float32, grey matter only."""
        return torch.stack([one.to(self.device, non_blocking=True)[:, self._grey].float() for one in maps])

    def grey(self, boxes: Tensor) -> Tensor:
        """Grey-matter voxels of boxes: (N, C, X, Y, Z) -> (N, C, G)."""
        return boxes.flatten(2)[..., self._inside[self._grey]]
