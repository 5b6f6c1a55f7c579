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
    before = teacher.guidance
    for stage in stages:
        own = stage.settings.objective.guidance_inside
        if own is not None and before is not None:
            raise UsageError(
                f"`{name}` has guidance already ({inside.told(before)}), and `{stage.name}` would "
                "guide it a second time",
                "its students keep what it has: leave that stage and `distill.guidance` out "
                "(--set distill.guidance=null), or take a teacher without guidance inside",
                "distill.guidance",
            )
        if own is not None and teacher.null_label is None:
            raise UsageError(
                f"`{name}` cannot be guided: it has no null class, which stands for no class",
                "train it anew with --set train.label_drop=0.1 (and with classes), or leave "
                "guidance out: --set distill.guidance=null",
                "distill.guidance",
            )
        before = own or before
