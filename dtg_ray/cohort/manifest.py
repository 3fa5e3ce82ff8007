"""The manifest: a row per subject with its files, its block and its split, in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from dtg_ray.cohort.layouts import Found, Participant
from dtg_ray.config import CohortConfig
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.streams import archive_of
from dtg_ray.store.files import filesystem, is_remote

SPLITS = ("train", "validation", "test")
TRAINING = ("train", "validation")
"""Splits on whose connectomes and maps models are trained."""
REQUESTS = 16
"""Sizes of files asked for at once."""
UNSPLIT = "synthesis"
"""Split of those who never did a task: maps are synthesized for them."""
GONE, GONE_TRAINED = "withdrawn", "withdrawn_trained"
"""Splits of lines whose participants withdrew; models had learnt from the second."""
RELATED = "related"
"""Split of those who came later and are of one group (a family) with somebody trained or validated on."""


def build(found: Found, config: CohortConfig) -> pd.DataFrame:
    """The manifest of a cohort.

    Parameters
    ----------
    found : Found
        Of its phenotypes the `stratify_by` and `group_by` columns are used where they exist.
    config : CohortConfig

    Returns
    -------
    DataFrame
        subject, row (int, in the arrays), block (int), split, group, rest (list of Scan), contrasts (dict of Scan),
        retest (dict of Scan), rest_bytes (of all runs, -1 where a file is not there or may not be read); sorted by
        subject. Who has maps of both visits is in the test split.

    Raises
    ------
    ConfigError
        When a subject occurs twice.
    """
    people = sorted(found.participants, key=lambda person: person.subject)
    subjects = [person.subject for person in people]
    if len(set(subjects)) < len(subjects):
        raise ConfigError(f"got {len(subjects) - len(set(subjects))} subjects more than once, expected each once")
    _check_runs(people)
    about = found.phenotypes.set_index("subject").reindex(subjects)
    groups = _labels(about, config.group_by, default=subjects)
    strata = _labels(about, config.stratify_by, default=[""] * len(people))
    with_maps = np.array([bool(person.contrasts) for person in people])
    twice = np.array([bool(person.contrasts and person.retest) for person in people])
    return pd.DataFrame(
        {
            "subject": subjects,
            "row": np.arange(len(people)),
            "block": np.arange(len(people)) // config.block_size,
            "split": np.where(with_maps, assign_splits(groups, strata, with_maps, twice, config), UNSPLIT),
            "group": groups,
            "rest": [person.rest for person in people],
            "contrasts": [dict(sorted(person.contrasts.items())) for person in people],
            "retest": [dict(sorted(person.retest.items())) for person in people],
            "rest_bytes": _rest_bytes(people, found.sizes),
        }
    )


def extend(manifest: pd.DataFrame, found: Found, config: CohortConfig) -> pd.DataFrame:
    """The manifest with people who came later, in blocks of their own; nothing of the lines before changes.

    Models stay as they were trained: the new people who did tasks are in the test split, unless somebody of their group
    is trained or validated on.

    Parameters
    ----------
    manifest : DataFrame
        As `build` made it.
    found : Found
        None of whom is in it.
    config : CohortConfig

    Raises
    ------
    ConfigError
        As `build`; when a rest run is one of somebody in the manifest.
    """
    there = zip(manifest["subject"], manifest["rest"], strict=True)
    _check_runs([*(Participant(str(subject), runs) for subject, runs in there), *found.participants])
    new = build(found, config)
    first = int(manifest["block"].max()) + 1
    trained = set(manifest.loc[manifest["split"].isin([*TRAINING, GONE_TRAINED]), "group"]) - {""}
    new["split"] = np.where(new["split"] == UNSPLIT, UNSPLIT, np.where(new["group"].isin(trained), RELATED, "test"))
    new["block"] += first
    new["row"] += first * config.block_size
    return pd.concat([manifest, new.set_index("subject", drop=False)])


def _check_runs(people: Sequence[Participant]) -> None:
    """Refuse a run that is named twice: its copies could be trained and tested on."""
    owner: dict[str, str] = {}
    for person in people:
        for run in person.rest:
            if run.image in owner:
                raise ConfigError(
                    f"got {run.image} as a rest run of {owner[run.image]} and of {person.subject}, expected it once"
                )
            owner[run.image] = person.subject


def assign_splits(
    groups: Sequence[str], strata: Sequence[str], counted: np.ndarray, held_out: np.ndarray, config: CohortConfig
) -> np.ndarray:
    """Give every group to the split that lacks most, stratum by stratum, in an order drawn from the seed.

    Groups with somebody to hold out come first and go to the test split. Where they are more than its share, the
    others make up the training and validation splits in the proportion of their shares.

    Parameters
    ----------
    groups : (n,) str
        Members of one group (a family, a site) always share a split.
    strata : (n,) str
        Balanced over the splits.
    counted : (n,) bool
        Who counts towards the shares.
    held_out : (n,) bool
        Who has to be in the test split.
    config : CohortConfig

    Returns
    -------
    (n,) str
        train, validation or test.
    """
    shares = np.array([1 - config.validation - config.test, config.validation, config.test])
    frame = pd.DataFrame({"group": groups, "stratum": strata, "counted": counted.astype(int)})
    sizes = frame.pivot_table("counted", "group", "stratum", "sum", fill_value=0)  # (groups, strata)
    order = np.random.default_rng(config.seed).permutation(len(sizes))
    order = order[np.argsort(-sizes.to_numpy()[order].sum(axis=1), kind="stable")]  # large groups first
    tested = sizes.index.isin(frame.loc[held_out, "group"])  # (groups,)
    order = order[np.argsort(~tested[order], kind="stable")]
    held = sizes.to_numpy()[tested].sum() / max(sizes.to_numpy().sum(), 1)
    if held > config.test:
        shares = np.append(shares[:2] * (1 - held) / (1 - config.test), held)
    assigned = np.zeros((len(SPLITS), sizes.shape[1]))
    choice = {}
    for row in order:
        members = sizes.to_numpy()[row]  # (strata,)
        owed = np.outer(shares, assigned.sum(axis=0) + members) - assigned  # (splits, strata)
        lacking = owed @ (members / max(members.sum(), 1)) + 1e-3 * (
            shares * (assigned.sum() + 1) - assigned.sum(axis=1)
        )
        split = SPLITS.index("test") if tested[row] else int(np.argmax(np.where(shares > 0, lacking, -np.inf)))
        assigned[split] += members
        choice[sizes.index[row]] = SPLITS[split]
    return np.array([choice[group] for group in groups])


def _labels(about: pd.DataFrame, columns: Sequence[str], default: Sequence[str]) -> list[str]:
    """One label per person from the columns that exist; people without a value get the default."""
    present = [column for column in columns if column in about]
    if not present:
        return list(default)
    values = about[present].astype("str").fillna("").agg("/".join, axis=1)
    known = about[present].notna().all(axis=1)
    return [value if ok else fallback for value, ok, fallback in zip(values, known, default, strict=True)]


def _rest_bytes(people: Sequence[Participant], sizes: Mapping[str, int]) -> list[int]:
    """Bytes of all runs of each person, -1 when one of them is not there or may not be read."""
    files = [[archive_of(run.image) for run in person.rest] for person in people]
    unknown = sorted({uri for uris in files for uri in uris} - set(sizes))
    with ThreadPoolExecutor(REQUESTS) as pool:
        known = {**sizes, **dict(zip(unknown, pool.map(_size, unknown), strict=True))}
    return [-1 if any(known[uri] < 0 for uri in uris) else sum(known[uri] for uri in uris) for uris in files]


def _size(uri: str) -> int:
    """Bytes of a file, -1 when it is not there or may not be read."""
    try:
        return int(filesystem(uri).size(uri if is_remote(uri) else uri.removeprefix("file://")) or 0)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return -1
