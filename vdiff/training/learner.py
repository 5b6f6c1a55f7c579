"""One update: a batch becomes a loss, a gradient, a step of the optimizer and of the average."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.machine import compiling, memory
from vdiff.machine.machine import Machine
from vdiff.networks import sharded
from vdiff.networks.dropout import drops
from vdiff.networks.repeated import recompute_activations
from vdiff.objectives.objective import Objective
from vdiff.phases import phase
from vdiff.randomness import Randomness
from vdiff.training import micro_batch
from vdiff.training.clipping import divisor, total_norm
from vdiff.training.ema import Average
from vdiff.training.settings import FitSection
from vdiff.training.state import State as State
from vdiff.training.state import TrainingState

_SAVE_COPIES = 6
"""So many times the weights is kept free for a save under way: it copies the weights, their
average and Adam's two averages, and the rest is room for what goes on beside it.
"""


class Learner:
    """The student's weights, their average and the optimizer's memory, after `update` updates.

    say: told when the memory does not suffice for as many pictures at once as the settings want.
    """

    def __init__(
        self,
        student: Denoiser,
        objective: Objective,
        settings: FitSection,
        machine: Machine,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.settings = settings
        self.update = 0
        self.rollbacks = 0
        self.micro_batch = settings.micro_batch
        """Pictures that go through the network at once;
        None until `choose_micro_batch` has chosen, and means all.
        """
        self._is_halved = False
        self._say = say
        self._objective = objective
        self._machine = machine
        memory.set_malloc_policy(sparing=settings.checkpoint_activations)
        self._network = machine.place(student.network)
        if settings.checkpoint_activations:
            recompute_activations(self._network)
        if machine.compiles:
            compiling.turn_on(self._network)
        self._meta_copy: nn.Module | None = None
        if machine.shards:
            self._meta_copy = sharded.meta_copy(self._network)
        machine.shard(self._network)
        self._average: Average | None = None
        if settings.ema is not None:
            self._average = Average(self._network, settings.ema)
        # the network would look for them in all its parts
        self._weights = list(self._network.parameters())
        self._adam = torch.optim.AdamW(
            self._weights,
            lr=settings.learning_rate,
            betas=settings.adam_betas,
            weight_decay=settings.weight_decay,
            fused=machine.has_fused_step,
        )
        self._scaler = machine.scaler()
        wrapped, self._optimizer = machine.prepare(self._network, self._adam)
        self._student = replace(
            student, network=wrapped.train(settings.dropout and drops(self._network))
        )
        self._tensors = TrainingState(
            self._network, self._average, self._optimizer, self._scaler, objective, machine
        )
        objective.prepare(replace(student, network=self._network), self._copied)

    def step(self, x: Tensor, condition: Condition, rng_of: "RngOf") -> Tensor:
        """Do one update on this process's share of a batch.

        x: float32 [b, C, H, W] in [-1, 1], on the device.
        rng_of: the randomness of the pictures with these places. Returns [mean loss of the share's
        pictures over the global batch, norm of the gradient], on the device. With a loss or norm
        that is not finite, weights, optimizer and average stay as they were, in all processes.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(self.update)
        self._objective.begin(self.update)
        total = self._gradient_with_less_memory(x, condition, rng_of)
        with phase("optimizer"):
            self._scaler.unscale_(self._adam)
            norm = total_norm(self._weights)
            is_finite = torch.isfinite(norm)
            self._move(is_finite, divisor(norm, self.settings.clip_norm))
            self._forget_gradients()
            self._scaler.update()
        self.update += 1
        if self._average is not None:
            with phase("average"):
                self._average.follow(self.update, is_finite)
        self._objective.follow(self.update, is_finite)
        return torch.stack([total, norm])

    def _move(self, is_finite: Tensor, by: Tensor | None) -> None:
        """The step of the optimizer, if the gradient is finite,
        with the gradient divided by `by`.
        """
        if self._machine.has_fused_step:
            # it heeds both, and nobody waits for the device
            self._adam.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            self._adam.grad_scale = by  # type: ignore[attr-defined]
            self._optimizer.step()
        elif is_finite:
            if by is not None:
                torch._foreach_div_(
                    [weight.grad for weight in self._weights if weight.grad is not None], by
                )
            self._optimizer.step()

    def _forget_gradients(self) -> None:
        for weight in self._weights:
            weight.grad = None

    def _gradient_with_less_memory(
        self, x: Tensor, condition: Condition, rng_of: "RngOf"
    ) -> Tensor:
        """The gradient; where memory runs out, once, from micro-batches of half the size,
        which is said.
        """
        try:
            return self._gradient(x, condition, rng_of)
        except RuntimeError as err:
            size = (min(self.micro_batch or len(x), len(x)) + 1) // 2
            # with several processes, the others already wait for this one's gradient
            if (
                not memory.is_lacking(err)
                or self._is_halved
                or size == len(x)
                or self._machine.world_size > 1
            ):
                raise
        # out of the handler, which holds on to the tensors
        self.micro_batch = size
        self._is_halved = True
        memory.set_malloc_policy(sparing=True)
        self._forget_gradients()
        self._machine.free_cache()
        self._say(
            f"out of memory: {size} pictures at once from now on; "
            f"`micro_batch: {size}` in the recipe keeps it so"
        )
        return self._gradient(x, condition, rng_of)

    def _gradient(self, x: Tensor, condition: Condition, rng_of: "RngOf") -> Tensor:
        """Fill the weights' gradients; this share's mean loss over the global batch."""
        batch_size = self.settings.batch_size
        world_size = self._machine.world_size
        total = torch.zeros((), device=x.device)
        parts = list(self._micro_batches(len(x)))
        for part in parts:
            more = part is not parts[-1]
            with self._machine.unsynchronised(self._student.network, more):
                with phase("forward"):
                    loss = self._losses(x, condition, rng_of, part).sum() / batch_size
                    # 1, or NaN for a loss that is not finite, whose gradient may be: so all
                    # processes hear of it
                    is_sound = 1 + 0 * loss.detach()
                with phase("backward"):
                    # processes average their gradients: make it a sum
                    self._machine.backward(self._scaler.scale(loss * is_sound * world_size))
            total += loss.detach()
        return total

    def choose_micro_batch(
        self, x: Tensor, condition: Condition, rng_of: "RngOf", share: int | None = None
    ) -> None:
        """Choose the largest micro-batch that fits into the memory,
        unless the settings or a save name one.

        Rehearses with one and with two pictures; nothing is learned.
        share: pictures per update, if not those given.
        """
        if self.micro_batch is not None:
            return
        count = share
        if count is None:
            count = self._most()
        if self._machine.any(len(x) < 2 or self._machine.available_bytes() is None):
            self.micro_batch = count
            return
        # at first libraries take memory for themselves, and a teacher keeps its weights in another
        # order
        self._needed_bytes(x, condition, rng_of, slice(0, 1))
        available = self._machine.available_bytes() or 1
        one = self._needed_bytes(x, condition, rng_of, slice(0, 1))
        two = self._needed_bytes(x, condition, rng_of, slice(0, 2))
        left = self._machine.least(available - self._later_bytes())
        choice = micro_batch.fitting(one, two, count, left)
        self.micro_batch = self._machine.least(choice.size)  # one for all: a save tells no more
        if choice.size < count:
            memory.set_malloc_policy(sparing=True)
            self._say(choice.told)

    def _later_bytes(self) -> int:
        """What is still to come: Adam's averages, and the copy of everything
        while a save is under way.
        """
        if self._optimizer.state:
            return 0
        total = sum(2 * sharded.local_shard(weight).nbytes for weight in self._weights)
        if self._machine.device.type == "cpu":
            # a save copies whole tensors to the memory of the host
            total += sum(_SAVE_COPIES * weight.nbytes for weight in self._weights)
            total += sum(tensor.nbytes for tensor in self._objective.state().values())
        return total

    def _rehearsed(self, x: Tensor, condition: Condition, rng_of: "RngOf", part: slice) -> Tensor:
        """The losses of some pictures, not through the wrapped network:
        other processes do not take part.
        """
        student = replace(self._student, network=self._network)
        with self._machine.autocast():
            return self._objective(student, x[part], rng_of(part), condition.of(part))

    def _needed_bytes(self, x: Tensor, condition: Condition, rng_of: "RngOf", part: slice) -> int:
        weights = [weight for weight in self._weights if weight.requires_grad]

        def try_once() -> None:
            losses = self._rehearsed(x, condition, rng_of, part)
            if self._machine.shards:
                # all processes are here
                torch.autograd.backward(losses.sum())
            else:
                # not into the weights' gradients: DDP would wait there for other processes
                torch.autograd.grad(losses.sum(), weights, allow_unused=True)

        needed = memory.peak_of(try_once, self._machine.device)
        self._forget_gradients()
        return needed

    def rate(self, update: int) -> float:
        """Learning rate of the update with this 0-based number:
        the settings', halved by every rollback.
        """
        return self.settings.rate(update) * 0.5**self.rollbacks

    def build_ddp_buckets(self, x: Tensor, condition: Condition, rng_of: "RngOf") -> None:
        """Go forward and backward once and drop the gradients.

        With several processes, gradients are grouped anew after the first backward, which changes
        rounding: a resumed run must have that behind it, as the unbroken run has, before its first
        real update.
        """
        if self._machine.world_size == 1:
            return
        self._machine.backward(self._losses(x, condition, rng_of, slice(0, 1)).sum())
        self._forget_gradients()

    def result(self) -> Denoiser:
        """A copy of the student with the weights that are meant for sampling,
        in evaluation mode.
        """
        network = self._copied()
        if self._average is not None:
            average = self._average.tensors()
            for name, weight in network.named_parameters():
                sharded.local_shard(weight).copy_(sharded.local_shard(average[name]))
        return replace(self._student, network=network)

    def _copied(self) -> nn.Module:
        """A copy of the network as it is, in evaluation mode and without gradients."""
        if self._meta_copy is None:
            network = deepcopy(self._network)
        else:
            network = sharded.copied(self._network, self._meta_copy, self._machine.device)
        return network.eval().requires_grad_(False)

    def state(self) -> State:
        """Everything needed to go on, not copied."""
        return self._tensors.state(self.rollbacks, self.micro_batch)

    def load(self, state: Mapping[str, Mapping[str, Tensor]], update: int) -> None:
        """Go on from a saved state. Tensors are copied into place: memory of another alignment
        rounds differently.

        With several processes, all must come here; only the first one's state needs values, the
        others' may be `meta`.

        Errors: ModelFileError for the state of another network; nothing is changed then.
        """
        saved = self._tensors.load(state)
        self.rollbacks = saved.rollbacks
        self.micro_batch = self.settings.micro_batch or saved.micro_batch or self.micro_batch
        self.update = update

    def _losses(self, x: Tensor, condition: Condition, rng_of: "RngOf", part: slice) -> Tensor:
        # a picture that does not count, so that the others need not wait for this process
        if part.start == part.stop:
            return self._losses(x, condition, rng_of, slice(0, 1))[:0]
        with self._machine.autocast():
            return self._objective(self._student, x[part], rng_of(part), condition.of(part))

    def _micro_batches(self, count: int) -> Iterator[slice]:
        most = count
        if self._machine.shards:
            # those who share a network compute together: each has as many parts, if need be one of
            # no pictures
            most = self._most()
        most = max(most, 1)
        size = self.micro_batch or most
        for start in range(0, most, size):
            yield slice(min(start, count), min(start + size, count))

    def _most(self) -> int:
        """Pictures of an update in the process that has most."""
        return int(-(-self.settings.batch_size // self._machine.world_size))


class RngOf:
    """The randomness of a part of this process's share of one update."""

    def __init__(self, seed: int, stage: int, update: int, places: Tensor, num_places: int) -> None:
        self._key = (seed, stage, update)
        self._places = places
        self._num_places = num_places

    def __call__(self, part: slice) -> Randomness:
        return Randomness.for_update(*self._key, self._places[part], self._num_places)
