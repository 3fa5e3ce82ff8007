"""`dtg init`: from files to a study: ROI maps on the grid, manifest, phenotypes, and study.yaml, written last."""

from __future__ import annotations

import importlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import zarr

from dtg_ray.cohort import manifest
from dtg_ray.cohort.layouts import Found, ukb, with_retest
from dtg_ray.config import DEFAULT_MODELS, BaselineConfig, StudyConfig, merge, parse, read_yaml, to_yaml
from dtg_ray.errors import ConfigError, SubjectError, UsageError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.rois import load_rois, natural_order
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.series import read_image
from dtg_ray.store.files import filesystem, is_remote, normalize, read
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import COHORT, CONFIG, LEFT_OUT, PHENOTYPES, ROIS, Study, cohort_bytes, space_hash

IMAGES = (".nii", ".nii.gz", ".nii.zst")
REASONS_SHOWN = 12
"""Reasons for leaving people out that `dtg init` prints; all are in the study."""


@dataclass(frozen=True)
class Summary:
    """What `dtg init` did.

    Parameters
    ----------
    study : Study
    left_out : dict of str to str
    created : bool
        False when the same study was there already.
    only_retest : int
        How many were found on a second visit alone.
    """

    study: Study
    left_out: dict[str, str]
    created: bool
    only_retest: int = 0


def find(layout: str, root: str | list[str], subjects: str | None, settings: Mapping[str, Any]) -> Found:
    """The people below a root.

    Parameters
    ----------
    layout : "ukb", "hcp", "bids" or "table"
    root : str or list of str
        What the layout's `find` takes.
    subjects : str, optional
        URI of a text file: only these people, one per line.
    settings : mapping
        Further arguments of the layout's `find`.

    Raises
    ------
    ConfigError
        When nothing is found, or none of the people wanted is there.
    """
    module = importlib.import_module(f"dtg_ray.cohort.layouts.{layout}")
    if subjects is None:
        found: Found = module.find(root, **settings)
        return found
    wanted = list(dict.fromkeys(read(normalize(subjects)).decode("utf-8-sig").split()))
    if layout == "hcp":  # millions of objects, of which only theirs are listed
        settings = {**settings, "subjects": wanted}
    return _only(module.find(root, **settings), wanted, subjects)


def find_retest(found: Found, layout: str, root: str | list[str], settings: Mapping[str, Any]) -> Found:
    """The people that were found, with the task maps of their second visit.

    Parameters
    ----------
    found : Found
        On the first visit.
    layout : "ukb", "hcp", "bids" or "table"
    root : str or list of str
        Of the second visit.
    settings : mapping
        Further arguments of the layout's `find`, as for the first visit. For UK Biobank, whose files say of which
        visit they are, the instance is the next one.

    Raises
    ------
    ConfigError
        When nothing is found, nobody of the study among it, or the first visit again.
    """
    settings = {name: value for name, value in settings.items() if name != "tables"}  # they are of the first visit
    if layout == "ukb":
        settings["instance"] = settings.get("instance", ukb.FIRST_VISIT) + 1
    module = importlib.import_module(f"dtg_ray.cohort.layouts.{layout}")
    return with_retest(found, module.find(root, **settings, needed="contrasts"))


def _only(found: Found, wanted: list[str], origin: str) -> Found:
    """Some of the people that were found."""
    names = {*wanted, *(f"sub-{name}" for name in wanted)}  # as BIDS calls them
    people = [person for person in found.participants if person.subject in names]
    if not people:
        raise ConfigError(f"{origin}: got {len(wanted)} people, none of whom was found with a rest run")
    known = {person.subject for person in people} | set(found.left_out)
    absent = {name: "wanted, but not found" for name in wanted if not {name, f"sub-{name}"} & known}
    left_out = {name: reason for name, reason in found.left_out.items() if name in names} | absent
    return replace(found, participants=people, left_out=dict(sorted(left_out.items())))


