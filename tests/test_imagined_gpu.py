"""A GPU that is only imagined: tensors without numbers tell what runs where,
and in which precision.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdiff.diffusion.condition import of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.images.images import to_float
from vdiff.machine.graphed import _HostTraffic
from vdiff.networks.fast import fast_on
from vdiff.objectives.progressive import ProgressiveObjective
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.training.learner import RngOf

BATCH = 4
MULTIPLY_OR_NORM = (
    "convolution",
    "addmm",
    "native_group_norm",
    "upsample_nearest2d",
)  # a real GPU chooses attention's

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch knows no CUDA devices, not even imagined ones"
)


class SeenOperations(TorchDispatchMode):
    """computed: dtypes of what multiplies or norms.   cast: the weights that were."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[tuple[str, torch.dtype]] = []
        self.cast: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = (
            func.overloadpacket.__name__,
            [each for each in tree_leaves(args) if isinstance(each, Tensor)],
        )
        if name in MULTIPLY_OR_NORM:
            self.computed += [(name, each.dtype) for each in given]
        if name == "_to_copy":
            self.cast += [each for each in given if isinstance(each, nn.Parameter)]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """Tensors are on a GPU, and networks compute in bfloat16, as `Machine.autocast` has it;
    it wants to see the GPU.
    """
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()  # else nothing is kept
    try:
        with FakeTensorMode(), torch.device("cuda"):
            yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)


def network(recipe: Recipe, dtype: torch.dtype) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # imagined weights cannot be cast in place
    try:
        return fast_on(recipe.network.build(recipe.data.size, 3), "cuda")
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", recipe_text.shipped())
def test_a_stage_waits_for_no_host_multiplies_in_bfloat16_and_casts_each_weight_of_the_student_once(
    name: str,
) -> None:
    recipe = recipe_text.validate(Recipe, recipe_text.find(name))
    schedule, size = recipe.diffusion.schedule.build(), recipe.data.size
    with gpu():
        student = Denoiser(network(recipe, torch.float32).train(), schedule, "v")
        teacher = Denoiser(
            network(recipe, torch.bfloat16).eval().requires_grad_(False), schedule, "v"
        )
        objective = ProgressiveObjective("truncated_snr", teacher, num_steps=4)
        x = to_float(torch.zeros(BATCH, 3, size, size, dtype=torch.uint8))
        condition = of_seeds([0] * BATCH, recipe.network.told_classes)
        rng = RngOf(0, 1, 7, torch.arange(BATCH), BATCH)(slice(0, BATCH))
        with _HostTraffic("cuda") as traffic, SeenOperations() as seen:
            losses = objective(student, x, rng, condition)
    assert losses.dtype == torch.float32
    assert not traffic.found
    assert set(seen.computed) == {(kind, torch.bfloat16) for kind in MULTIPLY_OR_NORM}
    cast, learned = (
        [id(each) for each in weights] for weights in (seen.cast, student.network.parameters())
    )
    assert len(set(cast)) == len(cast)
    assert set(cast) <= set(learned)
