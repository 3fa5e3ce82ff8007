"""The BIDS dataset that `dtg export` writes: whose maps it holds, what its files are called and say of themselves."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dtg_ray import __version__, ledger
from dtg_ray.config import EnsembleConfig, ImportedConfig, fingerprint
from dtg_ray.errors import StudyError, UsageError
from dtg_ray.imaging import export
from dtg_ray.remote import without_credentials
from dtg_ray.stages import contrasts
from dtg_ray.stages.mapping import array_name
from dtg_ray.store.files import Storage, is_remote
from dtg_ray.study import Study

FORMAT = 1
"""Raised when images or sidecars change their meaning, so that old ones are written again."""
MEASURED = "measured"
BIDS_VERSION = "1.10.0"
PAPER = "https://doi.org/10.1038/s42003-025-09158-6"
DESCRIPTION = "dataset_description.json"
IGNORED = "*_statmap.nii.gz\n*_statmap.json\n*desc-brain_mask.nii.gz\n"
"""Of `.bidsignore`: what BIDS has no rules for yet."""


@dataclass(frozen=True)
class Source:
    """Whose maps are exported.

    Parameters
    ----------
    name : str
        Of a model of the study, or `measured`.
    kind : str
        As in study.yaml, or `measured`.
    stage, array : str
        Whose receipts say who has maps, and where these are.
    contrasts : tuple of str
        All of the array, in its order.
    column : str
        Of the cohort, that says who has which contrast; empty where everybody has all.
    """

    name: str
    kind: str
    stage: str
    array: str
    contrasts: tuple[str, ...]
    column: str = ""

    @property
    def desc(self) -> str:
        """What the maps are, as files are called by it."""
        return self.kind if self.column else "synthetic"

    def has(self, cohort: pd.DataFrame, subject: str, contrast: str) -> bool:
        """Whether a subject whose maps are done has one of this contrast."""
        return not self.column or contrast in cohort[self.column][subject]


def source_of(study: Study, model: str | None) -> Source:
    """The maps of a model, by default of the first network, or the measured ones.

    Raises
    ------
    UsageError
        When the study has no such model.
    """
    name, config = model or study.default_model, study.config
    if name == MEASURED:
        return Source(name, MEASURED, contrasts.STAGE, contrasts.NAME, config.contrasts, "contrasts")
    if name not in config.models:
        raise UsageError(f"got model {name!r}, expected one of {', '.join([*config.models, MEASURED])}")
    kind = config.models[name].kind
    column = "retest" if kind == "retest" else ""
    return Source(name, kind, f"synthesize/{name}", array_name(name), config.maps_of(name), column)


class Derivative:
    """A dataset of exported maps: names and documents, from what the study says; reads no map.

    Parameters
    ----------
    study : Study
    source : Source
    space : str, optional
        Label of `space-`; by default what the names of the study's images say, none where they do not say it.
    """

    def __init__(self, study: Study, source: Source, space: str | None = None) -> None:
        self.study = study
        self.source = source
        self._space = space

    @functools.cached_property
    def space(self) -> str:
        """Label of `space-`; empty where it is not known."""
        if self._space is not None:
            return self._space
        column = self.study.cohort[self.source.column or "rest"]
        return export.space_of(
            scan for scans in column for scan in (scans.values() if isinstance(scans, Mapping) else scans)
        )

    @functools.cached_property
    def code(self) -> int:
        """NIfTI's code of the space: that of MNI152 for its own grid, and for another one whose images are in MNI."""
        in_mni = self.study.config.grid.mask is None or self.space.startswith("MNI")
        return export.MNI if in_mni else export.ALIGNED

    @functools.cached_property
    def _subjects(self) -> dict[str, str]:
        return export.subject_labels(list(self.study.cohort["subject"]))

    @functools.cached_property
    def _contrasts(self) -> dict[str, tuple[str, str]]:
        return export.contrast_labels(self.source.contrasts)

    def image(self, contrast: str, *, subject: str = "", stat: str = "z") -> str:
        """Path of the map of a subject, or without one of the group."""
        task, label = self._contrasts[contrast]
        entities = {"sub": self._subjects[subject] if subject else "", "task": task, "space": self.space}
        return export.image_name({**entities, "contrast": label, "stat": stat, "desc": self.source.desc})

    def folder(self, subject: str) -> str:
        """Where the maps of a subject are."""
        return self.image(self.source.contrasts[0], subject=subject).rsplit("/", 1)[0]

    @property
    def mask(self) -> str:
        """Path of the mask."""
        return f"{f'space-{self.space}_' if self.space else ''}desc-brain_mask.nii.gz"

    @functools.cached_property
    def shared(self) -> dict[str, Any]:
        """What all sidecars say."""
        zooms = [f"{abs(zoom):g}" for zoom in (self.study.grid.affine[:3, :3] ** 2).sum(axis=0) ** 0.5]
        return {
            "Units": "z",
            **({"Model": self.model} if self.model else {}),
            "SourceStudy": public_uri(self.study.uri),
            **({"Space": self.space} if self.space else {}),
            "SpatialReference": f"bids::{self.mask}",
            "Resolution": f"{' x '.join(zooms)} mm",
            "GridFingerprint": self.study.grid.fingerprint,
        }

    @functools.cached_property
    def model(self) -> dict[str, Any]:
        """The model as its own description has it; empty for maps that were measured."""
        if self.source.column:
            return {}
        config = self.study.config.models[self.source.name]
        if isinstance(config, EnsembleConfig):
            weights = ledger.model_hash(self.study, self.source.name)
            return {"Name": self.source.name, "Kind": config.kind, "Members": list(config.members), "Weights": weights}
        described = json.loads(self.study.storage.read(f"models/{self.source.name}/model.json"))
        origin = described.get("provenance", {})
        trained = origin.get("imported", origin)
        facts = {
            "Name": self.source.name,
            "Kind": self.source.kind,
            "WeightsSHA256": described["sha256"],
            "Architecture": described.get("config"),
            "Settings": trained.get("settings"),
            "Source": origin.get("source"),
            "TrainingSampleSize": len(trained["training"]) if "training" in trained else None,
            "ValidationSampleSize": len(trained["validation"]) if "validation" in trained else None,
        }
        kept = {key: value for key, value in facts.items() if value not in (None, {}, "")}
        cleaned: dict[str, Any] = json.loads(without_credentials(json.dumps(kept)))
        return cleaned

    def sidecar(self, subject: str, contrast: str, stamp: Sequence[str]) -> dict[str, Any]:
        """What the map of a subject says of itself; `stamp` changes whenever its receipt does."""
        split = str(self.study.cohort["split"][subject])
        facts = {"Subject": subject, "Split": split, "ReceiptFingerprint": stamp[0]}
        text = f"{self._what} of {contrast}{self._how}.{self._about(split)}"
        return self._document(text, contrast, facts, stamp)

    def group_sidecar(
        self, subjects: Sequence[str], contrast: str, stat: str, stamps: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        """What the mean or standard deviation over some subjects says of itself."""
        splits = self.study.cohort.loc[list(subjects), "split"].value_counts().sort_index()
        statistic = {"mean": "Mean over subjects", "std": "Standard deviation over subjects, with n - 1"}[stat]
        facts = {
            "Statistic": statistic,
            "SampleSize": len(subjects),
            "SampleSizePerSplit": {str(split): int(count) for split, count in splits.items()},
            "SubjectsFingerprint": fingerprint(list(subjects)),
        }
        text = f"{statistic}: {self._what.lower()}s of {contrast}{self._how}.{self._about_all()}"
        return self._document(text, contrast, facts, stamps)

    def _document(self, text: str, contrast: str, facts: Mapping[str, Any], stamp: object) -> dict[str, Any]:
        task = self._contrasts[contrast][0]
        named = {"Contrast": contrast, **({"TaskName": task} if task else {})}
        document = {"Description": text, **named, **facts, **self.shared}
        return {
            **document,
            "GeneratedBy": [{"Name": "dtg_ray", "Version": __version__}],
            "Fingerprint": fingerprint(FORMAT, document, stamp),
        }

    @property
    def _what(self) -> str:
        return "Measured z map" if self.source.column else "Synthetic z map"

    @property
    def _how(self) -> str:
        if self.source.column:
            return ", second visit" if self.source.kind == "retest" else ""
        return ", predicted from resting-state fMRI, not measured"

    def _trained_here(self) -> bool:
        """Whether people of this study made the model what it is."""
        return not (self.source.column or isinstance(self.study.config.models[self.source.name], ImportedConfig))

    def _about(self, split: str) -> str:
        known = {"train": "on which the model was trained", "validation": "by which its weights were chosen"}
        seen = known.get(split, "which the model has not seen")
        return f" The subject is in the split {split}, {seen}." if self._trained_here() else ""

    def _about_all(self) -> str:
        seen = " On the split train the model was trained, by the split validation its weights were chosen."
        return seen if self._trained_here() else ""

    def description(self) -> dict[str, Any]:
        """dataset_description.json."""
        what = "Measured task-contrast maps" if self.source.column else "Synthetic task-contrast maps"
        return {
            "Name": f"{what} ({self.source.name})",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "dtg_ray", "Version": __version__, "Description": "dtg export"}],
            "HowToAcknowledge": f"Please cite Serin et al. (2025), {PAPER}",
            "ReferencesAndLinks": [PAPER],
            "SourceDatasets": [{"URL": public_uri(self.study.uri)}],
            "Maps": self.source.name,
            "Space": self.space,
        }

    def readme(self) -> str:
        """What people read first."""
        return (
            f"# {self.description()['Name']}\n\n{self._what}s{self._how}: one per subject and contrast in "
            "`sub-*/func/`;\nmeans and standard deviations over subjects, where asked for, in `group/`.\nThe JSON file "
            "beside an image says of which contrast, subject, split and model it is.\nImages are 0 outside the mask, "
            f"`{self.mask}`.\n\nWritten by dtg_ray (`dtg export`). Method: {PAPER}\n"
        )


