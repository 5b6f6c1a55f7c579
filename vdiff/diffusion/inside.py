"""Guidance that a model has inside: as a recipe asks for it, as a model card tells it, and the g
that pictures are drawn with where nobody names one. Without torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST = 100.0
Strength = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
"""g; 1 is no guidance."""


def _checked_range(wanted: float | tuple[float, float]) -> float | tuple[float, float]:
    if isinstance(wanted, tuple) and not wanted[0] < wanted[1]:
        low, high = wanted
        raise ValueError(
            f"a range goes from a smaller g to a larger one, not from {low:g} to {high:g}; "
            f"for one g alone write it without brackets, as in `{high:g}`"
        )
    return wanted


def _checked_levels(levels: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= levels[0] < levels[1]:
        raise ValueError("an interval goes from a smaller noise level to a larger one")
    return levels


Wanted = Annotated[Strength | tuple[Strength, Strength], AfterValidator(_checked_range)]
"""One g, or a range of them, both ends included."""
Interval = Annotated[tuple[float, float], AfterValidator(_checked_levels)]
"""Noise levels sigma / alpha, both ends included."""
Inside = Mapping[str, Any]
"""What a model card says: {"kind": "input", "low": 1.0, "high": 4.0} of a model that takes any g
between them, {"kind": "baked", "value": 1.5} of one that has this g; `interval`, two noise levels,
where its teacher was guided between them only.
"""


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["input"]
    low: Strength
    high: Strength
    interval: Interval | None = None


class _Baked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["baked"]
    value: Strength
    interval: Interval | None = None


_KINDS: dict[str, type[BaseModel]] = {"input": _Input, "baked": _Baked}


def is_known(inside: Inside) -> bool:
    """Whether it is of a kind that this vdiff knows."""
    return inside.get("kind") in _KINDS


def checked(inside: dict[str, Any]) -> dict[str, Any]:
    """The same, with numbers that can be; one of an unknown kind as it is.   Errors: ValueError."""
    if not is_known(inside):
        return inside
    found = _KINDS[inside["kind"]].model_validate(inside).model_dump(mode="json", exclude_none=True)
    if found["kind"] == "input" and not found["low"] < found["high"]:
        raise ValueError(f"guidance from {found['low']:g} to {found['high']:g} is no range")
    return found


def of_wanted(
    wanted: float | tuple[float, float], interval: tuple[float, float] | None = None
) -> dict[str, Any]:
    """What the model card says of a student that was asked for so.

    interval: the noise levels within which its teacher was guided; None for all.
    """
    found: dict[str, Any] = {"kind": "baked", "value": wanted}
    if isinstance(wanted, tuple):
        found = {"kind": "input", "low": wanted[0], "high": wanted[1]}
    if interval is not None:
        found["interval"] = list(interval)
    return found


def range_of(inside: Inside | None) -> tuple[float, float] | None:
    """The lowest and the highest g that a model takes; None for one that takes none."""
    if inside is None or inside["kind"] != "input":
        return None
    return float(inside["low"]), float(inside["high"])


def usual(inside: Inside | None) -> float | None:
    """The g that a model is drawn with where nobody names one: 1, which is none, or the lower end
    of a range without it. None for a model that takes none.
    """
    found = range_of(inside)
    if found is None:
        return None
    low, high = found
    return 1.0 if low <= 1 <= high else low


def told(inside: Inside) -> str:
    """For people: `inside, 1 to 4`, `inside, always 1.5`."""
    where = ""
    if inside.get("interval") is not None:
        low, high = inside["interval"]
        where = f", at noise levels from {low:g} to {high:g}"
    if inside["kind"] == "input":
        return f"inside, {inside['low']:g} to {inside['high']:g}{where}"
    if inside["kind"] == "baked":
        return f"inside, always {inside['value']:g}{where}"
    return str(inside["kind"])
