"""BIDS derivatives: rest runs as fMRIPrep writes them, z-maps of any tool, tables at the top."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dtg_ray.cohort.layouts import NEEDED, Found, Needed, Participant, gather, listing
from dtg_ray.cohort.phenotypes import read_tables
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.rois import natural_key
from dtg_ray.imaging.scan import Scan
from dtg_ray.store.files import Storage

ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9+]+)")
FOLDER = re.compile(r"(sub|ses)-[a-zA-Z0-9+]+")
IMAGE, TABLE = re.compile(r"\.nii(\.gz|\.zst)?$"), re.compile(r"\.tsv$")
DISTINGUISHING = ("space", "res", "desc", "echo", "part")
"""Entities that name versions of one and the same run, of which one has to be chosen."""
INDIVIDUAL = ("T1w", "T2w", "individual", "native", "orig", "func", "bold", "boldref", "fsnative")
"""Spaces of one person, taken only where `select` asks for them: without a warp nothing leads from there to MNI152."""
MAPS = ("statmap", "zmap", "zstat")
CONFOUNDS = ("timeseries", "regressors")
"""What fMRIPrep calls its table of confounds, and called it before version 20."""
PEOPLE = ("participants.tsv", "phenotypes.tsv")
DESCRIPTION = "dataset_description.json"


@dataclass(frozen=True)
class _File:
    """A file and what its name says."""

    uri: str
    entities: Mapping[str, str]
    suffix: str

    @property
    def subject(self) -> str:
        return f"sub-{self.entities['sub']}"

    @property
    def contrast(self) -> str:
        """TASK_CONTRAST, as contrast names alone repeat across tasks; empty for a file that is no contrast's."""
        # HALFpipe's contrast- is that of its group model
        name = self.entities.get("taskcontrast") or self.entities.get("contrast")
        return "_".join(part for part in (self.entities.get("task"), name) if part) if name else ""

    def without(self, *keys: str) -> frozenset[tuple[str, str]]:
        """All entities but some."""
        return frozenset((key, value) for key, value in self.entities.items() if key not in keys)


def find(
    roots: str | Sequence[str],
    *,
    rest_task: str = "rest",
    select: Mapping[str, str] | None = None,
    needed: Needed = "rest",
) -> Found:
    """Find rest runs (`*_task-rest_*_bold.nii[.gz|.zst]`) and z-maps (`*_contrast-*_stat-z_statmap.nii[.gz|.zst]`).

    Brain masks and confounds that fMRIPrep wrote for a run go with it. Maps may also be called by `taskcontrast-`
    (HALFpipe), or by the suffix zmap or zstat.

    Parameters
    ----------
    roots : str or sequence of str
        Derivatives folders, local or s3://; people are told by `sub-` across them. Of a dataset the datasets in it
        (folders with a dataset_description.json of their own) are no part, but for those in `derivatives/`.
    rest_task : str
        Value of `task-` of the rest runs.
    select : mapping of str to str, optional
        Entities the files must have, for example `{"space": "MNI152NLin6Asym", "res": "2"}`. A file that does not
        carry the entity at all is not turned away by it, but for BOLD without `space`: that is in native space.
        Images in individual spaces are only taken where `space` is selected.
    needed : {"rest", "contrasts"}
        Who has none of these is left out.

    Raises
    ------
    ConfigError
        When nothing is found, or a run is there in several versions and `select` does not choose one.
    """
    storages = [Storage(root) for root in ([roots] if isinstance(roots, str) else roots)]
    listed = _listed(storages)
    images, tables = _parsed(listed, IMAGE), _parsed(listed, TABLE)
    rest = [file for file in images if file.suffix == "bold" and file.entities.get("task") == rest_task]
    if needed == "rest":  # maps alone need not have all entities that choose among the runs
        _check_selection(select or {}, images)
    runs = [file for file in rest if _selected(file, select or {})]
    maps = [file for file in images if _is_zmap(file) and _selected(file, select or {})]
    _check_versions(runs, maps)
    people = {file.subject: Participant(file.subject) for file in images}
    for run, scan in _scans(runs, images, tables):
        people[run.subject].rest.append(scan)
    for image in maps:
        people[image.subject].contrasts[image.contrast] = Scan(image.uri)
    with_it = [person for person in people.values() if person.has(needed)]
    if not with_it:
        name = {"rest": f"*_task-{rest_task}_*_bold.nii.gz", "contrasts": "*_contrast-*_statmap.nii.gz"}[needed]
        raise ConfigError(
            f"{_roots(storages)}: got no {name} below it, expected at least one",
            hint="check the folder, --rest-task and --select",
        )
    if needed == "rest":
        left_out = _without_rest(people, rest, f"no rest run (task-{rest_task})")
    else:
        left_out = {name: f"no {NEEDED[needed]}" for name, person in people.items() if not person.has(needed)}
    about = [storage.uri(name) for storage in storages for name in PEOPLE if storage.uri(name) in listed]
    return gather(with_it, left_out, read_tables(about), listed)


def parse(name: str, extension: re.Pattern[str] = IMAGE) -> tuple[dict[str, str], str]:
    """Entities and suffix of a BIDS name; the suffix is empty for a file with another extension, by default no NIfTI.

    >>> parse("sub-01/func/sub-01_task-rest_bold.nii.gz")
    ({'sub': '01', 'task': 'rest'}, 'bold')
    """
    file = name.rsplit("/", 1)[-1]
    stem = extension.sub("", file)
    if stem == file:
        return {}, ""
    *parts, suffix = stem.split("_")
    return {match[1]: match[2] for part in parts if (match := ENTITY.fullmatch(part))}, suffix


