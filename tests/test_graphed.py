"""Replayed network calls: the same pictures, only of networks that learn nothing,
and never where a check fails.
"""

import copy
import gc
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.tiny import TinyRun
from tests.toys import SCHEDULES, Curved
from vdiff.diffusion.condition import NOTHING, Condition, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.drawing.drawing import Drawing
from vdiff.errors import MachineError
from vdiff.evaluation.samples import SampleRequest, Samples
from vdiff.evaluation.subjects import of_run
from vdiff.machine import graphed
from vdiff.machine.graphed import MOST_SHAPES, CudaRecorder, Given, Graphs, Replay
from vdiff.machine.machine import Machine
from vdiff.model_folder import checkpoint
from vdiff.networks.unet import UNetSection
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw

SHAPE, STEPS = (3, 8, 8), 3
SHIPPED = recipe_text.shipped()


class Snapshot:
    """Records as a GPU does, on a CPU: fixed buffers, and the weights that there were.

    pause: seconds between filling the buffers and using them.   held: the buffers.
    """

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.recorded = self.replayed = 0
        self.held: list[weakref.ref[Tensor]] = []

    def record(self, call: Callable[..., Tensor], given: Given) -> Replay:
        kept = copy.deepcopy(call)
        buffers = [None if each is None else each.clone() for each in given]
        self.recorded += 1
        self.held += [weakref.ref(each) for each in buffers if each is not None]

        def replay(fresh: Given) -> Tensor:
            self.replayed += 1
            for buffer, each in zip(buffers, fresh, strict=True):
                if buffer is not None and each is not None:
                    buffer.copy_(each)
            time.sleep(self.pause)
            return kept(*buffers).clone()

        return replay


class Deaf(Snapshot):
    """Records without asking for the arguments again: right only for those that it was given."""

    def record(self, call: Callable[..., Tensor], given: Given) -> Replay:
        replay = super().record(call, given)
        return lambda fresh: replay(given)


class Rounding(Snapshot):
    """Replays what the network computes but for a rounding error."""

    def record(self, call: Callable[..., Tensor], given: Given) -> Replay:
        replay = super().record(call, given)
        return lambda fresh: replay(fresh) * (1 + 2**-20)


class Broken:
    """Cannot record."""

    def record(self, call: Callable[..., Tensor], given: Given) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nmore about it")


class Asking(nn.Module):
    """Decides in Python about what it has computed."""

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        return z * 0.5 if float(z.sum()) > 0 else z


class Cramped(Curved):
    """There is no memory for more than two pictures beside a recording."""

    def __init__(self, recorder: Snapshot) -> None:
        super().__init__()
        self.recorder = [recorder]

    def __deepcopy__(self, memo: Any) -> nn.Module:
        return Curved()

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        if len(z) > 2 and any(held() is not None for held in self.recorder[0].held):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(z, time, condition, keys)


def unet() -> Denoiser:
    network = UNetSection(width=4, multipliers=(1, 2), blocks=1, num_classes=2).build(8, 3)
    torch.manual_seed(0)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.15)
    return of(network.eval().requires_grad_(False))


def of(network: nn.Module) -> Denoiser:
    return Denoiser(network.eval(), SCHEDULES["cosine"], "v")


def pictures(
    denoiser: Denoiser, graphs: Graphs | None, count: int = 6, batch_size: int = 2, **more: Any
) -> Tensor:
    seeds = range(count)
    condition = (
        of_seeds(seeds, 2) if isinstance(denoiser.network, type(unet().network)) else NOTHING
    )
    return draw(
        denoiser,
        Ddim(),
        seeds,
        SHAPE,
        STEPS,
        condition=condition,
        batch_size=batch_size,
        graphs=graphs,
        **more,
    )


def silent(text: str) -> None:
    pytest.fail(f"said: {text}")


