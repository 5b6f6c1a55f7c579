"""Fast layers are put in from outside: with and without them a network
computes the same to rounding.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.parametrize
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.test_unet import randomized
from vdiff import networks
from vdiff.diffusion.condition import NOTHING, Condition, of_seeds
from vdiff.machine.machine import Machine
from vdiff.networks import blocks, gpu
from vdiff.networks.cpu import prepacked
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.cpu.prepacked import Prepacked
from vdiff.networks.fast import Fast, fast_on
from vdiff.networks.unet import UNet, UNetSection
from vdiff.networks.unet_config import UNetConfig
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe

MOST_WRONG = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Beside the largest value of the same tensor.

The worst gradient may also miss that of float64 by five times what the worst of torch's own layers
misses in this
dtype: in channels-last, the norm's sums over all pixels are less exact than torch's (3.4 times its
error here).
"""
SMALLER: dict[str, tuple[int, dict[str, Any]]] = {
    "celeba_u": (64, {"width": 16, "head_dim": 16, "attention_at": (8, 4), "blocks": 1}),
    "cifar10": (32, {"width": 32, "blocks": 1}),
    "digits": (8, {}),
    "digits_classes": (8, {}),
}
"""The shipped recipes' networks and images, smaller so that a test takes a second;
the levels stay.
"""


def shipped(name: str) -> tuple[UNet, int]:
    recipe = recipe_text.validate(Recipe, recipe_text.find(name))
    size, changed = SMALLER[name]
    section = recipe.network.model_copy(update=changed)
    assert isinstance(section, UNetSection)
    return section.build(size, recipe.data.channels), size


def other(**changed: Any) -> tuple[UNet, int]:
    """What no shipped recipe has: the time added, padding on one side,
    no attention head's width, classes.
    """
    levels = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": None,
    }
    types = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet(UNetConfig.parse({**levels, **types, **changed})), 34


class Strangers(nn.Module):
    """A network of somebody who does not know vdiff:
    every way of using the layers that have a fast one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4, padding_mode="circular")
        self.norm = nn.GroupNorm(2, 8)
        self.plain_norm = nn.GroupNorm(4, 8, affine=False)
        self.same = nn.Conv2d(8, 8, 3, padding="same", bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.weighted = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.mix = nn.Linear(8, 8)

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        h = self.plain_norm(self.norm(self.patch(z)))
        h = h + self.grouped(self.same(h)).permute(0, 1, 3, 2)
        tokens = self.norm(self.mix(h.flatten(2).mT).mT + time[:, None, None].to(h.dtype))
        image = self.weighted(tokens.unflatten(2, h.shape[2:])[0])  # without a batch
        return image[None] + h


def strangers() -> tuple[Strangers, int]:
    return Strangers(), 132


CASES: dict[str, Callable[[], tuple[Any, int]]] = {
    **{name: lambda name=name: shipped(name) for name in SMALLER},
    "time added": lambda: other(),
    "one side": lambda: other(
        downsample_padding=0, resnet_time_scale_shift="scale_shift", num_class_embeds=3
    ),
    "resampled by blocks": lambda: other(
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        num_attention_heads=2,
        num_attention_heads_up=4,
        time_width=32,
        time_embedding_dim=32,
    ),
    "a stranger's": strangers,
}


def test_every_shipped_recipe_is_a_case() -> None:
    assert set(SMALLER) == set(recipe_text.shipped())


def batch(network: nn.Module, size: int, dtype: torch.dtype, count: int = 2) -> tuple[Any, ...]:
    rng = torch.Generator().manual_seed(3)
    channels = network.conv_in.in_channels if isinstance(network, UNet) else 3
    z = torch.randn(count, channels, size, size, generator=rng, dtype=torch.float64).to(dtype)
    classes = network.config["num_class_embeds"] if isinstance(network, UNet) else None
    condition = of_seeds(range(count), classes) if classes else NOTHING
    return z, torch.linspace(10, 900, count), condition, torch.arange(count)


def results(network: nn.Module, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every weight."""
    z, *rest = batch(network, size, dtype)
    out = network(z.requires_grad_(), *rest)
    names, weights = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(out.sin().sum(), (z, *weights))
    return {"out": out.detach(), **dict(zip(("z", *names), gradients, strict=True))}


