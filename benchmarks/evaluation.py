"""Evaluation of 1,000 people, 47 contrasts and 158,680 voxels: throughput and memory of `dtg evaluate`.

A study with measured and synthetic maps in Zarr is made, then evaluated by the command in a process of its own. For
comparison the figures of a few contrasts are computed with whole float64 matrices in memory, numpy's `corrcoef` and a
sort for every share of voxels, as one would in a notebook; `ratio` is its time over ours, for each pair of maps.

    python benchmarks/evaluation.py [--quick] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
from numpy.typing import NDArray

from dtg_ray.cohort.layouts import table
from dtg_ray.imaging.grid import Grid
from dtg_ray.ledger import Ledger, array_of
from dtg_ray.results import Results
from dtg_ray.stages import init
from dtg_ray.stages.contrasts import make_maps
from dtg_ray.store.arrays import write
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.study import Study

MODEL = "linear"
TEST_SHARE = 0.9
BY_HAND = 2
"""Contrasts that are done by hand."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 people, 5 contrasts, 20,000 voxels")
    parser.add_argument("--keep", help="make the study in this folder, or use the one that is there")
    options = parser.parse_args()
    n, contrasts, p = (100, 5, 20_000) if options.quick else (1000, 47, 158_680)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.keep or folder)
        if not (root / "made").exists():
            make_study(root, round(n / TEST_SHARE), contrasts, p)
        figures = evaluate(str(root / "study"))
        figures |= by_hand(Study(str(root / "study")), figures.pop("seconds_per_pair"))
    print(json.dumps({"name": "evaluation", "subjects": n, "contrasts": contrasts, "voxels": p, **figures}))


def make_study(folder: Path, n: int, n_contrasts: int, p: int) -> None:
    """A study whose people all have measured and synthetic maps, with the receipts that say so."""
    grid = Grid.mni152(2)
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[tuple(index[:p] for index in np.nonzero(grid.mask))] = 1
    nib.Nifti1Image(mask, grid.affine).to_filename(folder / "mask.nii.gz")
    rois = np.random.default_rng(0).random((*grid.shape, 3), dtype=np.float32)
    nib.Nifti1Image(rois, grid.affine).to_filename(folder / "rois.nii.gz")
    names = [f"TASK{number % 7}_C{number:02d}" for number in range(n_contrasts)]
    columns = {f"contrast:{name}": [str(folder / f"{name}-{who}.nii.gz") for who in range(n)] for name in names}
    people = {"subject": [f"{1_000_000 + who}" for who in range(n)], "site": [f"s{who % 3}" for who in range(n)]}
    rest = {"rest": [str(folder / f"rest-{who}.nii.gz") for who in range(n)]}
    pd.DataFrame({**people, **rest, **columns}).to_parquet(folder / "table.parquet")
    settings = {
        "grid": {"mask": str(folder / "mask.nii.gz")},
        "cohort": {"test": TEST_SHARE, "validation": 0.05},
        "models": {MODEL: {"kind": "linear"}},
    }
    cohort = table.find(str(folder / "table.parquet"))
    study = init.init(str(folder / "study"), cohort, [str(folder / "rois.nii.gz")], settings).study
    study.storage.write(f"models/{MODEL}/model.json", json.dumps({"sha256": "0" * 64}).encode())
    write_maps(study)
    for stage in ("connectomes", "contrasts", f"train/{MODEL}", f"synthesize/{MODEL}"):
        for unit, members in Ledger(study).account(stage).owed.items():
            rows = [Row(who, "done", str(today), qc={"stored": 0.0}) for who, today in members.items()]
            Receipts(study.storage, stage).write(unit, rows, attempt=1, host="")
    (folder / "made").touch()


def write_maps(study: Study) -> None:
    """Maps of the contrast, of the person and noise; synthetic ones know a part of the person."""
    rng, p, names = np.random.default_rng(0), study.grid.n_voxels, study.config.contrasts
    bank = rng.standard_normal(4 * p, dtype=np.float32)
    arrays = []
    for name in ("contrasts.zarr", array_of(f"synthesize/{MODEL}")):
        make_maps(study, name, names, {"maps": "contrast map"})
        arrays.append(study.storage.open_zarr(name, writable=True)["maps"])
    for block in study.blocks():
        rows = study.rows(block)
        for number in range(len(names)):
            measured, synthetic = (np.empty((rows.stop - rows.start, p), dtype=np.float16) for _ in range(2))
            for place, person in enumerate(range(rows.start, rows.stop)):
                task, own = piece(bank, p, number), piece(bank, p, 1_000 + person)
                measured[place] = task + own + piece(bank, p, person * len(names) + number)
                synthetic[place] = task + 0.2 * own
            for array, values in zip(arrays, (measured, synthetic), strict=True):
                write(array, (slice(number, number + 1), rows), values[None])


def piece(bank: NDArray[np.float32], p: int, number: int) -> NDArray[np.float32]:
    """Some p numbers of a bank, from a place that `number` decides."""
    start = (number * 7919 * 97) % (len(bank) - p)
    return bank[start : start + p]


def evaluate(root: str) -> dict[str, Any]:
    """`dtg evaluate`, its time and its largest memory, children included."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "dtg_ray.cli", "evaluate", root]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            with_children = [watched, *watched.children(recursive=True)] if watched.is_running() else []
            peak = max(peak, sum(rss(one) for one in with_children))
            time.sleep(0.05)
    assert process.returncode == 0
    (row,) = Ledger(Study(root)).account(f"evaluate/{MODEL}").rows.to_dict("records")
    n_pairs = len(Results(Study(root)).subjects(MODEL))
    each = float(row["seconds"]) / n_pairs
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "pairs_of_maps": n_pairs,
        "pairs_per_second": round(1 / each, 1),
        "memory_gb": round(peak / 2**30, 2),
        "seconds_per_pair": each,
    }


def rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def by_hand(study: Study, our_seconds: float) -> dict[str, Any]:
    """The same figures of a few contrasts as one would write them down."""
    ours = Results(study).subjects(MODEL).query("split == 'test'")
    differences, start, n_pairs = [], time.perf_counter(), 0
    for contrast in study.config.contrasts[:BY_HAND]:
        mine = ours[ours["contrast"] == contrast]
        subjects = mine["subject"].tolist()
        actual, predicted = (
            maps.sel(contrast=contrast, subject=subjects).to_numpy()[:, study.grey_matter].astype(np.float64)
            for maps in (study.measured(), study.synthetic(MODEL))
        )
        n, n_voxels = actual.shape
        matrix = np.corrcoef(actual, predicted)[:n, n:]
        shares = [overlap(actual, predicted, int(top / 100 * n_voxels)) for top in range(5, 55, 5)]
        dice, auc = overlap(actual, predicted, int(0.25 * n_voxels)), np.trapezoid(shares, dx=0.05, axis=0)
        columns = {"r": np.diagonal(matrix), "dice": dice, "dice_auc": auc}
        differences += [float(np.abs(values - mine[name]).max()) for name, values in columns.items()]
        n_pairs += n
    each = (time.perf_counter() - start) / n_pairs
    return {"ratio": round(each / our_seconds, 2), "largest_difference": max(differences)}


def overlap(actual: NDArray[np.float64], predicted: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Dice of the voxels above the k-th largest of each map."""
    found = []
    for a, b in zip(np.abs(actual), np.abs(predicted), strict=True):
        first, second = a > np.sort(a)[-k], b > np.sort(b)[-k]
        found.append(2 * (first & second).sum() / (first.sum() + second.sum()))
    return np.array(found)


if __name__ == "__main__":
    main()
