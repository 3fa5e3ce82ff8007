"""Quality figures of rest runs, and the rules by which people are excluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class RunQuality:
    """Figures of one run, before any cleaning.

    Parameters
    ----------
    volumes : int
        In the file.
    used : int
        Left after scrubbing.
    tr : float
        Repetition time in s, 0 where unknown.
    coverage : float
        Share of the mask inside the image.
    constant : float
        Share of the mask whose voxels never change (those outside the image among them).
    tsnr : float
        Median over the voxels that change of mean over standard deviation in time.
    motion : float
        Mean displacement between volumes, mm: framewise displacement (Power et al. 2012) from fMRIPrep's confounds,
        relative RMS displacement (Jenkinson 1999) from FSL and HCP. NaN where unknown.
    """

    volumes: int
    used: int
    tr: float
    coverage: float
    constant: float
    tsnr: float
    motion: float


@dataclass(frozen=True)
class Rules:
    """Who is excluded; None switches a rule off.

    Parameters
    ----------
    minimum_minutes : float, optional
        Of data left after scrubbing.
    minimum_tsnr : float, optional
    minimum_coverage : float, optional
        Share of the mask, of the worst run.
    maximum_constant : float, optional
        Share of the mask, of the worst run.
    maximum_motion : float, optional
        Mean displacement, mm.
    maximum_scrubbed : float, optional
        Share of the volumes.
    maximum_mean_abs_r : float, optional
        Mean |r| of the connectome: very high where the whole brain moves as one.
    """

    minimum_minutes: float | None = None
    minimum_tsnr: float | None = None
    minimum_coverage: float | None = None
    maximum_constant: float | None = None
    maximum_motion: float | None = None
    maximum_scrubbed: float | None = None
    maximum_mean_abs_r: float | None = None


def summarize(runs: Sequence[RunQuality]) -> dict[str, float]:
    """Figures of a subject from those of its runs.

    Returns
    -------
    dict of str to float
        runs, volumes, used, minutes (used), tr (of the first run), scrubbed; coverage and constant of the worst run;
        tsnr and motion as means over volumes. minutes and motion are absent where a TR or a run's motion is not known.
    """
    volumes = np.array([run.volumes for run in runs], dtype=float)
    used = np.array([run.used for run in runs], dtype=float)
    seconds = float(sum(run.tr * run.used for run in runs))
    figures = {
        "runs": float(len(runs)),
        "volumes": float(volumes.sum()),
        "used": float(used.sum()),
        "tr": runs[0].tr,
        "coverage": min(run.coverage for run in runs),
        "constant": max(run.constant for run in runs),
        "tsnr": float(np.average([run.tsnr for run in runs], weights=volumes)),
        "scrubbed": float(1 - used.sum() / volumes.sum()),
    }
    if all(run.tr > 0 for run in runs):
        figures["minutes"] = seconds / 60
    motion = float(np.average([run.motion for run in runs], weights=volumes))
    return figures if np.isnan(motion) else {**figures, "motion": motion}


def broken_rule(figures: Mapping[str, float], rules: Rules) -> str:
    """The first rule that a subject's figures break, in words that begin with its name; empty when none.

    A figure that is not known breaks its rule: what cannot be checked is not let through.
    """
    for name, limit in asdict(rules).items():
        if limit is None:
            continue
        bound, _, figure = name.partition("_")
        value = figures.get(figure)
        if value is None:
            return f"{name}: {figure} is not known, expected it to be checked"
        if (value < limit) if bound == "minimum" else (value > limit):
            return f"{name}: got {value:.4g}, expected at {'least' if bound == 'minimum' else 'most'} {limit:g}"
    return ""
