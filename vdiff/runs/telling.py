"""What only the first process reads, and the others are told: models and savepoints.

So only the first process needs the run folder. Facts are told whole, tensors one after another, as
they are put in their places.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff.machine.processes import Processes
from vdiff.model_folder import card as model_card
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard
from vdiff.networks.fast import fast_on
from vdiff.networks.network import as_network
from vdiff.runs import savepoint
from vdiff.runs.savepoint import SavePoint


def card(processes: Processes, read: Callable[[], ModelCard]) -> ModelCard:
    """The card that the first process reads, in every process; its error is everybody's."""
    found: list[ModelCard] = []

    def facts() -> dict[str, Any]:
        found.append(read())
        return model_card.content(found[0])

    told = processes.told(facts)
    if found:
        return found[0]
    return model_card.parse(told, Path(told["name"]))


def model(
    processes: Processes,
    folder: Path,
    device: torch.device | str = "cpu",
    written: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """The model folder that the first process reads, in every process.
    Errors: ModelFileError, in all of them.

    The others need no such folder: to them, it is a name.
    written: in the first process, as for `checkpoint.load`.
    """
    read: list[Checkpoint] = []

    def facts() -> dict[str, Any]:
        read.append(checkpoint.load(folder, written=written))
        found = read[0]
        return {
            "card": model_card.content(found.card),
            "config": as_network(found.denoiser.network).config,
        }

    told = processes.told(facts)
    if read:
        found = read[0]
    else:
        card_told = model_card.parse(told["card"], folder)
        found = checkpoint.meta_checkpoint(card_told, told["config"], folder)
    for tensor in found.denoiser.network.state_dict().values():
        processes.fill(tensor)
    fast_on(found.denoiser.network.to(device), device)
    return found


def newest(
    processes: Processes, saves: Path, trajectory: Mapping[str, Any], say: Callable[[str], None]
) -> SavePoint | None:
    """As `savepoint.newest`, for which the first process looks. The others get a state on the
    device `meta`.

    Its tensors are told when they are asked for, with `Processes.spread`; the small ones are there
    already.
    """
    read: list[SavePoint] = []

    def facts() -> dict[str, Any] | None:
        point = savepoint.newest(saves, trajectory, say)
        if point is None:
            return None
        read.append(point)
        parts = {
            part: {name: _shape(tensor) for name, tensor in named.items()}
            for part, named in point.state.items()
        }
        pending = {name: _shape(tensor) for name, tensor in point.pending.items()}
        return {**_numbers(point), "state": parts, "pending": pending}

    told = processes.told(facts)
    if told is None:
        return None
    if read:
        point = read[0]
    else:
        state = {part: _without_values(named) for part, named in told["state"].items()}
        numbers = {name: told[name] for name in _NUMBERS}
        point = SavePoint(state=state, pending=_without_values(told["pending"]), **numbers)
    course = _spread(processes, point.state.get("course", {}))
    return replace(
        point, state={**point.state, "course": course}, pending=_spread(processes, point.pending)
    )


_NUMBERS = ("update", "processes", "length")


def _numbers(point: SavePoint) -> dict[str, int]:
    return {name: getattr(point, name) for name in _NUMBERS}


def _shape(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def _without_values(told: Mapping[str, tuple[str, list[int]]]) -> dict[str, Tensor]:
    return {
        name: torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        for name, (kind, shape) in told.items()
    }


def _spread(processes: Processes, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: processes.spread(tensor) for name, tensor in named.items()}
