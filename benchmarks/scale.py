"""20,000 people on a small grid through the same code: driver memory, overhead per block, status, resuming.

The images are links to a few hundred different ones, so that what is measured is not the disk but everything around
the work. `--quick` takes 1,000 people.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

from dtg_ray import Study, ledger
from dtg_ray.cohort.simulate import simulate

STAGE = "synthesize/linear"
BLOCK = 10
DIFFERENT = 200
WITH_MAPS = 60
SETTINGS = {
    "grid": {"resolution": 16},
    "cohort": {"block_size": BLOCK, "validation": 0, "test": 0.5},
    "models": {"linear": {"kind": "linear"}},
    "prediction": {"features": ["measured"], "folds": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--subjects", type=int)
    parser.add_argument("--keep", help="do it in this folder and leave it there")
    options = parser.parse_args()
    subjects = options.subjects or (1_000 if options.quick else 20_000)
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(Path(options.keep or temporary), subjects)
    print(json.dumps({"name": "scale", "subjects": subjects, **figures}))


def measure(folder: Path, subjects: int) -> dict[str, Any]:
    """All figures, in the order of a study's life."""
    table, rois = write_cohort(folder, subjects)
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS))
    study = folder / "study"
    blocks = -(-subjects // BLOCK)
    init = dtg("init", study, "--table", table, "--rois", rois, "--config", settings)
    whole = dtg("run", study)
    status = dtg("status", study)
    again = dtg("run", study)
    last = [study / "receipts" / stage / f"block-{blocks - 1:05d}.parquet" for stage in ("connectomes", STAGE)]
    for receipt in last:
        receipt.unlink()
    resume = dtg("synthesize", study, until=last[0])
    return {
        "blocks": blocks,
        "init_s": init["seconds"],
        "run_s": whole["seconds"],
        "driver_gb": whole["driver_gb"],
        "overhead_per_block_s": overhead(study, blocks),
        "status_s": status["seconds"],
        "nothing_to_do_s": again["seconds"],
        "resume_start_s": resume["until"],
        "resume_s": resume["seconds"],
    }


def overhead(uri: Path, blocks: int) -> float:
    """Seconds of a worker per block that are spent on anything but subjects, by the receipts of synthesis.

    The first tenth, while workers start, is left out.
    """
    study = Study(str(uri))
    rows = [ledger.account(study, stage).rows for stage in (STAGE, "connectomes")]
    ends = rows[0].groupby("unit")["finished"].max().sort_values()
    later = ends.iloc[len(ends) // 10 :]
    wall = (later.iloc[-1] - later.iloc[0]).total_seconds() / (len(later) - 1)
    work = sum(table["seconds"].sum() for table in rows) / blocks
    return round(wall * len(os.sched_getaffinity(0)) - work, 4)


def write_cohort(folder: Path, subjects: int) -> tuple[Path, Path]:
    """A table of people whose runs are links to a few hundred different ones; the first have task maps."""
    source = folder / "source"
    simulate(source, subjects=DIFFERENT, resolution=16, volumes=40, rois=5, contrasts=2, seed=0)
    runs = sorted(source.glob("sub-*/**/*_bold.nii.gz"))
    (folder / "rest").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(subjects):
        name, run = f"{1_000_000 + number}", runs[number % len(runs)]
        link = folder / "rest" / f"{name}.nii.gz"
        if not link.exists():
            os.link(run, link)
        row = {"subject": name, "rest": str(link)}
        if number < WITH_MAPS:
            for path in sorted(run.parent.glob("*_statmap.nii.gz")):
                row[f"contrast:{path.name.split('contrast-')[1].split('_')[0]}"] = str(path)
        rows.append(row)
    table = folder / "table.parquet"
    pd.DataFrame(rows).to_parquet(table)
    return table, next(source.glob("tpl-*_probseg.nii.gz"))


def dtg(*arguments: object, until: Path | None = None) -> dict[str, Any]:
    """Run `dtg`; its wall time, the most memory of its own process, and when a file was there."""
    begin, most, there = time.perf_counter(), 0, None
    command = [sys.executable, "-m", "dtg_ray.cli", *map(str, arguments)]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                most = max(most, watched.memory_info().rss)
            except psutil.Error:
                break
            if there is None and until is not None and until.exists():
                there = round(time.perf_counter() - begin, 2)
            time.sleep(0.05)
        if process.wait():
            output.seek(0)
            raise SystemExit(output.read().decode()[-2000:])
    seconds = time.perf_counter() - begin
    print(f"dtg {arguments[0]}: {seconds:.1f} s, {most / 2**30:.2f} GB", file=sys.stderr, flush=True)
    return {"seconds": round(seconds, 2), "driver_gb": round(most / 2**30, 3), "until": there}


if __name__ == "__main__":
    main()
