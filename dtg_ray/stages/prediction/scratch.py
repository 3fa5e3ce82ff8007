"""Tiles of matrices that are too large for one machine: files of the study, as long as they are needed.

A tile is a file, whole or not there, and always of the same bytes, whoever writes it: so what is there is done, a
worker that is lost costs what it was about to write, and a driver that is killed goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import DamagedError, StudyError
from dtg_ray.stats.tiles import Edges
from dtg_ray.store.files import Storage

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Scratch:
    """Arrays of float64 as files below a folder.

    Parameters
    ----------
    storage : Storage
        Of the study.
    folder : str
    """

    storage: Storage
    folder: str

    def below(self, name: str) -> Scratch:
        """A folder in this one."""
        return replace(self, folder=f"{self.folder}/{name}")

    def names(self) -> set[str]:
        """What is there, relative to the folder."""
        return {name[len(self.folder) + 1 :] for name in self.storage.names(self.folder)}

    def save(self, name: str, values: Float) -> None:
        """Write an array."""
        data = np.ascontiguousarray(values, dtype="<f8").tobytes()
        try:
            self.storage.write(f"{self.folder}/{name}", data)
        except StudyError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            self.storage.write(f"{self.folder}/{name}", data)  # another driver removed the folder at that moment

    def load(self, name: str, shape: tuple[int, int]) -> Float:
        """Read an array, which cannot be written to.

        Raises
        ------
        MissingFileError
            When it is not there.
        DamagedError
            When it is not as long as it should be.
        """
        data = self.storage.read(f"{self.folder}/{name}")
        if len(data) != 8 * shape[0] * shape[1]:
            raise DamagedError(
                f"{self.storage.uri(self.folder)}/{name}: got {len(data)} bytes, expected a matrix of {shape}",
                hint=f"remove the folder {self.storage.uri(self.folder)}: it is made again",
            )
        return np.frombuffer(data, dtype="<f8").reshape(shape)

    def keep(self, name: str) -> None:
        """Remove all folders in this one but one."""
        for one in sorted({one.split("/")[0] for one in self.names()} - {name}):
            self.below(one).remove()

    def remove(self) -> None:
        """Remove the folder and all that is in it; nothing happens when it is not there."""
        self.storage.delete_folder(self.folder)


@dataclass(frozen=True)
class Tiled:
    """A symmetric matrix in tiles, of which those on and below the diagonal are stored.

    Parameters
    ----------
    scratch : Scratch
        Where they are.
    edges : tuple of int
    sign : 1 or -1
        What the tiles are multiplied with.
    """

    scratch: Scratch
    edges: Edges
    sign: float = 1.0

    @property
    def n(self) -> int:
        """Rows and columns."""
        return self.edges[-1]

    @property
    def count(self) -> int:
        """Tiles in a row."""
        return len(self.edges) - 1

    @property
    def lower(self) -> list[tuple[int, int]]:
        """Numbers of all tiles on and below the diagonal."""
        return [(i, j) for i in range(self.count) for j in range(i + 1)]

    def size(self, i: int) -> int:
        """Rows of the tiles of a row."""
        return self.edges[i + 1] - self.edges[i]

    def load(self, i: int, j: int) -> Float:
        """A tile as it is stored, without the sign; of those above the diagonal the transpose of the other one."""
        if i < j:
            return self.load(j, i).T
        return self.scratch.load(tile_name(i, j), (self.size(i), self.size(j)))

    def save(self, i: int, j: int, values: Float) -> None:
        """Store a tile."""
        self.scratch.save(tile_name(i, j), values)


def tile_name(i: int, j: int) -> str:
    """The file of a tile."""
    return f"{i:04d}-{j:04d}.tile"
