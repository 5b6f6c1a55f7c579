"""What a stage is made of: its pictures, a student that starts somewhere,
and the objective it learns by.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vdiff.chain.guidance import inside_of, told_guidance
from vdiff.chain.plan import Stage, shaping_values
from vdiff.choices import Predicts
from vdiff.data.dataset import Images, NamesClasses
from vdiff.data.loader import Batch, batches
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.limits import check_chain
from vdiff.errors import DataError, ModelFileError, UsageError
from vdiff.machine.machine import Machine
from vdiff.machine.processes import Processes
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard, codec_for
from vdiff.networks.network import as_network
from vdiff.objectives.objective import Objective, Task
from vdiff.recipe.recipe import DistillSection, Recipe
from vdiff.training.telling import Telling


def open_images(recipe: Recipe, classes: int) -> Images:
    """The pictures of the recipe, after a look whether their labels fit a
    network of so many classes.
    """
    images: Images = recipe.data.open()
    if classes and images.num_classes == 0:
        problem = "the network has classes, but the pictures have no labels"
        fix = (
            "`vdiff prepare --dry-run` tells why, "
            "`vdiff prepare --labels folders --force` may find some"
        )
        raise DataError(problem, f"{fix}; or leave out `network.num_classes`")
    if classes and images.num_classes > classes:
        fix = f"set `network.num_classes` to {images.num_classes}"
        raise DataError(
            f"the pictures have {images.num_classes} classes, the network has {classes}", fix
        )
    return images


def shaping(
    recipe: Recipe, stage: Stage, teacher: Checkpoint | None, images: Images, precision: str
) -> dict[str, Any]:
    """Every value that shapes the weights of a stage, by name:
    of the recipe, the pictures and the teacher.
    """
    taught_by: str | None = None
    if teacher is not None:
        taught_by = teacher.card.hash
    own = shaping_values(recipe, stage, precision)
    return {**own, "data": images.fingerprint, "teacher": taught_by}


def agree(processes: Processes, values: Mapping[str, Any], images: Images) -> None:
    """See that all processes are about to train the same.

    values: of `shaping`.   Errors, in all of them: UsageError for another recipe, DataError for
    other pictures.
    """
    recipe = {name: value for name, value in values.items() if name != "data"}
    fix = "give all of them the same recipe; `precision: auto` is not the same on every machine"
    processes.agree(recipe, UsageError, "the processes of this run would not train the same", fix)
    agree_on_pictures(processes, images)


def agree_on_pictures(processes: Processes, images: Images) -> None:
    """See that all processes have the same pictures.   Errors: DataError, in all of them."""
    if processes.world_size == 1:
        return  # the fingerprint of a foreign store costs reading all of it
    pictures = {
        "fingerprint": processes.together(lambda: images.fingerprint),
        "pictures": images.num_images,
    }
    fix = (
        "copy the store of the first host to the others; "
        "`vdiff inspect STORE` shows its fingerprint"
    )
    processes.agree(pictures, DataError, "the processes of this run have different pictures", fix)


def num_classes(recipe: Recipe, teacher: Checkpoint | None) -> int:
    """Of the network that is trained, 0 for none, the null class not among them:
    a student has its teacher's, whatever the recipe says.
    """
    if teacher is None:
        return recipe.network.told_classes
    return teacher.card.num_classes


def stage_batches(
    recipe: Recipe, stage: Stage, images: Images, classes: int, machine: Machine, start_update: int
) -> Iterator[Batch]:
    """This process's shares of the batches of a stage, from its 0-based update `start_update` on.

    classes: of the network; without any, it is told no labels.
    """
    shares = batches(
        images,
        seed=recipe.seed,
        stage=stage.index,
        batch_size=stage.settings.batch_size,
        start_update=start_update,
        rank=machine.rank,
        world_size=machine.world_size,
        flip=recipe.data.flip,
        num_workers=images.num_workers,
    )
    if classes == 0:
        return (batch._replace(labels=None) for batch in shares)
    return shares


def telling_of(recipe: Recipe, stage: Stage, found: dict[str, Any] | None) -> Telling:
    """What the network of a stage is told of the pictures.   found: guidance inside of it."""
    if stage.index > 0 or recipe.train.label_drop == 0:
        return told_guidance(found)
    return Telling(recipe.train.label_drop, null_label=recipe.network.told_classes)


def fresh(recipe: Recipe, shape: tuple[int, int, int]) -> Denoiser:
    """A student with random weights, the same for the same seed.

    shape: of a picture, [C, H, W].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        channels, size, _ = codec_for(None).shape(shape)
        network = as_network(recipe.base_network.build(size, channels))
    return Denoiser(network, recipe.diffusion.schedule.build(), recipe.diffusion.predicts)


