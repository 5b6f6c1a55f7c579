"""FID, KID, precision, recall, inception score and FD-DINOv2:
features and definitions of torch-fidelity.
"""

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vdiff.errors import DataError
from vdiff.metrics.extractor import Extractor
from vdiff.metrics.features import NUM_NEIGHBOURS, NUM_SPLITS, SUBSET_SIZE
from vdiff.metrics.frechet import Moments, distance_with_interval
from vdiff.metrics.metric import Pictures, Reference
from vdiff.metrics.reference import remembered
from vdiff.metrics.table import Value

_SUBSETS = 100


class _OfFeatures:
    """What all of them share: the samples' features, once for all metrics."""

    metric: ClassVar[str]

    def __init__(self, used: Extractor, least: int, against: Reference) -> None:
        self._used = used
        self.least = least
        self._against = against
        weights = ""
        if against.weights is not None:
            weights = f", weights {used.print[:8]}"
        self.features = (
            f"`{used.layer(self.metric)}` of {used.name}{weights}, torch-fidelity {used.version}"
        )

    def _of(self, samples: Pictures) -> Tensor:
        if len(samples) < self.least:
            problem = (
                f"{len(samples):,} samples are too few for this metric, which needs {self.least:,}"
            )
            raise DataError(problem, f"draw more: --n {self.least}")
        return self._used.of(samples, self.metric)

    @cached_property
    def _reference(self) -> Tensor:
        """Features of the reference; when they are first needed,
        since other processes wait while metrics are built.
        """
        against = self._against
        used = self._used
        about = {
            "metric": "features",
            "layer": used.layer(self.metric),
            "reference": against.fingerprint,
        }
        about |= {"extractor": used.name, "weights": used.print, "torch-fidelity": used.version}
        about["shape"] = str(against.pictures.shape)
        found = remembered(
            against.cache,
            about,
            lambda: {"rows": used.of(against.pictures, self.metric).numpy()},
            {"rows": (len(against.pictures), None)},
        )
        return torch.from_numpy(found["rows"])


class Frechet(_OfFeatures):
    """The Frechet distance of features."""

    metric = "fid"

    @cached_property
    def _moments(self) -> Moments:
        return Moments.of(self._reference.double().numpy())

    def value(self, samples: Pictures) -> Value:
        return distance_with_interval(self._of(samples).double().numpy(), self._moments)


class Kernel(_OfFeatures):
    """The kernel distance of features, mean over subsets.

    Its interval is not known: subsets overlap.
    """

    metric = "kid"

    def value(self, samples: Pictures) -> Value:
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

        sizes = {"kid_subsets": _SUBSETS, "kid_subset_size": SUBSET_SIZE}
        found = kid_features_to_metric(self._of(samples), self._reference, verbose=False, **sizes)
        return Value(value=found[KEY_METRIC_KID_MEAN])


class Neighbours(_OfFeatures):
    """Improved precision or recall, by the distance to the third neighbour.

    Source: Kynkaanniemi et al. 2019.
    """

    metric = "prc"

    def __init__(self, used: Extractor, least: int, against: Reference, which: str) -> None:
        super().__init__(used, least, against)
        self._which = which

    def value(self, samples: Pictures) -> Value:
        from torch_fidelity.metric_prc import prc_features_to_metric

        options = {"prc_neighborhood": NUM_NEIGHBOURS, "save_cpu_ram": True, "verbose": False}
        found: dict[str, Any] = self._used.shared(
            samples,
            "prc",
            lambda: prc_features_to_metric(self._of(samples), self._reference, **options),
        )
        return Value(value=found[self._which])


class Score(_OfFeatures):
    """The inception score, mean over ten splits."""

    metric = "isc"

    def value(self, samples: Pictures) -> Value:
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

        found = isc_features_to_metric(self._of(samples), splits=NUM_SPLITS)[KEY_METRIC_ISC_MEAN]
        if not np.isfinite(found):
            raise DataError(
                "the inception score is not finite", "look at the pictures that the model draws"
            )
        return Value(value=found)
