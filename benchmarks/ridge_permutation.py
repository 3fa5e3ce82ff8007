"""Permutation test of ridge: scikit-learn refitted for every permutation against one factorisation; and 20,000 people.

First, one scikit-learn fit, as published, is timed (the best of three) and multiplied by folds and targets; ours is
timed from features to predictions. How many steps scikit-learn's solver takes depends on how alike voxels are, so this
is done for noise, and for maps with a common mean whose differences have a smoothness of 8 and 12 mm.

Then a study of 20,000 people whose maps are in Zarr is predicted by the code of `dtg predict`, for 5,000, 10,000 and
20,000 of them, and once more with 1% of the values missing: the time of each part, what permutations add, the memory.

    python benchmarks/ridge_permutation.py [--quick] [--only published|scale]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import Ridge

from dtg_ray.cohort.layouts import table
from dtg_ray.imaging.grid import Grid
from dtg_ray.ledger import array_of
from dtg_ray.stages import init
from dtg_ray.stages.contrasts import make_maps
from dtg_ray.stages.prediction import people
from dtg_ray.stages.prediction.cells import Engines, predict_target
from dtg_ray.stages.prediction.clock import Clock
from dtg_ray.stages.prediction.features import Features
from dtg_ray.stages.prediction.gram import gram_sum
from dtg_ray.stats.folds import fold_indices
from dtg_ray.stats.permutation import permutation_indices
from dtg_ray.stats.ridge import cross_validated_ridge
from dtg_ray.store.arrays import write_rows
from dtg_ray.study import Study

N_FOLDS = 5
N_PERMUTATIONS = 1000
SMOOTHNESS = (0, 8, 12)
"""Full width at half maximum in mm; `ratio` is that of the last one, the nearest to what a network makes."""
FEATURE = "synthetic:linear"
PARTS = ("read", "gram", "factor", "solve", "permute", "score")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 subjects and 20,000 features; 250 to 1,000 subjects")
    parser.add_argument("--only", choices=["published", "scale"])
    parser.add_argument("--keep", help="make the study of 20,000 in this folder, or use the one that is there")
    options = parser.parse_args()
    figures: dict[str, Any] = {"name": "ridge_permutation"}
    if options.only != "scale":
        n, p = (300, 20_000) if options.quick else (2067, 158_680)
        lines = [alone(published, n, p, fwhm) for fwhm in SMOOTHNESS]
        figures |= {"ratio": lines[-1]["ratio"], "memory_gb": max(line["memory_gb"] for line in lines)}
        figures |= {"n": n, "p": p, "folds": N_FOLDS, "permutations": N_PERMUTATIONS, "published": lines}
    if options.only != "published":
        with tempfile.TemporaryDirectory() as folder:
            sizes, p = ([250, 500, 1000], 20_000) if options.quick else ([5_000, 10_000, 20_000], 158_680)
            figures |= scale(Path(options.keep or folder), sizes, p)
    print(json.dumps(figures))


def alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Do something in a process of its own, to know its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def peak_gb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30, 2)


def made_up(n: int, p: int, fwhm: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Maps (n, p) of 2 mm voxels with a standard deviation of 1 around a common map, and a target (n,) in them."""
    rng, grid = np.random.default_rng(0), Grid.mni152(2)
    voxels = tuple(index[:p] for index in np.nonzero(grid.mask))
    X = np.empty((n, p), dtype=np.float32)
    for row in X:
        noise = rng.standard_normal(grid.shape, dtype=np.float32)
        row[:] = (gaussian_filter(noise, fwhm / 2.355 / 2, truncate=2) if fwhm else noise)[voxels]
    X /= X.std()
    signal = X[:, : p // 10].mean(axis=1, dtype=np.float64)
    y = signal / signal.std() + rng.standard_normal(n)
    X += 2 * X[0]
    return X, y


def published(n: int, p: int, fwhm: float) -> dict[str, Any]:
    """scikit-learn against one factorisation, in one run."""
    X, y = made_up(n, p, fwhm)
    folds = fold_indices(n, N_FOLDS, 42)

    start = time.perf_counter()
    permutations = permutation_indices(n, N_PERMUTATIONS, 0)
    ours = cross_validated_ridge(X, y, folds, alpha="features/samples", permutations=permutations)
    our_seconds = time.perf_counter() - start
    memory = peak_gb()

    train, test = folds[0]
    fits = []
    for _ in range(3):
        start = time.perf_counter()
        refitted = Ridge(alpha=p / len(train), solver="lsqr").fit(X[train], y[train]).predict(X[test])
        fits.append(time.perf_counter() - start)
    one_fit = min(fits)
    published_seconds = one_fit * N_FOLDS * (1 + N_PERMUTATIONS)
    print(f"{n} subjects, {p} features of {fwhm} mm, {N_FOLDS} folds, {1 + N_PERMUTATIONS} targets")
    print(f"scikit-learn: {one_fit:.2f} s a fit, {published_seconds:.0f} s in all (extrapolated)")
    print(f"dtg_ray: {our_seconds:.2f} s in all, {memory} GB, features included", flush=True)
    return {
        "fwhm_mm": fwhm,
        "ratio": round(published_seconds / our_seconds, 1),
        "published_seconds_extrapolated": round(published_seconds, 1),
        "published_seconds_one_fit": round(one_fit, 3),
        "seconds": round(our_seconds, 2),
        "memory_gb": memory,
        "correlation_with_published": round(float(np.corrcoef(ours.predictions[test], refitted)[0, 1]), 8),
        "max_difference_in_sd": float(np.abs(ours.predictions[test] - refitted).max() / y.std()),
    }


def scale(folder: Path, sizes: list[int], p: int) -> dict[str, Any]:
    """Predict from maps in Zarr, for more and more people."""
    root = str(folder / "study")
    if not (folder / "made").exists():
        alone(make_study, folder, max(sizes), p)
    lines = [alone(predict, root, n) for n in sizes]
    incomplete = alone(predict, root, sizes[-1], 101)
    growth, bound = lines[-1]["total"] / lines[0]["total"], operations(sizes[-1], p) / operations(sizes[0], p)
    print(f"from {sizes[0]} to {sizes[-1]}: {growth:.1f} times the time, {bound:.1f} times n^2 p + n^3")
    return {
        "scale": lines,
        "minutes": round(lines[-1]["total"] / 60, 2),
        "permutations_add": lines[-1]["permutations_add"],
        "scale_memory_gb": max(lines[-1]["memory_gb"], incomplete["memory_gb"]),
        "incomplete": incomplete,
        "growth": round(growth, 2),
        "growth_allowed": round(bound, 2),
    }


def operations(n: int, p: int) -> float:
    return float(n) ** 2 * p + float(n) ** 3


def make_study(folder: Path, n: int, p: int) -> dict[str, Any]:
    """A study with synthetic maps of n people, p voxels each, and a phenotype that they explain in part."""
    grid = Grid.mni152(2)
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[tuple(index[:p] for index in np.nonzero(grid.mask))] = 1
    nib.Nifti1Image(mask, grid.affine).to_filename(folder / "mask.nii.gz")
    rng = np.random.default_rng(0)
    rois = rng.random((*grid.shape, 3), dtype=np.float32)
    nib.Nifti1Image(rois, grid.affine).to_filename(folder / "rois.nii.gz")
    effect = rng.standard_normal(n)
    cohort = pd.DataFrame(
        {
            "subject": [f"{1_000_000 + number}" for number in range(n)],
            "rest": [str(folder / f"rest-{number}.nii.gz") for number in range(n)],
            "contrast:MOTOR_LH": [str(folder / "map.nii.gz")] + [None] * (n - 1),
            "score": effect + rng.standard_normal(n),
        }
    )
    cohort.to_parquet(folder / "table.parquet")
    settings = {
        "grid": {"mask": str(folder / "mask.nii.gz")},
        "models": {"linear": {"kind": "linear"}},
        "prediction": {"mask": "brain", "features": [FEATURE]},
    }
    study = init.init(
        str(folder / "study"), table.find(str(folder / "table.parquet")), [str(folder / "rois.nii.gz")], settings
    ).study
    name = array_of("synthesize/linear")
    make_maps(study, name, study.config.contrasts, {"maps": "contrast map"})
    array, direction = study.storage.open_zarr(name, writable=True)["maps"], rng.standard_normal(p, dtype=np.float32)
    for block in study.blocks():
        rows = study.rows(block)
        maps = rng.standard_normal((rows.stop - rows.start, p), dtype=np.float32)
        maps += 0.02 * effect[rows, None].astype(np.float32) * direction
        write_rows(array, 1, rows, maps[None].astype(np.float16))
    (folder / "made").touch()
    return {}


def predict(root: str, n: int, missing: int = 0) -> dict[str, Any]:
    """One feature set and one target, as `dtg predict` does it, and where the time goes.

    With `missing` every so-manieth person has no value: a part of the Gram matrix, and folds of two sizes.
    """
    study, clock, begin = Study(root), Clock(), time.perf_counter()
    subjects = list(study.cohort["subject"][:n])
    features = Features(study, FEATURE, subjects)
    engines = Engines(gram_sum(features, features.pieces(), clock).gram(), subjects, study.config.prediction.alpha)
    known = [subject for number, subject in enumerate(subjects) if not missing or number % missing]
    everybody = study.positions(known)
    target, exchange = people.target_of(study, "score", known), people.exchangeability(study)
    assert isinstance(target, people.Target)
    config = study.config.prediction.model_copy(update={"permutations": 0})
    predict_target(engines, target, exchange, everybody, config, clock)
    none, parts = time.perf_counter() - begin, dict(clock.seconds)
    engines = Engines(engines.X, subjects, config.alpha)  # nothing is left of the first time
    config = study.config.prediction.model_copy(update={"permutations": N_PERMUTATIONS})
    begin = time.perf_counter()
    found = predict_target(engines, target, exchange, everybody, config, clock)
    spent = {part: clock.seconds.get(part, 0) - parts.get(part, 0) * (part == "factor") for part in PARTS}
    added = time.perf_counter() - begin - spent["factor"]
    line = {
        "n": n,
        "with_target": len(known),
        "total": round(none + added, 1),
        **{part: round(seconds, 1) for part, seconds in spent.items()},
        "permutations_add": round(added / none, 3),
        "memory_gb": peak_gb(),
        "r": round(float(found["scores"]["r"][0]), 3),
        "p": float(found["scores"]["p"][0]),
    }
    print(json.dumps(line), flush=True)
    return line


if __name__ == "__main__":
    main()
