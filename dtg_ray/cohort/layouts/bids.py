"""BIDS derivatives: rest runs named by BIDS entities, task maps by `contrast-`, tables at the top."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

import pandas as pd

from dtg_ray.cohort.layouts import Found, Participant
from dtg_ray.cohort.phenotypes import empty_phenotypes, read_phenotypes
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.rois import natural_order
from dtg_ray.store.files import Storage

ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9+]+)")
DISTINGUISHING = ("space", "res", "desc")
"""Entities that name versions of one and the same run, of which one has to be chosen."""


def find(root: str, *, rest_task: str = "rest", select: Mapping[str, str] | None = None) -> Found:
    """Find rest runs (`*_task-rest_*_bold.nii[.gz]`) and task maps (`*_contrast-*_statmap.nii[.gz]`).

    Parameters
    ----------
    root : str
        A derivatives folder, local or s3://.
    rest_task : str
        Value of `task-` of the rest runs.
    select : mapping of str to str, optional
        Entities the files must have, for example `{"space": "MNI152NLin6Asym", "res": "2"}`. A file that does not
        carry the entity at all is not turned away by it, but for BOLD without `space`: that is in native space.

    Raises
    ------
    ConfigError
        When nothing is found, or a run is there in several versions and `select` does not choose one.
    """
    storage = Storage(root)
    people: dict[str, Participant] = {}
    versions: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in storage.names(""):
        entities, suffix = parse(name)
        if suffix not in {"bold", "statmap"} or "sub" not in entities or not _selected(entities, suffix, select or {}):
            continue
        subject = f"sub-{entities['sub']}"
        person = people.setdefault(subject, Participant(subject))
        if suffix == "bold" and entities.get("task") == rest_task:
            person.rest.append(storage.uri(name))
        elif suffix == "statmap" and "contrast" in entities and entities.get("stat", "z") == "z":
            _add_contrast(person, entities, storage.uri(name), versions)
            continue
        else:
            continue
        versions[_identity(entities, suffix)].append(storage.uri(name))
    _check_versions(versions)
    return _collect(storage, people, rest_task)


def parse(name: str) -> tuple[dict[str, str], str]:
    """Entities and suffix of a BIDS name; the suffix is empty for anything but a NIfTI image.

    >>> parse("sub-01/func/sub-01_task-rest_bold.nii.gz")
    ({'sub': '01', 'task': 'rest'}, 'bold')
    """
    file = PurePosixPath(name).name
    stem = re.sub(r"\.nii(\.gz)?$", "", file)
    if stem == file:
        return {}, ""
    *parts, suffix = stem.split("_")
    return {match[1]: match[2] for part in parts if (match := ENTITY.fullmatch(part))}, suffix


def _selected(entities: Mapping[str, str], suffix: str, select: Mapping[str, str]) -> bool:
    """Whether a file has the entities, as far as it carries them; BOLD without `space` is native by BIDS."""
    native = {"space": "native"} if suffix == "bold" else {}
    return all({**native, **entities}.get(key, value) == value for key, value in select.items())


def _identity(entities: Mapping[str, str], suffix: str) -> tuple[str, ...]:
    """What makes a run one of its own: all entities but those that name its versions."""
    kept = {key: value for key, value in entities.items() if key not in DISTINGUISHING}
    return (suffix, *(f"{key}-{value}" for key, value in kept.items()))


def _add_contrast(
    person: Participant, entities: Mapping[str, str], uri: str, versions: dict[tuple[str, ...], list[str]]
) -> None:
    """A contrast is called TASK_CONTRAST: contrast names alone repeat across tasks."""
    name = "_".join(part for part in (entities.get("task"), entities["contrast"]) if part)
    versions["statmap", person.subject, name].append(uri)
    person.contrasts[name] = uri


def _check_versions(versions: Mapping[tuple[str, ...], list[str]]) -> None:
    for identity, uris in versions.items():
        if len(uris) > 1:
            names = ", ".join(sorted(PurePosixPath(uri).name for uri in uris))
            raise ConfigError(
                f"got {len(uris)} versions of {' '.join(identity)}: {names}",
                hint="choose one with --select, for example --select space=MNI152NLin6Asym --select res=2",
            )


def _collect(storage: Storage, people: Mapping[str, Participant], rest_task: str) -> Found:
    with_rest = [person for _, person in sorted(people.items()) if person.rest]
    for person in with_rest:
        person.rest = natural_order(person.rest)
    if not with_rest:
        raise ConfigError(
            f"{storage.root}: got no *_task-{rest_task}_*_bold.nii.gz below it, expected at least one",
            hint="check the folder, --rest-task and --select",
        )
    left_out = {subject: f"no rest run (task-{rest_task})" for subject, person in people.items() if not person.rest}
    phenotypes = empty_phenotypes()
    for table in ("participants.tsv", "phenotypes.tsv"):
        if storage.exists(table):
            phenotypes = _join(phenotypes, read_phenotypes(storage.uri(table)), storage.uri(table))
    for subject in set(phenotypes["subject"]) - set(people):
        left_out[subject] = "in the tables, but without any image"
    return Found(with_rest, dict(sorted(left_out.items())), phenotypes)


def _join(one: pd.DataFrame, other: pd.DataFrame, path: str) -> pd.DataFrame:
    """Two tables about people side by side; a column in both would have two meanings."""
    if twice := [name for name in other.columns if name in one.columns and name != "subject"]:
        raise ConfigError(
            f"{path}: got columns {twice} that participants.tsv has as well, expected each in one table",
            hint="remove them from one of the two",
        )
    return one.merge(other, on="subject", how="outer")
