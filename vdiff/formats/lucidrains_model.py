"""The network and the noise process in a file of denoising-diffusion-pytorch,
as a model of vdiff.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.diffusion.schedule import CosineSchedule, tabled_betas
from vdiff.errors import ModelFileError, UsageError
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import Contents
from vdiff.formats.lucidrains_layout import (
    Layout,
    by_version,
    group_counts,
    layout_of,
    network_config,
    num_levels,
    parsed,
    plain_name,
)
from vdiff.formats.weights import read_tensors, take_exactly
from vdiff.networks.lucidrains import LucidrainsSection, LucidrainsUNet

PREDICTS = ("eps", "v", "x")
TABLES = ("linear", "cosine", "sigmoid")
KINDS_OF_D = ("1.6", "1.7.1", "1.7.3", "1.7.14")
"""A version for each of the functions that a network of generation D may compute."""

LOSS_WEIGHT_FIRST = (1, 5)
"""The version that began to keep the weights of the loss, which tell what is predicted."""
V_BY_DEFAULT = (1, 6)

NEAR = 1e-5
"""Largest difference of alpha^2 between a table in float32 and its formula;
other formulas are 1e-3 away and more.
"""

EPS_OF_STANDARDIZING = 1e-5

Answers = Mapping[str, str]


def candidates(found: Contents, asked: Answers) -> Sequence[Answers]:
    """Every reading of what the file leaves open, the defaults of its version first."""
    layout = layout_of(found)
    _size(layout, asked)
    questions = _open(layout, _buffers(found, layout), asked)
    names = list(questions)
    return [
        {**asked, **dict(zip(names, answers, strict=True))}
        for answers in product(*questions.values())
    ]


def read(found: Contents, asked: Answers) -> ForeignModel:
    """The model.   Errors: ModelFileError, UsageError, FormatError, OSError."""
    layout = layout_of(found)
    size = _size(layout, asked)
    buffers = _buffers(found, layout)
    first = {name: answers[0] for name, answers in _open(layout, buffers, asked).items()}
    answers = {**asked, **first}
    network = _network(found, layout, answers)
    schedule = _schedule(layout, buffers, answers)
    known = told_by_loss(buffers)
    predicts = answers.get("predicts") or known[0]
    diffusion: dict[str, object] = {"schedule": schedule, "predicts": predicts}
    section = DiffusionSection.model_validate(diffusion)
    built = section.schedule.build()
    facts: dict[str, object] = {"generation": layout.generation}
    if layout.version is not None:
        facts["version"] = layout.version
    return ForeignModel(
        denoiser=Denoiser(network, built, section.predicts),
        network="lucidrains",
        diffusion=diffusion,
        shape=(layout.channels, size, size),
        num_classes=0,
        num_steps=built.grid,
        assumed=_assumed(layout, answers, size),
        # its own sampler keeps x within the pictures' limits, whatever the network predicts
        sampler={"kind": "ddim", "clip": 1.0},
        own_sampler=_SELF_CONDITION if layout.has_self_condition else None,
        facts=facts,
    )


_SELF_CONDITION = "its own sampler tells the network the picture of the step before"


def _size(layout: Layout, asked: Answers) -> int:
    """Pixels of the pictures.

    Errors: UsageError where nobody says it, or no level could have half of it.
    """
    if "size" not in asked:
        problem = f"`{layout.path.name}` does not say how large its pictures are"
        raise UsageError(problem, "say it, as --size 64", "--size")
    size = _number(asked, "size", 1, 65536)
    smallest = 2 ** (num_levels(layout) - 1)
    if size % smallest:
        problem = f"the network halves its pictures to 1/{smallest}, and {size} pixels cannot be"
        fix = f"say the size that it was trained with, a multiple of {smallest}"
        raise UsageError(problem, fix, "--size")
    return size


def _open(layout: Layout, buffers: Mapping[str, Tensor], asked: Answers) -> dict[str, list[str]]:
    """What neither the file nor the user tells -> what it may be, the likeliest first."""
    questions: dict[str, list[str]] = {}
    groups = group_counts(layout)
    if groups:
        questions["groups"] = [str(count) for count in groups]
    if layout.generation == "D" and layout.version is None:
        questions["version"] = list(KINDS_OF_D)
    if not {"betas", "alphas_cumprod"} & buffers.keys():
        questions["table"] = ["sigmoid", "cosine", "linear"]
    if len(told_by_loss(buffers)) != 1:
        questions["predicts"] = _likely_predictions(layout, asked)
    return {name: answers for name, answers in questions.items() if name not in asked}


def _likely_predictions(layout: Layout, asked: Answers) -> list[str]:
    version = parsed(layout.version or asked.get("version", ""))
    if (version and version < LOSS_WEIGHT_FIRST) or (layout.generation == "D" and not version):
        return ["eps", "x"]  # v came with the weights of the loss
    if layout.generation == "D" or (version and version < V_BY_DEFAULT):
        return ["eps", "v", "x"]
    return ["v", "eps", "x"]


def _assumed(layout: Layout, answers: Answers, size: int) -> tuple[str, ...]:
    told = [
        f"pictures of {size} x {size} pixels",
        f"`sinusoidal_pos_emb_theta` {answers.get('theta', '10000')}",
    ]
    if "groups" in answers:
        told.append(f"`resnet_block_groups` {answers['groups']}")
    if layout.generation in "CD":
        told.append(f"{answers.get('heads', '4')} attention heads")
    others = [name for name in ("version", "table", "predicts") if name in answers]
    told.extend(f"`{name}` {answers[name]}" for name in others)
    if layout.has_self_condition:
        told.append(
            "zeros in the place of the picture that it predicted a step before: "
            "it was trained with self-conditioning, and saw zeros half of the time"
        )
    return tuple(told)


# --- the network


def _network(found: Contents, layout: Layout, answers: Answers) -> LucidrainsUNet:
    version = answers.get("version") or layout.version or "2.0"
    if not parsed(version):
        raise UsageError(f"`{version}` is no version", "write it as 1.7.2", "--assume")
    groups = None
    if layout.generation != "A":
        groups = _number(answers, "groups", 1, 65536)
    heads = None
    if "heads" in answers:
        heads = _number(answers, "heads", 1, 65536)
    config = network_config(layout, version, theta_of(answers), groups, heads)
    with torch.device("meta"):  # shapes that contradict each other may ask for any amount of memory
        outline = LucidrainsSection.restore(config)
    tensors = read_tensors(found, lambda name: name.startswith(layout.prefix))
    weights = {
        plain_name(name.removeprefix(layout.prefix)): tensor.float()
        for name, tensor in tensors.items()
    }
    _slice(weights, layout)
    take_exactly(weights, outline.state_dict(), found.path)
    if by_version(layout, version).is_standardized:
        _standardize(weights)
    network = LucidrainsSection.restore(config)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def _slice(weights: dict[str, Tensor], layout: Layout) -> None:
    """Leave out the inputs that are always zero here, and the outputs that tell of a variance."""
    channels = layout.channels
    if layout.has_self_condition:
        # the picture of the step before comes first
        weights["init_conv.weight"] = weights["init_conv.weight"][:, channels:].clone()
    if layout.has_variance:
        for name in ("final_conv.weight", "final_conv.bias"):
            if name in weights:
                weights[name] = weights[name][:channels].clone()


def _standardize(weights: dict[str, Tensor]) -> None:
    """Fold the standardization of the blocks' convolutions into them:
    (w - mean) / sqrt(var + eps) per output.
    """
    for name, weight in weights.items():
        if name.endswith((".block1.proj.weight", ".block2.proj.weight")):
            variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
            weights[name] = (weight - mean) * (variance + EPS_OF_STANDARDIZING).rsqrt()


# --- the noise process


def _buffers(found: Contents, layout: Layout) -> dict[str, Tensor]:
    """The diffusion's tables that tell something, float64."""
    if layout.buffers is None:
        return {}
    wanted = {f"{layout.buffers}{name}" for name in ("betas", "alphas_cumprod", "loss_weight")}
    tables = read_tensors(found, lambda name: name in wanted)
    plain = {name.removeprefix(layout.buffers): table.double() for name, table in tables.items()}
    for name, table in plain.items():
        is_usable = table.ndim == 1 and table.shape == plain["alphas_cumprod"].shape
        if not is_usable or not table.isfinite().all() or len(table) < 2:
            problem = f"the table `{name}` in `{found.path.name}` is none of numbers, one per step"
            raise ModelFileError(problem, "take an undamaged copy", found.path)
    return plain


