"""A network made fast: connectomes (N, K, V) in, contrast maps (N, C, V) out, no gradients."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.profiler import record_function

from dtg_ray.float16 import LARGEST
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import activation_values, fast_layers
from dtg_ray.models.baselines import Stored
from dtg_ray.models.compiling import trouble_of
from dtg_ray.models.unet import channels_last

log = logging.getLogger(__name__)
Precision = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGEST_BATCH = 16
"""A GPU is busy with less, and tensors of more than 2**31 values are refused in places."""
ACTIVATIONS = 8
"""Outputs of layers, of the size of the largest, in memory at once: five, and what a convolution works with."""
SHARE_OF_FREE = 0.5
"""Of a GPU's free memory that a batch is planned to take."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True)
class Settings:
    """How a network computes.

    Parameters
    ----------
    device : str
        A torch device.
    dtype : "float32" or "bfloat16"
    batch : int, optional
        Subjects at once. By default one on a CPU, on a GPU what its free memory allows, up to `LARGEST_BATCH`.
    compile : bool
        Try torch.compile; where it fails, there is a warning in the log and the network runs without.
    """

    device: str = "cpu"
    dtype: Precision = "float32"
    batch: int | None = None
    compile: bool = False


class Inference:
    """A network with the memory it works in, made once for many calls, by one thread at a time.

    Parameters
    ----------
    network : callable
        (N, K, X, Y, Z) -> (N, F, X, Y, Z), both channels-last.
    head : (weight (C, F), bias (C, 1)), optional
        The pointwise layer that makes maps of the F features; without it they are the maps. In float32: rounding of
        the maps themselves would cost most where they differ from their mean by little.
    grid : Grid
    input_mask : (V,) bool, optional
        Voxels outside are 0 to the network.
    sizes : (K, C)
        ROIs and contrasts.
    like : Tensor
        Of the network's device and type.
    batch : int
        Subjects at once.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        head: tuple[Tensor, Tensor] | None,
        grid: Grid,
        input_mask: NDArray[np.bool_] | None,
        *,
        sizes: tuple[int, int],
        like: Tensor,
        batch: int = 1,
    ) -> None:
        self.network, self.head, self.grid, self.batch = network, head, grid, batch
        self.n_rois, self.n_contrasts = sizes
        self.device, self.dtype = like.device, like.dtype
        self.voxels = torch.from_numpy(grid.flat_index).to(self.device)  # (V,)
        self.outside = None
        if input_mask is not None:
            self.outside = torch.from_numpy(np.flatnonzero(~input_mask)).to(self.device)
        self.boxes = like.new_zeros((0, grid.mask.size, self.n_rois))

    def __call__(self, connectome: NDArray[Any], dtype: Stored = "float32") -> NDArray[Any]:
        """Connectomes (N, K, V) of any floating type -> maps (N, C, V), in C order.

        Values beyond float16 become its largest or smallest. When a GPU's memory does not do for a batch, it and all
        after it are half as large.

        Raises
        ------
        torch.cuda.OutOfMemoryError
            When it does not do for one subject.
        """
        on_gpu, start = self.device.type == "cuda", 0
        shape = (len(connectome), self.n_contrasts, self.grid.n_voxels)
        maps = torch.empty(shape, dtype=DTYPES[dtype], pin_memory=on_gpu)  # pinned: copied while the GPU goes on
        with torch.inference_mode(), reproducible():
            while start < len(connectome):
                rows = slice(start, start + self.batch)
                if self._fits(connectome[rows], maps[rows]):
                    start = rows.stop
                else:
                    self._halve()
        if on_gpu:
            torch.cuda.synchronize(self.device)
        array: NDArray[Any] = maps.numpy()
        return array

    def _fits(self, connectome: NDArray[Any], maps: Tensor) -> bool:
        """Predict one batch; False where memory is too short for more than one subject."""
        try:
            boxes = self._fill(connectome)
            with record_function("network"):
                features = self.network(boxes)
            self._collect(features, maps)
        except torch.cuda.OutOfMemoryError:
            if self.batch == 1:
                raise
            return False
        return True

    def _halve(self) -> None:
        """Go on with smaller batches."""
        self.batch //= 2
        self.boxes = self.boxes[:0].clone()
        torch.cuda.empty_cache()
        log.warning("out of GPU memory: going on with %d subjects at once", self.batch)

    def _fill(self, connectome: NDArray[Any]) -> Tensor:
        """(N, K, V) -> (N, K, X, Y, Z), 0 outside the mask: which nothing ever overwrites."""
        if len(self.boxes) < len(connectome):
            self.boxes = self.boxes.new_zeros((len(connectome), *self.boxes.shape[1:]))
        boxes = self.boxes[: len(connectome)]
        for box, rest in zip(boxes, connectome, strict=True):
            with record_function("copy in"):
                # as it is stored: half the bytes; a read-only array is copied, torch has no such tensors
                stored = torch.from_numpy(np.require(rest, requirements=["C", "W"])).to(self.device, non_blocking=True)
            with record_function("scatter"):
                vectors = stored.to(self.dtype).T.contiguous()  # (V, K)
                if self.outside is not None:
                    vectors.index_fill_(0, self.outside, 0)
                box.index_copy_(0, self.voxels, vectors)
        return boxes.view(-1, *self.grid.shape, self.n_rois).permute(0, 4, 1, 2, 3)

    def _collect(self, features: Tensor, maps: Tensor) -> None:
        """(N, F, X, Y, Z) -> (N, C, V) on the CPU."""
        boxes = features.permute(0, 2, 3, 4, 1).flatten(1, 3)  # (N, X * Y * Z, F)
        for box, target in zip(boxes, maps, strict=True):
            with record_function("gather and cast"):
                vectors = box.index_select(0, self.voxels).T  # (F, V)
                if self.head is not None:
                    weight, bias = self.head
                    vectors = torch.addmm(bias, weight, vectors.float())  # (C, V)
                vectors = _stored(vectors, maps.dtype)
            with record_function("copy out"):
                target.copy_(vectors, non_blocking=True)


def plain_inference(
    network: nn.Module, grid: Grid, input_mask: NDArray[np.bool_] | None, sizes: tuple[int, int]
) -> Inference:
    """A network as it is, one subject at a time; parameters as of `Inference`."""
    return Inference(network, None, grid, input_mask, sizes=sizes, like=next(network.parameters()))


def fast_inference(
    network: nn.Module,
    config: Mapping[str, Any],
    grid: Grid,
    input_mask: NDArray[np.bool_] | None,
    outputs: list[int],
    settings: Settings,
) -> Inference:
    """A copy of a network made fast.

    Parameters
    ----------
    network : torch.nn.Module
        In eval mode.
    config : mapping
        That it was made with.
    grid : Grid
    input_mask : (V,) bool, optional
    outputs : list of int
        Which of its maps are wanted, in this order.
    settings : Settings
    """
    network, on_gpu = copy.deepcopy(network), torch.device(settings.device).type == "cuda"
    fast_layers.keep_outputs(network, outputs)
    fast_layers.fold_batch_norms(network)
    head = fast_layers.take_head(network)
    if not on_gpu:  # a GPU has kernels of its own for the first, and needs large pieces instead of the second
        fast_layers.split_upsampling(network)
        fast_layers.tile_convolutions(network, grid.mask)
    like = torch.zeros(1, dtype=DTYPES[settings.dtype], device=settings.device)
    network = channels_last(network.to(like))
    batch = settings.batch or (affordable_batch(config, grid, like) if on_gpu else 1)
    return Inference(
        _compiled(network, like.new_zeros((batch, config["n_rois"], *grid.shape))) if settings.compile else network,
        head and (head[0].to(like.device), head[1].to(like.device)),
        grid,
        input_mask,
        sizes=(config["n_rois"], len(outputs)),
        like=like,
        batch=batch,
    )


def affordable_batch(config: Mapping[str, Any], grid: Grid, like: Tensor) -> int:
    """Subjects at once on a GPU, a power of two: then small differences of free memory change no rounding."""
    largest = activation_values(config, grid.shape)[1]
    subject = (ACTIVATIONS * largest + config["n_rois"] * grid.mask.size) * like.element_size()
    free, _ = torch.cuda.mem_get_info(like.device)
    fitting = min(max(int(SHARE_OF_FREE * free) // subject, 1), LARGEST_BATCH)
    return 1 << (fitting.bit_length() - 1)


def reuse_memory() -> bool:
    """Have the C library keep the memory that is freed for what comes next, in this whole process from now on.

    A network's activations are so large that glibc otherwise takes each from the system, which fills it with zeros,
    and gives it back: 13 to 18% of the time on a CPU. The process stays as large as it once was.

    Returns
    -------
    bool
        Whether it worked: False without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def _compiled(network: nn.Module, boxes: Tensor) -> Callable[[Tensor], Tensor]:
    """A network after torch.compile, or where that fails the network."""
    made: list[Callable[[Tensor], Tensor]] = []

    def trial() -> None:
        made.append(torch.compile(network))
        with torch.inference_mode():
            made[0](boxes.to(memory_format=torch.channels_last_3d))

    if trouble := trouble_of(trial):
        log.warning("torch.compile failed (%s); predicting without it", trouble)
        return network
    return made[0]


def reproducible() -> contextlib.AbstractContextManager[None]:
    """No choice of algorithms by their speed of the day, none that add up in another order each time, no TF32."""
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False, fp32_precision="ieee"
    )
    return flags


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in the type they are stored in; beyond float16, its largest or smallest."""
    if dtype == torch.float16:
        # bfloat16 has no number between this limit and what is infinite in float16
        values = values.float().clamp(-LARGEST, LARGEST)
    return values.to(dtype).contiguous()
