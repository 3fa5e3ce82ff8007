"""Whether anything of some participants is left in a study: every file is looked into, whatever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dtg_ray.cohort.withdrawal import pattern
from dtg_ray.store.arrays import along, is_empty
from dtg_ray.store.tables import in_memory
from dtg_ray.study import NOBODY, Study

AT_ONCE = 64
"""Small files read together."""


@dataclass(frozen=True)
class Trace:
    """Something of a participant that was found.

    Parameters
    ----------
    file : str
        Relative to the study.
    where : str
        In words, without the name.
    """

    file: str
    where: str


def find_traces(study: Study, names: Iterable[str]) -> tuple[int, list[Trace]]:
    """Search all of a study for some participants.

    Names are looked for in the names of files, in every text of a table, and in all other files as they are; rows of
    arrays that belong to nobody have to be NaN. Chunks of numbers, which hold no text, are not searched for names.

    Parameters
    ----------
    study : Study
    names : iterable of str

    Returns
    -------
    int
        How many files were looked into.
    list of Trace
    """
    words, files = pattern(names), study.storage.names("")
    traces = [Trace(file, "its name") for file in files if words.search(file)]
    texts = [file for file in files if "/c/" not in file or "/subject/c/" in file]
    for start in range(0, len(texts), AT_ONCE):
        for file, data in study.storage.read_many(texts[start : start + AT_ONCE]).items():
            traces += [Trace(file, where) for where in _look(file, data, words)]
    for name in groups_of_arrays(study):
        traces += _look_into_arrays(study, name, words)
    return len(texts), traces


def _look(file: str, data: bytes, words: re.Pattern[str]) -> Iterator[str]:
    """Where a file says something of them."""
    if file.endswith(".parquet"):
        yield from _look_into_table(data, words)
    elif words.search(data.decode("latin-1")):
        yield "its content"


def _look_into_table(data: bytes, words: re.Pattern[str]) -> Iterator[str]:
    table = pq.read_table(in_memory(data))
    for name in table.column_names:
        if any(words.search(text) for text in texts_of(table[name].combine_chunks())):
            yield f"column {name}"
    metadata = b" ".join((table.schema.metadata or {}).values())
    if words.search(metadata.decode("latin-1")):
        yield "its metadata"


def texts_of(column: Any) -> Iterator[str]:
    """All different texts and whole numbers of a column, as texts, however deep they lie."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        yield from texts_of(column.dictionary)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from texts_of(column.flatten())
    elif pa.types.is_map(kind):
        yield from texts_of(column.keys)
        yield from texts_of(column.items)
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            yield from texts_of(part)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
        yield from (str(text) for text in column.unique().to_pylist() if text)
    elif pa.types.is_floating(kind):  # whole numbers beside missing ones
        yield from (f"{value:.0f}" for value in column.unique().to_pylist() if value and float(value).is_integer())


def groups_of_arrays(study: Study) -> list[str]:
    """The Zarr groups of a study that have an axis of subjects."""
    end = ".zarr/subject/zarr.json"
    names = study.storage.names("")
    return sorted(name.removesuffix("/subject/zarr.json") for name in names if name.endswith(end))


def rows_of_nobody(study: Study) -> list[int]:
    """Rows whose participants withdrew."""
    table = study.manifest
    return [int(row) for row in table.loc[table["subject"] == NOBODY, "row"]]


def _look_into_arrays(study: Study, name: str, words: re.Pattern[str]) -> Iterator[Trace]:
    """Rows of a Zarr group that hold numbers but belong to nobody, and names of participants along its axis."""
    group, empty = study.storage.open_zarr(name), rows_of_nobody(study)
    if any(words.search(str(subject)) for subject in group["subject"][:]):
        yield Trace(f"{name}/subject", "the axis of subjects")
    for key, array, axis in along(group):
        if not is_empty(array, axis, [row for row in empty if row < array.shape[axis]]):
            yield Trace(f"{name}/{key}", "a row of nobody is not empty")
