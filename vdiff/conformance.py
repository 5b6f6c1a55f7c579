"""Whether kinds of networks, samplers and the other parts keep their contracts:
theorems to run over one of one's own.

A package that brings a kind calls these in its tests, with a section as a recipe would give it:

    from vdiff.conformance import check_sampler
    def test_adams() -> None:
        check_sampler(AdamsSection())

Each raises BrokenContractError with the first theorem that does not hold. vdiff's own kinds pass
the same ones.
"""

import copy
import json
import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from vdiff.config import KindSection
from vdiff.data.dataset import DatasetSection, TakesMany
from vdiff.diffusion.condition import NOTHING, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import CosineSchedule, Schedule, ScheduleSection
from vdiff.metrics.metric import Means, MetricSection, Reference
from vdiff.metrics.pair_metric import PairMetricSection
from vdiff.networks.guidance_theorems import theorems
from vdiff.networks.network import NetworkSection
from vdiff.networks.simple import Counted, Curved, KnowsPicture, coloured_pictures, noise
from vdiff.objectives.objective import Objective, ObjectiveSection, Task
from vdiff.randomness import Randomness
from vdiff.samplers.sampler import MOST_SIGNAL, Sampler, SamplerSection

_BATCH = 3
"""Pictures that are looked at together."""
_STEPS = 4
_CLASSES = 2
_TOLERANCE = 1e-4
"""Between a picture alone and in a batch: rounding is about 1e-6, a mistake 0.01 and more."""


class BrokenContractError(AssertionError):
    """A kind does not do what its contract says."""


