"""A plain table of paths: CSV, TSV or Parquet, a row per subject."""

from __future__ import annotations

import pandas as pd

from dtg_ray.cohort.layouts import Found, Participant
from dtg_ray.cohort.phenotypes import normalize_subject_column, read_any_table
from dtg_ray.errors import ConfigError
from dtg_ray.store.files import is_remote, normalize

CONTRAST_PREFIX = "contrast:"


def find(path: str) -> Found:
    """Read a table with columns `subject`, `rest`, `contrast:NAME` ... and anything else about the people.

    `rest` may hold several runs, separated by `;`. Relative paths are meant from the table's folder.

    Raises
    ------
    ConfigError
        When a column is missing or a subject occurs twice.
    """
    table = normalize_subject_column(read_any_table(path), path)
    if "rest" not in table:
        raise ConfigError(f"{path}: got columns {list(table.columns)}, expected one called 'rest'")
    contrasts = [column for column in table.columns if column.startswith(CONTRAST_PREFIX)]
    folder = normalize(path).rsplit("/", 1)[0]
    participants, left_out = [], {}
    for _, row in table.sort_values("subject").iterrows():
        rest = [_absolute(part, folder) for part in _text(row["rest"]).split(";") if part.strip()]
        maps = {
            name.removeprefix(CONTRAST_PREFIX): _absolute(_text(row[name]), folder)
            for name in contrasts
            if _text(row[name])
        }
        if rest:
            participants.append(Participant(row["subject"], rest, maps))
        else:
            left_out[row["subject"]] = "no rest run in the table"
    if not participants:
        raise ConfigError(f"{path}: got no row with a rest run, expected at least one")
    return Found(participants, left_out, table.drop(columns=["rest", *contrasts]))


def _text(value: object) -> str:
    return "" if value is None or pd.isna(value) else str(value).strip()  # type: ignore[call-overload]


def _absolute(path: str, folder: str) -> str:
    path = path.strip()
    return normalize(path if is_remote(path) or path.startswith(("/", "~", "file://")) else f"{folder}/{path}")
