"""EDM's frame around a network that was trained elsewhere: its noise levels and what it needs for
them. Without torch, but for the network.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vdiff.errors import UsageError

if TYPE_CHECKING:
    from vdiff.networks.edm import EdmNetwork
    from vdiff.networks.network import Network

GRID = 1024
NUM_STEPS = 256
"""Of DDIM, where the noise is continuous: more hardly changes the pictures."""

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""Ends of the samplers of EDM and of consistency_models."""


def noise_range(
    asked: Mapping[str, str], limits: tuple[float, float] = (0.0, float("inf"))
) -> tuple[float, float]:
    """(sigma_min, sigma_max) of the noise, as it is asked for or as it is usual.

    limits: of the noise that the network was made for.   Errors: UsageError.
    """
    ends = (
        _level(asked, "sigma_min", max(SIGMA_MIN, limits[0])),
        _level(asked, "sigma_max", min(SIGMA_MAX, limits[1])),
    )
    if not ends[0] < ends[1]:
        problem = f"`sigma_min` {ends[0]:g} is not below `sigma_max` {ends[1]:g}"
        raise UsageError(problem, "write them like --assume sigma_max=80", "--assume")
    return ends


def _level(asked: Mapping[str, str], name: str, default: float) -> float:
    try:
        level = float(asked.get(name, default))
    except ValueError:
        level = 0.0
    if not 1e-8 <= level <= 1e8:
        problem = f"`{name}` is `{asked.get(name, default)}`, no noise level"
        raise UsageError(problem, f"write it as {name}=80", "--assume")
    return level


def range_told(ends: tuple[float, float]) -> str:
    """What was taken for given about the noise, a sentence."""
    return f"its sampler begins at sigma {ends[1]:g} and ends at {ends[0]:g}"


def framed(inner: "Network", kind: str, sigma_data: float, time_scale: float) -> "EdmNetwork":
    """A network in EDM's frame.   kind: of the network in it."""
    from vdiff.networks.edm import EdmNetwork
    from vdiff.networks.edm_section import EdmConfig

    told = {
        "sigma_data": sigma_data,
        "time_scale": time_scale,
        "inner_kind": kind,
        "inner": inner.config,
    }
    return EdmNetwork(inner, EdmConfig.read(told))


def edm_diffusion(ends: tuple[float, float], sigma_data: float) -> dict[str, object]:
    """The section of the noise process of a network in EDM's frame."""
    schedule = {
        "kind": "edm",
        "grid": GRID,
        "sigma_min": ends[0],
        "sigma_max": ends[1],
        "sigma_data": sigma_data,
    }
    return {"schedule": schedule, "predicts": "v"}
