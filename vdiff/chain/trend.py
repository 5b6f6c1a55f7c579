"""The trend: cheap numbers of a network while it learns and when it is done;
the floor under which a chain stops.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vdiff.chain.plan import Stage
from vdiff.chain.stage_pictures import Draw, advice_of_card, advice_of_stage
from vdiff.data.dataset import Images
from vdiff.diffusion import inside
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import DivergedError, UsageError
from vdiff.machine.machine import Machine
from vdiff.metrics.agreement import AgreementSection
from vdiff.metrics.metric import AnyMetricSection, MetricSection, Reference, named
from vdiff.metrics.pair_metric import Pairs, are_pairs
from vdiff.metrics.reference import StorePictures
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard, codec_for
from vdiff.recipe.recipe import Recipe
from vdiff.runs.folder import RunFolder
from vdiff.system.plural import count


class Trend:
    """What is measured of one stage. Nothing of the training is touched.

    has_pairs: whether the student is compared with its teacher.
    is_on: whether anything is, at least once, when the stage is complete.
    every: updates; None for only then.
    teacher: frozen.   num_images: drawn for each measurement.
    draw: every process must call it, and does its share.
    cache: for what is known of the reference pictures.
    Errors: DataError, UsageError for pictures that a metric cannot do with.
    """

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        teacher: Checkpoint | None,
        images: Images,
        machine: Machine,
        cache: Path,
    ) -> None:
        section = recipe.evaluate
        self.every = section.every
        self.num_images = section.num_images
        self._stage = stage
        self._teacher = teacher
        self._advice = advice_of_stage(stage, teacher.card if teacher is not None else None)
        taken = inside.range_of(stage.settings.objective.guidance_inside)
        if taken is not None:
            # at the usual g it has nothing to learn
            self._advice = replace(self._advice, guidance=taken[1])
        self._machine = machine
        self._codec = codec_for(teacher)
        has_floor = teacher is not None and recipe.distill.stop_if.psnr_below is not None
        self.is_on = section.every is not None or has_floor
        sections: Sequence[AnyMetricSection] = ()
        if section.every is not None:
            sections = named(section.metrics)
        pairs: list[AnyMetricSection] = []
        if teacher is not None:
            pairs = [each for each in sections if are_pairs(each)]
        if has_floor and not any(each.kind == "agreement" for each in pairs):
            pairs = [AgreementSection(), *pairs]
        fingerprint = ""
        if sections:
            # of a foreign store it costs reading all of it
            fingerprint = images.fingerprint
        against = Reference(
            StorePictures(images),
            fingerprint,
            cache,
            where="evaluate.metrics",
        )
        is_first = machine.is_first  # the others draw their shares and measure nothing
        sets = [each for each in sections if isinstance(each, MetricSection) and is_first]
        self._metrics = {each.name: each.build(against) for each in sets}
        self.has_pairs = bool(pairs)
        self._pairs = Pairs(pairs if is_first else [])
        leasts = {name: metric.least for name, metric in self._metrics.items()}
        leasts |= {each.name: each.least for each in pairs}
        for name, least in leasts.items():
            if self.num_images < least:
                fix = f"set `evaluate.num_images` to {least} or more"
                raise UsageError(
                    f"`{name}` needs at least {least:,} samples", fix, "evaluate.num_images"
                )
        self._drawn_by_teacher: Tensor | None = None

    def measure(self, student: Denoiser, draw: Draw, most_steps: int) -> dict[str, float | None]:
        """Numbers by name, in the first process; a psnr of None is that of equal pictures.

        Errors: DivergedError, in every process, for pictures that hold NaN or Inf; DataError.
        """
        advice = self._advice
        if self._teacher is None:
            # a base has many steps; a student is compared with its teacher in its own
            advice = advice.with_at_most(most_steps)
        drawn = draw(student, advice, self.num_images)
        pictures = self._codec.decode(drawn, self._stage.name)
        values: dict[str, float | None] = {}
        if self.has_pairs and self._teacher is not None:
            if self._drawn_by_teacher is None:
                card = self._teacher.card
                # guided as the student is, and by a solver only where the student is drawn by it
                as_drawn = replace(
                    advice_of_card(card),
                    guidance=advice.guidance,
                    is_denoiser=card.is_denoiser and advice.is_solvable,
                )
                drawn = draw(self._taught_by(self._teacher), as_drawn, self.num_images)
                self._drawn_by_teacher = self._codec.decode(drawn, card.name)
            if self._machine.is_first:
                values |= self._pairs.compare(pictures, self._drawn_by_teacher)
        return values | {
            name: metric.value(pictures).value for name, metric in self._metrics.items()
        }

    def _taught_by(self, teacher: Checkpoint) -> Denoiser:
        """The teacher as the student is to become."""
        objective = self._stage.settings.objective
        return objective.as_taught(teacher.denoiser, teacher.card.null_label)

    def told(self, update: int, values: dict[str, float | None]) -> str:
        """The line that a person reads."""
        found = ", ".join(
            f"{name} {value:.4g}" for name, value in values.items() if value is not None
        )
        pictures = f"{self.num_images:,} pictures"
        if self._advice.guidance is not None:
            pictures += f" at guidance {self._advice.guidance:g}"
        return f"{self._stage.name}: trend at update {update:,}, of {pictures}: {found}"


def check_floor(
    recipe: Recipe, stage: Stage, card: ModelCard, run: RunFolder, note: Callable[[str], None]
) -> None:
    """DivergedError for a finished student that agrees with its teacher less than the recipe wants.

    Its card tells; the cards of vdiff 0.1 do not, and there the log of the run does.
    """
    floor = recipe.distill.stop_if.psnr_below
    if floor is None or stage.index == 0:
        return
    agreement = card.agreement or _of_log(run.log, stage.name, card.updates)
    if agreement is None:
        note(f"`{stage.name}` was made without `distill.stop_if`: its agreement is not known")
        return
    psnr = agreement["psnr"]
    num_images = agreement["num_images"]
    if psnr is not None and psnr < floor:
        of = ""
        if isinstance(num_images, int):
            of = f" of {count(num_images, 'picture')}"
        problem = (
            f"`{stage.name}` agrees with its teacher to {psnr:.2f} dB only{of}, "
            f"under the floor of {floor:g} dB"
        )
        more = "more `distill.updates`"
        if stage.is_listed:
            more = f"more `updates` for `{stage.name}` in `distill.stages`"
        fix = (
            f"add --force to make it again with {more}, "
            f"or go on with `--set distill.stop_if.psnr_below={math.floor(psnr)}`"
        )
        raise DivergedError(problem, fix, f"{run.model(stage.name)} (it stays)")


def _of_log(log: Path, stage: str, updates: int) -> dict[str, Any] | None:
    """The agreement that the trend told after the last of so many updates;
    a shorter training had another one.
    """
    if not log.exists():
        return None
    for line in reversed(log.read_text(encoding="utf-8").splitlines()):
        try:
            entry = json.loads(line)
            is_end = entry["stage"] == stage and entry["update"] == updates
            if is_end and "psnr" in entry.get("trend", {}):
                return {"psnr": entry["trend"]["psnr"], "num_images": entry.get("num_images")}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # half a line, from a writer that was killed
    return None
