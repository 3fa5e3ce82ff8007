"""Write a simulated cohort as real NIfTI files in BIDS-derivatives naming, with its truth (`dtg simulate`).

    dataset_description.json   first: what is being made, with all options
    participants.tsv  phenotypes.tsv
    tpl-MNI152NLin6Asym_res-4_atlas-simulated_probseg.nii.gz   population network maps, 4-D float32
    sub-0001/func/sub-0001_task-rest_space-MNI152NLin6Asym_res-4_desc-preproc_bold.nii.gz (.json)
    sub-0001/func/sub-0001_task-MOTOR_space-MNI152NLin6Asym_res-4_contrast-LH_stat-z_statmap.nii.gz
    retest/                    with `retest`: the task maps of a second visit, a dataset of its own
    truth.json                 last: a folder that has it is complete

Every file is written aside and renamed: a file that exists is whole, and an interrupted run can be continued.
"""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dtg_ray.cohort import generative
from dtg_ray.cohort.generative import Parameters, Population, Subject
from dtg_ray.errors import UsageError
from dtg_ray.imaging.grid import Grid

Progress = Callable[[int, int], None]

SPACE = "MNI152NLin6Asym"
DESCRIPTION = "dataset_description.json"
SECOND = "retest"
"""Folder of the second visit."""
STEP = 10.0
"""Stored integers times this are the BOLD signal: a third of the noise, so files are small and lose little."""
BLOCK = 16
"""Volumes made and written at a time; bounds the memory of a long run."""

CONTRASTS = {
    "MOTOR": "LH RH LF RF T CUE AVG CUEvAVG LFvAVG LHvAVG RFvAVG RHvAVG TvAVG",
    "EMOTION": "FACES SHAPES FACESvSHAPES",
    "LANGUAGE": "STORY MATH MATHvSTORY",
    "WM": "2BKv0BK 2BK 0BK 2BKBODY 2BKFACE 2BKPLACE 2BKTOOL 0BKBODY 0BKFACE 0BKPLACE 0BKTOOL BODY FACE PLACE "
    "TOOL BODYvAVG FACEvAVG PLACEvAVG TOOLvAVG",
    "SOCIAL": "TOM RANDOM TOMvRANDOM",
    "GAMBLING": "REWARD PUNISH PUNISHvREWARD",
    "RELATIONAL": "REL MATCH MATCHvREL",
}
"""The 47 contrasts of the Human Connectome Project by task, letters and digits only as BIDS wants; v is minus."""


