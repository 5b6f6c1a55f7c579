"""Guidance inside of students: which stage has what, what its pictures are told,
and what is refused.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from vdiff.chain.plan import Stage
from vdiff.diffusion import inside
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import UsageError
from vdiff.model_folder.card import ModelCard, is_model_folder, read_card
from vdiff.networks import NETWORKS
from vdiff.networks.network import as_network
from vdiff.runs.folder import RunFolder
from vdiff.training.telling import AS_THEY_ARE, Telling


def inside_of(stage: Stage, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the model of a stage has inside, as its card is to say it.

    before: what its teacher has.
    """
    return stage.settings.objective.guidance_inside or before


def told_guidance(found: dict[str, Any] | None) -> Telling:
    """What the pictures of a stage are told, whose network has this inside."""
    drawn = inside.range_of(found)
    if drawn is None:
        return AS_THEY_ARE
    return Telling(guidance=drawn)


def taking(student: Denoiser, found: dict[str, Any] | None, seed: int) -> Denoiser:
    """The student, whose network takes guidance if it has that inside: it does as before at first.

    seed: of the new weights.   Errors: UsageError for a network that cannot.
    """
    network = as_network(student.network)
    if inside.range_of(found) is None or network.takes_guidance:
        return student
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = network.with_guidance_input()
    return Denoiser(made.requires_grad_(True), student.schedule, student.predicts)


def refuse_guidance(
    run: RunFolder, stages: Sequence[Stage], done: Sequence[str], teacher: Path | None
) -> None:
    """UsageError for a stage that would guide a second time, or cannot guide at all.

    done: those of the stages that stay.   teacher: of the first stage; None for the base.
    Of a teacher that is still to be made, nothing is known yet.
    """
    for place, stage in enumerate(stages):
        if stage.name not in done:
            if teacher is not None and is_model_folder(teacher):
                _refuse(stages[place:], read_card(teacher), teacher.name)
            return
        teacher = run.model(stage.name)


def _refuse(stages: Iterable[Stage], teacher: ModelCard, name: str) -> None:
    """stages: that are still to be made.   teacher: of the first.   name: what messages call it."""
    before, is_denoiser = teacher.guidance, teacher.is_denoiser
    for stage in stages:
        objective = stage.settings.objective
        own = objective.guidance_inside
        if own is not None:
            _refuse_one(stage, teacher, name, before, is_denoiser)
            _refuse_input(stage, teacher, name)
        before = own or before
        if not objective.is_as_teacher:
            is_denoiser = objective.is_denoiser


def _refuse_one(
    stage: Stage, teacher: ModelCard, name: str, before: dict[str, Any] | None, is_denoiser: bool
) -> None:
    """Of one stage that guides.

    before: what its own teacher has inside, and whether that is a denoiser.
    """
    where = "distill.guidance"
    leave_out = "leave guidance out: --set distill.guidance=null"
    if stage.is_listed:
        where = "distill.stages"
        leave_out = f"leave `{stage.name}` out of `distill.stages`"
    if before is not None:
        raise UsageError(
            f"`{name}` has guidance already ({inside.told(before)}), and `{stage.name}` would "
            "guide it a second time",
            f"its students keep what it has: {leave_out}; or take a teacher without guidance "
            "inside",
            where,
        )
    if not is_denoiser:
        raise UsageError(
            f"the teacher of `{stage.name}` predicts where a step leads, and not the mean that "
            "guidance is made of",
            f"guide the base itself, as the first stage; or {leave_out}",
            where,
        )
    if teacher.null_label is None:
        another = "train it anew with --set train.label_drop=0.1 (and with classes)"
        if teacher.is_imported:
            another = "take a model with a null class"
        raise UsageError(
            f"`{name}` cannot be guided: it has no null class, which stands for no class",
            f"{another}, or {leave_out}",
            where,
        )


def _refuse_input(stage: Stage, teacher: ModelCard, name: str) -> None:
    """UsageError for a range of guidance, of which the network cannot be told."""
    kind = teacher.network
    if inside.range_of(stage.settings.objective.guidance_inside) is None or kind not in NETWORKS:
        return
    if not NETWORKS.section(kind).may_take_guidance:
        raise UsageError(
            f"`{name}` is a network of the kind `{kind}`, which cannot take guidance as an input",
            "one number needs no input, as in --set distill.guidance=1.5",
            "distill.stages" if stage.is_listed else "distill.guidance",
        )