def check_network(section: NetworkSection, image_size: int = 8, channels: int = 3) -> None:
    """Shape, precision, equal bits, each picture by itself, the same again from `config` and
    weights, and what guidance changes, where the network can take it.

    image_size, channels: of the pictures that it is tried on, in pixels.
    Errors: BrokenContractError.
    """
    section.check(image_size, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = section.build(image_size, channels).eval()
        with torch.no_grad():
            for weight in network.parameters():  # fresh ones may be 0, and all of it with them
                weight.add_(0.05 * torch.randn_like(weight))
    z = noise(_BATCH, channels, image_size)
    time = torch.tensor([3.0, 400.5, 999.0])
    condition = NOTHING
    if section.told_classes:
        condition = of_seeds(range(_BATCH), section.told_classes)
    with torch.no_grad():
        out = network(z, time, condition)
        _holds(
            out.shape == z.shape,
            f"the output has the shape {list(out.shape)}, not that of z, {list(z.shape)}",
        )
        _holds(out.dtype == z.dtype, f"the output is {out.dtype} for z of {z.dtype}")
        _holds(bool(out.isfinite().all()), "the output holds NaN or Inf")
        _holds(torch.equal(network(z, time, condition), out), "the same input gives other bits")
        rows = [slice(i, i + 1) for i in range(_BATCH)]
        alone = torch.cat([network(z[row], time[row], condition.of(row)) for row in rows])
        _holds(_near(alone, out), "a picture's output depends on the other pictures of its batch")
        config = json.loads(json.dumps(network.config))
        again = type(section).restore(config).eval()
        _same_names(again.state_dict(), network.state_dict())
        again.load_state_dict(network.state_dict())
        _holds(again.config == network.config, "`restore(config)` makes another config")
        told = "restored from config and weights it gives other bits"
        _holds(torch.equal(again(z, time, condition), out), told)
        for theorem in theorems(type(section), network, z, time, condition):
            _holds(*theorem)


def check_schedule(section: ScheduleSection) -> None:
    """alpha^2 + sigma^2 = 1, no noise at t = 0, and less signal the later it is.

    Errors: BrokenContractError.
    """
    schedule = section.build()
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    _holds(alpha.dtype == sigma.dtype == torch.float64, "alpha and sigma are not float64")
    _holds(alpha.shape == t.shape, "alpha has not the shape of t")
    _holds(bool((alpha**2 + sigma**2 - 1).abs().max() < 1e-12), "alpha^2 + sigma^2 is not 1")
    _holds(bool((alpha.diff() < 0).all()), "alpha does not fall from t = 0 to t = 1")
    _holds(bool(alpha[-1] >= 0), "alpha is negative at t = 1")
    _holds(torch.equal(schedule.alpha_sigma(t)[0], alpha), "the same times give other bits")
    _holds(isinstance(schedule.diffusers_config(), dict), "`diffusers_config` is no mapping")


def check_sampler(section: SamplerSection) -> None:
    """Times, shapes, equal bits, nothing kept of a batch,
    and the picture itself from a denoiser that knows it.

    Errors: BrokenContractError.
    """
    sampler = section.build()
    schedule = CosineSchedule(1024)
    _check_times(sampler, schedule)
    _check_pictures(sampler, schedule)
    calls = Counted(Curved())
    _drawn(sampler, Denoiser(calls, schedule, "v"), noise(_BATCH, 1, 4, seed=1).double(), _STEPS)
    told = f"{_STEPS} steps make {calls.count} network calls, and it says {sampler.calls(_STEPS)}"
    _holds(calls.count <= sampler.calls(_STEPS), told)
    is_named = str(sampler).split()[:1] == [section.kind]
    _holds(is_named, f"its name `{sampler}` does not begin with `{section.kind}`")


def _check_times(sampler: Sampler, schedule: Schedule) -> None:
    for model_steps in (None,) if sampler.needs_denoiser else (None, _STEPS):
        times = sampler.times(_STEPS, schedule, model_steps)
        told = f"`times` gives {len(times)} times for {_STEPS} steps, not {_STEPS + 1}"
        _holds(len(times) == _STEPS + 1, told)
        told = f"the times go from {times[0]} to {times[-1]}, not from 1 to 0"
        _holds(times[-1] == 0 and 0 < times[0] <= 1, told)
        # noise must do for z at the first one
        _holds(schedule.scales_at(times[:1])[0][0] <= MOST_SIGNAL, told)
        _holds(all(s < t for t, s in pairwise(times)), "the times do not fall")


def _check_pictures(sampler: Sampler, schedule: Schedule) -> None:
    x = 0.5 * noise(_BATCH, 1, 4).clamp(-1, 1).double()
    perfect = Denoiser(KnowsPicture(x), schedule, "x")
    z = noise(_BATCH, 1, 4, seed=1).double()
    for num_steps in (1, _STEPS):
        drawn = _drawn(sampler, perfect, z, num_steps)
        told = f"the pictures have the shape {list(drawn.shape)}, not {list(z.shape)}"
        _holds(drawn.shape == z.shape, told)
        _holds(drawn.dtype == z.dtype, f"the pictures are {drawn.dtype}, the noise is {z.dtype}")
        told = f"with a perfect denoiser, {num_steps} steps do not end at the picture"
        _holds(_near(drawn, x), told)
    curved = Denoiser(Curved(), schedule, "v")
    before = z.clone()
    one = _drawn(sampler, curved, z, _STEPS)
    _holds(torch.equal(z, before), "the noise that it is given is changed in place")
    _drawn(sampler, curved, -z, _STEPS + 1)
    _holds(
        torch.equal(_drawn(sampler, curved, z, _STEPS), one),
        "the same noise gives other bits after another batch",
    )
    alone = torch.cat(
        [_drawn(sampler, curved, z[i : i + 1], _STEPS, first=i) for i in range(_BATCH)]
    )
    _holds(_near(alone, one), "a picture depends on the other pictures of its batch")


def check_objective(section: ObjectiveSection) -> None:
    """Losses [B], finite and float32, equal bits, gradients for the student alone,
    and a state that comes back.

    Errors: BrokenContractError.
    """
    x = 0.5 * noise(_BATCH, 1, 4).clamp(-1, 1)
    objective, student = _prepared(section)
    objective.begin(0)
    losses = _losses(objective, student, x)
    _holds(losses.shape == (_BATCH,), f"the losses have the shape {list(losses.shape)}")
    _holds(losses.dtype == torch.float32, f"the losses are {losses.dtype}, not float32")
    _holds(bool(losses.isfinite().all()), "a loss is NaN or Inf")
    _holds(torch.equal(_losses(objective, student, x), losses), "the same batch gives another loss")
    losses.mean().backward()  # type: ignore[no-untyped-call]
    grad = next(student.network.parameters()).grad
    _holds(grad is not None and bool(grad.isfinite().all()), "the student gets no finite gradient")
    with torch.no_grad():  # as if the student had learned
        for weight in student.network.parameters():
            weight.add_(0.1)
    objective.follow(1, torch.tensor(True))
    kept = {name: tensor.clone() for name, tensor in objective.state().items()}
    objective.begin(1)
    after = _losses(objective, student, x)
    again, _ = _prepared(section, student)
    again.load(kept)
    again.begin(1)
    _same_names(again.state(), kept)
    bad = [name for name, tensor in again.state().items() if not torch.equal(tensor, kept[name])]
    _holds(not bad, f"`load` does not take back {bad[:1]} of the state")
    told = "gone on from its state, it gives another loss"
    _holds(torch.equal(_losses(again, student, x), after), told)


def check_metric(
    section: MetricSection | PairMetricSection, means: Means | None = None, channels: int = 1
) -> None:
    """Numbers that are the same for the same pictures, however they are cut,
    and words for what is compared.

    means: what the metric works with, as the device; None for the usual.
    channels: of the pictures that it is tried on.   Errors: BrokenContractError.
    """
    least = max(section.least, 128)
    own = coloured_pictures(least, channels, seed=0)
    other = coloured_pictures(least, channels, seed=1)
    has_names = bool(section.numbers) and len(set(section.numbers)) == len(section.numbers)
    _holds(has_names, "its numbers have no names")
    used = means or Means()
    if isinstance(section, PairMetricSection):
        _check_pairs(section, own, other, used)
        return
    metric = section.build(Reference(other, "conformance", **vars(used)))
    if metric.least > least:
        own = coloured_pictures(metric.least, channels, seed=0)
        other = coloured_pictures(metric.least, channels, seed=1)
        metric = section.build(Reference(other, "conformance", **vars(used)))
    _holds(bool(metric.features), "it does not say what it compares")
    found = metric.value(own)
    _holds(math.isfinite(found.value), f"its number is {found.value}")
    _holds(metric.value(own) == found, "the same pictures give another number")
    if found.low is not None and found.high is not None:
        _holds(found.low <= found.value <= found.high, "the number lies outside of its interval")


def _check_pairs(section: PairMetricSection, own: Tensor, other: Tensor, means: Means) -> None:
    metric = section.build(means)
    _holds(bool(metric.features), "it does not say what it compares")
    found = dict(metric.compare(own, other))
    stated = {measure.name for measure in section.measures}
    told = f"it gives the numbers {sorted(found)} and states {sorted(stated)}"
    _holds(found.keys() == stated, told)
    for measure in section.measures:
        value = found[measure.name]
        _holds(math.isfinite(value), f"`{measure.name}` of pictures that differ is {value}")
        _holds(
            measure.most is None or value <= measure.most,
            f"`{measure.name}` is more than the most, {measure.most}",
        )
    _holds(dict(metric.compare(own, other)) == found, "the same pictures give other numbers")
    order = torch.arange(len(own)).flip(0)
    turned = metric.compare(own[order], other[order])
    is_alike = all(math.isclose(turned[name], found[name], rel_tol=1e-6) for name in found)
    _holds(is_alike, "the numbers depend on the order of the pairs")
    mixed = metric.compare(own, other[order])
    _holds(dict(mixed) != found, "it does not look at which picture is whose partner")
    _holds(
        not any(map(math.isnan, metric.compare(own, own).values())),
        "equal pictures give a number that is none",
    )


def check_dataset(section: DatasetSection) -> None:
    """Pictures and classes as they are told, the same when opened again and in a copy.

    Errors: BrokenContractError.
    """
    images = section.open()
    again = section.open()
    wanted = (section.channels, section.size, section.size)
    _holds(
        images.shape == wanted,
        f"the pictures have the shape {images.shape}, the section says {wanted}",
    )
    _holds(images.num_images > 0, "there are no pictures")
    is_print = len(images.fingerprint) == 64 and set(images.fingerprint) <= set("0123456789abcdef")
    _holds(is_print, f"`{images.fingerprint}` is no SHA-256 in hexadecimal")
    _holds(again.fingerprint == images.fingerprint, "opened again, it has another fingerprint")
    chosen = sorted({0, images.num_images // 2, images.num_images - 1})
    for there in (again, copy.deepcopy(images)):  # as it travels to the processes that decode ahead
        for index in chosen:
            pixels, label = images[index]
            same, told = there[index]
            _holds(pixels.dtype == np.uint8, f"picture {index} is {pixels.dtype}, not uint8")
            _holds(
                pixels.shape == wanted,
                f"picture {index} has the shape {pixels.shape}, not {wanted}",
            )
            is_class = label == -1
            if images.num_classes:
                is_class = 0 <= label < images.num_classes
            _holds(is_class, f"picture {index} has the class {label} of {images.num_classes}")
            is_same = np.array_equal(pixels, same) and label == told
            _holds(is_same, f"picture {index} is another when it is opened again, or copied")
    if isinstance(images, TakesMany):
        many, labels = images.take(np.array(chosen[::-1]))
        for place, index in enumerate(chosen[::-1]):
            is_same = (
                np.array_equal(many[place], images[index][0]) and labels[place] == images[index][1]
            )
            _holds(is_same, f"`take` gives another picture {index} than taking it alone")


def check(section: KindSection) -> None:
    """The theorems of whatever part this is a kind of;
    of networks and metrics with pictures of usual shapes.

    Errors: BrokenContractError; TypeError for a section of a part that has no theorems.
    """
    if isinstance(section, NetworkSection):
        check_network(section)
    elif isinstance(section, ScheduleSection):
        check_schedule(section)
    elif isinstance(section, SamplerSection):
        check_sampler(section)
    elif isinstance(section, ObjectiveSection):
        check_objective(section)
    elif isinstance(section, MetricSection | PairMetricSection):
        check_metric(section)
    elif isinstance(section, DatasetSection):
        check_dataset(section)
    else:
        raise TypeError(f"{type(section).__name__} is no section of a part that has a contract")


def _prepared(
    section: ObjectiveSection, like: Denoiser | None = None
) -> tuple[Objective, Denoiser]:
    """An objective that has seen its student, which begins as `like` is."""
    schedule: Schedule = CosineSchedule(1024)
    student = like or Denoiser(Curved(), schedule, "v")
    teacher = None
    if section.needs_teacher:
        teacher = Denoiser(Curved().requires_grad_(False).eval(), schedule, "v")
    objective = section.build(Task("snr_plus_one", 10, _STEPS, teacher, 2, null_label=_CLASSES))

    def copied() -> nn.Module:
        made = Curved().requires_grad_(False).eval()
        made.load_state_dict(student.network.state_dict())
        return made

    objective.prepare(student, copied)
    return objective, student


def _losses(objective: Objective, student: Denoiser, x: Tensor) -> Tensor:
    rng = Randomness.for_update(0, 0, 0, torch.arange(len(x)), len(x))
    return objective(student, x, rng, of_seeds(range(len(x)), _CLASSES, 1.5))


def _drawn(
    sampler: Sampler, denoiser: Denoiser, z: Tensor, num_steps: int, first: int = 0
) -> Tensor:
    return sampler(
        denoiser, z, num_steps, Randomness.for_images(torch.arange(first, first + len(z)))
    )


def _near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=_TOLERANCE, rtol=_TOLERANCE)


def _same_names(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    different = sorted(found.keys() ^ wanted.keys())
    _holds(not different, f"made again, its state has other names: {different[:1]}")


def _holds(is_true: bool, otherwise: str) -> None:
    if not is_true:
        raise BrokenContractError(otherwise)