def assert_near(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert apart(found, wanted) <= MOST_WRONG[found.dtype]


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


@pytest.mark.parametrize("dtype", MOST_WRONG, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_agree_with_and_without(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, size = CASES[name]()
    plain = randomized(network).to(dtype).train()
    quick = fast_on_cpu(copy.deepcopy(plain))
    assert not any(isinstance(each, Fast) for each in plain.modules())
    assert sum(isinstance(each, Fast) for each in quick.modules()) >= 6
    assert list(quick.state_dict()) == list(plain.state_dict())
    wanted, found = results(plain, size, dtype), results(quick, size, dtype)
    exact = results(plain.double(), size, torch.float64)
    assert wanted.keys() == found.keys()
    largest = max(float(each.abs().max()) for each in exact.values())
    # a gradient that is 0 but for rounding has no digits in common
    names = [key for key, each in exact.items() if each.abs().max() > 1e-6 * largest]
    torchs, ours = (
        max(apart(each[key].double(), exact[key]) for key in names) for each in (wanted, found)
    )
    assert ours <= MOST_WRONG[dtype] + 5 * torchs
    assert_near(found["out"], wanted["out"])


@pytest.mark.parametrize("dtype", MOST_WRONG, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_frozen_network_draws_the_same_with_and_without(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, size = CASES[name]()
    plain = randomized(network).to(dtype).eval().requires_grad_(False)
    quick, orderly = (
        fast_on_cpu(copy.deepcopy(plain)),
        fast_on_cpu(copy.deepcopy(plain), prepacks=False),
    )
    given = batch(plain, size, dtype)
    wanted = plain(*given)
    for each in (quick, orderly):
        assert_near(each(*given), wanted)
    packed = [each._kept is not None for each in quick.modules() if isinstance(each, Prepacked)]
    is_large = not name.startswith("digits")
    assert any(packed) == (dtype == torch.float32 and is_large and _has_kernels())
    assert all(each._kept is None for each in orderly.modules() if isinstance(each, Prepacked))


def _has_kernels() -> bool:
    return prepacked._has_kernels(torch.float32)


def small() -> UNet:
    return randomized(
        UNetSection(width=8, multipliers=(1, 2), blocks=1, attention_at=(4,)).build(8, 3)
    )


def test_a_copy_of_a_fast_network_is_fast_and_for_another_device_it_is_another() -> None:
    network = fast_on(small(), "cpu")
    kinds = [type(each) for each in network.modules()]
    assert [type(each) for each in copy.deepcopy(network).modules()] == kinds
    assert [type(each) for each in fast_on(network, "cpu").modules()] == kinds
    fast_on(network, "cuda")
    assert {each.__class__.__module__ for each in network.modules() if isinstance(each, Fast)} == {
        gpu.__name__
    }
    fast_on(network, "meta")
    assert [type(each) for each in network.modules()] == [type(each) for each in small().modules()]


def test_a_subclass_of_a_layer_stays_what_it_is() -> None:
    class Own(nn.Conv2d):
        pass

    network = fast_on_cpu(
        nn.Sequential(Own(1, 1, 1), parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    )
    assert [isinstance(each, Fast) for each in network] == [False, False, True]


def test_a_layer_that_somebody_put_in_an_upsampling_is_asked() -> None:
    class Loud(nn.Conv2d):
        def forward(self, h: Tensor) -> Tensor:
            return super().forward(h) * 100

    upsample = blocks.Upsample(3)
    upsample.conv = Loud(3, 3, 3, padding=1)
    h = torch.randn(1, 3, 8, 8)
    wanted = upsample(h)
    assert_near(fast_on_cpu(upsample)(h), wanted)


def test_a_class_that_somebody_put_over_a_fast_layer_stays() -> None:
    network = fast_on_cpu(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)))
    nn.utils.parametrize.register_parametrization(network[0], "weight", nn.Tanh())
    h = torch.randn(2, 3, 8, 8)
    wanted = network(h)
    assert torch.equal(fast_on_cpu(network)(h), wanted)
    assert nn.utils.parametrize.is_parametrized(network[0])


def test_a_network_that_was_loaded_in_inference_mode_computes() -> None:
    with torch.inference_mode():
        network = (
            fast_on_cpu(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))).eval().requires_grad_(False)
        )
    h = torch.randn(2, 16, 64, 64)
    with torch.no_grad():
        assert_near(
            network(h), nn.functional.conv2d(h, network[0].weight, network[0].bias, padding=1)
        )


def test_the_machine_and_whoever_reads_a_model_put_them_in() -> None:
    machine = Machine("fp32", "cpu")
    for prepare in (machine.place, machine.freeze):
        assert isinstance(prepare(small()).conv_in, Prepacked)


def test_the_gradient_of_a_fast_network_can_be_differentiated() -> None:
    torch.manual_seed(0)
    plain = randomized(
        UNetSection(width=8, multipliers=(1, 2), blocks=1, mid_attention=False).build(32, 3)
    ).double()
    found = []  # without attention: torch cannot differentiate its fused kernel twice
    for network in (plain, fast_on_cpu(copy.deepcopy(plain))):
        z, *rest = batch(network, 32, torch.float64)
        (once,) = torch.autograd.grad(
            network(z.requires_grad_(), *rest).sin().sum(), z, create_graph=True
        )
        (twice,) = torch.autograd.grad(once.square().sum(), z)
        found.append(twice)
    assert_near(found[1], found[0])


@pytest.mark.parametrize("file", ["blocks", "unet", "sharded", "repeated", "network"])
def test_the_plain_network_knows_nothing_of_fast_layers(file: str) -> None:
    text = (Path(networks.__file__).parent / f"{file}.py").read_text("utf-8")
    assert "vdiff.networks.cpu" not in text
    assert "vdiff.networks.gpu" not in text
    assert "channels_last" not in text
