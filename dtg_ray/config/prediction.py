"""The part of study.yaml about the prediction of phenotypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dtg_ray.config.section import Name, Section

MEASURED, CONNECTOME, SYNTHETIC = "measured", "connectome", "synthetic"
EACH = "*"
"""In place of a contrast: one feature set for each."""


@dataclass(frozen=True)
class Source:
    """One ingredient of a feature set, as study.yaml writes it.

    Parameters
    ----------
    kind : "synthetic", "measured" or "connectome"
    model : str
        Of synthetic maps; otherwise empty.
    contrast : str
        Empty for all contrasts side by side.
    """

    kind: str
    model: str = ""
    contrast: str = ""

    def __str__(self) -> str:
        """`synthetic:MODEL`, `synthetic:MODEL:CONTRAST`, `measured`, `measured:CONTRAST` or `connectome`."""
        return ":".join(part for part in (self.kind, self.model, self.contrast) if part)

    @property
    def stage(self) -> str:
        """The stage that makes it."""
        return {MEASURED: "contrasts", CONNECTOME: "connectomes"}.get(self.kind, f"synthesize/{self.model}")


def source(text: str) -> Source:
    """Read an ingredient of a feature set.

    Raises
    ------
    ValueError
        When it is none.
    """
    kind, *rest = text.split(":")
    if kind == SYNTHETIC and 1 <= len(rest) <= 2 and all(rest):
        return Source(kind, *rest)
    if kind == MEASURED and len(rest) <= 1 and all(rest):
        return Source(kind, contrast=rest[0] if rest else "")
    if kind == CONNECTOME and not rest:
        return Source(kind)
    raise ValueError(
        f"got {text!r}, expected synthetic:MODEL, synthetic:MODEL:CONTRAST, measured, measured:CONTRAST, connectome or "
        "the name of a stack"
    )


class TargetConfig(Section):
    """One phenotype to predict."""

    kind: Literal["regression", "classification"] = Field(
        "regression", description="classification: of two or more classes, which may be text"
    )
    confounds: tuple[str, ...] | None = Field(None, description="columns; by default those of `prediction`")


class StackConfig(Section):
    """Features side by side, or some voxels of them."""

    of: tuple[str, ...] = Field(min_length=1, description="feature sets: synthetic:MODEL:CONTRAST, measured, ...")
    mask: str | None = Field(None, description="grey_matter, brain or the URI of an image; by default `prediction`'s")


class PredictionConfig(Section):
    """Which phenotypes are predicted from which features, and how it is tested."""

    tables: tuple[str, ...] = Field(
        (), description="URIs of CSV, TSV, Parquet or UK Biobank exports, read by column, beside phenotypes.parquet"
    )
    targets: dict[str, TargetConfig] = Field(
        default_factory=dict, description="columns, a list or a mapping; none: all numeric ones, by regression"
    )
    confounds: tuple[str, ...] = Field((), description="columns regressed out inside the training folds")
    features: tuple[str, ...] = Field(
        (),
        description="synthetic:MODEL[:CONTRAST], measured[:CONTRAST], connectome, stacks by name; :* is each contrast; "
        "none: the first network's maps, measured maps, connectome, and all stacks",
    )
    stacks: dict[Name, StackConfig] = Field(default_factory=dict)
    subjects: Literal["unseen", "all"] = Field("unseen", description="unseen: neither trained nor validated on")
    mask: str = Field("grey_matter", description="of maps: grey_matter, brain or the URI of an image")
    folds: int = Field(5, ge=2)
    fold_column: str | None = Field(None, description="the fold of everybody, in place of drawn ones")
    groups: str | None = Field(None, description="column whose members share a fold; `group`: families of the cohort")
    stratify: bool = Field(
        False, description="classes, or as many parts of a target by rank as folds, in equal shares in all folds"
    )
    alpha: float | Literal["features/samples"] | tuple[float, ...] = Field(
        "features/samples", description="penalty; of several the one best by leave-one-out in each training fold"
    )
    tiles: int | None = Field(
        None,
        ge=1,
        description="people in a tile of the Gram matrix, 4096 for example, for more people than one machine holds; by "
        "default it is in one piece",
    )
    permutations: int = Field(1000, ge=0)
    within: str | None = Field(None, description="exchangeability: column whose members change places among themselves")
    whole: str | None = Field(None, description="exchangeability: column whose members change places together")
    early_stopping: int | None = Field(
        None, ge=2, description="a test ends when so many permutations were as good as what was observed"
    )
    tail: bool = Field(False, description="small p values from a generalised Pareto distribution of the tail")
    repeats: int = Field(10, ge=0, description="of cross-validation, to compare feature sets; 0: no comparison")
    weight_maps: bool = Field(False, description="voxel weights and their patterns, as images")
    seed: int = Field(42, ge=0, le=2**32 - 1)

    @field_validator("targets", mode="before")
    @classmethod
    def _a_list_of_names_is_enough(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping) else {name: {} for name in value}

    @field_validator("alpha")
    @classmethod
    def _penalties_are_positive(cls, value: Any) -> Any:
        numbers = value if isinstance(value, tuple) else () if isinstance(value, str) else (value,)
        if any(not 0 < one < float("inf") for one in numbers) or value == ():
            raise ValueError(f"got {value}, expected numbers greater than 0")
        return value

    @model_validator(mode="after")
    def _tiles_have_one_penalty(self) -> PredictionConfig:
        if self.tiles and isinstance(self.alpha, tuple):
            raise ValueError(
                f"tiles: got {self.tiles} and several alpha {self.alpha}, expected one alpha: to choose from several "
                "takes eigenvectors, which are not computed in tiles"
            )
        return self

    def confounds_of(self, target: str) -> tuple[str, ...]:
        """What is regressed out for a target: never itself."""
        own = self.targets[target].confounds if target in self.targets else None
        return tuple(name for name in (self.confounds if own is None else own) if name != target)

    def kind_of(self, target: str) -> Literal["regression", "classification"]:
        """How a target is predicted."""
        return self.targets[target].kind if target in self.targets else "regression"

    def columns_of(self, target: str) -> tuple[str, ...]:
        """All columns that the result of a target depends on."""
        named = (self.fold_column, self.groups, self.within, self.whole)
        return (target, *self.confounds_of(target), *(name for name in named if name))

    def identity_of(self, target: str) -> dict[str, Any]:
        """All settings that the result of a target depends on, whatever the features."""
        apart = {"tables", "targets", "features", "stacks", "mask", "confounds", "repeats", "weight_maps", "tiles"}
        settings = self.model_dump(mode="json", exclude=apart)
        return {**settings, "kind": self.kind_of(target), "confounds": self.confounds_of(target)}
