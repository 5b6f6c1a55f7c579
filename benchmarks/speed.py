"""How fast are training, distilling and sampling, against a plain loop and against diffusers? All
in one run, in turn.

    # pictures per second, U-Net of 7.3 M parameters
    GOMP_SPINCOUNT=1000 python benchmarks/speed.py [--rounds 7]
    # an update over its bare forward and backward
    GOMP_SPINCOUNT=1000 python benchmarks/speed.py --overhead
    # where other work runs: one thread, seconds of CPU
    python benchmarks/speed.py --busy

The plain loop is eager float32, with torch's Adam and an average parameter by parameter, as
diffusion_distiller works; it calls the very same network, with the same fast layers, and in a
second row that of diffusers with the same weights. diffusers is used as its unconditional training
example uses it: UNet2DModel of the same configuration and weights, EMAModel, DDPMScheduler, AdamW;
DDIMPipeline draws. Each of the three has a process of its own, as vdiff arranges the memory of its
process; every round runs each of their works once, one at a time. The table has medians of the
rounds, and the fastest and slowest. The variable keeps torch's threads from waiting busily, which
on a machine with other work costs far more than it gains. CPU only.
"""

import argparse
import contextlib
import copy
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.machine.machine import Machine
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.unet import UNet, UNetSection
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.objectives.progressive import ProgressiveObjective
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw
from vdiff.training.learner import Learner, RngOf
from vdiff.training.settings import FitSection

Work = Callable[[], object]
Clock = Callable[[], float]
Timed = Callable[[], float]
Arm = tuple[str, str]
Made = list[tuple[str, dict[str, Work]]]
SIZE, BATCH, STEPS = 32, 16, 4
SECTION = UNetSection(width=64, multipliers=(1, 2, 2), blocks=2, attention_at=(16, 8))
SCHEDULE = DiffusionSection().schedule.build()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.busy else time.perf_counter
    torch.set_num_threads(1 if options.busy else torch.get_num_threads())
    precision = Machine("auto", "cpu").precision
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, auto = {precision}, "
        f"load at the start {load}\n"
    )
    if options.overhead:
        return show_overhead(options.rounds, clock)
    arms: dict[Arm, Timed] = {}
    with contextlib.ExitStack() as processes:
        for party in PARTIES:
            arms |= processes.enter_context(started(party, options.busy))
        arms["peak", "bf16 matrix product"] = partial(timed, matrix_product(), clock)
        show(in_turn(arms, options.rounds))
    return None


@contextlib.contextmanager
def started(party: str, busy: bool) -> Iterator[dict[Arm, Timed]]:
    """The works of a party, each to be done and timed in its process."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(party, theirs, busy), daemon=True)
    process.start()
    theirs.close()

    def ask(arm: Arm) -> float:
        ours.send(arm)
        seconds: float = ours.recv()
        return seconds

    yield {arm: partial(ask, arm) for arm in ours.recv()}
    ours.close()
    process.join()


def serve(party: str, asked: Connection, busy: bool) -> None:
    """The life of a party's process."""
    torch.set_num_threads(1 if busy else torch.get_num_threads())
    network = trained_looking(fast_on_cpu(SECTION.build(SIZE, 3)))
    works = {
        (what, who): work for who, made in PARTIES[party](network) for what, work in made.items()
    }
    asked.send(list(works))
    with contextlib.suppress(EOFError):  # the parent's end
        while True:
            asked.send(timed(works[asked.recv()], time.process_time if busy else time.perf_counter))


def timed(work: Work, clock: Clock) -> float:
    """Seconds that it takes."""
    begun = clock()
    work()
    return clock() - begun


