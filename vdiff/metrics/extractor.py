"""The networks whose features torch-fidelity compares,
with weights that are read without running code from them.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdiff.errors import DataError, MachineError, ModelFileError, UsageError, VdiffError
from vdiff.metrics.metric import Means, OnProgress, Pictures, chunks
from vdiff.randomness import exact
from vdiff.system.distribution import with_extra

_BATCH = 64
_METRICS = ("fid", "kid", "prc", "isc")
_ONLY_FROM_HUB = "dinov2"
_SETS = 2
"""Of so many sets of pictures the features are kept: samples, and the reference."""


class Extractor:
    """One network with all layers that metrics ask of it;
    what it found for the last samples and reference is kept.

    print: tells weights apart, for what is kept of the reference.
    on_progress: as that of `Means`.
    """

    def __init__(
        self,
        name: str,
        network: Any,
        layers: dict[str, str],
        device: torch.device | str,
        print_: str,
        on_progress: OnProgress,
    ) -> None:
        self.name = name
        self.print = print_
        self.version = version("torch-fidelity")
        self._network = network
        self._layers = layers
        self._device = device
        self._on_progress = on_progress
        self._kept: list[tuple[Pictures, dict[str, Any]]] = []

    def layer(self, metric: str) -> str:
        """The layer that a metric compares: `fid`, `kid`, `prc` or `isc`."""
        return self._layers[metric]

    def of(self, pictures: Pictures, metric: str) -> Tensor:
        """Features of pictures, uint8 [N, C, H, W]: float32 [N, D] on the CPU.

        Errors: DataError.
        """
        found: dict[str, Tensor] = self.shared(
            pictures, "features", lambda: self._extract(pictures)
        )
        return found[self._layers[metric]]

    def shared(self, pictures: Pictures, what: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives for these pictures, computed once."""
        found = next((found for whose, found in self._kept if whose is pictures), {})
        others = [each for each in self._kept if each[0] is not pictures]
        self._kept = [*others, (pictures, found)][-_SETS:]
        if what not in found:
            found[what] = compute()
        return found[what]

    @torch.no_grad()
    def _extract(self, pictures: Pictures) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        done = 0
        total = len(pictures)
        self._on_progress(done, total)
        for chunk in chunks(pictures):
            for batch in torch.split(_as_colour(chunk), _BATCH):
                found = self._network.convert_features_tuple_to_dict(
                    self._network(batch.to(self._device))
                )
                for layer, rows in found.items():
                    parts.setdefault(layer, []).append(rows.float().cpu())
                done += len(batch)
                self._on_progress(done, total)
        features = {layer: torch.cat(rows) for layer, rows in parts.items()}
        for layer, rows in features.items():
            bad = int((~rows.isfinite().all(1)).sum())
            if bad:
                problem = (
                    f"the features `{layer}` of {bad} of {len(rows)} pictures are NaN or infinite"
                )
                raise DataError(problem, f"look at the pictures, and at the weights of {self.name}")
        return features


def extractor(name: str, means: Means) -> Extractor:
    """The network with this name, loaded once for all metrics.

    Errors: UsageError, MachineError, ModelFileError.
    """
    if name not in means.extractors:
        means.extractors[name] = _load(name, means)
    found: Extractor = means.extractors[name]
    return found


def _load(name: str, means: Means) -> Extractor:
    try:
        from torch_fidelity import registry
        from torch_fidelity.utils import create_feature_extractor
    except ImportError as err:
        problem = "this metric needs the package torch-fidelity, which is not installed"
        raise MachineError(problem, with_extra("eval"), "--metrics") from err
    known = registry.FEATURE_EXTRACTORS_REGISTRY
    if name not in known:
        raise UsageError(
            f"torch-fidelity has no network `{name}`",
            f"choose among: {', '.join(known)}",
            "--metrics",
        )
    if name.startswith("clip-"):
        raise UsageError(
            f"`{name}` would run code from its weights' file", "choose another network", "--metrics"
        )
    layers = {
        metric: known[name].get_default_feature_layer_for_metric(metric) for metric in _METRICS
    }
    options = {
        "cuda": False,
        "verbose": False,
        "feature_extractor_weights_path": _given(name, means.weights),
    }
    with _read_safely(name, means.weights):
        network = create_feature_extractor(name, sorted(set(layers.values())), **options)
    if means.weights is not None:
        print_ = hashlib.sha256(means.weights.read_bytes()).hexdigest()
    else:
        print_ = _print_of(network)
    # what torch-fidelity needs is not known to be there on MPS
    device = exact(means.device)
    return Extractor(name, network.to(device), layers, device, print_, means.on_progress)


def _print_of(network: nn.Module) -> str:
    """SHA-256 of all weights: a download that was damaged, or put there by hand,
    is not the one of before.
    """
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _given(name: str, weights: Path | None) -> str | None:
    if weights is None:
        return None
    if name.startswith(_ONLY_FROM_HUB):
        fix = "leave out --weights; torch.hub downloads it, or finds it in its folder"
        raise UsageError(
            f"torch-fidelity cannot read weights of {name} from a file", fix, "--weights"
        )
    if not weights.is_file():
        raise ModelFileError(
            f"there are no weights in `{weights}`", "give the path of the .pth file", weights
        )
    return str(weights)


_SAFELY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch-fidelity unpickles whatever a weights' file holds;
with this variable torch takes tensors only.
"""


@contextlib.contextmanager
def _read_safely(name: str, weights: Path | None) -> Iterator[None]:
    """Within it torch reads no code from files, and failures to load weights are told in words."""
    before = os.environ.get(_SAFELY)
    os.environ[_SAFELY] = "1"
    try:
        yield
    except Exception as err:  # torch and torch-fidelity tell it in many ways
        raise _not_loaded(name, weights, err) from err
    finally:
        if before is None:
            os.environ.pop(_SAFELY)
        else:
            os.environ[_SAFELY] = before


def _not_loaded(name: str, weights: Path | None, err: Exception) -> VdiffError:
    causes = [err, err.__cause__, err.__context__]
    if weights is None and any(isinstance(each, OSError) for each in causes):
        fix = "give the path of the file, downloaded elsewhere: --weights PATH"
        if name.startswith(_ONLY_FROM_HUB):
            fix = (
                "run it once where there is a network, "
                f"and copy torch.hub's folder to `{torch.hub.get_dir()}`"
            )
        return MachineError(
            f"the weights of {name} could not be downloaded: {err}", fix, "--weights"
        )
    if weights is None:
        fix = f"remove them from `{torch.hub.get_dir()}`: they are downloaded again"
        return ModelFileError(
            f"the weights of {name} that were downloaded cannot be read safely", fix
        )
    problem = f"`{weights}` holds no weights of {name} that can be read safely"
    return ModelFileError(
        problem, "give the file that torch-fidelity downloads for this network", weights
    )


def _as_colour(pictures: Tensor) -> Tensor:
    if pictures.shape[1] not in (1, 3):
        problem = f"these networks look at 1 or 3 channels, the pictures have {pictures.shape[1]}"
        raise DataError(problem, "compare with `fd_pixel` and `swd`")
    return pictures.expand(-1, 3, -1, -1).contiguous()
