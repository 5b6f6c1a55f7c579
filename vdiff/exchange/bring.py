"""A model of another program becomes `original` in a run: read, proved, and only then written."""

import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from vdiff.data.codec import codec_of
from vdiff.disk.tensor_facts import FormatError
from vdiff.errors import ModelFileError, UsageError, VdiffError
from vdiff.exchange import pictures, proof, recorded
from vdiff.exchange.proof import Proof
from vdiff.formats import FORMATS
from vdiff.formats.adapter import ForeignModel, Format
from vdiff.formats.contents import Contents, contents_of
from vdiff.formats.foreign import format_of
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import BASE, ModelCard

Say = Callable[[str], None]

MOST_READINGS = 4
"""Of a file that leaves more open, all readings are tried with a few pictures,
and the near ones with all.
"""

FEW_PICTURES = 8
NEAR = 1.5
"""Times the least error with the few pictures.
A wrong schedule is worse by more, a wrong order of heads by less.
"""


@dataclass(frozen=True)
class Source:
    """What to import, and what the user says of it.

    format: its name; None asks every format.   told: what its format may be told, by name.
    expected: an .npz of recorded outputs.   data: real pictures of its kind, a store or a folder.
    licence: of the weights, if the user says it.
    known: what is known of where it came from: `file`, `hub`, `revision` and `licence`.
    """

    path: Path
    format: str | None = None
    told: Mapping[str, str] | None = None
    expected: Path | None = None
    data: Path | None = None
    licence: str | None = None
    known: Mapping[str, str] = field(default_factory=dict)


class Brought(NamedTuple):
    """A model that was read and compared, and is not written yet.

    known: as of its `Source`, with the licence as far as anybody tells it.
    """

    model: ForeignModel
    format: str
    proof: Proof
    sha256: str
    known: Mapping[str, str] = MappingProxyType({})


def read(source: Source, say: Say = lambda text: None) -> Brought:
    """Read a model of another program, and compare it with what there is to compare it with.

    say: told what was tried.   Errors: ModelFileError, UsageError, DataError.
    """
    try:
        found = contents_of(source.path)
        if found.trouble is not None:
            raise found.trouble
        name, kind = _format(source, found)
        told = dict(source.told or {})
        _check_told(name, kind, told)
        if "size" in kind.options and "size" not in told:
            told |= _size_beside(source)
        readings = list(kind.candidates(found, told))
        model, checked = _proved(source, kind, found, readings, say)
        return Brought(model, name, checked, digest(source.path), _known(source, model))
    except FormatError as err:
        raise ModelFileError(f"`{source.path.name}` {err.reason}", err.fix, source.path) from err
    except OSError as err:
        problem = f"`{source.path}` cannot be read: {err.strerror or err}"
        raise ModelFileError(problem, "check the path", source.path) from err


def card_of(brought: Brought, source: Path, recipe: str) -> ModelCard:
    """What the folder of an imported model says about itself.

    recipe: the YAML text of its run.
    """
    model = brought.model
    origin = {
        "format": brought.format,
        "file": source.resolve().name,
        "sha256": brought.sha256,
        "licence": model.licence,
        **brought.known,
        "assumed": list(model.assumed),
        "proof": brought.proof.facts(),
        **model.facts,
    }
    network = model.denoiser.network
    return ModelCard(
        name=BASE,
        stage=0,
        num_steps=model.num_steps,
        times=model.num_steps if model.is_distilled else None,
        updates=0,
        shape=model.shape,
        num_classes=model.num_classes,
        num_parameters=sum(weight.numel() for weight in network.parameters()),
        network=model.network,
        diffusion=dict(model.diffusion),
        recipe=recipe,
        origin=origin,
        sampler=None if model.sampler is None else dict(model.sampler),
        is_denoiser=not model.is_distilled,
        codec=model.codec if isinstance(model.codec, str) else dict(model.codec),
        null_class=model.null_class,
        guidance=None if model.guidance is None else dict(model.guidance),
    )


