"""How figures look: colours that colour-blind people tell apart, one type size, files that are the same every time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Of Okabe and Ito (2008), the darkest first."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One fewer than colours, so that 56 names look different."""
GREY, FAINT = "#4d4d4d", "#d9d9d9"
PRINT_DPI = 300
SETTINGS: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,  # names may have a $
    "svg.hashsalt": "dtg_ray",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
}


@contextlib.contextmanager
def canvas(width: float, height: float, **how: Any) -> Iterator[Drawing]:
    """An empty figure of some inches, in the style of all of them.

    It belongs to no window and needs none; nothing of matplotlib's state changes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    with mpl.rc_context(SETTINGS):
        yield Drawing(figsize=(width, height), layout=how.pop("layout", "constrained"), **how)


def svg(drawing: Drawing) -> bytes:
    """A figure as SVG, without the date."""
    return _saved(drawing, format="svg", metadata={"Date": None, "Creator": None})


def png(drawing: Drawing, dpi: int = PRINT_DPI) -> bytes:
    """A figure as PNG, for what has too many points for SVG."""
    return _saved(drawing, format="png", dpi=dpi, metadata={"Software": None})


def _saved(drawing: Drawing, **how: Any) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        drawing.savefig(buffer, **how)
    return buffer.getvalue()


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of some names, by their order."""
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def markers(names: Sequence[str]) -> dict[str, str]:
    """A marker for each of some names, by their order: colours are not all that tells them apart."""
    return {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(names)}


def whole_names(axes: Axes, names: Sequence[str], *, vertical: bool = False) -> None:
    """Put names at the ticks 0, 1, 2 ... of an axis, slanted where they are many."""
    if vertical:
        axes.set_yticks(range(len(names)), list(names))
        return
    slanted = len(names) > 6 or max(map(len, names), default=0) > 12
    axes.set_xticks(range(len(names)), list(names), rotation=50 if slanted else 0, ha="right" if slanted else "center")
