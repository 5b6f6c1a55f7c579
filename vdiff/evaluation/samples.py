"""Pictures drawn for an evaluation, kept in chunks until its table is complete:
an interrupted one goes on.
"""

import contextlib
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vdiff.disk import array_file, whole_folder
from vdiff.disk.array_file import Arrays
from vdiff.disk.ours import is_our_file, refuse_strange_file, strange
from vdiff.drawing import guidance as guidance_of
from vdiff.drawing.drawing import decoded_share
from vdiff.drawing.guidance import UNASKED, Guidance
from vdiff.drawing.pictures import draw_with
from vdiff.errors import DataError
from vdiff.evaluation.subjects import SOLVERS, Subject
from vdiff.machine.machine import Machine
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import ModelCard
from vdiff.runs import telling
from vdiff.samplers.advised import advised, sampler_for
from vdiff.samplers.sampler import Sampler, SamplerSection

_CHUNK_BYTES = 2**26
_MOST_IN_CHUNK = 1024

_BY_SEED = "by seed"
"""How the words of `SampleRequest.labels` end where the first picture is not of class 0."""


@dataclass(frozen=True)
class SampleRequest:
    """Which pictures: seeds first_seed, first_seed + 1, ...;
    a seed's class is the seed modulo their number.

    So a picture is the same whatever the range that it is drawn in.
    batch_size: at once, per process.
    named: the sampler for all models; None for the one that each is meant for.
    guidance: of all models.
    """

    named: SamplerSection | None
    num_images: int
    first_seed: int
    batch_size: int
    guidance: Guidance = UNASKED

    def sampler(self, card: ModelCard) -> Sampler:
        """The sampler that draws with a model.

        Errors: ModelFileError for one that is not to be had here.
        """
        section = sampler_for(self.named, card.sampler, card.name, is_solvable=card.is_solvable)
        return section.build()

    def sampler_of(self, subject: Subject) -> Sampler:
        """The sampler that draws the pictures of a row.   Errors: as of `sampler`."""
        if subject.solver is None:
            return self.sampler(subject.card)
        return advised(SOLVERS[subject.solver], subject.card.name).build()

    def own_sampler(self, subject: Subject) -> str | None:
        """As a row tells it: a solver always, else see `other_sampler`."""
        if subject.solver is None:
            return self.other_sampler(subject.card)
        return self.in_words(subject.card, self.sampler_of(subject))

    @property
    def usual_sampler(self) -> Sampler:
        """The sampler for all models that advise no other one."""
        return sampler_for(self.named, None, "", is_solvable=True).build()

    def other_sampler(self, card: ModelCard) -> str | None:
        """The sampler that draws with a model, in words, with the guidance, where it is not the
        usual one without any; else None.
        """
        own = self.in_words(card, self.sampler(card))
        if own == str(self.usual_sampler):
            return None
        return own

    def in_words(self, card: ModelCard, sampler: Sampler) -> str:
        """How a model is drawn with: the sampler, and the guidance where there is some."""
        g = self.strength(card)
        if g is None:
            return str(sampler)
        return f"{sampler}, guidance {guidance_of.number(g)}"

    def strength(self, card: ModelCard) -> float | None:
        """g of a model's pictures; None for one that is not guided."""
        if card.guidance is None and guidance_of.way(card, self.guidance) == "none":
            return None
        return guidance_of.strength(card, self.guidance)

    def labels(self, num_classes: int) -> str | None:
        """The classes in words, None without any.

        Words of their own where counting from the first picture differs.
        """
        if not num_classes:
            return None
        order = _BY_SEED
        if self.first_seed % num_classes == 0:
            order = "in turn"
        return f"classes 0-{num_classes - 1} {order}"