def copied(teacher: Checkpoint, images: Images, predicts: Predicts | None = None) -> Denoiser:
    """A student that starts as its teacher is: to be made before the teacher is frozen,
    which rounds its weights.

    predicts: what the student is to predict, None for what its teacher does.
    """
    if teacher.card.shape != images.shape:
        raise DataError(
            f"`{teacher.card.name}` makes pictures of {teacher.card.shape}, "
            f"the store holds {images.shape}",
            f"prepare pictures of {teacher.card.shape[-1]} pixels, or take another teacher",
        )
    bad = [
        name
        for name, weight in teacher.denoiser.network.state_dict().items()
        if not torch.isfinite(weight).all()
    ]
    if bad:
        problem = f"the weights of the teacher `{teacher.card.name}` are not finite"
        raise ModelFileError(problem, "take another teacher", f"{teacher.folder}: `{bad[0]}`")
    network = deepcopy(teacher.denoiser.network)
    return replace(
        teacher.denoiser,
        network=network.requires_grad_(True),
        predicts=predicts or teacher.denoiser.predicts,
    )


def freeze(teacher: Checkpoint, machine: Machine) -> Checkpoint:
    """Have a teacher learn nothing more: it is moved to the device and cast to the run's precision.

    In place, as a copy would take as much memory again; returns what it is from now on.
    """
    return replace(teacher, denoiser=frozen(teacher.denoiser, machine))


def frozen(teacher: Denoiser, machine: Machine) -> Denoiser:
    """As `freeze`, of a teacher that has no model folder."""
    return replace(teacher, network=machine.freeze(teacher.network))


def known_of(teacher: Checkpoint | None) -> tuple[Denoiser | None, int | None, int | None]:
    """What `objective_of` is told of a teacher, itself first; nothing of none."""
    if teacher is None:
        return None, None, None
    return teacher.denoiser, teacher.card.times, teacher.card.null_label


def objective_of(
    stage: Stage,
    teacher: Denoiser | None,
    teacher_times: int | None = None,
    null_label: int | None = None,
) -> Objective:
    """How the student of a stage learns.

    teacher: frozen; None for the base.   teacher_times, null_label: as `Task` has them.
    """
    settings = stage.settings
    task = Task(
        settings.weighting,
        settings.updates,
        stage.num_steps,
        teacher,
        stage.teacher_steps,
        teacher_times,
        null_label,
    )
    return settings.objective.build(task)