def _listed(storages: Sequence[Storage]) -> dict[str, int]:
    """Bytes of all files by URI; a folder without any is a mistake in its name."""
    listed: dict[str, int] = {}
    for storage in storages:
        files = listing(storage, FOLDER)
        if not files:
            raise ConfigError(f"{storage.root}: got no file below it, expected BIDS derivatives")
        listed |= _own(files, storage.root)
    return listed


def _own(files: Mapping[str, int], root: str) -> dict[str, int]:
    """Files of a dataset itself and of its derivatives, without those of other datasets in it, such as another visit.

    A folder that is no dataset, but holds some, is all of these.
    """
    others = []
    for uri in files:
        folder, _, name = uri.removeprefix(f"{root}/").partition("/")
        if name == DESCRIPTION and folder != "derivatives" and not FOLDER.fullmatch(folder):
            others.append(f"{root}/{folder}/")
    is_dataset = f"{root}/{DESCRIPTION}" in files
    return {uri: size for uri, size in files.items() if not (is_dataset and uri.startswith(tuple(others)))}


def _parsed(uris: Iterable[str], extension: re.Pattern[str]) -> list[_File]:
    """Files of subjects."""
    files = (_File(uri, *parse(uri, extension)) for uri in uris)
    return [file for file in files if "sub" in file.entities]


def _is_zmap(file: _File) -> bool:
    return file.suffix in MAPS and bool(file.contrast) and file.entities.get("stat", "z") == "z"


def _check_selection(select: Mapping[str, str], images: Iterable[_File]) -> None:
    """Refuse an entity that no image has: it would choose nothing, in silence."""
    known = {"space", *(key for image in images for key in image.entities)}
    if unknown := [key for key in select if key not in known]:
        raise ConfigError(f"got --select {unknown[0]}, an entity that no image has, expected some of {sorted(known)}")


def _is_individual(file: _File) -> bool:
    """Whether an image lies in somebody's own space; fMRIPrep's runs without `space` do."""
    return file.entities.get("space", "T1w" if file.entities.get("desc") == "preproc" else "") in INDIVIDUAL


def _selected(file: _File, select: Mapping[str, str]) -> bool:
    """Whether a file has the entities, as far as it carries them, and lies in a common space or in the one chosen.

    BOLD without `space` is native by BIDS.
    """
    if "space" not in select and _is_individual(file):
        return False
    native = {"space": "native"} if file.suffix == "bold" else {}
    return all({**native, **file.entities}.get(key, value) == value for key, value in select.items())


def _check_versions(runs: Iterable[_File], maps: Iterable[_File]) -> None:
    """Refuse what is there more than once."""
    versions: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for run in runs:
        kept = (f"{key}-{value}" for key, value in sorted(run.without(*DISTINGUISHING)) if key != "sub")
        versions["bold", run.subject, *kept].append(run.uri)
    for image in maps:
        versions["statmap", image.subject, image.contrast].append(image.uri)
    for identity, uris in versions.items():
        if len(uris) > 1:
            names = ", ".join(sorted(PurePosixPath(uri).name for uri in uris))
            raise ConfigError(
                f"got {len(uris)} versions of {' '.join(identity)}: {names}",
                hint="choose one with --select, for example --select space=MNI152NLin6Asym --select res=2",
            )


def _scans(runs: Iterable[_File], images: Iterable[_File], tables: Iterable[_File]) -> list[tuple[_File, Scan]]:
    """The runs in natural order, each with its brain mask, in the same space, and its confounds."""
    masks, confounds = defaultdict(list), defaultdict(list)
    for image in images:
        if image.suffix == "mask" and image.entities.get("desc") == "brain":
            masks[image.without("desc")].append(image)
    for table in tables:
        if table.suffix in CONFOUNDS and table.entities.get("desc") == "confounds":
            confounds[table.without(*DISTINGUISHING)].append(table)
    scans = []
    for run in sorted(runs, key=lambda run: (natural_key(PurePosixPath(run.uri).name), run.uri)):
        mask = _nearest(run, masks.get(run.without("desc"), []))
        scans.append((run, Scan(run.uri, mask=mask, confounds=_nearest(run, confounds[run.without(*DISTINGUISHING)]))))
    return scans


def _nearest(run: _File, files: Iterable[_File]) -> str:
    """The one in the folder of the run, otherwise in another; today's name before the old one."""
    folder = run.uri.rsplit("/", 1)[0]
    order = sorted((file.uri.rsplit("/", 1)[0] != folder, file.suffix == CONFOUNDS[1], file.uri) for file in files)
    return order[0][-1] if order else ""


def _without_rest(people: Mapping[str, Participant], rest: Iterable[_File], reason: str) -> dict[str, str]:
    """Why those without a rest run do not take part: they have none, or none that was asked for."""
    others = {file.subject for file in rest}
    absent = [subject for subject, person in people.items() if not person.rest]
    return {
        subject: f"{reason} as selected, or only in an individual space" if subject in others else reason
        for subject in absent
    }


def _roots(storages: Iterable[Storage]) -> str:
    return ", ".join(storage.root for storage in storages)
