"""What a model folder says about itself, in `vdiff.json`, and whether that can be believed. No torch here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StrictBool, TypeAdapter, ValidationError

from vdiff import distribution, whole_folder
from vdiff.errors import ModelFileError
from vdiff.ours import Kind, beginning, is_picture

FORMAT = 1
MARK = "vdiff.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"


def _is_proven(folder: Path) -> bool:
    """Whether vdiff made a model folder without a mark: diffusers gives its files the same names, others' contents."""
    is_ours = _SCHEDULER.match(beginning(folder / "scheduler/scheduler_config.json", 200)) is not None
    return is_ours or (folder / MARK).is_file() or is_picture(folder / "samples.png")


_SCHEDULER = re.compile(rb'\{\n  "_class_name": "\w+",\n  "_diffusers_version": "[\d.]+",\n  "num_train_timesteps": ')
"""diffusers sorts the keys."""

MODEL = Kind(
    MARK,
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


def _parent(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return _Parent.model_validate(value).model_dump()
    except ValidationError as err:
        raise ValueError(_first(err)) from err


@dataclass(frozen=True)
class ModelCard:
    """What a model folder says about itself.

    num_steps: the sampler steps it is meant for.   is_distilled: whether it knows the times i / num_steps only.
    shape: (C, H, W) of its pictures.   num_classes: 0 without labels.   parent: the teacher's name, steps and hash.
    recipe: the YAML text.   trajectory: every value that shaped the weights.   files: {path: {size, sha256}}.
    """

    name: Name
    stage: Count
    num_steps: Positive
    is_distilled: StrictBool
    updates: Count
    shape: tuple[Positive, Positive, Positive]
    num_classes: Count
    num_parameters: Count
    network: Name
    diffusion: dict[str, Any]
    recipe: str
    parent: Annotated[dict[str, Any], AfterValidator(_parent)] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    trajectory: dict[str, Any] = field(default_factory=dict)
    versions: dict[Word, Word] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    made_by: Word = ""
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """SHA-256 of the weights: what a student records of its teacher, and a picture of its model."""
        return str(self.files[WEIGHTS]["sha256"])

    @property
    def model_steps(self) -> int | None:
        """The grid of times that the model knows, None for all times."""
        return self.num_steps if self.is_distilled else None

    @property
    def num_bytes(self) -> int:
        """Of all its files together, as they were written."""
        return sum(entry["size"] for entry in self.files.values())


def is_model_folder(folder: Path) -> bool:
    """Whether it claims to be a finished model folder; nothing is read out of its name."""
    return (folder / MARK).is_file()


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder, without looking at the weights.   Errors: ModelFileError."""
    return parse(whole_folder.read(folder, MARK), folder)


def damage(folder: Path, hashed: bool = True) -> list[str]:
    """What is wrong with the files of a model folder, a line each; every byte is read, or only sizes if not `hashed`.

    Errors: ModelFileError when there is no list of files to go by.
    """
    return whole_folder.damage(folder, whole_folder.read(folder, MARK), hashed)


def lacking(folder: Path, card: ModelCard) -> list[str]:
    """Which of the files that make the model itself are not there or have another size; quick, nothing is read."""
    found = []
    for name in (CONFIG, WEIGHTS):
        try:
            size = (folder / name).stat().st_size
        except OSError:
            size = -1
        if size != card.files[name]["size"]:
            found.append(f"{name} is missing" if size < 0 else f"{name} has {size:,} bytes")
    return found


def parse(content: Mapping[str, Any], folder: Path) -> ModelCard:
    """The card with this content, every value of the right type and size.   Errors: ModelFileError."""
    path, made_by, found = folder / MARK, str(content.get("made_by", "?"))[:40], content.get("format")
    if type(found) is int and found > FORMAT:
        maker = made_by.replace("vdiff ", "vdiff >= ", 1)
        problem = f"`{folder}` has format {found}, made by {maker}; this vdiff knows up to {FORMAT}"
        raise ModelFileError(problem, distribution.UPGRADE, path)
    fix = "take another folder, or make this one again"
    if found != FORMAT:
        raise ModelFileError(f"`{path}` is damaged: it does not say its format", fix, path)
    known = {name: content[name] for name in ModelCard.__dataclass_fields__ if name in content}
    try:
        card = _CARD.validate_python(known)
    except ValidationError as err:
        raise ModelFileError(f"`{path}` is damaged: {_first(err)}", fix, path) from err
    missing = {WEIGHTS, CONFIG} - card.files.keys()
    if missing:
        raise ModelFileError(f"`{path}` is damaged: it does not list `{min(missing)}`", fix, path)
    return card


_CARD = TypeAdapter(ModelCard)


def _first(err: ValidationError) -> str:
    found = err.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, found["loc"]))[:60]
    return f"`{place}`: {found['msg'].partition(chr(10))[0].removeprefix('Value error, ')[:120]}"