def in_turn(arms: dict[Any, Timed], rounds: int) -> dict[Any, list[float]]:
    """Seconds of every round of each, after one run to warm up."""
    for run in arms.values():
        run()
    found: dict[Any, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            found[name].append(run())
    return found


def show(seconds: dict[Arm, list[float]]) -> None:
    peak = 2 * 2048**3 * 4 / statistics.median(seconds.pop(("peak", "bf16 matrix product"))) / 1e9
    print(f"bf16 matrix products of 2048 x 2048 in this run: {peak:.0f} GFLOP/s\n")
    print(
        "| what | who | pictures/s: median (slowest - fastest) | against the plain loop |\n"
        "|---|---|---|---|"
    )
    for (what, who), times in sorted(
        seconds.items(), key=lambda each: ["training", "stage", "sampling"].index(each[0][0])
    ):
        rates = [BATCH / each for each in (statistics.median(times), max(times), min(times))]
        factor = statistics.median(seconds[what, "plain loop, fp32"]) / statistics.median(times)
        print(
            f"| {what} | {who} | {rates[0]:.1f} ({rates[1]:.1f} - {rates[2]:.1f}) | {factor:.2f} |"
        )


def trained_looking(network: UNet) -> UNet:
    """The network with no weight left zero."""
    torch.manual_seed(0)
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return network


def pictures(size: int = SIZE, channels: int = 3, batch: int = BATCH) -> Tensor:
    return torch.rand(batch, channels, size, size) * 2 - 1


def plain(network: nn.Module, who: str = "plain loop, fp32") -> Made:
    """Eager float32, as people write it."""
    student, teacher = copy.deepcopy(network), copy.deepcopy(network).eval()
    average = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    adam = torch.optim.Adam(student.parameters(), lr=2e-4)
    alphas, sigmas = SCHEDULE.alpha_sigma(torch.arange(1, 1025, dtype=torch.float64) / 1024)
    scales = alphas.float(), sigmas.float()

    def at(index: Tensor) -> tuple[Tensor, Tensor]:
        return scales[0][index][:, None, None, None], scales[1][index][:, None, None, None]

    def predicted(net: nn.Module, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), v = at(index), net(z, index.float())
        return alpha * z - sigma * v, sigma * z + alpha * v

    def learn(with_teacher: bool) -> None:
        x, index = pictures(), torch.randint(8, 1024, (BATCH,))
        alpha, sigma = at(index)
        z = alpha * x + sigma * torch.randn_like(x)
        if with_teacher:
            with torch.no_grad():
                there, eps = predicted(teacher, z, index)
                alpha_s, sigma_s = at(index - 4)
                x = (there + predicted(teacher, alpha_s * there + sigma_s * eps, index - 4)[0]) / 2
        loss = ((predicted(student, z, index)[0] - x) ** 2).mean((1, 2, 3)) * (
            alpha / sigma
        ).flatten().square().clamp(1)
        adam.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adam.step()
        loss.mean().item()
        for name, weight in student.named_parameters():
            average[name].mul_(0.999).add_(weight.detach(), alpha=0.001)

    @torch.no_grad()
    def sample() -> None:
        z = torch.randn(BATCH, 3, SIZE, SIZE)
        for place in range(STEPS, 0, -1):
            x, eps = predicted(teacher, z, torch.full((BATCH,), place * 256 - 1))
            alpha, sigma = (
                at(torch.full((BATCH,), max(place - 1, 0) * 256 - 1)) if place > 1 else (1.0, 0.0)
            )
            z = alpha * x + sigma * eps

    return [
        (who, {"training": lambda: learn(False), "stage": lambda: learn(True), "sampling": sample})
    ]


def peers(network: UNet) -> Made:
    """diffusers as its training example and its pipeline use it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import diffusers
            from diffusers.training_utils import EMAModel
    except ImportError:
        return []
    made: Made = []
    for precision in ("fp32", "bf16"):
        model = diffusers.UNet2DModel.from_config(network.config)
        model.load_state_dict(network.state_dict())
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
        noise = diffusers.DDPMScheduler(
            1024, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
        )
        adam = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        pipeline = diffusers.DDIMPipeline(frozen, diffusers.DDIMScheduler.from_config(noise.config))
        pipeline.set_progress_bar_config(disable=True)

        def cast(precision: str = precision) -> Any:
            return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

        def learn(
            model: Any = model,
            average: Any = average,
            noise: Any = noise,
            adam: Any = adam,
            cast: Any = cast,
        ) -> None:
            x, eps = pictures(), torch.randn(BATCH, 3, SIZE, SIZE)
            index = torch.randint(0, 1024, (BATCH,))
            z, wanted = noise.add_noise(x, eps, index), noise.get_velocity(x, eps, index)
            with cast():
                loss = nn.functional.mse_loss(model(z, index).sample.float(), wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
            average.step(model.parameters())
            loss.detach().item()

        def sample(pipeline: Any = pipeline, cast: Any = cast) -> None:
            with cast():
                pipeline(batch_size=BATCH, num_inference_steps=STEPS, output_type="np")

        works: dict[str, Work] = {"training": learn, "sampling": sample}
        made.append((f"diffusers {diffusers.__version__}, {precision}", works))
    return [*made, *plain(Sampled(model), "plain loop, network of diffusers, fp32")]


class Sampled(nn.Module):
    """A network of diffusers, called as vdiff's is."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, time_input: Tensor) -> Tensor:
        out: Tensor = self.model(z, time_input).sample
        return out


def ours(network: UNet) -> Made:
    """vdiff as its commands use it, in float32 and in what `auto` comes to."""
    made = []
    for precision in dict.fromkeys(("fp32", Machine("auto", "cpu").precision)):
        machine = Machine(precision, "cpu")
        teacher = Denoiser(machine.freeze(copy.deepcopy(network)), SCHEDULE, "v")
        settings = FitSection(updates=10**6, batch_size=BATCH, ema=0.9999)
        taught = ProgressiveObjective("truncated_snr", teacher, 64)
        works: dict[str, Work] = {
            "training": update(
                network, DenoisingObjective("snr_plus_one"), settings, machine, SIZE, 3
            ),
            "stage": update(
                network, taught, settings.model_copy(update={"ema": None}), machine, SIZE, 3
            ),
            "sampling": partial(
                draw, teacher, Ddim(), range(BATCH), (3, SIZE, SIZE), STEPS, batch_size=BATCH
            ),
        }
        made.append((f"vdiff, {precision}", works))
    return made


def update(
    network: UNet, objective: Any, settings: FitSection, machine: Machine, size: int, channels: int
) -> Work:
    """One update of `vdiff train` or `vdiff distill`, but for reading the pictures."""
    learner = Learner(Denoiser(copy.deepcopy(network), SCHEDULE, "v"), objective, settings, machine)
    count = settings.batch_size

    def once() -> None:
        rng_of = RngOf(0, 0, learner.update, torch.arange(count), count)
        learner.step(pictures(size, channels, count), NOTHING, rng_of)

    return once


def matrix_product() -> Work:
    a = torch.randn(2048, 2048).bfloat16()
    return lambda: [a @ a for _ in range(4)]


def show_overhead(rounds: int, clock: Clock) -> None:
    """What everything around the network costs."""
    print("| network | bare forward and backward, ms | an update, ms | ratio |\n|---|---|---|---|")
    digits, faces = (
        recipe_text.validate(Recipe, recipe_text.read_file(recipe_text.shipped()[name])).network
        for name in ("digits", "celeba_u")
    )
    cases: list[tuple[str, Any, int, int, int]] = [
        ("digits, 8x8, batch 64", digits, 8, 1, 64),
        ("7.3 M, 32x32, batch 16", SECTION, SIZE, 3, BATCH),
        ("celeba_u, 256x256, batch 2", faces, 256, 3, 2),
    ]
    for name, section, size, channels, batch in cases:
        network = trained_looking(fast_on_cpu(section.build(size, channels)))
        machine = Machine("auto", "cpu", image_size=size)
        settings = FitSection(updates=10**6, batch_size=batch, ema=0.9999)
        work = update(
            network, DenoisingObjective("snr_plus_one"), settings, machine, size, channels
        )
        works = {"bare": bare(machine, network, pictures(size, channels, batch)), "update": work}
        arms: dict[Any, Timed] = {each: partial(timed, work, clock) for each, work in works.items()}
        times = in_turn(arms, rounds * (10 if size == 8 else 1))
        found = {each: statistics.median(seconds) for each, seconds in times.items()}
        ratio = found["update"] / found["bare"]
        print(
            f"| {name}, {machine.precision} | {found['bare'] * 1e3:.1f} | "
            f"{found['update'] * 1e3:.1f} | {ratio:.3f} |",
            flush=True,
        )


def bare(machine: Machine, network: UNet, z: Tensor) -> Work:
    time_input = torch.rand(len(z)) * 1000

    def once() -> None:
        with machine.autocast():
            out = network(z, time_input)
        out.square().mean().backward()
        network.zero_grad()

    return once


PARTIES: dict[str, Callable[[UNet], Made]] = {
    "plain loop": plain,
    "diffusers": peers,
    "vdiff": ours,
}


if __name__ == "__main__":
    main()
