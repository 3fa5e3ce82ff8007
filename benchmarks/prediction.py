"""The published analysis on the demo cohort: 12 phenotypes, 9 feature sets, 1,000 permutations, by `dtg predict`.

A copy of the study that `dtg demo` made gets its phenotypes and some made-up ones, 12 in all, and as features each
contrast of the network's maps, the measured maps and the connectome. scikit-learn is timed on one fit of each feature
set and extrapolated.

    python benchmarks/prediction.py demo/study [--repeats 0]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.linear_model import Ridge

from dtg_ray.ledger import Ledger
from dtg_ray.results import Results
from dtg_ray.stages.prediction.features import Features, members
from dtg_ray.study import Study

N_TARGETS, N_FOLDS, N_PERMUTATIONS = 12, 5, 1000
FEATURES = ["synthetic:unet:*", "measured", "connectome"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="made by `dtg demo`")
    parser.add_argument("--repeats", type=int, default=10, help="of cross-validation, to compare feature sets; 0: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = prepare(options.study, Path(folder), options.repeats)
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dtg_ray.cli", "predict", str(root), "--quiet"], check=True)
        seconds = time.perf_counter() - begin
        print(json.dumps({"name": "prediction", "seconds": round(seconds, 1), **figures(Study(str(root)), seconds)}))


def prepare(study: Path, folder: Path, repeats: int) -> Path:
    """A copy of a study with more phenotypes and feature sets, not predicted yet."""
    root = folder / "study"
    shutil.copytree(study, root, ignore=shutil.ignore_patterns("prediction", "predict", "scores", "train"))
    people = Study(str(root)).people
    known = [name for name in people if pd.api.types.is_numeric_dtype(people[name]) and np.ptp(people[name].dropna())]
    rng = np.random.default_rng(0)
    more = {f"made_up_{number}": rng.standard_normal(len(people)) for number in range(N_TARGETS - len(known))}
    pd.DataFrame({"subject": people.index, **more}).to_parquet(folder / "more.parquet", index=False)
    document = yaml.safe_load((root / "study.yaml").read_text())
    document["prediction"] |= {
        "tables": [str(folder / "more.parquet")],
        "targets": {name: {} for name in [*known, *more]},
        "features": FEATURES,
        "folds": N_FOLDS,
        "permutations": N_PERMUTATIONS,
        "repeats": repeats,
        "weight_maps": False,
    }
    (root / "study.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return root


def figures(study: Study, seconds: float) -> dict[str, object]:
    """What was done, and how long scikit-learn would have taken."""
    scores, book = Results(study).scores, Ledger(study)
    assert len(scores) == N_TARGETS * len(study.config.feature_sets())
    assert (scores["permutations"] == N_PERMUTATIONS).all()
    refitted = 0.0
    for feature in study.config.feature_sets():
        X = Features(study, feature, members(book, feature)).matrix().astype(np.float32)
        y = np.random.default_rng(0).standard_normal(len(X))
        begin = time.perf_counter()
        Ridge(alpha=X.shape[1] / len(X), solver="lsqr").fit(X, y).predict(X)
        refitted += (time.perf_counter() - begin) * N_TARGETS * N_FOLDS * (1 + N_PERMUTATIONS)
    return {
        "targets": N_TARGETS,
        "feature_sets": len(study.config.feature_sets()),
        "permutations": N_PERMUTATIONS,
        "subjects": sorted({int(n) for n in scores["subjects"]}),
        "scikit_learn_seconds_extrapolated": round(refitted),
        "ratio": round(refitted / seconds),
    }


if __name__ == "__main__":
    main()
