"""Permutation test of ridge: scikit-learn refitted for every permutation against one factorisation per fold.

One scikit-learn fit, as published, is timed (the best of three) and multiplied by folds and targets; ours is
timed from features to predictions, Gram matrix included.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from sklearn.linear_model import Ridge

from dtg_ray.stats.folds import fold_indices
from dtg_ray.stats.permutation import permutation_indices
from dtg_ray.stats.ridge import cross_validated_ridge

N_FOLDS = 5
N_PERMUTATIONS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="300 subjects, 20,000 features")
    n, p = (300, 20_000) if parser.parse_args().quick else (2067, 158_680)

    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, p), dtype=np.float32)
    y = X[:, : p // 10].mean(axis=1) * np.sqrt(p // 10) + rng.standard_normal(n)
    folds = fold_indices(n, N_FOLDS, 42)
    permutations = permutation_indices(n, N_PERMUTATIONS, 0)

    train, test = folds[0]
    fits = []
    for _ in range(3):
        start = time.perf_counter()
        published = Ridge(alpha=p / len(train), solver="lsqr").fit(X[train], y[train]).predict(X[test])
        fits.append(time.perf_counter() - start)
    one_fit = min(fits)
    published_seconds = one_fit * N_FOLDS * (1 + N_PERMUTATIONS)

    start = time.perf_counter()
    ours = cross_validated_ridge(X, y, folds, alpha="features/samples", permutations=permutations)
    our_seconds = time.perf_counter() - start

    print(f"{n} subjects, {p} features, {N_FOLDS} folds, {1 + N_PERMUTATIONS} targets")
    print(f"scikit-learn: {one_fit:.2f} s a fit, {published_seconds:.0f} s in all (extrapolated)")
    print(f"dtg_ray: {our_seconds:.2f} s in all")
    figures = {
        "name": "ridge_permutation",
        "ratio": round(published_seconds / our_seconds, 1),
        "published_seconds_extrapolated": round(published_seconds, 1),
        "published_seconds_one_fit": round(one_fit, 3),
        "seconds": round(our_seconds, 2),
        "n": n,
        "p": p,
        "folds": N_FOLDS,
        "permutations": N_PERMUTATIONS,
        "correlation_with_published": round(float(np.corrcoef(ours.predictions[test], published)[0, 1]), 8),
        "max_difference_in_sd": float(np.abs(ours.predictions[test] - published).max() / y.std()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
