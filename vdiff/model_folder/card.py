"""What a model folder says about itself, in `vdiff.json`, and whether that can be believed.

No torch here.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StrictBool, TypeAdapter, ValidationError

from vdiff.diffusion import inside
from vdiff.disk import whole_folder
from vdiff.disk.ours import Kind, beginning, is_picture
from vdiff.errors import ModelFileError, UsageError
from vdiff.system import distribution
from vdiff.system.plural import count

FORMAT = 2
"""The newest that is known here. What format 1 can say is written as format 1,
so that older versions open it too.
"""
BASE = "original"
"""What the base of every chain is called."""
PIXELS = "pixels"
"""The codec of networks that see the pixels themselves."""
MANIFEST = "vdiff.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"


def _is_proven(folder: Path) -> bool:
    """Whether vdiff made a model folder without a manifest:
    diffusers gives its files the same names, others' contents.
    """
    is_ours = (
        _SCHEDULER.match(beginning(folder / "scheduler/scheduler_config.json", 200)) is not None
    )
    return is_ours or (folder / MANIFEST).is_file() or is_picture(folder / "samples.png")


_SCHEDULER = re.compile(
    rb'\{\n  "_class_name": "\w+",\n  "_diffusers_version": "[\d.]+",\n  "num_train_timesteps": '
)
"""diffusers sorts the keys."""

MODEL = Kind(
    MANIFEST,
    re.compile(
        r"vdiff\.json|model_index\.json|README\.md|samples\.png|scheduler/(scheduler_config\.json)?"
        r"|unet/(config\.json|diffusion_pytorch_model\.safetensors)?"
    ),
    _is_proven,
)
"""How vdiff knows a model folder that it made."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Word = Annotated[str, Field(max_length=200, pattern=r"^[^\n\r\t]*$")]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Positive = Annotated[int, Field(strict=True, ge=1, lt=2**63)]


class _Parent(BaseModel):
    """What a student records of its teacher."""

    name: Name
    num_steps: Positive
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _named(value: dict[str, Any]) -> dict[str, Any]:
    """A section of a recipe, of some kind; what else is in it is checked by whoever uses it."""
    _KIND.validate_python(value.get("kind"))
    return value


_KIND: TypeAdapter[str] = TypeAdapter(Name)
Named = Annotated[dict[str, Any], AfterValidator(_named)]


