"""What the report says: a section for each kind of result, which appears when there is such a result."""

from __future__ import annotations

from dtg_ray.ledger import Ledger
from dtg_ray.report.page import Section
from dtg_ray.report.sections import brains, cohort, interpretation, models, phenotypes, summary, work
from dtg_ray.results import Results

SECTIONS = (
    summary.section,
    cohort.section,
    models.training,
    models.reconstruction,
    models.identification,
    brains.section,
    models.space,
    phenotypes.section,
    interpretation.section,
    models.transfer,
    work.resources,
    work.methods,
)
"""In the order of the page."""


def sections(results: Results, book: Ledger) -> list[Section]:
    """All sections of a study; those without results have no parts."""
    return [make(results, book) for make in SECTIONS]
