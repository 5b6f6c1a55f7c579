"""What the names and shapes in a file of denoising-diffusion-pytorch tell of its network,
and which ones vdiff refuses.

Between versions the network changed in ways that its tensors show, and in three that they do not:
see `by_version`.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vdiff.errors import ModelFileError
from vdiff.formats.contents import Contents

Shape = tuple[int, ...]

PREFIXES = (
    "ema.ema_model.model.",
    "ema_model.model.",
    "model.model.",
    "ema.model.",
    "model.",
    "",
)
"""Where a network may lie, the averaged weights of its trainer first."""

OLD_PREFIXES = tuple(f"{prefix.removesuffix('model.')}denoise_fn." for prefix in PREFIXES)
"""Where it lay before version 0.21."""

ELUCIDATED = ("ema.ema_model.net.", "model.net.", "net.")

HEADS_BEFORE_MEMORY = 4
"""Attention heads before version 1.9, unless the user chose another number."""

PICTURE_CHANNELS = (1, 3, 4)

_FIX = "vdiff reads the `Unet` of versions 0.27 to 2.3, as `GaussianDiffusion` trains it"


class Traits(NamedTuple):
    """What leaves no trace in the tensors of generation D.

    is_standardized: whether the blocks' convolution weights are standardized before their use.
    norm: of attention, by `layer` or by root mean square.   divides_values: see `LinearAttention`.
    """

    is_standardized: bool
    norm: str
    divides_values: bool


@dataclass(frozen=True)
class Layout:
    """A network in a file.

    prefix: of the names of its tensors.   buffers: that of the diffusion's tables, None where there
    are none.
    shapes: of its tensors, by the names of version 2.
    generation: A, B, C or D, see the documentation of formats.
    version: of the program, where the file says it.
    is_average: whether these are averaged weights.
    """

    path: Path
    prefix: str
    buffers: str | None
    shapes: Mapping[str, Shape]
    generation: str
    version: str | None
    is_average: bool

    def shape(self, name: str, num_dimensions: int = 4) -> Shape:
        """Errors: ModelFileError where there is no such tensor."""
        shape = self.shapes.get(name, ())
        if len(shape) != num_dimensions or 0 in shape:
            problem = f"`{self.path.name}` does not hold the whole network: it lacks `{name}`"
            raise ModelFileError(problem, "take an undamaged copy", self.path)
        return shape

    @property
    def inputs(self) -> int:
        """Channels that its first convolution takes."""
        return self.shape("init_conv.weight")[1]

    @property
    def outputs(self) -> int:
        """Channels that its last convolution makes."""
        return self.shape("final_conv.weight")[0]

    @property
    def channels(self) -> int:
        """Of the pictures."""
        least = min(self.inputs, self.outputs)
        # with self-conditioning and a learned variance both are doubled
        is_doubled = self.inputs == self.outputs and least not in PICTURE_CHANNELS
        return least // 2 if is_doubled and least % 2 == 0 else least

    @property
    def has_self_condition(self) -> bool:
        """Whether it is given the picture that it predicted a step before, too."""
        return self.inputs == 2 * self.channels

    @property
    def has_variance(self) -> bool:
        """Whether it predicts a variance, behind the rest."""
        return self.outputs == 2 * self.channels


def is_ours(found: Contents) -> bool:
    """Whether a trainer of lucidrains wrote the file, or the weights in it have the
    names of such a network.
    """
    if found.container not in ("torch", "safetensors"):
        return False
    names = {fact.name for fact in found.tensors}
    places = (*PREFIXES, *OLD_PREFIXES, *ELUCIDATED)
    if any(_is_network(names, prefix) for prefix in places):
        return True
    is_trainer = {"step", "model", "opt", "ema"} <= found.entries.keys()
    return is_trainer and any(name.startswith("ema.ema_model.") for name in names)


def layout_of(found: Contents) -> Layout:
    """The network that `read` takes.

    Errors: ModelFileError for one that vdiff does not compute, by name.
    """
    shapes = {fact.name: fact.shape for fact in found.tensors}
    prefix = next((place for place in PREFIXES if _is_network(shapes, place)), None)
    if prefix is None:
        raise _refused(found, _other_place(shapes))
    inner = {
        plain_name(name.removeprefix(prefix)): shape
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }
    reason = _other_network(inner)
    if reason is not None:
        raise _refused(found, reason)
    buffers = prefix.removesuffix("model.")
    has_wrappers = any(".fn.fn." in name for name in shapes if name.startswith(prefix))
    version = found.entries.get("version")
    return Layout(
        path=found.path,
        prefix=prefix,
        buffers=buffers if f"{buffers}alphas_cumprod" in shapes else None,
        shapes=inner,
        generation=_generation(inner, has_wrappers),
        version=version if isinstance(version, str) and parsed(version) else None,
        is_average=prefix.startswith(("ema.", "ema_model.")),
    )


def plain_name(name: str) -> str:
    """A name as version 2 has it: before 1.8 a norm and its attention lay
    in wrappers of their own.
    """
    return name.replace(".fn.fn.", ".").replace(".fn.norm.", ".norm.")


def parsed(version: str) -> tuple[int, ...]:
    """(1, 7, 2) of "1.7.2"; empty for what is no version."""
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", version):
        return ()
    return tuple(int(part) for part in version.split("."))


def by_version(layout: Layout, version: str) -> Traits:
    """What version a file is of decides in generation D; later ones have none of it."""
    numbers = parsed(version)
    if layout.generation != "D":
        return Traits(False, "rms", False)
    norm = "layer" if numbers < (1, 7) else "rms"
    return Traits(numbers < (1, 7, 2), norm, numbers < (1, 7, 4))


def network_config(
    layout: Layout, version: str, theta: float, groups: int | None, heads: int | None
) -> dict[str, object]:
    """The settings of the network, for `LucidrainsConfig`.

    groups: of the blocks' norms, None in generation A.   heads: where nothing in the file tells it.
    Errors: ModelFileError for tensors that are missing or contradict each other.
    """
    count = num_levels(layout)
    blocks = [f"downs.{level}.0" for level in range(count)]
    widths = [layout.shape(f"{block}.block1.proj.weight")[0] for block in [*blocks, "mid_block1"]]
    traits = by_version(layout, version)
    time_width, dim = layout.shape("time_mlp.1.weight", 2)
    halves = "unshuffle"
    if "downs.0.3.weight" in layout.shapes and count > 1:
        halves = "convolution"
    return {
        "channels": layout.channels,
        "dim": dim,
        "widths": widths,
        "time_width": time_width,
        "last_width": layout.shape("final_conv.weight")[1],
        "theta": theta,
        "groups": groups,
        "memory": _memory(layout),
        "attentions": [_attention(layout, f"downs.{level}.2", heads) for level in range(count)],
        "middle": _attention(layout, "mid_attn", heads),
        "halving": halves,
        "norm": traits.norm,
        "divides_values": traits.divides_values,
    }


def num_levels(layout: Layout) -> int:
    """How many resolutions the network has."""
    found = [re.match(r"downs\.(\d{1,4})\.", name) for name in layout.shapes]
    return len({match[1] for match in found if match})


def group_counts(layout: Layout) -> list[int]:
    """Numbers of groups that the blocks' norms may have, the default first;
    empty in generation A.
    """
    if layout.generation == "A":
        return []
    norms = [
        shape[0] for name, shape in layout.shapes.items() if re.search(r"block\d\.norm\.w", name)
    ]
    counts = [8, 4, 16, 32, 2, 1]
    return [count for count in counts if all(width % count == 0 for width in norms)]


def _attention(layout: Layout, place: str, heads: int | None) -> dict[str, object]:
    inner = layout.shape(f"{place}.to_qkv.weight")[0] // 3
    is_full = f"{place}.to_out.weight" in layout.shapes
    memory = layout.shapes.get(f"{place}.mem_kv")
    if memory is not None:
        heads = layout.shape(f"{place}.mem_kv")[1]
    heads = heads or HEADS_BEFORE_MEMORY
    if inner % heads or not inner:
        problem = f"`{place}` has {inner} channels, which {heads} heads cannot share"
        raise ModelFileError(problem, "say how many it has: --heads", layout.path)
    return {"full": is_full, "heads": heads, "head_dim": inner // heads}


def _memory(layout: Layout) -> int:
    if "mid_attn.mem_kv" not in layout.shapes:
        return 0
    memory = layout.shape("mid_attn.mem_kv")
    return memory[2]


def _is_network(names: Container[str], prefix: str) -> bool:
    """Whether names of tensors with this prefix are those of such a network, of any version."""
    common = ("init_conv.weight", "time_mlp.1.weight", "final_conv.weight")
    old = ("time_mlp.1.weight", "downs.0.0.block1.proj.weight", "mid_attn.fn.fn.to_qkv.weight")
    return any(all(f"{prefix}{name}" in names for name in group) for group in (common, old))


def _generation(shapes: Mapping[str, Shape], has_wrappers: bool) -> str:
    if has_wrappers:
        return "D"
    if "downs.0.0.block1.norm.g" in shapes:
        return "A"
    if "mid_attn.mem_kv" in shapes:
        return "B"
    return "C"


def _other_place(shapes: Mapping[str, Shape]) -> str:
    """What a file holds that has no network where `GaussianDiffusion` has it."""
    if any(_is_network(shapes, place) for place in OLD_PREFIXES):
        return "a network of a version before 0.21 (`denoise_fn`)"
    if any(_is_network(shapes, place) for place in ELUCIDATED):
        return "an `ElucidatedDiffusion`, which is told of noise levels and not of steps"
    return "what a trainer wrote, but no `Unet` (a `KarrasUnet`, an XM or another network)"


def _other_network(shapes: Mapping[str, Shape]) -> str | None:
    """Why vdiff does not compute a network of these tensors."""
    if len(shapes.get("init_conv.weight", ())) == 3:
        return "a `Unet1D`, whose pictures are sequences"
    if any(name.startswith(("classes_emb", "null_classes_emb", "classes_mlp")) for name in shapes):
        return "a network for classifier-free guidance, which is told of classes"
    if "time_mlp.0.weights" in shapes:
        return "a network with learned or random Fourier features of the time"
    if "init_conv.weight" not in shapes or any(name.endswith("norm.b") for name in shapes):
        return "a network of a version before 0.26.5"
    if "downs.0.0.block1.proj.weight" not in shapes:
        return "a network of other blocks (ConvNeXt, of versions before 0.27)"
    return None


def _refused(found: Contents, told: str) -> ModelFileError:
    problem = f"`{found.path.name}` holds {told}: vdiff does not compute it"
    return ModelFileError(problem, _FIX, found.path)
