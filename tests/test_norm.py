"""Group normalization: torch's own function and gradients, whatever the layout,
the precision and the time.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vdiff.networks import gpu
from vdiff.networks.blocks import Upsample
from vdiff.networks.cpu.norm import GroupNorm, scaled_norm
from vdiff.networks.fast import fast_on

CPU_DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# beside the largest value; torch's own norm in float32 and below misses by up to 3e-6, 0.007 and
# 0.001 here
MOST_WRONG = {
    torch.float64: 1e-14,
    torch.float32: 3e-6,
    torch.bfloat16: 0.01,
    torch.float16: 0.0015,
}


def built(channels: int, groups: int, dtype: torch.dtype) -> GroupNorm:
    norm = GroupNorm(groups, channels, 1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(torch.promote_types(dtype, torch.float32))


def computed(norm: GroupNorm, h: Tensor, time: Tensor | None) -> Tensor:
    return norm(h) if time is None else scaled_norm(norm, h, *time.chunk(2, dim=1))


def expected(norm: GroupNorm, h: Tensor, time: Tensor | None) -> Tensor:
    """What it should be, in float64, with torch's own group norm."""
    normed = F.group_norm(h, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    if time is None:
        return normed
    scale, shift = time[:, :, None, None].chunk(2, dim=1)
    return shift + (1 + scale) * normed


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("is_timed", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_and_its_gradients_are_those_of_torch(
    dtype: torch.dtype, memory_format: torch.memory_format, is_timed: bool, batch: int
) -> None:
    torch.manual_seed(0)
    norm = built(12, 4, dtype)
    h = (
        (torch.randn(batch, 12, 33, 35) * 2 + 1)
        .to(dtype)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
    )
    time = torch.randn(batch, 24).to(dtype).requires_grad_() if is_timed else None
    inputs = [h, norm.weight, norm.bias, *([time] if time is not None else [])]
    weight = torch.randn(batch, 12, 33, 35).to(dtype)

    out = computed(norm, h, time)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=memory_format)
    wide = [each.detach().double().requires_grad_() for each in inputs]
    reference = GroupNorm(4, 12, 1e-5).double()
    reference.weight.data, reference.bias.data = wide[1].data, wide[2].data
    correct = expected(reference, wide[0], wide[3] if is_timed else None)
    assert_near(out, correct, dtype)
    grads = torch.autograd.grad((out * weight).sum(), inputs)
    correct_inputs = [wide[0], reference.weight, reference.bias, *wide[3:]]
    for found, right in zip(
        grads, torch.autograd.grad((correct * weight.double()).sum(), correct_inputs), strict=True
    ):
        assert_near(found, right, dtype)


def assert_near(found: Tensor, correct: Tensor, dtype: torch.dtype) -> None:
    assert (found.double() - correct).abs().max() <= MOST_WRONG[dtype] * correct.abs().max()


def test_products_that_half_precision_cannot_hold_do_not_spoil_the_gradient() -> None:
    norm = built(8, 2, torch.float16)
    h = torch.full((1, 8, 32, 32), 300.0).half().contiguous(memory_format=torch.channels_last)
    h[..., ::2] = -300
    grad = torch.full_like(h, 1000.0)
    (found,) = torch.autograd.grad(norm(h.requires_grad_()), h, grad)
    assert found.isfinite().all()


@pytest.mark.parametrize("is_timed", [False, True])
@pytest.mark.parametrize("learns", [True, False])
def test_a_gradient_can_be_differentiated_as_that_of_torch(is_timed: bool, learns: bool) -> None:
    """As a penalty of the gradient's length asks for it."""
    torch.manual_seed(0)
    norm = built(8, 2, torch.float64).double().requires_grad_(learns)
    weight = torch.randn(2, 8, 32, 32).double()
    time = torch.randn(2, 16).double() if is_timed else None
    found = []
    for way in (computed, expected):
        h = weight.flip(0).contiguous(memory_format=torch.channels_last).requires_grad_()
        (once,) = torch.autograd.grad(
            (way(norm, h, time).sin() * weight).sum(), h, create_graph=True
        )
        inputs = [h, norm.weight, norm.bias] if learns else [h]
        found.append([once, *torch.autograd.grad(once.square().sum(), inputs)])
    for mine, torchs in zip(*found, strict=True):
        assert_near(mine, torchs, torch.float32)


@pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch knows no CUDA devices, not even imagined ones"
)
def test_autocast_of_a_gpu_leaves_norms_and_doubling_in_its_dtype(
    request: pytest.FixtureRequest,
) -> None:
    torch.set_autocast_enabled("cuda", True)  # for float16; torch.autocast wants to see the GPU
    request.addfinalizer(lambda: torch.set_autocast_enabled("cuda", False))
    with FakeTensorMode(), torch.device("cuda"):
        network = fast_on(nn.ModuleList([nn.GroupNorm(2, 4), Upsample(4)]), "cuda")
        assert [type(each) for each in network] == [gpu.GroupNorm, gpu.Upsample]
        h = torch.empty(2, 4, 8, 8, dtype=torch.float16)
        assert F.group_norm(h, 2).dtype == F.interpolate(h, scale_factor=2.0).dtype == torch.float32
        doubled = []
        network[1].conv.register_forward_pre_hook(
            lambda conv, given: doubled.append(given[0].dtype)
        )
        assert network[0](h).dtype == network[1](h).dtype == torch.float16
        assert doubled == [torch.float16]
