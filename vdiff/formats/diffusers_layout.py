"""Where the parts of a diffusers folder lie: network, scheduler and the files of weights.

Nothing is read but JSON.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from vdiff.disk.tensor_facts import FormatError, TensorFact, printable
from vdiff.errors import ModelFileError
from vdiff.formats.contents import LARGEST_CONFIG, Contents, contents_of

PLACES = ("unet/", "transformer/", "")
"""Where the network may lie in the folder; the last one is that of flat folders
and of a network alone.
"""

SCHEDULERS = ("scheduler/scheduler_config.json", "scheduler_config.json")

_STEM = "diffusion_pytorch_model"
_KINDS = ("safetensors", "bin")
_SHARDS_AT_MOST = 1000
_AGAIN = "get the folder again from where it came from"


@dataclass(frozen=True)
class Weights:
    """The files of weights that are to be read.

    parts: one, or the shards of an index.   variant: `fp16` and the like where the folder has no
    other weights.
    """

    parts: tuple[Contents, ...]
    variant: str | None = None

    @property
    def tensors(self) -> Mapping[str, TensorFact]:
        """What they hold together, by name."""
        return {tensor.name: tensor for part in self.parts for tensor in part.tensors}


def place_of(found: Contents) -> str | None:
    """Which of `PLACES` has the network's configuration; None where there is none."""
    return next((each for each in PLACES if (found.path / each / "config.json").is_file()), None)


def scheduler_of(found: Contents) -> dict[str, object] | None:
    """The scheduler's configuration; None where the folder has none.

    Errors: FormatError, OSError.
    """
    for name in SCHEDULERS:
        config = found.config(name)
        if config is not None:
            refuse_elsewhere(found.path, found.path / name)
            return config
    return None


def weights_of(root: Path, place: str) -> Weights:
    """The weights of the network in `root`/`place`:
    full ones before variants, safetensors before pickles.

    Errors: ModelFileError, FormatError that name the file that is missing, cut short or elsewhere;
    OSError.
    """
    folder = root / place
    for chosen in _choices([path.name for path in folder.glob(f"{_STEM}.*")]):
        path = folder / chosen.name
        if not _is_there(path):
            continue
        refuse_elsewhere(root, path)
        if not chosen.is_index:
            return Weights((part(path),), chosen.variant)
        return Weights(_shards(root, path), chosen.variant)
    if any(folder.glob("*.flashpack")):
        raise FormatError(
            "has its weights in `model.flashpack`, which vdiff does not read",
            "in diffusers: `from_pretrained(folder).save_pretrained(new_folder)`",
        )
    raise FormatError(f"has no weights of a network in `{place or '.'}`", _AGAIN)


def weights_among(names: Collection[str]) -> list[str]:
    """Which of the files beside a network's configuration `weights_of` would read;
    of shards, all that belong to the index.
    """
    for chosen in _choices(names):
        if chosen.name not in names:
            continue
        if not chosen.is_index:
            return [chosen.name]
        kind = "safetensors" if ".safetensors." in chosen.name else "bin"
        variant = "" if chosen.variant is None else rf"\.{re.escape(chosen.variant)}"
        shard = rf"{_STEM}(?:{variant})?-\d+-of-\d+(?:{variant})?\.{kind}"
        return [chosen.name, *sorted(name for name in names if re.fullmatch(shard, name))]
    return []


def part(path: Path) -> Contents:
    """What a file of weights holds.   Errors: FormatError that names it, OSError."""
    try:
        found = contents_of(path)
        if found.trouble is not None:
            raise found.trouble
    except FormatError as err:
        reason = f"holds a file of weights, `{path.name}`, that {err.reason}"
        raise FormatError(reason, err.fix) from err
    return found


def refuse_elsewhere(root: Path, path: Path) -> None:
    """ModelFileError for a link that leads out of the folder;
    a hub's cache links to its own blobs.
    """
    real = path.resolve()
    if real.is_relative_to(root.resolve()):
        return
    if real.parent.name == "blobs" and real.parent.parent in root.absolute().parents:
        return
    problem = f"`{path.name}` is a link to another place, `{printable(str(real))}`"
    raise ModelFileError(problem, "copy the file itself into the folder", path)


class _Choice(NamedTuple):
    name: str
    variant: str | None
    is_index: bool


def _choices(names: Iterable[str]) -> list[_Choice]:
    """All names that the weights may have, the preferred ones first.

    names: of the files in the folder, which tell the variants.
    """
    found = []
    for variant in (None, *_variants(names)):
        for kind in _KINDS:
            dotted = "" if variant is None else f".{variant}"
            found.append(_Choice(f"{_STEM}{dotted}.{kind}", variant, False))
            found.append(_Choice(f"{_STEM}.{kind}.index{dotted}.json", variant, True))
    return found


def _variants(names: Iterable[str]) -> list[str]:
    """`fp16` first."""
    found: set[str] = set()
    for name in names:
        stem, *words = name.split(".")
        if stem != _STEM:
            continue
        if len(words) == 2 and words[1] in _KINDS:
            found.add(words[0])
        if len(words) == 4 and words[1] == "index":
            found.add(words[2])
    plain = {name for name in found if "-of-" not in name}
    return sorted(plain, key=lambda name: (name != "fp16", name))


def _is_there(path: Path) -> bool:
    """Also as a link that leads nowhere, about which something can be said."""
    return path.is_file() or path.is_symlink()


def _shards(root: Path, index: Path) -> tuple[Contents, ...]:
    """The files that an index names, which hold exactly the tensors that it says."""
    if index.stat().st_size > LARGEST_CONFIG * 16:
        raise FormatError(f"has an index of weights, `{index.name}`, that is too large", _AGAIN)
    content = Contents(index.parent, "folder").config(index.name) or {}
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"has an index of weights, `{index.name}`, without `weight_map`", _AGAIN)
    names = {str(name) for name in places.values()}
    strange = [name for name in names if PurePath(name).name != name or "\\" in name]
    if strange or len(names) > _SHARDS_AT_MOST:
        told = printable(min(strange)) if strange else f"{len(names)} files"
        raise FormatError(f"has an index, `{index.name}`, that names `{told}`", _AGAIN)
    found = []
    for name in sorted(names):
        path = index.parent / name
        if not _is_there(path):
            problem = f"the file of weights `{name}` is missing; `{index.name}` names it"
            raise ModelFileError(problem, _AGAIN, path)
        refuse_elsewhere(root, path)
        found.append(part(path))
    _check_index(index, places, found)
    return tuple(found)


def _check_index(index: Path, places: Mapping[str, object], found: list[Contents]) -> None:
    held = [(tensor.name, each.path.name) for each in found for tensor in each.tensors]
    if dict(held) == dict(places) and len(held) == len(places):
        return
    wrong = {name for name, _ in set(held) ^ set(places.items())}
    told = printable(str(min(wrong, default="a tensor twice")))
    problem = f"`{index.name}` and its files of weights do not agree about `{told}`"
    raise ModelFileError(problem, _AGAIN, index)
