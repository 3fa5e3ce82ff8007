"""`dtg demo`: a simulated cohort through the whole pipeline, the same way as one's own data."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dtg_ray.cohort.layouts import bids
from dtg_ray.stages import init, pipeline, simulate
from dtg_ray.stages.runtime import Options
from dtg_ray.store.files import local_path, normalize
from dtg_ray.study import Study

COHORT: dict[str, Any] = {
    "subjects": 160,
    "resolution": 4,
    "volumes": 80,
    "rois": 16,
    "contrasts": 7,
    "seed": 4,
}
SETTINGS: dict[str, Any] = {
    "grid": {"resolution": 4},
    "cohort": {"block_size": 8, "validation": 0.06, "test": 0.69},
    "models": {
        "group_mean": {"kind": "group_mean"},
        "linear": {"kind": "linear"},
        "unet": {
            "kind": "network",
            "width": 16,
            "train": {
                "epochs": 24,
                "batch_size": 4,
                "learning_rate": 5e-3,
                "schedule": "cosine",
                "margin": 0.5,
                "alpha": 0.5,
            },
        },
    },
    "prediction": {
        "targets": {
            "age": {},
            "sex": {"kind": "classification"},
            "network_score": {},
            "age_sex_score": {"confounds": ["age", "sex"]},
            "noise_score": {},
        },
        "weight_maps": True,
    },
}


def run(root: str, data: str, options: Options) -> tuple[Study, pd.DataFrame]:
    """Simulate a cohort into `data`, make the study `root` of it, and run all stages.

    Parameters
    ----------
    root : str
        The study, local or s3://.
    data : str
        A local folder for the images.
    options : Options

    Returns
    -------
    Study
    DataFrame
        Rows of all receipts.
    """
    folder = local_path(data)
    simulate.run(str(folder), quiet=options.quiet, **COHORT)
    atlas = next(str(path) for path in sorted(folder.glob("tpl-*_probseg.nii.gz")))
    summary = init.init(normalize(root), bids.find(str(folder)), [atlas], SETTINGS)
    return summary.study, pipeline.run(summary.study, options)
