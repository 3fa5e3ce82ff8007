"""Results as tables on a terminal."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Console
from rich.table import Table


def show(title: str, table: pd.DataFrame, console: Console | None = None) -> None:
    """Print a data frame; numbers with three digits, to the right."""
    rendered = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for name in table.columns:
        numeric = pd.api.types.is_numeric_dtype(table[name])
        rendered.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for _, row in table.iterrows():
        rendered.add_row(*(cell(row[name], str(name)) for name in table.columns))
    (console or default_console()).print(rendered)


def show_failures(failures: pd.DataFrame) -> None:
    """Print who failed or was excluded by a rule, a line each as it can be searched for: stage, error, message."""
    console = default_console()
    counts = failures["status"].value_counts()
    console.print(f"[bold]{', '.join(f'{count} {status}' for status, count in counts.items())}[/bold]")
    for _, row in failures.iterrows():
        console.print(f"{row['stage']}: {row['error_type']}: {row['message']}", soft_wrap=True, markup=False)


def cell(value: object, column: str = "") -> str:
    """One value: p-values that end in zeros are shown as bounds, missing ones as a dash."""
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        is_p = column == "p" or column.endswith(" p")
        if value.is_integer() and not is_p and column not in {"r", "score"}:
            return f"{value:g}"
        return f"{value:.4f}" if is_p else f"{value:.3f}"
    return str(value)


def reconstruction(summary: pd.DataFrame) -> pd.DataFrame:
    """Models by figures, as `dtg run` shows them."""
    columns = ["model", "subjects", "r", "identification", "diagonality", "dice"]
    return summary[columns] if len(summary) else pd.DataFrame(columns=columns)


def phenotypes(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per phenotype and feature set: narrow enough for any terminal."""
    ordered = scores.sort_values("target", kind="stable")
    figures = [row[row["metric"]] for _, row in ordered.iterrows()]
    ordered = ordered.assign(metric=ordered["metric"].str.replace("auc", "AUC"), score=figures)
    columns = ["target", "features", "subjects", "metric", "score", "p", "p_family"]
    return ordered[columns].rename(columns={"target": "phenotype", "metric": "", "p_family": "family-wise p"})


def default_console() -> Console:
    """Standard output; 120 columns when it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=120, highlight=False)
