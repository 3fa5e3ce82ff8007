"""`dtg init`: from files to a study: ROI maps on the grid, manifest, phenotypes, and study.yaml, written last."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import zarr

from dtg_ray.cohort import manifest
from dtg_ray.cohort.layouts import Found, Participant
from dtg_ray.config import StudyConfig, merge, parse, read_yaml, to_yaml
from dtg_ray.errors import ConfigError, UsageError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.rois import load_rois, natural_order
from dtg_ray.store.files import filesystem, is_remote, normalize
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import COHORT, CONFIG, PHENOTYPES, ROIS, Study, cohort_bytes, space_hash


@dataclass(frozen=True)
class Summary:
    """What `dtg init` did.

    Parameters
    ----------
    study : Study
    left_out : dict of str to str
    created : bool
        False when the same study was there already.
    """

    study: Study
    left_out: dict[str, str]
    created: bool


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
    study = Study(uri)
    config = complete(found, expand(rois), settings)
    cohort = manifest.build(_with_contrasts(found.participants, config.contrasts), found.phenotypes, config.cohort)
    phenotypes = _phenotypes(found, cohort)
    if study.storage.exists(CONFIG):
        _check_same(study, config, cohort, phenotypes)
        return Summary(study, found.left_out, created=False)
    write_space(study, config)
    write_table(study.storage, PHENOTYPES, phenotypes)
    study.storage.write(COHORT, cohort_bytes(cohort))
    study.storage.write(CONFIG, to_yaml(config).encode())
    return Summary(study, found.left_out, created=True)


def complete(found: Found, rois: list[str], settings: Mapping[str, Any]) -> StudyConfig:
    """The configuration: what was found and what was set; contrasts default to all that were found.

    Raises
    ------
    ConfigError
        When a setting is wrong or there is no contrast at all.
    """
    counts = Counter(name for person in found.participants for name in person.contrasts)
    document = merge({"rois": rois, "contrasts": sorted(counts)}, settings)
    if not document["contrasts"]:
        raise ConfigError(
            "got no task map of anybody, expected at least one contrast to train on",
            hint="BIDS: *_contrast-NAME_stat-z_statmap.nii.gz; table: columns 'contrast:NAME'",
        )
    config = parse(document)
    if absent := [name for name in config.contrasts if not counts[name]]:
        raise ConfigError(f"contrasts: got {', '.join(absent)}, which nobody has, expected some of {sorted(counts)}")
    return config


def _with_contrasts(participants: list[Participant], contrasts: tuple[str, ...]) -> list[Participant]:
    """The participants with the contrasts of the study alone: who has none of them did no task, for this study."""
    return [
        replace(person, contrasts={name: person.contrasts[name] for name in contrasts if name in person.contrasts})
        for person in participants
    ]


def expand(rois: list[str]) -> list[str]:
    """Files of ROI maps; a folder stands for all images in it, in natural order."""
    paths: list[str] = []
    for uri in map(normalize, rois):
        if filesystem(uri).isdir(uri):
            inside = [name for name in filesystem(uri).ls(uri, detail=False) if name.endswith((".nii", ".nii.gz"))]
            prefix = f"{uri.split('://')[0]}://" if is_remote(uri) else ""
            paths += natural_order([f"{prefix}{name}" for name in inside])
        else:
            paths.append(uri)
    return paths


def make_grid(config: StudyConfig) -> Grid:
    """The grid of a study: MNI152, or that of a mask image."""
    if config.grid.mask is None:
        return Grid.mni152(config.grid.resolution)
    from isal import igzip
    from nibabel.nifti1 import Nifti1Image

    from dtg_ray.store.files import read

    data = read(config.grid.mask)
    try:
        if data[:2] == b"\x1f\x8b":
            data = igzip.decompress(data)
        return Grid.from_mask(Nifti1Image.from_bytes(data))
    except Exception as error:
        raise ConfigError(f"{config.grid.mask}: cannot be used as a mask: {error}") from error


def write_space(study: Study, config: StudyConfig) -> None:
    """Write rois.zarr: ROI maps (roi, voxel), the mask and affine of the grid, grey matter."""
    grid = make_grid(config)
    rois = load_rois(config.rois, grid)
    grey = grid.grey_matter()
    if not grey.any():
        grey = np.ones(grid.n_voxels, dtype=bool)
    group = zarr.open_group(study.storage.zarr_store(ROIS), mode="w", zarr_format=3)
    group.attrs.update({"affine": grid.affine.tolist(), "fingerprint": space_hash(grid, rois)})
    names = np.array(_roi_names(config.rois, len(rois)), dtype=np.dtypes.StringDType())
    for key, data, dimensions in (
        ("rois", rois, ("roi", "voxel")),
        ("roi", names, ("roi",)),
        ("mask", grid.mask, ("i", "j", "k")),
        ("grey_matter", grey, ("voxel",)),
        *((axis, grid.coordinates[:, number], ("voxel",)) for number, axis in enumerate("xyz")),
    ):
        group.create_array(key, data=data, dimension_names=dimensions)


def _roi_names(paths: tuple[str, ...], count: int) -> list[str]:
    """File names where there is a file per map, numbers otherwise."""
    if len(paths) == count:
        return [PurePosixPath(path).name.removesuffix(".gz").removesuffix(".nii") for path in paths]
    return [f"roi-{number:03d}" for number in range(1, count + 1)]


def _phenotypes(found: Found, cohort: pd.DataFrame) -> pd.DataFrame:
    """What is known about the people of the cohort, in its order."""
    return found.phenotypes.set_index("subject").reindex(cohort["subject"]).rename_axis("subject").reset_index()


def _check_same(study: Study, config: StudyConfig, cohort: pd.DataFrame, phenotypes: pd.DataFrame) -> None:
    """Refuse to make another study where there is one."""
    there = read_yaml(study.storage.read(CONFIG).decode(), study.storage.uri(CONFIG))
    wanted = config.model_dump(mode="json")
    different = sorted(key for key in wanted if there.get(key) != wanted[key])
    compared = ["subject", "block", "split", "group", "rest", "contrasts"]  # sizes may change while files arrive
    old, new = (table[compared].to_json(orient="records") for table in (study.cohort, cohort))
    if old != new:
        different.append("the cohort's files or splits")
    elif read_table(study.storage, PHENOTYPES).to_json() != phenotypes.to_json():
        different.append("the phenotypes")
    if different:
        raise UsageError(
            f"{study.uri}: got another study there, which differs in {', '.join(different)}; it was not touched",
            hint="choose another place, or delete that study first",
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
    if missing:
        lines.append(f"  {missing} subjects have rest runs that are not there: they will end as failed")
    reasons = Counter(summary.left_out.values())
    lines += [f"  left out: {count} - {reason}" for reason, count in reasons.most_common()]
    return lines


def load_settings(path: str | None) -> dict[str, Any]:
    """Settings from a YAML file, none without a path."""
    if path is None:
        return {}
    from dtg_ray.store.files import read

    return read_yaml(io.BytesIO(read(path)).read().decode(), path)
