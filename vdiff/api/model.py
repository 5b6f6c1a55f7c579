"""A model that somebody loads to draw with, from its folder."""

import contextlib
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from vdiff.api.card_html import html
from vdiff.api.images import ImageBatch
from vdiff.api.paths import path_of, reading
from vdiff.chain.own_recipe import drawing_part
from vdiff.data.codec import PixelCodec, codec_of
from vdiff.diffusion.condition import NOTHING, Condition, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.drawing import asked, classes
from vdiff.drawing import guidance as guidance_of
from vdiff.drawing.drawing import facts_of
from vdiff.drawing.guidance import Guidance, Guide
from vdiff.drawing.pictures import draw_with
from vdiff.errors import MachineError, ModelFileError, UsageError
from vdiff.exchange.hub_name import is_on_hub
from vdiff.images.images import to_float
from vdiff.machine.machine import Precision, frozen, pick_device
from vdiff.machine.memory import is_lacking
from vdiff.machine.precision import resolve_on
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import MANIFEST, ModelCard, is_model_folder
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import SampleSection
from vdiff.runs.folder import RunFolder
from vdiff.samplers.advised import sampler_for
from vdiff.samplers.sampler import Sampler
from vdiff.system.plural import count


class Model:
    """A model folder in memory, ready to draw; `load` makes it.

    path: the folder.   card: what the folder says about itself.
    denoiser: the predictor, for code of your own: `denoiser(z, t, condition)`. Its network is
    frozen.
    device: where it computes.   precision: what it computes in: fp32, bf16 or fp16.
    """

    path: Path
    card: ModelCard
    denoiser: Denoiser
    device: torch.device
    precision: str

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        denoiser: Denoiser,
        device: torch.device,
        precision: str,
        drawn: SampleSection,
    ) -> None:
        self.path = path
        self.card = card
        self.denoiser = denoiser
        self.device = device
        self.precision = precision
        self._drawn = drawn

    def sample(
        self,
        seeds: Iterable[int] = range(16),
        *,
        steps: int | None = None,
        label: int | str | Sequence[int | str] | None = None,
        sampler: str | Mapping[str, object] | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guide: "Model | None" = None,
        batch_size: int | None = None,
        watch: Callable[[int, int], None] | None = None,
    ) -> ImageBatch:
        """Draw one image per seed: bit for bit those of
        `vdiff sample --recipe FOLDER --checkpoint FOLDER`.

        seeds: whole numbers from 0 on; the same seed gives the same image, whatever the others are,
        to rounding.
        steps: of the sampler; None for those that the model is meant for (`card.num_steps`).
        label: a class for all images, or classes that are taken in turn, by number or name; None
        for seed modulo the number of classes.
        sampler: its name, or a mapping with options as a recipe has them,
        `{"kind": "ddim", "eta": 0.5}`; None for that of the recipe in the folder, or where it names
        none the one that the model is meant for.
        guidance: g, x_u + g (x_c - x_u), where 1 is none; for a model with a null class, which is
        asked twice in each step, or one that has learned to be guided. None as the model is meant.
        guidance_interval: the noise levels sigma / alpha in which it acts; None for all.
        guide: a weaker model to be led away from, in the place of the null class.
        batch_size: images at once; None for the recipe's. It changes memory, and images by rounding
        only.
        watch: called after every batch with the numbers of images that are done and wanted;
        `vdiff.show_progress` is one.

        Errors: UsageError for what cannot be drawn; DivergedError for images that are not finite;
        MachineError when memory runs out. A warning (UserWarning) where the choice draws worse
        images than the model can.

        >>> model = load("runs/tiny/base_1")
        >>> images = model.sample(seeds=range(4), label=1)
        >>> images.uint8.shape, images.seeds, images.labels.tolist()
        (torch.Size([4, 3, 8, 8]), (0, 1, 2, 3), [1, 1, 1, 1])
        """
        numbers = _seeds(seeds)
        _check_positive(steps, "steps")
        _check_positive(batch_size, "batch_size")
        built = self._sampler(sampler)
        num_steps = asked.num_steps(self.card, steps)
        asked.check_sampler(self.card, built)
        for doubt in asked.doubts(self.card, num_steps, built):
            warnings.warn(doubt, stacklevel=2)
        condition = self._condition(label, numbers)
        strongly = _guidance(guidance, guidance_interval, guide, self.device)
        guidance_of.way(self.card, strongly)
        at_once = batch_size or self._drawn.batch_size
        x = self._draw(numbers, num_steps, built, condition, strongly, at_once, watch)
        about = facts_of(self.card, num_steps, built, numbers, strongly)
        return self._decoded(x, numbers, condition, about)

    def _decoded(
        self, x: Tensor, seeds: Sequence[int], condition: Condition, about: dict[str, str]
    ) -> ImageBatch:
        codec = codec_of(self.card.codec)
        pictures = codec.decode(x, self.card.name)
        exact = x
        if not isinstance(codec, PixelCodec):
            # what the network draws is no picture yet
            exact = to_float(pictures)
        return ImageBatch(pictures, exact, tuple(seeds), condition.label, about)

    def show(self, count: int = 16) -> ImageBatch:
        """The images of the seeds 0 to count - 1, which show themselves in a notebook.

        Errors: as of `sample`.
        """
        _check_positive(count, "count")
        return self.sample(range(count))

    def _draw(
        self,
        seeds: Sequence[int],
        num_steps: int,
        sampler: Sampler,
        condition: Condition,
        guidance: Guidance,
        batch_size: int,
        watch: Callable[[int, int], None] | None,
    ) -> Tensor:
        """float32 [len(seeds), C, H, W]."""

        def tell(done: int) -> None:
            if watch is not None:
                watch(done, len(seeds))

        with _memory_told(), _multiplying_as_commands_do(self.device):
            return draw_with(
                checkpoint.Checkpoint(self.path, self.card, self.denoiser),
                seeds,
                num_steps,
                sampler=sampler,
                condition=condition,
                guidance=guidance,
                batch_size=batch_size,
                device=self.device,
                on_batch=tell,
            )

    def _sampler(self, given: str | Mapping[str, object] | None) -> Sampler:
        if given is None:
            by_recipe = self._drawn.named_sampler
            card = self.card
            is_solvable = card.is_solvable
            return sampler_for(by_recipe, card.sampler, card.name, is_solvable=is_solvable).build()
        # as a recipe holds it
        text = given if isinstance(given, str) else dict(given)
        named = recipe_text.RecipeText({"sampler": text}, {("sampler",): "sampler"}, "sampler")
        return recipe_text.validate(SampleSection, named).sampler.build()

    def _condition(
        self, label: int | str | Sequence[int | str] | None, seeds: Sequence[int]
    ) -> Condition:
        if label is None:
            return of_seeds(seeds, self.card.num_classes)
        classes.check(self.card, "label")
        asked_for: Sequence[int | str] = [label] if isinstance(label, int | str) else label
        labels = [
            classes.numbered(
                self.card, each if isinstance(each, str) else operator.index(each), "label"
            )
            for each in asked_for
        ]
        if not labels:
            problem = f"there are no classes in `label` of `{self.card.name}`"
            fix = f"take numbers from 0 to {self.card.num_classes - 1}"
            raise UsageError(problem, fix, "label")
        if not seeds:
            return NOTHING
        in_turn = [labels[place % len(labels)] for place in range(len(seeds))]
        return Condition(torch.tensor(in_turn))

    def __repr__(self) -> str:
        card = self.card
        return (
            f"Model({str(self.path)!r}, {count(card.num_steps, 'step')}, "
            f"{card.num_parameters:,} weights, {self.device})"
        )

    def _repr_html_(self) -> str:
        return html(self.card, self.path, f"in {self.precision} on {self.device}")