def _inside(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return inside.checked(_named(value))
    except ValidationError as err:
        raise ValueError(_first(err)) from err


def _parent(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return _Parent.model_validate(value).model_dump()
    except ValidationError as err:
        raise ValueError(_first(err)) from err


class _Agreement(BaseModel):
    """What a student records of its likeness to its teacher:
    a psnr of None is that of equal pictures.
    """

    psnr: Annotated[float, Field(strict=True)] | None
    num_images: Positive


def _agreement(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return _Agreement.model_validate(value).model_dump()
    except ValidationError as err:
        raise ValueError(_first(err)) from err


@dataclass(frozen=True)
class ModelCard:
    """What a model folder says about itself.

    num_steps: the sampler steps it is meant for.   times: it knows the times i / times only; None
    for all times.
    sampler: the one it is meant for, as a section of a recipe; None for DDIM.
    guidance: what is inside of the model, {"kind": "input", "low": 1.0, "high": 4.0} for one that
    takes g between them as an input, {"kind": "baked", "value": 1.5} for one that has a fixed g;
    None for none.
    null_class: whether it was taught a class more, the one after the last of `num_classes`, that
    stands for no class: it can be guided.
    is_denoiser: whether it predicts the mean of all pictures that fit a noisy one, and not where a
    step leads.
    codec: between its pictures and what the network sees, a kind or a section.
    shape: (C, H, W) of its pictures.   num_classes: 0 without labels.
    data: of the pictures it learned from, the `class_names` among it.
    parent: the teacher's name, steps and hash.
    agreement: with the teacher's pictures, {psnr, num_images}, if the training measured it.
    origin: of a model that another program made, and of its students: its format, file, SHA-256,
    licence and what proved the conversion.
    recipe: the YAML text.   trajectory: every value that shaped the weights.
    files: {path: {size, sha256}}.
    """

    name: Name
    stage: Count
    num_steps: Positive
    times: Positive | None
    updates: Count
    shape: tuple[Positive, Positive, Positive]
    num_classes: Count
    num_parameters: Count
    network: Name
    diffusion: dict[str, Any]
    recipe: str
    parent: Annotated[dict[str, Any], AfterValidator(_parent)] | None = None
    agreement: Annotated[dict[str, Any], AfterValidator(_agreement)] | None = None
    origin: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    trajectory: dict[str, Any] = field(default_factory=dict)
    versions: dict[Word, Word] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    made_by: Word = ""
    sampler: Named | None = None
    guidance: Annotated[dict[str, Any], AfterValidator(_inside)] | None = None
    is_denoiser: StrictBool = True
    codec: Name | Named = PIXELS
    null_class: StrictBool = False

    @property
    def told_classes(self) -> int:
        """How many classes the network is told of, the null class among them."""
        return self.num_classes + self.null_class

    @property
    def null_label(self) -> int | None:
        """The class that stands for no class; None without one."""
        return self.num_classes if self.null_class else None

    @property
    def class_names(self) -> list[str]:
        """Of the classes, in order; empty where they have none, or not one each."""
        names = self.data.get("class_names")
        if not isinstance(names, list) or len(names) > self.num_classes:
            return []
        if not all(isinstance(name, str) for name in names):
            return []
        return list(names)

    @property
    def hash(self) -> str:
        """SHA-256 of the weights: what a student records of its teacher,
        and a picture of its model.
        """
        return str(self.files[WEIGHTS]["sha256"])

    @property
    def is_imported(self) -> bool:
        """Whether another program made it; its students tell of it, and are made here."""
        return self.origin is not None and self.parent is None

    @property
    def is_distilled(self) -> bool:
        """Whether it learned from a teacher; which times it knows, `times` says."""
        return self.parent is not None

    @property
    def is_solvable(self) -> bool:
        """Whether solvers of a higher order are right with it: it predicts E[x | z], and at all
        times. A student is only defined by its own steps.
        """
        return self.is_denoiser and self.times is None

    @property
    def learned_by(self) -> str | None:
        """The kind of objective by which a student learned; the first version knew one only.

        None for a base.
        """
        if self.parent is None:
            return None
        return str(self.trajectory.get("distill.objective.kind", "progressive"))

    @property
    def format(self) -> int:
        """The oldest format that can say all of it.

        To format 1, a model is either a student that knows the times i / num_steps and leads from
        one to the next, or a base that knows all and denoises; it is drawn with by DDIM, without
        guidance, and in pixels.
        """
        usual_times = self.num_steps if self.is_distilled else None
        if self.times != usual_times or self.is_denoiser == self.is_distilled:
            return 2
        if self.sampler is not None or self.guidance is not None or self.codec != PIXELS:
            return 2
        if self.null_class:
            return 2
        return 1

    @property
    def num_bytes(self) -> int:
        """Of all its files together, as they were written."""
        return sum(entry["size"] for entry in self.files.values())


def content(card: ModelCard) -> dict[str, Any]:
    """What the manifest of a model folder holds, in the oldest format that can say it;
    `parse` takes it back.
    """
    facts = asdict(card)
    if card.format == 1:
        facts = {
            _IN_FORMAT_1.get(name, name): value
            for name, value in facts.items()
            if name not in _SINCE_FORMAT_2
        }
        facts["is_distilled"] = card.times is not None
    return {**facts, "format": card.format}


_SINCE_FORMAT_2 = ("sampler", "guidance", "is_denoiser", "codec", "null_class")
_IN_FORMAT_1 = {"times": "is_distilled"}


def check_steps(card: ModelCard, num_steps: int, name: str, where: str = "--steps") -> None:
    """UsageError for more sampler steps than the times that a model knows.

    name: what messages call it.   where: the option that asks.
    """
    if card.times is None or num_steps <= card.times:
        return
    if card.is_distilled and card.times == card.num_steps:
        steps = count(card.num_steps, "step")
        problem = f"`{name}` was distilled to {steps} and knows no times between them"
    else:
        problem = f"`{name}` knows the {card.times:,} times i / {card.times} only"
    raise UsageError(
        problem, f"ask for at most {count(card.times, 'step')}, or take a model with more", where
    )


def is_model_folder(folder: Path) -> bool:
    """Whether it claims to be a finished model folder; nothing is read out of its name."""
    return (folder / MANIFEST).is_file()


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder, without looking at the weights.   Errors: ModelFileError."""
    return parse(whole_folder.read(folder, MANIFEST), folder)


def damage(folder: Path, hashed: bool = True) -> list[str]:
    """What is wrong with the files of a model folder, a line each;
    every byte is read, or only sizes if not `hashed`.

    Errors: ModelFileError when there is no list of files to go by.
    """
    return whole_folder.damage(folder, whole_folder.read(folder, MANIFEST), hashed)


def lacking(folder: Path, card: ModelCard) -> list[str]:
    """Which of the files that make the model itself are not there or have another size;
    quick, nothing is read.
    """
    found = []
    for name in (CONFIG, WEIGHTS):
        try:
            size = (folder / name).stat().st_size
        except OSError:
            size = -1
        if size < 0:
            found.append(f"{name} is missing")
        elif size != card.files[name]["size"]:
            found.append(f"{name} has {count(size, 'byte')}")
    return found


def parse(content: Mapping[str, Any], folder: Path) -> ModelCard:
    """The card with this content, every value of the right type and size.

    Errors: ModelFileError.
    """
    path = folder / MANIFEST
    made_by = str(content.get("made_by", "?"))[:40]
    found = content.get("format")
    if type(found) is int and found > FORMAT:
        maker = made_by.replace("vdiff ", "vdiff >= ", 1)
        problem = f"`{folder}` has format {found}, made by {maker}; this vdiff knows up to {FORMAT}"
        raise ModelFileError(problem, distribution.UPGRADE, path)
    fix = "take another folder, or make this one again"
    if type(found) is not int or found < 1:
        raise ModelFileError(f"`{path}` is damaged: it does not say its format", fix, path)
    known = {name: content[name] for name in ModelCard.__dataclass_fields__ if name in content}
    if found == 1:
        known = _since_format_1(known, content, path)
    try:
        card = _CARD.validate_python(known)
    except ValidationError as err:
        raise ModelFileError(f"`{path}` is damaged: {_first(err)}", fix, path) from err
    if card.times is not None and card.num_steps > card.times:
        told = f"it knows {card.times} times and is meant for {card.num_steps} steps"
        raise ModelFileError(f"`{path}` is damaged: {told}", fix, path)
    missing = {WEIGHTS, CONFIG} - card.files.keys()
    if missing:
        raise ModelFileError(f"`{path}` is damaged: it does not list `{min(missing)}`", fix, path)
    return card


_CARD = TypeAdapter(ModelCard)


def _since_format_1(
    known: dict[str, Any], content: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """What format 1 says, in the words of today:
    to it, a model knew all times or those of its own steps.
    """
    is_distilled = content.get("is_distilled")
    if not isinstance(is_distilled, bool):
        fix = "take another folder, or make this one again"
        raise ModelFileError(
            f"`{path}` is damaged: `is_distilled` is neither true nor false", fix, path
        )
    times = None
    if is_distilled:
        times = known.get("num_steps")
    of_today = {"times": times, "is_denoiser": not is_distilled}
    return {name: value for name, value in known.items() if name not in _SINCE_FORMAT_2} | of_today


def _first(err: ValidationError) -> str:
    found = err.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, found["loc"]))[:60]
    return f"`{place}`: {found['msg'].partition(chr(10))[0].removeprefix('Value error, ')[:120]}"
