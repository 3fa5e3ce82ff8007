"""The Gram matrix of a feature set, added up while its columns are read; on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtg_ray.stages.prediction.clock import Clock
from dtg_ray.stages.prediction.features import Features, Piece
from dtg_ray.stats.gram import GramSum
from dtg_ray.stats.ridge import FEATURES_PER_SAMPLE


class DeviceSum:
    """As `GramSum`, on a device of torch: products in the precision of the features (no TF32), double precision sums.

    Parameters
    ----------
    n : int
    device : str
    """

    def __init__(self, n: int, device: str) -> None:
        import torch

        self.torch, self.device, self.n_features = torch, device, 0
        self.sum = torch.zeros((n, n), dtype=torch.float64, device=device)

    def add(self, X: NDArray[np.floating]) -> None:
        """Add the products of (n, w) features less their mean."""
        columns = self.torch.from_numpy(X).to(self.device)
        columns = columns - columns.mean(dim=0, dtype=self.torch.float64).to(columns.dtype)
        before = self.torch.get_float32_matmul_precision()
        self.torch.set_float32_matmul_precision("highest")
        try:
            self.sum += columns @ columns.T
        finally:
            self.torch.set_float32_matmul_precision(before)
        self.n_features += X.shape[1]

    def collected(self) -> GramSum:
        """What was added up, in the memory of the host."""
        return GramSum(len(self.sum)).take(self.sum.cpu().numpy(), self.n_features)


def precision(alpha: object) -> type[np.floating]:
    """What products to compute: single precision for the published penalty, double for any other, which may be small.

    What float32 rounds is some 1e-7 of the products: beside features/samples nothing, beside a small penalty all.
    """
    return np.float32 if alpha == FEATURES_PER_SAMPLE else np.float64


def gram_sum(
    features: Features,
    pieces: Sequence[Piece],
    clock: Clock | None = None,
    device: str = "",
    dtype: type[np.floating] = np.float32,
) -> GramSum:
    """Products of some pieces of a feature set, less their mean.

    Parameters
    ----------
    features : Features
        Of n subjects.
    pieces : sequence of Piece
    clock : Clock, optional
        Gets `read` and `gram`.
    device : str
        Of torch; by default a GPU where there is one, otherwise the processor, without torch.
    dtype : float32 or float64
        Of the products, see `precision`.
    """
    clock, device, n = clock or Clock(), device or gpu(), len(features.rows)
    on_device = DeviceSum(n, device) if device else None
    total: Any = on_device or GramSum(n)
    with clock("read"):
        for _, _, X in features.blocks(pieces):
            with clock("gram"):
                total.add(X.astype(dtype, copy=False))
    return on_device.collected() if on_device else total


def gpu() -> str:
    """The name of a GPU, where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else ""
