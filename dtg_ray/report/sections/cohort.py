"""Who takes part, who fell out and why, and how good the scans are."""

from __future__ import annotations

import pandas as pd

from dtg_ray import ledger
from dtg_ray.ledger import Ledger
from dtg_ray.remote import without_credentials
from dtg_ray.report.cohort_charts import histograms
from dtg_ray.report.page import Figure, Part, Section, Table
from dtg_ray.report.style import svg
from dtg_ray.results import Results
from dtg_ray.study import LEFT_OUT

QUALITY = {
    "motion": "mean displacement, mm",
    "minutes": "minutes of rest",
    "tsnr": "temporal signal-to-noise ratio",
    "mean_abs_r": "mean |r| of the connectome",
}
"""Figures of the receipts of connectomes that are drawn, with their labels."""


def section(results: Results, book: Ledger) -> Section:
    """Counts by split, scan quality, and everybody who fell out."""
    study = results.study
    parts: list[Part] = [
        Table(
            "splits",
            "People by split",
            "Held out is the split test. In synthesis are people without measured maps, in related members of a family "
            "of which somebody was trained on.",
            _splits(results),
        )
    ]
    if (figure := _quality(book)) is not None:
        parts.append(figure)
    stages = ledger.status(book).query("stage != 'report'")
    parts.append(Table("stages", "What was done", "Units are blocks of people, models or phenotypes.", stages))
    failures = ledger.failures(book)
    if len(failures):
        text = "Failed: an input could not be used. Excluded: a rule of the quality section was broken."
        told = failures.assign(message=failures["message"].map(without_credentials))
        parts.append(Table("fell-out", "Who fell out, and why", text, told))
    left_out = results.table(LEFT_OUT)
    if len(left_out):
        text = "Found among the files, but not part of the study."
        parts.append(Table("left-out", "Who was never in", text, left_out))
    summary = f"{len(study.cohort):,} people in {len(study.blocks()):,} blocks, {study.n_rois} ROIs."
    return Section("cohort", "The cohort", parts, summary)


def _splits(results: Results) -> pd.DataFrame:
    """A row per split: people, and how many have measured maps."""
    cohort = results.study.cohort
    table = pd.DataFrame(
        {
            "split": cohort["split"],
            "people": 1,
            "with rest": cohort["rest"].map(len) > 0,
            "with measured maps": cohort["contrasts"].map(len) > 0,
            "with a second visit": cohort["retest"].map(len) > 0,
        }
    )
    return table.groupby("split", sort=False).sum().reset_index()


def _quality(book: Ledger) -> Figure | None:
    """Distributions of what the receipts say of scans."""
    rows = book.account("connectomes").rows
    rows = rows[rows["status"] == "done"]
    table = pd.DataFrame([qc or {} for qc in rows["qc"]]) if len(rows) else pd.DataFrame()
    labels = {name: label for name, label in QUALITY.items() if name in table and table[name].notna().sum() > 1}
    if not labels:
        return None
    numbers = table[list(labels)].assign(subject=rows["subject"].to_numpy())[["subject", *labels]]
    return Figure(
        "scan-quality",
        "Quality of the resting-state scans",
        f"Of {len(table):,} people whose connectomes were made; dotted: the median.",
        f"Histograms of {', '.join(labels.values())}.",
        svg(histograms(table, labels)),
        "svg",
        numbers,
    )
