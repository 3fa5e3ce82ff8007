"""Inner products in tiles against one piece: time and memory; and the rates that docs/scale.md reckons with.

One target is predicted from made-up maps in Zarr by the code of `dtg predict`, in a process of its own each, on all
processors: once with the Gram matrix in one piece, once in tiles. Then what a task of each kind does in a second is
measured on one processor; what it reads comes from the page cache.

    python benchmarks/tiles.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
from ridge_permutation import FEATURE, N_PERMUTATIONS, alone, make_study, peak_gb

from dtg_ray.stages.prediction import people, sweep
from dtg_ray.stages.prediction.cells import Engines, predict_target
from dtg_ray.stages.prediction.clock import Clock
from dtg_ray.stages.prediction.features import Features
from dtg_ray.stages.prediction.gram import gram_sum
from dtg_ray.stages.prediction.scratch import Scratch, Tiled, tile_name
from dtg_ray.stages.prediction.tiled import CENTRE, Reading, gram_tile, tiled_gram
from dtg_ray.store.files import Storage
from dtg_ray.study import Study

ALPHA = 5.0
"""For products in double precision, so that both ways can be compared to the last digits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,500 people in tiles of 512")
    options = parser.parse_args()
    n, p, tile, side = (1500, 5000, 512, 1024) if options.quick else (12_000, 6_000, 1024, 4096)
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
            "memory_ratio": round(one_piece["memory_factored_gb"] / in_tiles["memory_factored_gb"], 2),
            "gram_matrix_gb": round(8 * n * n / 2**30, 2),
            "largest_difference_in_sd": float(np.abs(first - second).max() / first.std()),
            "rates": alone(rates, folder, side),
        }
    print(json.dumps(figures))


def predicted(folder: str, tile: int | None) -> dict[str, Any]:
    """Predict; what was predicted, seconds by what they were spent on, and the largest use of memory of the process."""
    study, clock, begin = Study(str(Path(folder, "study"))), Clock(), time.perf_counter()
    config = study.config.prediction.model_copy(update={"permutations": N_PERMUTATIONS})
    subjects = list(study.cohort["subject"])
    features, target = Features(study, FEATURE, subjects), people.target_of(study, "score", subjects)
    assert isinstance(target, people.Target)
    with clock("gram"):
        if tile is None:
            X: Any = gram_sum(features, features.pieces(), dtype=np.float64).gram()
        else:
            scratch = Scratch(Storage(folder), "scratch")
            X = tiled_gram(features, FEATURE, tile, np.float64, scratch, in_threads)
    engines, everybody = Engines(X, subjects, ALPHA), study.positions(subjects)
    with clock("factor"):
        engines.engine(target, config.folds, config.seed)
    factored = peak_gb()
    tables = predict_target(engines, target, people.exchangeability(study), everybody, config, clock)
    seconds = {name: round(clock.seconds[name], 1) for name in ("gram", "factor", "solve")}
    line = {"seconds": round(time.perf_counter() - begin, 1), **seconds}
    line |= {"memory_factored_gb": factored, "memory_gb": peak_gb()}
    print(json.dumps({"tile": tile, **line}), flush=True)
    return {**line, "predicted": tables["predictions"]["predicted"].to_numpy()}


def in_threads(tasks: Sequence[Any]) -> tuple[Any, ...]:
    """As `--scheduler threads` does it."""
    with sweep.single_thread():
        return dask.compute(*tasks, scheduler="threads", num_workers=len(os.sched_getaffinity(0)))


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
