"""Whether a converted model is the model it was:
its outputs beside recorded ones, or real pictures without noise.

A conversion goes wrong silently. With the heads of the attention in a wrong order, outputs of about
1 differ by 0.02: the pictures still look like pictures. So nothing is left behind that was not
compared with something.
"""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff.data.codec import codec_of
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.diffusion.schedule import Schedule
from vdiff.errors import ModelFileError
from vdiff.exchange.denoised import NAMES, denoised
from vdiff.formats.adapter import ForeignModel
from vdiff.model_folder import origin
from vdiff.randomness import Randomness

TOLERANCE = 2e-5
"""Largest difference of outputs that rounding explains, relative to outputs of about 1."""

TIMES = (0.2, 0.4, 0.6, 0.8)
"""At which real pictures are denoised: between them, most of what a network knows is asked for."""

WORST_SHARE = 0.9
"""Of the error that anybody makes: a network that hardly predicts noise better knows other
pictures, or other noise. A U-Net of 0.3 M weights after 100 updates is at 0.5 to 0.7.
"""

CLEAR_RATIO = 1.005
"""By which the second best reading of a file is to be worse than the best,
or the pictures cannot tell.
"""

CLEAR_DEVIATIONS = 4.0
"""Or by so many standard errors of the mean difference, of the same pictures with the same noise: a
wrong order of heads costs 0.3 to 0.8 %, and nearly every picture tells it.
"""

LEAST_PICTURES = 16
"""To tell anything from a standard error."""

_BATCH = 16


@dataclass(frozen=True)
class Proof:
    """What a conversion was compared with.

    how: `outputs` of another program, `denoising` of real pictures, or `none`.   by: whose.
    difference: the largest one, relative to outputs of about 1; or the mean square of the error in
    eps.
    limit: what was allowed.
    also: what else was compared, a sentence each.
    """

    how: str
    by: str
    difference: float
    limit: float
    also: tuple[str, ...] = ()

    def told(self) -> str:
        """A sentence for people."""
        return origin.proof(self.facts())

    def facts(self) -> dict[str, object]:
        """For a card; None for numbers that there are not, as JSON has no NaN."""
        facts = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }
        also = facts.pop("also")
        return {**facts, "also": list(self.also)} if also else facts


def of_file(model: ForeignModel, path: Path) -> Proof:
    """The network's outputs beside those in an .npz file:
    `z`, `time`, `output`, and `label` where it has classes;
    or what it makes of pictures with noise, as `denoised` has them.

    time: what the network is fed.   output: as the other program gave it; a learned variance behind
    it is passed over.
    Errors: ModelFileError.
    """
    arrays = _arrays(path)
    if arrays.keys() >= set(NAMES):
        _check_shape(model, _tensor(arrays["x_noisy"]), _tensor(arrays["denoised"]), path.name)
        condition = Condition(label_of(model, arrays, "label", len(arrays["denoised"]), path.name))
        ours = denoised(model, arrays, condition, path.name)
        return _beside(ours, _tensor(arrays["denoised"]), path.name, None)
    missing = {"z", "time", "output"} - arrays.keys()
    if missing:
        problem = f"`{path}` has no `{min(missing)}`"
        fix = "give it the arrays `z`, `time` and `output` (and `label` with classes)"
        raise ModelFileError(problem, fix, "--expected")
    z, time = _tensor(arrays["z"]), _tensor(arrays["time"])
    if time.shape != (len(z),):
        problem = f"`{path.name}` has {len(z)} pictures `z`, and `time` of shape {list(time.shape)}"
        raise ModelFileError(problem, "give one time for every picture", "--expected")
    condition = Condition(label_of(model, arrays, "label", len(z), path.name))
    return of_outputs(model, z, time, condition, _tensor(arrays["output"]), path.name)


def label_of(
    model: ForeignModel,
    arrays: "Mapping[str, np.ndarray[Any, Any]]",
    name: str,
    count: int,
    by: str,
) -> Tensor | None:
    """The classes of `count` recorded pictures, int64 [count]; None where the model knows none.

    name: of their array.   by: the file.
    Errors: ModelFileError for a number that is missing, or of no class.
    """
    if not model.num_classes:
        return None
    label = arrays.get(name)
    if label is None or label.shape != (count,):
        problem = f"`{by}` does not say of which class each recorded picture is"
        raise ModelFileError(problem, f"give `{name}`, a number for each", by)
    known = model.num_classes + model.null_class
    if label.size and not 0 <= int(label.min()) <= int(label.max()) < known:
        problem = f"`{name}` in `{by}` has classes that the model does not know"
        raise ModelFileError(problem, f"they are 0 to {known - 1}", by)
    return torch.from_numpy(label.astype(np.int64))