def _schedule(layout: Layout, buffers: Mapping[str, Tensor], answers: Answers) -> dict[str, object]:
    """The section of the schedule: a formula in float64 where the table is one, else the table."""
    if "table" in answers or not buffers:
        return _named_schedule(answers)
    signal = buffers["alphas_cumprod"]
    for name in ("linear", "cosine"):
        section, betas = _formula(name, len(signal))
        if betas is not None and bool(((1 - betas).cumprod(0) - signal).abs().max() < NEAR):
            return section
    betas = buffers.get("betas")
    if betas is None:
        before = torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
        betas = 1 - signal / before
    if not bool(((1 - betas).cumprod(0) - signal).abs().max() < NEAR):
        problem = f"`betas` and `alphas_cumprod` in `{layout.path.name}` contradict each other"
        raise ModelFileError(problem, "take an undamaged copy", layout.path)
    return {"kind": "betas", "table": betas.tolist()}


def _named_schedule(answers: Answers) -> dict[str, object]:
    name = answers["table"]
    if name not in TABLES:
        problem = f"`{name}` is no table of denoising-diffusion-pytorch"
        raise UsageError(problem, f"choose one of: {', '.join(TABLES)}", "--assume")
    steps = _number(answers, "steps", 2, 65536, 1000)
    if name == "sigmoid":
        return {"kind": "betas", "table": _sigmoid(steps).tolist()}
    section, betas = _formula(name, steps)
    if betas is None:
        problem = f"a linear table of {steps} steps would have betas over 1"
        raise UsageError(problem, "say how many it has, as --assume steps=1000", "--assume")
    return section


