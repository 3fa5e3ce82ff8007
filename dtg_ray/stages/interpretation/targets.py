"""What is interpreted: the expression of a contrast, or a phenotype as `dtg predict` reads it out of synthetic maps."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.config import feature_folder
from dtg_ray.config.prediction import SYNTHETIC
from dtg_ray.errors import MissingFileError, StudyError, UsageError
from dtg_ray.stages.maps import lost
from dtg_ray.stages.prediction.features import members
from dtg_ray.stages.prediction.people import Target as Phenotype
from dtg_ray.stages.prediction.people import target_of
from dtg_ray.store.arrays import read
from dtg_ray.study import Study

CONTRAST, PHENOTYPE = "contrast", "phenotype"
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Target:
    """A number that a network makes of a connectome, by way of its maps.

    Parameters
    ----------
    kind : "contrast" or "phenotype"
    name : str
        Of a class of a phenotype `PHENOTYPE:CLASS`.
    contrasts : tuple of str
        Of the maps that it is made of.
    phenotype, file : str
        Its column, and what the names of its weight maps begin with; empty for a contrast.
    """

    kind: str
    name: str
    contrasts: tuple[str, ...]
    phenotype: str = ""
    file: str = ""

    @property
    def unit(self) -> str:
        """Name of its receipt, table and arrays."""
        return f"{self.kind}-{ledger.target_unit(self.name)}"


def feature_of(model: str) -> str:
    """The feature set that phenotypes are read out of: all maps of a model, side by side."""
    return f"{SYNTHETIC}:{model}"


def contrast_targets(study: Study, model: str, names: Sequence[str]) -> list[Target]:
    """The expression of contrasts.

    Raises
    ------
    UsageError
        For one whose maps the model does not make.
    """
    known = study.config.maps_of(model)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"got contrast {unknown[0]!r}, expected one of {', '.join(known)}")
    return [Target(CONTRAST, name, (name,)) for name in dict.fromkeys(names)]


def check_phenotypes(study: Study, model: str, names: Sequence[str]) -> None:
    """Refuse phenotypes that `dtg predict` leaves no weight maps of, before anything is waited for.

    Raises
    ------
    UsageError
    """
    known, feature = ledger.target_names(study), feature_of(model)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"got phenotype {unknown[0]!r}, expected one that is predicted: {', '.join(known)}")
    sets = study.config.feature_sets()
    if names and feature not in sets:
        raise UsageError(
            f"got phenotype {names[0]!r} through {model}, expected {feature} among the feature sets: {', '.join(sets)}",
            hint="add it to prediction.features in study.yaml, then `dtg predict`",
        )
    if names and not study.config.prediction.weight_maps:
        raise UsageError(
            f"got phenotype {names[0]!r}, but prediction.weight_maps is false, expected weights to interpret",
            hint="`weight_maps: true` in `prediction` of study.yaml, then `dtg predict`",
        )


def phenotype_targets(book: ledger.Ledger, model: str, names: Sequence[str]) -> list[Target]:
    """Phenotypes that were predicted from the maps of a model: numbers, the second of two classes, or each of several.

    Raises
    ------
    UsageError
        For one that could not be predicted.
    """
    study, found = book.study, list[Target]()
    rows = book.account(f"predict/{feature_folder(feature_of(model))}").rows.set_index("subject")
    for name in dict.fromkeys(names):
        status, why = (str(rows.at[name, column]) for column in ("status", "message"))
        phenotype = target_of(study, name, members(book, feature_of(model)))
        if status != "done" or not isinstance(phenotype, Phenotype):
            raise UsageError(f"got phenotype {name!r}, which was not predicted: {why}")
        found += _readouts(study.config.maps_of(model), phenotype)
    return found


def _readouts(contrasts: tuple[str, ...], phenotype: Phenotype) -> list[Target]:
    """A target for a number or two classes, one for each of several; named as its weight maps are."""
    name, unit = phenotype.name, ledger.target_unit(phenotype.name)
    classes = phenotype.classes[1:] if len(phenotype.classes) == 2 else phenotype.classes
    if not classes:
        return [Target(PHENOTYPE, name, contrasts, name, unit)]
    return [
        Target(PHENOTYPE, f"{name}:{label}", contrasts, name, f"{unit}_{ledger.target_unit(label)}")
        for label in classes
    ]


def direction_of(study: Study, model: str, target: Target, subjects: Sequence[str]) -> Float32:
    """What the maps of a target's contrasts are multiplied with, (C, V) float32.

    Raises
    ------
    StudyError
        When a map or an image of weights was lost, or all of it is 0.
    """
    if target.kind == CONTRAST:
        direction = mean_map(study, model, target.name, subjects)[None]
    else:
        direction = np.stack([_weights(study, model, target, contrast) for contrast in target.contrasts])
    if not direction.any():
        raise StudyError(f"{target.name}: got nothing but zeros as the maps to compare with, expected numbers")
    return direction


def mean_map(study: Study, model: str, contrast: str, subjects: Sequence[str]) -> Float32:
    """The mean synthetic map of a contrast over some subjects, 0 outside grey matter, of norm 1, (V,)."""
    stage = f"synthesize/{model}"
    array, number = (
        study.storage.open_array(ledger.array_of(stage), "maps"),
        study.config.maps_of(model).index(contrast),
    )
    total = np.zeros(study.grid.n_voxels)
    for subject, row in zip(subjects, study.positions(subjects), strict=True):
        one = read(array, (number, int(row)))
        if not np.isfinite(one).all():
            raise lost(subject, f"map of {contrast}", stage)
        total += one
    total[~study.grey_matter] = 0
    norm = np.linalg.norm(total)
    return np.asarray(total / (norm or 1), dtype=np.float32)


def _weights(study: Study, model: str, target: Target, contrast: str) -> Float32:
    """The ridge weights of a phenotype on the maps of a contrast, from the image that `dtg predict` wrote, (V,)."""
    import nibabel as nib

    feature = feature_of(model)
    part = f"{feature}:{contrast}".replace(":", "-")
    name = f"prediction/{feature_folder(feature)}/weights/{target.file}_{part}_weights.nii.gz"
    try:
        data = study.storage.read(name)
    except MissingFileError as error:
        raise StudyError(
            f"{study.storage.uri(name)}: not there, expected the weights of {target.name}",
            hint=f"delete receipts/predict/{feature_folder(feature)} and run `dtg predict`",
        ) from error
    image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(study.grid.vectorize(np.asanyarray(image.dataobj)), dtype=np.float32)


def fingerprint_parts(book: ledger.Ledger, model: str, target: Target, subjects: Sequence[str]) -> list[object]:
    """What a target's numbers follow from, for its fingerprint: everybody's maps, and the weights of a phenotype."""
    owed = book.account(f"synthesize/{model}").owed.values()
    maps = {subject: one for block in owed for subject, one in block.items()}
    parts: list[object] = [target.kind, target.name, [[subject, maps[subject]] for subject in subjects]]
    if target.kind == PHENOTYPE:
        predicted = book.account(f"predict/{feature_folder(feature_of(model))}").owed
        parts.append(predicted[ledger.target_unit(target.phenotype)])
    return parts