@pytest.mark.parametrize("batch_size", [2, 4])
def test_replayed_calls_draw_the_same_pictures(batch_size: int) -> None:
    model, recorder = unet(), Snapshot()
    graphs = Graphs(recorder, silent)
    wanted = pictures(model, None, batch_size=batch_size)
    for _ in range(2):  # recordings outlast a drawing
        assert torch.equal(pictures(model, graphs, batch_size=batch_size), wanted)
    shapes = 1 if batch_size == 2 else 2  # with a last batch of two
    calls = 2 * STEPS * -(-6 // batch_size)
    assert (recorder.recorded, recorder.replayed) == (
        shapes,
        calls,
    )  # the first call's result is replayed to be checked


@pytest.mark.parametrize(
    ("recorder", "why"),
    [
        (Deaf(), "what is replayed is not what the network computes"),
        (Rounding(), "what is replayed is not what the network computes"),
        (Broken(), "operation not permitted when stream is capturing"),
    ],
)
def test_a_recording_that_fails_or_is_wrong_is_never_used_and_that_is_said_once(
    recorder: Any, why: str
) -> None:
    said: list[str] = []
    graphs, model = Graphs(recorder, said.append), unet()
    assert torch.equal(pictures(model, graphs), pictures(model, None))
    assert torch.equal(pictures(unet(), graphs, batch_size=3), pictures(model, None, batch_size=3))
    assert said == [f"no CUDA graphs, network calls are launched one by one: {why}"]
    assert graphs.is_off


def test_a_network_that_asks_the_cpu_is_not_even_recorded() -> None:
    said: list[str] = []
    recorder, model = Snapshot(), of(Asking())
    assert torch.equal(pictures(model, Graphs(recorder, said.append)), pictures(model, None))
    assert recorder.recorded == 0
    assert len(said) == 1
    assert "`aten._local_scalar_dense.default` needs the CPU" in said[0]


@pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch knows no CUDA devices, not even imagined ones"
)
def test_only_what_is_used_or_fetched_counts_as_asking_the_cpu() -> None:
    with FakeTensorMode():
        z = torch.ones(2, device="cuda")
        for call, found in ((lambda: torch.empty(2), ""), (z.cpu, "aten._to_copy.default")):
            with graphed._HostTraffic("cuda") as traffic:
                call()
            assert traffic.found == found
        with graphed._HostTraffic("cuda") as traffic:
            z.copy_(torch.empty(2))
        assert traffic.found == "aten.copy_.default"


class Share(nn.Parameter):
    """A weight that others have shares of, as far as one can tell."""

    full_tensor = None


def test_a_network_in_shares_is_left_alone() -> None:
    model = unet()
    recorder = Snapshot()
    assert Graphs(recorder, silent).of(model) is not model
    model.network.conv_in.bias = Share(model.network.conv_in.bias.data, requires_grad=False)
    assert Graphs(recorder, silent).of(model) is model


@pytest.mark.parametrize("learning", ["training", "requires_grad"])
def test_a_network_that_learns_is_left_alone(learning: str) -> None:
    model = unet()
    model.network.train(learning == "training").requires_grad_(learning == "requires_grad")
    assert Graphs(Snapshot(), silent).of(model) is model


def test_a_network_behind_graphs_is_no_more_in_training_than_before() -> None:
    model = unet()
    behind = Graphs(Snapshot(), silent).of(model)
    assert behind is not model
    assert not behind.network.training


def test_where_gradients_are_kept_nothing_is_replayed() -> None:
    recorder, model = Snapshot(), of(Curved())
    z = torch.randn(2, *SHAPE, requires_grad=True)
    Graphs(recorder, silent).of(model)(z, torch.full((2,), 0.5)).x.sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert recorder.recorded == 0


def test_weights_that_have_moved_are_recorded_anew() -> None:
    model, recorder = unet(), Snapshot()
    graphs = Graphs(recorder, silent)
    pictures(model, graphs)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.data = weight * 1.5
    assert torch.equal(pictures(model, graphs), pictures(model, None))
    assert recorder.recorded == 2


def test_a_recording_goes_with_its_network() -> None:
    model, recorder = unet(), Snapshot()
    graphs = Graphs(recorder, silent)
    pictures(model, graphs)
    assert all(held() is not None for held in recorder.held)
    del model
    gc.collect()
    assert recorder.held
    assert all(held() is None for held in recorder.held)


