"""The attributions of a few subjects, added up in float64: one part of a target, done by one worker.

Who is in a part, and the order in which parts are added, follow from the subjects alone: so no bit of a mean depends on
the number of workers.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import MissingFileError, ModelError, PredictionError, StudyError
from dtg_ray.models.artifact import NetworkModel
from dtg_ray.models.attribution import Scalar, batch_within, difference, integrated_gradients, readout, smooth_grad
from dtg_ray.models.inference import reproducible, reuse_memory
from dtg_ray.stages.connectomes import ConnectomeWorker, Windows
from dtg_ray.stages.interpretation.targets import Target
from dtg_ray.stages.maps import SubjectReader, recorded_windows
from dtg_ray.stages.models import load_with_hash
from dtg_ray.stages.runtime import peak_memory
from dtg_ray.store.files import Storage
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.study import Study

Float = NDArray[np.float64]
INTEGRATED, SMOOTH = "integrated_gradients", "smooth_grad"
METHODS = (INTEGRATED, SMOOTH)


@dataclass(frozen=True)
class Method:
    """How attributions are computed.

    Parameters
    ----------
    name : "integrated_gradients" or "smooth_grad"
    steps : int
        Of integrated gradients, from a connectome of zeros.
    samples : int
        Noisy copies of SmoothGrad.
    noise : float
        Its standard deviation, as a share of the range of a connectome.
    seed : int
        Of the noise.
    """

    name: str = INTEGRATED
    steps: int = 32
    samples: int = 32
    noise: float = 0.15
    seed: int = 0

    @property
    def passes(self) -> int:
        """Gradients per connectome."""
        return self.steps if self.name == INTEGRATED else self.samples

    def identity(self) -> dict[str, Any]:
        """The settings that matter to it."""
        of_other = {"samples", "noise", "seed"} if self.name == INTEGRATED else {"steps"}
        return {key: value for key, value in asdict(self).items() if key not in of_other}


@dataclass(frozen=True)
class Part:
    """What one worker does at once.

    Parameters
    ----------
    target : Target
    number : int
        Of the part.
    subjects : tuple of str
    fingerprint : str
        Of all it depends on.
    """

    target: Target
    number: int
    subjects: tuple[str, ...]
    fingerprint: str

    @property
    def unit(self) -> str:
        """Name of its receipt."""
        return f"{self.target.unit}+{self.number:05d}"


@dataclass(frozen=True)
class Job:
    """What all workers of a model and method have to know; small, and plain enough to travel.

    Parameters
    ----------
    stage : str
        Of the receipts.
    model : str
    weights : str
        Hash of its weights, which may not change on the way.
    method : Method
    parts : mapping of unit to Part
    windows : mapping of subject to int
        How many windows of whom are stored; the connectomes of others are computed from their rest runs.
    owed : mapping of unit to str
        Fingerprints of the targets.
    """

    stage: str
    model: str
    weights: str
    method: Method
    parts: Mapping[str, Part]
    windows: Mapping[str, int]
    owed: Mapping[str, str]


def folder_of(stage: str, target: Target) -> str:
    """Where the parts of a target are, while it is under way."""
    return f"interpretation/parts/{stage.removeprefix('interpret/')}/{target.unit}"


def write_array(storage: Storage, name: str, values: NDArray[Any]) -> None:
    """Write an array as a small file of its own (.npy)."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    storage.write(name, buffer.getvalue())


def read_array(storage: Storage, name: str) -> NDArray[Any]:
    """Read what `write_array` wrote; MissingFileError when it is not there."""
    array: NDArray[Any] = np.load(io.BytesIO(storage.read(name)), allow_pickle=False)
    return array


