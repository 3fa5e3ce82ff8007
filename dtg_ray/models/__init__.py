"""Networks and baselines that turn connectomes into contrast maps."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dtg_ray.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "attention_unet": {"attention": True, "upsampling": "transposed"},
    "unet": {"attention": False, "upsampling": "transposed"},
    "attention_unet_minimal": {"attention": True, "upsampling": "trilinear"},
    "unet_minimal": {"attention": False, "upsampling": "trilinear"},
    "resunet": {"attention": False, "upsampling": "transposed_cropped"},
    "vnet": {},
}
"""Name to what is fixed in it, as arguments of the network's class."""
REQUIRED = ("architecture", "n_rois", "n_contrasts")
DEFAULTS: dict[str, Any] = {
    "depth": 1,
    "width": 64,
    "convs_per_block": 1,
    "activation": "relu",
    "norm": "batch",
}
CHOICES: dict[str, tuple[str, ...]] = {
    "architecture": tuple(ARCHITECTURES),
    "activation": ("relu", "leaky_relu", "elu"),
    "norm": ("batch", "instance", "none"),
}


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check the config of a network and fill in what it leaves out.

    Parameters
    ----------
    config : mapping
        `architecture` ("attention_unet", "unet", "attention_unet_minimal", "unet_minimal", "resunet" or "vnet"),
        `n_rois`, `n_contrasts`; optional `depth` (1), `width` (64), `convs_per_block` (1), `activation`
        ("relu", "leaky_relu", "elu") and `norm` ("batch", "instance", "none"): see `dtg_ray.models.unet`,
        `dtg_ray.models.resunet` and `dtg_ray.models.vnet`. All of them halve the box `depth + 1` times, to
        `width * 2**(depth + 1)` channels.

    Returns
    -------
    dict
        Every key, in a fixed order.

    Raises
    ------
    ModelError
        For unknown or missing keys and values that cannot be; the message names the choices.
    """
    keys = (*REQUIRED, *DEFAULTS)
    unknown = [key for key in config if key not in keys]
    missing = [key for key in REQUIRED if key not in config]
    if unknown or missing:
        raise ModelError(
            f"got a network config with unknown keys {unknown} and without the keys {missing}, "
            f"expected {', '.join(keys)}"
        )
    complete = {key: config[key] if key in config else DEFAULTS[key] for key in keys}
    for key, value in complete.items():
        _check_value(key, value)
    return complete


def build(config: Mapping[str, Any]) -> nn.Module:
    """Make a network with random weights (drawn from torch's global generator).

    Parameters
    ----------
    config : mapping
        See `complete_config`.

    Returns
    -------
    torch.nn.Module
        In training mode; (N, n_rois, X, Y, Z) -> (N, n_contrasts, X, Y, Z).

    Raises
    ------
    ModelError
        For unknown or missing keys and values that cannot be; the message names the choices.
    """
    complete = complete_config(config)
    from dtg_ray.models.resunet import ResidualUnit
    from dtg_ray.models.unet import ConvBlock, UNet
    from dtg_ray.models.vnet import VNet

    architecture = complete["architecture"]
    sizes = {key: complete[key] for key in ("n_rois", "n_contrasts", "depth", "width")}
    inner = {"convs": complete["convs_per_block"], "activation": complete["activation"], "norm": complete["norm"]}
    if architecture == "vnet":
        return VNet(**sizes, **inner)
    block = functools.partial(ResidualUnit if architecture == "resunet" else ConvBlock, **inner)
    return UNet(**sizes, block=block, **ARCHITECTURES[architecture])


def output_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """The convolution that makes the contrast maps, with its name among the modules of the network."""
    name = str(network.output_layer)
    return name, network.get_submodule(name)


def activation_values(config: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, int]:
    """Numbers that the layers of a network put out for one subject: in all, which training keeps, and the largest.

    Parameters
    ----------
    config : mapping
        See `complete_config`.
    shape : (X, Y, Z)
        Of the box.

    Raises
    ------
    ModelError
        As `build`.
    ValueError
        When the box is too small for the network.
    """
    import torch

    sizes: list[int] = []
    with torch.device("meta"):  # shapes without memory or work
        network = build(config).eval()
        for module in network.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.numel()))
        network(torch.zeros((1, int(config["n_rois"]), *shape)))
    return sum(sizes), max(sizes)


def forward_operations(config: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """Floating-point operations of a network for one connectome.

    Parameters
    ----------
    config : mapping
        See `complete_config`.
    shape : (X, Y, Z)
        Of the box.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # shapes without memory or work
        build(config).eval()(torch.zeros((1, int(config["n_rois"]), *shape)))
    return int(counter.get_total_flops())


def _check_value(key: str, value: object) -> None:
    if key in CHOICES:
        if value not in CHOICES[key]:
            raise ModelError(f"got {key} {value!r}, expected one of {', '.join(CHOICES[key])}")
        return
    smallest = 0 if key == "depth" else 1
    # bool is an int to Python, but nobody means a network of depth True
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ModelError(f"got {key} {value!r}, expected a whole number of at least {smallest}")
