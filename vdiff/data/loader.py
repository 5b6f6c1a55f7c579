"""An endless stream of batches. The batch of update u is a pure function of (seed, stage, u); each
rank has its share.

So a training that goes on from a savepoint sees the batches that it would have seen, with any
number of processes.
"""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vdiff.data.dataset import Images, Indices, Pixels, TakesMany
from vdiff.errors import ASKING, MachineError, UsageError, VdiffError
from vdiff.system import os_processes

# The first part of a random key: which of two independent streams it is.
_ORDER = 0
_FLIP = 1
_FEWER_WORKERS = (
    "set `data.workers` to 0, or give the machine more memory (a container also "
    "shared memory: --shm-size)"
)


class Batch(NamedTuple):
    """One rank's share of one update.

    images: uint8 [b, C, H, W].   labels: int64 [b], None without classes.
    places: int64 [b], in the global batch.
    """

    update: int
    images: Tensor
    labels: Tensor | None
    places: Tensor


def batches(
    images: Images,
    *,
    seed: int,
    stage: int,
    batch_size: int,
    start_update: int = 0,
    rank: int = 0,
    world_size: int = 1,
    flip: bool = False,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """The batches of the updates `start_update`, `start_update` + 1, ... for ever.

    Sample g = update * batch_size + place of a stage is picture number g % n in the shuffled epoch
    g // n.
    batch_size: of all ranks together.   num_workers: processes that work ahead; the batches are the
    same with any number. UsageError if there is less than one picture per rank.
    """
    if batch_size < world_size:
        problem = f"a batch of {batch_size} cannot be divided among {world_size} processes"
        raise UsageError(
            problem, f"raise train.batch_size to {world_size} or more, or start fewer processes"
        )
    places = np.array_split(np.arange(batch_size), world_size)[rank]
    share = _Share(images, seed, stage, batch_size, places, flip)
    updates = itertools.count(start_update)
    if num_workers:
        return _from_workers(share, updates, num_workers)
    return map(share.batch, updates)


def sample_indices(num_images: int, seed: int, stage: int, update: int, batch_size: int) -> Indices:
    """Which pictures make up the global batch of an update, int64 [batch_size]."""
    epochs, places = np.divmod(update * batch_size + np.arange(batch_size), num_images)
    chosen = np.empty(batch_size, np.int64)
    # A batch may end one epoch and begin the next one; a large one may hold several.
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        chosen[epochs == epoch] = _shuffled(num_images, seed, stage, epoch)[places[epochs == epoch]]
    return chosen


def flips(seed: int, stage: int, update: int, batch_size: int) -> npt.NDArray[np.bool_]:
    """Which pictures of the global batch are mirrored, bool [batch_size]."""
    mirrored: npt.NDArray[np.bool_] = _random(batch_size, _FLIP, seed, stage, update) % 2 == 1
    return mirrored


# Two: a batch at the border of epochs needs both orders. Sorting a million numbers takes 0.15 s.
@lru_cache(maxsize=2)
def _shuffled(num_images: int, seed: int, stage: int, epoch: int) -> Indices:
    return np.argsort(_random(num_images, _ORDER, seed, stage, epoch), kind="stable")


def _random(count: int, *key: int) -> npt.NDArray[np.uint64]:
    # Raw words: unlike Generator.permutation, they are promised to stay the same in every numpy.
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count) >> np.uint64(32)


@dataclass(frozen=True)
class _Share:
    """What one rank sees of every update. It is pickled to go to worker processes."""

    images: Images
    seed: int
    stage: int
    batch_size: int
    places: Indices
    flip: bool

    def batch(self, update: int) -> Batch:
        chosen = sample_indices(
            self.images.num_images, self.seed, self.stage, update, self.batch_size
        )[self.places]
        pixels, labels = take(self.images, chosen)
        if self.flip:
            mirrored = flips(self.seed, self.stage, update, self.batch_size)[self.places]
            pixels[mirrored] = pixels[mirrored][..., ::-1]
        classes: Tensor | None = None
        if self.images.num_classes:
            classes = torch.from_numpy(labels)
        # A copy: a tensor shares its memory with the array, and `places` serves every update.
        places = torch.from_numpy(self.places.copy())
        return Batch(update, torch.from_numpy(pixels), classes, places)


