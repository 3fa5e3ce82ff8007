"""The tutorial notebook runs from its first cell to its last, on a study it was not written for, and draws."""

from __future__ import annotations

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def test_every_cell_runs_and_figures_are_drawn(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTG_STUDY", str(finished))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept: they would grow old"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    drawn = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    plots = [cell.source for cell in notebook.cells if "study.plot." in cell.source]
    assert drawn == plots
