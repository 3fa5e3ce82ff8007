"""One self-contained HTML page out of sections: figures, tables, slice viewers, key figures and words.

The page needs no network and no file beside it, so that it opens from a disk and from a bucket. All scripts, styles and
data are inside it, and its content security policy forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.imaging.grid import Grid
from dtg_ray.report.page_maps import Box, viewer_data
from dtg_ray.report.page_tables import csv_text, is_number, texts

ASSETS = resources.files("dtg_ray.report") / "assets"
SCRIPTS = ("tables.js", "viewer.js", "page.js")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
ROWS_SHOWN = 200
ROWS_WITHOUT_FILTER = 15
MOST_ROWS = 2000
"""Rows that are put into the page; a table that has more, such as one of all people, is linked beside it."""
LARGEST_NUMBERS = 256 * 1024
"""Numbers behind a figure that are longer as CSV, in bytes, are linked beside the page instead of put into it."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A drawing, with the numbers behind it.

    Parameters
    ----------
    name : str
        Stem of its files: lower-case letters, digits and single hyphens.
    title, caption : str
    alt : str
        What a reader who does not see it has to know.
    data : bytes
        The SVG or PNG file.
    kind : {"svg", "png"}
    numbers : DataFrame or None
        Its columns only; the index is left out.
    """

    name: str
    title: str
    caption: str
    alt: str
    data: bytes
    kind: Literal["svg", "png"]
    numbers: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        """Check the name and the kind."""
        _check_name("figure", self.name)
        if self.kind not in {"svg", "png"}:
            raise ValueError(f"figure {self.name}: got the kind {self.kind!r}, expected svg or png")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows that can be sorted, filtered and downloaded; the columns of a data frame, without its index."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame

    def __post_init__(self) -> None:
        """Check the name."""
        _check_name("table", self.name)


@dataclass(frozen=True, eq=False)
class Viewer:
    """Slices of two maps side by side through one point that the reader moves, on one colour scale.

    Parameters
    ----------
    name, title, caption : str
    grid : Grid
        Its affine must be axis-aligned: any order and direction of the axes, no rotation.
    maps : mapping of str to (V,) float
        In the order of the lists to choose from. The page holds them in 255 steps of one scale; NaN is "no value".
    unit : str
    background : (V,) float or None
        Drawn in grey where no map is: below the threshold, and where there is no value.
    """

    name: str
    title: str
    caption: str
    grid: Grid
    maps: Mapping[str, NDArray[np.floating]]
    unit: str = "z"
    background: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        """Check the name and the lengths of the maps."""
        _check_name("viewer", self.name)
        if not self.maps:
            raise ValueError(f"viewer {self.name}: got no maps, expected at least one")
        Box.of(self.grid)  # which refuses a rotated grid
        backgrounds = {} if self.background is None else {"background": self.background}
        for name, vector in itertools.chain(self.maps.items(), backgrounds.items()):
            if vector.shape != (self.grid.n_voxels,):
                raise ValueError(
                    f"viewer {self.name}: got {name} of shape {vector.shape}, expected ({self.grid.n_voxels},)"
                )


@dataclass(frozen=True)
class Facts:
    """Key figures: what each is to its value, as it is to be read."""

    pairs: Mapping[str, str]


@dataclass(frozen=True)
class Words:
    """Paragraphs of plain text, with empty lines between them, and lines of code to copy; either may be empty."""

    text: str = ""
    code: str = ""


Part = Figure | Table | Viewer | Facts | Words


@dataclass(frozen=True, eq=False)
class Section:
    """A heading with its parts; `name` is the anchor, so that `index.html#name` leads there."""

    name: str
    title: str
    parts: Sequence[Part]
    summary: str = ""

    def __post_init__(self) -> None:
        """Check the name."""
        _check_name("section", self.name)


def render(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document; sections without parts are left out.

    Parameters
    ----------
    title, subtitle, footer : str
        Plain text, as all other text of the sections: markup in it is shown, not obeyed.
    sections : sequence of Section

    Returns
    -------
    str
        HTML in UTF-8. The same input gives the same document.

    Raises
    ------
    ValueError
        When two sections, or two parts of one kind, have the same name, or when a viewer's grid is rotated.
    """
    shown = _with_parts(sections)
    style = _asset("style.css")
    script = '"use strict";\n' + "\n".join(_asset(name) for name in SCRIPTS)
    template = _environment().get_template("template.html")
    document = template.render(
        title=title,
        subtitle=subtitle,
        footer=footer,
        sections=[_described(section) for section in shown],
        style=style,
        script=script,
        policy=_policy(style, script),
    )
    return document.lstrip() + "\n"