def init(uri: str, found: Found, rois: list[str], settings: Mapping[str, Any]) -> Summary:
    """Make a study, or find that the same one is there.

    Parameters
    ----------
    uri : str
        Root of the study.
    found : Found
        From a layout.
    rois : list of str
        Images, or folders of images.
    settings : mapping
        Any part of study.yaml; the rest gets defaults.

    Raises
    ------
    UsageError
        When another study is there: it is never overwritten.
    ConfigError
        When settings, tables or ROI maps cannot be used.
    """
    config = complete(found, expand(rois), settings)
    study = Study(uri, config)
    chosen = with_contrasts(found, config.contrasts)
    _check_retest(found, chosen, config)
    cohort = manifest.build(chosen, config.cohort)
    phenotypes = _phenotypes(found, cohort)
    if study.storage.exists(CONFIG):
        _check_same(study, config, cohort, phenotypes)
        return Summary(study, found.left_out, created=False, only_retest=found.only_retest)
    write_space(study, config)
    write_table(study.storage, PHENOTYPES, phenotypes)
    left_out = pd.DataFrame({"subject": list(found.left_out), "reason": list(found.left_out.values())}, dtype="str")
    write_table(study.storage, LEFT_OUT, left_out)
    study.storage.write(COHORT, cohort_bytes(cohort))
    study.storage.write(CONFIG, to_yaml(config).encode())
    return Summary(study, found.left_out, created=True, only_retest=found.only_retest)


def complete(found: Found, rois: list[str], settings: Mapping[str, Any]) -> StudyConfig:
    """The configuration: what was found and what was set; contrasts default to all that were found.

    Raises
    ------
    ConfigError
        When a setting is wrong or there is no contrast at all.
    """
    counts = Counter(name for person in found.participants for name in person.contrasts)
    base: dict[str, Any] = {"rois": rois, "contrasts": sorted(counts)}
    if "models" not in settings and any(person.retest for person in found.participants):
        base["models"] = {**DEFAULT_MODELS, "retest": BaselineConfig(kind="retest")}
    document = merge(base, settings)
    if not document["contrasts"]:
        raise ConfigError(
            "got no task map of anybody, expected at least one contrast to train on",
            hint="BIDS: *_contrast-NAME_stat-z_statmap.nii.gz; table: columns 'contrast:NAME'",
        )
    config = parse(document)
    if absent := [name for name in config.contrasts if not counts[name]]:
        raise ConfigError(f"contrasts: got {', '.join(absent)}, which nobody has, expected some of {sorted(counts)}")
    return config


def with_contrasts(found: Found, contrasts: tuple[str, ...]) -> Found:
    """The participants with the contrasts of the study alone: who has none of them did no task, for this study."""

    def of_study(maps: Mapping[str, Scan]) -> dict[str, Scan]:
        return {name: maps[name] for name in contrasts if name in maps}

    people = [
        replace(person, contrasts=of_study(person.contrasts), retest=of_study(person.retest))
        for person in found.participants
    ]
    return replace(found, participants=people)


def _check_retest(found: Found, chosen: Found, config: StudyConfig) -> None:
    """Refuse a second visit of which the study takes nothing, and a model of second visits that nobody has."""
    there = {name for person in found.participants for name in person.retest}
    models = [name for name, model in config.models.items() if model.kind == "retest"]
    if models and not there:
        raise ConfigError(
            f"models.{models[0]}: got no second visit of anybody, expected one",
            hint="`dtg init --retest ROOT` names it",
        )
    if there and not any(person.retest for person in chosen.participants):
        names = ", ".join(sorted(there))
        raise ConfigError(f"got a second visit with maps of {names} alone, expected some of the study's contrasts")


def expand(rois: list[str]) -> list[str]:
    """Files of ROI maps; a folder stands for all images in it, in natural order."""
    paths: list[str] = []
    for uri in map(normalize, rois):
        if filesystem(uri).isdir(uri):
            inside = [name for name in filesystem(uri).ls(uri, detail=False) if name.endswith(IMAGES)]
            prefix = f"{uri.split('://')[0]}://" if is_remote(uri) else ""
            paths += natural_order([f"{prefix}{name}" for name in inside])
        else:
            paths.append(uri)
    return paths


def make_grid(config: StudyConfig) -> Grid:
    """The grid of a study: MNI152, or that of a mask image."""
    if config.grid.mask is None:
        return Grid.mni152(config.grid.resolution)
    try:
        return Grid.from_mask(read_image(config.grid.mask))
    except (SubjectError, ValueError) as error:
        raise ConfigError(f"{config.grid.mask}: cannot be used as a mask: {error}") from error


