"""Guidance that somebody asks of a model that draws: how it is given, or why it cannot be.

One convention: g = 1 is none, and x_u + g (x_c - x_u) the prediction; where papers have a weight w,
it is g - 1. There are three ways to it. A model with a null class, or one with a guide beside it,
is asked twice in each step (`diffusion.guided`). A model that has learned to take g as an input is
told it. A model that has learned one g has it inside, and takes no other.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.guided import Guided
from vdiff.diffusion.inside import usual
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import UsageError
from vdiff.model_folder.card import ModelCard
from vdiff.system.distribution import UPGRADE

Way = Literal["none", "twice", "input"]
"""How a model is guided: not at all (or by what is inside of it), by two calls in each step, or by
a number that its network is told.
"""


@dataclass(frozen=True)
class Guide:
    """A weaker model, from whose prediction another one is led away.

    denoiser: on the device that draws; None before it is loaded.
    """

    folder: Path
    card: ModelCard
    denoiser: Denoiser | None = None


@dataclass(frozen=True)
class Guidance:
    """What is asked for.

    strength: g; None leaves the model as it is meant.
    interval: the noise levels sigma / alpha within which g acts; None for all.
    guide: takes the place of the null class.
    """

    strength: float | None = None
    interval: tuple[float, float] | None = None
    guide: Guide | None = None


UNASKED = Guidance()


def way(card: ModelCard, asked: Guidance) -> Way:
    """How a model is guided as it is asked.

    Errors: UsageError for a guidance that it cannot be given; nothing of it is loaded yet.
    """
    _check_numbers(asked)
    if card.guidance is not None:
        return _inside(card, asked)
    if asked.strength is None or (asked.strength == 1 and asked.guide is None):
        return "none"
    if not card.is_denoiser:
        raise UsageError(
            f"`{card.name}` predicts where a step leads, and not the mean that guidance is made of",
            "guide its teacher, or leave out `--guidance`",
            "--guidance",
        )
    if asked.guide is not None:
        _check_guide(card, asked.guide.card)
    elif not card.num_classes:
        raise UsageError(
            f"`{card.name}` knows no classes to be guided to",
            "leave out `--guidance`, or name a weaker model with `--guide-with`",
            "--guidance",
        )
    elif not card.null_class:
        one = "train one with `--set train.label_drop=0.1`"
        if card.is_imported:
            one = "import one that has it (`vdiff import --assume null_class=last`)"
        raise UsageError(
            f"`{card.name}` has no null class to be guided away from",
            f"{one}, or name a weaker model with `--guide-with`",
            "--guidance",
        )
    return "none" if asked.strength == 1 else "twice"


def strength(card: ModelCard, asked: Guidance) -> float:
    """g of the pictures that a model draws as it is asked, whatever is inside of it."""
    inside = card.guidance or {}
    if inside.get("kind") == "baked":
        return float(inside["value"])
    if asked.strength is not None:
        return asked.strength
    if inside.get("kind") == "input":
        return _usual(inside)
    return 1.0


def calls(card: ModelCard, asked: Guidance) -> int:
    """Network calls in the place of one."""
    return 2 if way(card, asked) == "twice" else 1


def guided(
    card: ModelCard, denoiser: Denoiser, asked: Guidance, condition: Condition, count: int
) -> tuple[Denoiser, Condition]:
    """What draws with a model as it is asked, and what it is told.

    condition: of `count` pictures; g is told beside it where the network takes it.
    Errors: UsageError, as `way`.
    """
    found = way(card, asked)
    g = strength(card, asked)
    if found == "input":
        told = torch.full((count,), g, dtype=torch.float32)
        return denoiser, condition._replace(guidance=told)
    if found == "none":
        return denoiser, condition
    guide = None
    if asked.guide is not None:
        guide = asked.guide.denoiser
        assert guide is not None, "the guide is not loaded"
    twice = Guided(
        denoiser.network,
        denoiser.schedule,
        denoiser.predicts,
        guidance=g,
        null_label=card.null_label,
        guide=guide,
        interval=asked.interval,
    )
    return twice, condition


def facts(card: ModelCard, asked: Guidance) -> dict[str, str]:
    """What pictures say of how they were guided, by name; nothing where they were not."""
    g = strength(card, asked)
    told: dict[str, str] = {}
    if card.guidance is not None or asked.strength is not None:
        told["guidance"] = number(g)
    if asked.interval is not None:
        told["guidance_interval"] = "-".join(map(number, asked.interval))
    if asked.guide is not None:
        told["guide"] = asked.guide.card.hash
    return told


def number(value: float) -> str:
    """g or a noise level as people write it: `1.5`, `4`."""
    return f"{value:.6g}"


def interval_of(text: str, where: str) -> tuple[float, float]:
    """Two noise levels, as in `0.28,2.9`; whether they are any is looked at by `way`.

    Errors: UsageError.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as err:
        fix = f"write it as {where} 0.28,2.9: the lowest and the highest noise level sigma / alpha"
        raise UsageError(f"`{text}` is no interval", fix, where) from err
    return low, high


