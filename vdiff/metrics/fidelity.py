"""FID, KID, precision, recall, inception score and FD-DINOv2: features and definitions of torch-fidelity."""

from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vdiff.config import harmless
from vdiff.errors import DataError
from vdiff.metrics.bootstrap import REPETITIONS, with_interval
from vdiff.metrics.extractor import Extractor, extractor
from vdiff.metrics.frechet import Moments
from vdiff.metrics.metric import Against, MetricSection, Pictures
from vdiff.metrics.reference import remembered
from vdiff.metrics.table import Value

INCEPTION, VGG, DINO = "inception-v3-compat", "vgg16", "dinov2-vit-l-14"

_MOST_INTERVAL = 128
"""With more dimensions than this, a bootstrap of a Frechet distance takes too long."""

_SUBSETS, _SUBSET_SIZE, _NEIGHBOURS, _SPLITS = 100, 1000, 3, 10


class _FidelitySection(MetricSection):
    """A metric on the features of a network."""

    short: ClassVar[str | None] = "extractor"
    metric: ClassVar[str]
    plain: ClassVar[str]

    @property
    def name(self) -> str:
        """With another network it is another number, and has another name."""
        used = getattr(self, "extractor")  # noqa: B009 - every section below declares it
        kind = str(getattr(self, "kind"))  # noqa: B009
        return kind if used == self.plain else f"{self.renamed}_{used}"

    def _extractor(self, against: Against) -> Extractor:
        return extractor(getattr(self, "extractor"), against)  # noqa: B009


class FrechetInceptionSection(_FidelitySection):
    """Frechet inception distance."""

    metric, plain, renamed = "fid", INCEPTION, "fd"
    title, better = "FID", "less is better"
    kind: Literal["fid"] = harmless("fid")
    """Which metric."""
    extractor: str = harmless(INCEPTION)
    """Network whose features are compared, by its name in torch-fidelity."""

    def build(self, against: Against) -> "Frechet":
        return Frechet(self._extractor(against), against, self.name)


class FrechetDinoSection(_FidelitySection):
    """Frechet distance of DINOv2 features."""

    metric, plain, renamed = "fid", DINO, "fd"
    title, better = "FD-DINOv2", "less is better"
    kind: Literal["fd_dinov2"] = harmless("fd_dinov2")
    """Which metric."""
    extractor: str = harmless(DINO)
    """Network whose features are compared, by its name in torch-fidelity."""

    def build(self, against: Against) -> "Frechet":
        return Frechet(self._extractor(against), against, self.name)


class KernelSection(_FidelitySection):
    """Kernel inception distance."""

    metric, plain, renamed = "kid", INCEPTION, "kd"
    title, better = "KID", "less is better"
    kind: Literal["kid"] = harmless("kid")
    """Which metric."""
    extractor: str = harmless(INCEPTION)
    """Network whose features are compared, by its name in torch-fidelity."""

    def build(self, against: Against) -> "Kernel":
        return Kernel(self._extractor(against), against)


class PrecisionSection(_FidelitySection):
    """Improved precision: the share of samples that lie among the reference."""

    metric, plain, renamed = "prc", VGG, "precision"
    title, better = "Precision", "more is better"
    kind: Literal["precision"] = harmless("precision")
    """Which metric."""
    extractor: str = harmless(VGG)
    """Network whose features are compared, by its name in torch-fidelity."""

    def build(self, against: Against) -> "Neighbours":
        return Neighbours(self._extractor(against), against, "precision")


class RecallSection(_FidelitySection):
    """Improved recall: the share of the reference that lies among the samples."""

    metric, plain, renamed = "prc", VGG, "recall"
    title, better = "Recall", "more is better"
    kind: Literal["recall"] = harmless("recall")
    """Which metric."""
    extractor: str = harmless(VGG)
    """Network whose features are compared, by its name in torch-fidelity."""

    def build(self, against: Against) -> "Neighbours":
        return Neighbours(self._extractor(against), against, "recall")


class InceptionScoreSection(_FidelitySection):
    """Inception score."""

    metric, plain, renamed = "isc", INCEPTION, "score"
    title, better = "Inception score", "more is better"
    kind: Literal["inception_score"] = harmless("inception_score")
    """Which metric."""
    extractor: str = harmless(INCEPTION)
    """Network whose classes are counted, by its name in torch-fidelity."""

    def build(self, against: Against) -> "Score":
        return Score(self._extractor(against), against)