def write(brought: Brought, source: Path, folder: Path, recipe: str) -> ModelCard:
    """Write a model that was read as the model folder `folder`; it is there whole or not at all.

    Errors: those of `checkpoint.save`.
    """
    card = card_of(brought, source, recipe)
    return checkpoint.save(folder, card, brought.model.denoiser)


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and SHA-256 of the files in it."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(each for each in path.rglob("*") if each.is_file() and each.name[0] != ".")
    whole = hashlib.sha256()
    for each in files:
        whole.update(f"{each.relative_to(path).as_posix()} {digest(each)}\n".encode())
    return whole.hexdigest()


def _known(source: Source, model: ForeignModel) -> dict[str, str]:
    """What the card says of where a model came from.

    The user knows its licence better than a hub, and that better than its format.
    """
    licence = source.licence or source.known.get("licence") or model.licence
    told = {name: value for name, value in source.known.items() if name != "licence"}
    return told if licence is None else told | {"licence": licence}


def _format(source: Source, found: Contents) -> tuple[str, Format]:
    if source.format is not None:
        if source.format not in FORMATS:
            fix = f"choose one of: {', '.join(FORMATS)}"
            raise UsageError(FORMATS.unknown(source.format), fix, "--format")
        kind = FORMATS.find(source.format)
        if not kind.recognises(found):
            problem = f"`{source.path.name}` is no file of the format `{source.format}`"
            raise ModelFileError(problem, _advice(found), source.path)
        return source.format, kind()
    name = format_of(found, [])
    if name is None:
        problem = f"nothing that vdiff reads has files like `{source.path.name}`"
        raise ModelFileError(problem, _advice(found), source.path)
    return name, FORMATS.find(name)()


def _advice(found: Contents) -> str:
    """What to do with a file or folder that is of no format."""
    if found.container == "folder":
        inside = sorted(each.name for each in found.path.iterdir() if each.suffix in _SUFFIXES)
        if inside:
            return f"name the file: vdiff import {shlex.quote(str(found.path / inside[0]))}"
        return "name the file of the model, or a folder with `model_index.json` or `config.json`"
    return f"`vdiff inspect {shlex.quote(str(found.path))}` tells what it holds"


_SUFFIXES = frozenset({".pt", ".pth", ".pkl", ".bin", ".ckpt", ".safetensors"})
"""Of files with a model."""


def _check_told(name: str, kind: Format, told: Mapping[str, str]) -> None:
    for option in told:
        if option not in kind.options:
            known = ", ".join(kind.options) or "nothing"
            problem = f"the format `{name}` cannot be told `{option}`"
            raise UsageError(problem, f"it can be told: {known}", "--assume")


def _size_beside(source: Source) -> dict[str, str]:
    """The size of the pictures that the import is compared with,
    for a format that must be told of one.
    """
    size = None
    if source.expected is not None:
        size = proof.recorded_size(source.expected)
    elif source.data is not None:
        size = pictures.only_size(source.data)
    return {} if size is None else {"size": str(size)}


def _proved(
    source: Source,
    kind: Format,
    found: Contents,
    readings: Sequence[Mapping[str, str]],
    say: Say,
) -> tuple[ForeignModel, Proof]:
    """The right reading of a file and what proves it."""
    if source.expected is not None:
        return _of_recorded(source.expected, kind, found, readings)
    model = kind.read(found, readings[0])
    if len(readings) == 1:
        by_library = _of_library(kind, found, model)
        if by_library is not None:
            return model, by_library
    if source.data is not None:
        return _of_pictures(source.data, kind, found, readings, say)
    if len(readings) > 1:
        first = _named(readings[0])
        say(f"the file does not tell {_open(readings)}; {first} was taken, and nothing proves it")
    say(
        "nothing proved this conversion: give real pictures with --data, or outputs with --expected"
    )
    return model, Proof("none", "nothing", float("nan"), float("nan"))


