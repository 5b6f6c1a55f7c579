"""What runs, model folders, image stores and recipes hold: facts ready for JSON.

Nothing is changed or executed.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vdiff.disk import whole_folder
from vdiff.errors import ModelFileError
from vdiff.model_folder import card as model_card
from vdiff.model_folder.card import ModelCard, is_model_folder, read_card
from vdiff.recipe import text as recipe_text
from vdiff.runs.folder import STATE, RunFolder
from vdiff.runs.status import read as read_status

Facts = dict[str, Any]


def run(folder: Path, verify: bool = False) -> Facts:
    """Every finished model folder of a run and every stage that was stopped,
    in the order of the chain.

    verify: read every byte; otherwise only see that the files are there and have their sizes.
    A model is `whole` or `damaged`, with what is wrong in `problems`; a stage that was stopped is
    `unfinished`.
    """
    place = RunFolder(folder)
    models = [
        _model_row(place.model(name), verify)
        for name in [*place.models(), *place.without_manifest()]
    ]
    teachers = {row["hash"]: row["name"] for row in models}
    stopped = [_unfinished_row(place, name, verify, teachers) for name in place.unfinished()]
    status = read_status(place.status, place.is_at_work())
    rows = sorted([*models, *stopped], key=lambda row: (row["stage"] is None, row["stage"]))
    return {
        "kind": "run",
        "path": str(folder),
        "recipe": str(place.recipe) if place.recipe.is_file() else None,
        "status": asdict(status) if status else None,
        "models": rows,
        "warnings": _orphans(models),
        "verified": verify,
    }


def model(folder: Path, verify: bool = False) -> Facts:
    """Everything on the card of a model folder, the state of its files, and where its teachers are.

    Errors: ModelFileError for a card that cannot be believed.
    """
    card = read_card(folder)
    return {
        "kind": "model",
        **_row_of(card, folder, verify),
        "name": card.name,
        "is_distilled": card.is_distilled,
        "times": card.times,
        "sampler": card.sampler,
        "guidance": card.guidance,
        "is_denoiser": card.is_denoiser,
        "codec": card.codec,
        "format": card.format,
        "shape": list(card.shape),
        "num_classes": card.num_classes,
        "class_names": card.class_names,
        "null_class": card.null_class,
        "network": card.network,
        "diffusion": card.diffusion,
        "data": card.data,
        "lineage": _lineage(card, folder),
        "made_by": card.made_by,
        "versions": card.versions,
        "trajectory": card.trajectory,
        "files": card.files,
        "recipe": card.recipe,
        "warnings": [],
        "verified": verify,
    }


def store(path: Path, verify: bool = False) -> Facts:
    """What an image store says about itself.   Errors: DataError when it is damaged.

    verify: read every picture and compare its checksum; stores of diffusion_distiller have none.
    """
    from vdiff.data.store import ImageStore  # numpy and lmdb, which runs and models do without

    opened = ImageStore(path)
    if verify:
        opened.verify()
    summary = opened.summary()
    return {
        **summary,
        "kind": "store",
        "layout": summary["kind"],
        "verified": verify and opened.metadata is not None,
    }


def recipe(path: Path) -> Facts:
    """What a recipe asks for: the stages, and the number of weights, which no memory is taken for.

    Errors: UsageError with all its mistakes.
    """
    import torch

    from vdiff.chain.plan import plan
    from vdiff.recipe.recipe import Recipe

    found = recipe_text.validate(Recipe, recipe_text.read_file(path))
    with torch.device("meta"):
        network = found.base_network.build(found.data.size, found.data.channels)
    stages = [
        {
            "name": stage.name,
            "start_steps": stage.start_steps,
            "num_steps": stage.num_steps,
            "objective": stage.settings.objective.kind,
            "updates": stage.settings.updates,
            "batch_size": stage.settings.batch_size,
            "learning_rate": stage.settings.learning_rate,
        }
        for stage in plan(found)
    ]
    return {
        "kind": "recipe",
        "path": str(path),
        "name": found.name,
        "num_parameters": sum(weight.numel() for weight in network.parameters()),
        "stages": stages,
        "settings": found.model_dump(mode="json"),
    }


_ROW = (
    "stage",
    "num_steps",
    "parent",
    "num_parameters",
    "updates",
    "planned_updates",
    "bytes",
    "hash",
    "origin",
)


def _model_row(folder: Path, verify: bool) -> Facts:
    try:
        return _row_of(read_card(folder), folder, verify)
    except ModelFileError as err:
        row = {
            "name": folder.name,
            "path": str(folder),
            "state": "damaged",
            "problems": [err.problem],
        }
        return row | dict.fromkeys(_ROW)


def _row_of(card: ModelCard, folder: Path, verify: bool) -> Facts:
    problems = model_card.damage(folder, hashed=verify)
    return {
        "name": folder.resolve().name,
        "path": str(folder),
        "state": "damaged" if problems else "whole",
        "problems": problems,
        "stage": card.stage,
        "num_steps": card.num_steps,
        "parent": card.parent,
        "num_parameters": card.num_parameters,
        "updates": card.updates,
        "planned_updates": card.updates,
        "bytes": card.num_bytes,
        "hash": card.hash,
        "origin": card.origin,
    }


def _unfinished_row(place: RunFolder, name: str, verify: bool, teachers: dict[str, str]) -> Facts:
    """The stage as its newest whole save has it;
    damaged saves, which are passed over, are its problems.
    """
    problems: list[str] = []
    row: Facts = {
        "name": name,
        "path": str(place.saves(name)),
        "state": "unfinished",
        "problems": problems,
    }
    for point in place.points(name):
        try:
            content = whole_folder.read(point, STATE)
            found = whole_folder.damage(point, content, verify)
        except ModelFileError as err:
            found = [err.problem]
        if not found:
            return row | _saved(content, teachers)
        problems += [f"{point.name}/{line}" for line in found]
    return row | dict.fromkeys(_ROW)


def _saved(content: Facts, teachers: dict[str, str]) -> Facts:
    trajectory = content["trajectory"] if isinstance(content.get("trajectory"), dict) else {}
    teacher = trajectory.get("teacher")
    parent = {
        "name": teachers.get(str(teacher)),
        "num_steps": _count(trajectory.get("start_steps")),
        "hash": teacher,
    }
    return dict.fromkeys(_ROW) | {
        "stage": _count(trajectory.get("stage")),
        "num_steps": _count(trajectory.get("num_steps")),
        "parent": parent if isinstance(teacher, str) else None,
        "updates": _count(content.get("update")),
        "planned_updates": _count(
            trajectory.get("distill.updates", trajectory.get("train.updates"))
        ),
        "bytes": sum(entry["size"] for entry in content["files"].values()),
    }


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _orphans(models: Sequence[Facts]) -> list[str]:
    """A sentence for every student whose teacher is not the model that now
    has the teacher's name.
    """
    hashes = {row["name"]: row["hash"] for row in models}
    return [
        (
            f"`{row['name']}` was distilled from another `{row['parent']['name']}` than the one "
            "that is there now"
        )
        for row in models
        if row["parent"]
        and hashes.get(row["parent"]["name"], row["parent"]["hash"]) != row["parent"]["hash"]
    ]


def _lineage(card: ModelCard, folder: Path) -> list[Facts]:
    """The teachers, nearest first, as far as they lie beside the model;
    `path` is None for the first that does not.
    """
    beside = _cards(RunFolder(folder.resolve().parent))
    lineage: list[Facts] = []
    while card.parent and card.parent["hash"] not in [each["hash"] for each in lineage]:
        path, teacher = beside.get(card.parent["hash"], (None, None))
        lineage.append({**card.parent, "path": str(path) if path else None})
        if teacher is None:
            break
        card = teacher
    return lineage


def _cards(place: RunFolder) -> dict[str, tuple[Path, ModelCard]]:
    found = {}
    aside = sorted(path for path in place.earlier.glob("*") if is_model_folder(path))
    for path in [*aside, *map(place.model, place.models())]:
        try:
            card = read_card(path)
        except ModelFileError:
            continue  # `run` tells what is wrong with it
        found[card.hash] = (path, card)
    return found
