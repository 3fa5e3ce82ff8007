"""Maps one can look at: a typical and an atypical person, the group, glass brains, slices and the slice viewer."""

from __future__ import annotations

import contextlib

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import StudyError
from dtg_ray.ledger import Ledger
from dtg_ray.report import glass
from dtg_ray.report.page import Figure, Part, Section, Viewer
from dtg_ray.report.pictures import side_by_side
from dtg_ray.report.sections.models import slugs, spread_out
from dtg_ray.report.style import png
from dtg_ray.results import ACTUAL, HELD_OUT, PREDICTED, Results
from dtg_ray.stats.metrics import pearson

LOOKED_AT = 50
"""People of whom the most and the least typical are taken."""
Maps = dict[str, NDArray[np.float32]]


def section(results: Results, _: Ledger) -> Section:
    """Of the model that is shown; nothing where it was not evaluated, or its results were taken away."""
    study, model = results.study, results.model
    title = "Measured and synthetic maps"
    if model not in results.models or not len(results.subjects(model)):
        return Section("maps", title, [])
    chosen = spread_out(results, model, study.config.report.group_maps)
    middle = chosen[len(chosen) // 2]
    people = extremes(results, model, middle)
    parts: list[Part] = []
    with contextlib.suppress(ValueError):  # of a rotated grid there are no slices along the axes
        parts.append(_people(results, middle, people))
    groups = {name: found for name in chosen if (found := _group(results, model, name))}
    if study.config.grid.mask is None:  # glass brains have the outline of MNI152
        parts += [_glass(results, name, slug, groups[name]) for name, slug in slugs(list(groups)).items()]
    maps = {f"group, {kind}: {name}": one for name in groups for kind, one in groups[name].items()}
    for who, (subject, found) in people.items():
        maps |= {
            f"{who} ({subject}), {kind}: {middle}": one for kind, one in found.items() if kind in {"measured", model}
        }
    with contextlib.suppress(ValueError):
        parts.append(_viewer(results, maps))
    summary = (
        f"Of the model {model}. Group maps are means over held-out people. The measured map of a "
        "typical person is most like the mean of others, that of an atypical one least."
    )
    return Section("maps", title, parts, summary)


def extremes(results: Results, model: str, contrast: str) -> dict[str, tuple[str, Maps]]:
    """A typical and an atypical held-out person, with their maps as measured and by every model that has them."""
    study, table = results.study, results.subjects(model)
    rows = table[(table["split"] == HELD_OUT) & (table["contrast"] == contrast)]
    subjects = rows["subject"].tolist()[:LOOKED_AT]
    actual = study.measured().sel(contrast=contrast, subject=subjects).to_numpy().astype(np.float32)
    alike = pearson(actual, (actual.sum(axis=0) - actual) / (len(actual) - 1))
    order = np.argsort(alike, kind="stable")
    places = {"typical": int(order[-1]), "atypical": int(order[0])}
    return {who: (subjects[at], _maps_of(results, contrast, subjects[at], actual[at])) for who, at in places.items()}


def _maps_of(results: Results, contrast: str, subject: str, actual: NDArray[np.float32]) -> Maps:
    """A person's maps, the first network before other models."""
    study, found = results.study, {"measured": actual}
    for name in sorted(results.models, key=lambda name: name != results.model):
        if contrast in study.config.maps_of(name):
            with contextlib.suppress(StudyError):  # of a model whose maps were taken away
                one = study.synthetic(name).sel(contrast=contrast, subject=subject).to_numpy().astype(np.float32)
                if np.isfinite(one).all():  # few people have a second visit
                    found[name] = one
    return found


def _people(results: Results, contrast: str, people: dict[str, tuple[str, Maps]]) -> Figure:
    """Slices of both people, as measured and by every model that has maps of both."""
    rows = [name for name in people["typical"][1] if name in people["atypical"][1]]
    maps = {name: np.stack([found[name] for _, found in people.values()]) for name in rows}
    titles = [f"{who}: {subject}" for who, (subject, _) in people.items()]
    return Figure(
        "people",
        f"{contrast} of a typical and an atypical person",
        f"Of the first {LOOKED_AT} held-out people with this map; one colour scale for all.",
        f"Axial slices of {' and '.join(titles)}, rows: {', '.join(rows)}.",
        png(side_by_side(maps, titles, results.study.grid)),
        "png",
    )


def _group(results: Results, model: str, contrast: str) -> Maps:
    """Means over held-out people, measured and synthetic."""
    kinds = {"measured": ACTUAL, "synthetic": PREDICTED}
    found = {title: results.group_map(model, contrast, kind) for title, kind in kinds.items()}
    return {title: one for title, one in found.items() if one is not None}


def _glass(results: Results, contrast: str, slug: str, maps: Maps) -> Figure:
    (line,) = results.contrasts[
        (results.contrasts["model"] == results.model) & (results.contrasts["contrast"] == contrast)
    ].to_dict("records")
    return Figure(
        f"glass-{slug}",
        f"{contrast}, mean over {line['subjects']} people",
        f"Spatial correlation of the two over grey matter: {line['mean_map_r']:.2f}.",
        f"Glass brains of the measured and the synthetic mean map of {contrast}.",
        png(glass.brains(maps, results.study.grid)),
        "png",
    )


def _viewer(results: Results, maps: Maps) -> Viewer:
    grid = results.study.grid
    return Viewer(
        "slices",
        "Slice viewer",
        "Choose two maps; click, or move the sliders.",
        grid,
        maps,
        background=glass.template(grid) if results.study.config.grid.mask is None else None,
    )
