"""Parquet tables under a study's root."""

from __future__ import annotations

import io

import pandas as pd
import pyarrow as pa

from dtg_ray.errors import StudyError
from dtg_ray.store.files import Storage


def write_table(storage: Storage, name: str, table: pd.DataFrame) -> None:
    """Write a table as a whole."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    storage.write(name, buffer.getvalue())


def in_memory(data: bytes) -> pa.BufferReader:
    """Bytes as Arrow reads them by itself: its threads would want Python for a file of Python's, even while it ends."""
    return pa.BufferReader(data)


def read_table(storage: Storage, name: str) -> pd.DataFrame:
    """Read a table.

    Raises
    ------
    MissingFileError
        When it is not there.
    StudyError
        When it is not a Parquet file.
    """
    data = storage.read(name)
    try:
        return pd.read_parquet(in_memory(data))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise StudyError(f"{storage.uri(name)}: not a Parquet table: {error}") from error
