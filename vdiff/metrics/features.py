"""What a recipe or a command says of the metrics that compare the features of a network;
`fidelity` computes them.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from vdiff.config import free_to_change
from vdiff.metrics.metric import MetricSection, Reference

if TYPE_CHECKING:
    from vdiff.metrics.extractor import Extractor
    from vdiff.metrics.fidelity import Frechet, Kernel, Neighbours, Score

INCEPTION = "inception-v3-compat"
VGG = "vgg16"
DINO = "dinov2-vit-l-14"
"""Networks, by their names in torch-fidelity."""

SUBSET_SIZE = 1000
"""Pictures of a subset, of which the kernel distance takes the mean."""
NUM_NEIGHBOURS = 3
NUM_SPLITS = 10
"""Of the inception score."""


class _FidelitySection(MetricSection):
    """A metric on the features of a network."""

    short: ClassVar[str | None] = "extractor"
    extractor: str = free_to_change(INCEPTION)
    """Network whose features are compared, by its name in torch-fidelity."""

    @property
    def network(self) -> str:
        return self.extractor

    @property
    def name(self) -> str:
        """With another network it is another number, and has another name."""
        if self.extractor == type(self).model_fields["extractor"].default:
            return super().name
        return f"{self.renamed}_{self.extractor}"

    def _compared(self, against: Reference) -> "Extractor":
        """The network, after a look at the reference: its weights may be a download."""
        from vdiff.metrics.extractor import extractor

        against.check_number(self.least, f"`{self.name}`")
        return extractor(self.extractor, against)


class _FrechetSection(_FidelitySection):
    """A Frechet distance of features."""

    renamed = "fd"
    better = "less is better"
    enough = 10_000

    def build(self, against: Reference) -> "Frechet":
        from vdiff.metrics.fidelity import Frechet

        return Frechet(self._compared(against), self.least, against)


class FrechetInceptionSection(_FrechetSection):
    """Frechet inception distance."""

    title = "FID"
    kind: Literal["fid"] = free_to_change("fid")
    """Which metric."""


class FrechetDinoSection(_FrechetSection):
    """Frechet distance of DINOv2 features."""

    title = "FD-DINOv2"
    kind: Literal["fd_dinov2"] = free_to_change("fd_dinov2")
    """Which metric."""
    extractor: str = free_to_change(DINO)
    """Network whose features are compared, by its name in torch-fidelity."""


class KernelSection(_FidelitySection):
    """Kernel inception distance."""

    renamed = "kd"
    title = "KID"
    better = "less is better"
    least = SUBSET_SIZE
    kind: Literal["kid"] = free_to_change("kid")
    """Which metric."""

    def build(self, against: Reference) -> "Kernel":
        from vdiff.metrics.fidelity import Kernel

        return Kernel(self._compared(against), self.least, against)


class _NeighboursSection(_FidelitySection):
    """How far samples and reference lie among one another."""

    better = "more is better"
    least = NUM_NEIGHBOURS + 1
    most = 1.0
    extractor: str = free_to_change(VGG)
    """Network whose features are compared, by its name in torch-fidelity."""

    def build(self, against: Reference) -> "Neighbours":
        from vdiff.metrics.fidelity import Neighbours

        return Neighbours(self._compared(against), self.least, against, str(self.renamed))


class PrecisionSection(_NeighboursSection):
    """Improved precision: the share of samples that lie among the reference."""

    renamed = "precision"
    title = "Precision"
    kind: Literal["precision"] = free_to_change("precision")
    """Which metric."""


class RecallSection(_NeighboursSection):
    """Improved recall: the share of the reference that lies among the samples."""

    renamed = "recall"
    title = "Recall"
    kind: Literal["recall"] = free_to_change("recall")
    """Which metric."""


class InceptionScoreSection(_FidelitySection):
    """Inception score."""

    renamed = "score"
    title = "Inception score"
    better = "more is better"
    least = NUM_SPLITS
    kind: Literal["inception_score"] = free_to_change("inception_score")
    """Which metric."""

    def build(self, against: Reference) -> "Score":
        from vdiff.metrics.extractor import extractor
        from vdiff.metrics.fidelity import Score

        return Score(extractor(self.extractor, against), self.least, against)
