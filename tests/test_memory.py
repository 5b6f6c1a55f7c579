"""Memory that does not suffice: half as many pictures at once, said once; then it is an error.

And who keeps it.
"""

import ctypes
import platform

import pytest
import torch
from torch import Tensor

from tests.test_training import COSINE, flat, learner, network, pictures, rng_of, settings, taught
from vdiff.cli.failures import explain
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.machine import memory
from vdiff.machine.machine import Machine
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.randomness import Randomness
from vdiff.training.learner import Learner


class Cramped(DenoisingObjective):
    """Takes so many pictures at once, and in the midst of an update runs out of memory for more."""

    def __init__(self, most: int, error: RuntimeError) -> None:
        super().__init__("snr_plus_one")
        self.most, self.error = most, error

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        if len(x) > self.most:
            raise self.error
        return super().__call__(student, x, rng, condition)


def cramped(most: int, said: list[str], error: RuntimeError) -> Learner:
    made = settings(learning_rate=1e-3)
    return Learner(
        Denoiser(network(), COSINE, "v"),
        Cramped(most, error),
        made,
        Machine("fp32", "cpu"),
        said.append,
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_once_and_the_update_is_the_same(
    error: RuntimeError,
) -> None:
    said: list[str] = []
    made, wanted = cramped(3, said, error), learner(Machine("fp32", "cpu"), learning_rate=1e-3)
    torch.testing.assert_close(taught(made, 2), taught(wanted, 2), rtol=1e-5, atol=1e-6)
    found, expected = flat(made.state()), flat(wanted.state())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
    assert len(said) == 1
    assert "3 pictures at once" in said[0]


def test_out_of_memory_again_ends_the_run_with_advice() -> None:
    said: list[str] = []
    made = cramped(2, said, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError) as found:
        made.step(pictures(), NOTHING, rng_of())
    assert len(said) == 1
    failure = explain(found.value)
    assert failure.exit_code == 6
    assert "micro_batch" in failure.fix


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError, match="something else"):
        cramped(3, said, RuntimeError("something else")).step(pictures(), NOTHING, rng_of())
    assert said == []


class MallocInfo(ctypes.Structure):
    """What the GNU C library tells of its memory:
    bytes it has in all, and bytes of pieces with memory of their own.
    """

    _fields_ = (
        ("common", ctypes.c_size_t),
        ("other", ctypes.c_size_t * 3),
        ("own", ctypes.c_size_t * 6),
    )


def has_memory_of_its_own() -> bool:
    """Whether a tensor has that is larger than what is free already.

    It is of 16 MiB: a thread whose memory was once refused gets it from heaps of 64 MiB from then
    on.
    """
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = MallocInfo
    before, held = ask(), []
    while True:
        held.append(torch.empty(2**24, dtype=torch.uint8))
        now = ask()
        if now.own[0] > before.own[0] or now.common > before.common:
            return bool(now.own[0] > before.own[0])


on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told"
)


@on_glibc
def test_a_tensor_has_memory_of_its_own_only_where_memory_is_to_be_spared() -> None:
    for is_sparing in (True, False):
        learner(Machine("fp32", "cpu"), checkpoint_activations=is_sparing)
        assert has_memory_of_its_own() == is_sparing
    memory.set_malloc_policy(sparing=True)
    Machine("fp32", "cpu")  # all that who draws or evaluates makes
    assert not has_memory_of_its_own()


@on_glibc
def test_memory_is_spared_from_when_it_lacks() -> None:
    made = cramped(3, [], torch.OutOfMemoryError("CUDA out of memory"))
    assert not has_memory_of_its_own()
    made.step(pictures(), NOTHING, rng_of())
    assert has_memory_of_its_own()
    found = Learner(
        Denoiser(network(), COSINE, "v"), DenoisingObjective("snr_plus_one"), settings(), Full()
    )
    assert not has_memory_of_its_own()
    found.choose_micro_batch(pictures(), NOTHING, rng_of())
    assert has_memory_of_its_own()


class Full(Machine):
    """A CPU without memory."""

    def __init__(self) -> None:
        super().__init__("fp32", "cpu")

    def available_bytes(self) -> int | None:
        return 0
