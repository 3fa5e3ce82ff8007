"""Who trains: one process, or several that train one network together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

Item = TypeVar("Item")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The place of this process among all that train the same network; by default it is alone.

    Parameters
    ----------
    rank, size : int
    device : torch.device
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network on this process' device, its gradients averaged over all processes."""
        network = network.to(self.device)
        if self.size == 1:
            return network
        if self.device.type == "cuda":  # statistics over the batch of all GPUs; CPUs have no such layer
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return nn.parallel.DistributedDataParallel(network)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What this process does of something that all have."""
        return items[self.rank :: self.size]

    def everyone(self, value: Any) -> list[Any]:
        """What every process has, in the order of their ranks."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def mean(self, value: float) -> float:
        """Mean over all processes, the same in each."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return float(total) / self.size

    def whole_batch(self, part: Tensor) -> Tensor:
        """Parts (N, ...) of a batch dealt out by `share`, put together again; only the own one has a gradient."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        torch.distributed.all_gather(parts, part.detach().contiguous())
        parts[self.rank] = part
        return torch.stack(parts, dim=1).flatten(0, 1)

    def align(self, network: nn.Module) -> None:
        """Give all processes the buffers of the first: batch norm's running figures are each one's own after a step."""
        if self.size > 1:
            for buffer in bare(network).buffers():
                torch.distributed.broadcast(buffer, src=0)


def bare(network: nn.Module) -> nn.Module:
    """The network inside its DDP wrapper, if it has one."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
