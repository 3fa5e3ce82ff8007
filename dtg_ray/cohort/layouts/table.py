"""A plain table of paths: CSV, TSV or Parquet, a row per subject."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dtg_ray.cohort.layouts import NEEDED, Found, Needed, Participant, gather
from dtg_ray.cohort.phenotypes import name_subject_column, read_any_table, repeated_subjects
from dtg_ray.errors import ConfigError, SubjectError, TableError, UnsafePathError
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.streams import ZIP, member, split_member
from dtg_ray.store.files import is_remote, normalize

REST, CONTRAST = "rest", "contrast"
REST_COMPANIONS = ("warp", "premat", "reference", "mask", "confounds", "motion")
CONTRAST_COMPANIONS = ("warp", "premat", "reference", "mask")


def find(path: str, *, needed: Needed = "rest") -> Found:
    """Read a table with columns `subject`, `rest`, `contrast:NAME` ... and anything else about the people.

    `rest` may hold several runs, separated by `;`. What belongs to them is in `rest_warp`, `rest_premat`,
    `rest_reference`, `rest_mask`, `rest_confounds` and `rest_motion`: one value for all runs, or one per run,
    separated by `;` (nothing between two of them where a run has none). What belongs to a map is in `warp:NAME`,
    `premat:NAME`, `reference:NAME` and `mask:NAME`. Relative paths are meant from the table's folder and stay below it;
    in `zip://MEMBER::ARCHIVE` that is the archive's.

    Parameters
    ----------
    path : str
    needed : {"rest", "contrasts"}
        Who has none of these is left out; where it is the contrasts, there may be no column `rest`.

    Raises
    ------
    ConfigError
        When a column is missing or not known, or no row can be used.
    """
    table = name_subject_column(read_any_table(path), path)
    contrasts = _contrasts(list(table.columns), path, needed)
    folder = normalize(path).rsplit("/", 1)[0]
    repeated = repeated_subjects(table)
    left_out = dict.fromkeys(repeated, "in several rows of the table, expected one")
    table = table[~table["subject"].isin(repeated)]
    participants = []
    for row in table.to_dict("records"):
        try:
            person = _participant(row, contrasts, folder)
        except SubjectError as error:
            left_out[row["subject"]] = str(error)
            continue
        if person.has(needed):
            participants.append(person)
        else:
            left_out[person.subject] = f"no {NEEDED[needed]} in the table"
    if not participants:
        some = "; ".join(f"{subject}: {reason}" for subject, reason in sorted(left_out.items())[:3])
        raise ConfigError(
            f"{path}: got no row with a {NEEDED[needed]} that can be used, expected at least one", hint=some
        )
    about = [column for column in table.columns if column not in _path_columns(contrasts)]
    return gather(participants, left_out, table[about].reset_index(drop=True), {})


def _contrasts(columns: Sequence[str], path: str, needed: Needed) -> list[str]:
    """Names of the contrasts; columns that look like paths and belong to nothing are refused."""
    if needed == "rest" and REST not in columns:
        raise ConfigError(f"{path}: got columns {list(columns)}, expected one called 'rest'")
    names = [column.removeprefix(f"{CONTRAST}:") for column in columns if column.startswith(f"{CONTRAST}:")]
    prefixes = (f"{REST}_", *(f"{part}:" for part in (CONTRAST, *CONTRAST_COMPANIONS)))
    known = _path_columns(names)
    if unknown := [column for column in columns if column.startswith(prefixes) and column not in known]:
        expected = ", ".join(f"{REST}_{part}" for part in REST_COMPANIONS)
        beside = ", ".join(f"{part}:NAME" for part in CONTRAST_COMPANIONS)
        raise ConfigError(f"{path}: got columns {unknown}, expected {expected}, contrast:NAME, and beside it {beside}")
    return names


def _path_columns(contrasts: Sequence[str]) -> set[str]:
    """All columns that hold paths, or may."""
    of_maps = {f"{part}:{name}" for name in contrasts if name for part in (CONTRAST, *CONTRAST_COMPANIONS)}
    return {REST, *(f"{REST}_{part}" for part in REST_COMPANIONS), *of_maps}


def _participant(row: Mapping[Any, Any], contrasts: Sequence[str], folder: str) -> Participant:
    person = Participant(row["subject"], [_scan(run, folder) for run in _runs(row)])
    for name in contrasts:
        files = {part: _text(row.get(f"{part}:{name}")) for part in CONTRAST_COMPANIONS}
        if image := _text(row[f"{CONTRAST}:{name}"]):
            person.contrasts[name] = _scan({"image": image, **files}, folder)
    return person


def _runs(row: Mapping[Any, Any]) -> list[dict[str, str]]:
    """Image and companions of each rest run; what stands beside no run is left alone."""
    images = [part for part in _parts(row, REST) if part]
    if not images:
        return []
    columns = {"image": images}
    for name in REST_COMPANIONS:
        columns[name] = _per_run(_parts(row, f"{REST}_{name}"), len(images), f"{REST}_{name}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _per_run(values: list[str], n_runs: int, column: str) -> list[str]:
    """One value per run."""
    if len(values) == n_runs:
        return values
    if len(values) > 1:
        raise TableError(f"got {len(values)} values of {column} for {n_runs} rest runs, expected 1 or {n_runs}")
    return (values or [""]) * n_runs


def _parts(row: Mapping[Any, Any], column: str) -> list[str]:
    """What `;` separates, nothing for an empty cell."""
    text = _text(row.get(column))
    return [part.strip() for part in text.split(";")] if text else []


def _text(value: object) -> str:
    return "" if value is None or pd.isna(value) else str(value).strip()  # type: ignore[call-overload]


def _scan(files: Mapping[str, str], folder: str) -> Scan:
    scan = Scan(**{part: _absolute(path, folder) for part, path in files.items() if path})
    if scan.lost_companion:
        raise TableError(f"got {scan.lost_companion} without a warp, expected both", path=scan.image)
    return scan


def _absolute(path: str, folder: str) -> str:
    """A URI as it is, a relative path from the folder of the table."""
    if path.startswith(ZIP):
        name, archive = split_member(path)
        return member(_absolute(archive, folder), name)
    if is_remote(path) or path.startswith(("/", "~", "file://")):
        return normalize(path)
    inside = posixpath.normpath(path)
    if inside.split("/", 1)[0] == "..":
        raise UnsafePathError(f"got {path}, which leads out of {folder}, expected a path below it or an absolute one")
    return normalize(f"{folder}/{inside}")
