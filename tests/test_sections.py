"""What recipes may rely on: the values that are meant where they name none,
and where a value stops to make sense.
"""

from typing import Any

import pytest
from pydantic import ValidationError

from vdiff.config import Section
from vdiff.diffusion.continuous import EdmScheduleSection, VpScheduleSection
from vdiff.diffusion.section import BetasSection, CosineLogsnrSection, CosineSection
from vdiff.metrics.features import (
    FrechetDinoSection,
    FrechetInceptionSection,
    InceptionScoreSection,
    KernelSection,
    PrecisionSection,
    RecallSection,
)
from vdiff.metrics.pixels import PixelFrechetSection, SlicedSection
from vdiff.objectives.denoising import DenoisingSection
from vdiff.objectives.progressive import ProgressiveSection
from vdiff.samplers.ancestral import AncestralSection
from vdiff.samplers.ddim import DdimSection
from vdiff.training.settings import FitSection

MEANT: dict[type[Section], dict[str, Any]] = {
    CosineSection: {"grid": 1024},
    CosineLogsnrSection: {"grid": 1024, "smallest": -20.0, "largest": 20.0},  # Salimans & Ho 2022
    EdmScheduleSection: {"grid": 1024, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
    VpScheduleSection: {"grid": 1000, "beta_min": 0.1, "beta_d": 19.9},  # Song et al. 2021
    BetasSection: {"table": "linear", "grid": 1000, "first": 1e-4, "last": 0.02},  # Ho et al. 2020
    DdimSection: {"eta": 0.0, "clip": None},
    AncestralSection: {"variance": "large", "mix": 0.5, "clip": None},
    DenoisingSection: {"times": "continuous", "stratified": True},
    ProgressiveSection: {"stratified": True},
    FitSection: {
        "batch_size": 64,
        "micro_batch": None,
        "checkpoint_activations": False,
        "learning_rate": 2e-4,
        "warmup_updates": 0,
        "decay": "constant",
        "adam_betas": (0.9, 0.999),
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "ema": None,
        "dropout": True,
        "weighting": "snr_plus_one",
        "rollbacks": 0,
        "log_every": 50,
        "save_every": 1000,
        "preview_every": None,
    },
    PixelFrechetSection: {"components": 64},
    SlicedSection: {"directions": 64},
    FrechetInceptionSection: {"extractor": "inception-v3-compat"},
    KernelSection: {"extractor": "inception-v3-compat"},
    InceptionScoreSection: {"extractor": "inception-v3-compat"},
    PrecisionSection: {"extractor": "vgg16"},
    RecallSection: {"extractor": "vgg16"},
    FrechetDinoSection: {"extractor": "dinov2-vit-l-14"},
}
"""With another default, a run that names none could not be gone on with,
and a number would mean another thing.
"""

LIMITS: dict[tuple[type[Section], str], tuple[list[Any], list[Any]]] = {
    (CosineSection, "grid"): ([1, 2**16], [0, 2**16 + 1]),
    (CosineLogsnrSection, "grid"): ([1, 2**16], [0, 2**16 + 1]),
    (CosineLogsnrSection, "smallest"): ([-40, -1e-9], [-40.001, 0]),
    (CosineLogsnrSection, "largest"): ([1e-9, 40], [0, 40.001]),
    (EdmScheduleSection, "grid"): ([1, 2**16], [0, 2**16 + 1]),
    (EdmScheduleSection, "sigma_min"): ([1e-8, 79.9], [0, 80, 1e9]),
    (EdmScheduleSection, "sigma_max"): ([0.0021, 1e8], [0.002, 2e8]),
    (EdmScheduleSection, "sigma_data"): ([1e-4, 1e4], [0, 2e4]),
    (VpScheduleSection, "grid"): ([2, 2**16], [1, 2**16 + 1]),
    (VpScheduleSection, "beta_min"): ([1e-9, 100], [0, 101]),
    (VpScheduleSection, "beta_d"): ([0, 200], [-1, 201]),
    (BetasSection, "grid"): ([1, 2**16], [0, 2**16 + 1]),
    (BetasSection, "first"): ([1e-8, 0.02], [0, 1]),
    (BetasSection, "last"): ([1e-8, 0.02], [0, 1]),
    (DdimSection, "eta"): ([0, 1], [-1e-9, 1.001]),
    (DdimSection, "clip"): ([1e-9, 100, None], [0]),
    (DdimSection, "clip_noise"): ([1e-9, 100, None], [0]),
    (AncestralSection, "mix"): ([0, 1], [-1e-9, 1.001]),
    (AncestralSection, "clip"): ([1e-9, 100, None], [0]),
    (FitSection, "updates"): ([1], [0]),
    (FitSection, "batch_size"): ([1], [0]),
    (FitSection, "micro_batch"): ([1, None], [0]),
    (FitSection, "learning_rate"): ([1e-12], [0]),
    (FitSection, "warmup_updates"): ([0], [-1]),
    (FitSection, "weight_decay"): ([0], [-1e-9]),
    (FitSection, "clip_norm"): ([1e-9, None], [0]),
    (FitSection, "ema"): ([1e-9, 0.999999, None], [0, 1]),
    (FitSection, "rollbacks"): ([0, 30], [-1, 31]),
    (FitSection, "log_every"): ([1], [0]),
    (FitSection, "save_every"): ([1], [0]),
    (FitSection, "preview_every"): ([1, None], [0]),
    (PixelFrechetSection, "components"): ([1, 4096], [0, 4097]),
    (SlicedSection, "directions"): ([1, 4096], [0, 4097]),
}
"""Values at the ends that are right, and the first that are not."""

NEEDED = {FitSection: {"updates": 1}}


def made(section: type[Section], **values: Any) -> Section:
    return section(**{**NEEDED.get(section, {}), **values})


@pytest.mark.parametrize("section", MEANT, ids=lambda section: section.__name__)
def test_what_is_not_named_means_what_it_always_meant(section: type[Section]) -> None:
    found = made(section)
    assert {name: getattr(found, name) for name in MEANT[section]} == MEANT[section]


@pytest.mark.parametrize(
    ("section", "name"), LIMITS, ids=[f"{section.__name__}.{name}" for section, name in LIMITS]
)
def test_values_are_taken_up_to_their_limits_and_no_further(
    section: type[Section], name: str
) -> None:
    right, wrong = LIMITS[section, name]
    for value in right:
        assert getattr(made(section, **{name: value}), name) == value
    for value in wrong:
        with pytest.raises(ValidationError):
            made(section, **{name: value})
