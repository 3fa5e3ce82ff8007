"""What the report says: a section for each kind of result, which appears when there is such a result."""

from __future__ import annotations

from dataclasses import replace

from dtg_ray import ledger
from dtg_ray.ledger import Ledger
from dtg_ray.report.page import Section, Words
from dtg_ray.report.sections import brains, cohort, interpretation, models, phenotypes, summary, work
from dtg_ray.results import Results

EVALUATION, PREDICTION = ("evaluate", "comparison"), ("predict", "scores")
SECTIONS = (
    (summary.section, (*EVALUATION, *PREDICTION)),
    (cohort.section, ()),
    (models.training, ("train",)),
    (models.reconstruction, EVALUATION),
    (models.identification, EVALUATION),
    (brains.section, EVALUATION),
    (models.space, EVALUATION),
    (phenotypes.section, PREDICTION),
    (interpretation.section, ()),
    (models.transfer, ()),
    (work.resources, ()),
    (work.methods, ()),
)
"""In the order of the page, with the verbs whose results they show."""


def sections(results: Results, book: Ledger) -> list[Section]:
    """All sections of a study; those without results have no parts."""
    return [_dated(make(results, book), book, verbs) for make, verbs in SECTIONS]


def _dated(section: Section, book: Ledger, verbs: tuple[str, ...]) -> Section:
    """A section that says so where it shows results of an earlier state."""
    stages = [stage for stage in ledger.stages(book.study) if stage.split("/")[0] in verbs]
    behind = [stage for stage in stages if book.account(stage).pending()]
    if not section.parts or not behind or (len(behind) == len(stages) and section.name == "summary"):
        return section
    text = f"This may be of an earlier state: {', '.join(behind)} not up to date. `dtg run` brings it up to date."
    return replace(section, parts=[Words(text), *section.parts])
