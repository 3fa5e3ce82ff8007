"""HCP Young Adult: the released MNINonLinear folders, on disk or in `s3://hcp-openaccess/HCP_1200`."""

from __future__ import annotations

import contextlib
import csv
import functools
import re
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Literal, NamedTuple

from dtg_ray.cohort.layouts import NEEDED, Found, Needed, Participant, gather
from dtg_ray.cohort.phenotypes import read_tables
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan
from dtg_ray.store.files import Storage, listed_bytes

RUNS = ("REST1_LR", "REST1_RL", "REST2_LR", "REST2_RL")
RESULTS = "MNINonLinear/Results"
SUBJECT = re.compile(r"\d{6}")
FEAT = re.compile(r"tfMRI_[A-Z]+_hp200_s(?P<smoothing>\d+)_(?P<analysis>level2vol|level2_MSMAll)\.feat")
COPES = {"level2vol": "cope{cope}.feat/stats", "level2_MSMAll": "GrayordinatesStats/cope{cope}.feat"}
"""Where the maps of each analysis are; of the second there are volumes only where somebody made them from CIFTI."""
FILES: dict[Needed, str] = {"rest": "rfMRI_REST*_hp2000_clean.nii.gz", "contrasts": "zstat1.nii.gz"}
"""What they are called, for people."""
REQUESTS = 16
"""Subjects listed at once."""
Analysis = Literal["level2vol", "level2_MSMAll"]


class Version(NamedTuple):
    """One of several analyses of the same task runs."""

    smoothing: int
    analysis: str


@dataclass(frozen=True)
class _Wanted:
    """Which maps to look for: (contrast, cope) of each task, and of which versions."""

    copes: Mapping[str, list[tuple[str, int]]]
    smoothing: int | None
    analysis: str | None

    def version(self, folder: str) -> Version | None:
        """The version that a folder of maps holds, None where it is not asked for."""
        match = FEAT.fullmatch(folder)
        if not match or self.analysis not in {None, match["analysis"]}:
            return None
        version = Version(int(match["smoothing"]), match["analysis"])
        return version if self.smoothing in {None, version.smoothing} else None


@dataclass
class _Subject:
    """What one folder holds: rest runs, maps of each version, bytes by URI."""

    name: str
    rest: list[Scan]
    maps: dict[Version, dict[str, Scan]]
    sizes: dict[str, int]

    def participant(self) -> Participant:
        """The same as all layouts tell it; there are maps of one version only."""
        return Participant(
            self.name, self.rest, {name: scan for maps in self.maps.values() for name, scan in maps.items()}
        )


def find(
    root: str,
    *,
    subjects: Sequence[str] | None = None,
    contrasts: Sequence[str] | None = None,
    smoothing: int | None = None,
    analysis: Analysis | None = None,
    tables: Sequence[str] = (),
    needed: Needed = "rest",
) -> Found:
    """Find cleaned rest runs (`rfMRI_REST1_LR_hp2000_clean.nii.gz` ...) and the z-maps of 47 contrasts.

    Only the root and what is needed of each subject's `MNINonLinear/Results` are listed, several subjects at once.
    People with fewer than four rest runs take part.

    Parameters
    ----------
    root : str
        A folder with a folder of six digits per subject, local or s3://.
    subjects : sequence of str, optional
        Only these.
    contrasts : sequence of str, optional
        Only these, called as in `contrast_copes`.
    smoothing : int, optional
        mm, of the maps: the `s2` in `tfMRI_WM_hp200_s2_level2vol.feat`.
    analysis : {"level2vol", "level2_MSMAll"}, optional
        Of the maps; the second is CIFTI in the release and is found where it was made into `zstat1.nii.gz`.
    tables : sequence of str
        CSV, TSV or Parquet tables about the people, such as HCP's own, by `Subject`.
    needed : {"rest", "contrasts"}
        Who has none of these is left out.

    Raises
    ------
    ConfigError
        When nobody has what is needed, maps are there in several versions, or a name is not known.
    """
    storage = Storage(root)
    wanted = _Wanted(_copes(contrasts), smoothing, analysis)
    names = _subjects(storage) if subjects is None else _checked(subjects)
    with contextlib.closing(_look(storage, names, wanted)) as looked:
        found = _one_version(looked, needed)
    people = [one.participant() for one in found]
    participants = [person for person in people if person.has(needed)]
    reason = f"no {NEEDED[needed]} ({FILES[needed]})"
    left_out = {person.subject: reason for person in people if not person.has(needed)}
    if not participants:
        raise ConfigError(
            f"{storage.root}: got {len(names)} folders of subjects, none with a {NEEDED[needed]}, expected one",
            hint=f"the root holds folders such as 100307/{RESULTS}/rfMRI_REST1_LR",
        )
    sizes = {uri: size for one in found for uri, size in one.sizes.items()}
    return gather(participants, left_out, read_tables(tables), sizes)


