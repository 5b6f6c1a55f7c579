"""Models on a hub, through `huggingface_hub`: one commit is fetched, and its name is kept.

Only configurations and weights are fetched, no code. What was fetched once is used again without a
network, as long as it is whole.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vdiff import __version__
from vdiff.disk.strict_json import parse_object
from vdiff.disk.tensor_facts import FormatError
from vdiff.errors import MachineError, ModelFileError, UsageError, VdiffError
from vdiff.exchange import hub_name
from vdiff.exchange.hub_name import HubName
from vdiff.system.plural import count

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Say = Callable[[str], None]


@dataclass(frozen=True)
class Fetched:
    """A model of a hub that lies on this machine.

    path: the file or folder.   known: of it, for the lineage: `file`, `hub`, `revision`, `licence`.
    """

    path: Path
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """The commit."""
        return self.known["revision"]


def fetch(hub: HubName, say: Say, has_bars: bool = True) -> Fetched:
    """The model, in the cache of `huggingface_hub`; without a network what is whole in there.

    has_bars: whether the client may draw its progress.
    Errors: UsageError for what is not there or not for everybody, MachineError without a network,
    ModelFileError for what came otherwise than the hub says.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(hub.repository, revision=hub.revision, files_metadata=True)
    except Exception as err:
        if not _is_unreachable(err):
            raise _told(hub, err) from err
        return _cached(hub, say, err)
    names = [each.rfilename for each in info.siblings or [] if _is_inside(each.rfilename)]
    files, place = hub_name.chosen(hub, names)
    sizes = {each.rfilename: each.size for each in info.siblings or []}
    size = sum(sizes[name] or 0 for name in files)
    say(f"fetching {count(len(files), 'file')} ({size / 1e6:,.1f} MB) of `{hub}` at {info.sha}")
    with _bars(has_bars):
        root = _download(hub, files)
    if root.name != info.sha:
        problem = f"`{hub}` changed while it was fetched"
        raise MachineError(problem, "run the same command again", str(hub))
    _check(hub, root, files, info)
    return _fetched(hub, root, place, _licence(info))


def _is_inside(name: str) -> bool:
    return "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _download(hub: HubName, files: Sequence[str]) -> Path:
    """The folder of the commit."""
    from huggingface_hub import snapshot_download

    patterns = [name.replace("[", "[[]") for name in files]
    try:
        found = snapshot_download(
            hub.repository,
            revision=hub.revision,
            allow_patterns=patterns,
            library_name="vdiff",
            library_version=__version__,
        )
    except Exception as err:
        raise _told(hub, err) from err
    return Path(str(found))


def _fetched(hub: HubName, root: Path, place: str, licence: str | None) -> Fetched:
    known = {
        "file": PurePosixPath(place).name or hub.name,
        "hub": hub.repository,
        "revision": root.name,
    }
    if place:
        known["place"] = place
    if licence is not None:
        known["licence"] = licence
    return Fetched(root / place, known)


def _licence(info: "ModelInfo") -> str | None:
    """As its page says it; `other` says nothing without its name."""
    card = info.card_data
    if card is None:
        return None
    licence = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return licence if isinstance(licence, str) else None


def _check(hub: HubName, root: Path, files: Sequence[str], info: "ModelInfo") -> None:
    """ModelFileError for a file that is not what the hub says of it."""
    told = {each.rfilename: each for each in info.siblings or []}
    for name in files:
        path = root / name
        size = told[name].size
        if not path.is_file():
            raise _broken(hub, path, name, "is missing from the cache")
        if size is not None and path.stat().st_size != size:
            raise _broken(hub, path, name, f"has {path.stat().st_size:,} of {size:,} bytes here")
        large = told[name].lfs
        if large is not None and _sha256(path) != large.sha256:
            raise _broken(hub, path, name, "has another SHA-256 here than on the hub")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(hub: HubName, path: Path, name: str, problem: str) -> ModelFileError:
    fix = f"delete `{path.resolve()}` and run the same command again"
    return ModelFileError(f"`{name}` of `{hub}` {problem}: it was fetched by halves", fix, path)


# ---- without a network


