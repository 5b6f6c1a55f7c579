"""What a model folder says to diffusers and to people:
pipeline, scheduler and a README, none of which claims too much.

diffusers builds whatever class `model_index.json` names, with random weights where the file's do
not fit, so a network that diffusers does not know gets no such file.
"""

import json
from typing import Any

from vdiff.diffusion import inside
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import Schedule
from vdiff.formats import diffusers_files
from vdiff.model_folder.card import PIXELS, ModelCard
from vdiff.networks.network import Network, as_network
from vdiff.system.plural import count

README = "README.md"
"""Not among the files that a model folder vouches for:
people complete it before they publish a model.
"""


def class_of(network: Network) -> str | None:
    """The class in diffusers that is this network, with the same parameters;
    None where there is none.
    """
    settings = network.diffusers()
    if settings is None:
        return None
    return str(settings["_class_name"])


def model_index(card: ModelCard, denoiser: Denoiser) -> dict[str, Any] | None:
    """The content of model_index.json; None for what diffusers does not know, or draws otherwise:
    the network, its sampler, or the times that the network is told.
    """
    name = class_of(as_network(denoiser.network))
    if name is None or not _is_drawn_by_diffusers(card, denoiser):
        return None
    return diffusers_files.index(name, card.num_classes)


def scheduler_config(card: ModelCard, denoiser: Denoiser) -> dict[str, Any]:
    """The content of scheduler_config.json."""
    own_steps: int | None = None
    if card.times is not None:
        own_steps = card.num_steps
    return diffusers_files.scheduler(denoiser.schedule, denoiser.predicts, own_steps)


