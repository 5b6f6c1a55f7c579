"""Small pictures on a CPU, again and again: the operations of a whole batch are recorded once
per shape, and run without the Python around them.

What depends on the times alone, such as the time embedding of every step, is computed when it is
recorded. The operations are torch's own, on the same numbers in the same order, so the pictures
have the same bits; a recording is compared with the sampler before it is used, and where
it differs nothing is recorded.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import Schedule
from vdiff.networks.network import Network
from vdiff.samplers.sampler import Sampler

BATCHES_BEFORE = 24
"""Batches of one shape that are drawn as ever. To record costs about as much as drawing so many."""

MOST_NUMBERS = 1 << 16
"""Of the noise of a batch. In a larger one, Python's share of the time is small."""

MOST_STEPS = 64
"""Every step has its own operations in a recording."""

MOST_KEPT_BYTES = 1 << 26
"""Of what a recording holds. Of a larger network, Python's share of the time is small."""

MOST_RECORDINGS = 4
"""Of one network."""

Draw = Callable[[Tensor, Condition], Tensor]
"""(noise [B, C, H, W], condition) -> images: one way of drawing a batch."""


class NotRecordableError(Exception):
    """What a recording cannot hold; nobody sees it."""


@dataclass
class _Recordings:
    """What is known of a network in one state.

    weights: those of that state, held so that no others get their ids.

    drawn: how many batches, by what a recording holds for.
    made: the recordings; None where there can be none.
    """

    state: Hashable
    weights: list[Tensor]
    drawn: Counter[Hashable] = field(default_factory=Counter)
    made: dict[Hashable, "Recording | None"] = field(default_factory=dict)


_LOCK = threading.RLock()
_KNOWN: WeakKeyDictionary[nn.Module, _Recordings] = WeakKeyDictionary()


def drawn(
    sampler: Sampler,
    denoiser: Denoiser,
    noise: Tensor,
    condition: Condition,
    num_steps: int,
    model_steps: int | None,
    draw: Draw,
) -> Tensor:
    """draw(noise, condition), by a recording where there is one.

    num_steps, model_steps: as for `sampler`, which `draw` asks.
    """
    if num_steps > MOST_STEPS or not _may_record(sampler, denoiser, noise):
        return draw(noise, condition)
    state = _state(denoiser.network)
    if state is None:
        return draw(noise, condition)
    shapes = [None if part is None else (part.shape, part.dtype) for part in (noise, *condition)]
    how = type(sampler), *sorted(vars(sampler).items()), num_steps, model_steps
    key = how, id(denoiser.schedule), denoiser.predicts, _arithmetic(), *shapes
    with _LOCK:
        recordings = _KNOWN.get(denoiser.network)
        if recordings is None or recordings.state != state:
            weights = [*denoiser.network.parameters(), *denoiser.network.buffers()]
            recordings = _KNOWN[denoiser.network] = _Recordings(state, weights)
        recordings.drawn[key] += 1
        is_due = recordings.drawn[key] > BATCHES_BEFORE and len(recordings.made) < MOST_RECORDINGS
        recording = recordings.made.get(key)
    if recording is not None:
        return recording(noise, condition)
    images = draw(noise, condition)
    with _LOCK:  # one thread makes it, and the others find it
        if is_due and key not in recordings.made:
            recordings.made[key] = _checked(noise, condition, images, draw, denoiser.schedule)
    return images


def _arithmetic() -> Hashable:
    """What torch chooses its kernels by, beside the tensors: a recording holds what it chose."""
    return (
        torch.get_num_threads(),
        torch.backends.mkldnn.enabled,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_dtype(),
    )


class Recording:
    """The operations of one way of drawing.

    draw: made of them.   constants: the weights, and what depends on nothing that is drawn.
    schedule: it was drawn with; kept, so that no other one gets its id.
    """

    schedule: Schedule | None = None

    def __init__(self, draw: Callable[..., Tensor], constants: tuple[object, ...]) -> None:
        self._draw = draw
        self._constants = constants

    def __call__(self, noise: Tensor, condition: Condition) -> Tensor:
        """The images of other noise, under another condition of the same shape."""
        given = [each for each in (noise, *condition) if each is not None]
        # without gradients, and without a record of who was written to
        with torch.inference_mode():
            images = self._draw(*given, *self._constants)
        return images.clone()


