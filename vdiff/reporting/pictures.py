"""The pictures of a report: drawn from fixed seeds, kept in the run's evaluation folder,
drawn again when gone.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff import __version__
from vdiff.chain.own_recipe import sampler_of
from vdiff.chain.plan import counted
from vdiff.diffusion import inside
from vdiff.diffusion.condition import Condition, of_seeds
from vdiff.disk import array_file, whole_folder
from vdiff.drawing.pictures import draw_with
from vdiff.errors import DivergedError, VdiffError
from vdiff.images.images import UNSOUND
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard
from vdiff.objectives.objective import add_noise
from vdiff.objectives.progressive import TeacherSteps, progressive_target
from vdiff.randomness import Randomness, exact
from vdiff.samplers.sampler import Sampler

FRAMES = 9
"""Pictures on the way from noise to picture, noise and picture included."""

FEW_STEPS = 16
"""Students of at most so many steps are drawn:
with more, one sees no difference, and drawing takes long.
"""

_LEVELS = 8


@dataclass(frozen=True)
class Strip:
    """Pictures of one model, uint8 [n, C, H, W], one per seed. role:
    as in the table of an evaluation.
    """

    model: str
    role: str
    num_steps: int
    pictures: Tensor


@dataclass(frozen=True)
class Way:
    """From noise to one picture: frames uint8 [F, C, H, W], and the time at which each stands,
    1 noise, 0 picture.
    """

    model: str
    num_steps: int
    times: Sequence[float]
    frames: Tensor


@dataclass(frozen=True)
class Gallery:
    """All pictures of a report. errors: student -> (time, squared error of x
    against the exact target).   samplers: model -> what draws with it.
    """

    seeds: Sequence[int]
    strips: list[Strip] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    errors: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    samplers: dict[str, str] = field(default_factory=dict)

    def sampled_by(self) -> str:
        """Which sampler has drawn, and for which models another."""
        names: dict[str, list[str]] = {}
        for model, sampler in self.samplers.items():
            names.setdefault(sampler, []).append(model)
        if len(names) == 1:
            return next(iter(names))
        return ", ".join(f"{sampler} ({', '.join(those)})" for sampler, those in names.items())


class Studio:
    """Draws with the models of a run; what was drawn before comes from `keep`.

    folders: model folders by name.   say: told what is being drawn.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        keep: Path,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.seeds = seeds
        self._folders = folders
        self._keep = keep
        self._device = device
        self._say = say
        self._cards: dict[str, ModelCard] = {
            name: checkpoint.read_card(path) for name, path in folders.items()
        }
        self._loaded: dict[str, Checkpoint] = {}

    def gallery(self, base: str, students: Sequence[str], base_steps: int | None = None) -> Gallery:
        """The base at `base_steps` (its own number if None), then what few steps give without and
        with distillation.
        """
        steps = base_steps or self._cards[base].num_steps
        gallery = Gallery(self.seeds, [self.strip(base, "original", steps)])
        gallery.samplers[base] = str(self._sampler(base))
        few = [name for name in students if self._cards[name].num_steps <= FEW_STEPS]
        if not few:
            # a chain that has only begun still shows what it has come to
            few = list(students[-1:])
        undistilled: set[int] = set()
        for name in few:
            number = self._cards[name].num_steps
            # two students may have equal steps
            if number < steps and number not in undistilled:
                undistilled.add(number)
                gallery.strips.append(self.strip(base, "undistilled", number))
            gallery.strips.append(self.strip(name, "student", number))
            gallery.samplers[name] = str(self._sampler(name))
        # with more steps than frames, a row would leave out what sets the student apart
        shown = [name for name in few if self._cards[name].num_steps <= FRAMES - 1]
        gallery.ways.append(self.way(base, steps))
        gallery.ways.extend(self.way(name, self._cards[name].num_steps) for name in shown[-3:])
        for name in few:
            points = self.errors(name, gallery.strips[0].pictures)
            if points:
                gallery.errors[name] = points
        return gallery

    def strip(self, name: str, role: str, num_steps: int) -> Strip:
        """A picture per seed."""
        key = ["strip", self._cards[name].hash, num_steps, list(self.seeds)]
        key.append(str(self._sampler(name)))
        said = f"drawing `{name}` at {counted(num_steps)}"
        shape = (len(self.seeds), *self._cards[name].shape)
        return Strip(
            name,
            role,
            num_steps,
            self._kept(key, said, shape, lambda: self._decoded(name, num_steps)),
        )

    def way(self, name: str, num_steps: int) -> Way:
        """From the first seed's noise to its picture, in at most FRAMES frames."""
        kept = torch.linspace(0, num_steps, min(FRAMES, num_steps + 1)).round().int().tolist()

        def follow() -> Tensor:
            codec = self._model(name).codec
            noise = Randomness.for_images(torch.tensor(self.seeds[:1])).normal(
                *codec.shape(self._cards[name].shape)
            )
            states = [codec.decode(noise)]
            self._draw(name, num_steps, 1, lambda z, x: states.append(codec.decode(z.cpu(), name)))
            return torch.cat([states[step] for step in kept])

        key = ["way", self._cards[name].hash, num_steps, self.seeds[0], str(self._sampler(name))]
        shape = (len(kept), *self._cards[name].shape)
        frames = self._kept(key, f"following `{name}` from noise to picture", shape, follow)
        return Way(name, num_steps, [1 - step / num_steps for step in kept], frames)

    def errors(self, name: str, pictures: Tensor) -> list[tuple[float, float]]:
        """How far a student is from its teacher's exact target at some of its noise levels,
        mean over `pictures`.

        Empty where the teacher is not in the run, and for students that learned another target.
        """
        card = self._cards[name]
        if card.parent is None or card.learned_by != "progressive":
            return []
        # by its weights: a teacher that was trained anew has another target
        names = {model.hash: model_name for model_name, model in self._cards.items()}
        teacher = names.get(card.parent["hash"])
        if teacher is None:
            return []
        # a stage that keeps the number of steps learns the teacher's own prediction
        if card.num_steps >= self._cards[teacher].num_steps:
            return []
        by = self._taught_by(name)
        digest = hashlib.sha256(pictures.numpy().tobytes()).hexdigest()
        key = ["errors", card.hash, self._cards[teacher].hash, digest, list(self.seeds)]
        if by != "ddim":
            key.append(by)
        said = f"comparing `{name}` with its teacher's target"
        shape = (min(card.num_steps, _LEVELS), 2)
        rows = self._kept(
            key, said, shape, lambda: self._errors(name, str(teacher), pictures), np.float64
        )
        return [(time, value) for time, value in rows.tolist()]

    def _taught_by(self, name: str) -> TeacherSteps:
        """How the teacher of a student went, as far as its card says."""
        if self._cards[name].trajectory.get("distill.objective.teacher") == "dpmpp":
            return "dpmpp"
        return "ddim"

    @torch.no_grad()
    def _errors(self, name: str, teacher: str, pictures: Tensor) -> Tensor:
        student = self._model(name).denoiser
        guide = self._model(teacher).denoiser
        number = self._cards[name].num_steps
        teacher_steps = self._cards[teacher].num_steps // number
        x = self._model(name).codec.encode(pictures).to(self._device)
        condition = self._condition(name, len(x))
        rows = []
        for step in torch.linspace(1, number, min(number, _LEVELS)).round().int().tolist():
            # `exact`: the GPU of a Mac has no float64 and draws other random numbers
            steps = torch.full((len(x),), float(step), dtype=torch.float64, device=exact(x.device))
            rng = Randomness.for_images(torch.tensor(self.seeds, device=exact(x.device)))
            z = add_noise(x, *student.schedule.alpha_sigma(steps / number), rng)
            target = progressive_target(
                guide, z, steps, number, teacher_steps, condition, by=self._taught_by(name)
            )
            error = (student(z, steps / number, condition).x - target).square().mean()
            rows.append([step / number, float(error)])
        errors = torch.tensor(rows, dtype=torch.float64)
        # an axis cannot reach to infinity, and a kept NaN would be shown for ever
        if not errors.isfinite().all():
            raise DivergedError(
                f"what `{name}` or its teacher `{teacher}` predicts holds NaN or Inf", UNSOUND
            )
        return errors

    def _decoded(self, name: str, num_steps: int) -> Tensor:
        return self._model(name).codec.decode(self._draw(name, num_steps), name)

    def _draw(
        self,
        name: str,
        num_steps: int,
        count: int | None = None,
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        return draw_with(
            self._model(name),
            self.seeds[:count],
            num_steps,
            sampler=self._sampler(name),
            device=self._device,
            watch=watch,
        )

    def _sampler(self, name: str) -> Sampler:
        return sampler_of(self._cards[name], self._folders[name])

    def _condition(self, name: str, count: int) -> Condition:
        card = self._cards[name]
        told = of_seeds(self.seeds[:count], card.num_classes, inside.usual(card.guidance))
        return told.to(self._device)

    def _model(self, name: str) -> Checkpoint:
        if name not in self._loaded:
            self._loaded[name] = checkpoint.load(self._folders[name], self._device)
        return self._loaded[name]

    def _kept(
        self,
        key: list[Any],
        said: str,
        shape: tuple[int, ...],
        make: Callable[[], Tensor],
        dtype: Any = np.uint8,
    ) -> Tensor:
        """What `make` makes, of this shape and kind, or made before of the same key."""
        # another version may draw otherwise, so it does not take what this one has kept
        digest = hashlib.sha256(json.dumps([__version__, *key]).encode()).hexdigest()
        path = self._keep / f"{key[0]}-{digest[:20]}.npz"
        kept = _read(path, dtype)
        if kept is not None and kept.shape == shape:
            return kept
        self._say(said)
        content = make()
        _write(path, content)
        return content


def _read(path: Path, dtype: Any) -> Tensor | None:
    """An array that `_write` left; None where it is not there or not whole."""
    content = (array_file.read(path) or {}).get("content")
    if content is None or content.dtype != dtype:
        return None
    return torch.from_numpy(content)


def _write(path: Path, content: Tensor) -> None:
    """Keep an array; where the disk refuses, it is drawn again next time."""
    with contextlib.suppress(VdiffError):
        whole_folder.write_bytes(
            path, array_file.packed({"content": content.numpy()}), array_file.is_ours
        )