@functools.cache
def contrast_copes() -> dict[str, tuple[str, int]]:
    """Task and number of the cope of each contrast, by names such as `EMOTION_FACES-SHAPES`."""
    text = resources.files(__package__).joinpath("hcp_contrasts.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {f"{row['task']}_{row['contrast']}": (row["task"], int(row["cope"])) for row in rows}


def _copes(contrasts: Sequence[str] | None) -> dict[str, list[tuple[str, int]]]:
    """Contrasts and copes of each task."""
    known = contrast_copes()
    names = list(known) if contrasts is None else contrasts
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"got contrasts {unknown}, expected names such as {', '.join(list(known)[:3])}")
    copes = defaultdict(list)
    for name in names:
        task, cope = known[name]
        copes[task].append((name, cope))
    return copes


def _subjects(storage: Storage) -> list[str]:
    return sorted(name for name in _entries(storage, "") if SUBJECT.fullmatch(name))


def _checked(subjects: Sequence[str]) -> list[str]:
    if strange := [name for name in subjects if not SUBJECT.fullmatch(name)]:
        raise ConfigError(f"got subjects {strange[:5]}, expected numbers of six digits")
    return sorted(set(subjects))


def _look(storage: Storage, names: Sequence[str], wanted: _Wanted) -> Generator[_Subject]:
    """All subjects in order; those not yet begun are dropped when nobody asks for more."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from pool.map(lambda name: _subject(storage, name, wanted), names)


def _subject(storage: Storage, name: str, wanted: _Wanted) -> _Subject:
    results = f"{name}/{RESULTS}"
    one, there = _Subject(name, [], defaultdict(dict), {}), _entries(storage, results)
    for run in RUNS:
        if f"rfMRI_{run}" in there:
            _add_run(one, storage, f"{results}/rfMRI_{run}", f"rfMRI_{run}_hp2000_clean.nii.gz")
    for task, copes in wanted.copes.items():
        if f"tfMRI_{task}" not in there:
            continue
        for folder in _entries(storage, f"{results}/tfMRI_{task}"):
            if version := wanted.version(folder):
                _add_maps(one, storage, f"{results}/tfMRI_{task}/{folder}", version, copes)
    return one


def _add_run(one: _Subject, storage: Storage, folder: str, image: str) -> None:
    files = _entries(storage, folder)
    if image in files:
        uri, motion = storage.uri(f"{folder}/{image}"), "Movement_RelativeRMS_mean.txt"
        one.rest.append(Scan(uri, motion=storage.uri(f"{folder}/{motion}") if motion in files else ""))
        one.sizes[uri] = files[image]


def _add_maps(one: _Subject, storage: Storage, folder: str, version: Version, copes: Sequence[tuple[str, int]]) -> None:
    files = storage.sizes(folder)
    for name, cope in copes:
        image = f"{folder}/{COPES[version.analysis].format(cope=cope)}/zstat1.nii.gz"
        if image in files:
            one.maps[version][name] = Scan(storage.uri(image))
            one.sizes[storage.uri(image)] = files[image]


def _entries(storage: Storage, folder: str) -> dict[str, int]:
    """Bytes of what is directly in a folder, by name; empty where there is no such folder."""
    try:
        entries = storage.fs.ls(storage.uri(folder), detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: listed_bytes(entry) for entry in entries}


def _one_version(subjects: Iterator[_Subject], needed: Needed) -> list[_Subject]:
    """All subjects, as long as the maps of all who take part are of the same version."""
    owner: dict[Version, str] = {}
    found = []
    for one in subjects:
        for version in one.maps if one.rest or needed == "contrasts" else ():
            owner.setdefault(version, one.name)
        if len(owner) > 1:
            some = ", ".join(
                f"{name.analysis} s{name.smoothing} ({subject})" for name, subject in sorted(owner.items())
            )
            raise ConfigError(
                f"got task maps in several versions: {some}, expected one for all subjects",
                hint="choose by --smoothing, for example 4, or --analysis, level2vol or level2_MSMAll",
            )
        found.append(one)
    return found
