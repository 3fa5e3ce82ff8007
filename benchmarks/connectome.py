"""The connectome stage against the usual way, and what it is limited by.

    python benchmarks/connectome.py [--quick]

One subject's rest run, 91 x 109 x 91 x 490 float32 .nii.gz at 2 mm in MNI space, and one of the same length in native
space, 88 x 88 x 64, with a FNIRT displacement field. Compared are, each in a process of its own with one BLAS thread:

    usual   nibabel `get_fdata`, nilearn `crop_img` and `resample_to_img` to the box, `apply_mask`, numpy correlation
            over the whole box
    ours    `subject_connectomes`, as a worker calls it; the median of three subjects after the first
    unpack  nothing but decompression, through the same reader

Then the stage itself over 64 subjects: a bare loop, one Ray actor, two Ray actors. `--quick` takes half the volumes and
leaves the stage out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROIS, VOLUMES, SUBJECTS = 50, 490, 64
QUICK_VOLUMES = 245
MNI = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
NATIVE = np.array([[-2.4, 0.1, 0, 105], [0, 2.4, 0.2, -115], [0, -0.2, 2.4, -68], [0, 0, 0, 1]])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--folder", type=Path, help="keep the files here and use them again")
    options.add_argument("--way", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if chosen.way:
        print(json.dumps(WAYS[chosen.way](chosen.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_files(folder, QUICK_VOLUMES if chosen.quick else VOLUMES)
        results = {way: measure(way, folder) for way in ("usual", "ours", "unpack", "native")}
        if not chosen.quick:
            study = make_study(folder, SUBJECTS)
            results |= {way: measure(way, study) for way in ("loop", "one actor", "two actors")}
    print(json.dumps(figures(results)))


def measure(way: str, folder: Path) -> dict[str, float]:
    """Run one way in a fresh process; seconds and peak memory."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{way:10s} {result}", flush=True)
    return result


def figures(results: dict[str, dict[str, float]]) -> dict[str, object]:
    seconds = {way: round(result["seconds"], 2) for way, result in results.items()}
    gigabytes = {way: round(result["gigabytes"], 2) for way, result in results.items() if "gigabytes" in result}
    answer: dict[str, object] = {
        "name": "connectome",
        "ratio": round(seconds["usual"] / seconds["ours"], 1),
        "memory_share": round(gigabytes["ours"] / gigabytes["usual"], 3),
        "decompression_share": round(seconds["unpack"] / seconds["ours"], 2),
        "native_with_warp": round(seconds["native"] / seconds["ours"], 2),
    }
    if "loop" in results:
        answer["two_actors_over_one"] = round(results["one actor"]["work"] / results["two actors"]["work"], 2)
        answer["ray_overhead"] = round(seconds["one actor"] / seconds["loop"] - 1, 3)
    return {**answer, "seconds": seconds, "gigabytes": gigabytes}


def usual(folder: Path) -> dict[str, float]:
    import nibabel as nib
    from nilearn.image import crop_img, resample_to_img
    from nilearn.masking import apply_mask

    from dtg_ray.imaging.grid import Grid

    grid, maps = Grid.mni152(2), np.load(folder / "rois.npy")
    mask = nib.Nifti1Image(grid.mask.astype(np.uint8), grid.affine)
    begin = time.perf_counter()
    image = nib.load(folder / "mni.nii.gz")
    image = nib.Nifti1Image(image.get_fdata(), image.affine)
    cropped = crop_img(image, copy_header=True)
    box = resample_to_img(cropped, mask, interpolation="nearest", force_resample=True, copy_header=True)
    bold = apply_mask(box, mask)  # (T, V)
    maps = maps - maps.mean(axis=1, keepdims=True)
    series = (bold - bold.mean(axis=0)) @ np.linalg.pinv(maps)  # (T, K)
    values = box.get_fdata().reshape(-1, len(series))  # (X*Y*Z, T)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = values - values.mean(axis=1, keepdims=True)
        series = series - series.mean(axis=0)
        correlations = (values @ series) / np.outer(np.linalg.norm(values, axis=1), np.linalg.norm(series, axis=0))
    seconds = time.perf_counter() - begin
    np.save(folder / "usual.npy", np.nan_to_num(correlations).T.reshape(len(maps), *grid.shape)[:, grid.mask])
    return {"seconds": seconds, "gigabytes": peak()}


def ours(folder: Path, name: str = "mni.nii.gz", warp: str = "") -> dict[str, float]:
    from dtg_ray.imaging.grid import Grid
    from dtg_ray.imaging.rest import Recipe, Workspace, subject_connectomes
    from dtg_ray.imaging.rois import Rois
    from dtg_ray.imaging.scan import Scan

    grid, maps = Grid.mni152(2), np.load(folder / "rois.npy")
    weights = Rois(maps, (), "maps").weights  # once per worker
    del maps
    workspace, out = Workspace(), np.empty((1, ROIS, grid.n_voxels), dtype=np.float16)
    scan = Scan(str(folder / name), warp=str(folder / warp) if warp else "")
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        subject_connectomes([scan], grid, weights, Recipe(), out, workspace)
        seconds.append(time.perf_counter() - begin)
    result = {"seconds": float(np.median(seconds[1:])), "first": seconds[0], "gigabytes": peak()}
    if not warp and (folder / "usual.npy").exists():
        result["largest_difference"] = float(np.abs(out[0] - np.load(folder / "usual.npy")).max())
    return result


