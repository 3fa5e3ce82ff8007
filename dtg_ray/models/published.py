"""Checkpoints of the published DeepTaskGen code, read without Lightning and without running pickled code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtg_ray.errors import ModelError
from dtg_ray.models import build
from dtg_ray.models.unet import load_weights

ARCHITECTURES = {
    "attentionunet": "attention_unet",
    "unet": "unet",
    "attentionunetminimal": "attention_unet_minimal",
    "unetminimal": "unet_minimal",
    "resunet": "resunet",
    "vnet": "vnet",
}
"""Published name to the name in `dtg_ray.models.build`."""
VNET_CONVS = 3
"""Convolutions per block of the published V-Net, whatever its `n_conv_layers`; fewer in its upper levels."""


def published_config(
    *, architecture: str, max_depth: int, n_conv_layers: int, fdim: int, n_channels: int, n_out_channels: int
) -> dict[str, Any]:
    """Translate the published names of a network's settings into a config for `dtg_ray.models.build`.

    Parameters
    ----------
    architecture : "attentionunet", "unet", "attentionunetminimal", "unetminimal", "resunet" or "vnet"
    max_depth : int
        `depth`; for "vnet" the number of levels with the first and the lowest, so `depth + 2`.
    n_conv_layers : int
        `convs_per_block`; without effect in the published "vnet".
    fdim : int
        `width`.
    n_channels : int
        `n_rois`.
    n_out_channels : int
        `n_contrasts`.

    Raises
    ------
    ModelError
        For an unknown architecture, or a "vnet" of less than two levels.
    """
    if architecture not in ARCHITECTURES:
        raise ModelError(f"got the published architecture {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    is_vnet = architecture == "vnet"
    if is_vnet and max_depth < 2:
        raise ModelError(f"got max_depth {max_depth}, expected at least 2 levels in a published vnet")
    return {
        "architecture": ARCHITECTURES[architecture],
        "n_rois": n_channels,
        "n_contrasts": n_out_channels,
        "depth": max_depth - 2 if is_vnet else max_depth,
        "width": fdim,
        "convs_per_block": VNET_CONVS if is_vnet else n_conv_layers,
    }


def load_published(
    path: str | Path,
    *,
    architecture: str,
    max_depth: int,
    n_conv_layers: int,
    fdim: int,
    n_channels: int,
    n_out_channels: int,
) -> nn.Module:
    """Load a network from a Lightning checkpoint of the published code.

    The published code, as it is in its repository, can neither construct its "resunet" nor run its "vnet" (the
    decoder starts with twice the channels the encoder ends with). Their names and shapes are taken to be those with
    which they work: see `dtg_ray.models.resunet` and `dtg_ray.models.vnet`.

    Parameters
    ----------
    path : str or Path
        A `.ckpt` file.
    architecture, max_depth, n_conv_layers, fdim, n_channels, n_out_channels
        The published names of the settings it was trained with: see `published_config`.

    Returns
    -------
    torch.nn.Module
        On the CPU, in eval mode; (N, n_channels, X, Y, Z) -> (N, n_out_channels, X, Y, Z).

    Raises
    ------
    ModelError
        When the file is missing, damaged, holds pickled code, has no `state_dict`, or does not fit.
    """
    network = build(
        published_config(
            architecture=architecture,
            max_depth=max_depth,
            n_conv_layers=n_conv_layers,
            fdim=fdim,
            n_channels=n_channels,
            n_out_channels=n_out_channels,
        )
    )
    load_weights(network, _read_state(Path(path)), source=str(path))
    return network.eval()


def _read_state(path: Path) -> Mapping[str, Any]:
    """Read the `state_dict` of a checkpoint; only tensors and plain containers are unpickled."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: got no such file, expected a checkpoint") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: got a file with pickled code, or no checkpoint, expected tensors and plain values",
            hint="where the checkpoint was made: torch.save({'state_dict': checkpoint['state_dict']}, path)",
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: got a file that cannot be read ({error}), expected a checkpoint") from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ModelError(f"{path}: got {found}, expected a Lightning checkpoint with a 'state_dict'")
    return state
