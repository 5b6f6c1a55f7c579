"""What a way of learning is: from a student and images to one loss per image. Read this to write
one.

A new objective is one file with a section and a class, and a line in the table of
`objectives/__init__.py` or an entry point `vdiff.objectives` of another package. One loop serves
them all: the base and the students.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vdiff.choices import Weighting
from vdiff.config import KindSection
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import beside

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.randomness import Randomness


@dataclass(frozen=True)
class Task:
    """What a stage asks of its objective.

    weighting: how much an error counts at each noise level.   updates: how many there will be.
    num_steps: sampler steps of the student; of the base, those that it is meant for.
    teacher: frozen, on the device; None for the base.
    teacher_steps: K, how many of the teacher's steps one of the student's replaces.
    teacher_times: N, where the teacher knows the times i / N only; None for all times.
    null_label: the class that stands for no class, where the teacher has one.
    """

    weighting: Weighting
    updates: int
    num_steps: int
    teacher: Denoiser | None = None
    teacher_steps: int = 1
    teacher_times: int | None = None
    null_label: int | None = None

    @property
    def taught_by(self) -> Denoiser:
        """The teacher of an objective that needs one."""
        assert self.teacher is not None, "an objective that needs a teacher was given none"
        return self.teacher


class ObjectiveSection(KindSection, ABC):
    """What a recipe says of a way of learning. A kind of its own adds `kind: Literal["its name"]`
    and its options.

    What it says of its student goes into the student's model card.

    needs_teacher: whether it belongs into `distill`; else into `train`.
    is_denoiser: whether its student predicts E[x | z], the mean of all pictures that fit a noisy
    one, as a network does that learned from pictures by the squared error. A student that leads to
    where several steps land does not, and samplers of a higher order would be wrong with it.
    needs_fewer_steps: whether a student with as many steps as its teacher would have nothing to
    learn.
    is_as_teacher: whether its student predicts what its teacher does, guided or not, at all times
    that its teacher knows. It is a denoiser and is drawn with as its teacher is, then.
    """

    needs_teacher: ClassVar[bool] = False
    is_denoiser: ClassVar[bool] = True
    needs_fewer_steps: ClassVar[bool] = False
    is_as_teacher: ClassVar[bool] = False
    makes: ClassVar[tuple[str, str]] = ("build", "vdiff.objectives.objective:Objective")

    @property
    def needs_denoiser(self) -> bool:
        """Whether its teacher must predict E[x | z] at all times: a student cannot teach it."""
        return False

    @property
    def usual_teacher_steps(self) -> int:
        """With fewer of the teacher's steps for one of the student's it teaches worse than need
        be.
        """
        return 1

    @abstractmethod
    def build(self, task: Task) -> Objective:
        """The objective of one stage."""

    def known_times(self, num_steps: int) -> int | None:
        """N, where the student knows the times i / N only; None for all times.

        num_steps: of the student, N at most.   Unless said otherwise: its own steps with a teacher,
        else all times.
        """
        return num_steps if self.needs_teacher else None

    @property
    def guidance_inside(self) -> dict[str, Any] | None:
        """The guidance that its student has inside, as a model card says it; see
        `diffusion/inside.py`. None: what its teacher has.

        A range is told: in each update g is drawn for every picture, and comes in `condition`.
        """
        return None

    def as_taught(self, teacher: Denoiser, null_label: int | None) -> Denoiser:
        """The teacher, as its student is to become: guided, for one.

        null_label: the class that stands for no class, where the teacher has one.
        """
        return teacher

    def advised_sampler(self) -> dict[str, Any] | None:
        """The sampler that draws best with the student, as a recipe's `sample.sampler` with its
        `kind`; None: DDIM.

        `vdiff sample` takes it where neither the recipe nor the command line names one.
        """
        return None


class Objective(ABC):
    """objective(student, x, rng, condition) -> loss per image.

    What it is told in `__call__` is all that a loss may depend on, but for its options, its teacher
    and the state that it changes in `follow`: a batch may be cut into parts, and a call may be made
    on trial, before `load` too. Random numbers come from `rng` alone. Then a resumed training has
    the bits of an unbroken one.

    An objective without a state leaves the other methods as they are.
    """

    @abstractmethod
    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        """The losses, float32 [B].

        x: images, float32 [B, C, H, W] in [-1, 1].   condition: what the network is told of them.
        """

    def prepare(self, student: Denoiser, copied: Callable[[], nn.Module]) -> None:  # noqa: B027
        """Called once, before anything else, when the student's network lies on the device.

        copied: makes a copy of the network as it is, in evaluation mode and without gradients: see
        `Target`.
        """

    def begin(self, update: int) -> None:  # noqa: B027
        """Called before the update with this 0-based number:
        `update / task.updates` is how far the stage is.
        """

    def follow(self, update: int, is_done: Tensor) -> None:  # noqa: B027
        """Called after the `update`-th update, counted from 1.

        is_done: bool [] on the device, false where the update was skipped; to ask for its value
        waits for the device.
        """

    def state(self) -> dict[str, Tensor]:
        """What `follow` changes, by name, not copied.

        It is saved, and in shares where the network lies in shares.
        """
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Go on from a state of the same names and shapes, copied into place;
        see `networks.sharded.scatter_into`.
        """


def random_times(rng: Randomness, stratified: bool, grid: int | None) -> Tensor:
    """A time in (0, 1] for each image, float64 [B].

    stratified: spread evenly over all.   grid: N, for the times i / N only; None for all.
    """
    if stratified:
        u = rng.stratified()
    else:
        u = rng.uniform()
    if grid is not None:
        return ((u * grid).floor() + 1) / grid
    # not u itself, which may be 0: there alpha / sigma is infinite
    return 1 - u


def add_noise(x: Tensor, alpha: Tensor, sigma: Tensor, rng: Randomness) -> Tensor:
    """z = alpha x + sigma eps.   x: [B, C, H, W].   alpha, sigma: [B], of any precision."""
    import torch

    alpha, sigma = (beside(scale, x)[:, None, None, None] for scale in (alpha, sigma))
    return torch.addcmul(alpha * x, sigma, rng.normal(*x.shape[1:]).to(x))
