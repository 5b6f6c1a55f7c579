"""Group normalization: torch's own function and gradients, whatever the layout, the precision and the time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vdiff.networks.doubling import doubled
from vdiff.networks.norm import GroupNorm

CPU_DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# beside the largest value; torch's own norm in float32 and below misses by up to 3e-6, 0.007 and 0.001 here
MOST_WRONG = {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 0.01, torch.float16: 0.0015}


def built(channels: int, groups: int, dtype: torch.dtype) -> GroupNorm:
    norm = GroupNorm(groups, channels, 1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(torch.promote_types(dtype, torch.float32))


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
    h = (torch.randn(batch, 12, 33, 35) * 2 + 1).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    time = torch.randn(batch, 24).to(dtype).requires_grad_() if is_timed else None
    inputs = [h, norm.weight, norm.bias, *([time] if time is not None else [])]
    weight = torch.randn(batch, 12, 33, 35).to(dtype)

    out = norm(h, time)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=memory_format)
    wide = [each.detach().double().requires_grad_() for each in inputs]
    reference = GroupNorm(4, 12, 1e-5).double()
    reference.weight.data, reference.bias.data = wide[1].data, wide[2].data
    correct = expected(reference, wide[0], wide[3] if is_timed else None)
    assert_near(out, correct, dtype)
    grads = torch.autograd.grad((out * weight).sum(), inputs)
    correct_inputs = [wide[0], reference.weight, reference.bias, *wide[3:]]
    for found, right in zip(grads, torch.autograd.grad((correct * weight.double()).sum(), correct_inputs), strict=True):
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


def test_what_is_differentiated_twice_is_refused() -> None:
    h = torch.randn(1, 8, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    (once,) = torch.autograd.grad(built(8, 2, torch.float32)(h).square().sum(), h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no CUDA devices, not even imagined ones")
def test_autocast_of_a_gpu_leaves_norms_and_doubling_in_its_dtype(request: pytest.FixtureRequest) -> None:
    torch.set_autocast_enabled("cuda", True)  # for float16; torch.autocast wants to see the GPU
    request.addfinalizer(lambda: torch.set_autocast_enabled("cuda", False))
    with FakeTensorMode():
        weight = torch.empty(4, device="cuda")
        norm = GroupNorm(2, 4)
        norm.weight = norm.bias = nn.Parameter(weight)
        h, time = (torch.empty(2, *rest, device="cuda", dtype=torch.float16) for rest in ((4, 8, 8), (8,)))
        assert F.group_norm(h, 2).dtype == F.interpolate(h, scale_factor=2.0).dtype == torch.float32
        assert norm(h).dtype == norm(h, time).dtype == doubled(h).dtype == torch.float16
