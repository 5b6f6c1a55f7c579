"""Drawing with ONNX Runtime: a model's whole sampler as one graph, exported once and kept.

The graph lies in a cache folder, under the SHA-256 of the model, its steps and its sampler, and
the versions of what made it. It is there whole or not at all; where it is damaged it is made
anew. When it is made, its pictures are compared with vdiff's own: they differ by
`formats.graphs.PICTURES_TOLERANCE` at most.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from vdiff import __version__
from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import sampling_times
from vdiff.disk import manifest, whole_folder
from vdiff.disk.ours import Kind
from vdiff.drawing.guidance import UNASKED, Guidance, way
from vdiff.errors import MachineError, ModelFileError, UsageError
from vdiff.formats import graphs
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.onnx_format import NEEDED, OPSET
from vdiff.model_folder.card import CONFIG, PIXELS
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.sampler import Sampler
from vdiff.system.distribution import with_extra

KIND = Kind("graph.json", re.compile(r"graph\.json|sampler\.onnx"), lambda folder: False)
"""A folder of the cache."""

_GRAPH = "sampler.onnx"
_FIX = "leave out `--backend onnx`"


class OnnxSampler:
    """Draws pictures from seeds with ONNX Runtime.

    by: its name and version.   is_new: whether the graph was made just now.
    """

    def __init__(
        self, model: Checkpoint, sampler: Sampler, num_steps: int, cache: Path | None = None
    ) -> None:
        """Take the graph from the cache folder, or make it.

        cache: None for `cache_folder()`.
        Errors: UsageError, MachineError as of `check`; ModelFileError for a graph that draws
        something else; MachineError when the disk refuses.
        """
        check(model.card, sampler, num_steps)
        # the packages are an extra
        from vdiff.formats import onnx_writing

        self._shape = model.card.shape
        foreign = _foreign(model, sampler, num_steps)
        folder = (cache or cache_folder()) / _key(model.card, sampler, num_steps)
        self.by = onnx_writing.runtime()
        self.is_new = not _is_whole(folder)
        if self.is_new:
            _make(foreign, folder)
        self._run = onnx_writing.opened(folder / _GRAPH, torch.get_num_threads())

    def __call__(self, seeds: Sequence[int], condition: Condition) -> Tensor:
        """The pictures of these seeds, float32 [len(seeds), C, H, W]."""
        rng = Randomness.for_images(torch.tensor(seeds, dtype=torch.int64))
        inputs = {"noise": rng.normal(*self._shape)}
        if condition.label is not None:
            inputs["label"] = condition.label
        return self._run(inputs)


def check(card: ModelCard, sampler: Sampler, num_steps: int, guidance: Guidance = UNASKED) -> None:
    """Refuse what no graph can hold, before anything is loaded.

    Errors: UsageError; MachineError for packages that are missing.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"to draw with ONNX Runtime, vdiff needs {', '.join(missing)}"
        raise MachineError(problem, with_extra("onnx"), "--backend")
    reason = _hindrance(card, sampler, num_steps)
    if reason is None and way(card, guidance) == "twice":
        reason = "a graph asks the network once in each step, and guidance twice"
    if reason is not None:
        raise UsageError(f"`{card.name}` cannot be drawn by a graph: {reason}", _FIX, "--backend")


def cache_folder() -> Path:
    """Where graphs are kept: `vdiff/graphs` in $XDG_CACHE_HOME, or in ~/.cache."""
    # relative paths there are to be passed over, as the XDG specification says
    told = os.environ.get("XDG_CACHE_HOME", "")
    place = Path(told) if os.path.isabs(told) else Path.home() / ".cache"
    return place / "vdiff" / "graphs"


def _hindrance(card: ModelCard, sampler: Sampler, num_steps: int) -> str | None:
    """Why the way from noise to pictures is not one graph; None if it is."""
    if card.guidance is not None:
        if card.guidance.get("kind") == "input":
            return "it takes guidance as an input, for which a graph has no place"
        return "it is guided"
    if card.codec != PIXELS:
        return "its network sees no pixels, and a graph would have to decode what it draws"
    if type(sampler) is not Ddim:
        return f"the sampler `{sampler}` is not DDIM"
    if sampler.is_noisy or sampler.clip_noise is not None:
        return f"the sampler `{sampler}` adds fresh noise or clips the noise"
    if num_steps > graphs.MOST_STEPS:
        return f"it takes {num_steps} steps, and a graph has at most {graphs.MOST_STEPS}"
    if sampling_times(num_steps, card.times) != sampling_times(num_steps):
        return f"{num_steps} steps of {card.times} are not of equal length"
    return None


def _foreign(model: Checkpoint, sampler: Sampler, num_steps: int) -> ForeignModel:
    """The model as the exporter wants it."""
    card = model.card
    if type(model.denoiser) is not Denoiser:
        problem = f"`{card.name}` cannot be drawn by a graph: its denoiser is not its network alone"
        raise UsageError(problem, _FIX, "--backend")
    section: dict[str, object] = {"kind": "ddim"}
    if sampler.clip is not None:
        section["clip"] = sampler.clip
    return ForeignModel(
        denoiser=model.denoiser,
        network=card.network,
        diffusion=card.diffusion,
        shape=card.shape,
        num_classes=card.num_classes,
        num_steps=num_steps,
        is_distilled=card.times is not None,
        sampler=section,
        facts={"name": card.name},
    )


def _key(card: ModelCard, sampler: Sampler, num_steps: int) -> str:
    """Of the cache: another one for whatever could draw other pictures."""
    # equal weights may stand in another noise process, or in a network of other settings
    reading = {name: getattr(card, name) for name in _READING}
    packages = {name: version(name) for name in ("torch", *NEEDED)}
    content = {
        "model": card.hash,
        "settings": card.files[CONFIG]["sha256"],
        "reading": reading,
        "num_steps": num_steps,
        "sampler": str(sampler),
        "opset": OPSET,
        "vdiff": __version__,
        "packages": packages,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_READING = ("network", "diffusion", "shape", "num_classes", "times")
"""What a card says of how the weights are read."""


def _is_whole(folder: Path) -> bool:
    """Whether the graph is there, and every byte is as it was written."""
    try:
        return manifest.damage(folder, manifest.read(folder, KIND.manifest)) == []
    except (ModelFileError, OSError):
        return False


def _make(model: ForeignModel, folder: Path) -> None:
    from vdiff.formats import onnx_writing

    whole_folder.make(folder.parent)
    num_bytes = sum(weight.nbytes for weight in model.denoiser.network.parameters())
    facts = {"name": model.facts["name"], "num_steps": model.num_steps}
    if _is_whole(folder):
        return  # another command has made it meanwhile
    # in the cache, whatever bears such a name is ours
    KIND.delete(folder)
    whole_folder.write(
        folder,
        KIND,
        facts,
        lambda target: onnx_writing.write_sampler(model, target / _GRAPH),
        num_bytes,
    )
