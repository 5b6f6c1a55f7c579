"""Whether the kinds of this package keep vdiff's contracts; to be run where it is installed."""

from pathlib import Path

import numpy as np
from vdiff_example.adams import AdamsSection
from vdiff_example.brightness import BrightnessSection
from vdiff_example.consistency import ConsistencySection
from vdiff_example.dit import DiTSection
from vdiff_example.edges import EdgesSection
from vdiff_example.npy import NpySection
from vdiff_example.straight import StraightSection

from vdiff import conformance


def test_the_network() -> None:
    conformance.check_network(DiTSection(width=16, depth=1, heads=2, num_classes=4))
    conformance.check_network(DiTSection(width=16, depth=1, heads=2), image_size=16, channels=1)


def test_the_sampler() -> None:
    conformance.check_sampler(AdamsSection())


def test_the_objective() -> None:
    conformance.check_objective(ConsistencySection(points=8))


def test_the_schedule() -> None:
    conformance.check_schedule(StraightSection())


def test_the_metrics() -> None:
    conformance.check_metric(BrightnessSection())
    conformance.check_metric(EdgesSection())


def test_the_data(tmp_path: Path) -> None:
    np.save(
        tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
    )
    np.save(tmp_path / "labels.npy", np.arange(5) % 2)
    conformance.check_dataset(NpySection(path=tmp_path, size=8, channels=1))
