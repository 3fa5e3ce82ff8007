"""Memory of one worker of synthesis over hundreds of people: it must not grow.

A study at 2 mm with 50 ROIs, 47 contrasts and an attention U-Net of depth 1 and width 64, which is not trained but
saved as the model of the study. The rest runs of its people are links to a few short ones. A worker in a process of
its own makes their maps, block after block, as an actor does; its resident memory is read after every subject.
`--quick` takes 60 people at 4 mm and a small network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import yaml

from dtg_ray import Study, ledger
from dtg_ray.cohort.simulate import simulate
from dtg_ray.models import build
from dtg_ray.models.artifact import NetworkModel
from dtg_ray.stages import synthesize
from dtg_ray.stages.mapping import SynthesisWorker
from dtg_ray.stages.models import network_config, save_model
from dtg_ray.stages.runtime import Options, peak_memory

MODEL = "unet"
BLOCK = 10
DIFFERENT = 5
VOLUMES = 40
EARLY = 50
"""Subjects after which nothing may come on top."""


@dataclass(frozen=True)
class Size:
    """How large the study is.

    Parameters
    ----------
    subjects, resolution, rois, contrasts, width : int
    """

    subjects: int
    resolution: int
    rois: int
    contrasts: int
    width: int


FULL = Size(subjects=500, resolution=2, rois=50, contrasts=47, width=64)
QUICK = Size(subjects=60, resolution=4, rois=12, contrasts=7, width=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--subjects", type=int)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Path(options.worker))
        return
    size = QUICK if options.quick else FULL
    size = Size(**{**vars(size), "subjects": options.subjects or size.subjects})
    with tempfile.TemporaryDirectory() as temporary:
        study = make_study(Path(temporary), size)
        planned = planned_memory(study)
        figures = {**measure(study, size), "planned_gb": round(planned / 2**30, 3)}
    figures["peak_over_planned"] = round(figures["peak_gb"] / figures["planned_gb"], 3)
    print(json.dumps({"name": "memory", **vars(size), **figures}))


def planned_memory(study: Study) -> int:
    """Bytes that Ray would be asked for."""
    owed = synthesize.owed_units(ledger.Ledger(study), MODEL, Options())
    (crew,) = synthesize.crews(study, {unit: [MODEL] for unit in owed}, [MODEL], Options())
    return crew.resources.memory


def measure(study: Study, size: Size) -> dict[str, Any]:
    """Resident memory of a worker after subjects, and its peak."""
    resident, peak = {}, 0
    for line in lines_of([sys.executable, __file__, "--worker", study.uri]):
        found = json.loads(line)
        resident[found["subjects"]], peak = found["resident"], found["peak"]
        if found["subjects"] % BLOCK == 0:
            print(f"{found['subjects']} subjects: {found['resident'] / 2**30:.3f} GB", file=sys.stderr, flush=True)
    if max(resident) != size.subjects:
        raise SystemExit(f"got {max(resident)} subjects, expected {size.subjects}")
    early, late = resident[min(EARLY, size.subjects)], resident[size.subjects]
    return {
        "early_gb": round(early / 2**30, 3),
        "late_gb": round(late / 2**30, 3),
        "ratio": round(late / early, 3),
        "peak_gb": round(peak / 2**30, 3),
    }


def lines_of(command: list[str]) -> Iterator[str]:
    """What a process says, line by line; an error when it does not end well."""
    # as Ray starts an actor with one CPU
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield from process.stdout or ()
    if process.returncode:
        raise SystemExit(f"the worker ended with {process.returncode}")


def work(root: Path) -> None:
    """Make the maps of everybody, a block after the other, and say how much memory that takes."""
    study = Study(str(root))
    units = [ledger.block_unit(number) for number in study.blocks()]
    worker, process, count = SynthesisWorker(study.uri, {unit: [MODEL] for unit in units}), psutil.Process(), 0
    predict = worker.predictor.predict

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        made = predict(*arguments, **options)
        count += 1
        told = {"subjects": count, "resident": process.memory_info().rss, "peak": peak_memory()}
        print(json.dumps(told), flush=True)
        return made

    worker.predictor.predict = counted  # type: ignore[method-assign]
    for unit in units:
        if worker(unit)["failed"]:
            raise SystemExit(f"{unit}: got failed subjects, expected none")
        # the maps are looked at by nobody, and 500 people's take the place of 10 GB
        shutil.rmtree(root / f"synthetic/{MODEL}.zarr/maps/c", ignore_errors=True)


def make_study(folder: Path, size: Size) -> Study:
    """Many people whose runs are links to a few, and a network that has learnt nothing."""
    table, rois = write_cohort(folder, size)
    settings = folder / "settings.yaml"
    settings.write_text(
        yaml.safe_dump(
            {
                "grid": {"resolution": size.resolution},
                "cohort": {"block_size": BLOCK},
                "models": {MODEL: {"kind": "network", "width": size.width}},
            }
        )
    )
    root = folder / "study"
    command = ["init", str(root), "--table", str(table), "--rois", str(rois), "--config", str(settings)]
    subprocess.run([sys.executable, "-m", "dtg_ray.cli", *command], check=True, stdout=subprocess.DEVNULL)
    study = Study(str(root))
    config = network_config(study, MODEL)
    assert config is not None
    torch.manual_seed(0)
    network = build(config)
    save_model(study, f"models/{MODEL}", NetworkModel(network, config, study.config.contrasts, study.grid), {})
    synthesize._prepare(study, [MODEL])  # noqa: SLF001 - the driver does it before there are workers
    return study


def write_cohort(folder: Path, size: Size) -> tuple[Path, Path]:
    """A table of people whose rest runs are links; one has task maps, so that there are contrasts."""
    source = folder / "source"
    sizes = {"resolution": size.resolution, "rois": size.rois, "contrasts": size.contrasts}
    simulate(source, subjects=DIFFERENT, volumes=VOLUMES, seed=0, missing=0, **sizes)
    runs = sorted(source.glob("sub-*/**/*_bold.nii.gz"))
    (folder / "rest").mkdir()
    rows = []
    for number in range(size.subjects):
        link = folder / "rest" / f"{1_000_000 + number}.nii.gz"
        os.link(runs[number % len(runs)], link)
        rows.append({"subject": link.name.split(".")[0], "rest": str(link)})
    for path in sorted(runs[0].parent.glob("*_statmap.nii.gz")):
        rows[0][f"contrast:{path.name.split('contrast-')[1].split('_')[0]}"] = str(path)
    table = folder / "table.parquet"
    pd.DataFrame(rows).to_parquet(table)
    return table, next(source.glob("tpl-*_probseg.nii.gz"))


if __name__ == "__main__":
    main()
