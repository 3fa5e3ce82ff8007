"""The part of study.yaml about the prediction of phenotypes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dtg_ray.config.section import Section


class PredictionConfig(Section):
    """Which phenotypes are predicted from which features, and how it is tested."""

    targets: tuple[str, ...] = Field((), description="columns of phenotypes.parquet; none: all numeric ones")
    features: tuple[str, ...] = Field(
        (),
        description="synthetic:MODEL, measured, connectome; none: the first network's maps and the other two",
    )
    subjects: Literal["unseen", "all"] = Field("unseen", description="unseen: neither trained nor validated on")
    mask: Literal["grey_matter", "brain"] = "grey_matter"
    folds: int = Field(5, ge=2)
    alpha: float | Literal["features/samples"] = "features/samples"
    permutations: int = Field(1000, ge=0)
    seed: int = Field(42, ge=0)