def write_space(study: Study, config: StudyConfig) -> None:
    """Write rois.zarr: ROI maps (roi, voxel), the mask and affine of the grid, grey matter."""
    grid = make_grid(config)
    rois = load_rois(config.rois, grid, config.roi_kind)
    grey = grid.grey_matter()
    if not grey.any():
        grey = np.ones(grid.n_voxels, dtype=bool)
    group = zarr.open_group(study.storage.zarr_store(ROIS), mode="w", zarr_format=3)
    group.attrs.update({"affine": grid.affine.tolist(), "fingerprint": space_hash(grid, rois), "kind": rois.kind})
    names = np.array(rois.names, dtype=np.dtypes.StringDType())
    for key, data, dimensions in (
        ("rois", rois.maps, ("roi", "voxel")),
        ("roi", names, ("roi",)),
        ("mask", grid.mask, ("i", "j", "k")),
        ("grey_matter", grey, ("voxel",)),
        *((axis, grid.coordinates[:, number], ("voxel",)) for number, axis in enumerate("xyz")),
    ):
        group.create_array(key, data=data, dimension_names=dimensions)


def _phenotypes(found: Found, cohort: pd.DataFrame) -> pd.DataFrame:
    """What is known about the people of the cohort, in its order."""
    return found.phenotypes.set_index("subject").reindex(cohort["subject"]).rename_axis("subject").reset_index()


def _check_same(study: Study, config: StudyConfig, cohort: pd.DataFrame, phenotypes: pd.DataFrame) -> None:
    """Refuse to make another study where there is one."""
    there = Study(study.uri)
    before, wanted = there.config.model_dump(mode="json"), config.model_dump(mode="json")
    different = sorted(key for key in wanted if before.get(key) != wanted[key])
    compared = [
        "subject",
        "block",
        "split",
        "group",
        "rest",
        "contrasts",
        "retest",
    ]  # sizes may change while files arrive
    old, new = (table[compared].to_dict("records") for table in (there.cohort, cohort))
    if old != new:
        different.append("the cohort's files or splits")
    elif read_table(study.storage, PHENOTYPES).to_json() != phenotypes.to_json():
        different.append("the phenotypes")
    if different:
        raise UsageError(
            f"{study.uri}: got another study there, which differs in {', '.join(different)}; it was not touched",
            hint="people who came later are appended by `dtg init --add`; for another study choose another place",
        )


def describe(summary: Summary) -> list[str]:
    """The study in words, for the command line."""
    study, cohort = summary.study, summary.study.cohort
    splits = cohort["split"].value_counts()
    shares = ", ".join(f"{splits[name]} {name}" for name in (*manifest.SPLITS, manifest.UNSPLIT) if name in splits)
    maps = Counter(name for entry in cohort["contrasts"] for name in entry)
    missing = int((cohort["rest_bytes"] < 0).sum())
    counts = ", ".join(f"{name} {maps.get(name, 0)}" for name in study.config.contrasts[:12])
    more = f" and {len(study.config.contrasts) - 12} more" if len(study.config.contrasts) > 12 else ""
    blocks = f"{cohort['block'].nunique()} blocks of {study.config.cohort.block_size}"
    lines = [
        f"{study.uri}: {'made' if summary.created else 'the same study is there already; nothing was changed'}",
        f"  {len(cohort)} subjects ({shares}) in {blocks}",
        f"  {sum(map(len, cohort['rest']))} rest runs; maps: {counts}{more}",
        f"  grid {'x'.join(map(str, study.grid.shape))}, {study.grid.n_voxels} voxels, {study.n_rois} ROIs",
        f"  phenotypes: {', '.join(study.phenotypes.columns) or 'none'}",
    ]
    if second := [maps for maps in cohort["retest"] if maps]:
        others = f"; {summary.only_retest} others there take no part" if summary.only_retest else ""
        lines.append(f"  second visit: {sum(map(len, second))} maps of {len(second)} subjects{others}")
    if missing:
        lines.append(f"  {missing} subjects have rest runs that are not there: they will end as failed")
    lines += _left_out(summary.left_out)
    if summary.left_out and summary.created:
        lines.append(f"  all {len(summary.left_out)} of them are in {study.storage.uri(LEFT_OUT)}")
    return lines


def _left_out(left_out: Mapping[str, str]) -> list[str]:
    """Reasons why people do not take part, most frequent first, with the first of them by name."""
    by_reason: dict[str, list[str]] = {}
    for subject, reason in left_out.items():
        by_reason.setdefault(reason, []).append(subject)
    lines = []
    for reason, subjects in sorted(by_reason.items(), key=lambda item: -len(item[1]))[:REASONS_SHOWN]:
        more = ", ..." if len(subjects) > 3 else ""
        lines.append(f"  left out: {len(subjects)} - {reason} ({', '.join(subjects[:3])}{more})")
    return lines


def load_settings(path: str | None) -> dict[str, Any]:
    """Settings from a YAML file, none without a path."""
    if path is None:
        return {}
    return read_yaml(io.BytesIO(read(path)).read().decode(), path)