def _formula(name: str, steps: int) -> tuple[dict[str, object], Tensor | None]:
    """The section of a table that vdiff has a formula for, and its betas;
    None for those that cannot be.
    """
    if name == "cosine":
        return {"kind": "cosine", "grid": steps}, tabled_betas(CosineSchedule(steps))
    first, last = 0.1 / steps, 20 / steps
    section: dict[str, object] = {
        "kind": "betas",
        "table": "linear",
        "grid": steps,
        "first": first,
        "last": last,
    }
    if last >= 1:
        return section, None
    return section, torch.linspace(first, last, steps, dtype=torch.float64)


def _sigmoid(steps: int) -> Tensor:
    """Betas of the sigmoid table of Jabri et al. 2022 with start -3, end 3, tau 1."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    start, end = torch.tensor([-3.0, 3.0], dtype=torch.float64).sigmoid()
    signal = (end - (6 * t - 3).sigmoid()) / (end - start)
    betas: Tensor = (1 - signal[1:] / signal[:-1]).clamp(0, 0.999)
    return betas


def predictions(found: Contents, layout: Layout) -> list[str]:
    """What the network may predict, as far as the file tells.

    Errors: ModelFileError, FormatError, OSError.
    """
    return told_by_loss(_buffers(found, layout))


def told_by_loss(buffers: Mapping[str, Tensor]) -> list[str]:
    """What the weights of the loss say that the network predicts;
    all that it may be where they say nothing.

    With snr = alpha^2 / sigma^2, limited to g by min-SNR weighting, they are 1 for eps (limited /
    snr), snr for x and snr / (snr + 1) for v.
    """
    weight = buffers.get("loss_weight")
    if weight is None:
        return list(PREDICTS)
    signal = buffers["alphas_cumprod"]
    snr = signal / (1 - signal).clamp(min=1e-12)
    limited: dict[str, Callable[[Tensor], Tensor]] = {
        "eps": lambda weight: weight * snr,
        "v": lambda weight: weight * (snr + 1),
        "x": lambda weight: weight,
    }
    fitting = [name for name, times in limited.items() if _is_limited(times(weight), snr)]
    return fitting or list(PREDICTS)


def _is_limited(values: Tensor, snr: Tensor) -> bool:
    """Whether the values are min(snr, g) for some g; 1 - alpha^2 of float32 is off by up to 1 %."""
    limit = torch.minimum(snr, values.max())
    return bool(((values - limit).abs() <= 0.02 * limit + 1e-6).all())


# --- what the user says


def _number(asked: Answers, name: str, least: int, most: int, default: int | None = None) -> int:
    if name not in asked and default is not None:
        return default
    text = asked[name]
    if not text.isdecimal() or not least <= int(text) <= most:
        problem = f"`{name}` is `{text}`, and should be a whole number from {least} to {most}"
        raise UsageError(problem, f"write it as {name}=8", "--assume")
    return int(text)


def theta_of(asked: Answers) -> float:
    text = asked.get("theta", "10000")
    try:
        theta = float(text)
    except ValueError:
        theta = math.nan
    if not 0 < theta <= 1e12:
        problem = f"`theta` is `{text}`, and should be a number above 0"
        raise UsageError(problem, "write it as theta=10000", "--assume")
    return theta