@dataclass(frozen=True)
class Options:
    """What fixes every byte of a cohort.

    Parameters
    ----------
    subjects : int
    resolution : int
        Edge of a voxel, mm.
    volumes : int
        Length of the rest run.
    rois, contrasts : int
    seed : int
    missing : float
        Fraction of the subjects that lack some contrasts.
    tr : float
        Repetition time, s.
    model : int
        Version of the generative model.
    retest : float
        Fraction of the subjects who do the tasks again, on a second visit: the same true maps, other noise.
    """

    subjects: int
    resolution: int
    volumes: int
    rois: int
    contrasts: int
    seed: int
    missing: float
    tr: float
    model: int = generative.VERSION
    retest: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        bounds = {
            "subjects": (1, 10**6),
            "resolution": (1, 16),
            "volumes": (2, 10**5),
            "rois": (2, 500),
            "contrasts": (1, len(contrast_names())),
            "seed": (0, 2**63),
            "missing": (0, 1),
            "tr": (0.05, 20),
            "retest": (0, 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"got {name}={value}, expected a number from {low} to {high}")
            if name not in {"missing", "tr", "retest"} and value != int(value):
                raise UsageError(f"got {name}={value}, expected a whole number")

    def record(self) -> dict[str, Any]:
        """As the files hold them: cohorts without a second visit are those of versions that knew of none."""
        record = asdict(self)
        return record if self.retest else {name: value for name, value in record.items() if name != "retest"}


def contrast_names(count: int | None = None) -> list[tuple[str, str]]:
    """List task and name of the first contrasts, going round the tasks: MOTOR LH, EMOTION FACES, ..."""
    table = {task: names.split() for task, names in CONTRASTS.items()}
    longest = max(len(names) for names in table.values())
    rounds = [(task, names[i]) for i in range(longest) for task, names in table.items() if i < len(names)]
    return rounds[:count]


def simulate(  # noqa: PLR0913 - the options of the verb, all by keyword
    out: str | Path,
    *,
    subjects: int = 160,
    resolution: int = 4,
    volumes: int = 120,
    rois: int = 16,
    contrasts: int = 7,
    seed: int = 0,
    missing: float = 0.1,
    tr: float = 2.0,
    retest: float = 0.0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a cohort with known truth; the same options give the same bytes, whatever the number of workers.

    Parameters
    ----------
    out : str or Path
        Local folder: empty or absent, or one that an earlier call with the same options has begun.
    subjects, resolution, volumes, rois, contrasts, seed, missing, tr, retest
        See `Options`.
    workers : int, optional
        Threads; one per processor by default.
    progress : callable, optional
        Called with (subjects done, subjects) after each subject.

    Returns
    -------
    dict
        `out` (str), `complete_before` (bool), `subjects`, `files` (images and sidecars), `written` (of these,
        now).

    Raises
    ------
    UsageError
        When an option is out of range, or the folder holds something else.
    """
    options = Options(subjects, resolution, volumes, rois, contrasts, seed, missing, tr, retest=retest)
    cohort = Cohort(Path(out), options)
    summary = {"out": str(out), "subjects": subjects, "files": cohort.n_files}
    if _claim(cohort):
        return {**summary, "complete_before": True, "written": 0}
    if cohort.twice:
        _write_json(cohort.folder / SECOND / DESCRIPTION, _description(options.record(), ", second visit"))
    with threadpool_limits(1):
        written = _write_atlas(cohort)
        indices = range(subjects)
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for done, count in enumerate(pool.map(lambda index: _write_subject(cohort, index), indices), start=1):
                written += count
                if progress:
                    progress(done, subjects)
    _write_tables(cohort)
    return {**summary, "complete_before": False, "written": written}


@dataclass(frozen=True)
class Cohort:
    """The folder, the options, and everything that follows from them without reading a file."""

    folder: Path
    options: Options

    @cached_property
    def parameters(self) -> Parameters:
        """Strengths of the generative model."""
        return Parameters()

    @cached_property
    def grid(self) -> Grid:
        """The grid of every image."""
        return Grid.mni152(self.options.resolution)

    @cached_property
    def grey(self) -> NDArray[np.bool_]:
        """Grey-matter voxels, (V,) bool."""
        return self.grid.grey_matter()

    @cached_property
    def population(self) -> Population:
        """Networks and contrasts."""
        names = contrast_names(self.options.contrasts)
        return generative.draw_population(
            self.options.seed, self.grid.coordinates[self.grey], self.options.rois, names, self.parameters
        )

    @cached_property
    def families(self) -> list[int]:
        """Family of each subject: about a quarter of the families are pairs of siblings."""
        rng = generative.generator(self.options.seed, generative.FAMILY)
        families: list[int] = []
        while len(families) < self.options.subjects:
            number = families[-1] + 1 if families else 1
            families += [number] * (2 if rng.random() < 0.25 else 1)
        return families[: self.options.subjects]

    @cached_property
    def absent(self) -> list[list[int]]:
        """Contrasts that each subject lacks; `missing` is the fraction of subjects that lack any."""
        rng = generative.generator(self.options.seed, generative.SUBJECT)
        count = round(self.options.missing * self.options.subjects)
        chosen = set(rng.permutation(self.options.subjects)[:count].tolist())
        most = max(1, self.options.contrasts // 2)
        lists = [
            sorted(rng.permutation(self.options.contrasts)[: rng.integers(1, most + 1)].tolist())
            for _ in range(self.options.subjects)
        ]
        return [lists[index] if index in chosen else [] for index in range(self.options.subjects)]

    @cached_property
    def twice(self) -> frozenset[int]:
        """Who comes for a second visit, in a random stream of its own."""
        rng = generative.generator(self.options.seed, generative.RETEST)
        count = round(self.options.retest * self.options.subjects)
        return frozenset(rng.permutation(self.options.subjects)[:count].tolist())

    @property
    def n_files(self) -> int:
        """Images and sidecars: the atlas, per subject a run with its sidecar, and the contrasts of each visit."""
        maps = [self.options.contrasts - len(absent) for absent in self.absent]
        return 1 + 2 * len(maps) + sum(maps) + sum(maps[index] for index in self.twice)

    def subject(self, index: int) -> Subject:
        """Draw the truth of a subject."""
        return generative.draw_subject(self.options.seed, index, self.families[index], self.population, self.parameters)

    def path(self, index: int, task: str, ending: str, folder: str = "") -> Path:
        """Path of a subject's file, in a folder of the cohort."""
        label = subject_label(index)
        name = f"{label}_task-{task}_space-{SPACE}_res-{self.options.resolution}_{ending}"
        return self.folder / folder / label / "func" / name


def subject_label(index: int) -> str:
    """BIDS name of a subject: 0 -> sub-0001."""
    return f"sub-{index + 1:04d}"


def _claim(cohort: Cohort) -> bool:
    """Whether the folder is complete; describes it when it is new.

    Raises
    ------
    UsageError
        When the folder holds anything but this cohort.
    """
    folder, wanted = cohort.folder, asdict(cohort.options)
    record = cohort.options.record()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"got {folder}, which is a file, expected a folder")
    description = folder / DESCRIPTION
    if not description.exists():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UsageError(
                f"got {folder}, which holds other files, expected an empty folder or a simulated cohort",
                hint="choose another folder",
            )
        _write_json(description, _description(record))
        return False
    found = {"retest": 0.0, **_options_of(description)}
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        difference = ", ".join(f"{key} {found.get(key)} there, {wanted[key]} asked for" for key in changed)
        raise UsageError(
            f"got {folder}, which holds a cohort simulated with other options: {difference}",
            hint="choose another folder, delete this one, or ask for the same options",
        )
    return (folder / "truth.json").exists()


def _description(options: dict[str, Any], visit: str = "") -> dict[str, Any]:
    """BIDS dataset_description."""
    return {
        "Name": f"Simulated cohort with known truth{visit}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "dtg_ray", "Description": "dtg simulate", "Parameters": options}],
    }


def _options_of(description: Path) -> dict[str, Any]:
    """Options that a folder was simulated with; empty when it was made by something else."""
    try:
        return dict(json.loads(description.read_text())["GeneratedBy"][0]["Parameters"])
    except (ValueError, KeyError, IndexError, TypeError):
        return {}


def _write_atlas(cohort: Cohort) -> int:
    """Write the population network maps, each with maximum 1; returns the number of files written."""
    name = f"tpl-{SPACE}_res-{cohort.options.resolution}_atlas-simulated_probseg.nii.gz"
    maps = generative.network_maps(cohort.grid.coordinates, cohort.population, cohort.parameters)  # (K, V)
    volumes = [maps / maps.max(axis=1, keepdims=True)]
    return _write_once(cohort.folder / name, lambda: _nifti(cohort.grid, volumes, len(maps)))


def _write_subject(cohort: Cohort, index: int) -> int:
    """All images of a subject that are not there yet; returns the number of files written."""
    options, present = cohort.options, set(range(cohort.options.contrasts)) - set(cohort.absent[index])
    bold = cohort.path(index, "rest", "desc-preproc_bold.nii.gz")
    sidecar = bold.with_name(bold.name.replace(".nii.gz", ".json"))
    tasks = {contrast: _task_path(cohort, index, contrast) for contrast in sorted(present)}
    again = {contrast: _task_path(cohort, index, contrast, SECOND) for contrast in tasks if index in cohort.twice}
    if all(path.exists() for path in (bold, sidecar, *tasks.values(), *again.values())):
        return 0
    subject = cohort.subject(index)
    maps = generative.network_maps(cohort.grid.coordinates, cohort.population, cohort.parameters, subject)
    written = _write_once(
        bold, lambda: _nifti(cohort.grid, _rest(cohort, index, subject, maps), options.volumes, options.tr)
    )
    text = _json({"TaskName": "rest", "RepetitionTime": options.tr, "SkullStripped": True})
    written += _write_once(sidecar, lambda: text)
    for contrast, path in tasks.items():
        key = generative.SUBJECT, index, generative.TASK, contrast
        written += _write_once(path, functools.partial(_task, cohort, contrast, maps, *key))
    for contrast, path in again.items():
        written += _write_once(
            path, functools.partial(_task, cohort, contrast, maps, generative.RETEST, index, contrast)
        )
    return written


def _task_path(cohort: Cohort, index: int, contrast: int, folder: str = "") -> Path:
    definition = cohort.population.contrasts[contrast]
    return cohort.path(index, definition.task, f"contrast-{definition.name}_stat-z_statmap.nii.gz", folder)


def _task(cohort: Cohort, contrast: int, maps: NDArray[np.float32], *key: int) -> bytes:
    """Make a measured task map: the true one and white noise, from the random stream of a key."""
    rng = generative.generator(cohort.options.seed, *key)
    truth = generative.task_map(maps, cohort.population.contrasts[contrast], cohort.parameters)
    noise = cohort.parameters.task_noise * cohort.parameters.task_scale
    measured = truth + np.float32(noise) * rng.standard_normal(truth.size, dtype=np.float32)
    return _nifti(cohort.grid, [measured[None]], 1)


def _rest(cohort: Cohort, index: int, subject: Subject, maps: NDArray[np.float32]) -> Iterator[NDArray[np.int16]]:
    """Blocks of volumes of a rest run, (t, V) int16 in units of STEP."""
    options, strength = cohort.options, cohort.parameters
    rng = generative.generator(options.seed, generative.SUBJECT, index, generative.REST)
    networks, common = generative.rest_timecourses(
        rng, subject.coupling * cohort.population.loadings, options.volumes, options.tr, strength
    )
    mean = generative.baseline(cohort.grid.coordinates, cohort.grey, subject) / np.float32(STEP)
    change = mean * np.float32(strength.percent)  # (V,)
    typical = generative.network_maps(cohort.grid.coordinates, cohort.population, strength)
    everywhere = np.float32(strength.global_noise) * typical.sum(axis=0)
    for start in range(0, options.volumes, BLOCK):
        rows = slice(start, start + BLOCK)
        signal = networks[rows] @ maps + common[rows] * everywhere  # (t, V)
        signal += np.float32(strength.voxel_noise) * rng.standard_normal(signal.shape, dtype=np.float32)
        yield np.rint(mean + change * signal).astype(np.int16)


def _nifti(grid: Grid, blocks: Any, count: int, tr: float | None = None) -> bytes:
    """Pack blocks of (n, V) masked vectors, `count` in all, as .nii.gz; 3-D when there is one and no `tr`."""
    buffer = io.BytesIO()
    # NIfTI is in Fortran order: one volume after the other, x fastest
    x, y, z = np.unravel_index(grid.flat_index, grid.shape)
    positions = np.ravel_multi_index((z, y, x), grid.shape[::-1])
    box = None
    with igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=buffer, mtime=0) as stream:
        for block in blocks:
            if box is None:
                stream.write(_header(grid, count, block.dtype, tr))
                box = np.zeros(grid.mask.size, dtype=block.dtype)
            for vector in block:
                box[positions] = vector
                stream.write(box.tobytes())
    return buffer.getvalue()