def test_threads_do_not_disturb_one_another() -> None:
    model, graphs = unet(), Graphs(Snapshot(pause=1e-3), silent)
    wanted = [pictures(model, None, count) for count in (2, 4, 6)]
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(
            lambda _: [pictures(model, graphs, count) for count in (2, 4, 6)], range(6)
        ):
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_only_so_many_shapes_are_recorded() -> None:
    model, recorder = unet(), Snapshot()
    graphs = Graphs(recorder, silent)
    for size in range(1, MOST_SHAPES + 3):
        assert torch.equal(pictures(model, graphs, size, size), pictures(model, None, size, size))
    assert recorder.recorded == MOST_SHAPES


def test_another_precision_from_outside_is_another_recording() -> None:
    model, recorder = unet(), Snapshot()
    graphs = Graphs(recorder, silent)
    pictures(model, graphs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pictures(model, graphs), pictures(model, None))
    assert recorder.recorded == 2


def test_recordings_make_room_where_memory_runs_out() -> None:
    said: list[str] = []
    recorder = Snapshot()
    model, graphs = of(Cramped(recorder)), Graphs(recorder, said.append)
    pictures(model, graphs, count=2)
    found = pictures(model, graphs, count=3, batch_size=3)
    assert torch.equal(found, pictures(of(Curved()), None, count=3, batch_size=3))
    assert len(said) == 1
    recorder.held.append(weakref.ref(found))
    with pytest.raises(torch.OutOfMemoryError):  # there is no recording that could make room
        pictures(model, Graphs(Snapshot(), silent), count=3, batch_size=3)


def test_previews_evaluations_and_commands_draw_through_the_graphs_of_the_machine(
    tiny_run: TinyRun,
) -> None:
    chain, machine, counts = tiny_run.chain(), Machine("fp32", "cpu"), []
    recorder = Snapshot()
    machine.graphs = chain._surroundings.machine.graphs = Graphs(recorder, silent)
    chain.train()
    counts.append(recorder.replayed)
    run = tiny_run.folder()
    Samples(run.evaluation, of_run(run)[0], SampleRequest(None, 4, 0, 2)).draw(
        machine, lambda count: None
    )
    counts.append(recorder.replayed)
    model = checkpoint.load(run.model("original"))
    Drawing(model, Ddim(), range(4), 2, of_seeds(range(4), 2), 2, machine).pictures(
        lambda pictures, seeds: None
    )
    counts.append(recorder.replayed)
    assert 0 < counts[0] < counts[1] < counts[2]


def test_on_a_cpu_nothing_is_wrapped_and_on_is_refused() -> None:
    for wanted in ("auto", "off"):
        assert Machine("fp32", "cpu", cuda_graphs=wanted).graphs is None  # type: ignore[arg-type]
    with pytest.raises(MachineError, match="no CUDA device to replay") as found:
        Machine("fp32", "cpu", cuda_graphs="on")
    assert found.value.exit_code == 6
    assert len(str(found.value).splitlines()) == 3


@pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch knows no CUDA devices, not even imagined ones"
)
@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_shipped_networks_ask_the_cpu_for_nothing(name: str) -> None:
    """On an imagined GPU, which computes shapes only."""
    recipe = recipe_text.validate(Recipe, recipe_text.parse(SHIPPED[name].read_text("utf-8"), name))
    size, channels = recipe.data.size, recipe.data.channels
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            network = recipe.network.build(size, channels).eval()
            z, time = torch.randn(2, channels, size, size), torch.rand(2)
            condition = of_seeds([0, 0], recipe.network.told_classes)
        with graphed._HostTraffic("cuda") as traffic:
            out = network(z, time, condition, None)
    assert out.shape == z.shape
    assert traffic.found == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("batch_size", [1, 4])
def test_on_a_gpu_pictures_with_and_without_graphs_are_equal_bit_for_bit(batch_size: int) -> None:
    device = torch.device("cuda")
    model = unet()
    model.network.to(device, memory_format=torch.channels_last)
    graphs = Graphs(CudaRecorder(device), silent)
    wanted = pictures(model, None, batch_size=batch_size, device=device)
    for _ in range(2):
        assert torch.equal(pictures(model, graphs, batch_size=batch_size, device=device), wanted)
    assert not graphs.is_off
