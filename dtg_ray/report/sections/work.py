"""What it took, and how it is done again."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import pandas as pd

from dtg_ray import __version__, ledger
from dtg_ray.config import to_yaml
from dtg_ray.errors import MissingFileError
from dtg_ray.ledger import Ledger
from dtg_ray.remote import without_credentials
from dtg_ray.report.cohort_charts import times
from dtg_ray.report.page import Facts, Figure, Part, Section, Table, Words
from dtg_ray.report.style import svg
from dtg_ray.results import Results

PACKAGES = ("torch", "ray", "zarr", "dask", "numpy", "scipy", "scikit-learn", "nibabel", "nilearn")
PAPER = "Serin et al. (2025), Communications Biology, doi 10.1038/s42003-025-09158-6"
GIGABYTE = 2**30


def resources(results: Results, book: Ledger) -> Section:
    """Time and memory of each stage, as receipts have them."""
    lines = []
    for stage in ledger.stages(results.study):
        rows = book.account(stage).rows
        if len(rows) and stage != "report":
            lines.append(
                {
                    "stage": stage,
                    "tried": len(rows),
                    "seconds": float(rows["seconds"].sum()),
                    "seconds_each": float(rows["seconds"].mean()),
                    "peak_memory_gb": float(rows["peak_memory"].max()) / GIGABYTE,
                    "machines": int(rows["host"].nunique()),
                    "finished": f"{rows['finished'].max():%Y-%m-%d %H:%M}",
                }
            )
    table = pd.DataFrame(lines)
    if not len(table):
        return Section("resources", "Time and memory", [])
    figure = Figure(
        "resources",
        "Work of each stage",
        "Seconds are summed over people and workers; memory is the largest of one process.",
        "Bars of seconds and memory by stage.",
        svg(times(table)),
        "svg",
        table,
    )
    return Section("resources", "Time and memory", [figure, Table("resources", "By stage", "", table)])


def methods(results: Results, _: Ledger) -> Section:
    """Versions, configuration and models, and the commands."""
    study = results.study
    versions = {"dtg_ray": __version__, "Python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    commands = (
        f"pip install dtg_ray=={__version__}\n"
        "dtg init NEW ... --config study.yaml        # with the text below, and the files of the cohort\n"
        "dtg run NEW"
    )
    parts: list[Part] = [
        Words(
            "Maps are made by DeepTaskGen from voxel-to-ROI connectomes. Please cite " + PAPER + ". Everything here "
            "follows from the files of the cohort and from study.yaml, below. Versions are those that made this page."
        ),
        Facts(versions),
        Words("To compute it again:", commands),
        Words("study.yaml:", without_credentials(to_yaml(study.config))),
    ]
    models = pd.DataFrame([line for name in study.config.models if (line := _model(results, name))])
    if len(models):
        parts.insert(2, Table("models", "Models", "sha256 is of the weights.", models))
    return Section("methods", "How it was done", parts)


def _model(results: Results, name: str) -> dict[str, object]:
    """What a model's own description says."""
    study = results.study
    try:
        told = json.loads(study.storage.read(f"models/{name}/model.json"))
    except (MissingFileError, ValueError):
        return {}
    origin = told.get("provenance", {})
    people = {split: len(origin[split]) for split in ("training", "validation") if split in origin}
    return {"model": name, "kind": study.config.models[name].kind, **people, "sha256": str(told.get("sha256", ""))[:16]}