def take(images: Images, chosen: Indices) -> tuple[Pixels, Indices]:
    """Pictures, uint8 [B, C, H, W], and their classes [B], -1 without labels."""
    if isinstance(images, TakesMany):
        return images.take(chosen)
    pairs = [images[index] for index in chosen.tolist()]
    pixels = np.stack([pixels for pixels, _ in pairs])
    labels = np.array([label for _, label in pairs], np.int64)
    return pixels, labels


class _Failure(NamedTuple):
    """A VdiffError on its way from a worker process.

    As an exception, torch would turn it into another one.
    """

    kind: type[VdiffError]
    problem: str
    fix: str
    where: str


class _Updates(Dataset[Batch | _Failure]):
    """Batches by the number of their update, for a DataLoader."""

    def __init__(self, share: _Share) -> None:
        self._share = share

    def __getitem__(self, update: int) -> Batch | _Failure:
        try:
            return _in_shared_memory(self._share.batch(update))
        except VdiffError as err:
            return _Failure(type(err), err.problem, err.fix, err.where)


def _in_shared_memory(batch: Batch) -> Batch:
    """The batch in shared memory, where the trainer can take it over;
    MachineError if that memory is too small.
    """
    # torch would do it later, in the thread that sends the batch. There, an error is lost, and the
    # trainer would wait for ever.
    try:
        for tensor in (batch.images, batch.labels, batch.places):
            if tensor is not None:
                tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as err:
        # torch leaves behind what it could not fill, and it would take up the memory until the next
        # start.
        for begun in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):
            begun.unlink(missing_ok=True)
        raise MachineError(
            f"a batch cannot be handed to the trainer: {err}", _FEWER_WORKERS
        ) from err
    return batch


def _from_workers(share: _Share, updates: Iterator[int], num_workers: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        _Updates(share),
        batch_size=None,
        sampler=updates,
        num_workers=num_workers,
        collate_fn=_unchanged,
        worker_init_fn=_outlive_signals,
        # A forked process may inherit a lock that a thread of this one holds; and an LMDB must not
        # be forked.
        multiprocessing_context="spawn",
        # Without one, the loader draws a seed from the global generator, which others may use.
        generator=torch.Generator(),
    )
    try:
        for loaded in _started(loader):
            if isinstance(loaded, _Failure):
                raise loaded.kind(loaded.problem, loaded.fix, loaded.where)
            yield loaded
    except RuntimeError as err:
        # An exception in a worker. VdiffErrors come as _Failure, so this is a bug of ours.
        if str(err).startswith("Caught "):
            raise
        raise MachineError(f"the processes that load pictures died: {err}", _FEWER_WORKERS) from err


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the worker processes, with the signals of ASKING held back."""
    # Workers inherit that signals are held back, until `_outlive_signals` lets them come. Otherwise
    # a Ctrl-C, which reaches the whole process group, would end workers that are still starting;
    # the trainer needs them until its update is finished.
    # The end also removes torch's handler for dead workers, which raises wherever the trainer is,
    # also in the middle of an update or a save. A batch that never comes is noticed within seconds
    # anyway.
    with os_processes.held_back(ASKING):
        return iter(loader)


def _unchanged(batch: Any) -> Any:
    return batch


def _outlive_signals(worker: int) -> None:
    # Signals reach the whole process group; the trainer finishes its update first and then stops
    # its workers.
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_soon)
    os_processes.let_come(ASKING)


def _leave_soon(number: int, frame: Any) -> None:
    """After the first SIGTERM, leave in 30 seconds; at a later one, at once.

    Without a trainer, a worker must end.
    """
    # Signals of the first seconds count as one: Slurm and torchrun each send a SIGTERM.
    global _asked_at
    if _asked_at is None:
        _asked_at = time.monotonic()
        os_processes.end_in(30)
    elif time.monotonic() - _asked_at > _BURST_SECONDS:
        os._exit(128 + number)


# When this worker got its first SIGTERM, by the monotonic clock.
_asked_at: float | None = None
_BURST_SECONDS = 5.0