def claim(out: Storage, derivative: Derivative) -> None:
    """Refuse a place that holds something else; nothing is written.

    Raises
    ------
    UsageError
        When it is inside the study, or holds another dataset, other maps, or maps under other names.
    """
    root, inside = _resolved(derivative.study.uri), _resolved(out.root)
    if f"{inside}/".startswith(f"{root}/"):
        raise UsageError(f"{out.root}: got a place inside the study, expected one outside of {derivative.study.uri}")
    names = top(out)
    if DESCRIPTION not in names:
        if found := next((name for name in names if name == "study.yaml" or name.startswith("sub-")), ""):
            raise UsageError(
                f"{out.root}: got a place with {found} and no {DESCRIPTION}, expected an empty one, or a dataset that "
                "`dtg export` has made"
            )
        return
    try:
        there = json.loads(out.read(DESCRIPTION))
    except ValueError:
        there = {}
    today = derivative.description()
    for key in ("SourceDatasets", "Maps", "Space"):
        if not isinstance(there, dict) or there.get(key) != today[key]:
            got = there.get(key) if isinstance(there, dict) else there
            raise UsageError(
                f"{out.root}: got a dataset with {key} {got!r}, expected {today[key]!r}, or an empty place",
                hint="every model and space of a study is exported to a place of its own",
            )


