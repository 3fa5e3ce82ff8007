"""`dtg simulate`: a cohort of real NIfTI files with known truth, with a progress bar."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from dtg_ray.cohort.simulate import simulate


def run(out: str, *, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """Write a cohort; see `dtg_ray.cohort.simulate.simulate` for the options and what is returned."""
    with tqdm(total=options["subjects"], desc="simulate", unit="subject", disable=quiet) as bar:

        def advance(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        return simulate(out, progress=advance, **options)
