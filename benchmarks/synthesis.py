"""Maps of people from their connectomes: ours against the same network in plain float32, one after the other.

    python benchmarks/synthesis.py [--quick]

An attention U-Net of depth 1 and width 64 at 2 mm, 50 ROIs, 47 contrasts. Its weights are random, its batch norm has
the statistics of connectomes, which are smooth random fields. Compared in turns, from float16 connectomes in memory to
maps in memory:

    plain   the network as it was trained: float32, contiguous; box, forward pass, masked voxels
    ours    `NetworkModel.prepare_for_inference` in bfloat16, maps in float16

Both have as many threads, and `reuse_memory`, which a plain program has not: the ratio is a cautious one. On a GPU it
also prints TFLOP/s, the share of the device's peak, and where the time goes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dtg_ray.imaging.grid import Grid
from dtg_ray.models import build
from dtg_ray.models.artifact import NetworkModel
from dtg_ray.models.inference import reuse_memory

PEAK_TFLOPS = {"H200": 989.4, "H100": 989.4, "A100": 312.0}
"""Of dense bfloat16 matrix products, by the makers' data sheets (SXM)."""
STEPS = ("copy in", "scatter", "network", "gather and cast", "copy out")
BLOB = 6
"""Voxels between the values of which a connectome's smooth fields are interpolated."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a 4 mm grid, 12 ROIs and 7 contrasts")
    parser.add_argument("--rounds", type=int, default=5, help="of each way that are timed (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU (default: 1, as an actor has)")
    parser.add_argument("--compile", action="store_true", help="try torch.compile")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    reuse_memory()
    torch.set_num_threads(options.threads)
    grid, rois, contrasts = (Grid.mni152(4), 12, 7) if options.quick else (Grid.mni152(2), 50, 47)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = {"architecture": "attention_unet", "n_rois": rois, "n_contrasts": contrasts}
    network = calibrated(config, grid, device)
    model = NetworkModel(network, config, tuple(f"contrast {row}" for row in range(contrasts)), grid)
    model.prepare_for_inference(device, options.dtype, compile=options.compile)
    people = np.stack([connectome(grid, rois, seed) for seed in range(16 if device == "cuda" else 1)])
    ways = {"plain": plain_way(network.to(device), grid, device), "ours": lambda rest: model.predict(rest, "float16")}
    seconds, worst = race(ways, people, options.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    flops = flops_of_a_subject(config, grid)
    figures = {
        "name": "synthesis",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": options.threads,
        "box": list(grid.shape),
        "dtype": options.dtype,
        "plain_subjects_per_hour": round(3600 / medians["plain"]),
        "subjects_per_hour": round(3600 / medians["ours"]),
        "ratio": round(medians["plain"] / medians["ours"], 2),
        "smallest_r": round(worst, 6),
        "tflop_per_subject": round(flops / 1e12, 4),
        "tflops": round(flops / medians["ours"] / 1e12, 3),
        "share_of_peak": share_of_peak(flops / medians["ours"] / 1e12, device),
        "shares_of_time": shares_of_time(ways["ours"], people, device),
        "gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print("\n".join(f"{key}: {value}" for key, value in figures.items()))
    print(json.dumps(figures))


def race(
    ways: dict[str, Callable[[NDArray[np.float16]], NDArray]], people: NDArray[np.float16], rounds: int
) -> tuple[dict[str, list[float]], float]:
    """Seconds per subject of all ways in turns, without the first round, and the smallest r between their maps."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    worst = 1.0
    for number in range(rounds + 1):
        maps = {}
        for name, way in ways.items():
            begin = time.perf_counter()
            maps[name] = way(people)
            if number:
                seconds[name].append((time.perf_counter() - begin) / len(people))
        if not number:
            worst = smallest_r(maps["plain"], maps["ours"])
    return seconds, worst


def plain_way(network: nn.Module, grid: Grid, device: str) -> Callable[[NDArray[np.float16]], NDArray]:
    """What one would write down first."""
    voxels = torch.from_numpy(grid.flat_index).to(device)

    def predict(people: NDArray[np.float16]) -> NDArray:
        maps = []
        for rest in people:
            with torch.no_grad():
                box = torch.zeros(len(rest), grid.mask.size, device=device)
                box[:, voxels] = torch.from_numpy(rest.astype(np.float32)).to(device)
                volumes = network(box.view(1, len(rest), *grid.shape))[0]
                maps.append(volumes.flatten(1)[:, voxels].cpu().numpy())
        return np.stack(maps)

    return predict


def calibrated(config: dict, grid: Grid, device: str) -> nn.Module:
    """A network with random weights whose batch norms know what they get."""
    torch.manual_seed(0)
    network = build(config).to(device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None  # the plain mean over everybody
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        for seed in (100, 101):
            box = grid.volume(connectome(grid, config["n_rois"], seed).astype(np.float32))
            network(torch.from_numpy(box[None]).to(device))
    return network.eval()


def connectome(grid: Grid, rois: int, seed: int) -> NDArray[np.float16]:
    """Correlations (K, V) float16 that vary smoothly in space."""
    coarse = [size // BLOB + 2 for size in grid.shape]
    noise = torch.randn((1, rois, *coarse), generator=torch.Generator().manual_seed(seed))
    fields = nn.functional.interpolate(noise, size=grid.shape, mode="trilinear")[0]
    return grid.vectorize(torch.tanh(0.5 * fields).numpy().astype(np.float16))


def smallest_r(first: NDArray, second: NDArray) -> float:
    """Over all maps (N, C, V) the smallest correlation between two versions."""
    pairs = zip(first.reshape(-1, first.shape[-1]), second.reshape(-1, first.shape[-1]), strict=True)
    return min(float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1]) for a, b in pairs)


def shares_of_time(way: Callable, people: NDArray[np.float16], device: str) -> dict[str, float]:
    """Which share of the time of the device each step takes."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        way(people)
    events = {event.key: event for event in profiler.key_averages() if event.device_type == DeviceType.CPU}
    times = {step: events[step].device_time_total if on_gpu else events[step].cpu_time_total for step in STEPS}
    return {step: round(spent / sum(times.values()), 3) for step, spent in times.items()}


def flops_of_a_subject(config: dict, grid: Grid) -> float:
    """Floating-point operations of the plain forward pass, counted on shapes alone."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build(config)(torch.zeros(1, config["n_rois"], *grid.shape))
    return float(counter.get_total_flops())


def share_of_peak(tflops: float, device: str) -> float | None:
    """Share of what the device can do, where that is known."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peaks = [peak for card, peak in PEAK_TFLOPS.items() if card in name]
    return round(tflops / peaks[0], 3) if peaks else None


if __name__ == "__main__":
    main()
