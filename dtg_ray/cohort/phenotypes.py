"""Tables about people: age, sex, site, family, and what is to be predicted."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, NamedTuple, cast

import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from dtg_ray.cohort import ukb_fields
from dtg_ray.errors import ConfigError
from dtg_ray.store.files import filesystem, is_remote, local_path

SUBJECT_COLUMNS = ("subject", "participant_id", "subject_id", "eid", "participant.eid", "f.eid", "Subject")
TEXT = dict.fromkeys(SUBJECT_COLUMNS, "str")
MISSING = ["n/a"]
"""What says that there is nothing, beside what pandas takes for it."""
REMOTE_BLOCK = 16 * 2**20
"""Bytes per request to an object store, of a table read from front to back."""
BLOCK = 4 * 2**20
"""Bytes of a text table that are in memory with all their columns; no row may be longer."""
SHOWN = 10
"""Columns named in a message, of a table that may have thousands."""


class _Wanted(NamedTuple):
    """What is made of a table: columns to read, those kept as they are, phenotypes to derive from the others."""

    read: list[str]
    kept: list[str]
    derived: list[str]


def empty_phenotypes() -> pd.DataFrame:
    """A table of nobody."""
    return pd.DataFrame({"subject": pd.Series(dtype="str")})


def read_phenotypes(path: str, columns: Collection[str] | None = None) -> pd.DataFrame:
    """Read a CSV, TSV or Parquet table with a row per subject; of an export of UK Biobank only what is needed.

    Parameters
    ----------
    path : str
        Local or a URI.
    columns : collection of str, optional
        Only these beside the subject; what the table does not have is left out. By default all, but for the raw fields
        of UK Biobank: only those named here are kept.

    Returns
    -------
    DataFrame
        A column `subject` (text) first, the others as they are, then the phenotypes of `ukb_fields.derive`.

    Raises
    ------
    ConfigError
        When there is no column of subjects, a subject occurs twice, a column is called like a phenotype that is
        derived beside it, or a field holds labels instead of codes.
    """
    names = column_names(path)
    wanted = _wanted(names, path, columns)
    table = read_any_table(path, wanted.read if len(wanted.read) < len(names) else None)
    derived = _derived(table, path, wanted.derived)
    kept = normalize_subject_column(table[wanted.kept], path)
    return pd.concat([kept, derived], axis=1) if wanted.derived else kept


def _wanted(names: Sequence[str], path: str, columns: Collection[str] | None) -> _Wanted:
    """What to read of a table with these columns, all in the order of the table."""
    subject, raw = _subject_column(names, path), ukb_fields.raw_fields(names)
    asked = [name for name in names if name not in raw] if columns is None else columns
    kept = [name for name in names if name == subject or name in asked]
    try:
        sources = ukb_fields.sources(raw, columns)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", hint="remove one of them") from error
    if twice := [name for name in kept if name in sources]:
        raise ConfigError(
            f"{path}: got columns {twice} and the fields of UK Biobank they are derived from, expected either",
            hint="rename them",
        )
    needed = {*kept, *(column for source in sources.values() for column in source)}
    return _Wanted([name for name in names if name in needed], kept, list(sources))


def _derived(table: pd.DataFrame, path: str, phenotypes: Collection[str]) -> pd.DataFrame:
    """The phenotypes, with the name of the file in what goes wrong."""
    try:
        return ukb_fields.derive(table, phenotypes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", hint=error.hint) from error


def column_names(path: str) -> list[str]:
    """Names of the columns of a table; nothing else of it is read.

    Raises
    ------
    ConfigError
        As `read_any_table`.
    """
    with _opened(path) as file:
        return _names(file, path)


def read_any_table(path: str, columns: Collection[str] | None = None) -> pd.DataFrame:
    """A table by its extension; subject identifiers stay text (leading zeros are kept).

    Parameters
    ----------
    path : str
        .csv, .tsv (or .tab) or .parquet, local or a URI.
    columns : collection of str, optional
        Only these, in the order of the table. Of a text table no more than a few blocks are then in memory with all
        their columns, and rows that are longer or shorter than the header are refused.

    Raises
    ------
    ConfigError
        When there is no such file, or it is no such table.
    """
    with _opened(path) as file:
        if path.endswith(".parquet"):
            chosen = None if columns is None else [name for name in _names(file, path) if name in columns]
            return pd.read_parquet(file, columns=chosen)
        if columns is None:
            return pd.read_csv(file, sep=_separator(path), dtype=TEXT, na_values=MISSING)
        names = _names(file, path)
        chosen = [name for name in names if name in columns]
        narrow = _cut(file, names, chosen, _separator(path))
        # not piece by piece, which would tell the type of a column anew in each
        return pd.read_csv(narrow, names=chosen, header=0, dtype=TEXT, na_values=MISSING, low_memory=False)


def _cut(file: IO[bytes], names: Sequence[str], chosen: Sequence[str], separator: str) -> io.BytesIO:
    """Chosen columns of a text table, header and all, as CSV: every cell as it was."""
    reader = csv.open_csv(
        file,
        read_options=csv.ReadOptions(block_size=BLOCK, column_names=names),
        parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=csv.ConvertOptions(include_columns=chosen, column_types=dict.fromkeys(chosen, pa.string())),
    )
    narrow = io.BytesIO()
    without_names = csv.WriteOptions(include_header=False)
    with reader, csv.CSVWriter(narrow, reader.schema, write_options=without_names) as writer:
        for batch in reader:
            writer.write_batch(batch)
    narrow.seek(0)
    return narrow


def _names(file: IO[bytes], path: str) -> list[str]:
    """Names of the columns, as pandas tells them: of two that are the same the second gets a number."""
    if path.endswith(".parquet"):
        schema = parquet.read_schema(file)
        index = (schema.pandas_metadata or {}).get("index_columns", [])
        return [name for name in schema.names if name not in index]
    names = list(pd.read_csv(file, sep=_separator(path), nrows=0).columns)
    file.seek(0)
    return names


def _separator(path: str) -> str:
    return "\t" if path.endswith((".tsv", ".tab")) else ","


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """A file as a stream, with its name in whatever goes wrong with it."""
    try:
        with _open(path) as file:
            yield file
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: got no such file, expected one to read") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: not a table: {error}", hint="expected .csv, .tsv or .parquet") from error


def _open(path: str) -> IO[bytes]:
    """Text tables are read from front to back, of Parquet some ranges."""
    if not is_remote(path):
        return local_path(path).open("rb")
    cache = "none" if path.endswith(".parquet") else "readahead"
    return cast("IO[bytes]", filesystem(path).open(path, "rb", block_size=REMOTE_BLOCK, cache_type=cache))


def normalize_subject_column(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """Call the column of subjects `subject` and check that everybody is there once."""
    table = name_subject_column(table, path)
    if repeated := repeated_subjects(table):
        raise ConfigError(f"{path}: got subjects more than once: {', '.join(repeated[:5])}")
    return table


def name_subject_column(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """Call the column of subjects `subject`, put it first, and check that every row has one."""
    table = table.rename(columns={_subject_column(list(table.columns), path): "subject"})
    if table["subject"].isna().any():
        raise ConfigError(f"{path}: got {int(table['subject'].isna().sum())} rows without a subject, expected none")
    table["subject"] = table["subject"].astype("str")
    return table[["subject", *(name for name in table.columns if name != "subject")]]


def _subject_column(names: Sequence[str], path: str) -> str:
    """The first of `SUBJECT_COLUMNS` that is there."""
    column = next((name for name in SUBJECT_COLUMNS if name in names), None)
    if column is None:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ConfigError(f"{path}: got columns {names[:SHOWN]}{more}, expected one of {list(SUBJECT_COLUMNS)}")
    return column


def repeated_subjects(table: pd.DataFrame) -> list[str]:
    """Subjects with more than one row, sorted."""
    return sorted(set(table.loc[table["subject"].duplicated(), "subject"]))


def read_tables(paths: Sequence[str], columns: Collection[str] | None = None) -> pd.DataFrame:
    """Tables about people side by side, joined by subject; one that repeats another word for word counts once.

    Parameters
    ----------
    paths : sequence of str
    columns : collection of str, optional
        Only these, of every table as `read_phenotypes`; whether each was found is for the caller to say.

    Returns
    -------
    DataFrame
        A column `subject` (text), a row for everybody whom any table knows, NaN where a table does not.

    Raises
    ------
    ConfigError
        When a table cannot be read, or two of them have a column in common: it would have two meanings.
    """
    joined, owner = empty_phenotypes(), dict[str, str]()
    seen: list[pd.DataFrame] = []
    for path in paths:
        table = read_phenotypes(path, columns).sort_values("subject", ignore_index=True)
        if any(table.equals(other) for other in seen):
            continue
        own = [name for name in table.columns if name != "subject"]
        if twice := [name for name in own if name in owner]:
            others = ", ".join(sorted({owner[name] for name in twice}))
            raise ConfigError(
                f"{path}: got columns {twice} that {others} has as well, expected each in one table",
                hint="remove them from one of the two",
            )
        owner.update(dict.fromkeys(own, PurePosixPath(path).name))
        seen.append(table)
        joined = joined.merge(table, on="subject", how="outer")
    return joined
