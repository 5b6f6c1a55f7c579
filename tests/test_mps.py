"""The GPU of a Mac, which has no float64.

None is here: the device `meta` takes its place, which computes nothing.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.test_training import flat, learner, pictures, rng_of, taught
from vdiff import randomness
from vdiff.cli.app import run as vdiff
from vdiff.diffusion.condition import NOTHING, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import (
    BetasSection,
    CosineLogsnrSection,
    CosineSection,
    ScheduleSection,
)
from vdiff.errors import MachineError, UsageError
from vdiff.images.images import to_float
from vdiff.machine.machine import Machine, pick_device
from vdiff.machine.precision import resolve_on, resolve_on_mps
from vdiff.networks.unet import UNetSection
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.objectives.objective import Objective
from vdiff.objectives.progressive import ProgressiveObjective
from vdiff.randomness import exact
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw
from vdiff.samplers.sampler import Sampler
from vdiff.training.learner import Learner, RngOf

BATCH = 4
SCHEDULES = {
    "cosine": CosineSection(),
    "cosine_logsnr": CosineLogsnrSection(),
    "betas": BetasSection(),
}
SAMPLERS = {
    "ddim": Ddim(eta=0.5, clip=1.2, clip_noise=1.2),
    "ancestral": Ancestral(mix=0.5, clip=1.2),
}


class Seen(TorchDispatchMode):
    """wide: operations that read or made float64 on the device.   count: of all that ran there."""

    def __init__(self) -> None:
        super().__init__()
        self.wide: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        there = [
            each
            for each in tree_leaves([args, kwargs, out])
            if isinstance(each, Tensor) and each.is_meta
        ]
        self.count += bool(there)
        if any(each.dtype in (torch.float64, torch.complex128) for each in there):
            self.wide.append(str(func))
        return out


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(randomness, "LACK_64_BITS", ("meta",))
    return torch.device("meta")


def denoiser(section: ScheduleSection, device: torch.device) -> Denoiser:
    network = UNetSection(width=4, multipliers=(1, 2), blocks=1, dropout=0.1, num_classes=2).build(
        8, 3
    )
    return Denoiser(network.to(device), section.build(), "v")


def objectives(section: ScheduleSection, device: torch.device) -> Iterator[Objective]:
    teacher = denoiser(section, device)
    teacher.network.eval().requires_grad_(False)
    yield DenoisingObjective("truncated_snr")
    yield DenoisingObjective("min_snr", on_grid=True, stratified=False)
    yield ProgressiveObjective("snr_plus_one", teacher, num_steps=4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_objective_makes_float64_on_a_device_that_has_none(
    schedule: str, device: torch.device
) -> None:
    student = denoiser(SCHEDULES[schedule], device)
    for objective in objectives(SCHEDULES[schedule], device):
        rng = RngOf(0, 1, 7, torch.arange(BATCH), BATCH)(slice(0, BATCH))
        with Seen() as seen:
            x = to_float(torch.zeros(BATCH, 3, 8, 8, dtype=torch.uint8, device=device))
            losses = objective(student, x, rng, of_seeds(range(BATCH), 2).to(device))
            losses.sum().backward()
        assert losses.is_meta
        assert losses.dtype == torch.float32
        assert seen.count > 100
        assert seen.wide == []


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_makes_float64_on_a_device_that_has_none(
    sampler: str, schedule: str, device: torch.device
) -> None:
    found: Sampler = SAMPLERS[sampler]
    model = denoiser(SCHEDULES[schedule], device)
    model.network.eval()
    with (
        Seen() as seen,
        pytest.raises(NotImplementedError, match="meta tensor"),
    ):  # there is no picture to be had
        draw(
            model,
            found,
            range(BATCH),
            (3, 8, 8),
            3,
            condition=of_seeds(range(BATCH), 2),
            device=device,
        )
    assert seen.count > 100
    assert seen.wide == []


def test_numbers_for_mps_are_made_on_the_cpu_and_others_where_they_are_needed() -> None:
    assert exact("mps").type == "cpu"
    assert exact("cpu").type == "cpu"
    assert exact(torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_pictures_of_the_host_go_to_the_device_and_exact_numbers_do_not(
    device: torch.device,
) -> None:
    machine = Machine("fp32", "cpu")
    host = torch.arange(4)
    assert machine.take(host) is host
    machine.device = device
    assert machine.take(host).is_meta
    assert machine.take_exact(host) is host


def test_mps_is_chosen_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device(None).type == "mps"
    assert pick_device("mps").type == "mps"
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert pick_device(None).type == "cpu"


def test_several_processes_do_not_share_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    told = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert pick_device(None).type == "cpu"
    with pytest.raises(MachineError, match="several processes"):
        pick_device("mps")


def test_a_device_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(MachineError, match="there is no MPS device"):
        pick_device("mps")
    with pytest.raises(UsageError) as caught:
        pick_device("tpu")
    assert caught.value.fix == "choose cpu, cuda or mps"
    monkeypatch.chdir(tmp_path)
    assert vdiff(["train", "--recipe", "digits", "--device", "mps"]) == MachineError.exit_code


def test_precision_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 14)
    assert resolve_on_mps("auto")[0] == "fp32"
    assert resolve_on_mps("fp32")[0] == "fp32"
    assert resolve_on_mps("bf16")[0] == "bf16"
    assert resolve_on(torch.device("mps"), "bf16")[0] == "bf16"  # as the Python API asks, too
    with pytest.raises(MachineError, match="fp16 on MPS"):
        resolve_on_mps("fp16")
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 13)
    with pytest.raises(MachineError, match="before macOS 14"):
        resolve_on_mps("bf16")


class _PlainStep(Machine):
    """A machine whose optimizer is as on MPS, where the fused step would neither clip nor skip."""

    has_fused_step = False


def averages(made: Learner) -> dict[str, Tensor]:
    """Adam's averages of the gradient as it was clipped."""
    found = made.state()["optimizer"]
    return {name: tensor.clone() for name, tensor in found.items() if name.startswith("exp_avg.")}


