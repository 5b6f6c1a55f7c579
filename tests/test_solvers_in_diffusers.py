"""diffusers goes the same way with the same network, where its conventions are vdiff's."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toys import SCHEDULES, Curved, noise
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import Schedule
from vdiff.randomness import Randomness
from vdiff.samplers import SAMPLERS
from vdiff.samplers.heun import Heun
from vdiff.samplers.sampler import Sampler

diffusers = pytest.importorskip("diffusers")

TABLES = {"linear": 1000, "squaredcos_cap_v2": 1024}
NUM_STEPS = 8


class TimeFree(Curved):
    """Between the times of its table, diffusers tells another time than vdiff."""

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        return super().forward(z, torch.zeros_like(time))


def theirs(scheduler: Any, network: nn.Module, z: Tensor) -> Tensor:
    """The way of a pipeline, from z as the scheduler holds it."""
    for time in scheduler.timesteps:
        told = torch.full((len(z),), float(time), dtype=torch.float64)
        scaled = scheduler.scale_model_input(z, time)
        z = scheduler.step(network(scaled, told), time, z).prev_sample
    return z


def scheduler_of(name: str, table: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(diffusers, name)(
            num_train_timesteps=TABLES[table],
            beta_schedule=table,
            beta_start=1e-4,
            beta_end=0.02,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            **options,
        )
        found.set_timesteps(NUM_STEPS)
    return found


def ours(sampler: Sampler, table: str, network: nn.Module, z: Tensor) -> Tensor:
    denoiser = Denoiser(network, SCHEDULES[table], "v")
    return sampler(denoiser, z, NUM_STEPS, Randomness.for_images(torch.arange(len(z))))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("dpmpp", "DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
        ("unipc", "UniPCMultistepScheduler", {"final_sigmas_type": "zero"}),
    ],
)
def test_diffusers_draws_the_same_on_the_uniform_grid(
    kind: str, name: str, options: dict[str, Any], table: str
) -> None:
    z = noise(4, 1, 4, 4)
    wanted = theirs(scheduler_of(name, table, **options), Curved(), z)
    found = ours(SAMPLERS.section(kind)(grid="uniform").build(), table, Curved(), z)
    # diffusers keeps sigma in float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


class Theirs(Heun):
    """Heun at the noise levels of a scheduler."""

    def __init__(self, levels: list[float]) -> None:
        super().__init__("karras")
        self.levels = levels

    def times(
        self, num_steps: int, schedule: Schedule, model_steps: int | None = None
    ) -> list[float]:
        return [*(schedule.inverse(1 / level) for level in self.levels if level > 0), 0.0]


@pytest.mark.parametrize("table", TABLES)
def test_diffusers_takes_the_same_steps_of_heun_at_its_own_levels(table: str) -> None:
    z = noise(4, 1, 4, 4)
    scheduler = scheduler_of("HeunDiscreteScheduler", table, use_karras_sigmas=True)
    levels = list(dict.fromkeys(scheduler.sigmas.tolist()))
    assert len(levels) == NUM_STEPS + 1
    # it holds z / alpha; its pipelines begin with sigma / alpha times the noise, 2e-5 off
    wanted = theirs(scheduler, TimeFree(), z * (levels[0] ** 2 + 1) ** 0.5)
    found = ours(Theirs(levels), table, TimeFree(), z)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
