"""Layers that learn nothing: torch's own results, from weights that are reordered once and again
when they change.
"""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import of_seeds
from vdiff.machine import memory
from vdiff.networks.cpu import prepacked
from vdiff.networks.cpu.doubling import convolved_double, doubled
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.cpu.prepacked import Conv2d, Linear
from vdiff.networks.unet import UNetSection

BOTH = (torch.float32, torch.bfloat16)
MOST_WRONG = {
    torch.float32: 1e-5,
    torch.bfloat16: 0.01,
}  # beside the largest value; one rounding of bfloat16 is 0.004

pytestmark = pytest.mark.skipif(
    not prepacked._has_kernels(torch.bfloat16), reason="this machine has no kernels for it"
)


def frozen(layer: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    nn.init.normal_(layer.weight, std=0.1)
    return layer.to(dtype).requires_grad_(False)


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= MOST_WRONG[wanted.dtype] * wanted.abs().max())


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("size", [(5, 3), (8, 8), (32, 48)])
@pytest.mark.parametrize(
    "how",
    [{"padding": 1}, {"padding": 0}, {"padding": 1, "stride": 2}, {"padding": 1, "bias": False}],
)
def test_a_convolution_gives_what_torch_gives(
    how: dict[str, Any], size: tuple[int, int], is_mixed: bool, dtype: torch.dtype
) -> None:
    conv = frozen(Conv2d(6, 10, 3, **how), torch.float32 if is_mixed else dtype)
    h = torch.randn(4, 6, *size).to(conv.weight.dtype)
    with torch.autocast("cpu", dtype, enabled=is_mixed and dtype == torch.bfloat16):
        found, wanted = conv(h), nn.Conv2d.forward(conv, h)
    assert (conv._kept is None) == (dtype == torch.float32 and size != (32, 48))
    assert found.dtype == wanted.dtype == dtype
    assert found.shape == wanted.shape
    assert close(found, wanted)
    is_large = found.shape[2] * found.shape[3] >= 1024
    assert found.is_contiguous(
        memory_format=torch.channels_last if is_large else torch.contiguous_format
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (4, 6), (2, 5, 6)])
def test_a_linear_layer_gives_what_torch_gives(shape: tuple[int, ...], bias: bool) -> None:
    layer, features = frozen(Linear(6, 10, bias=bias)), torch.randn(*shape).bfloat16()
    found, wanted = layer(features), nn.Linear.forward(layer, features)
    assert layer._kept is not None
    assert found.shape == wanted.shape
    assert close(found, wanted)


def test_the_order_is_made_once_and_does_not_depend_on_what_came_first() -> None:
    h = torch.randn(16, 64, 8, 8).bfloat16()
    first = frozen(Conv2d(64, 64, 3, padding=1))
    other = copy.deepcopy(first)
    other(h[:1])
    kept = other._kept
    assert torch.equal(first(h), other(h))
    assert other._kept is kept


def scaled(layer: Any) -> None:
    with torch.no_grad():
        layer.weight *= 2


def loaded(layer: Any) -> None:
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})


def replaced(layer: Any) -> None:
    layer.weight = nn.Parameter(2 * layer.weight, requires_grad=False)


def biased(layer: Any) -> None:
    with torch.no_grad():
        layer.bias += 1


@pytest.mark.parametrize("change", [scaled, loaded, replaced, biased])
def test_changed_weights_count(change: Callable[[Any], None]) -> None:
    for layer, torchs, shape in (
        (Conv2d(6, 10, 3), nn.Conv2d, (4, 6, 8, 8)),
        (Linear(6, 10), nn.Linear, (4, 6)),
    ):
        layer, given = frozen(layer), torch.randn(*shape).bfloat16()
        before = layer(given)
        change(layer)
        assert not torch.equal(layer(given), before)
        assert close(layer(given), torchs.forward(layer, given))


def test_another_precision_counts() -> None:
    conv, h = frozen(Conv2d(6, 10, 3)), torch.randn(1, 6, 32, 32)
    conv(h.bfloat16())
    assert close(conv.float()(h), nn.Conv2d.forward(conv, h))