def begin(out: Storage, derivative: Derivative) -> None:
    """Write what a dataset has at its top, description first, where it is not there as it should be."""
    mask = {"Type": "Brain", "Resolution": derivative.shared["Resolution"]}
    files = {
        DESCRIPTION: as_json(derivative.description()),
        "README.md": derivative.readme().encode(),
        ".bidsignore": IGNORED.encode(),
        derivative.mask: export.mask_image(derivative.study.grid, derivative.code),
        export.sidecar_name(derivative.mask): as_json(mask),
    }
    there = out.read_many(list(files))
    for name, data in files.items():
        if there.get(name) != data:
            out.write(name, data)


def as_json(document: Mapping[str, Any]) -> bytes:
    """A document as it is written."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def public_uri(uri: str) -> str:
    """A URI that may be shown: local paths as file://, no user or signature."""
    return without_credentials(uri) if is_remote(uri) else Path(_resolved(uri)).as_uri()


def _resolved(uri: str) -> str:
    return uri if is_remote(uri) else os.path.realpath(uri)


def top(out: Storage) -> set[str]:
    """What lies at the top of a place."""
    try:
        entries = out.fs.ls(out.root, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except PermissionError as error:
        raise StudyError(f"{out.root}: may not be read: {error}") from error
    return {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries}