def recorded_size(path: Path) -> int | None:
    """Width of the recorded pictures in pixels; None without one.   Errors: ModelFileError."""
    arrays = _arrays(path)
    z = arrays.get("z", arrays.get("x_noisy"))
    return None if z is None or z.ndim != 4 else int(z.shape[3])


def of_outputs(
    model: ForeignModel,
    z: Tensor,
    time: Tensor,
    condition: Condition,
    output: Tensor,
    by: str,
    tolerance: float | None = None,
) -> Proof:
    """The network's outputs beside those of another program for the same inputs.

    z: [B, C, H, W].   time: [B], what the network is fed.   output: [B, C or 2 C, H, W].
    by: whose outputs.
    tolerance: largest difference allowed; None for that of rounding.
    Errors: ModelFileError for inputs that do not fit the network, or a difference over the
    tolerance.
    """
    _check_shape(model, z, output, by)
    return _beside(output_of(model, z, time, condition), output, by, tolerance)


def _check_shape(model: ForeignModel, z: Tensor, output: Tensor, by: str) -> None:
    shape = codec_of(model.codec).shape(model.shape)
    if z.shape[1:] != shape or output.shape[2:] != z.shape[2:] or len(output) != len(z):
        problem = (
            f"the recorded pictures have the shape {list(z.shape[1:])}, the network's {list(shape)}"
        )
        raise ModelFileError(problem, "give outputs that were recorded with this model", by)
    # one with a learned variance has as many channels again
    if output.shape[1] not in (shape[0], 2 * shape[0]):
        problem = f"the recorded outputs have {output.shape[1]} channels, the network {shape[0]}"
        raise ModelFileError(problem, "give outputs that were recorded with this model", by)


def _beside(ours: Tensor, output: Tensor, by: str, tolerance: float | None) -> Proof:
    """What a model computes, [B, C, H, W], beside what was recorded, [B, C or 2 C, H, W]."""
    limit = TOLERANCE if tolerance is None else tolerance
    wanted = output[:, : ours.shape[1]]
    size = max(1.0, float(wanted.square().mean().sqrt()))
    difference = float((ours - wanted).abs().max()) / size
    if not difference <= limit:
        problem = (
            f"the converted network is not the one that made {by}: "
            f"outputs of about 1 differ by up to {difference:.2g}, and {limit:.0e} is allowed"
        )
        raise ModelFileError(problem, "tell what the file leaves open, see `--assume`", by)
    return Proof("outputs", by, difference, limit)


