"""Recorded drawing: the same bits as the sampler's, and only where nothing else could come out."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.networks.fast import fast_on
from vdiff.networks.unet import UNet
from vdiff.samplers import recorded
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw
from vdiff.samplers.sampler import Sampler

CONFIG: dict[str, object] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
SHAPE = (1, 8, 8)
STEPS = 3


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The second batch of a shape is recorded, the third is drawn by the recording."""
    monkeypatch.setattr(recorded, "BATCHES_BEFORE", 1)
    recorded._KNOWN.clear()
    yield
    recorded._KNOWN.clear()


def denoiser(
    predicts: str = "v", is_fast: bool = True, schedule: object = "cosine", **config: object
) -> Denoiser:
    torch.manual_seed(3)
    network = UNet.from_config(CONFIG | config)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    network.eval().requires_grad_(False)
    if is_fast:
        fast_on(network, "cpu")
    section = DiffusionSection.model_validate({"schedule": schedule, "predicts": predicts})
    return Denoiser(network, section.schedule.build(), section.predicts)


def pictures(
    of: Denoiser, seeds: list[int], sampler: Sampler | None = None, classes: int = 0
) -> Tensor:
    return draw(of, sampler or Ddim(), seeds, SHAPE, STEPS, condition=of_seeds(seeds, classes))


def expected(
    of: Denoiser, seeds: list[int], sampler: Sampler | None = None, classes: int = 0
) -> Tensor:
    """As ever: whoever watches sees every step, which a recording has not."""
    return draw(
        of,
        sampler or Ddim(),
        seeds,
        SHAPE,
        STEPS,
        condition=of_seeds(seeds, classes),
        watch=lambda z, x: None,
    )


def recordings(of: Denoiser) -> list[recorded.Recording | None]:
    found = recorded._KNOWN.get(of.network)
    return [] if found is None else list(found.made.values())


def warmed(of: Denoiser, count: int, sampler: Sampler | None = None, classes: int = 0) -> None:
    for start in (0, 100):
        pictures(of, list(range(start, start + count)), sampler, classes)


@pytest.mark.parametrize("predicts", ["v", "x", "eps"])
@pytest.mark.parametrize("sampler", [Ddim(), Ddim(clip=1.0), Ddim(clip=1.2, clip_noise=1.2)])
@pytest.mark.parametrize("count", [1, 5])
def test_a_recording_draws_the_same_bits(predicts: str, sampler: Sampler, count: int) -> None:
    of = denoiser(predicts)
    warmed(of, count, sampler)
    assert [type(each) for each in recordings(of)] == [recorded.Recording]
    for start in (200, 300):
        seeds = list(range(start, start + count))
        assert torch.equal(pictures(of, seeds, sampler), expected(of, seeds, sampler))


@pytest.mark.parametrize(
    "config",
    [
        {"resnet_time_scale_shift": "scale_shift"},
        {"attention_head_dim": None, "downsample_padding": 0},
        {"is_fast": False},
        {"schedule": {"kind": "betas", "grid": 100}},
        {"dropout": 0.1},
    ],
)
def test_every_kind_of_block_can_be_recorded(config: dict[str, object]) -> None:
    of = denoiser(**config)  # type: ignore[arg-type]
    warmed(of, 2)
    assert [type(each) for each in recordings(of)] == [recorded.Recording]
    assert torch.equal(pictures(of, [7, 9]), expected(of, [7, 9]))


def test_classes_are_given_to_a_recording_and_not_kept_in_it() -> None:
    of = denoiser(num_class_embeds=3)
    warmed(of, 2, classes=3)
    assert recordings(of) != [None]
    for label in ([0, 1], [2, 2]):
        told = Condition(torch.tensor(label))
        found = draw(of, Ddim(), [4, 5], SHAPE, STEPS, condition=told)
        wanted = draw(of, Ddim(), [4, 5], SHAPE, STEPS, condition=told, watch=lambda z, x: None)
        assert torch.equal(found, wanted)