class PartWorker:
    """Does one part after the other; each is committed by its receipt.

    Parameters
    ----------
    uri : str
        The study's.
    job : Job
    """

    def __init__(self, uri: str, job: Job) -> None:
        import torch

        self.study, self.job = Study(uri), job
        self.receipts = Receipts(self.study.storage, job.stage)
        self.reader, self.maker = SubjectReader(self.study), ConnectomeWorker(uri)
        config = self.study.config.synthesis
        self.device = "cuda" if config.gpus_per_actor else "cpu"
        torch.set_num_threads(config.cpus_per_actor)
        reuse_memory()
        model, weights = load_with_hash(self.study, job.model)
        if weights != job.weights or not isinstance(model, NetworkModel):
            raise ModelError(f"models/{job.model}: got other weights than a moment ago", hint="run the command again")
        self.model = model
        self.rows = self.study.cohort["row"].astype(int).to_dict()

    def __call__(self, unit: str) -> dict[str, Any]:
        """Do one part, unless somebody else has done it, or its whole target."""
        part = self.job.parts[unit]
        if not self._is_settled(part):
            try:
                self._commit(part)
            except MissingFileError:
                if not self._is_settled(part):
                    raise  # else another driver has finished the target, and removed what its parts need
        return {"unit": unit, "subjects": len(part.subjects), "failed": 0}

    def _is_settled(self, part: Part) -> bool:
        """Whether the receipt of a part, or that of its target, holds."""
        wanted = {part.unit: part.fingerprint, part.target.unit: self.job.owed[part.target.unit]}
        return any(self.receipts.holding(unit, {unit: today}) for unit, today in wanted.items())

    def _commit(self, part: Part) -> None:
        begin, attempt = time.perf_counter(), self.receipts.withdraw(part.unit)
        figures = self._do(part)
        seconds = time.perf_counter() - begin
        row = Row(part.unit, "done", part.fingerprint, seconds=seconds, peak_memory=peak_memory(), qc=figures)
        self.receipts.write(part.unit, [row], attempt=attempt, host=socket.gethostname())

    def _do(self, part: Part) -> dict[str, float]:
        """Write the sums over subjects, (2, K, V): of attributions, and of their absolute values."""
        storage, folder = self.study.storage, folder_of(self.job.stage, part.target)
        direction = read_array(storage, f"{folder}/direction.npy")
        scalar_of = readout(self.model.select(part.target.contrasts), direction, self.device)
        sums, figures = np.zeros((2, self.study.n_rois, self.study.grid.n_voxels)), np.zeros(2)
        for subject in part.subjects:
            one, added_up, wanted = self._attribution(scalar_of, subject)
            if not np.isfinite(one).all():
                raise PredictionError(f"got attributions of {part.target.name} that are not finite", subject=subject)
            sums[0] += one
            sums[1] += np.abs(one)
            figures += [abs(added_up - wanted), abs(wanted)]
        write_array(storage, f"{folder}/{part.number:05d}.npy", sums)
        return {"error": float(figures[0]), "difference": float(figures[1])}

    def _attribution(self, scalar_of: Scalar, subject: str) -> tuple[Float, float, float]:
        """The mean over the windows of a subject, (K, V); its sum, and what integrated gradients should add up to."""
        windows = self._windows(subject)
        total, wanted = np.zeros(windows.shape[1:]), 0.0
        with reproducible():
            for number, window in enumerate(windows):
                one, expected = self._of_window(scalar_of, window, (self.job.method.seed, self.rows[subject], number))
                total += one
                wanted += expected
        total /= len(windows)
        return total, float(total.sum()), wanted / len(windows)

    def _of_window(self, scalar_of: Scalar, window: Windows, seed: Sequence[int]) -> tuple[Float, float]:
        import torch

        method = self.job.method
        connectome = torch.from_numpy(window.astype(np.float32)).to(self.device)
        batch = batch_within(self.model.config, self.study.grid.shape)
        if method.name == SMOOTH:
            found = smooth_grad(scalar_of, connectome, method.noise, method.samples, seed, batch=batch)
            return found.cpu().numpy(), 0.0
        baseline = torch.zeros_like(connectome)
        found = integrated_gradients(scalar_of, connectome, baseline, method.steps, batch=batch)
        return found.cpu().numpy(), difference(scalar_of, connectome, baseline)

    def _windows(self, subject: str) -> Windows:
        """The connectomes of a subject, (W, K, V) float16, from the study or, where it has none, from rest runs."""
        if subject in self.job.windows:
            return self.reader.stored_windows(subject, self.job.windows[subject])
        row, values, _ = self.maker.compute(subject, self.study.cohort["rest"][subject])
        if row.status != "done":
            raise StudyError(f"{row.message}", hint="it has been read before; once it can be again, the run goes on")
        return recorded_windows(values)