def _of_recorded(
    path: Path, kind: Format, found: Contents, readings: Sequence[Mapping[str, str]]
) -> tuple[ForeignModel, Proof]:
    """The first reading whose outputs, noise table and pictures are the recorded ones."""
    failed: VdiffError | None = None
    failed_later: VdiffError | None = None
    for reading in readings:
        try:
            model = kind.read(found, reading)
            checked = proof.of_file(model, path)
        except ModelFileError as err:
            failed = failed or err
            continue
        try:
            return model, replace(checked, also=recorded.check_process(model, path))
        except ModelFileError as err:
            failed_later = failed_later or err
    told = failed_later or failed
    assert told is not None
    raise told


def _of_library(kind: Format, found: Contents, model: ForeignModel) -> Proof | None:
    """The same as the source's own program computes, where that is installed."""
    z, time, condition = proof.inputs(model)
    theirs = kind.outputs(found, z, time, condition.label)
    if theirs is None:
        return None
    return proof.of_outputs(model, z, time, condition, theirs.output, theirs.by)


def _of_pictures(
    path: Path,
    kind: Format,
    found: Contents,
    readings: Sequence[Mapping[str, str]],
    say: Say,
) -> tuple[ForeignModel, Proof]:
    first = kind.read(found, readings[0])
    known = pictures.some(path, first.shape)
    _check_labels(first, known)
    models = {_named(reading) or "as the file tells": reading for reading in readings}
    if len(models) > MOST_READINGS:
        errors = _means(_errors(kind, found, models, known, FEW_PICTURES))
        least = min(errors.values())
        models = {name: models[name] for name in models if errors[name] <= NEAR * least}
        say(f"{len(models)} of {len(errors)} readings of the file are near the best one")
    if not models:  # the network gives no numbers, whatever is made of it
        models = {"as the file tells": readings[0]}
    each = _errors(kind, found, models, known, len(known.pixels))
    errors = _means(each)
    if len(readings) > 1:
        for line in proof.told(errors):
            say(f"denoising {len(known.pixels)} pictures, error in eps: {line}")
    best = proof.of_pictures(errors, known.by, each)
    chosen = kind.read(found, models[best])
    x = codec_of(chosen.codec).encode(known.pixels)
    checked = proof.of_denoising(errors[best], chosen.denoiser.schedule, x, known.by)
    if len(readings) == 1:
        return chosen, checked
    told = f"{best}, which denoises {len(known.pixels)} pictures of {known.by} best"
    return replace(chosen, assumed=(*chosen.assumed, told)), checked


def _errors(
    kind: Format,
    found: Contents,
    models: Mapping[str, Mapping[str, str]],
    known: pictures.Pictures,
    count: int,
) -> dict[str, Tensor]:
    """The errors in eps of each reading of a file, [count] of the first pictures."""
    errors = {}
    for name, reading in models.items():
        model = kind.read(found, reading)
        x = codec_of(model.codec).encode(known.pixels[:count])
        label = known.label[:count] if known.label is not None and model.num_classes else None
        errors[name] = proof.denoising_errors(model.denoiser, x, label)
    return errors


def _means(errors: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(each.mean()) for name, each in errors.items()}


def _check_labels(model: ForeignModel, known: pictures.Pictures) -> None:
    if not model.num_classes:
        return
    if known.label is None or int(known.label.max()) >= model.num_classes:
        problem = (
            f"the model knows {model.num_classes} classes, and `{known.by}` does not say which"
        )
        raise UsageError(problem, "give pictures in folders, one for each class", "--data")


def _named(reading: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(reading.items()))


def _open(readings: Sequence[Mapping[str, str]]) -> str:
    """The names of what differs between the readings."""
    names = {name for reading in readings for name in reading}
    varying = [name for name in names if len({reading.get(name) for reading in readings}) > 1]
    return ", ".join(f"`{name}`" for name in sorted(varying))
