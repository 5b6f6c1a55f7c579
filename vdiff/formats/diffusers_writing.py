"""A model of vdiff as a folder of diffusers:
a pipeline that draws the same pictures, a model card and `sample.py`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vdiff.diffusion import inside
from vdiff.errors import ModelFileError
from vdiff.formats import diffusers_files as files
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.diffusers_readme import NULL_CLASS
from vdiff.formats.weights import write_tensors
from vdiff.networks.network import as_network

_WEIGHTS = "unet/diffusion_pytorch_model"
_FIX = "draw with vdiff, or export to another format"
_MOST_PICTURES = 4


def write(model: ForeignModel, path: Path, fp16: bool) -> None:
    """Write the folder `path`.   fp16: the weights in half precision beside.

    Errors: ModelFileError for what diffusers would draw other pictures with, by name; OSError.
    """
    settings = as_network(model.denoiser.network).diffusers()
    if settings is None:
        problem = f"diffusers has no pipeline for a network of the kind `{model.network}`"
        raise ModelFileError(problem, _FIX, "--to")
    _check_process(model)
    sampler = _sampler(model)
    tensors = model.denoiser.network.state_dict()
    half = _halved(tensors) if fp16 else None
    (path / "unet").mkdir(parents=True)
    (path / "scheduler").mkdir()
    own_steps = model.num_steps if model.is_distilled else None
    denoiser = model.denoiser
    noise = files.scheduler(denoiser.schedule, denoiser.predicts, own_steps, sampler.get("clip"))
    for name, content in {
        "model_index.json": files.index(str(settings["_class_name"]), model.num_classes),
        "scheduler/scheduler_config.json": noise,
        "unet/config.json": settings,
    }.items():
        _write(path / name, json.dumps(content, indent=2) + "\n")
    write_tensors(path / f"{_WEIGHTS}.safetensors", tensors, {"format": "pt"})
    if half is not None:
        write_tensors(path / f"{_WEIGHTS}.fp16.safetensors", half, {"format": "pt"})
    picture = model.facts.get("picture")
    has_picture = isinstance(picture, Path) and picture.is_file()
    if isinstance(picture, Path) and has_picture:
        shutil.copyfile(picture, path / "samples.png")
    _write(path / "sample.py", sample_code(model, sampler))
    _write(path / "README.md", model_card(model, sampler, has_picture))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _check_process(model: ForeignModel) -> None:
    """Refuse a noise process that diffusers' DDIMScheduler does not have."""
    codec = model.codec if isinstance(model.codec, str) else str(model.codec.get("kind"))
    if codec != "pixels":
        problem = (
            f"diffusers' pipelines draw pixels, and this model draws through the codec `{codec}`"
        )
        raise ModelFileError(problem, _FIX, "--to")
    schedule = model.denoiser.schedule
    grid = schedule.grid
    if not schedule.is_told_as_in_diffusers:
        told = schedule.time_input(torch.tensor([1 / grid, 1.0], dtype=torch.float64))
        problem = (
            f"its network is told of times from {told[0]:g} to {told[1]:g}; "
            f"diffusers tells 0 to {grid - 1}"
        )
        raise ModelFileError(problem, _FIX, "`time_scale` of the schedule")
    if model.is_distilled and grid % model.num_steps:
        problem = f"{model.num_steps} steps lie between the {grid} times that diffusers knows"
        raise ModelFileError(problem, _FIX, "--to")


def _sampler(model: ForeignModel) -> dict[str, float]:
    """`clip` and `eta` of its sampler, which diffusers computes equally."""
    section = dict(model.sampler or {"kind": "ddim"})
    kind = section.pop("kind")
    if kind != "ddim":
        problem = f"it is meant for the sampler `{kind}`, which diffusers' pipelines lack"
        raise ModelFileError(problem, _FIX, "--to")
    found = {name: value for name, value in section.items() if value}
    strange = sorted(found.keys() - {"clip", "eta"})
    if strange:
        problem = f"its sampler has `{strange[0]}`, which diffusers' DDIMScheduler lacks"
        raise ModelFileError(problem, _FIX, "--to")
    return {name: float(str(value)) for name, value in found.items()}


def _halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    half = {name: tensor.half() for name, tensor in tensors.items()}
    large = next((name for name, tensor in half.items() if not tensor.isfinite().all()), None)
    if large is not None:
        problem = f"`{large}` has numbers that half precision cannot hold"
        raise ModelFileError(problem, "leave out --fp16", "--fp16")
    return half


def _steps(model: ForeignModel) -> int:
    """For `sample.py`: diffusers' steps are right where their number divides the grid."""
    grid = model.denoiser.schedule.grid
    return next(count for count in range(min(model.num_steps, grid), 0, -1) if grid % count == 0)


def sample_code(model: ForeignModel, sampler: Mapping[str, float]) -> str:
    """`sample.py`: draws a few pictures with diffusers as vdiff draws them."""
    count = min(model.num_classes, _MOST_PICTURES) or _MOST_PICTURES
    head = [
        (
            f'"""Draws {count} pictures in {_steps(model)} steps: '
            'pip install diffusers, then python sample.py."""'
        ),
        "",
        "from pathlib import Path",
        "",
        "import torch",
    ]
    options = [f"num_inference_steps={_steps(model)}", "generator=generator"]
    if model.num_classes and sampler:
        return "\n".join([*head, *_loop(model, sampler, count)]) + "\n"
    if model.num_classes:
        options.insert(0, f"class_labels={list(range(count))}")
    if "clip" in sampler:
        options.append("use_clipped_model_output=True")
    if "eta" in sampler:
        options.append(f"eta={sampler['eta']:g}")
    loader = "DiffusionPipeline" if model.num_classes else "DDIMPipeline"
    lines = [
        f"from diffusers import {loader}",
        "",
        f"pipeline = {loader}.from_pretrained(Path(__file__).parent)",
        "generator = torch.Generator().manual_seed(0)",
        f"pictures = pipeline(batch_size={count}, {', '.join(options)}).images",
        *_SAVE,
    ]
    return "\n".join([*head, *lines]) + "\n"


