"""Compiled networks: only where the machine can and where it pays; names, averages and resuming stay as they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_training import COSINE, flat, network, pictures, rng_of, settings, taught
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import MachineError
from vdiff.networks.blocks import ResidualBlock, Style
from vdiff.networks.repeated import repeated
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.training import compiling
from vdiff.training.learner import Learner
from vdiff.training.machine import Machine

torch_warns = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
"""While it compiles, of what its own code does."""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


class OneBlock(nn.Module):
    """As little as there is to compile: one kind of block, there and back."""

    def __init__(self) -> None:
        super().__init__()
        style = Style(8, groups=1, eps=1e-6, dropout=0.3, scale_shift=True, head_dim=None, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(4, 4, style) for _ in range(2))
        torch.manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.1)

    def forward(self, z: Tensor, time: Tensor, label: Tensor | None, keys: Tensor | None) -> Tensor:
        z = z.repeat(1, 4, 1, 1)
        for block in self.blocks:
            z = block(z, torch.outer(time / 1000, torch.arange(8.0)), keys)
        return z.mean(1, keepdim=True)


def made(mode: Any, said: list[str], inner: nn.Module | None = None, **more: Any) -> Learner:
    given = settings(learning_rate=1e-3, ema=0.9, **more)
    student = Denoiser(inner or network(0.3), COSINE, "v")
    machine = Machine("fp32", "cpu", compile=mode)
    return Learner(student, DenoisingObjective("snr_plus_one"), given, machine, said.append)


def settled(mode: Any, said: list[str], inner: nn.Module | None = None, **more: Any) -> Learner:
    found = made(mode, said, inner, **more)
    found.settle(pictures(), None, rng_of())
    return found


def compiled_parts(found: Learner) -> set[bool]:
    return {part._compiled_call_impl is not None for part in repeated(found._network)}


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder that programs are looked for in."""
    monkeypatch.delenv("CXX", raising=False)  # torch reads it once for all
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def hollow_compiler(no_compiler: Path) -> None:
    """There, but to use it would fail."""
    program = no_compiler / "g++"
    program.write_text("#!/bin/false\n")
    program.chmod(0o755)


def test_without_a_compiler_auto_is_off_and_on_is_refused(no_compiler: Path) -> None:
    said: list[str] = []
    assert settled("auto", said).is_compiled is False
    assert said[-1] == "compiled: no; there is no C++ compiler `g++`"
    with pytest.raises(MachineError, match="this machine cannot compile") as found:
        Machine("fp32", "cpu", compile="on")
    assert found.value.exit_code == 6
    assert len(str(found.value).splitlines()) == 3


def test_a_short_training_is_not_compiled_and_nothing_is_tried(hollow_compiler: None) -> None:
    said: list[str] = []
    found = settled("auto", said)
    assert found.is_compiled is False
    assert "too little work" in said[-1]
    assert compiled_parts(found) == {False}


def test_deciding_changes_nothing_that_is_learned(hollow_compiler: None) -> None:
    decided, plain = settled("auto", []), made("off", [])
    taught(decided, 2)
    taught(plain, 2)
    wanted, found = flat(plain.state()), flat(decided.state())
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_a_resumed_training_is_compiled_if_it_was(hollow_compiler: None) -> None:
    for was in (True, False):
        saved = made("off", []).state()
        saved["course"]["compiled"] = torch.tensor(was)
        resumed, said = made("auto", []), []
        resumed.load(saved, 1)
        resumed.settle(pictures(), None, rng_of())
        assert (resumed.is_compiled, compiled_parts(resumed), said) == (was, {was}, [])
        asked = made("off", [])
        asked.load(saved, 1)
        asked.settle(pictures(), None, rng_of())
        assert asked.is_compiled is False


@needs_compiler
@torch_warns
def test_compiled_and_eager_agree_and_only_the_code_differs() -> None:
    """Compiles one kind of block: seconds where it is not cached."""
    said: list[str] = []
    eager, fast = settled("off", said, OneBlock()), settled("on", said, OneBlock())
    assert said[-1] == "compiled: yes; the recipe says so"
    assert (compiled_parts(eager), compiled_parts(fast)) == ({False}, {True})
    torch.testing.assert_close(taught(fast, 2), taught(eager, 2), rtol=1e-5, atol=1e-6)
    wanted, found = flat(eager.state()), flat(fast.state())
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    result = fast.result()  # a copy that is not compiled and has the average
    assert {part._compiled_call_impl for part in repeated(result.network)} == {None}
    for name, weight in result.network.state_dict().items():
        assert torch.equal(weight, fast.state()["average"][name])
    assert bool(fast.state()["course"]["compiled"])


@needs_compiler
@torch_warns
def test_auto_compiles_what_pays() -> None:
    """Here compiling is tried on one kind of block, whatever it takes, and the training is said to be very long."""
    said: list[str] = []
    found = settled("auto", said, OneBlock(), updates=10**9)
    assert "compiling takes about" in said[-1]
    seconds = [float(word) for word in said[-1].split() if word.replace(".", "").isdigit()]
    assert found.is_compiled == (seconds[1] > seconds[0])
    assert compiling.MOST_SAVED < 1


def test_a_compiler_that_does_not_work_leaves_the_training_eager(tmp_path: Path) -> None:
    """In a process of its own: torch looks for its compiler once."""
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/false\n")
    broken.chmod(0o755)
    program = (
        "from tests.test_compiling import OneBlock, settled, taught\n"
        "said = []\n"
        "found = settled('auto', said, OneBlock(), updates=10**9)\n"
        "taught(found, 1)\n"
        "assert found.is_compiled is False, said\n"
        "print(said[-1])\n"
    )
    environment = {**os.environ, "CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert "compiled: no; it was tried and failed" in said.stdout