def files(sections: Sequence[Section]) -> dict[str, bytes]:
    """What lies beside the page, for other programs: its figures, the numbers behind them, and its tables.

    =============================  ==========================================
    figures/NAME.svg or .png       as it is in the page
    figures/NAME.csv               the numbers behind it, where it has some
    tables/NAME.csv                all rows, in full precision
    =============================  ==========================================

    Raises
    ------
    ValueError
        When two parts of one kind have the same name.
    """
    written: dict[str, bytes] = {}
    for part in _parts(_with_parts(sections)):
        match part:
            case Figure():
                written[f"figures/{part.name}.{part.kind}"] = part.data
                if part.numbers is not None:
                    written[f"figures/{part.name}.csv"] = csv_text(part.numbers).encode()
            case Table():
                written[f"tables/{part.name}.csv"] = csv_text(part.data).encode()
            case _:
                pass
    return written


def _with_parts(sections: Sequence[Section]) -> list[Section]:
    """The sections that have parts; every name in them stands once."""
    shown = [section for section in sections if section.parts]
    named = [("section", section.name) for section in shown]
    named += [(type(part).__name__.lower(), part.name) for part in _parts(shown) if not isinstance(part, Facts | Words)]
    twice = [f"{kind} {name}" for (kind, name), count in Counter(named).items() if count > 1]
    if twice:
        raise ValueError(f"got {', '.join(twice)} more than once, expected every name once")
    return shown


def _parts(sections: Sequence[Section]) -> Iterator[Part]:
    """All parts of all sections, in their order."""
    return itertools.chain.from_iterable(section.parts for section in sections)


def _check_name(kind: str, name: str) -> None:
    """Names become anchors and names of files."""
    if not NAME.fullmatch(name):
        raise ValueError(f"got the {kind} name {name!r}, expected lower-case letters, digits and single hyphens")


def _described(section: Section) -> dict[str, Any]:
    """A section as the template takes it."""
    return {
        "name": section.name,
        "title": section.title,
        "summary": section.summary,
        "parts": [_part(part) for part in section.parts],
    }


def _part(part: Part) -> dict[str, Any]:
    """A part as the template takes it; `macro` names what draws it."""
    match part:
        case Figure():
            return _figure(part)
        case Table():
            return _table(part)
        case Viewer():
            return {"macro": "viewer", "part": part, **viewer_data(part.grid, part.maps, part.unit, part.background)}
        case Facts():
            return {"macro": "facts", "pairs": part.pairs}
        case Words():
            paragraphs = [text.strip() for text in re.split(r"\n\s*\n", part.text) if text.strip()]
            return {"macro": "words", "paragraphs": paragraphs, "code": part.code.strip("\n")}


def _figure(figure: Figure) -> dict[str, Any]:
    """The image as a data URI: ids inside of one SVG cannot meet those of another."""
    mime = {"svg": "image/svg+xml", "png": "image/png"}[figure.kind]
    numbers = None if figure.numbers is None else csv_text(figure.numbers)
    fits = numbers is not None and len(numbers) <= LARGEST_NUMBERS
    return {
        "macro": "figure",
        "part": figure,
        "uri": f"data:{mime};base64,{base64.b64encode(figure.data).decode()}",
        "width": _png_width(figure.data) if figure.kind == "png" else None,
        "has_numbers": numbers is not None,
        "data": {"csv": numbers} if fits else None,
    }


def _png_width(data: bytes) -> int | None:
    """Width in CSS pixels of a PNG that says its resolution (chunk pHYs, pixels per metre); None without one."""
    place = data.find(b"pHYs", 0, 4096)
    if place < 0:
        return None
    pixels = struct.unpack(">I", data[16:20])[0]
    per_metre = struct.unpack(">I", data[place + 4 : place + 8])[0]
    return round(pixels / per_metre / 0.0254 * 96) if per_metre else None


def _table(table: Table) -> dict[str, Any]:
    """The first rows as cells; the others as text, of which the script makes rows when they are asked for."""
    data = table.data.head(MOST_ROWS)
    numeric = [is_number(data.iloc[:, place]) for place in range(data.shape[1])]
    rows = texts(data)
    return {
        "macro": "table",
        "part": table,
        "columns": list(zip((str(name) for name in data.columns), numeric, strict=True)),
        "rows": rows[:ROWS_SHOWN],
        "n_rows": len(rows),
        "n_all": len(table.data),
        "filters": len(rows) > ROWS_WITHOUT_FILTER,
        "cut": len(rows) > ROWS_SHOWN,
        "data": {"csv": csv_text(data), "numeric": numeric, "shown": ROWS_SHOWN, "rest": rows[ROWS_SHOWN:]},
    }


def _environment() -> Any:
    """Jinja2 that escapes all text and knows no undefined names."""
    import jinja2
    from markupsafe import Markup

    def data(value: object) -> Markup:
        """JSON for a script element, which a `<` might end."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        # no markup is left in it
        return Markup(text)  # noqa: S704

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = data
    return environment


def _asset(name: str) -> str:
    """A file of the page's own."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy: this style, this script, images that are in the page, nothing else."""
    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; "
        f"style-src {_hashed(style)}; script-src {_hashed(script)}"
    )


def _hashed(text: str) -> str:
    """The name by which a policy allows one inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
