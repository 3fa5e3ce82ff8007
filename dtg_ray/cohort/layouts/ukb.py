"""UK Biobank bulk files: fields 20227 (rest) and 20249 (task), as zips or unpacked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtg_ray.cohort.layouts import NEEDED, Found, Needed, Participant, gather, listing
from dtg_ray.cohort.phenotypes import read_tables
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.streams import member
from dtg_ray.store.files import Storage

REST, TASK = "20227", "20249"
FIELDS: dict[Needed, str] = {"rest": REST, "contrasts": TASK}
FIRST_VISIT = 2
"""Number of the first imaging visit; the next number is the repeat."""
BULK = re.compile(rf"(?P<eid>\d+)_(?P<field>{REST}|{TASK})_(?P<instance>\d+)_\d+")
FOLDER = re.compile(rf"(?P<eid>\d+)(_({REST}|{TASK})_(?P<instance>\d+)_\d+)?")
REST_FILES = {
    "image": "fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz",
    "warp": "fMRI/rfMRI.ica/reg/example_func2standard_warp.nii.gz",
    "mask": "fMRI/rfMRI.ica/mask.nii.gz",
    "motion": "fMRI/rfMRI.ica/mc/prefiltered_func_data_mcf_rel_mean.rms",
}
TASK_FILES = {
    "warp": "fMRI/tfMRI.feat/reg/example_func2standard_warp.nii.gz",
    "mask": "fMRI/tfMRI.feat/mask.nii.gz",
}
ZSTATS = {"EMOTION_SHAPES": 1, "EMOTION_FACES": 2, "EMOTION_FACES-SHAPES": 5}
"""Numbers of the z-maps of the faces/shapes task, by the names HCP gives the same contrasts."""
OPTIONAL = ("mask", "motion")


@dataclass(frozen=True)
class _Package:
    """A zip, or a folder into which one was unpacked."""

    field: str
    instance: int
    uri: str
    packed: bool


def find(
    root: str,
    *,
    instance: int = FIRST_VISIT,
    contrasts: Mapping[str, int] | Sequence[str] = ("EMOTION_FACES-SHAPES",),
    tables: Sequence[str] = (),
    needed: Needed = "rest",
) -> Found:
    """Find `<eid>_20227_<instance>_<array>.zip` and `<eid>_20249_...` anywhere below the root, or what was in them.

    What was unpacked may lie in folders of the zips' names or in one folder `<eid>` per participant; the latter does
    not say of which instance it is and counts as the one asked for. Zips are not opened: the names of their members
    are those UK Biobank gives them, and one without them fails its subject later. Unpacked masks, motion and z-maps
    are taken where they are there.

    Parameters
    ----------
    root : str
        A folder, local or s3://.
    instance : int
        2 is the first imaging visit, 3 the repeat.
    contrasts : mapping of str to int, or sequence of str
        Names of `ZSTATS`, or names of one's own with the numbers of their z-maps.
    tables : sequence of str
        CSV, TSV or Parquet tables about the people, by eid.
    needed : {"rest", "contrasts"}
        Who has none of these is left out.

    Raises
    ------
    ConfigError
        When nobody has what is needed of that instance, or a contrast or a table is not known.
    """
    numbers = _numbers(contrasts)
    images = [REST_FILES["image"]] if needed == "rest" else [_zstat(number) for number in numbers.values()]
    storage = Storage(root)
    listed = listing(storage, FOLDER)
    participants, left_out = [], {}
    for eid, packages in _packages(listed, instance).items():
        if reason := _why_not(packages, instance, storage.root, listed, needed, images):
            left_out[eid] = reason
        else:
            of_instance = [package for package in packages if package.instance == instance]
            participants.append(_participant(eid, of_instance, numbers, listed))
    if not participants:
        raise ConfigError(
            f"{storage.root}: got nobody with a {NEEDED[needed]} of instance {instance} among {len(left_out)} people, "
            f"expected <eid>_{FIELDS[needed]}_{instance}_0.zip or folders of such names",
            hint=f"check the folder and --instance{_example(left_out)}",
        )
    return gather(participants, left_out, read_tables(tables), listed)


def _numbers(contrasts: Mapping[str, int] | Sequence[str]) -> dict[str, int]:
    """Number of the z-map of each contrast."""
    if isinstance(contrasts, Mapping):
        return dict(contrasts)
    if unknown := [name for name in contrasts if name not in ZSTATS]:
        raise ConfigError(f"got contrasts {unknown}, expected some of {list(ZSTATS)}")
    return {name: ZSTATS[name] for name in contrasts}


def _packages(listed: Mapping[str, int], instance: int) -> dict[str, list[_Package]]:
    """Everything there is of each eid."""
    found: dict[str, set[_Package]] = defaultdict(set)
    for uri in listed:
        if uri.endswith(".zip"):
            if match := BULK.fullmatch(uri.rsplit("/", 1)[-1].removesuffix(".zip")):
                found[match["eid"]].add(_Package(match["field"], int(match["instance"]), uri, packed=True))
            continue
        folder, _, inside = uri.rpartition("/fMRI/")
        field = {"rfMRI.ica": REST, "tfMRI.feat": TASK}.get(inside.split("/", 1)[0])
        if field and (match := FOLDER.fullmatch(folder.rsplit("/", 1)[-1])):
            number = instance if match["instance"] is None else int(match["instance"])
            found[match["eid"]].add(_Package(field, number, folder, packed=False))
    return {eid: sorted(packages, key=lambda package: package.uri) for eid, packages in sorted(found.items())}


def _zstat(number: int) -> str:
    """Where a z-map is in a package."""
    return f"fMRI/tfMRI.feat/stats/zstat{number}.nii.gz"


def _why_not(
    packages: Sequence[_Package],
    instance: int,
    root: str,
    listed: Mapping[str, int],
    needed: Needed,
    images: Sequence[str],
) -> str:
    """Why somebody does not take part; empty for those who do, who have what is `needed`: one of the `images`."""
    of_instance = [package for package in packages if package.instance == instance]
    for field in (REST, TASK):
        places = [package.uri.removeprefix(f"{root}/") for package in of_instance if package.field == field]
        if len(places) > 1:
            return f"got field {field} of instance {instance} in {' and in '.join(places)}, expected it once"
    of_field = [package for package in packages if package.field == FIELDS[needed]]
    one = next((package for package in of_field if package.instance == instance), None)
    if one is None:
        others = sorted({package.instance for package in of_field})
        only = f", only of instance {', '.join(map(str, others))}" if others else ""
        return f"no {NEEDED[needed]} (field {FIELDS[needed]}) of instance {instance}{only}"
    if not one.packed and not any(f"{one.uri}/{image}" in listed for image in images):
        return f"no {' or '.join(images)} in {one.uri.removeprefix(f'{root}/')}"
    return ""


def _participant(
    eid: str, packages: Sequence[_Package], numbers: Mapping[str, int], listed: Mapping[str, int]
) -> Participant:
    person = Participant(eid)
    for package in packages:
        if package.field == REST:
            person.rest.append(_scan(package, REST_FILES, listed))
            continue
        for name, number in numbers.items():
            image = _zstat(number)
            if package.packed or f"{package.uri}/{image}" in listed:
                person.contrasts[name] = _scan(package, {"image": image, **TASK_FILES}, listed)
    return person


def _scan(package: _Package, files: Mapping[str, str], listed: Mapping[str, int]) -> Scan:
    """An image and its companions in a package; the warp is named even where it is missing, which fails the subject."""
    if package.packed:
        return Scan(**{part: member(package.uri, name) for part, name in files.items()})
    uris = {part: f"{package.uri}/{name}" for part, name in files.items()}
    return Scan(**{part: uri for part, uri in uris.items() if part not in OPTIONAL or uri in listed})


def _example(left_out: Mapping[str, str]) -> str:
    return "".join(f"; {eid}: {reason}" for eid, reason in list(left_out.items())[:1])
