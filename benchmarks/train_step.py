"""A training step on the full grid: ours against the same network in plain float32 and contiguous layout.

The study is a real one: simulated people at 2 mm, 50 ROIs, 47 contrasts. Both ways start from the same weights and
see the same two people in every step. On a GPU it also prints TFLOP/s and the share of the device's peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dtg_ray import Study
from dtg_ray.config import TrainConfig
from dtg_ray.models import build
from dtg_ray.stages.training.data import MAPS
from dtg_ray.stages.training.loop import Training
from dtg_ray.stages.training.networks import assign
from dtg_ray.stages.training.recipe import loss_of
from dtg_ray.stages.training.world import World

PEAK_TFLOPS = {"H200": 989.4, "H100": 989.4, "A100": 312.0}
"""Of dense bfloat16 matrix products, by the makers' data sheets (SXM)."""
PAIR = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a 4 mm grid, 12 ROIs and 7 contrasts")
    parser.add_argument("--steps", type=int, default=3, help="of each way that are timed (default: 3)")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder), *((4, 12, 7) if options.quick else (2, 50, 47)))
        assignment = assign(study, "unet", "train/unet")
        training = Training(replace(assignment, validation=[]), World(device=device), lambda _message: None)
        members = assignment.training[:PAIR]
        chunks = next(training.feed([[(who, number) for number in (MAPS, 0) for who in members]]))
        plain = plain_way(training, chunks)
        losses, seconds = {"ours": [], "plain": []}, {"ours": [], "plain": []}
        for number in range(options.steps + 1):  # the first step of each is not timed
            for name, step in (("ours", lambda: training.step(members, chunks)), ("plain", plain)):
                begin = time.perf_counter()
                losses[name].append(step())
                if number:
                    seconds[name].append(time.perf_counter() - begin)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        apart = max(abs(a - b) / b for a, b in zip(losses["ours"], losses["plain"], strict=True))
        flops = flops_of_a_step(study, training)
    figures = {
        "name": "train_step",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "box": list(study.grid.shape),
        "plain_seconds": round(medians["plain"], 3),
        "seconds": round(medians["ours"], 3),
        "ratio": round(medians["plain"] / medians["ours"], 2),
        "largest_difference_of_loss": round(apart, 5),
        "tflop_per_step": round(flops / 1e12, 3),
        "tflops": round(flops / medians["ours"] / 1e12, 2),
        **share_of_peak(flops / medians["ours"] / 1e12, device),
    }
    print("\n".join(f"{key}: {value}" for key, value in figures.items()))
    print(json.dumps(figures))


def make_study(folder: Path, resolution: int, rois: int, contrasts: int) -> Study:
    """Four people, with connectomes and maps."""
    data, root, config = folder / "data", folder / "study", folder / "config.yaml"
    sizes = {"subjects": 4, "resolution": resolution, "rois": rois, "contrasts": contrasts, "volumes": 40, "missing": 0}
    dtg("simulate", str(data), *(word for key, value in sizes.items() for word in (f"--{key}", str(value))))
    train = {"batch_size": PAIR, "precision": "bfloat16"}
    settings = {
        "grid": {"resolution": resolution},
        "cohort": {"validation": 0, "test": 0},
        "models": {"unet": {"kind": "network", "train": train}},
    }
    config.write_text(yaml.safe_dump(settings))
    (atlas,) = data.glob("tpl-*_probseg.nii.gz")
    dtg("init", str(root), "--bids", str(data), "--rois", str(atlas), "--config", str(config))
    dtg("connectomes", str(root), "--inline")
    dtg("contrasts", str(root), "--inline")
    return Study(str(root))


def dtg(*arguments: str) -> None:
    """A verb, in a process of its own."""
    subprocess.run([sys.executable, "-m", "dtg_ray.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def plain_way(training: Training, chunks: Sequence[Tensor]) -> Callable[[], float]:
    """A step as one would write it down: float32, contiguous, the loss over grey matter."""
    config: TrainConfig = training.config
    torch.manual_seed(config.seed)
    network = build(training.assignment.network).to(training.world.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    maps, windows = chunks[:PAIR], chunks[PAIR:]

    def step() -> float:
        optimizer.zero_grad()
        boxes, target = training.boxes.inputs(windows).contiguous(), training.boxes.targets(maps)
        loss = loss_of(training.boxes.grey(network(boxes)), target, config, 0)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def flops_of_a_step(study: Study, training: Training) -> float:
    """Floating-point operations of forward and backward pass, counted on shapes alone."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build(training.assignment.network)
        network(torch.zeros(PAIR, study.n_rois, *study.grid.shape)).sum().backward()
    return float(counter.get_total_flops())


def share_of_peak(tflops: float, device: torch.device) -> dict[str, float | None]:
    """Share of what the device can do, where that is known."""
    if device.type != "cuda":
        return {"share_of_peak": None}
    peaks = [peak for name, peak in PEAK_TFLOPS.items() if name in torch.cuda.get_device_name()]
    return {"share_of_peak": round(tflops / peaks[0], 3) if peaks else None}


if __name__ == "__main__":
    main()