def readme(card: ModelCard, denoiser: Denoiser, has_picture: bool) -> str:
    """README.md: what the model is and how pictures are drawn with it."""
    network = as_network(denoiser.network)
    channels, height, width = card.shape
    kind = {1: "grey", 3: "colour", 4: "RGBA"}.get(channels, f"{channels}-channel")
    steps = count(card.num_steps, "step")
    hub_class: str | None = None
    if _is_drawn_by_diffusers(card, denoiser):
        hub_class = class_of(network)
    parts = [
        _front_matter(hub_class),
        f"# {card.name}",
        f"Draws {kind} pictures of {width} x {height} pixels in **{steps}**. {_origin(card)}",
    ]
    if has_picture:
        parts.append("![Pictures that it drew](samples.png)")
    parts += [
        "## Drawing",
        *_drawing(card, class_of(network), denoiser.schedule),
        "## Facts",
        _facts(card),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(class_name: str | None) -> str:
    """What model hubs read."""
    lines = ["---"]
    if class_name:
        lines.append("library_name: diffusers")
    lines += [
        "pipeline_tag: unconditional-image-generation",
        "tags:",
        "- vdiff",
        "- diffusion",
        "- progressive-distillation",
        "- few-step",
        "---",
    ]
    return "\n".join(lines)


def _origin(card: ModelCard) -> str:
    if card.parent is None and card.times is not None:
        return (
            f"It learned from pictures, and knows the {card.times:,} times i / {card.times} only."
        )
    if card.parent is None:
        return (
            "A base network: it can be drawn with in any number of steps, "
            "and fewer make worse pictures."
        )
    teacher = f"`{card.parent['name']}`, which needs {card.parent['num_steps']}"
    if card.learned_by != "progressive":
        return f"A student of {teacher}."
    return (
        f"A student of {teacher}, made by progressive distillation (Salimans & Ho 2022, "
        "arXiv 2202.00512)."
    )


def _drawing(card: ModelCard, class_name: str | None, schedule: Schedule) -> list[str]:
    grid = schedule.grid
    with_vdiff = f"```bash\nvdiff sample --checkpoint {card.name}\n```"
    taken = inside.range_of(card.guidance)
    if taken is not None:
        told = (
            f"It takes the strength of guidance, from {taken[0]:g} to {taken[1]:g} (1 is none), as "
            "an input, which no class of diffusers has: every step is one network call for any of "
            f"them. Drawn with {inside.usual(card.guidance):g} where nothing else is said:"
        )
        for_others = (
            f"`vdiff export {card.name} --to diffusers --guidance {taken[1]:g}` makes an ordinary "
            "model of it, for one strength."
        )
        return [told, with_vdiff, for_others]
    if class_name is None:
        told = (
            f"diffusers does not know this network (`{card.network}`); "
            "vdiff does, with the package that brings it:"
        )
        return [told, with_vdiff]
    if not _is_drawn_by_ddim(card):
        return [
            "It has a sampler of its own, which diffusers does not know; vdiff does:",
            with_vdiff,
        ]
    if not schedule.is_told_as_in_diffusers:
        told = "Its network is told of other times than diffusers tells it; vdiff knows them:"
        return [told, with_vdiff]
    if card.times is not None and grid % card.num_steps:
        told = (
            "diffusers knows the whole times of the schedule's grid only, of which there are "
            f"{grid:,}, and {card.num_steps:,} steps lie between them: it draws other pictures, or "
            "none. vdiff knows all:"
        )
        return [told, with_vdiff]
    return [*_with_diffusers(card, grid), "Or with vdiff:", with_vdiff]


def _with_diffusers(card: ModelCard, grid: int) -> list[str]:
    """How diffusers draws with the model, and what it does not know of it."""
    num_steps = min(card.num_steps, grid)
    pipeline = "DDIMPipeline"
    labels = ""
    num_images = 4
    if card.num_classes:
        pipeline = "DiffusionPipeline"
        num_images = min(card.num_classes, 4)
        some = ", ".join(str(label) for label in range(num_images))
        labels = f"class_labels=[{some}], "
    code = [
        f"from diffusers import {pipeline}",
        "",
        f'pipeline = {pipeline}.from_pretrained("{card.name}")',
        f"pictures = pipeline(batch_size={num_images}, {labels}"
        f"num_inference_steps={num_steps}).images",
    ]
    texts = ["```python\n" + "\n".join(code) + "\n```"]
    if card.times is not None:
        texts.append(
            f"`num_inference_steps={card.num_steps}` belongs to this model. With any other number, "
            "and with the default of diffusers, it draws wrong pictures without a complaint."
        )
    elif card.num_steps > grid:
        texts.append(
            f"diffusers draws in at most {grid:,} steps with this model, vdiff in any number."
        )
    if card.num_classes:
        texts.append(
            f"It has {card.num_classes} classes, 0 to {card.num_classes - 1}. "
            "`DDIMPipeline` cannot pass them on; the pipeline that `model_index.json` names does."
        )
    if card.null_class:
        texts.append(
            f"Class {card.null_label} stands for no class: `vdiff sample --guidance` leads away "
            "from what it predicts. The pipelines of diffusers for this network do not."
        )
    return texts


def _is_drawn_by_diffusers(card: ModelCard, denoiser: Denoiser) -> bool:
    return _is_drawn_by_ddim(card) and denoiser.schedule.is_told_as_in_diffusers


def _is_drawn_by_ddim(card: ModelCard) -> bool:
    """What diffusers' pipelines do with it; `eta` and clipping would be the caller's to pass on."""
    # a baked guidance is a part of the weights
    is_told = inside.range_of(card.guidance) is not None
    return card.sampler in (None, {"kind": "ddim"}) and not is_told and card.codec == PIXELS


def _facts(card: ModelCard) -> str:
    sampler = "DDIM"
    if card.sampler is not None:
        sampler = str(card.sampler["kind"])
    seen = "?"
    if isinstance(card.data.get("num_images"), int):
        seen = f"{card.data['num_images']:,}"
    rows = {
        "sampler": f"{sampler}, {count(card.num_steps, 'step')}",
        "parameters": f"{card.num_parameters:,}",
        "updates": f"{card.updates:,}",
        "predicts": str(card.diffusion.get("predicts", "?")),
        "pictures seen": seen,
    }
    if card.guidance is not None:
        rows["guidance"] = inside.told(card.guidance)
    if card.parent is not None:
        rows["teacher"] = f"`{card.parent['name']}`, SHA-256 {card.parent['hash'][:16]}..."
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def json_text(content: dict[str, Any]) -> str:
    """As diffusers' own files look."""
    return json.dumps(content, indent=2) + "\n"