_SAVE = (
    "for number, picture in enumerate(pictures):",
    '    picture.save(f"sample_{number}.png")',
)


def _loop(model: ForeignModel, sampler: Mapping[str, float], count: int) -> list[str]:
    """The pipeline with classes cannot be told how to clip, so the steps are written out."""
    channels, height, width = model.shape
    return [
        "from diffusers import DiffusionPipeline",
        "",
        "pipeline = DiffusionPipeline.from_pretrained(Path(__file__).parent)",
        "generator = torch.Generator().manual_seed(0)",
        f"labels = torch.arange({count})",
        f"z = torch.randn({count}, {channels}, {height}, {width}, generator=generator)",
        f"pipeline.scheduler.set_timesteps({_steps(model)})",
        "for t in pipeline.scheduler.timesteps:",
        "    with torch.no_grad():",
        "        output = pipeline.unet(z, t, labels).sample",
        (
            f"    options = dict(eta={sampler.get('eta', 0):g}, "
            f"use_clipped_model_output={'clip' in sampler})"
        ),
        "    z = pipeline.scheduler.step(output, t, z, generator=generator, **options).prev_sample",
        "pictures = pipeline.postprocess_image(z)",
        *_SAVE,
    ]


def model_card(model: ForeignModel, sampler: Mapping[str, float], has_picture: bool) -> str:
    """README.md: the front matter that hubs read, how to draw, and what was measured."""
    name = str(model.facts.get("name", "model"))
    channels, height, width = model.shape
    kind = {1: "grey", 3: "colour", 4: "RGBA"}.get(channels, f"{channels}-channel")
    steps = f"{_steps(model)} step{'s' * (_steps(model) != 1)}"
    parts = [
        _front_matter(model, has_picture, steps),
        f"# {name}",
        f"Draws {kind} pictures of {width} x {height} pixels in **{steps}**.{_lineage(model)}",
        "## Drawing",
        "```python\n" + sample_code(model, sampler).partition('"""\n\n')[2] + "```",
        "The same is in `sample.py`.",
    ]
    if has_picture:
        parts.insert(3, "<Gallery />")
    if model.is_distilled:
        parts.append(
            f"`num_inference_steps={model.num_steps}` belongs to this model: with any other "
            "number, and with the default of diffusers, it draws wrong pictures without a "
            "complaint."
        )
    if "clip" in sampler:
        parts.append(
            f"The predicted pictures are kept within {sampler['clip']:g}, and the noise is made "
            "anew from them (`use_clipped_model_output=True`). Without that, diffusers draws "
            "slightly other pictures."
        )
    if model.null_class:
        parts.append(
            f"It knows {model.num_classes} classes, 0 to {model.num_classes - 1}, and "
            f"{model.num_classes}, which stands for no class: guidance leads away from what that "
            "predicts."
        )
    if model.guidance is not None:
        parts.append(
            f"Guidance is a part of the weights ({inside.told(model.guidance)}; 1 is none, papers "
            "that write w mean g - 1): each step is one network call, and guiding it once more "
            "would act twice."
        )
    numbers = model.facts.get("numbers")
    if isinstance(numbers, list) and numbers:
        parts += ["## Numbers", "\n".join(f"- {line}" for line in numbers)]
    return "\n\n".join(parts) + "\n"


def _front_matter(model: ForeignModel, has_picture: bool, steps: str) -> str:
    told = f" The teacher's is {model.licence}." if model.licence else ""
    tags = (
        "[diffusers, unconditional-image-generation, diffusion-models, "
        "progressive-distillation, vdiff]"
    )
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: unconditional-image-generation",
        f"tags: {tags}",
        f"# Under which licence do you publish this model?{told} Write it here, as hubs call it:",
        "# license: mit",
    ]
    origin = model.facts.get("origin")
    hub = origin.get("hub") if isinstance(origin, Mapping) else None
    if isinstance(hub, str) and hub:
        lines += [f"base_model: {hub}", "base_model_relation: finetune"]
    if model.null_class:
        lines += [f"{NULL_CLASS}: {model.num_classes}"]
    if has_picture:
        lines += ["widget:", f"- text: {steps}", "  output: {url: samples.png}"]
    return "\n".join([*lines, "---"])


def _lineage(model: ForeignModel) -> str:
    teacher = model.facts.get("teacher")
    origin = model.facts.get("origin")
    if isinstance(teacher, Mapping):
        return (
            f" A student of `{teacher.get('name')}`, which needs {teacher.get('num_steps')} steps"
            " (progressive distillation, arXiv 2202.00512)."
        )
    if isinstance(origin, Mapping) and origin.get("file"):
        return (
            f" Its weights come from `{origin['file']}` (SHA-256 "
            f"{str(origin.get('sha256'))[:16]}...)."
        )
    return ""
