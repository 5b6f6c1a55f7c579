"""The noise process of a converted model beside a recorded one: its table, and what DDIM draws.

Outputs of a network do not tell at which noise level it was fed its time, and not what it predicts:
a wrong table or a wrong word for the prediction leaves every output as it was. A recorded table
tells the first, recorded pictures tell both.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdiff.data.codec import codec_of
from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import scales
from vdiff.errors import ModelFileError
from vdiff.exchange.proof import arrays_of, label_of
from vdiff.formats.adapter import ForeignModel

Arrays = Mapping[str, "np.ndarray[Any, Any]"]

TABLE = "alphas_cumprod"
"""alpha^2 at every time (i + 1) / T, by the name that all these programs have for it."""

TABLE_TOLERANCE = 1e-4
"""Of alpha^2, relative to itself: a float32 table is off by 6e-5 where its last beta is 0.999."""

NEAR_ONE = 2e-6
"""Of alpha^2, absolute: where hardly any noise is left, that is what a float32 table is off by."""

SAMPLES_TOLERANCE = 5e-3
"""Of drawn pictures, relative to their root mean square, and to 1 at least.

Not that of rounding, which an eps network multiplies by 1 / alpha: from the end of a cosine table
two correct programs differ by 2e-3. A wrong process is off by far more than this.
"""

MOST_STEPS = 10
"""Results of more steps say nothing more, and take their time."""

_RESULT = re.compile(r"(?P<name>ddim_\w+)_(?P<limits>free|clipped)")


class Result(NamedTuple):
    """What DDIM with eta 0 drew.

    indices: of the table, as they were visited; the last step gives x.
    is_clipped: whether every x was kept within [-1, 1].   pictures: [B, C, H, W].
    """

    name: str
    indices: tuple[int, ...]
    is_clipped: bool
    pictures: Tensor


def check_process(model: ForeignModel, path: Path) -> tuple[str, ...]:
    """Compare the noise process of a model with what an .npz file holds of it.

    Of `alphas_cumprod` every entry, and their number. Of `index`, places in that table, the `time`
    that the network is fed there. From `noise` (and `noise_label` with classes)
    every `ddim_<any>_free` and `ddim_<any>_clipped` whose indices are in `ddim_<any>_index`.

    Returns what was compared, a sentence each; nothing where the file holds networks' outputs only.
    Errors: ModelFileError for what is off.
    """
    arrays = arrays_of(path, _is_read)
    told = []
    if TABLE in arrays:
        told.append(_check_table(model, arrays[TABLE], path.name))
        _check_times(model, arrays, path.name)
    results = _results(arrays, model.denoiser.schedule.grid, path)
    if results and model.own_sampler is not None:
        told.append(f"the pictures in {path.name} are not compared: {model.own_sampler}")
    elif results:
        told.append(_check_results(model, arrays, results, path.name))
    return tuple(told)


def _check_table(model: ForeignModel, recorded: "np.ndarray[Any, Any]", by: str) -> str:
    schedule = model.denoiser.schedule
    num_times = recorded.size
    if num_times != schedule.grid:
        problem = f"the noise table in {by} has {num_times} entries, and that of the model"
        raise ModelFileError(f"{problem} has {schedule.grid}", _FIX, by)
    times = (torch.arange(num_times, dtype=torch.float64) + 1) / num_times
    ours = (schedule.alpha_sigma(times)[0] ** 2).numpy()
    wanted = recorded.astype(np.float64).reshape(-1)
    # 1e-12: where a table ends with no signal at all
    allowed = np.minimum(NEAR_ONE, TABLE_TOLERANCE * np.abs(wanted) + 1e-12)
    excess = np.abs(ours - wanted) / allowed
    if not excess.max() <= 1:
        worst = int(np.nan_to_num(excess, nan=np.inf).argmax())
        problem = (
            f"the noise table in {by} is not that of the model: at entry {worst:,} of {num_times:,}"
            f" alpha^2 is {wanted[worst]:.6g}, and {ours[worst]:.6g} in the model"
        )
        raise ModelFileError(problem, _FIX, by)
    largest = float(np.abs(ours - wanted).max())
    return f"noise table of {num_times:,} entries: largest difference {largest:.2g}"


def _check_times(model: ForeignModel, arrays: Arrays, by: str) -> None:
    """That the network is fed what the other program feeds it at the same noise."""
    if "index" not in arrays or "time" not in arrays:
        return
    index = arrays["index"].astype(np.float64).reshape(-1)
    wanted = arrays["time"].astype(np.float64).reshape(-1)
    if index.shape != wanted.shape:
        problem = f"`{by}` has {len(index)} numbers `index` and {len(wanted)} of `time`"
        raise ModelFileError(problem, "give one of each for every picture", by)
    schedule = model.denoiser.schedule
    ours = schedule.time_input(torch.from_numpy((index + 1) / schedule.grid)).numpy()
    off = np.abs(ours - wanted) > 1e-3
    if off.any():
        worst = int(off.argmax())
        problem = (
            f"at entry {index[worst]:g} of the noise table the network is fed {ours[worst]:g}, "
            f"and {wanted[worst]:g} in {by}"
        )
        raise ModelFileError(problem, _FIX, by)


def _check_results(model: ForeignModel, arrays: Arrays, results: Sequence[Result], by: str) -> str:
    noise = torch.from_numpy(np.ascontiguousarray(arrays["noise"], dtype=np.float32))
    _check_shapes(model, noise, results, by)
    condition = Condition(label_of(model, arrays, "noise_label", len(noise), by))
    worst = 0.0
    for result in results:
        size = max(1.0, float(result.pictures.square().mean().sqrt()))
        differences = []
        # of clipped pictures some programs keep the network's own eps, others make it anew
        for keeps_eps in (False, True) if result.is_clipped else (False,):
            drawn = _drawn(model, noise, condition, result, keeps_eps)
            differences.append(float((drawn - result.pictures).abs().max()) / size)
            if differences[-1] <= SAMPLES_TOLERANCE:
                break
        if not min(differences) <= SAMPLES_TOLERANCE:
            problem = (
                f"the model does not draw the pictures in {by}: those of `{result.name}` differ by "
                f"up to {min(differences):.2g}, and {SAMPLES_TOLERANCE:g} is allowed"
            )
            raise ModelFileError(problem, _FIX, by)
        worst = max(worst, min(differences))
    names = ", ".join(result.name for result in results)
    return f"pictures drawn by DDIM ({names}): largest difference {worst:.2g}"


_FIX = "tell what the model predicts, and its noise schedule, see `--assume`"


def _check_shapes(model: ForeignModel, noise: Tensor, results: Sequence[Result], by: str) -> None:
    shape = codec_of(model.codec).shape(model.shape)
    for pictures in (noise, *(result.pictures for result in results)):
        if pictures.shape[1:] != shape or len(pictures) != len(noise):
            problem = (
                f"the recorded noise and pictures have the shape {list(pictures.shape[1:])}, "
                f"the network's {list(shape)}"
            )
            raise ModelFileError(problem, "give what was recorded with this model", by)


@torch.no_grad()
def _drawn(
    model: ForeignModel, noise: Tensor, condition: Condition, result: Result, keeps_eps: bool
) -> Tensor:
    """What DDIM draws along the indices of a result, [B, C, H, W]."""
    schedule = model.denoiser.schedule
    times = [(index + 1) / schedule.grid for index in result.indices]
    z = noise
    x = noise
    for place, time in enumerate(times):
        t = torch.full((len(z),), time, dtype=torch.float64)
        prediction = model.denoiser(z, t, condition)
        eps = prediction.eps
        if result.is_clipped:
            prediction = prediction.clipped(1.0, z, *scales(schedule, t, z))
            if not keeps_eps:
                eps = prediction.eps
        x = prediction.x
        if place + 1 < len(times):
            s = torch.full((len(z),), times[place + 1], dtype=torch.float64)
            alpha, sigma = scales(schedule, s, z)
            z = alpha * x + sigma * eps
    return x


def _results(arrays: Arrays, grid: int, path: Path) -> list[Result]:
    """Those of few steps, the fewest first.   Errors: ModelFileError for indices that cannot be."""
    if "noise" not in arrays:
        return []
    found = []
    for name, pictures in arrays.items():
        match = _RESULT.fullmatch(name)
        if match is None or f"{match['name']}_index" not in arrays:
            continue
        indices = tuple(int(index) for index in arrays[f"{match['name']}_index"].reshape(-1))
        is_falling = all(before > after for before, after in pairwise(indices))
        if not indices or not is_falling or indices[-1] < 0 or indices[0] >= grid:
            problem = f"`{match['name']}_index` are no falling indices of a table of {grid} entries"
            raise ModelFileError(problem, "give those that were visited, in order", path)
        if len(indices) <= MOST_STEPS:
            drawn = torch.from_numpy(np.ascontiguousarray(pictures, dtype=np.float32))
            found.append(Result(name, indices, match["limits"] == "clipped", drawn))
    return sorted(found, key=lambda result: (len(result.indices), result.name))


def _is_read(name: str) -> bool:
    whole = (TABLE, "index", "time", "noise", "noise_label")
    return name in whole or re.fullmatch(r"ddim_\w+_(free|clipped|index)", name) is not None