def check_targets(stage: Stage, teacher: Checkpoint) -> None:
    """UsageError for a teacher that does not know the times of a stage,
    or whose schedule has no targets for them.

    The recipe was checked with its own schedule, but a student has its teacher's.
    """
    if stage.settings.objective.needs_denoiser and not teacher.card.is_solvable:
        problem = (
            f"`{stage.name}` is to learn from a second-order way of `{teacher.folder}`, which is "
            "no denoiser of all times: its x leads where its own steps do"
        )
        fix = "set `distill.objective.teacher=ddim`, or start from the base that it was made from"
        raise UsageError(problem, fix, "--from")
    times = teacher.card.times
    if times is not None and times % stage.start_steps:
        problem = (
            f"`{teacher.folder}` knows the times i / {times} only, "
            f"not all of its {stage.start_steps} steps"
        )
        fix = "take a number of steps that divides them, or another teacher"
        if stage.is_listed:
            fix = (
                f"have `{stage.name}` of `distill.stages` start at a number of steps that divides "
                f"{times}, or take another teacher"
            )
        raise UsageError(problem, fix, "--from")
    try:
        check_chain(teacher.denoiser.schedule, (stage.start_steps, stage.num_steps))
    except ValueError as err:
        fix = "set a smaller `distill.start_steps`, or take another teacher"
        if stage.is_listed:
            fix = (
                f"give `{stage.name}` fewer `steps` in `distill.stages`, or take another teacher "
                "(of fewer steps, with a `distill.start_steps` and `distill.stages` that start "
                "there)"
            )
        raise UsageError(f"with the schedule of `{teacher.folder}`, {err}", fix, "--from") from err


def student_predicts(stage: Stage) -> Predicts | None:
    """What the recipe wants the student of a stage to predict;
    None for what its teacher predicts.
    """
    settings = stage.settings
    if not isinstance(settings, DistillSection):
        return None
    return settings.predicts


def _diffusion_of(stage: Stage, teacher: ModelCard) -> dict[str, Any]:
    """A student has the noise process of its teacher, but may predict something else of it."""
    predicts = student_predicts(stage)
    if predicts is None:
        return teacher.diffusion
    return teacher.diffusion | {"predicts": predicts}


def _data_of(classes: int, images: Images) -> dict[str, Any]:
    """What a card says of the pictures.   classes: of the network, which has their names then."""
    found: dict[str, Any] = {
        "fingerprint": images.fingerprint,
        "num_images": images.num_images,
    }
    if classes and isinstance(images, NamesClasses) and images.class_names:
        found["class_names"] = list(images.class_names)
    return found


def _names_of(teacher: ModelCard) -> dict[str, Any]:
    """The names that a teacher has for its classes, which its students keep."""
    names = teacher.class_names
    return {"class_names": list(names)} if names else {}


def card_of(
    recipe: Recipe,
    text: str,
    stage: Stage,
    teacher: ModelCard | None,
    images: Images,
    shaped_by: Mapping[str, Any],
    network: nn.Module,
) -> ModelCard:
    """What the model folder of a finished stage says about itself.

    text: the recipe as it was written.   teacher: None for the base.   shaped_by: of `shaping`.
    network: the one that was trained.
    """
    objective = stage.settings.objective
    card = ModelCard(
        name=stage.name,
        stage=stage.index,
        num_steps=stage.num_steps,
        times=objective.known_times(stage.num_steps),
        updates=stage.settings.updates,
        shape=images.shape,
        num_classes=recipe.network.told_classes,
        num_parameters=sum(weight.numel() for weight in network.parameters()),
        network=recipe.network.kind,
        diffusion=recipe.diffusion.model_dump(mode="json"),
        recipe=text,
        data=_data_of(recipe.network.told_classes, images),
        trajectory=dict(shaped_by),
        sampler=objective.advised_sampler(),
        is_denoiser=objective.is_denoiser,
        null_class=recipe.train.label_drop > 0,
    )
    if teacher is None:
        return card
    if objective.is_as_teacher:
        card = replace(
            card, times=teacher.times, sampler=teacher.sampler, is_denoiser=teacher.is_denoiser
        )
    return replace(
        card,
        num_classes=teacher.num_classes,
        null_class=teacher.null_class,
        data=_data_of(teacher.num_classes, images) | _names_of(teacher),
        guidance=inside_of(stage, teacher.guidance),
        network=teacher.network,
        diffusion=_diffusion_of(stage, teacher),
        codec=teacher.codec,
        parent={"name": teacher.name, "num_steps": teacher.num_steps, "hash": teacher.hash},
        origin=teacher.origin,
    )
