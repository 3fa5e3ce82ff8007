"""The cells of a data frame as they are read on a page, and as CSV in full precision."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

MISSING = "–"
MINUS = "−"
P_VALUE = re.compile(r"p|.*[ _]p|p[ _(-].*", re.IGNORECASE)
SMALLEST_P = 1e-4
DECIMALS = ((0.01, 5), (0.1, 4), (10, 3), (100, 2), (10_000, 1))
"""Largest value of a column (below), decimals of the whole column: its points stand under each other."""
NOISE = 1e-9
"""A value that is this much smaller than the largest of its column is a rounding error, and is shown as zero."""


def csv_text(data: pd.DataFrame) -> str:
    """All rows without the index, numbers in full precision, missing values empty, lines ended by a line feed."""
    return str(data.to_csv(index=False, lineterminator="\n"))


def is_number(column: pd.Series) -> bool:
    """Whether a column is aligned and sorted as numbers; true and false are words."""
    return bool(pd.api.types.is_numeric_dtype(column)) and not pd.api.types.is_bool_dtype(column)


def texts(data: pd.DataFrame) -> list[list[str]]:
    """Every cell as it is shown, row by row.

    Floats have three digits or so, the same number of decimals in the whole column; p-values four decimals or
    a bound; whole numbers all of their digits, as they may be names of subjects; missing values a dash.
    """
    columns = [_column(data.iloc[:, place], str(name)) for place, name in enumerate(data.columns)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(column: pd.Series, name: str) -> list[str]:
    if not pd.api.types.is_float_dtype(column):
        return [_other(value) for value in column]
    values = [math.nan if pd.isna(value) else float(value) for value in column]
    if P_VALUE.fullmatch(name.strip()):
        return [_p_value(value) for value in values]
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0)
    whole = all(value.is_integer() for value in finite)
    decimals = 0 if whole else next((count for bound, count in DECIMALS if largest < bound), 0)
    return [_number(value, decimals, largest * NOISE) for value in values]


def _number(value: float, decimals: int, noise: float) -> str:
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = f"{value:.2g}" if abs(value) > noise else f"{0:.{decimals}f}"
    return text.replace("-", MINUS)


def _p_value(value: float) -> str:
    if math.isnan(value):
        return MISSING
    return f"{value:.4f}" if value >= SMALLEST_P else f"< {SMALLEST_P:.4f}"


def _other(value: Any) -> str:
    """Words, whole numbers, dates, lists."""
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy's is no subclass
        return "yes" if value else "no"
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return MISSING
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    if isinstance(value, int) or pd.api.types.is_integer(value):
        return str(value).replace("-", MINUS)
    return str(value)
