"""Inner products in tiles against one piece: time and memory; and the rates that docs/scale.md reckons with.

One feature set and one target of made-up maps in Zarr are predicted by `dtg predict`, in a process of its own each, on
the same processors: once with the Gram matrix in one piece, once in tiles. Then what a task of each kind does in a second
is measured on one processor; what is read comes from the page cache.

    python benchmarks/tiles.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ridge_permutation import FEATURE, alone, make_study, peak_gb

from dtg_ray.results import prediction_table
from dtg_ray.stages import predict
from dtg_ray.stages.prediction import sweep
from dtg_ray.stages.prediction.features import Features
from dtg_ray.stages.prediction.scratch import Scratch, Tiled, tile_name
from dtg_ray.stages.prediction.tiled import CENTRE, Reading, gram_tile
from dtg_ray.stages.runtime import Options
from dtg_ray.store.files import Storage
from dtg_ray.store.tables import read_table
from dtg_ray.study import Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,500 people in tiles of 512")
    options = parser.parse_args()
    n, p, tile, side = (1500, 5000, 512, 1024) if options.quick else (8000, 20_000, 2048, 4096)
    with tempfile.TemporaryDirectory() as folder:
        alone(make_study, Path(folder), n, p)
        one_piece = alone(predicted, folder, None)
        in_tiles = alone(predicted, folder, tile)
        first, second = one_piece.pop("predicted"), in_tiles.pop("predicted")
        figures = {
            "name": "tiles",
            "n": n,
            "p": p,
            "tile": tile,
            "one_piece": one_piece,
            "in_tiles": in_tiles,
            "ratio": round(one_piece["seconds"] / in_tiles["seconds"], 2),
            "memory_ratio": round(one_piece["memory_gb"] / in_tiles["memory_gb"], 2),
            "gram_matrix_gb": round(8 * n * n / 2**30, 2),
            "largest_difference_in_sd": float(np.abs(first - second).max() / first.std()),
            "rates": alone(rates, folder, side),
        }
    print(json.dumps(figures))


def predicted(folder: str, tile: int | None) -> dict[str, Any]:
    """Predict; what was predicted, seconds, and the largest use of memory of the process."""
    path = Path(folder, "study", "study.yaml")
    document = yaml.safe_load(path.read_text())
    document["prediction"] |= {"tiles": tile, "alpha": 5.0, "targets": ["score"], "subjects": "all", "repeats": 0}
    path.write_text(yaml.safe_dump(document))
    study = Study(str(path.parent))
    storage = study.storage
    for old in ("prediction", "receipts/predict", "receipts/scores"):
        storage.delete_folder(old)
    begin, before = time.perf_counter(), peak_gb()
    predict.run(study, Options(quiet=True))
    seconds = time.perf_counter() - begin
    table = read_table(storage, prediction_table(FEATURE, "predictions", "score"))
    line = {"seconds": round(seconds, 1), "memory_gb": peak_gb(), "memory_before_gb": before}
    print(json.dumps({"tile": tile, **line}), flush=True)
    return {**line, "predicted": table["predicted"].to_numpy()}


def rates(folder: str, side: int) -> dict[str, Any]:
    """What tasks on tiles of a side do in a second, files included, on one processor; and the memory they take."""
    scratch, rng = Scratch(Storage(folder), "rates"), np.random.default_rng(0)
    before, after = (Tiled(scratch.below(name), (0, side, 2 * side, 3 * side)) for name in ("before", "after"))
    for name in (tile_name(1, 0), "strip-0000", "strip-0001"):
        before.scratch.save(name, rng.standard_normal((side, side)))
    X = before.load(1, 0)
    before.save(0, 0, X @ X.T + side * np.eye(side))
    operations, memory = float(side) ** 3, 8 * float(side) ** 2
    with sweep.single_thread():
        seconds = {
            "update": timed(lambda: sweep.update(before, after, 1, 0, 2)),
            "pivot": timed(lambda: sweep.pivot(before, 0)),
            "strip": timed(lambda: sweep.strip(before, 1, 0)),
            "read": timed(lambda: before.load(1, 0).sum()),
            "read_and_write": timed(lambda: after.save(1, 0, before.load(1, 0))),
        }
    sweep_memory = peak_gb()
    return {
        "side": side,
        "update_gflops": round(2 * operations / seconds["update"] / 1e9, 1),
        "pivot_gflops": round(2 / 3 * operations / seconds["pivot"] / 1e9, 1),
        "strip_gflops": round(operations / seconds["strip"] / 1e9, 1),
        "read_gb_s": round(memory / seconds["read"] / 1e9, 2),
        "read_and_write_gb_s": round(2 * memory / seconds["read_and_write"] / 1e9, 2),
        "sweep_memory_gb": sweep_memory,
        **gram_rates(folder, scratch, side),
    }


def gram_rates(folder: str, scratch: Scratch, side: int) -> dict[str, float]:
    """How fast maps are read and multiplied, on one processor."""
    study = Study(str(Path(folder, "study")))
    people = list(study.cohort["subject"])
    side = min(side, len(people) // 2)
    first, second = people[:side], people[side : 2 * side]
    features = Features(study, FEATURE, first)
    matrix, p = Tiled(scratch.below("gram"), (0, side, 2 * side)), features.n_features
    matrix.scratch.save(CENTRE, np.zeros((1, p)))
    found = {}
    for dtype in ("float32", "float64"):
        reading = Reading(study.uri, FEATURE, side, dtype)
        seconds = timed(lambda reading=reading: gram_tile(reading, first, second, matrix, 1, 0))
        found[f"gram_{dtype}_gflops"] = round(2 * side**2 * p / seconds / 1e9, 1)
    with sweep.single_thread():
        seconds = timed(lambda: [X.sum() for _, X in Reading(study.uri, FEATURE, side, "float32").blocks(features)])
    return {**found, "read_maps_gb_s": round(2 * side * p / seconds / 1e9, 2), "gram_memory_gb": peak_gb()}


def timed(work: Callable[[], Any]) -> float:
    """The best of two."""
    found = []
    for _ in range(2):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found)


if __name__ == "__main__":
    main()