def _header(grid: Grid, count: int, dtype: np.dtype[Any], tr: float | None) -> bytes:
    """NIfTI-1 header with the four bytes that say that nothing follows it but the data."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape if count == 1 and tr is None else (*grid.shape, count))
    header.set_qform(grid.affine, code=4)
    header.set_sform(grid.affine, code=4)
    header.set_xyzt_units("mm", "sec")
    if tr is not None:
        header["pixdim"][4] = tr
        header.set_slope_inter(STEP, 0)
    else:
        header.set_slope_inter(1, 0)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + b"\0" * 4


def _write_once(path: Path, content: Callable[[], bytes]) -> int:
    """Write a file that is not there yet: aside first, then renamed; returns 1 when written."""
    if path.exists():
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content())
    aside.replace(path)
    return 1


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write_once(path, lambda: _json(value))


def _write_tables(cohort: Cohort) -> None:
    """participants.tsv, phenotypes.tsv and, last of all, truth.json."""
    truths = [cohort.subject(index) for index in range(cohort.options.subjects)]
    people = ["participant_id\tage\tsex\tsite\tfamily"]
    scores = ["participant_id\t" + "\t".join(truths[0].scores)]
    for index, truth in enumerate(truths):
        label = subject_label(index)
        people.append(f"{label}\t{truth.age}\t{truth.sex}\tsite-{truth.site}\tfam-{truth.family:04d}")
        scores.append("\t".join([label, *(f"{value:.6f}" for value in truth.scores.values())]))
    _write_once(cohort.folder / "participants.tsv", ("\n".join(people) + "\n").encode)
    _write_once(cohort.folder / "phenotypes.tsv", ("\n".join(scores) + "\n").encode)
    _write_json(cohort.folder / "truth.json", _truth(cohort, truths))


def _truth(cohort: Cohort, truths: list[Subject]) -> dict[str, Any]:
    """Everything that the files are made from, as plain numbers."""
    population, parameters = cohort.population, cohort.parameters
    recipe = {
        "network_score": "sqrt(network_share) * score_weights @ gain_traits + noise",
        "age_sex_score": "sqrt(age_sex_share / 2) * (standardized age + 1 for M or - 1 for F) + noise",
        "noise_score": "noise",
    }
    shares = {
        "network_score": parameters.network_share,
        "age_sex_score": parameters.age_sex_share,
        "noise_score": 0,
    }
    return {
        "options": cohort.options.record(),
        "parameters": asdict(parameters),
        "contrasts": [asdict(contrast) for contrast in population.contrasts],
        "networks": {
            key: getattr(population, key).tolist()
            for key in ("centres", "widths", "weights", "loadings", "score_weights")
        },
        "phenotypes": {
            name: {"recipe": recipe[name], "noise_ceiling": float(np.sqrt(shares[name]))} for name in recipe
        },
        "subjects": {
            subject_label(index): {
                **truth.record(),
                "missing": ["_".join(contrast_names()[contrast]) for contrast in cohort.absent[index]],
            }
            for index, truth in enumerate(truths)
        },
    }