def load(
    path: str | os.PathLike[str], *, device: str | None = None, precision: Precision | None = None
) -> Model:
    """A model folder, verified by its SHA-256 sums, ready to draw.

    path: of the model folder, as in `runs/x/base_4`; or `hf://owner/name[/folder][@revision]`, a
    model on a hub, which is fetched, and imported into `runs/<name>` if vdiff did not make it.
    device: "cpu" or "cuda"; None for the GPU where there is one.
    precision: "fp32", "bf16", "fp16" or "auto"; None for that of the recipe in the folder.
    Errors: ModelFileError for no model folder, a damaged one or a newer format; UsageError,
    MachineError for a device or a precision that is not there.

    >>> model = load("runs/tiny/base_1", device="cpu")
    >>> model.card.num_steps, model.card.shape, model.precision
    (2, (3, 8, 8), 'fp32')
    """
    place = _fetched(path) if _is_on_hub(path) else path_of(path)
    with reading(place):
        if not is_model_folder(place):
            raise _no_model(place)
        found = checkpoint.load(place)
    said = drawing_part(found.card, place)
    if precision is not None and precision not in get_args(Precision):
        raise UsageError(
            f"there is no precision `{precision}`",
            f"choose one of: {', '.join(get_args(Precision))}",
        )
    where = pick_device(device)
    arithmetic, _ = resolve_on(where, precision or said.precision, found.card.shape[-1])
    network = frozen(found.denoiser.network, where, arithmetic)
    return Model(
        place, found.card, replace(found.denoiser, network=network), where, arithmetic, said.sample
    )


