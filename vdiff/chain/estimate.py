"""What a chain will cost, measured: a few updates, drawings, measurements and a save
of each sort of stage.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff.chain.costs import Cost, Estimate, measurements, stage_estimate
from vdiff.chain.guidance import inside_of, taking
from vdiff.chain.plan import Stage
from vdiff.chain.stage_parts import fresh, frozen, objective_of
from vdiff.chain.stage_pictures import advice_of_stage
from vdiff.config import shapes_weights
from vdiff.diffusion import inside
from vdiff.diffusion.condition import Condition, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import VdiffError
from vdiff.machine import memory
from vdiff.machine.machine import Machine
from vdiff.metrics.agreement import AgreementSection
from vdiff.metrics.metric import MetricSection, Reference, named
from vdiff.metrics.pair_metric import Pairs
from vdiff.metrics.reference import StorePictures
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import codec_for
from vdiff.networks.imported import ImportedSection
from vdiff.networks.network import Network, as_network
from vdiff.randomness import exact
from vdiff.recipe.recipe import Recipe
from vdiff.runs import savepoint
from vdiff.runs.savepoint import NUM_KEPT
from vdiff.samplers.advised import sampler_for
from vdiff.samplers.draw import draw
from vdiff.training.learner import Learner, RngOf, State

_FLOAT_BYTES = 4
_PROBE = 4
"""Pictures of the first two updates."""
_SECONDS = 4.0
"""So long the measured updates take together, about."""
_LEAST_UPDATES = 3
_MOST_UPDATES = 30
_SAVED_BYTES = 2**26
"""So much of a save is written to see how long all of it would take."""


def estimate(
    recipe: Recipe,
    stages: Sequence[Stage],
    machine: Machine,
    start: float = 0.0,
    reference: Path | None = None,
    done: Mapping[str, int] | None = None,
    teacher: Path | None = None,
) -> Estimate:
    """Measure every sort of stage on random pictures; writes nothing but into temporary folders.

    All processes of the machine must come here. What the first one returns counts; it alone
    measures the metrics.
    start: seconds until the first stage begins.   reference: the folder of what the run knows of
    its reference.
    done: updates of stages that are saved, and not made again.
    teacher: the model folder of the first stage's teacher, whose network is taken where the recipe
    makes none.
    """
    saved_updates = done or {}
    recipe = _with_network(recipe, teacher)
    has = _insides(stages, teacher)
    largest = taking(fresh(recipe, _image_shape(recipe)), has[stages[-1].name], recipe.seed)
    num_weights = sum(weight.numel() for weight in largest.network.parameters())
    costs = {
        sort: _measured(recipe, stage, machine, has[stage.name])
        for sort, stage in _sorts(stages, has).items()
    }
    before = memory.peak_bytes(machine.device)
    has_trend = machine.is_first and any(measurements(recipe, stage) for stage in stages)
    first = 0.0
    each = 0.0
    if has_trend:
        first, each = _metric_seconds(recipe, reference)
    # what was freed after an update is there for the metrics, as it is in the run
    metric_bytes = memory.peak_bytes(machine.device) - before
    estimates = []
    for stage in stages:
        saved = saved_updates.get(stage.name, 0)
        cost = costs[_sort(stage, has[stage.name])]
        estimates.append(stage_estimate(recipe, stage, cost, (first, each), saved))
        if measurements(recipe, stage):
            first = 0.0  # the reference is looked through once
    copies = max(3 + (stage.settings.ema is not None) for stage in stages)
    disk = num_weights * _FLOAT_BYTES * (len(stages) + (NUM_KEPT + 1) * copies)
    most = max(cost.memory_bytes for cost in costs.values()) + max(metric_bytes, 0)
    return Estimate(estimates, num_weights, disk, most, start)


class _NetworkOf(ImportedSection):
    """The network of a model folder, where a recipe has none: the base was imported."""

    folder: Path = shapes_weights(Path())
    """The model folder."""
    num_classes: int = shapes_weights(0)
    """0 for none."""

    def build(self, image_size: int, channels: int) -> Network:
        network = as_network(checkpoint.load(self.folder).denoiser.network)
        network.train().requires_grad_(True)
        return network


def _with_network(recipe: Recipe, teacher: Path | None) -> Recipe:
    if teacher is None or not isinstance(recipe.network, ImportedSection):
        return recipe
    classes = checkpoint.read_card(teacher).num_classes
    network = _NetworkOf(folder=teacher.resolve(), num_classes=classes)
    return recipe.model_copy(update={"network": network})


_Has = dict[str, Any] | None
"""Guidance that the network of a stage has inside, as a model card says it."""


def _insides(stages: Sequence[Stage], teacher: Path | None) -> dict[str, _Has]:
    """By the names of the stages.   teacher: the folder of the first stage's."""
    found: dict[str, _Has] = {}
    before: _Has = None
    if teacher is not None and checkpoint.is_model_folder(teacher):
        before = checkpoint.read_card(teacher).guidance
    for stage in stages:
        before = inside_of(stage, before)
        found[stage.name] = before
    return found


