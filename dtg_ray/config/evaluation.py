"""How synthetic maps are compared with measured ones, and what the report shows of them."""

from __future__ import annotations

from pydantic import Field

from dtg_ray.config.section import Section


class EvaluationConfig(Section):
    """Settings of `dtg evaluate`; they change summaries, not the figures of each subject."""

    by: tuple[str, ...] = Field(
        ("site", "sex"), description="columns of the people whose groups are told apart, where there are such"
    )
    bootstrap: int = Field(2000, ge=0, description="resamples of subjects (of families together); 0: no intervals")
    space_subjects: int = Field(40, ge=0, description="people of each contrast in the space of subjects; 0: none")
    seed: int = Field(42, ge=0, le=2**32 - 1)


class ReportConfig(Section):
    """Settings of `dtg report`."""

    group_maps: int = Field(
        3, ge=1, le=6, description="contrasts whose group maps are drawn: from the worst predicted to the best"
    )