def test_the_network_is_not_called_where_a_recording_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = denoiser()
    warmed(of, 1)
    calls = []
    forward = UNet.forward

    def counted(self: UNet, *given: object) -> Tensor:
        calls.append(1)
        return forward(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(UNet, "forward", counted)
    pictures(of, [5])
    assert calls == []
    pictures(of, [5, 6])
    assert len(calls) == STEPS


def test_what_is_drawn_is_the_callers_own() -> None:
    of = denoiser()
    warmed(of, 1)
    first = pictures(of, [5])
    assert not first.is_inference()
    first.zero_()
    assert torch.equal(pictures(of, [5]), expected(of, [5]))


@pytest.mark.parametrize("change", ["written", "moved", "replaced", "another layer"])
def test_a_network_that_has_changed_is_recorded_anew(change: str) -> None:
    of = denoiser()
    warmed(of, 1)
    network: UNet = of.network  # type: ignore[assignment]
    before = pictures(of, [5])
    layer = network.time_embedding.linear_1
    with torch.no_grad():
        if change == "written":
            layer.weight.mul_(0.5)
        elif change == "moved":
            layer.weight.data = layer.weight.data * 0.5
        elif change == "replaced":
            layer.weight = nn.Parameter(layer.weight * 0.5, requires_grad=False)
        else:
            network.conv_out = nn.Conv2d(8, 1, 3, padding=1).eval()
    after = pictures(of, [5])
    assert not torch.equal(after, before)
    assert torch.equal(after, expected(of, [5]))
    warmed(of, 1)
    assert torch.equal(pictures(of, [5]), expected(of, [5]))


@pytest.mark.parametrize("sampler", [Ddim(eta=0.5), Ancestral(1.0)])
def test_a_sampler_with_fresh_noise_is_not_recorded(sampler: Sampler) -> None:
    of = denoiser()
    warmed(of, 1, sampler)
    assert recordings(of) == []


def test_what_a_stranger_wrote_or_listens_to_is_not_recorded() -> None:
    class Mine(UNet):
        pass

    class Steps(Ddim):
        pass

    class Layer(nn.Conv2d):
        pass

    for change in (
        lambda of: setattr(of.network, "__class__", Mine),
        lambda of: setattr(of.network.conv_out, "__class__", Layer),
        lambda of: of.network.conv_out.register_forward_hook(lambda *given: None),
        lambda of: of.network.conv_out.register_forward_pre_hook(lambda *given: None),
    ):
        of = denoiser()
        change(of)
        warmed(of, 1)
        assert recordings(of) == []
    of = denoiser()
    warmed(of, 1, Steps())
    assert recordings(of) == []


def test_what_differs_by_one_bit_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded.record

    def off(*given: object) -> recorded.Recording:
        recording = record(*given)  # type: ignore[arg-type]
        right = recording._draw
        recording._draw = lambda *tensors: right(*tensors).nextafter(torch.tensor(9.0))
        return recording

    monkeypatch.setattr(recorded, "record", off)
    of = denoiser()
    warmed(of, 1)
    assert recordings(of) == [None]
    assert torch.equal(pictures(of, [5]), expected(of, [5]))


def test_a_torch_that_lacks_what_a_recording_asks_for_draws_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some of it is no part of torch's public interface."""

    def lacking(given: object) -> None:
        raise AttributeError("module 'torch.ops.aten' has no attribute '_slow_conv2d_forward'")

    monkeypatch.setattr(recorded, "_direct", lacking)
    of = denoiser()
    warmed(of, 1)
    assert torch.equal(pictures(of, [7]), expected(of, [7]))
    assert recordings(of) == [None]


def test_other_numbers_of_threads_are_recorded_by_themselves() -> None:
    """torch chooses another kernel for them, and a recording holds its choice."""
    of = denoiser()
    warmed(of, 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(pictures(of, [7]), expected(of, [7]))
        warmed(of, 1)
        assert len(recordings(of)) == 2
        assert torch.equal(pictures(of, [7]), expected(of, [7]))
    finally:
        torch.set_num_threads(threads)


def test_weights_of_a_state_that_is_known_keep_their_places() -> None:
    """Others could get their ids otherwise, and be taken for them."""
    of = denoiser()
    warmed(of, 1)
    before = of.network.state_dict()
    held = recorded._KNOWN[of.network].weights
    assert {id(weight) for weight in of.network.parameters()} <= {id(each) for each in held}
    assert len(held) >= len(before)


def drawn_by(work: object) -> None:
    noise = torch.randn(2, 1, 2, 2)
    recorded.record(noise, NOTHING, work)  # type: ignore[arg-type]


def test_what_depends_on_values_or_writes_cannot_be_recorded() -> None:
    kept = torch.zeros(2, 1, 2, 2)
    for work in (
        lambda noise, told: noise * float(noise.sum()),
        lambda noise, told: noise[noise > 0],
        lambda noise, told: (noise * 2).add_(1),
        lambda noise, told: noise + kept.add_(1),
        lambda noise, told: torch.ones(2),
    ):
        with pytest.raises(recorded.NotRecordableError):
            drawn_by(work)
    assert recorded.record(kept, NOTHING, lambda noise, told: noise + 1)(kept, NOTHING).equal(
        kept + 1
    )


def test_threads_that_draw_at_once_get_their_own_pictures() -> None:
    of = denoiser()
    wanted = {seed: expected(of, [seed]) for seed in range(8)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        drawn = [pictures(of, [seed]) for _ in range(6)]
        wrong.extend(seed for each in drawn if not torch.equal(each, wanted[seed]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [type(each) for each in recordings(of)] == [recorded.Recording]


def test_a_network_that_is_forgotten_takes_its_recordings_along() -> None:
    of = denoiser()
    warmed(of, 1)
    assert len(recorded._KNOWN) == 1
    del of
    assert len(recorded._KNOWN) == 0
