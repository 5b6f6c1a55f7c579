"""Numbers that others have published: drawn beside one's own for orientation,
when somebody asks for them.
"""

from typing import NamedTuple


class Curve(NamedTuple):
    """FID by number of steps. source: who measured it, and how."""

    name: str
    distilled: dict[int, float]
    undistilled: dict[int, float]
    source: str


_PAPER = (
    "Salimans & Ho 2022, “Progressive Distillation for Fast Sampling of Diffusion Models”, arXiv "
    "2202.00512: their network, their training and their own protocol, which is not the one of the "
    "numbers beside it"
)

CURVES: dict[str, Curve] = {
    "cifar10": Curve(
        "CIFAR-10",
        {1: 9.12, 2: 4.51, 4: 3.00, 8: 2.57, 16: 2.47, 64: 2.41, 512: 2.39},
        {16: 9.69, 64: 4.28, 512: 2.60},
        _PAPER,
    ),
    "imagenet64": Curve(
        "ImageNet 64 × 64",
        {1: 16.1, 2: 7.4, 4: 3.9, 8: 2.96, 16: 2.66, 64: 2.58, 512: 2.56},
        {},
        _PAPER,
    ),
}
