"""The costs of a chain: time, memory and disk, from what its parts cost
and how often they are done.
"""

import math
from dataclasses import dataclass

from vdiff.chain.plan import Stage
from vdiff.chain.stage_pictures import PREVIEW_STEPS
from vdiff.recipe.recipe import Recipe


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will cost, in seconds.

    updates: the training itself.   saves: savepoints and the model folder.
    pictures: previews.
    trend: what `evaluate` measures.   start: making the networks, and what the first update takes
    longer.
    """

    stage: Stage
    updates: float
    saves: float
    pictures: float
    trend: float
    start: float

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.updates + self.saves + self.pictures + self.trend + self.start


@dataclass(frozen=True)
class Estimate:
    """What all stages will cost.

    start: seconds until the first stage begins.   disk_bytes: model folders and the saves of one
    stage.
    memory_bytes: the peak, on a CPU of the whole process, on a GPU of torch's tensors.
    """

    stages: list[StageEstimate]
    num_parameters: int
    disk_bytes: int
    memory_bytes: int
    start: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return self.start + sum(each.seconds for each in self.stages)


@dataclass(frozen=True)
class Cost:
    """Measured of one sort of stage.

    Seconds: of an update, of a sampler step per drawn picture (`call`), of a save.
    """

    start: float
    update: float
    call: float
    save: float
    memory_bytes: int


def stage_estimate(
    recipe: Recipe, stage: Stage, cost: Cost, metrics: tuple[float, float], done: int = 0
) -> StageEstimate:
    """What a stage costs when its parts cost so much;
    metrics: seconds before the first measurement, and of each.

    done: updates of it that are saved, and not made again.
    """
    settings = stage.settings
    steps = min(stage.num_steps, PREVIEW_STEPS)
    previews = 0
    if settings.preview_every:
        previews = _times(settings.updates, settings.preview_every, done)
    saves = math.ceil(settings.updates / settings.save_every) - done // settings.save_every
    return StageEstimate(
        stage,
        updates=cost.update * (settings.updates - done),
        saves=cost.save * (saves + 1),
        pictures=cost.call * (previews + 1) * steps * recipe.sample.num_images,
        trend=_trend_seconds(recipe, stage, cost, metrics, done),
        start=cost.start,
    )


def _times(updates: int, every: int, done: int) -> int:
    """How often a multiple of `every` comes after `done` updates, and before the last one."""
    return max((updates - 1) // every - done // every, 0)


def _trend_seconds(
    recipe: Recipe, stage: Stage, cost: Cost, metrics: tuple[float, float], done: int
) -> float:
    """Of all measurements of a stage that are left, and of the pictures that are drawn for them."""
    measured = measurements(recipe, stage, done)
    if not measured:
        return 0.0
    if stage.index:
        # the teacher draws once
        calls = measured * stage.num_steps + stage.start_steps
    else:
        calls = measured * min(stage.num_steps, PREVIEW_STEPS)
    first, each = metrics
    return cost.call * calls * recipe.evaluate.num_images + first + each * measured


def measurements(recipe: Recipe, stage: Stage, done: int = 0) -> int:
    """How often the trend of a stage is measured, after so many updates."""
    every = recipe.evaluate.every
    if every is not None:
        return _times(stage.settings.updates, every, done) + 1
    has_floor = recipe.distill.stop_if.psnr_below is not None
    return int(stage.index > 0 and has_floor)
