"""How a model on a hub is called, and which of its files are fetched: never code, and each once.

No torch here, and no network.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from vdiff.errors import UsageError
from vdiff.formats.diffusers_layout import PLACES, weights_among

PREFIX = "hf://"
FORM = "hf://OWNER/NAME[/FOLDER][@REVISION]"

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_PLACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,200}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")

README = "README.md"
_OWN = (
    "vdiff.json",
    "model_index.json",
    "samples.png",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)
"""What a model folder of vdiff has."""
_CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "scheduler_config.json",
    *(f"{place}config.json" for place in PLACES),
)
SIGNS = (*_OWN, *_CONFIGS, README)
"""One of these has every model that can be taken without naming a file."""

_WEIGHTS = (".safetensors", ".pt", ".pth", ".pkl", ".bin", ".ckpt")
"""A file of weights alone; each is read by a reader that runs nothing."""
_SHOWN = 12


class HubName(NamedTuple):
    """`hf://owner/name/place@revision`.

    place: a folder or a file in the repository; empty for all of it.
    revision: a branch, a tag or a commit; None for the newest.
    """

    owner: str
    name: str
    place: str = ""
    revision: str | None = None

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        place = f"/{self.place}" if self.place else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{place}{revision}"

    @property
    def run(self) -> str:
        """What the run of the model is called."""
        if not self.place:
            return self.name
        return f"{self.name}-{PurePosixPath(self.place).stem}"


class Chosen(NamedTuple):
    """What is fetched of a repository.

    files: their names in it.   place: of the folder or the file that is the model.
    """

    files: list[str]
    place: str


def is_on_hub(given: str) -> bool:
    """Whether an option names a model on a hub and not a path."""
    return given.startswith(PREFIX)


def parse(given: str) -> HubName:
    """What `hf://...` names.   Errors: UsageError."""
    path, at, revision = given.removeprefix(PREFIX).partition("@")
    owner, _, rest = path.strip("/").partition("/")
    name, _, place = rest.partition("/")
    parts = [part for part in place.split("/") if part]
    is_right = (
        _PART.fullmatch(owner)
        and _PART.fullmatch(name)
        and all(_PLACE.fullmatch(part) and part != ".." for part in parts)
        and (not at or (_REVISION.fullmatch(revision) and ".." not in revision))
    )
    if not is_right:
        problem = f"`{given}` is no name of a model on a hub"
        raise UsageError(problem, f"write it like {FORM}", given)
    return HubName(owner, name, "/".join(parts), revision or None)


def chosen(hub: HubName, names: Sequence[str]) -> Chosen:
    """Which files of a repository make the model that is meant.

    names: all files of the repository.   Errors: UsageError, with what there is.
    """
    readme = [README] if README in names else []
    if hub.place in names:
        if not hub.place.endswith(_WEIGHTS):
            problem = f"`{hub.place}` of `{hub.repository}` is no file of weights"
            raise UsageError(problem, f"name one that ends in {', '.join(_WEIGHTS)}", str(hub))
        return Chosen([hub.place, *readme], hub.place)
    prefix = f"{hub.place}/" if hub.place else ""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if not inside:
        problem = f"`{hub.repository}` has no `{hub.place}`"
        raise UsageError(problem, f"it has: {_some(names)}", str(hub))
    of_folder = _of_folder(inside)
    if of_folder:
        return Chosen(sorted({*(prefix + each for each in of_folder), *readme}), hub.place)
    file = prefix + _only_file(hub, inside)
    return Chosen([file, *readme], file)


def _of_folder(inside: set[str]) -> list[str]:
    """Of a model folder of vdiff or diffusers; none for anything else."""
    if "vdiff.json" in inside:
        return [name for name in (*_OWN, README) if name in inside]
    configs = [name for name in (*_CONFIGS, README) if name in inside]
    place = next((each for each in PLACES if f"{each}config.json" in inside), None)
    if place is None:
        return []
    beside = [name.removeprefix(place) for name in inside if name.startswith(place)]
    weights = weights_among([name for name in beside if "/" not in name])
    return configs + [place + name for name in weights]


def _only_file(hub: HubName, inside: set[str]) -> str:
    files = sorted(name for name in inside if name.endswith(_WEIGHTS))
    if len(files) == 1:
        return files[0]
    if not files:
        problem = f"`{hub}` holds no model that vdiff reads"
        raise UsageError(problem, f"name another folder of it; it has: {_some(inside)}", str(hub))
    problem = f"`{hub}` holds {len(files)} files of weights, and no configuration says which"
    name = hub._replace(place="/".join(part for part in (hub.place, files[0]) if part))
    raise UsageError(problem, f"name one, as {name}; it has: {_some(files)}", str(hub))


def _some(names: Sequence[str] | set[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > _SHOWN else "")
