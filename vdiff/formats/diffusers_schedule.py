"""The noise process of a diffusers folder, out of `scheduler_config.json`,
as vdiff's section `diffusion`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vdiff.diffusion.process import DiffusionSection
from vdiff.diffusion.schedule import BetasSection
from vdiff.errors import ModelFileError

PREDICTS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
"""What diffusers calls the predictions."""

OPTIONS = ("prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
"""What a user may tell of a folder without a scheduler."""

TABLES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")

_WITH_TABLES = (
    *("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep"),
    *("UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "SASolver"),
    *("DDPMParallel", "DDIMParallel", "DDIMInverse", "DPMSolverMultistepInverse", "RePaint"),
    *("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "LCM"),
)
"""Schedulers of models that were trained with a table of betas,
without the word `Scheduler` behind.
"""

_STABLE = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "LCM")
"""Those whose betas end elsewhere unless told."""

_ROUNDING = 3e-6
"""Of a table in float32, relative; the last entry of the cosine table is as
rough as 1 - float32(0.999).
"""

_CAP_ROUNDING = 1e-4


def diffusion(config: Mapping[str, object], path: Path) -> dict[str, object]:
    """The section `diffusion` as a recipe has it.

    config: of the scheduler.   path: of the folder, for messages.
    Errors: ModelFileError for a noise process without a table of betas, or one that its prediction
    cannot serve.
    """
    name = _class_name(config)
    if name is not None and name not in _WITH_TABLES:
        raise ModelFileError(_strange(name), "take a model with a table of betas", path)
    if config.get("use_flow_sigmas"):
        raise ModelFileError(
            "it is a flow model (`use_flow_sigmas`), not one with a table of betas",
            "take another model",
            path,
        )
    told = str(config.get("prediction_type") or "epsilon")
    if told not in PREDICTS:
        problem = f"the network predicts `{told[:40]}`, which vdiff does not know"
        raise ModelFileError(problem, f"vdiff knows: {', '.join(PREDICTS)}", path)
    schedule = _schedule(config, name, path)
    section: dict[str, object] = {"schedule": schedule, "predicts": PREDICTS[told]}
    try:
        DiffusionSection.model_validate(section)
    except (ValueError, OverflowError) as err:
        reason = str(err).partition("Value error, ")[2].partition(" [type=")[0]
        told = reason or "its numbers cannot be those of a schedule"
        problem = f"the scheduler's table of betas cannot be drawn from: {told}"
        raise ModelFileError(problem, "take another model", path) from err
    return section


def sampler(config: Mapping[str, object], predicts: str) -> dict[str, object] | None:
    """The sampler that draws best with the model; None for plain DDIM.

    A network that predicts noise tells the picture badly near t = 1, so its pictures are kept
    within limits, unless the folder's own sampler is plain DDIM at vdiff's times.
    """
    is_plain = (
        _class_name(config) == "DDIM"
        and config.get("clip_sample") is False
        and config.get("timestep_spacing") == "trailing"
        and not config.get("thresholding")
    )
    if predicts != "eps" or is_plain:
        return None
    limit = 1.0
    if config.get("clip_sample", True):
        limit = _number(config, "clip_sample_range", 1.0)
    return {"kind": "ddim", "clip": limit if 0 < limit < 1e6 else 1.0}


def steps(config: Mapping[str, object], grid: int) -> int | None:
    """The only number of steps that a student of vdiff can draw in; None for any other model."""
    count = config.get("num_inference_steps")
    if type(count) is int and 1 <= count <= grid and grid % count == 0:
        return count
    return None


def _class_name(config: Mapping[str, object]) -> str | None:
    name = config.get("_class_name")
    return name.removesuffix("Scheduler") if isinstance(name, str) else None


def _strange(name: str) -> str:
    told = f"{name[:60]}Scheduler"
    if name.startswith(("EDM", "Karras", "CMStochastic", "ScoreSdeVe")):
        return (
            f"`{told}` belongs to a model whose noise grows without limit (variance exploding, EDM)"
        )
    if name.startswith("FlowM"):
        return f"`{told}` belongs to a flow model"
    return f"vdiff does not know the noise process of `{told}`"


def _schedule(config: Mapping[str, object], name: str | None, path: Path) -> dict[str, object]:
    zero_terminal = bool(config.get("rescale_betas_zero_snr"))
    trained = config.get("trained_betas")
    if trained is not None:
        values = _values(trained, path)
        return {**recognised(values), **({"zero_terminal": True} if zero_terminal else {})}
    table = str(config.get("beta_schedule", "scaled_linear" if name == "LCM" else "linear"))
    if table not in TABLES:
        problem = f"the scheduler's table of betas is `{table[:40]}`, which vdiff does not know"
        raise ModelFileError(problem, f"vdiff knows: {', '.join(TABLES)}", path)
    is_stable = name in _STABLE
    try:
        grid = _whole(config, "num_train_timesteps", 1000)
        schedule: dict[str, object] = {"kind": "betas", "table": table, "grid": grid}
        if table in ("linear", "scaled_linear", "sigmoid"):
            schedule["first"] = _number(config, "beta_start", 0.00085 if is_stable else 0.0001)
            schedule["last"] = _number(config, "beta_end", 0.012 if is_stable else 0.02)
    except (ValueError, TypeError, OverflowError) as err:
        problem = "a number of the scheduler is none"
        raise ModelFileError(problem, "use an undamaged copy of the folder", path) from err
    if zero_terminal:
        schedule["zero_terminal"] = True
    return _continuous(schedule)


def _number(config: Mapping[str, object], name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(name)
    return float(value)


def _whole(config: Mapping[str, object], name: str, default: int) -> int:
    value = _number(config, name, default)
    if value != int(value):
        raise ValueError(name)
    return int(value)


def _values(trained: object, path: Path) -> list[float]:
    is_list = isinstance(trained, list) and 1 <= len(trained) <= 1 << 16
    if not is_list or not all(type(each) in (int, float) for each in trained):  # type: ignore[attr-defined]
        problem = "`trained_betas` of the scheduler is no list of up to 65,536 numbers"
        raise ModelFileError(problem, "use an undamaged copy of the folder", path)
    return [float(each) for each in trained]  # type: ignore[attr-defined]


def recognised(values: Sequence[float]) -> dict[str, object]:
    """The schedule of a table of betas: by its name where the formula is known,
    which is exact, else as it is.
    """
    betas = torch.tensor(values, dtype=torch.float64)
    named: dict[str, object]
    for table in TABLES[:3]:
        named = {"kind": "betas", "table": table, "grid": len(values)}
        if table != "squaredcos_cap_v2":
            # as people write them: a table in float32 has digits of its own behind
            named |= {"first": float(f"{values[0]:.6g}"), "last": float(f"{values[-1]:.6g}")}
        for zero_terminal in (False, True):
            if zero_terminal and table != "squaredcos_cap_v2":
                continue
            section = named | ({"zero_terminal": True} if zero_terminal else {})
            if _is_table(section, betas):
                return _continuous(section)
    return {"kind": "betas", "table": list(values)}


def _continuous(schedule: dict[str, object]) -> dict[str, object]:
    """The cosine table is that of a formula, which tells the times between its entries too."""
    if schedule["table"] == "squaredcos_cap_v2" and not schedule.get("zero_terminal"):
        return {"kind": "cosine", "grid": schedule["grid"]}
    return schedule


def _is_table(section: Mapping[str, object], betas: Tensor) -> bool:
    try:
        schedule = BetasSection.model_validate(section).build()
    except ValueError:
        return False
    t = torch.arange(len(betas) + 1, dtype=torch.float64) / len(betas)
    signal = schedule.alpha_sigma(t)[0] ** 2
    differences = (1 - signal[1:] / signal[:-1] - betas).abs() / betas.abs().clamp(min=1e-12)
    return bool((differences[:-1] < _ROUNDING).all() and differences[-1] < _CAP_ROUNDING)
