"""A model as plain functions of tensors that can be written as a graph:
the network, and the whole way from noise to pictures.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.prediction import predict
from vdiff.diffusion.schedule import sampling_times
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel
from vdiff.randomness import Randomness

MOST_STEPS = 16
"""Of a sampler in one graph, which has the network once for every step."""

PICTURES_TOLERANCE = 1e-3
"""Largest difference of pictures in [-1, 1] between a graph and vdiff."""

HALF_PICTURES_TOLERANCE = 1e-2
"""The same for weights in half precision: two programs round other sums."""

SETTINGS = "export.json"
"""Beside the graphs: what goes in and comes out."""


class Graph(NamedTuple):
    """One of the two functions.

    name: `network` or `sampler`.   module: the function.   inputs: example tensors by name, a batch
    of two; every first dimension is the batch.   output: what its result is called.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


class NetworkGraph(nn.Module):
    """The network of a model.   z: [B, C, H, W].   time: float32 [B].   label: int64 [B]."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.network = denoiser.network

    def forward(self, z: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        output: Tensor = self.network(z, time, Condition(label))
        return output


class Step(NamedTuple):
    """The numbers of one DDIM step, from t to s.   time: what the network is fed at t."""

    time: float
    alpha: float
    sigma: float
    alpha_s: float
    sigma_s: float


class SamplerGraph(nn.Module):
    """DDIM without fresh noise, all steps one after the other; the pictures are not clipped.

    noise: [B, C, H, W].   label: int64 [B].
    """

    def __init__(self, denoiser: Denoiser, num_steps: int, clip: float | None) -> None:
        super().__init__()
        self.network = denoiser.network
        self.predicts = denoiser.predicts
        self.clip = clip
        self.steps = _steps(denoiser, num_steps)

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        z = noise
        for step in self.steps:
            time = torch.full((z.shape[0],), step.time, dtype=torch.float32, device=z.device)
            output = self.network(z, time, Condition(label))
            alpha = torch.tensor(step.alpha, dtype=z.dtype)
            sigma = torch.tensor(step.sigma, dtype=z.dtype)
            x, eps, _ = predict(self.predicts, output, z, alpha, sigma)
            if self.clip is not None:
                x = x.clamp(-self.clip, self.clip)
                eps = (z - alpha * x) / sigma
            z = step.alpha_s * x + step.sigma_s * eps
        return z


def graphs_of(model: ForeignModel) -> list[Graph]:
    """The network, and the sampler where it can be one graph: `hindrance` tells when not.

    Errors: ModelFileError for a model whose network sees no pixels.
    """
    if model.codec != "pixels":
        problem = "its network sees no pixels, and a graph would have to decode what it draws"
        raise ModelFileError(problem, "choose another format", "--to")
    z = torch.zeros(2, *model.shape)
    label = {"label": torch.zeros(2, dtype=torch.int64)} if model.num_classes else {}
    graph = NetworkGraph(model.denoiser).eval()
    network = Graph("network", graph, {"z": z, "time": torch.zeros(2), **label}, "output")
    if hindrance(model) is not None:
        return [network]
    drawn = SamplerGraph(model.denoiser, model.num_steps, _clip(model)).eval()
    return [network, Graph("sampler", drawn, {"noise": z, **label}, "pictures")]


def halved(model: ForeignModel) -> ForeignModel:
    """The model with its weights, and what its network computes, in half precision.

    What goes in and comes out of the network, and all that the sampler computes, stays float32.
    """
    network = deepcopy(model.denoiser.network).half()
    return replace(model, denoiser=replace(model.denoiser, network=network))


def hindrance(model: ForeignModel) -> str | None:
    """Why the sampler of a model is not one graph; None if it is."""
    if model.num_steps > MOST_STEPS:
        return f"it takes {model.num_steps} steps, and a graph has at most {MOST_STEPS}"
    known = {"kind", "eta", "clip", "clip_noise"}
    sampler = model.sampler or {"kind": "ddim"}
    if sampler.get("kind") != "ddim" or sampler.get("eta") or sampler.get("clip_noise"):
        return "its sampler is not DDIM without fresh noise"
    if not sampler.keys() <= known:
        return "its sampler has options that a graph does not have"
    return None


def write_settings(model: ForeignModel, folder: Path, kind: str) -> None:
    """What goes into the graphs and comes out of them, for programs and people."""
    content = {"kind": kind, **settings_of(model)}
    text = json.dumps(content, indent=2) + "\n"
    (folder / SETTINGS).write_text(text, encoding="utf-8", newline="\n")


def settings_of(model: ForeignModel) -> dict[str, object]:
    """For the metadata of a graph."""
    return {
        "shape": list(model.shape),
        "num_classes": model.num_classes,
        "null_class": model.null_class,
        "num_steps": model.num_steps,
        "predicts": model.denoiser.predicts,
        "steps": [step._asdict() for step in _steps(model.denoiser, model.num_steps)]
        if model.num_steps <= MOST_STEPS
        else [],
        "diffusion": dict(model.diffusion),
        "pictures": "float32 [batch, C, H, W], -1 black to 1 white, not clipped",
        "no_sampler_because": hindrance(model),
        "licence": model.licence,
    }


def check_pictures(
    model: ForeignModel, graph: Graph, run: Callable[[dict[str, Tensor]], Tensor], by: str
) -> None:
    """Compare the pictures of a written sampler with those of the module, in batches of 1 and 3.

    run: the written graph.   by: what computes it.
    Errors: ModelFileError for a difference over `PICTURES_TOLERANCE`, or over that of halves.
    """
    is_half = next(graph.module.parameters()).dtype == torch.float16
    tolerance, fix = PICTURES_TOLERANCE, "report this: it is a fault of vdiff"
    if is_half:
        tolerance, fix = HALF_PICTURES_TOLERANCE, "leave out --fp16"
    for count in (1, 3):
        seeds = torch.arange(count, dtype=torch.int64)
        inputs = {"noise": Randomness.for_images(seeds).normal(*model.shape)}
        if model.num_classes:
            inputs["label"] = seeds % model.num_classes
        with torch.no_grad():
            wanted: Tensor = graph.module(*inputs.values())
        difference = float((run(inputs) - wanted).abs().max())
        if not difference <= tolerance:
            problem = f"pictures that {by} draws with the sampler differ by {difference:.2g}"
            raise ModelFileError(problem, fix, graph.name)


def _clip(model: ForeignModel) -> float | None:
    clip = (model.sampler or {}).get("clip")
    return float(clip) if isinstance(clip, int | float) else None


def _steps(denoiser: Denoiser, num_steps: int) -> tuple[Step, ...]:
    times = sampling_times(num_steps)
    scales = denoiser.schedule.scales_at(times)
    fed = denoiser.schedule.time_input(torch.tensor(times, dtype=torch.float64)).tolist()
    return tuple(Step(fed[place], *scales[place], *scales[place + 1]) for place in range(num_steps))
