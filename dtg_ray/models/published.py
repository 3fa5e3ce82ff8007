"""Checkpoints of the published DeepTaskGen code, read without Lightning and without running pickled code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtg_ray.errors import ModelError
from dtg_ray.models import build, complete_config
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


ACTIVATIONS = {"relu": "relu", "leakyrelu": "leaky_relu", "elu": "elu"}
"""Published name, without `_inplace`, to the name in `dtg_ray.models.build`."""


def published_config(
    *,
    architecture: str,
    max_depth: int,
    n_conv_layers: int,
    fdim: int,
    n_channels: int,
    n_out_channels: int,
    activation: str = "relu",
    batch_norm: bool = True,
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
    activation : "relu", "leakyrelu" or "elu"
        With `_inplace` at the end, or without.
    batch_norm : bool
        `norm` "batch" or "none".

    Raises
    ------
    ModelError
        For an unknown architecture or activation, or a "vnet" of less than two levels.
    """
    for name, value, known in (
        ("architecture", architecture, ARCHITECTURES),
        ("activation", activation.removesuffix("_inplace"), ACTIVATIONS),
    ):
        if value not in known:
            raise ModelError(f"got the published {name} {value!r}, expected one of {', '.join(known)}")
    is_vnet = architecture == "vnet"
    if is_vnet and max_depth < 2:
        raise ModelError(f"got max_depth {max_depth}, expected at least 2 levels in a published vnet")
    return complete_config(
        {
            "architecture": ARCHITECTURES[architecture],
            "n_rois": n_channels,
            "n_contrasts": n_out_channels,
            "depth": max_depth - 2 if is_vnet else max_depth,
            "width": fdim,
            "convs_per_block": VNET_CONVS if is_vnet else n_conv_layers,
            "activation": ACTIVATIONS[activation.removesuffix("_inplace")],
            "norm": "batch" if batch_norm else "none",
        }
    )


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
    config = published_config(
        architecture=architecture,
        max_depth=max_depth,
        n_conv_layers=n_conv_layers,
        fdim=fdim,
        n_channels=n_channels,
        n_out_channels=n_out_channels,
    )
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: got no such file, expected a checkpoint") from error
    except OSError as error:
        raise ModelError(f"{path}: got a file that cannot be read ({error}), expected a checkpoint") from error
    return read_network(data, config, str(path))


def read_network(data: bytes, config: Mapping[str, Any], source: str) -> nn.Module:
    """The network of a Lightning checkpoint, on the CPU, in eval mode.

    Parameters
    ----------
    data : bytes
        Of the file.
    config : mapping
        From `published_config`.
    source : str
        Where it is from, for the message.

    Raises
    ------
    ModelError
        As `load_published`.
    """
    network = build(config)
    load_weights(network, _read_state(data, source), source=source)
    return network.eval()


def _read_state(data: bytes, source: str) -> Mapping[str, Any]:
    """Read the `state_dict` of a checkpoint; only tensors and plain containers are unpickled."""
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{source}: got a file with pickled code, or no checkpoint, expected tensors and plain values",
            hint="where the checkpoint was made: torch.save({'state_dict': checkpoint['state_dict']}, path)",
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise ModelError(f"{source}: got a file that cannot be read ({error}), expected a checkpoint") from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ModelError(f"{source}: got {found}, expected a Lightning checkpoint with a 'state_dict'")
    return state