def test_what_learns_has_gradients() -> None:
    conv, h = Conv2d(6, 10, 3), torch.randn(4, 6, 32, 32)
    conv(h).sum().backward()
    assert conv.weight.grad is not None
    assert conv._kept is None
    h.requires_grad_()  # through layers that learn nothing, as guidance does it
    for layer, given in ((conv.requires_grad_(False), h), (frozen(Linear(32, 4)), h.bfloat16())):
        layer(given).sum().backward()
        assert layer._kept is None
    assert h.grad is not None


def test_a_bias_that_learns_beside_a_weight_that_does_not_has_a_gradient() -> None:
    for layer, shape in ((Conv2d(6, 10, 3), (4, 6, 8, 8)), (Linear(6, 10), (4, 6))):
        layer = frozen(layer)
        layer.bias.requires_grad_()
        layer(torch.randn(*shape).bfloat16()).sum().backward()
        assert layer.bias.grad is not None


def test_doubled_and_convolved_at_once_or_after_are_not_mixed_up() -> None:
    conv = frozen(Conv2d(16, 16, 3, padding=1))
    for size in (4, 2, 4):  # at once, after, at once: all of 4 x 4 pixels for the convolution
        h = torch.randn(1, 16, size, size).bfloat16()
        found, wanted = convolved_double(h, conv), nn.Conv2d.forward(conv, doubled(h))
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max()


def test_another_dtype_is_refused_as_torch_refuses_it() -> None:
    with pytest.raises(RuntimeError, match="type"):
        frozen(Conv2d(6, 10, 3))(torch.randn(1, 6, 8, 8))


def test_no_pictures_at_all_are_none() -> None:
    assert frozen(Conv2d(6, 10, 3, padding=1))(torch.zeros(0, 6, 8, 8).bfloat16()).shape == (
        0,
        10,
        8,
        8,
    )


def test_copies_and_files_have_weights_alone() -> None:
    conv = frozen(Conv2d(6, 10, 3))
    conv(torch.randn(1, 6, 8, 8).bfloat16())
    assert conv._kept is not None
    assert copy.deepcopy(conv)._kept is None
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)._kept is None
    assert list(conv.state_dict()) == ["weight", "bias"]


def test_who_shares_weights_with_others_keeps_them_in_order() -> None:
    network = nn.Sequential(frozen(Conv2d(6, 10, 3)))
    h = torch.randn(1, 6, 8, 8).bfloat16()
    network(h)
    fast_on_cpu(network, prepacks=False)
    assert network[0]._kept is None
    network(h)
    assert network[0]._kept is None


def test_a_cast_network_lets_go_of_what_it_kept() -> None:
    conv = frozen(Conv2d(6, 10, 3))
    conv(torch.randn(1, 6, 8, 8).bfloat16())
    assert conv._kept is not None
    assert conv.float()._kept is None


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_whole_network_gives_the_same_with_and_without(
    batch_size: int, dtype: torch.dtype
) -> None:
    network = UNetSection(
        width=32, multipliers=(1, 2), blocks=1, attention_at=(16,), num_classes=3
    ).build(32, 3)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.05)
    network = fast_on_cpu(network.to(dtype).eval().requires_grad_(False))
    z, time = torch.randn(batch_size, 3, 32, 32), torch.full((batch_size,), 500.0)
    condition = of_seeds([1] * batch_size, 3)
    found = network(z, time, condition)
    layers = [each for each in network.modules() if isinstance(each, Conv2d | Linear)]
    used = [each for each in layers if each._kept is not None]
    assert len(used) == len(layers) if dtype == torch.bfloat16 else 4 < len(used) < len(layers)
    fast_on_cpu(network, prepacks=False)
    wanted = network(z, time, condition)
    assert (found - wanted).abs().max() <= 4 * MOST_WRONG[dtype] * wanted.abs().max()


def test_its_memory_is_counted() -> None:
    conv, h = frozen(Conv2d(64, 64, 3)), torch.randn(1, 64, 3, 3).bfloat16()
    found = [memory.peak_of(lambda: conv(h), torch.device("cpu")) for _ in range(2)]
    assert found[0] - found[1] >= conv.weight.nbytes
