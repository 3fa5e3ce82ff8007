"""What holds for every architecture that `build` offers."""

from typing import get_args

import pytest
import torch

from dtg_ray.config import NetworkConfig
from dtg_ray.models import ARCHITECTURES, CHOICES, activation_values, build, output_layer

SMALL = {"n_rois": 3, "n_contrasts": 2, "width": 4}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_study_can_name_every_one():
    assert get_args(NetworkConfig.model_fields["architecture"].annotation) == tuple(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestEvery:
    @pytest.mark.parametrize(
        ("depth", "box"),
        [(0, (3, 2, 5)), (1, (9, 7, 5)), (1, (4, 4, 4)), (1, (9, 11, 10)), (2, (9, 11, 10)), (2, (13, 8, 11))],
    )
    def test_the_output_has_the_box_of_the_input(self, architecture, depth, box):
        network = build(SMALL | {"architecture": architecture, "depth": depth}).eval()
        with torch.inference_mode():
            assert network(torch.randn(2, 3, *box)).shape == (2, 2, *box)

    def test_the_output_layer_makes_the_maps(self, architecture):
        network = build(SMALL | {"architecture": architecture}).eval()
        name, layer = output_layer(network)
        assert layer.out_channels == 2
        assert network.state_dict()[f"{name}.weight"] is not None
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([3.0, -2.0]))
            y = network(torch.randn(1, 3, 8, 9, 8))
        assert (y[:, 0] == 3).all()
        assert (y[:, 1] == -2).all()

    def test_activations_are_counted_without_computing_them(self, architecture):
        config, sizes = SMALL | {"architecture": architecture, "depth": 2}, []
        network = build(config).eval()
        for module in network.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.numel()))
        network(torch.randn(1, 3, 13, 8, 11))
        assert activation_values(config, (13, 8, 11)) == (sum(sizes), max(sizes))

    @pytest.mark.parametrize("norm", CHOICES["norm"])
    @pytest.mark.parametrize("activation", CHOICES["activation"])
    @pytest.mark.parametrize("convs", [1, 3])
    def test_one_step_against_the_gradient_reduces_the_loss(self, architecture, norm, activation, convs):
        settings = {"norm": norm, "activation": activation, "convs_per_block": convs}
        network = build(SMALL | {"architecture": architecture} | settings).double()
        x, target = torch.randn(2, 3, 9, 8, 9).double(), torch.randn(2, 2, 9, 8, 9).double()
        before = (network(x) - target).square().mean()
        before.backward()
        norm_of_gradient = sum(p.grad.square().sum() for p in network.parameters())
        step = 1e-4 / norm_of_gradient
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.sub_(step * parameter.grad)
            after = (network(x) - target).square().mean()
        # to first order the loss falls by step * |gradient|^2
        assert (before - after).item() == pytest.approx(1e-4, rel=0.1)

    @pytest.mark.parametrize("depth", [0, 2])
    def test_gradients_reach_every_parameter(self, architecture, depth):
        settings = {"depth": depth, "norm": "none", "activation": "elu", "convs_per_block": 2}
        network = build(SMALL | {"architecture": architecture} | settings)
        network(torch.randn(1, 3, 9, 10, 11)).square().sum().backward()
        idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []

    @pytest.mark.parametrize("norm", CHOICES["norm"])
    def test_in_eval_mode_a_map_depends_on_its_connectome_only(self, architecture, norm):
        network = build(SMALL | {"architecture": architecture, "norm": norm})
        network(torch.randn(2, 3, 9, 8, 9))  # fills the running statistics
        network.eval()
        x = torch.randn(3, 3, 9, 8, 9)
        kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        given = x.clone()
        with torch.inference_mode():
            together, again, alone = network(x), network(x), network(x[1:2])
        assert torch.equal(together, again)
        torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(together[0], together[1])
        assert torch.equal(x, given)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())

    @pytest.mark.parametrize(("norm", "parts"), [("batch", True), ("instance", True), ("none", False)])
    def test_norm_is_the_one_asked_for(self, architecture, norm, parts):
        kinds = {
            type(module).__name__ for module in build(SMALL | {"architecture": architecture, "norm": norm}).modules()
        }
        found = {kind for kind in kinds if "Norm" in kind}
        assert found == ({f"{norm.capitalize()}Norm3d"} if parts else set())

    @pytest.mark.parametrize("activation", [("relu", "ReLU"), ("leaky_relu", "LeakyReLU"), ("elu", "ELU")])
    def test_activation_is_the_one_asked_for(self, architecture, activation):
        name, kind = activation
        network = build(SMALL | {"architecture": architecture, "activation": name})
        found = {type(module).__name__ for module in network.modules()} & {"ReLU", "LeakyReLU", "ELU"}
        assert found == {kind}

    def test_all_halve_the_box_to_the_same_width(self, architecture):
        state = build(SMALL | {"architecture": architecture, "depth": 2}).state_dict()
        assert max(tensor.shape[0] for tensor in state.values() if tensor.ndim) == 4 * 2**3

    @pytest.mark.parametrize("shape", [(1, 4, 8, 8, 8), (1, 3, 8, 3, 8), (3, 8, 8, 8)])
    def test_an_input_that_does_not_fit_says_what_would(self, architecture, shape):
        network = build(SMALL | {"architecture": architecture})
        with pytest.raises(ValueError, match=r"expected \(N, 3, X, Y, Z\) with X, Y, Z of at least 4 for depth 1"):
            network(torch.zeros(shape))