def _cached(hub: HubName, say: Say, err: Exception) -> Fetched:
    """What the cache has, if it is whole.   Errors: MachineError."""
    root = _root_in_cache(hub)
    if root is None:
        raise _unreachable(hub, err, "nothing of it is in the cache")
    names = [each.relative_to(root).as_posix() for each in root.rglob("*") if each.is_file()]
    place = hub.place
    try:
        files, place = hub_name.chosen(hub, names)
        lacking = _lacking(root, files)
    except (UsageError, FormatError):
        lacking = "the file of weights"
    if lacking is not None:
        raise _unreachable(hub, err, f"what the cache has of it lacks {lacking}")
    say(f"{_reason(err)}: `{hub}` is taken from the cache, at {root.name}")
    return _fetched(hub, root, place, None)


def _root_in_cache(hub: HubName) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    prefix = f"{hub.place}/" if hub.place else ""
    for name in (hub.place, *(prefix + sign for sign in hub_name.SIGNS), hub_name.README):
        if not name:
            continue
        found = try_to_load_from_cache(hub.repository, name, revision=hub.revision)
        if isinstance(found, str) and os.path.isfile(found):
            return Path(found).parents[name.count("/")]
    return None


def _lacking(root: Path, files: Sequence[str]) -> str | None:
    """What a model of these files still needs; None if nothing."""
    weights = [name for name in files if not name.endswith((".json", ".md", ".png"))]
    for name in files:
        if name.endswith(".json") and ".index." in name:
            folder = PurePosixPath(name).parent
            places = parse_object((root / name).read_bytes(), "an index").get("weight_map")
            if not isinstance(places, dict):
                return f"`{name}`"
            needed = {(folder / str(place)).as_posix() for place in places.values()}
            missing = needed - set(weights)
            if missing:
                return f"`{min(missing)}`"
    return None if weights else "the weights"


# ---- what the client says, in words that tell what to do


def _names(err: BaseException) -> set[str]:
    # by name: which library speaks HTTP changes with the client's version
    return {kind.__name__ for kind in type(err).__mro__}


def _status(err: Exception) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(err, HfHubHTTPError) and err.response is not None:
        return int(err.response.status_code)
    return None


def _is_unreachable(err: Exception) -> bool:
    status = _status(err)
    if status is not None:
        return status >= 500
    if _names(err) & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return True
    return bool(_names(err) & {"TransportError", "ConnectionError", "TimeoutException", "Timeout"})


def _reason(err: Exception) -> str:
    from huggingface_hub.constants import ENDPOINT

    if "OfflineModeIsEnabled" in _names(err):
        return "HF_HUB_OFFLINE is set"
    status = _status(err)
    if status is not None:
        return f"{ENDPOINT} does not answer (HTTP {status})"
    return f"{ENDPOINT} cannot be reached"


def _unreachable(hub: HubName, err: Exception, state: str) -> MachineError:
    fix = "connect to the network"
    if "OfflineModeIsEnabled" in _names(err):
        fix = "`unset HF_HUB_OFFLINE`"
    elsewhere = f"`hf download {hub.repository} --local-dir {hub.name}` elsewhere"
    fix = f"{fix}, or run {elsewhere}, copy the folder and name it instead"
    return MachineError(f"{_reason(err)}, and {state}", fix, str(hub))


def _told(hub: HubName, err: Exception) -> VdiffError:
    """An error of the client as one of vdiff."""
    from huggingface_hub.constants import ENDPOINT

    page = f"{ENDPOINT}/{hub.repository}"
    names = _names(err)
    status = _status(err)
    if "GatedRepoError" in names:
        problem = f"`{hub.repository}` is gated: its owners give it to those who accept their terms"
        return UsageError(problem, f"accept them at {page}, then `hf auth login`", str(hub))
    if "RevisionNotFoundError" in names:
        problem = f"`{hub.repository}` has no revision `{hub.revision}`"
        fix = f"leave it out for the newest, or see {page}/commits/main; write {hub_name.FORM}"
        return UsageError(problem, fix, str(hub))
    if "RepositoryNotFoundError" in names or status in (401, 403, 404):
        problem = f"there is no model `{hub.repository}` on {ENDPOINT}, or it is private"
        return UsageError(problem, "check its name; if it is private: `hf auth login`", str(hub))
    if _is_unreachable(err):
        problem = f"{ENDPOINT} broke off while `{hub}` was fetched"
        return MachineError(problem, "run the same command again: what came is kept", str(hub))
    told = str(err).strip().partition("\n")[0][:200]
    problem = f"`{hub}` could not be fetched: {told or type(err).__name__}"
    return MachineError(problem, "run the same command again; what is whole is kept", str(hub))


@contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if wanted or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
