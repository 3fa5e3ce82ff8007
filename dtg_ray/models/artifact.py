"""The common interface of all models, and how they become files: safetensors bytes and a JSON description."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import nn

from dtg_ray.errors import ModelError
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import build, complete_config
from dtg_ray.models.baselines import Float, GroupMean, Linear, Retest, Stored, check_connectome, rows_of
from dtg_ray.models.fast_layers import keep_outputs
from dtg_ray.models.inference import Inference, Precision, Settings, fast_inference, plain_inference
from dtg_ray.models.unet import load_weights

FORMAT_VERSION = 1


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

    def predict(self, connectome: Float, dtype: Stored = "float32") -> NDArray[Any]:
        """Connectomes (N, K, V) -> maps (N, C, V), clipped to the range of `dtype`; ValueError for another shape."""
        ...

    def select(self, contrasts: Sequence[str]) -> Self:
        """The model of these contrasts alone, in this order; ModelError for one it does not have."""
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
        self.network_contrasts = contrasts
        self.grid = grid
        self.input_mask = input_mask
        if len(contrasts) != self.config["n_contrasts"]:
            raise ModelError(f"got {len(contrasts)} contrasts, expected {self.config['n_contrasts']}")
        if input_mask is not None and input_mask.shape != (grid.n_voxels,):
            raise ModelError(f"got an input mask of shape {input_mask.shape}, expected ({grid.n_voxels},)")
        self._outputs = list(range(len(contrasts)))
        self._inference: Inference | None = None

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Names of the contrasts that are predicted, in the order of the maps."""
        return tuple(self.network_contrasts[row] for row in self._outputs)

    @property
    def n_rois(self) -> int:
        """K of the connectomes it is given."""
        return int(self.config["n_rois"])

    def select(self, contrasts: Sequence[str]) -> NetworkModel:
        """The model of these contrasts alone, in this order; ModelError for one it does not have."""
        rows = rows_of(contrasts, self.network_contrasts)
        network = copy.deepcopy(self.network)
        keep_outputs(network, rows)
        config = self.config | {"n_contrasts": len(rows)}
        return NetworkModel(network, config, tuple(contrasts), self.grid, self.input_mask)

    def prepare_for_inference(
        self,
        device: str = "cpu",
        dtype: Precision = "float32",
        *,
        contrasts: Sequence[str] | None = None,
        batch: int | None = None,
        compile: bool = False,  # noqa: A002 - torch's word for it
    ) -> None:
        """Make the predictions after this fast; what `dump` writes stays as it is.

        In float32 the maps change by rounding only. In bfloat16 they correlate with r > 0.999, unless they differ
        from their own mean by little; which of the two made a map belongs into its provenance.

        Parameters
        ----------
        device : str
            A torch device.
        dtype : "float32" or "bfloat16"
            What the network computes in.
        contrasts : sequence of str, optional
            Those that are predicted from now on, in this order; by default all. The others cost nothing.
        batch : int, optional
            Subjects at once. By default one on a CPU, and on a GPU a power of two that its free memory allows.
        compile : bool
            Try torch.compile; where it fails, there is a warning in the log and the network runs without.

        Raises
        ------
        ModelError
            For a contrast that the network does not make.
        """
        names = self.network_contrasts
        self._outputs = list(range(len(names))) if contrasts is None else rows_of(contrasts, names)
        settings = Settings(device, dtype, batch, compile)
        self._inference = fast_inference(self.network, self.config, self.grid, self.input_mask, self._outputs, settings)

    def predict(self, connectome: Float, dtype: Stored = "float32") -> NDArray[Any]:
        """Connectomes (N, K, V) of any floating type, best as stored in float16 -> maps (N, C, V).

        The same input gives the same bits on the same device and number of threads. On a CPU, where subjects go
        through one by one, also whoever else is in the batch; on a GPU rounding can depend on the number of subjects
        that go through at once. TF32 is not used. Not for several threads at a time.

        Parameters
        ----------
        connectome : (N, K, V) float
        dtype : "float32" or "float16"
            Of the maps; in float16, values beyond its range become its largest or smallest.

        Raises
        ------
        ValueError
            When the shape does not fit.
        """
        check_connectome(connectome, self.n_rois, self.grid)
        if self._inference is None:
            sizes = (self.n_rois, len(self.contrasts))
            self._inference = plain_inference(self.network, self.grid, self.input_mask, sizes)
        return self._inference(connectome, dtype)


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
        "contrasts": list(model.network_contrasts if isinstance(model, NetworkModel) else model.contrasts),
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
