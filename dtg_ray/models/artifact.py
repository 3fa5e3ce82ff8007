"""The common interface of all models, and how they become files: safetensors bytes and a JSON description."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dtg_ray.errors import ModelError
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import build, complete_config
from dtg_ray.models.baselines import GroupMean, Linear, Retest, check_connectome
from dtg_ray.models.unet import load_weights

FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Model(Protocol):
    """Turns connectomes into contrast maps."""

    @property
    def kind(self) -> str:
        """Name of the class of models in files: "network", "group_mean", "linear" or "retest"."""
        ...

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Names of the contrasts, in the order of the maps."""
        ...

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        ...

    @property
    def n_rois(self) -> int:
        """K of the connectomes."""
        ...

    def predict(self, connectome: NDArray[np.float32]) -> NDArray[np.float32]:
        """Connectomes (N, K, V) float32 -> maps (N, C, V) float32; ValueError when the shape does not fit."""
        ...


class NetworkModel:
    """A network with the box it works in.

    Parameters
    ----------
    network : torch.nn.Module
        As `dtg_ray.models.build(config)` makes it. It is copied to the CPU: what happens to it later, such as
        further training, does not reach the model.
    config : mapping
        See `dtg_ray.models.complete_config`.
    contrasts : tuple of str
        Names of the contrasts.
    grid : Grid
    input_mask : (V,) bool, optional
        Voxels outside are set to 0 before the network: the published code masks its input by grey matter.

    Raises
    ------
    ModelError
        When contrasts or mask do not fit.
    """

    kind = "network"

    def __init__(
        self,
        network: nn.Module,
        config: Mapping[str, Any],
        contrasts: tuple[str, ...],
        grid: Grid,
        input_mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self.network = copy.deepcopy(network).cpu().eval()
        self.config = complete_config(config)
        self.contrasts = contrasts
        self.grid = grid
        self.input_mask = input_mask
        if len(contrasts) != self.config["n_contrasts"]:
            raise ModelError(f"got {len(contrasts)} contrasts, expected {self.config['n_contrasts']}")
        if input_mask is not None and input_mask.shape != (grid.n_voxels,):
            raise ModelError(f"got an input mask of shape {input_mask.shape}, expected ({grid.n_voxels},)")
        self._inference = self.network

    @property
    def n_rois(self) -> int:
        """K of the connectomes it is given."""
        return int(self.config["n_rois"])

    def prepare_for_inference(self, device: str = "cpu", dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        """Make the predictions after this fast; what `dump` writes stays as it is.

        Batch normalization is folded into the convolutions. In float32 the maps change by rounding only, in
        bfloat16 they correlate with r > 0.999: which of them made a map belongs into its provenance.

        Parameters
        ----------
        device : str
            A torch device.
        dtype : "float32" or "bfloat16"
            What the network computes in.
        """
        self._inference = _fold(copy.deepcopy(self.network)).to(device, DTYPES[dtype])

    def predict(self, connectome: NDArray[np.float32]) -> NDArray[np.float32]:
        """Connectomes (N, K, V) -> maps (N, C, V) float32.

        Subjects go through the network one by one: a map does not depend on who else is in the batch, and
        memory not on N.

        Raises
        ------
        ValueError
            When the shape does not fit.
        """
        check_connectome(connectome, self.n_rois, self.grid)
        maps = np.empty((len(connectome), len(self.contrasts), self.grid.n_voxels), dtype=np.float32)
        with torch.inference_mode():
            for subject, rest in enumerate(connectome):
                maps[subject] = self._gather(self._inference(self._scatter(rest)))
        return maps

    def _scatter(self, connectome: NDArray[np.float32]) -> Tensor:
        """(K, V) -> (1, K, X, Y, Z) in channels-last order, 0 outside the mask."""
        like = next(self._inference.parameters())
        if self.input_mask is not None:
            connectome = np.where(self.input_mask, connectome, 0)
        vectors = torch.from_numpy(np.ascontiguousarray(connectome.T, dtype=np.float32))  # (V, K)
        box = torch.zeros(self.grid.mask.size, self.n_rois, dtype=like.dtype, device=like.device)
        box[torch.from_numpy(self.grid.flat_index).to(like.device)] = vectors.to(like.device, like.dtype)
        return box.reshape(1, *self.grid.shape, self.n_rois).permute(0, 4, 1, 2, 3)

    def _gather(self, box: Tensor) -> NDArray[np.float32]:
        """(1, C, X, Y, Z) -> (C, V) float32."""
        rows = box[0].permute(1, 2, 3, 0).reshape(self.grid.mask.size, -1)
        vectors = rows[torch.from_numpy(self.grid.flat_index).to(box.device)]  # (V, C)
        array: NDArray[np.float32] = vectors.float().cpu().numpy().T
        return array


def dump(model: Model) -> tuple[bytes, dict[str, Any]]:
    """Turn a model into what its two files hold; the same model gives the same bytes.

    Parameters
    ----------
    model : NetworkModel, GroupMean, Linear or Retest

    Returns
    -------
    tensors : bytes
        safetensors: weights, coefficients, masks, the grid.
    description : dict
        For JSON: format_version, kind, config, contrasts, n_rois, grid (shape and fingerprint), sha256 of the
        tensor bytes.

    Raises
    ------
    ModelError
        For another kind of model.
    """
    config, tensors = _pack(model)
    tensors |= {"grid.affine": model.grid.affine, "grid.mask": model.grid.mask.astype(np.uint8)}
    # safetensors writes the buffer as it lies: it has to be in C order
    payload = safetensors.numpy.save({name: np.array(array, order="C") for name, array in tensors.items()})
    description = {
        "format_version": FORMAT_VERSION,
        "kind": model.kind,
        "config": config,
        "contrasts": list(model.contrasts),
        "n_rois": model.n_rois,
        "grid": {"shape": list(model.grid.shape), "fingerprint": model.grid.fingerprint},
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    return payload, description


def load(tensors: bytes, description: Mapping[str, Any]) -> NetworkModel | GroupMean | Linear | Retest:
    """Inverse of `dump`: the loaded model predicts the same bits.

    Parameters
    ----------
    tensors : bytes
        safetensors.
    description : mapping
        As `dump` returns it, possibly with further keys, which are left alone.

    Raises
    ------
    ModelError
        For another format version or kind, when the bytes are not those described, or do not fit.
    """
    _check_description(tensors, description)
    try:
        return _unpack(tensors, description)
    except KeyError as error:
        raise ModelError(f"got a model file without the tensor {error}, expected a complete one") from error


def _unpack(tensors: bytes, description: Mapping[str, Any]) -> NetworkModel | GroupMean | Linear | Retest:
    """Rebuild a model; KeyError for a tensor that is missing."""
    arrays = {name: array.copy() for name, array in safetensors.numpy.load(tensors).items()}
    grid = Grid(arrays.pop("grid.affine"), arrays.pop("grid.mask") != 0)
    if grid.fingerprint != description["grid"]["fingerprint"]:
        raise ModelError(f"got a model on grid {grid.fingerprint}, expected {description['grid']['fingerprint']}")
    contrasts = tuple(description["contrasts"])
    if description["kind"] == GroupMean.kind:
        return GroupMean(arrays["maps"], contrasts, grid, int(description["n_rois"]))
    if description["kind"] == Retest.kind:
        return Retest(contrasts, grid, int(description["n_rois"]))
    if description["kind"] == Linear.kind:
        return Linear(arrays["coefficients"], arrays["parcels"], contrasts, grid)
    return _unpack_network(arrays, description["config"], contrasts, grid)


def _pack(model: Model) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Config and arrays of a model."""
    if isinstance(model, GroupMean):
        return {}, {"maps": model.maps}
    if isinstance(model, Linear):
        return {}, {"coefficients": model.coefficients, "parcels": model.parcels}
    if isinstance(model, Retest):
        return {}, {}
    if not isinstance(model, NetworkModel):
        raise ModelError(f"got a {type(model).__name__}, expected a NetworkModel, GroupMean, Linear or Retest")
    state = model.network.state_dict()
    arrays = {f"network.{name}": tensor.detach().cpu().numpy() for name, tensor in state.items()}
    if model.input_mask is not None:
        arrays["input_mask"] = model.input_mask.astype(np.uint8)
    return model.config, arrays


def _unpack_network(
    arrays: dict[str, NDArray[Any]], config: Mapping[str, Any], contrasts: tuple[str, ...], grid: Grid
) -> NetworkModel:
    mask = arrays.pop("input_mask", None)
    network = build(config)
    weights = {name.removeprefix("network."): torch.from_numpy(array) for name, array in arrays.items()}
    load_weights(network, weights, source="model file")
    return NetworkModel(network.eval(), config, contrasts, grid, None if mask is None else mask != 0)


def _check_description(tensors: bytes, description: Mapping[str, Any]) -> None:
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"got a model of format version {version!r}, expected {FORMAT_VERSION}",
            hint="update dtg_ray, or train the model again",
        )
    kinds = (NetworkModel.kind, GroupMean.kind, Linear.kind, Retest.kind)
    if description.get("kind") not in kinds:
        raise ModelError(f"got a model of kind {description.get('kind')!r}, expected one of {', '.join(kinds)}")
    missing = [key for key in ("config", "contrasts", "n_rois", "grid", "sha256") if key not in description]
    if missing:
        raise ModelError(f"got a model description without {', '.join(missing)}, expected a complete one")
    digest = hashlib.sha256(tensors).hexdigest()
    if digest != description["sha256"]:
        raise ModelError(
            f"got tensors with sha256 {digest}, expected {description['sha256']}",
            hint="the file is damaged, or belongs to another description",
        )


def _fold(network: nn.Module) -> nn.Module:
    """Fold batch normalizations into the convolutions before them, in place."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                convolution, norm = module[index], module[index + 1]
                if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                    module[index] = fuse_conv_bn_eval(convolution, norm)
                    module[index + 1] = nn.Identity()
    return network
