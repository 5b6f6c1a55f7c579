"""Guidance as an input of the network: what it changes, and how one g becomes a part of a bias."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_every_network import EXPECTED as SMALL
from tests.test_fast import MOST_WRONG
from tests.test_lucidrains import CONFIG, network_of
from tests.test_unet import randomized
from vdiff import conformance
from vdiff.conformance import BrokenContractError
from vdiff.diffusion.condition import Condition
from vdiff.errors import UsageError
from vdiff.networks import NETWORKS
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.edm_unet import EdmUNet
from vdiff.networks.edm_unet_section import EdmUNetConfig
from vdiff.networks.guidance_embedding import GuidanceEmbedding
from vdiff.networks.guidance_theorems import theorems
from vdiff.networks.network import Network
from vdiff.networks.unet import UNet, UNetSection

SIZE, CLASSES, BATCH = 8, 3, 4
STRENGTHS = torch.tensor([1.0, 1.5, 2.0, 4.0])


def plain(**more: Any) -> UNet:
    options: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "attention_at": (4,)}
    section = UNetSection(**options, num_classes=CLASSES, **more)
    network: UNet = randomized(section.build(SIZE, 1)).eval()
    return network


def with_input(**more: Any) -> UNet:
    network: UNet = randomized(plain(**more).with_guidance_input())
    return network


def batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    z = torch.randn(BATCH, 1, SIZE, SIZE, generator=rng)
    return z, torch.rand(BATCH, generator=rng) * 1000, torch.arange(BATCH) % CLASSES


def outputs(network: Network, strengths: Tensor | None) -> Tensor:
    z, time, label = batch()
    z = z.to(next(network.parameters()).dtype)
    with torch.no_grad():
        out: Tensor = network(z, time, Condition(label, strengths))
    return out


def test_a_new_input_changes_no_bit_whatever_guidance_is_told() -> None:
    network = plain()
    assert torch.equal(outputs(network.with_guidance_input(), STRENGTHS), outputs(network, None))


def test_every_weight_of_the_input_learns() -> None:
    network = plain().with_guidance_input()
    z, time, label = batch()
    for _ in range(2):  # the last layer first: the gradient of the others is 0 while it is
        network(z, time, Condition(label, STRENGTHS)).square().sum().backward()
        with torch.no_grad():
            for weight in network.parameters():
                if weight.grad is not None:
                    weight.sub_(1e-3 * weight.grad)
    assert network.guidance_embedding is not None
    for name, weight in network.guidance_embedding.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


@pytest.mark.parametrize("guidance", [1.0, 1.5, 3.25, 15.0])
def test_a_fixed_guidance_is_what_the_input_gives_for_it(guidance: float) -> None:
    network = with_input()
    baked = network.with_fixed_guidance(guidance)
    strengths = torch.full((BATCH,), guidance)
    expected = outputs(network, strengths)
    assert baked.config == plain().config
    assert baked.diffusers() == plain().diffusers()
    assert (outputs(baked, None) - expected).abs().max() < 1e-6 * expected.abs().max()
    # and it is more than nothing that was folded
    assert (outputs(plain(), None) - expected).abs().max() > 1e-2
    # what is left is rounding alone: the sums are made in another order
    network.double()
    exact = outputs(network, strengths)
    assert (outputs(network.with_fixed_guidance(guidance), None) - exact).abs().max() < 1e-13


def test_a_network_that_takes_guidance_asks_for_it_and_no_other_takes_it() -> None:
    with pytest.raises(ValueError, match="needs a `guidance`"):
        outputs(with_input(), None)
    with pytest.raises(ValueError, match="takes no `guidance`"):
        outputs(plain(), STRENGTHS)


def test_the_input_is_told_in_the_configuration_and_nowhere_else() -> None:
    assert "takes_guidance" not in plain().config
    network = with_input()
    config = json.loads(json.dumps(network.config))
    assert config["_class_name"] == "VdiffUNet"
    assert network.diffusers() is None
    again = UNetSection.restore(config).eval()
    again.load_state_dict(network.state_dict())
    assert again.takes_guidance
    assert torch.equal(outputs(again, STRENGTHS), outputs(network, STRENGTHS))


def test_dropouts_keep_their_numbers_and_the_weights_of_a_seed_their_bits() -> None:
    z, time, label = batch()
    keys = torch.arange(BATCH)
    network = plain(dropout=0.3).train()
    expected = network(z, time, Condition(label), keys)
    found = network.with_guidance_input()(z, time, Condition(label, STRENGTHS), keys)
    assert torch.equal(found, expected)
    config = plain().config
    torch.manual_seed(3)
    fresh = UNet.from_config(config).state_dict()
    torch.manual_seed(3)
    with_one = UNet.from_config({**config, "takes_guidance": True}).state_dict()
    assert all(torch.equal(weight, with_one[name]) for name, weight in fresh.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_layers_give_the_same(dtype: torch.dtype) -> None:
    expected = outputs(with_input().to(dtype), STRENGTHS.to(dtype))
    found = outputs(fast_on_cpu(with_input().to(dtype)), STRENGTHS.to(dtype))
    assert (found - expected).abs().max() < MOST_WRONG[dtype] * expected.abs().max()


def test_a_network_with_fast_layers_gets_the_input_too() -> None:
    made = fast_on_cpu(plain()).with_guidance_input()
    assert type(made) is UNet
    torch.testing.assert_close(outputs(made, STRENGTHS), outputs(plain(), None))


EDM: dict[str, Any] = {
    "family": "ddpm++",
    "image_size": 8,
    "channels": 1,
    "first": 8,
    "widths": [8, 8],
    "blocks": 1,
    "attends": [False, False],
    "heads": [0, 0],
    "sinusoid": 8,
    "embedding": 16,
}


@pytest.mark.parametrize("kind", ["edm_unet", "lucidrains"])
def test_the_networks_of_others_take_none_and_get_no_input(kind: str) -> None:
    makers = {
        "edm_unet": lambda: EdmUNet(EdmUNetConfig.read(EDM)),
        "lucidrains": lambda: network_of({**CONFIG, "channels": 1}),
    }
    network = makers[kind]()
    z, time, _ = batch()
    assert network(z, time).isfinite().all()
    with pytest.raises(ValueError, match="takes no `guidance`"):
        network(z, time, Condition(None, STRENGTHS))
    with pytest.raises(UsageError, match="has no input for guidance"):
        network.with_guidance_input()


def test_a_kind_without_such_an_input_says_what_to_do() -> None:
    class Other(UNet):
        with_guidance_input = Network.with_guidance_input

    network = Other.from_config(plain().config)
    with pytest.raises(UsageError) as caught:
        network.with_guidance_input()
    assert "a `Other` has no input for guidance" in caught.value.problem
    assert "distill.guidance=1.5" in caught.value.fix
    # and it is asked nothing more
    z, time, label = batch()
    section = NETWORKS.section("unet")

    class OtherSection(section):  # type: ignore[misc,valid-type]
        may_take_guidance = False

    found = theorems(OtherSection, network, z, time, Condition(label))
    assert [holds for holds, _ in found] == [True]
    # but for whether its section knows it
    found = theorems(section, network, z, time, Condition(label))
    assert list(found) == [(False, "its section says that it may take guidance")]


BROKEN: dict[str, dict[str, Any]] = {
    "gives a network that takes none": {"takes_guidance": property(lambda self: False)},
    "before it has learned": {"with_guidance_input": lambda self: randomized(GROWN(self))},
    "it asks for no guidance": {"check_guidance": lambda self, condition: None},
    "changes nothing in a picture": {"told": lambda condition: torch.ones(3)},
    "gives a network that takes guidance": {"with_fixed_guidance": lambda self, g: self},
    "for this guidance": {"with_fixed_guidance": lambda self, g: fixed(self, 1.0)},
    "that it is asked of": {"with_fixed_guidance": lambda self, g: fixed(self, g, spoils=True)},
}
"""What the message says -> what of the network is other then."""


GROWN = UNet.with_guidance_input
FIXED = UNet.with_fixed_guidance


def fixed(network: UNet, guidance: float, spoils: bool = False) -> UNet:
    found = FIXED(network, guidance)
    if spoils:
        with torch.no_grad():
            network.conv_out.bias.add_(1.0)
    return found


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_input_is_told_of(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = dict(BROKEN[broken])
    told = changes.pop("told", None)
    if told is not None:
        forward = GuidanceEmbedding.forward
        monkeypatch.setattr(GuidanceEmbedding, "forward", lambda self, g: forward(self, told(g)))
    for name, value in changes.items():
        monkeypatch.setattr(UNet, name, value)
    with pytest.raises(BrokenContractError, match=broken):
        conformance.check_network(UNetSection(**SMALL["unet"], num_classes=CLASSES))
