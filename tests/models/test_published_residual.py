"""Published resunet and vnet: checkpoints with their names and shapes, computed by functions of the weights alone.

The published code of these two does not run, so there are no reference outputs. Names, shapes and the order of
operations below are written down from its source, without use of the networks under test.
"""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from dtg_ray.errors import ModelError
from dtg_ray.models.published import load_published

BOX = (9, 11, 10)


def conv(name, first, last, kernel):
    return {f"{name}.weight": (last, first, kernel, kernel, kernel), f"{name}.bias": (last,)}


def transposed(name, first, last, kernel):
    return {f"{name}.weight": (first, last, kernel, kernel, kernel), f"{name}.bias": (last,)}


def batch_norm(name, channels):
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{vector}": (channels,) for vector in vectors} | {f"{name}.num_batches_tracked": ()}


def resunet_shapes(*, max_depth, n_conv_layers, fdim, n_channels, n_out_channels):
    def unit(name, first, last):
        shapes = {} if first == last else conv(f"{name}.skip.0", first, last, 1)
        for index, (c, d) in enumerate(pairwise([first, *[last] * n_conv_layers])):
            shapes |= batch_norm(f"{name}.conv.{3 * index}", c) | conv(f"{name}.conv.{3 * index + 2}", c, d, 3)
        return shapes

    features = [fdim * 2**level for level in range(max_depth + 1)]
    shapes = unit("in_block", n_channels, fdim) | unit("bottleneck", features[-1], 2 * features[-1])
    for index, (above, below) in enumerate(pairwise(features)):
        shapes |= unit(f"downs.{index}", above, below)
    for index, f in enumerate(reversed(features)):
        shapes |= transposed(f"upscale.{index}", 2 * f, f, 3)
        shapes |= unit(f"ups.{index}" if index < max_depth else "out_block.0", 2 * f, f)
    return shapes | conv("out_block.1", fdim, n_out_channels, 1)