def record(noise: Tensor, condition: Condition, draw: Draw) -> Recording:
    """Draw once, and keep the operations.   Errors: NotRecordableError."""
    given = [each for each in (noise, *condition) if each is not None]
    recorder = _Recorder(given)
    with torch.no_grad(), recorder:
        images = draw(noise, condition)
    return recorder.recording(images)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation on what was given, and what they are fed beside it."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._nodes: Any = WeakIdKeyDictionary()
        self._constants: list[object] = []
        self._places: dict[int, fx.Node] = {}
        for place, tensor in enumerate(given):
            self._last_input = self._graph.placeholder(f"given_{place}")
            self._nodes[tensor] = self._last_input

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # else torch imports its compiler here, for two seconds
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, given: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        out = func(*given, **options)
        if not self._is_drawn((*given, *options.values())):
            # its result is the same for every batch
            if func._schema.is_mutable:
                raise NotRecordableError(f"{func} changes what it is given")
            return out
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if waits or func._schema.is_mutable:
            raise NotRecordableError(f"{func} depends on values, or changes what it is given")
        if func in _VIEWS and _is_as_before(given[0], out):
            self._nodes[out] = self._nodes[given[0]]
            return out
        if func is torch.ops.aten.convolution.default:
            func, given = _direct(given)
        named = {name: self._argument(value) for name, value in options.items()}
        node = self._graph.call_function(func, self._argument(tuple(given)), named)
        if isinstance(out, Tensor):
            self._nodes[out] = node
            return out
        for place, part in enumerate(out):
            if isinstance(part, Tensor):
                self._nodes[part] = self._graph.call_function(_part, (node, place))
        return out

    def recording(self, images: Tensor) -> Recording:
        """All that leads to these images."""
        if images not in self._nodes:
            raise NotRecordableError("the images do not depend on the noise")
        self._graph.output(self._nodes[images])
        self._graph.eliminate_dead_code()
        tensors = [each for each in self._constants if isinstance(each, Tensor)]
        kept = sum(each.nbytes for each in tensors if not each._is_view())
        if kept > MOST_KEPT_BYTES:
            raise NotRecordableError("too much would be kept")
        module = fx.GraphModule({}, self._graph)
        return Recording(module.forward, tuple(self._constants))

    def _is_drawn(self, values: Iterable[object]) -> bool:
        """Whether one of the arguments depends on what was given."""
        for value in values:
            if isinstance(value, Tensor):
                if value in self._nodes:
                    return True
            elif isinstance(value, list | tuple) and self._is_drawn(value):
                return True
        return False

    def _argument(self, value: object) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._argument(each) for each in value)
        if not isinstance(value, Tensor):
            return value
        if value in self._nodes:
            return self._nodes[value]
        # the tensor is kept, so no other gets its id
        if id(value) not in self._places:
            with self._graph.inserting_after(self._last_input):
                node = self._graph.placeholder(f"constant_{len(self._constants)}")
            self._last_input = node
            self._constants.append(value)
            self._places[id(value)] = node
        return self._places[id(value)]


_VIEWS = (
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.expand.default,
)


def _is_as_before(given: Tensor, view: Tensor) -> bool:
    """Whether a view shows what was given in the same shape; nothing here is written to."""
    return given.shape == view.shape and given.stride() == view.stride()


def _direct(given: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A convolution's operation and arguments, without the choice among kernels
    where that is torch's own: it is made on the way to every single call.
    """
    h, weight, bias, stride, padding = given[:5]
    groups = given[-1]
    whole = torch.ops.aten.convolution.default, given
    if h.dim() != 4 or groups != 1 or not (h.is_contiguous() and weight.is_contiguous()):
        return whole
    # not a part of torch's public interface, so a version may lack it
    choose = getattr(torch._C, "_select_conv_backend", None)
    if choose is None or str(choose(*given)).rpartition(".")[2] != "Slow2d":
        return whole
    size = list(weight.shape[2:])
    direct = torch.ops.aten._slow_conv2d_forward.default
    return direct, (h, weight, size, bias, stride, padding)


def _part(parts: Any, place: int) -> Any:
    return parts[place]


def _checked(
    noise: Tensor, condition: Condition, images: Tensor, draw: Draw, schedule: Schedule
) -> "Recording | None":
    """A recording, made with other noise, that gives these images; None where there is none."""
    other = Condition(*(None if part is None else part.flip(0) for part in condition))
    try:
        recording = record(noise.flip(0, -1).contiguous(), other, draw)
        again = recording(noise, condition)
    # AttributeError: of a torch that lacks what is no part of its public interface
    except (NotRecordableError, RuntimeError, TypeError, AttributeError):
        return None
    if again.dtype != images.dtype or not torch.equal(again, images):
        return None
    recording.schedule = schedule
    return recording


def _may_record(sampler: Sampler, denoiser: Denoiser, noise: Tensor) -> bool:
    """Whether all but the network's layers is known to be a function of what it is given."""
    if noise.device.type != "cpu" or noise.numel() > MOST_NUMBERS or sampler.is_noisy:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    if type(denoiser) is not Denoiser or not isinstance(denoiser.network, Network):
        return False
    parts = (sampler, denoiser.schedule, denoiser.network)
    return all(type(part).__module__.startswith("vdiff.") for part in parts)


_KNOWN_LAYERS = ("vdiff.", "torch.nn.")


def _state(network: nn.Module) -> Hashable:
    """The layers of a network, where its weights lie and how often they were written to.

    None where a layer may do something beside computing: a stranger's, one that trains, or one
    that somebody listens to.
    """
    found: list[object] = []
    for module in network.modules():
        kind = type(module)
        is_plain = kind.__module__.startswith(_KNOWN_LAYERS) and not module.training
        if not is_plain or module._forward_hooks or module._forward_pre_hooks:
            return None
        found.append(kind)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            # nobody counts what is written to a tensor of inference mode
            if type(tensor) not in (nn.Parameter, Tensor) or tensor.is_inference():
                return None
            found += (id(tensor), tensor.data_ptr(), tensor._version)
    return tuple(found)