class _OfFeatures:
    """What all of them share: the samples' features, once for all metrics."""

    metric: ClassVar[str]

    def __init__(self, used: Extractor, least: int, against: Against) -> None:
        self._used, self.least, self._against = used, least, against
        weights = f", weights {used.print[:8]}" if against.weights is not None else ""
        self.features = f"`{used.layer(self.metric)}` of {used.name}{weights}, torch-fidelity {used.version}"

    def _of(self, samples: Pictures) -> Tensor:
        if len(samples) < self.least:
            problem = f"{len(samples):,} samples are too few for this metric, which needs {self.least:,}"
            raise DataError(problem, f"draw more: --n {self.least}")
        return self._used.of(samples, self.metric)

    @cached_property
    def _reference(self) -> Tensor:
        """Features of the reference; when they are first needed, since other processes wait while metrics are built."""
        against = self._against
        used = self._used
        about = {"metric": "features", "layer": used.layer(self.metric), "reference": against.fingerprint}
        about |= {"extractor": used.name, "weights": used.print, "torch-fidelity": used.version}
        about["shape"] = str(against.pictures.shape)
        found = remembered(against.cache, about, lambda: {"rows": used.of(against.pictures, self.metric).numpy()})
        return torch.from_numpy(found["rows"])


class Frechet(_OfFeatures):
    """The Frechet distance of features."""

    metric = "fid"

    def __init__(self, used: Extractor, against: Against, name: str) -> None:
        super().__init__(used, 2, against)
        against.check_number(2, f"`{name}`")

    @cached_property
    def _moments(self) -> Moments:
        return Moments.of(self._reference.double().numpy())

    def value(self, samples: Pictures) -> Value:
        rows = self._of(samples).double().numpy()
        return with_interval(
            Moments.of(rows).distance(self._moments),
            len(rows),
            lambda counts: Moments.counted(rows, counts).distance(self._moments),
            REPETITIONS if rows.shape[1] <= _MOST_INTERVAL else 0,
        )


class Kernel(_OfFeatures):
    """The kernel distance of features, mean over subsets. Its interval is not known: subsets overlap."""

    metric = "kid"

    def __init__(self, used: Extractor, against: Against) -> None:
        super().__init__(used, _SUBSET_SIZE, against)
        against.check_number(_SUBSET_SIZE, "`kid`")

    def value(self, samples: Pictures) -> Value:
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

        sizes = {"kid_subsets": _SUBSETS, "kid_subset_size": _SUBSET_SIZE}
        found = kid_features_to_metric(self._of(samples), self._reference, verbose=False, **sizes)
        return Value(value=found[KEY_METRIC_KID_MEAN])


class Neighbours(_OfFeatures):
    """Improved precision or recall, by the distance to the third neighbour.   Source: Kynkaanniemi et al. 2019."""

    metric = "prc"

    def __init__(self, used: Extractor, against: Against, which: str) -> None:
        super().__init__(used, _NEIGHBOURS + 1, against)
        against.check_number(_NEIGHBOURS + 1, f"`{which}`")
        self._which = which

    def value(self, samples: Pictures) -> Value:
        from torch_fidelity.metric_prc import prc_features_to_metric

        options = {"prc_neighborhood": _NEIGHBOURS, "save_cpu_ram": True, "verbose": False}
        found: dict[str, Any] = self._used.shared(
            samples, "prc", lambda: prc_features_to_metric(self._of(samples), self._reference, **options)
        )
        return Value(value=found[self._which])


class Score(_OfFeatures):
    """The inception score, mean over ten splits."""

    metric = "isc"

    def __init__(self, used: Extractor, against: Against) -> None:
        super().__init__(used, _SPLITS, against)

    def value(self, samples: Pictures) -> Value:
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

        found = isc_features_to_metric(self._of(samples), splits=_SPLITS)[KEY_METRIC_ISC_MEAN]
        if not np.isfinite(found):
            raise DataError("the inception score is not finite", "look at the pictures that the model draws")
        return Value(value=found)