_Sort = tuple[int, int, str, bool]


def _sort(stage: Stage, has: _Has) -> _Sort:
    """Stages that learn alike, with as many network calls per picture and as many pictures,
    cost the same.

    0 calls for the base.
    """
    calls = 0
    if stage.index:
        calls = stage.teacher_steps
    settings = stage.settings
    return calls, settings.batch_size, settings.objective.model_dump_json(), has is not None


def _sorts(stages: Sequence[Stage], has: Mapping[str, _Has]) -> dict[_Sort, Stage]:
    return {_sort(stage, has[stage.name]): stage for stage in reversed(stages)}


def _measured(recipe: Recipe, stage: Stage, machine: Machine, has: _Has) -> Cost:
    memory.forget_peak(machine.device)
    begun = time.monotonic()
    learner = _learner(recipe, stage, machine, has)
    told = partial(_batch, recipe, learner, inside.usual(has))
    making = time.monotonic() - begun
    share = -(-stage.settings.batch_size // machine.world_size)
    probe = min(_PROBE, share)
    x, condition, rng_of = told(probe)
    making += _timed(partial(learner.choose_micro_batch, x, condition, rng_of, share))
    probe_update = partial(_update, told, learner, machine, probe)
    first = _timed(probe_update)
    second = _timed(probe_update)
    peak = memory.peak_bytes(machine.device)
    most = max(int(_SECONDS / _LEAST_UPDATES / max(second / probe, 1e-9)), probe)
    count = machine.least(min(share, most))
    seconds = _median_seconds(partial(_update, told, learner, machine, count), machine)
    at_once = learner.micro_batch or share
    # pictures that the real update has at once, and this one had not
    more = max(min(share, at_once) - min(count, at_once), 0)
    needed = memory.peak_bytes(machine.device)
    needed += more * max(needed - peak, 0) // max(count - probe, 1)
    state_bytes = sum(
        tensor.nbytes for named in learner.state().values() for tensor in named.values()
    )
    save = _save_seconds(learner, state_bytes, machine)
    most = min(count, share)
    call = _call_seconds(recipe, stage, learner.result(), machine, most, inside.usual(has))
    machine.release()
    if machine.device.type == "cpu" and machine.is_first:
        # a save is copied to the host
        needed += state_bytes
    start = making + max(first - second, 0.0)
    return Cost(start, seconds * share / count, call, save, needed)


def _learner(recipe: Recipe, stage: Stage, machine: Machine, has: _Has) -> Learner:
    """As training begins, but with a teacher that has not learned anything: that costs the same."""
    shape = _image_shape(recipe)
    teacher = None
    if stage.index > 0:
        teacher = fresh(recipe, shape)
        if stage.settings.objective.guidance_inside is None:
            teacher = taking(teacher, has, recipe.seed)
        teacher = frozen(teacher, machine)
    student = taking(fresh(recipe, shape), has, recipe.seed)
    # any class costs as much as the one that stands for none
    objective = objective_of(stage, teacher, null_label=0)
    return Learner(student, objective, stage.settings, machine)


_Told = Callable[[int], tuple[Tensor, Condition, RngOf]]
"""So many random pictures, and what a learner is told of them."""


def _update(told: _Told, learner: Learner, machine: Machine, count: int) -> None:
    """An update of `count` random pictures in each process, waited for."""
    # those who share a network have as many micro-batches as this asks for, whatever pictures they
    # have
    learner.settings = learner.settings.model_copy(
        update={"batch_size": count * machine.world_size}
    )
    float(learner.step(*told(count)).sum())


def _batch(
    recipe: Recipe, learner: Learner, guidance: float | None, count: int
) -> tuple[Tensor, Condition, RngOf]:
    device = next(iter(learner.state()["weights"].values())).device
    x = torch.randn(count, *_shape(recipe), device=device)
    condition = of_seeds(range(count), recipe.network.told_classes, guidance).to(device)
    numbers = torch.arange(count, device=exact(device))
    return x, condition, RngOf(0, 0, learner.update, numbers, count)


def _timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _median_seconds(work: Callable[[], object], machine: Machine) -> float:
    """Of one run, after one that sets up memory;
    other work on the machine disturbs a median less than a mean.
    """
    times = [_timed(work)]

    def are_too_few() -> bool:
        has_time = len(times) < _MOST_UPDATES and sum(times) < _SECONDS
        return len(times) < _LEAST_UPDATES or has_time

    # all processes work as often, as they wait for one another
    while machine.any(are_too_few()):
        times.append(_timed(work))
    later = sorted(times[1:])
    return later[len(later) // 2]


def _save_seconds(learner: Learner, state_bytes: int, machine: Machine) -> float:
    """Of one save, from as many of its tensors as make a fair sample."""
    state: State = {}
    left = _SAVED_BYTES
    for part, tensors in learner.state().items():
        state[part] = {}
        for name, tensor in tensors.items():
            if left > 0:
                state[part][name] = tensor
                left -= tensor.nbytes
    taken = max(_SAVED_BYTES - left, 1)
    with tempfile.TemporaryDirectory() as folder:
        pending = {"rows": torch.zeros(0, 2)}
        work = partial(
            savepoint.write, Path(folder), learner.update, state, pending, {}, machine.is_first
        )
        return _timed(work) * max(state_bytes / taken, 1.0)


def _call_seconds(
    recipe: Recipe,
    stage: Stage,
    denoiser: Denoiser,
    machine: Machine,
    most: int,
    guidance: float | None,
) -> float:
    """Of one sampler step for one drawn picture."""
    count = min(recipe.sample.batch_size, recipe.sample.num_images, most)
    condition = of_seeds(range(count), recipe.network.told_classes, guidance)
    shape = _shape(recipe)
    # whose sampler a student may have, costs the same
    advice = advice_of_stage(stage, None)
    sampler = sampler_for(
        recipe.sample.named_sampler, advice.sampler, stage.name, is_solvable=advice.is_solvable
    ).build()
    work = partial(
        draw, denoiser, sampler, range(count), shape, condition=condition, device=machine.device
    )
    with machine.autocast():
        work(num_steps=1)
        seconds: float = min(_timed(partial(work, num_steps=2)) for _ in range(2))
    return seconds / (2 * count * int(machine.world_size))


def _image_shape(recipe: Recipe) -> tuple[int, int, int]:
    """Of a picture, [C, H, W]."""
    return recipe.data.channels, recipe.data.size, recipe.data.size


def _shape(recipe: Recipe) -> tuple[int, int, int]:
    """Of what the network sees."""
    return codec_for(None).shape(_image_shape(recipe))


def _metric_seconds(recipe: Recipe, reference: Path | None) -> tuple[float, float]:
    """Of getting to know the reference, and of one measurement;
    on random pictures where there is no store yet.
    """
    samples = torch.randint(
        0, 256, (recipe.evaluate.num_images, *_image_shape(recipe)), dtype=torch.uint8
    )
    against = Reference(samples, "", where="evaluate.metrics")
    sections = []
    if recipe.evaluate.every is not None:
        sections = named(recipe.evaluate.metrics)
    # the run itself tells what lacks
    with tempfile.TemporaryDirectory() as place, contextlib.suppress(VdiffError):
        cache = Path(place, "reference")
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(reference or cache, cache, symlinks=True)
        with contextlib.suppress(VdiffError):
            images = recipe.data.open()
            against = replace(
                against, pictures=StorePictures(images), fingerprint=images.fingerprint, cache=cache
            )
        begun = time.monotonic()
        metrics = [
            section.build(against) for section in sections if isinstance(section, MetricSection)
        ]
        if not any(section.kind == "agreement" for section in sections):
            sections = [AgreementSection(), *sections]
        pairs = Pairs(sections)
        first = time.monotonic() - begun
        return first, _timed(
            lambda: ([metric.value(samples) for metric in metrics], pairs.compare(samples, samples))
        )
    return 0.0, 0.0