class Samples:
    """The pictures of one model at one number of steps, uint8 [N, C, H, W];
    a part is read at a time.
    """

    def __init__(self, folder: Path, subject: Subject, wanted: SampleRequest) -> None:
        self._subject = subject
        self._wanted = wanted
        self._sampler = wanted.sampler_of(subject)
        about = [
            subject.card.hash,
            subject.num_steps,
            wanted.in_words(subject.card, self._sampler),
            wanted.num_images,
            wanted.first_seed,
            _MOST_IN_CHUNK,
        ]
        labels = wanted.labels(subject.card.num_classes)
        if labels is not None and labels.endswith(_BY_SEED):
            # the others are not named here: chunks that earlier versions drew stay what they are
            about.append(labels)
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
        self.folder = folder / f"{subject.card.hash[:16]}-{subject.num_steps}-{key}"
        self.shape = (wanted.num_images, *subject.card.shape)
        size = torch.Size(subject.card.shape).numel()
        self._size = max(1, min(_MOST_IN_CHUNK, _CHUNK_BYTES // size))
        self._open: tuple[int, Tensor] | None = None
        self._starts = range(0, wanted.num_images, self._size)

    @property
    def num_calls(self) -> int:
        """Network calls for one picture."""
        own = self._sampler.calls(self._subject.num_steps)
        return own * guidance_of.calls(self._subject.card, self._wanted.guidance)

    def __len__(self) -> int:
        return self._wanted.num_images

    def __getitem__(self, part: slice) -> Tensor:
        first, last, _ = part.indices(len(self))
        if first >= last:
            return torch.zeros(0, *self._subject.card.shape, dtype=torch.uint8)
        starts = [start for start in self._starts if start < last and start + self._size > first]
        found = torch.cat(
            [self._opened(start)[max(first - start, 0) : last - start] for start in starts]
        )
        if last == len(self):
            self._open = None
        return found

    def _opened(self, start: int) -> Tensor:
        """A chunk; the last one stays open until the last picture is read,
        since metrics read smaller parts.
        """
        if self._open is None or self._open[0] != start:
            self._open = start, self._images(start)
        return self._open[1]

    def seconds_per_image(self) -> float:
        """Of one process, as `_Stopwatch` counts, the median over the chunks."""
        return statistics.median(float(self._read(start)["seconds"]) for start in self._starts)

    def refuse_strangers(self) -> None:
        """UsageError for a file in the place of a chunk that vdiff did not leave there."""
        for place in (self.folder.parent, self.folder):
            if whole_folder.is_taken(place):
                raise strange(place, place)
        for start in self._starts:
            refuse_strange_file(self._path(start), array_file.is_ours)

    def draw(
        self, machine: Machine, on_batch: Callable[[int], None], is_needed: bool = True
    ) -> None:
        """Draw what is missing; every process must come here, the first one writes.

        on_batch: told how many more.   is_needed: whether to draw at all; what the first process
        says, counts.
        """
        self._open = None
        missing = self._missing(machine, is_needed)
        on_batch(len(self) - sum(self._count(start) for start in missing))
        if not missing:
            return
        model = telling.model(machine.processes, self._subject.folder, machine.device)
        for start in missing:
            self._make(start, model, machine, on_batch)

    def _missing(self, machine: Machine, is_needed: bool) -> list[int]:
        """Where the chunks begin that are to be drawn: what the first process finds,
        in every process.
        """
        is_looking = is_needed and machine.is_first
        flags = [float(is_looking and not self._is_there(start)) for start in self._starts]
        # of the others, all are 0
        told = machine.sum(torch.tensor(flags, device=machine.device)).tolist()
        return [start for start, flag in zip(self._starts, told, strict=True) if flag]

    def forget(self) -> None:
        """The table is complete. What vdiff did not leave here stays."""
        for start in self._starts:
            if is_our_file(self._path(start), array_file.is_ours):
                self._path(start).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _make(
        self,
        start: int,
        model: checkpoint.Checkpoint,
        machine: Machine,
        on_batch: Callable[[int], None],
    ) -> None:
        watch = _Stopwatch(on_batch)

        def share(places: slice) -> Tensor:
            first = self._wanted.first_seed + start
            seeds = range(first + places.start, first + places.stop)
            watch.start()
            pictures = draw_with(
                model,
                seeds,
                self._subject.num_steps,
                sampler=self._sampler,
                guidance=self._wanted.guidance,
                batch_size=self._wanted.batch_size,
                device=machine.device,
                graphs=machine.graphs,
                on_batch=watch.done,
            )
            return decoded_share(pictures, model.codec, str(self._subject.folder), machine)

        images = machine.share_out(share, self._count(start))
        if machine.is_first:
            kept = {"images": images.numpy(), "seconds": np.array(watch.seconds_per_image())}
            whole_folder.write_bytes(self._path(start), array_file.packed(kept), array_file.is_ours)

    def _count(self, start: int) -> int:
        return min(self._size, len(self) - start)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.npz"

    def _is_there(self, start: int) -> bool:
        found = array_file.read(self._path(start))
        return found is not None and self._is_right(start, found)

    def _is_right(self, start: int, found: Arrays) -> bool:
        images = found.get("images", _NOTHING)
        seconds = found.get("seconds", _NOTHING)
        is_time = (
            seconds.shape == () and seconds.dtype == np.float64 and 0 <= float(seconds) < math.inf
        )
        shape = (self._count(start), *self._subject.card.shape)
        return is_time and images.shape == shape and images.dtype == np.uint8

    def _images(self, start: int) -> Tensor:
        return torch.from_numpy(self._read(start)["images"])

    def _read(self, start: int) -> Arrays:
        found = array_file.read(self._path(start))
        if found is None or not self._is_right(start, found):
            raise DataError(
                "pictures that were drawn are gone or damaged",
                "type the command again",
                self._path(start),
            )
        return found


class _Stopwatch:
    """Seconds per picture of one process in one chunk, from when each batch has come to the CPU.

    Full batches after the first count, which warms up; where there are none of these, all batches.
    on_batch: told how many more; its own time does not count.
    """

    def __init__(self, on_batch: Callable[[int], None]) -> None:
        self._on_batch = on_batch
        self._begun = 0.0
        self._batches: list[tuple[int, float]] = []

    def start(self) -> None:
        """The first batch begins."""
        self._begun = time.perf_counter()

    def done(self, count: int) -> None:
        """A batch is there, and so many pictures altogether; the next one begins."""
        spent = time.perf_counter() - self._begun
        self._batches.append((count - sum(before for before, _ in self._batches), spent))
        self._on_batch(self._batches[-1][0])
        self._begun = time.perf_counter()

    def seconds_per_image(self) -> float:
        later = [batch for batch in self._batches[1:] if batch[0] == self._batches[0][0]]
        counted = later or self._batches
        return sum(seconds for _, seconds in counted) / sum(count for count, _ in counted)


_NOTHING = np.zeros(0)
