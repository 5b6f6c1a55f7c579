"""Who takes part in benchmarks/gpu.py, and with what:
a plain loop, diffusers, and vdiff as its commands use it.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser
from vdiff.machine.graphed import CudaRecorder, Given, Graphs, Recorder, Replay
from vdiff.machine.machine import Machine
from vdiff.networks.unet import UNetSection
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.objectives.progressive import ProgressiveObjective
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw
from vdiff.training.learner import Learner, RngOf

Work = Callable[[], object]
Make = Callable[[int], Work]
"""From the number of pictures at once to one update, or one drawing."""

STEPS = 4


@dataclass(frozen=True)
class Case:
    """A recipe and its network, on the device."""

    name: str
    recipe: Recipe
    network: Any
    machine: Machine
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, name: str, machine: Machine, tiny: bool) -> "Case":
        """The recipe as it ships, or with as small a network as has two levels and attention."""
        text = recipe_text.shipped()[name].read_text("utf-8")
        recipe = recipe_text.validate(Recipe, recipe_text.parse(text, name))
        section, size, channels = recipe.network, recipe.data.size, recipe.data.channels
        assert isinstance(section, UNetSection)
        if tiny:
            section = section.model_copy(
                update={
                    "width": 8,
                    "blocks": 1,
                    "head_dim": None,
                    "multipliers": section.multipliers[:2],
                    "attention_at": (2,),
                }
            )
            size = 4
        torch.manual_seed(0)
        with machine.device:
            network = section.build(size, channels)
            for weight in network.parameters():
                # zeros are multiplied faster, for a card that is short of power
                if not weight.any():
                    nn.init.normal_(weight, std=0.02)
        return cls(name, recipe, network, machine, (channels, size, size))

    @property
    def device(self) -> torch.device:
        found: torch.device = self.machine.device
        return found

    @property
    def schedule(self) -> Any:
        return self.recipe.diffusion.schedule.build()

    def pictures(self, count: int) -> Tensor:
        return torch.rand(count, *self.shape, device=self.device) * 2 - 1

    def makers(self, what: str) -> dict[str, Make]:
        """What each party does, by name."""
        precision = self.machine.precision
        found: dict[str, Make] = {"plain loop, fp32": partial(plain, self, what)}
        if what != "distilling":
            found |= dict(diffusers_makers(self, what))
        if what == "sampling":
            found[f"vdiff, {precision}"] = lambda count: drawing(self, count, None)
            found[f"vdiff, {precision}, CUDA graphs"] = lambda count: drawing(
                self, count, graphs(self.device)
            )
        else:
            found[f"vdiff, {precision}"] = partial(update, self, what)
        return found


def plain(case: Case, what: str, count: int) -> Work:
    """Eager float32, as people write it."""
    student, teacher = (
        copy.deepcopy(case.network),
        copy.deepcopy(case.network).eval().requires_grad_(False),
    )
    alphas, sigmas = case.schedule.alpha_sigma(torch.arange(1, 1025, dtype=torch.float64) / 1024)
    scales = alphas.float().to(case.device), sigmas.float().to(case.device)

    def at(index: Tensor) -> tuple[Tensor, Tensor]:
        return scales[0][index][:, None, None, None], scales[1][index][:, None, None, None]

    def predicted(net: nn.Module, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        keys = torch.randint(2**62, (len(z),), device=z.device) if net.training else None
        (alpha, sigma), v = at(index), net(z, index.float(), NOTHING, keys)
        return alpha * z - sigma * v, sigma * z + alpha * v

    @torch.no_grad()
    def sample() -> None:
        z = torch.randn(count, *case.shape, device=case.device)
        for place in range(STEPS, 0, -1):
            x, eps = predicted(
                teacher, z, torch.full((count,), place * 1024 // STEPS - 1, device=case.device)
            )
            earlier = torch.full(
                (count,), max((place - 1) * 1024 // STEPS - 1, 0), device=case.device
            )
            alpha, sigma = at(earlier)
            z = alpha * x + sigma * eps if place > 1 else x
        z.cpu()

    if what == "sampling":
        return sample
    average = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    adam = torch.optim.Adam(student.parameters(), lr=2e-4)
    student.train(what == "training")

    def learn() -> None:
        x, index = case.pictures(count), torch.randint(8, 1024, (count,), device=case.device)
        alpha, sigma = at(index)
        z = alpha * x + sigma * torch.randn_like(x)
        if what == "distilling":
            with torch.no_grad():
                there, eps = predicted(teacher, z, index)
                alpha_s, sigma_s = at(index - 4)
                x = (there + predicted(teacher, alpha_s * there + sigma_s * eps, index - 4)[0]) / 2
        weight = (alpha / sigma).flatten().square().clamp(1)
        loss = (((predicted(student, z, index)[0] - x) ** 2).mean((1, 2, 3)) * weight).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adam.step()
        loss.item()
        for name, weight in student.named_parameters():
            average[name].mul_(0.999).add_(weight.detach(), alpha=0.001)

    return learn


def diffusers_makers(case: Case, what: str) -> Iterator[tuple[str, Make]]:
    """diffusers, if it is installed, in float32 and in bf16."""
    try:
        import diffusers
    except ImportError:
        return
    for precision in ("fp32", "bf16"):
        yield (
            f"diffusers {diffusers.__version__}, {precision}",
            partial(peer, case, what, precision),
        )


def peer(case: Case, what: str, precision: str, count: int) -> Work:
    """diffusers as its training example and its pipeline use it."""
    import diffusers
    from diffusers.training_utils import EMAModel

    model = diffusers.UNet2DModel.from_config(case.network.config).to(case.device)
    model.load_state_dict(case.network.state_dict())
    noise = diffusers.DDPMScheduler(
        1024, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )

    def cast() -> Any:
        return torch.autocast(case.device.type, torch.bfloat16, enabled=precision == "bf16")

    if what == "sampling":
        scheduler = diffusers.DDIMScheduler.from_config(noise.config)
        pipeline = diffusers.DDIMPipeline(model.eval().requires_grad_(False), scheduler)
        pipeline.set_progress_bar_config(disable=True)

        def sample() -> None:
            with cast():
                pipeline(batch_size=count, num_inference_steps=STEPS, output_type="np")

        return sample
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
    adam = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )

    def learn() -> None:
        x = case.pictures(count)
        eps, index = torch.randn_like(x), torch.randint(0, 1024, (count,), device=case.device)
        z, wanted = noise.add_noise(x, eps, index), noise.get_velocity(x, eps, index)
        with cast():
            loss = nn.functional.mse_loss(model(z, index).sample.float(), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        average.step(model.parameters())
        loss.detach().item()

    return learn


def update(case: Case, what: str, count: int) -> Work:
    """One update of `vdiff train` or `vdiff distill`, but for reading the pictures."""
    section: Any = case.recipe.train if what == "training" else case.recipe.distill
    settings = section.model_copy(update={"batch_size": count, "micro_batch": count})
    objective: Any = DenoisingObjective(section.weighting)
    if what == "distilling":
        objective = ProgressiveObjective(section.weighting, frozen(case), 64)
    student = Denoiser(copy.deepcopy(case.network), case.schedule, case.recipe.diffusion.predicts)
    learner = Learner(student, objective, settings, case.machine)
    places = torch.arange(count, device=case.device)

    def once() -> None:
        learner.step(case.pictures(count), NOTHING, RngOf(0, 0, learner.update, places, count))
        if learner.micro_batch != count:
            raise torch.OutOfMemoryError(
                "out of memory: it went on with half as many pictures at once"
            )

    return once


def drawing(case: Case, count: int, graphs: Graphs | None) -> Work:
    """One batch of `vdiff sample`."""
    model, seeds = frozen(case), range(count)
    return lambda: draw(
        model, Ddim(), seeds, case.shape, STEPS, batch_size=count, device=case.device, graphs=graphs
    )


def frozen(case: Case) -> Denoiser:
    network = case.machine.freeze(copy.deepcopy(case.network))
    return Denoiser(network, case.schedule, case.recipe.diffusion.predicts)


def graphs(device: torch.device) -> Graphs:
    """CUDA graphs from the first call on, which end the work where they do not work."""

    def refuse(reason: str) -> None:
        raise RuntimeError(reason)

    recorder: Recorder = CudaRecorder(device) if device.type == "cuda" else Caller()
    return Graphs(recorder, refuse)


class Caller:
    """Stands in for a recorder on a CPU: what is replayed is a call."""

    def record(self, call: Callable[..., Tensor], given: Given) -> Replay:
        return lambda fresh: call(*fresh)