@pytest.mark.parametrize("limit", [1e-3, None])
def test_a_step_that_is_not_fused_clips_as_the_fused_one(limit: float | None) -> None:
    fused = learner(Machine("fp32", "cpu"), clip_norm=limit)
    plain = learner(_PlainStep("fp32", "cpu"), clip_norm=limit)
    for made in (fused, plain):
        taught(made, 1)
    found = averages(plain)
    for name, wanted in averages(fused).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-10)
    if limit is not None:
        norm = torch.cat([each.flatten() for each in found.values()]).norm() / (1 - 0.9)
        assert float(norm) == pytest.approx(limit, rel=1e-3)


def test_a_step_that_is_not_fused_is_left_out_where_the_gradient_is_not_finite() -> None:
    made = learner(_PlainStep("fp32", "cpu"), ema=0.9)
    taught(made, 1)
    before = flat(made.state())
    made.step(torch.full_like(pictures(), math.nan), NOTHING, rng_of(1))
    for name, tensor in flat(made.state()).items():
        assert torch.equal(tensor, before[name]), name


def test_a_step_that_is_not_fused_resumes_bit_for_bit() -> None:
    unbroken, resumed = (learner(_PlainStep("fp32", "cpu"), ema=0.9) for _ in range(2))
    taught(unbroken, 2)
    state = {
        part: {name: each.clone() for name, each in named.items()}
        for part, named in unbroken.state().items()
    }
    resumed.load(state, 2)
    for made in (unbroken, resumed):
        taught(made, 2)
    wanted = flat(unbroken.state())
    for name, tensor in flat(resumed.state()).items():
        assert torch.equal(tensor, wanted[name]), name
