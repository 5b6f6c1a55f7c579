"""What a recipe or a command says of the metrics that compare pixels with
those of reference pictures.
"""

from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from vdiff.config import free_to_change
from vdiff.metrics.metric import AsFloat, MetricSection, Reference

if TYPE_CHECKING:
    from vdiff.metrics.frechet import PixelFrechet
    from vdiff.metrics.sliced import SlicedDistance


class PixelFrechetSection(MetricSection):
    """Frechet distance of pixels; not an FID."""

    short: ClassVar[str | None] = "components"
    is_cheap: ClassVar[bool] = True
    title: ClassVar[str] = "Fréchet distance of pixels"
    better: ClassVar[str] = "less is better; not an FID"
    kind: Literal["fd_pixel"] = free_to_change("fd_pixel")
    """Which metric."""
    components: int = free_to_change(64, ge=1, le=4096)
    """First principal components of the reference that pixels are projected on;
    fewer pixels are compared as such.
    """

    def build(self, against: Reference) -> "PixelFrechet":
        from vdiff.metrics.frechet import PixelFrechet
        from vdiff.metrics.reference import remembered

        pictures = AsFloat(against.pictures)
        num_pixels = prod(pictures.shape[1:])
        num_components: int | None = None
        if self.components < num_pixels:
            num_components = self.components
        least = min(self.components, num_pixels) + 1
        fix = (
            "give more pictures, or compare fewer components: "
            f"`fd_pixel:{max(len(pictures) // 2, 1)}`"
        )
        against.check_number(least, f"`fd_pixel` with {least - 1} dimensions", fix)
        about: dict[str, object] = {"metric": "fd_pixel", "components": num_components}
        about |= {"reference": against.fingerprint, "shape": tuple(pictures.shape[1:])}
        shapes = {
            "centre": (num_pixels,),
            "basis": (num_pixels, least - 1),
            "mean": (least - 1,),
            "cov": (least - 1,) * 2,
        }
        kept = remembered(
            against.cache, about, lambda: PixelFrechet(pictures, num_components).arrays(), shapes
        )
        return PixelFrechet.restored(tuple(pictures.shape), num_components, kept)


class SlicedSection(MetricSection):
    """Sliced Wasserstein distance of pixels."""

    short: ClassVar[str | None] = "directions"
    is_cheap: ClassVar[bool] = True
    title: ClassVar[str] = "Sliced Wasserstein distance"
    better: ClassVar[str] = "less is better"
    kind: Literal["swd"] = free_to_change("swd")
    """Which metric."""
    directions: int = free_to_change(64, ge=1, le=4096)
    """Directions that pixels are projected on."""

    def build(self, against: Reference) -> "SlicedDistance":
        from vdiff.metrics.reference import remembered
        from vdiff.metrics.sliced import LEVELS, SlicedDistance, reference_quantiles

        against.check_number(2, "`swd`")
        about: dict[str, object] = {
            "metric": "swd",
            "directions": self.directions,
            "reference": against.fingerprint,
        }
        pictures = AsFloat(against.pictures)
        shape = tuple(pictures.shape[1:])
        about["shape"] = shape
        shapes = {"quantiles": (self.directions, LEVELS)}
        kept = remembered(
            against.cache,
            about,
            lambda: {"quantiles": reference_quantiles(pictures, self.directions)},
            shapes,
        )
        return SlicedDistance(shape, self.directions, kept["quantiles"])