def _is_on_hub(path: str | os.PathLike[str]) -> bool:
    return isinstance(path, str) and is_on_hub(path)


def _fetched(name: str | os.PathLike[str]) -> Path:
    """The model folder that was made of a model on a hub."""
    from vdiff.exchange.taking_in import Voice, of_hub

    def warn(text: str) -> None:
        warnings.warn(text, stacklevel=5)

    return of_hub(str(name), Voice(lambda text: None, warn, has_bars=True))


def _no_model(place: Path) -> ModelFileError:
    """What to raise for a path that is no model folder: what is there instead, and what to load."""
    names = RunFolder(place).models()
    if names:
        return ModelFileError(
            f"`{place}` is a run", f"load one of its models: {', '.join(names)}", place
        )
    beside = RunFolder(place.parent).models()
    fix = "name a folder that `vdiff train` or `vdiff distill` made"
    where: Path | str = ""
    if beside:
        fix = f"take one of: {', '.join(beside)}"
        where = place.parent
    if place.is_dir():
        problem = (
            f"`{place}` has no {MANIFEST}, which vdiff writes last: "
            "it is no model folder of vdiff, or not whole"
        )
    else:
        problem = f"there is no model folder `{place}`"
    return ModelFileError(problem, fix, where)


def _seeds(given: Iterable[int]) -> list[int]:
    try:
        numbers = [operator.index(seed) for seed in given]
    except TypeError as err:
        raise UsageError(
            "`seeds` should be whole numbers", "write it as seeds=range(16) or seeds=[1, 5]"
        ) from err
    if not numbers:
        raise UsageError("`seeds` is empty", "name one seed per image, as in seeds=range(16)")
    wrong = [seed for seed in numbers if not 0 <= seed < 2**63]
    if wrong:
        raise UsageError(f"`{wrong[0]}` is no seed", "take numbers from 0 to 2**63 - 1")
    return numbers


def _guidance(
    strength: float | None,
    interval: tuple[float, float] | None,
    guide: Model | None,
    device: torch.device,
) -> Guidance:
    """What is asked for.   Errors: UsageError for a guide on another device."""
    strength, interval = guidance_of.as_numbers(strength, interval)
    if guide is None:
        return Guidance(strength, interval)
    if guide.device != device:
        problem = f"the guide is on {guide.device}, the model on {device}"
        raise UsageError(problem, "load both on one device: vdiff.load(path, device=...)", "guide")
    return Guidance(strength, interval, Guide(guide.path, guide.card, guide.denoiser))


def _check_positive(number: int | None, name: str) -> None:
    if number is None:
        return
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UsageError(
            f"`{name}` should be a whole number from 1 on, not `{number}`",
            f"write it as {name}=4",
            name,
        )


@contextlib.contextmanager
def _memory_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as err:
        if not is_lacking(err):
            raise
        reason = str(err).strip().partition("\n")[0]
        raise MachineError(
            f"out of memory: {reason}", "draw fewer images at once: batch_size=8"
        ) from err


@contextlib.contextmanager
def _multiplying_as_commands_do(device: torch.device) -> Iterator[None]:
    """Within it, a GPU multiplies what stays float32 in TF32, as it does for `vdiff sample`;
    then as before.
    """
    if device.type != "cuda":
        yield
        return
    matmul_before = torch.backends.cuda.matmul.allow_tf32
    cudnn_before = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul_before
        torch.backends.cudnn.allow_tf32 = cudnn_before
