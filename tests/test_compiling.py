"""Compiled networks: only where the machine can and where it pays;
names, averages and resuming stay as they are.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_training import COSINE, flat, settings, taught
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import MachineError
from vdiff.machine.machine import Machine
from vdiff.networks.blocks import ResidualBlock, Style
from vdiff.networks.repeated import repeated
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.training.learner import Learner

torch_warns = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
"""While it compiles, of what its own code does."""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


class OneBlock(nn.Module):
    """As little as there is to compile: one kind of block, there and back."""

    def __init__(self) -> None:
        super().__init__()
        style = Style(
            8, groups=1, eps=1e-6, dropout=0.3, scale_shift=True, head_dim=None, padding=1
        )
        self.blocks = nn.ModuleList(ResidualBlock(4, 4, style) for _ in range(2))
        torch.manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.1)

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        z = z.repeat(1, 4, 1, 1)
        for block in self.blocks:
            z = block(z, torch.outer(time / 1000, torch.arange(8.0)), keys)
        return z.mean(1, keepdim=True)


def made(mode: Any) -> Learner:
    student = Denoiser(OneBlock(), COSINE, "v")
    machine = Machine("fp32", "cpu", compile=mode)
    return Learner(
        student, DenoisingObjective("snr_plus_one"), settings(learning_rate=1e-3, ema=0.9), machine
    )


def compiled_parts(network: nn.Module) -> set[bool]:
    return {part._compiled_call_impl is not None for part in repeated(network)}


def test_without_a_compiler_on_is_refused_and_auto_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not Machine("fp32", "cpu", compile="auto").compiles
    with pytest.raises(
        MachineError, match="there is no C\\+\\+ compiler `g\\+\\+`: this machine cannot"
    ) as found:
        Machine("fp32", "cpu", compile="on")
    assert found.value.exit_code == 6


@needs_compiler
@torch_warns
def test_compiled_and_eager_agree_and_only_the_code_differs() -> None:
    """Compiles one kind of block: seconds where it is not cached."""
    eager, fast = made("auto"), made("on")
    assert (compiled_parts(eager._network), compiled_parts(fast._network)) == ({False}, {True})
    torch.testing.assert_close(taught(fast, 2), taught(eager, 2), rtol=1e-5, atol=1e-6)
    wanted, found = flat(eager.state()), flat(fast.state())
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    result = fast.result()  # a copy that is not compiled and has the average
    assert compiled_parts(result.network) == {False}
    for name, weight in result.network.state_dict().items():
        assert torch.equal(weight, fast.state()["average"][name])