def output_of(model: ForeignModel, z: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """What the network of a model gives, [B, C, H, W]."""
    with torch.no_grad():
        output: Tensor = model.denoiser.network(z, time.float(), condition)
    return output


def inputs(model: ForeignModel, count: int = 6) -> tuple[Tensor, Tensor, Condition]:
    """Noisy inputs, the network's time inputs and classes, to compare two programs with:
    the same every time.
    """
    seeds = torch.arange(count, dtype=torch.int64)
    shape = codec_of(model.codec).shape(model.shape)
    z = Randomness.for_images(seeds).normal(*shape)
    t = (torch.arange(count, dtype=torch.float64) + 1) / count
    time = model.denoiser.schedule.time_input(t).float()
    label = seeds % model.num_classes if model.num_classes else None
    return z, time, Condition(label)


def denoising_error(denoiser: Denoiser, x: Tensor, label: Tensor | None = None) -> float:
    """The mean of `denoising_errors`."""
    return float(denoising_errors(denoiser, x, label).mean())


def denoising_errors(denoiser: Denoiser, x: Tensor, label: Tensor | None = None) -> Tensor:
    """Mean square of each picture's error in eps over `TIMES`.

    x: what the network sees of real pictures, [N, C, H, W].
    label: int64 [N] for a network with classes.
    The noise is the same for every network, so small differences between two of them mean
    something.
    Returns [N], float64.
    """
    errors = []
    for time in TIMES:
        for start in range(0, len(x), _BATCH):
            part = x[start : start + _BATCH]
            seeds = torch.arange(start, start + len(part), dtype=torch.int64)
            noise = Randomness.for_images(seeds).normal(*part.shape[1:])
            t = torch.full((len(part),), time, dtype=torch.float64)
            alpha, sigma = scales(denoiser.schedule, t, part)
            condition = NOTHING
            if label is not None:
                condition = Condition(label[start : start + len(part)])
            with torch.no_grad():
                eps = denoiser(alpha * part + sigma * noise, t, condition).eps
            errors.append((eps - noise).square().mean(dim=(1, 2, 3)).double())
    return torch.cat(errors).view(len(TIMES), len(x)).mean(dim=0)


def known_to_anybody(schedule: Schedule, x: Tensor) -> float:
    """Mean square of the error in eps, over `TIMES`, of the best prediction
    that is a multiple of z.

    eps = c z is best with c = sigma / (alpha^2 P + sigma^2), P the mean square of x, and its error
    is alpha^2 P / (alpha^2 P + sigma^2). It is far below 1 at late times: z is hardly anything but
    noise.
    """
    power = float(x.double().square().mean())
    errors = []
    for alpha, sigma in schedule.scales_at(TIMES):
        signal = alpha**2 * power
        errors.append(signal / (signal + sigma**2))
    return sum(errors) / len(errors)


def of_pictures(
    errors: Mapping[str, float], by: str, each: Mapping[str, Tensor] | None = None
) -> str:
    """The reading of a file that denoises best; see `denoising_error`.

    errors: of every reading, by its name.   by: whose pictures.
    each: `denoising_errors` of every reading, with which readings are told apart whose means are
    closer than `CLEAR_RATIO`.
    Errors: ModelFileError where the best two cannot be told apart.
    """
    ranked = sorted(errors, key=lambda name: (not errors[name] < float("inf"), errors[name]))
    best = ranked[0]
    is_close = len(ranked) > 1 and errors[ranked[1]] < errors[best] * CLEAR_RATIO
    if is_close and (each is None or not _is_worse(each[ranked[1]], each[best])):
        problem = f"the pictures of {by} cannot tell `{best}` from `{ranked[1]}`"
        raise ModelFileError(problem, "give more pictures, or say which it is", "--data")
    return best


def of_denoising(error: float, schedule: Schedule, x: Tensor, by: str) -> Proof:
    """That a network knows the noise of real pictures: it is clearly better than anybody.

    error: its `denoising_error` on x.   by: whose pictures.   Errors: ModelFileError.
    """
    share = error / known_to_anybody(schedule, x)
    if not share < WORST_SHARE:
        problem = (
            f"the converted network cannot tell noise from the pictures of {by}: "
            f"its error is {share:.3g} of what anybody makes"
        )
        fix = "give pictures of the kind that it was trained on, and tell what the file leaves open"
        raise ModelFileError(problem, fix, "--data")
    return Proof("denoising", by, share, WORST_SHARE)


def _is_worse(errors: Tensor, best: Tensor) -> bool:
    """Whether the same pictures' errors are larger by more than chance explains.   [N] both."""
    more = errors - best
    spread = float(more.std()) / len(more) ** 0.5
    return len(more) >= LEAST_PICTURES and float(more.mean()) > CLEAR_DEVIATIONS * spread


def told(errors: Mapping[str, float]) -> Sequence[str]:
    """Every reading with its error, a line each, the best first."""
    ranked = sorted(errors.items(), key=lambda item: item[1])
    least = ranked[0][1]
    return [f"{name}: {error:.4f} ({error / least:.3f} x)" for name, error in ranked]


def _arrays(path: Path) -> dict[str, "np.ndarray[Any, Any]"]:
    """Those that networks are compared by, of an .npz file.   Errors: ModelFileError."""
    return arrays_of(path, lambda name: name in ("z", "time", "output", "label", *NAMES))


def arrays_of(path: Path, is_wanted: Callable[[str], bool]) -> dict[str, "np.ndarray[Any, Any]"]:
    """The wanted arrays of an .npz file, by name; no pickle is read.   Errors: ModelFileError."""
    try:
        # the file may hold many more
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file if is_wanted(name)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as err:
        problem = f"`{path}` cannot be read as an .npz file of arrays"
        raise ModelFileError(problem, "write it with numpy's `savez`", "--expected") from err


def _tensor(array: "np.ndarray[Any, Any]") -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