def vnet_shapes(*, max_depth, fdim, n_channels, n_out_channels, n_conv_layers=None, lowest=None):
    def block(name, first, last, convs, kernel=5):
        shapes = {}
        for index, (c, d) in enumerate(pairwise([first, *[last] * convs])):
            shapes |= conv(f"{name}.conv.{3 * index}", c, d, kernel) | batch_norm(f"{name}.conv.{3 * index + 1}", d)
        return shapes

    convs = [2, *[3] * (max_depth - 2)]
    up_features = [fdim * 2**level for level in range(max_depth if lowest is None else lowest)][::-1]
    shapes = block("input_layer.conv", n_channels, fdim, 1)
    for index in range(max_depth - 1):
        above = fdim * 2**index
        shapes |= block(f"downs.{index}.down_conv", above, 2 * above, 1, kernel=2)
        shapes |= block(f"downs.{index}.conv", 2 * above, 2 * above, convs[index])
        f = up_features[index]
        shapes |= transposed(f"ups.{index}.up_conv", up_features[max(index - 1, 0)], f // 2, 2)
        shapes |= block(f"ups.{index}.conv", f, f, convs[::-1][index])
    return shapes | conv("out_layer.conv", up_features[max_depth - 2], n_out_channels, 5)


def draw(shapes):
    """Random weights and statistics of these shapes, small enough to keep the maps around 1."""
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if not shape:
            state[name] = torch.tensor(7)
        elif len(shape) == 5:
            state[name] = torch.randn(shape) * (2 / torch.tensor(shape[1:]).prod()) ** 0.5
        else:
            state[name] = torch.rand(shape) + 0.5 if name.endswith("running_var") else torch.randn(shape) * 0.3
    return state


class Functional:
    """Layers by name, in eval mode."""

    def __init__(self, state):
        self.state = state

    def weights(self, name):
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def conv(self, name, x, **options):
        return functional.conv3d(x, *self.weights(name), **options)

    def transposed(self, name, x, **options):
        return functional.conv_transpose3d(x, *self.weights(name), stride=2, **options)

    def norm(self, name, x):
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        return functional.batch_norm(x, mean, variance, *self.weights(name))


def concatenate(x, skip):
    return torch.cat([functional.interpolate(x, size=skip.shape[2:], mode="trilinear"), skip], dim=1)


def resunet(state, x, *, max_depth, n_conv_layers, **_):
    f = Functional(state)

    def unit(name, x):
        y = x
        for index in range(n_conv_layers):
            y = functional.relu(f.norm(f"{name}.conv.{3 * index}", y))
            y = f.conv(f"{name}.conv.{3 * index + 2}", y, padding=1)
        return y + (f.conv(f"{name}.skip.0", x) if f"{name}.skip.0.weight" in state else x)

    skips = [unit("in_block", x)]
    for level in range(max_depth):
        skips.append(unit(f"downs.{level}", functional.max_pool3d(skips[-1], 2)))
    x = unit("bottleneck", functional.max_pool3d(skips[-1], 2))
    for index, skip in enumerate(reversed(skips)):
        x = concatenate(f.transposed(f"upscale.{index}", x, padding=1), skip)
        x = unit(f"ups.{index}" if index < max_depth else "out_block.0", x)
    return f.conv("out_block.1", x)


def vnet(state, x, *, max_depth, **_):
    f = Functional(state)

    def block(name, x, **options):
        index = 0
        while f"{name}.conv.{index}.weight" in state:
            x = functional.relu(f.norm(f"{name}.conv.{index + 1}", f.conv(f"{name}.conv.{index}", x, **options)))
            index += 3
        return x

    y = block("input_layer.conv", x, padding=2)
    repeats, rest = divmod(y.shape[1], x.shape[1])
    x = functional.relu(y + torch.cat([x] * repeats, dim=1)) if repeats > 1 and rest == 0 else y
    skips = []
    for index in range(max_depth - 1):
        skips.append(x)
        x = block(f"downs.{index}.down_conv", x, stride=2, padding=1)
        x = functional.relu(block(f"downs.{index}.conv", x, padding=2) + x)
    for index in range(max_depth - 1):
        x = concatenate(functional.relu(f.transposed(f"ups.{index}.up_conv", x)), skips.pop())
        x = functional.relu(block(f"ups.{index}.conv", x, padding=2) + x)
    return f.conv("out_layer.conv", x, padding=2)


def settings(max_depth, n_conv_layers, n_channels):
    names = ("max_depth", "n_conv_layers", "fdim", "n_channels", "n_out_channels")
    return dict(zip(names, (max_depth, n_conv_layers, 4, n_channels, 2), strict=True))


CASES = [
    ("resunet", settings(1, 1, 3)),
    ("resunet", settings(1, 2, 4)),  # as many ROIs as features: the first shortcut is the identity
    ("resunet", settings(2, 2, 3)),
    ("vnet", settings(2, 1, 3)),
    ("vnet", settings(3, 2, 2)),  # the input fits into the features twice and is added
    ("vnet", settings(4, 3, 3)),
]


@pytest.mark.parametrize(("architecture", "options"), CASES)
def test_a_checkpoint_computes_what_its_weights_say(tmp_path, architecture, options):
    shapes, forward = {"resunet": (resunet_shapes, resunet), "vnet": (vnet_shapes, vnet)}[architecture]
    state = draw(shapes(**options))
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "model.ckpt")
    network = load_published(tmp_path / "model.ckpt", architecture=architecture, **options)
    x = torch.randn(2, options["n_channels"], *BOX)
    with torch.inference_mode():
        y, expected = network(x), forward(state, x, **options)
    assert y.std() > 0.1
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("architecture", "options"), CASES)
@pytest.mark.parametrize("change", ["missing", "extra", "reshaped"])
def test_every_name_and_shape_has_to_agree(tmp_path, architecture, options, change):
    shapes = (resunet_shapes if architecture == "resunet" else vnet_shapes)(**options)
    last = list(shapes)[-1]
    if change == "missing":
        del shapes[last]
    else:
        shapes |= {"head.bias": (2,)} if change == "extra" else {last: (9,)}
    torch.save({"state_dict": draw(shapes)}, tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match="got 1 weights that do not fit the network"):
        load_published(tmp_path / "model.ckpt", architecture=architecture, **options)


def test_the_decoder_that_cannot_run_is_refused(tmp_path):
    options = settings(3, 1, 3)
    state = draw(vnet_shapes(**options, lowest=4))  # starts at twice the features the encoder ends with
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    with pytest.raises(RuntimeError, match="expected input"):
        vnet(state, torch.randn(1, 3, *BOX), **options)
    with pytest.raises(ModelError, match=r"weights that do not fit the network, first out_layer.conv.weight"):
        load_published(tmp_path / "model.ckpt", architecture="vnet", **options)