def as_numbers(
    strength: float | None, interval: tuple[float, float] | None
) -> tuple[float | None, tuple[float, float] | None]:
    """g and an interval, of any type that is a number.   Errors: UsageError."""
    try:
        if isinstance(strength, bool):
            raise TypeError("true and false are no numbers")
        if strength is not None:
            strength = float(strength)
        if interval is not None:
            low, high = interval
            interval = float(low), float(high)
    except (TypeError, ValueError) as err:
        told = f"`guidance={strength}, guidance_interval={interval}`"
        fix = "write them as guidance=1.5, guidance_interval=(0.28, 2.9)"
        raise UsageError(f"{told} is no guidance", fix, "guidance") from err
    return strength, interval


def _check_numbers(asked: Guidance) -> None:
    """UsageError for what is no guidance for any model."""
    if asked.strength is not None and not math.isfinite(asked.strength):
        fix = "write a finite number, as in --guidance 1.5; 1 is none"
        raise UsageError(f"`{asked.strength}` is no guidance", fix, "--guidance")
    if asked.strength is None and (asked.interval or asked.guide):
        option = "--guidance-interval" if asked.interval else "--guide-with"
        fix = "add `--guidance 1.5`, or leave it out"
        raise UsageError(f"{option} does nothing by itself", fix, option)
    if asked.interval is not None:
        low, high = asked.interval
        if not 0 <= low < high:
            fix = "write the lower noise level first, as in --guidance-interval 0.28,2.9"
            raise UsageError(f"from {low} to {high} is no interval", fix, "--guidance-interval")


def _inside(card: ModelCard, asked: Guidance) -> Way:
    """Of a model that has guidance inside, on top of which there must be no other."""
    inside = card.guidance or {}
    kind = inside.get("kind")
    if kind not in ("input", "baked"):
        problem = f"`{card.name}` has guidance of the kind `{kind}` inside, unknown here"
        raise UsageError(problem, UPGRADE, "--guidance")
    if asked.interval is not None or asked.guide is not None:
        option = "--guidance-interval" if asked.interval else "--guide-with"
        problem = f"`{card.name}` has guidance inside, learned without {option}"
        raise UsageError(problem, f"leave out `{option}`", option)
    if kind == "input":
        low = float(inside["low"])
        high = float(inside["high"])
        if not low <= strength(card, asked) <= high:
            problem = f"`{card.name}` has learned guidance from {number(low)} to {number(high)}"
            fix = f"ask for one between them, as in --guidance {number(_usual(inside))}"
            raise UsageError(problem, fix, "--guidance")
        return "input"
    if asked.strength not in (None, float(inside["value"])):
        problem = (
            f"`{card.name}` has guidance {number(inside['value'])} inside, "
            "and a second one on top of it would act twice"
        )
        raise UsageError(problem, "leave out `--guidance`, or take its teacher", "--guidance")
    return "none"


def _usual(inside: Mapping[str, object]) -> float:
    """What a model that takes g is told where nobody asks."""
    found = usual(inside)
    assert found is not None
    return found


def _check_guide(card: ModelCard, guide: ModelCard) -> None:
    """UsageError for a guide whose predictions cannot stand beside the model's."""
    problem = ""
    if guide.shape != card.shape or guide.codec != card.codec:
        problem = f"makes pictures of {guide.shape}, `{card.name}` of {card.shape}"
    elif guide.num_classes != card.num_classes:
        problem = f"knows {guide.num_classes:,} classes, `{card.name}` {card.num_classes:,}"
    elif _schedule(guide) != _schedule(card):
        problem = f"has another noise schedule than `{card.name}`"
    elif guide.guidance is not None:
        problem = "has guidance inside"
    elif not guide.is_denoiser:
        problem = "predicts where a step leads, and not a mean"
    elif guide.times is not None and (card.times is None or guide.times % card.times):
        problem = f"knows the times i / {guide.times} only"
    if problem:
        fix = "take one like it that is smaller, or learned for a shorter time"
        raise UsageError(f"the guide `{guide.name}` {problem}", fix, "--guide-with")


def _schedule(card: ModelCard) -> object:
    return DiffusionSection.model_validate(card.diffusion).schedule
