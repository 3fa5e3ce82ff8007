"""The parts of study.yaml about what comes in, and where it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dtg_ray.config.section import Section
from dtg_ray.remote import CONCURRENCY

Strategy = Literal[
    "motion", "high_pass", "wm_csf", "global_signal", "compcor", "ica_aroma", "tedana", "scrub", "non_steady_state"
]


class GridConfig(Section):
    """The space all arrays live in: MNI152 at a resolution, or the grid of a mask image."""

    resolution: float = Field(2.0, gt=0, le=20, description="edge of a voxel of the MNI152 grid, mm")
    mask: str | None = Field(None, description="URI of a mask image whose grid is used instead of MNI152")


class CohortConfig(Section):
    """How the cohort is cut into blocks and splits."""

    block_size: int = Field(16, ge=1, description="subjects per block, the unit of work and of commit")
    validation: float = Field(0.1, ge=0, lt=1, description="share of the subjects with task maps, for early choices")
    test: float = Field(0.2, ge=0, lt=1, description="share of the subjects with task maps, held out")
    seed: int = Field(0, ge=0)
    stratify_by: tuple[str, ...] = Field(("sex",), description="columns balanced over the splits, where they exist")
    group_by: tuple[str, ...] = Field(("family",), description="columns whose members stay in one split")

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> CohortConfig:
        if self.validation + self.test >= 1:
            raise ValueError(f"got validation + test = {self.validation + self.test:g}, expected less than 1")
        return self


class ConnectomeConfig(Section):
    """From rest runs to voxel-to-ROI connectomes."""

    windows: int = Field(
        1, ge=1, description="windows per subject, shared among its runs; at most, with window_minutes"
    )
    window_minutes: float | None = Field(None, gt=0, description="duration of a window; shorter runs give none")
    tr: float | None = Field(None, gt=0, description="repetition time in s, where the header is wrong")
    minimum_volumes: int = Field(30, ge=4, description="a run or window with fewer is failed")
    minimum_coverage: float = Field(0.5, gt=0, le=1, description="share of the mask the image must cover")
    interpolation: Literal["linear", "nearest"] = "linear"
    maximum_gigabytes: float = Field(64, gt=0, description="a run that unpacks to more is failed")

    @model_validator(mode="after")
    def _windows_of_some_minutes_are_counted(self) -> ConnectomeConfig:
        if self.window_minutes is not None and "windows" not in self.model_fields_set:
            raise ValueError("got window_minutes without windows, expected the largest number of windows per subject")
        return self


class CleaningConfig(Section):
    """What is taken out of rest runs that are not clean yet, by nilearn. Nothing by default: UKB and HCP are clean."""

    strategy: tuple[Strategy, ...] = Field((), description="groups of fMRIPrep's confounds, as nilearn names them")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="for nilearn's load_confounds, such as {motion: basic, fd_threshold: 0.2}",
    )
    columns: tuple[str, ...] = Field((), description="columns of the confounds tables, by name")
    low_pass: float | None = Field(None, gt=0, description="Hz")
    high_pass: float | None = Field(None, gt=0, description="Hz")
    detrend: bool = Field(False, description="take out a linear trend")

    @model_validator(mode="after")
    def _band_is_one(self) -> CleaningConfig:
        if self.low_pass and self.high_pass and self.high_pass >= self.low_pass:
            raise ValueError(f"got high_pass {self.high_pass:g} Hz, expected less than low_pass, {self.low_pass:g} Hz")
        return self


class QualityConfig(Section):
    """Who is excluded. A rule that is not given is off; a figure that is not known breaks its rule."""

    minimum_minutes: float | None = Field(None, gt=0, description="of rest left after scrubbing")
    minimum_tsnr: float | None = Field(None, gt=0, description="median over voxels, before cleaning")
    minimum_coverage: float | None = Field(None, gt=0, le=1, description="share of the mask, of the worst run")
    maximum_constant: float | None = Field(None, ge=0, le=1, description="share of the mask without signal")
    maximum_motion: float | None = Field(None, ge=0, description="mean displacement between volumes, mm")
    maximum_scrubbed: float | None = Field(None, ge=0, le=1, description="share of the volumes")
    maximum_mean_abs_r: float | None = Field(None, gt=0, le=1, description="mean |r| of the connectomes")


class StorageConfig(Section):
    """How the study is kept in a bucket. It changes nothing that is computed, and means nothing on a disk."""

    encryption: Literal["AES256", "aws:kms"] | None = Field(
        None, description="by the server, of every object written; none: as the bucket says"
    )
    kms_key: str | None = Field(None, min_length=1, description="with aws:kms: ID or ARN; none: the account's own")
    concurrency: int = Field(CONCURRENCY, ge=1, le=1000, description="requests at the same time, per process")

    @model_validator(mode="after")
    def _a_key_is_for_kms(self) -> StorageConfig:
        if self.kms_key and self.encryption != "aws:kms":
            raise ValueError(f"got kms_key with encryption {self.encryption}, expected encryption: aws:kms")
        return self