def unpack(folder: Path) -> dict[str, float]:
    from dtg_ray.imaging.series import open_series

    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        with open_series(str(folder / "mni.nii.gz")) as series:
            for _ in series.volumes():
                pass
        seconds.append(time.perf_counter() - begin)
    return {"seconds": float(np.median(seconds)), "gigabytes": peak()}


def native(folder: Path) -> dict[str, float]:
    return ours(folder, "native.nii.gz", "warp.nii.gz")


def stage(folder: Path, actors: int) -> dict[str, float]:
    """The whole stage, start to end, and the part of it after Ray is up."""
    import shutil

    from dtg_ray import Study
    from dtg_ray.stages import cluster, connectomes, runtime

    study = Study(str(folder / "study"))
    for name in ("connectomes.zarr", "receipts"):
        shutil.rmtree(folder / "study" / name, ignore_errors=True)
    begin = time.perf_counter()
    options = runtime.Options(inline=actors == 0, quiet=True, cpus=actors or None)
    with cluster.session(options):
        started = time.perf_counter()
        rows = connectomes.run(study, options)
        work = time.perf_counter() - started
    if not (rows["status"] == "done").all():
        raise RuntimeError(rows["message"].to_list())
    return {"seconds": time.perf_counter() - begin, "work": work}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def make_files(folder: Path, volumes: int) -> None:
    """A run in MNI space, one in native space with its warp, and ROI maps; noise on a level, zero outside the brain."""
    import nibabel as nib
    from isal import igzip

    from dtg_ray.imaging.grid import Grid

    if (folder / "warp.nii.gz").exists():
        return
    rng, grid = np.random.default_rng(0), Grid.mni152(2)
    np.save(folder / "rois.npy", rng.standard_normal((ROIS, grid.n_voxels), dtype=np.float32))
    brain = {"mni": np.zeros((91, 109, 91), dtype=bool), "native": np.zeros((88, 88, 64), dtype=bool)}
    brain["mni"][7:83, 9:102, :78] = grid.mask
    places = np.rint(nib.affines.apply_affine(np.linalg.inv(NATIVE), grid.coordinates)).astype(int)
    places = places[((places >= 0) & (places < brain["native"].shape)).all(axis=1)]
    brain["native"][tuple(places.T)] = True
    for name, affine in (("mni", MNI), ("native", NATIVE)):
        mask = brain[name].ravel(order="F")
        header = nib.Nifti1Header()
        header.set_data_dtype(np.float32)
        header.set_data_shape((*brain[name].shape, volumes))
        header.set_sform(affine, code="mni" if name == "mni" else "scanner")
        header.set_xyzt_units("mm", "sec")
        header["pixdim"][1:5] = [*nib.affines.voxel_sizes(affine), 0.735]
        header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
        level, volume = rng.normal(10_000, 1000, mask.sum()), np.zeros(mask.size, dtype=np.float32)
        with igzip.open(folder / f"{name}.nii.gz", "wb", compresslevel=2) as file:
            file.write(header.binaryblock + bytes(4))
            for _ in range(volumes):
                volume[mask] = level + 100 * rng.standard_normal(mask.sum(), dtype=np.float32)
                file.write(volume.tobytes())
    write_warp(folder / "warp.nii.gz", brain["mni"].shape)


def write_warp(path: Path, box: tuple[int, ...]) -> None:
    """A displacement field from MNI to native space that bends by some mm, in FSL's coordinates."""
    import nibabel as nib

    voxels = np.indices(box).reshape(3, -1).T.astype(float)
    bent = nib.affines.apply_affine(MNI, voxels) + 3 * np.sin(voxels[:, [1, 2, 0]] / 9)
    places = nib.affines.apply_affine(np.linalg.inv(NATIVE), bent) * nib.affines.voxel_sizes(NATIVE)
    image = nib.Nifti1Image((places - voxels * 2).reshape(*box, 3).astype(np.float32), MNI)
    image.header["intent_code"] = 2006
    image.to_filename(path)


def make_study(folder: Path, subjects: int) -> Path:
    """A study of that many people with one and the same run, under names of their own."""
    import nibabel as nib
    import pandas as pd

    from dtg_ray.cohort.layouts import table
    from dtg_ray.imaging.grid import Grid
    from dtg_ray.stages import init

    place = folder / f"stage-{subjects}"
    if (place / "study" / "study.yaml").exists():
        return place
    place.mkdir(exist_ok=True)
    grid = Grid.mni152(2)
    maps = np.load(folder / "rois.npy")[:16]
    nib.Nifti1Image(np.moveaxis(grid.volume(maps), 0, -1), grid.affine).to_filename(place / "rois.nii.gz")
    nib.Nifti1Image(grid.volume(maps[0]), grid.affine).to_filename(place / "map.nii.gz")
    rows = []
    for number in range(subjects):
        (place / f"{number:03d}.nii.gz").hardlink_to(folder / "mni.nii.gz")
        rows.append({"subject": f"{number:03d}", "rest": f"{number:03d}.nii.gz", "contrast:ANY": "map.nii.gz"})
    pd.DataFrame(rows).to_csv(place / "paths.csv", index=False)
    settings = {"cohort": {"block_size": 4}}
    init.init(str(place / "study"), table.find(str(place / "paths.csv")), [str(place / "rois.nii.gz")], settings)
    return place


WAYS = {
    "usual": usual,
    "ours": ours,
    "unpack": unpack,
    "native": native,
    "loop": lambda folder: stage(folder, 0),
    "one actor": lambda folder: stage(folder, 1),
    "two actors": lambda folder: stage(folder, 2),
}

if __name__ == "__main__":
    main()
