"""Checkpoints of diffusion_distiller come in and go out with nothing but rounding between."""

import json
import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff import cli
from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import contents_of
from vdiff.formats.distiller import DistillerFormat
from vdiff.formats.plain_safetensors import SafetensorsFormat
from vdiff.model_folder import checkpoint
from vdiff.networks.unet import UNet
from vdiff.randomness import Randomness
from vdiff.samplers.ancestral import AncestralSection
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.sampler import Point, Predict

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "seed_samples" / "tiny_base_5"
needs_sample = pytest.mark.skipif(
    not SAMPLE.is_dir(), reason="shared/data/seed_samples is not beside the repository"
)

WIDTH = 8
HEADS = 2


# ---- their network, written down from its description, of widths 8 and 16


def their_weights(
    affine: bool = True, width: int = WIDTH, everywhere: bool = False
) -> dict[str, Tensor]:
    """Random weights of two levels with one block each and attention at the lower one,
    or at both.
    """
    torch.manual_seed(5)
    tensors: dict[str, Tensor] = {
        "time.0.inv_freq": 10_000 ** -(torch.arange(0, width, 2) / width),
    }

    def layer(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        tensors[f"{name}.weight"] = torch.randn(shape) / fan_in**0.5
        tensors[f"{name}.bias"] = 0.3 * torch.randn(shape[0])

    def norm(name: str, channels: int) -> None:
        tensors[f"{name}.weight"] = 1 + 0.3 * torch.randn(channels)
        tensors[f"{name}.bias"] = 0.3 * torch.randn(channels)

    def block(name: str, before: int, after: int, attends: bool) -> None:
        norm(f"{name}.resblocks.norm1", before)
        layer(f"{name}.resblocks.conv1", after, before, 3, 3)
        layer(f"{name}.resblocks.time.1", after * (1 + affine), 4 * width)
        if not affine:
            norm(f"{name}.resblocks.norm2", after)
        layer(f"{name}.resblocks.conv2", after, after, 3, 3)
        if before != after:
            layer(f"{name}.resblocks.skip", after, before, 1, 1)
        if attends:
            norm(f"{name}.attention.norm", after)
            layer(f"{name}.attention.qkv", 3 * after, after, 1, 1)
            layer(f"{name}.attention.out", after, after, 1, 1)

    layer("time.1", 4 * width, width)
    layer("time.3", 4 * width, 4 * width)
    layer("down.0", width, 3, 3, 3)
    block("down.1", width, width, everywhere)
    layer("down.2.0", width, width, 3, 3)
    block("down.3", width, 2 * width, True)
    block("mid.0", 2 * width, 2 * width, True)
    block("mid.1", 2 * width, 2 * width, False)
    block("up.0", 4 * width, 2 * width, True)
    block("up.1", 3 * width, 2 * width, True)
    layer("up.2.1", 2 * width, 2 * width, 3, 3)
    block("up.3", 3 * width, width, everywhere)
    block("up.4", 2 * width, width, everywhere)
    norm("out.0", width)
    layer("out.2", 3, width, 3, 3)
    return tensors


def their_output(
    tensors: dict[str, Tensor],
    z: Tensor,
    time: Tensor,
    heads: int = HEADS,
    groups: int | None = None,
) -> Tensor:
    """What their network gives for pictures in blue, green, red.

    groups: of every norm; None for a quarter of the first width.
    """
    if groups is None:
        groups = len(tensors["out.0.weight"]) // 4

    def conv(name: str, h: Tensor, stride: int = 1) -> Tensor:
        weight = tensors[f"{name}.weight"]
        return F.conv2d(h, weight, tensors[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, h: Tensor) -> Tensor:
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        return F.group_norm(h, groups, weight, bias, 1e-5)

    angles = time[:, None] * tensors["time.0.inv_freq"]
    told = linear("time.1", torch.cat([angles.sin(), angles.cos()], 1))
    told = F.silu(linear("time.3", F.silu(told)))

    def block(name: str, x: Tensor) -> Tensor:
        part = f"{name}.resblocks"
        h = conv(f"{part}.conv1", F.silu(norm(f"{part}.norm1", x)))
        change = linear(f"{part}.time.1", told)[:, :, None, None]
        if change.shape[1] == 2 * h.shape[1]:
            scale, shift = change.chunk(2, 1)
            h = norm(f"{part}.norm2", h) * (1 + scale) + shift
        else:
            h = norm(f"{part}.norm2", h + change)
        h = conv(f"{part}.conv2", F.silu(h))
        if f"{part}.skip.weight" in tensors:
            x = conv(f"{part}.skip", x)
        return attention(f"{name}.attention", h + x)

    def attention(name: str, x: Tensor) -> Tensor:
        if f"{name}.qkv.weight" not in tensors:
            return x
        batch, width, height, breadth = x.shape
        qkv = conv(f"{name}.qkv", norm(f"{name}.norm", x))
        q, k, v = qkv.view(batch, heads, 3, width // heads, -1).unbind(2)
        weights = (q.transpose(2, 3) @ k / width**0.5).softmax(-1)
        mixed = v @ weights.transpose(2, 3)
        return x + conv(f"{name}.out", mixed.reshape(batch, width, height, breadth))

    h0 = conv("down.0", z)
    h1 = block("down.1", h0)
    h2 = conv("down.2.0", h1, stride=2)
    h3 = block("down.3", h2)
    h = block("mid.1", block("mid.0", h3))
    h = block("up.0", torch.cat([h, h3], 1))
    h = block("up.1", torch.cat([h, h2], 1))
    h = conv("up.2.1", F.interpolate(h, scale_factor=2.0))
    h = block("up.3", torch.cat([h, h1], 1))
    h = block("up.4", torch.cat([h, h0], 1))
    return conv("out.2", F.silu(norm("out.0", h)))


def saved(path: Path, tensors: dict[str, Tensor], num_steps: int = 16, scale: int = 64) -> Path:
    torch.save({"G": tensors, "n_timesteps": num_steps, "time_scale": scale}, path)
    return path


def imported(path: Path, size: int = 8, heads: int = HEADS) -> ForeignModel:
    kind = DistillerFormat()
    return kind.read(contents_of(path), {"size": str(size), "heads": str(heads)})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def noise(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


# ---- in


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("num_steps", "scale"), [(16, 64), (1024, 1), (1, 1024)])
def test_the_imported_network_computes_what_theirs_does(
    affine: bool, num_steps: int, scale: int
) -> None:
    tensors = their_weights(affine)
    model = imported(saved(Path("a.pt"), tensors, num_steps, scale))
    index = torch.tensor([0, num_steps // 2, num_steps - 1])
    z = noise(3, 8)
    theirs = their_output(tensors, z.flip(1), index.float() * scale).flip(1)
    with torch.no_grad():
        ours = model.denoiser(z, (index.double() + 1) / num_steps).v
    assert float(theirs.std()) > 0.5
    assert float((ours - theirs).abs().max()) < 1e-5
    assert (model.num_steps, model.is_distilled) == (num_steps, scale > 1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_at_levels_of_different_widths_are_counted(heads: int) -> None:
    """Each of their layers divides its own width by the number of heads, both ways."""
    tensors = their_weights(everywhere=True)
    path = saved(Path("a.pt"), tensors)
    readings = DistillerFormat().candidates(contents_of(path), {"size": "8"})
    assert [each["heads"] for each in readings] == ["1", "2", "4", "8"]
    model = imported(path, heads=heads)
    z = noise(3, 8)
    index = torch.tensor([0, 8, 15])
    theirs = their_output(tensors, z.flip(1), index.float() * 64, heads).flip(1)
    others = their_output(tensors, z.flip(1), index.float() * 64, 8).flip(1)
    assert float((theirs - others).abs().max()) > 0.05
    with torch.no_grad():
        ours = model.denoiser(z, (index.double() + 1) / 16).v
    assert float((ours - theirs).abs().max()) < 1e-5
    DistillerFormat().write(model, Path("b.pt"), {})
    told = DistillerFormat().to_read_back(model)
    assert told["heads"] == str(heads)
    back = torch.load("b.pt", weights_only=True)["G"]
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=0)


def test_its_noise_table_is_its_own_with_the_clamped_end() -> None:
    schedule = imported(saved(Path("a.pt"), their_weights())).denoiser.schedule
    places = torch.arange(17, dtype=torch.float64) / 16
    signal = torch.cos((places + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    alpha, _ = schedule.alpha_sigma(places[1:])
    assert torch.allclose(alpha**2, (1 - betas).cumprod(0), rtol=1e-12, atol=0)


@needs_sample
def test_the_example_gives_its_recorded_outputs_and_samples() -> None:
    expected = np.load(SAMPLE / "expected.npz")
    settings = json.loads((SAMPLE / "network.json").read_text())
    model = imported(SAMPLE / "checkpoint.pt", 16, settings["network"]["attn_heads"])
    z = torch.from_numpy(expected["z"])
    for index in (0, 1, 8, 15):
        with torch.no_grad():
            v = model.denoiser(z.flip(1), torch.full((2,), (index + 1) / 16).double()).v.flip(1)
        assert np.abs(v.numpy() - expected[f"network_{index}"]).max() < 1e-5
    places = (torch.arange(16, dtype=torch.float64) + 1) / 16
    signal = model.denoiser.schedule.alpha_sigma(places)[0] ** 2
    assert np.allclose(signal, expected["alphas_cumprod"], rtol=1e-9, atol=0)


@needs_sample
@pytest.mark.parametrize("clip", [1.2, 3.0])
def test_the_example_gives_its_recorded_clipped_samples(clip: float) -> None:
    expected = np.load(SAMPLE / "expected.npz")
    model = imported(SAMPLE / "checkpoint.pt", 16, 2)
    z = torch.from_numpy(expected["z"]).flip(1)
    rng = Randomness.for_images(torch.arange(2))
    with torch.no_grad():
        drawn = Ddim(clip=clip, clip_noise=clip)(model.denoiser, z, 16, rng)
    assert np.abs(drawn.flip(1).numpy() - expected[f"clipped_sample_{clip}"]).max() < 1e-4


class Always:
    """Fresh noise that is one number everywhere, in the place of `Randomness`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def normal(self, *shape: int) -> Tensor:
        return torch.full((2, *shape), self.value)


@needs_sample
@pytest.mark.parametrize("index", [0, 1, 8, 15])
def test_the_example_gives_its_recorded_ancestral_means_and_deviations(index: int) -> None:
    """It clips x to [-1, 1] and has the small variance; the last step returns x."""
    expected = np.load(SAMPLE / "expected.npz")
    model = imported(SAMPLE / "checkpoint.pt", 16, 2)
    z = torch.from_numpy(expected["z"]).flip(1)
    sampler = AncestralSection(variance="small", clip=1.0).build()
    predict = Predict(model.denoiser, NOTHING, sampler)
    t = (index + 1) / 16
    with torch.no_grad():
        here = Point(t, z, predict(z, t))
        mean, moved = (
            sampler.step(here, index / 16, (), predict, cast(Randomness, Always(value)))
            for value in (0.0, 1.0)
        )
    recorded = expected[f"ancestral_mean_{index}"]
    assert np.abs(mean.flip(1).numpy() - recorded).max() < 1e-5
    deviation = (moved - mean).flatten(1)
    wanted = torch.from_numpy(expected[f"ancestral_std_{index}"])[:, None].expand_as(deviation)
    assert float((deviation - wanted).abs().max()) < 1e-5


def test_the_number_of_heads_is_asked_for_where_nobody_says_it() -> None:
    found = contents_of(saved(Path("a.pt"), their_weights()))
    readings = DistillerFormat().candidates(found, {"size": "8"})
    assert [each["heads"] for each in readings] == ["1", "2", "4", "8"]
    assert DistillerFormat().candidates(found, {"heads": "2"}) == [{"heads": "2"}]


def test_an_import_leaves_a_student_that_is_distilled_on(tmp_path: Path) -> None:
    saved(Path("a.pt"), their_weights())
    told = ["--size", "8", "--heads", "2"]
    assert cli.main(["import", "a.pt", "--out", "run", *told]) == 0
    card = checkpoint.load(Path("run/original")).card
    assert (card.times, card.num_steps, card.shape) == (16, 16, (3, 8, 8))
    assert cli.main(["recipes", "check", "run/recipe.yaml"]) == 0


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({}, "does not tell the size"),
        ({"size": "8", "heads": "3"}, "3 heads do not divide"),
        ({"size": "9"}, "cannot be halved 1 times"),
        ({"size": "many"}, "`size` is `many`"),
    ],
)
def test_what_it_cannot_be_told_is_refused(told: dict[str, str], problem: str) -> None:
    found = contents_of(saved(Path("a.pt"), their_weights()))
    with pytest.raises(ModelFileError, match=problem):
        DistillerFormat().read(found, told)


def test_missing_extra_and_folded_weights_are_named() -> None:
    tensors = their_weights()
    tensors["mid.0.attention.other"] = tensors.pop("mid.0.attention.out.bias")
    with pytest.raises(ModelFileError) as caught:
        imported(saved(Path("a.pt"), tensors))
    assert "lacks `mid.0.attention.out.bias`" in str(caught.value)
    assert "`mid.0.attention.other`" in str(caught.value)
    folded = their_weights()
    folded["down.0.weight"] = torch.randn(WIDTH, 12, 3, 3)
    with pytest.raises(ModelFileError, match="folds squares of pixels"):
        imported(saved(Path("a.pt"), folded))
    odd = their_weights()
    odd["time.0.inv_freq"] = odd["time.0.inv_freq"] * 2
    with pytest.raises(ModelFileError, match="other frequencies"):
        imported(saved(Path("a.pt"), odd))


# ---- out

OURS: dict[str, object] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 2,
    "attn_norm_num_groups": 2,
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift",
}


def ours(schedule: dict[str, object] | None = None, **changes: object) -> ForeignModel:
    """A student of 4 steps with random weights."""
    torch.manual_seed(7)
    network = UNet.from_config(OURS | changes)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    network.eval().requires_grad_(False)
    diffusion = {"schedule": schedule or {"kind": "cosine", "grid": 64}, "predicts": "v"}
    section = DiffusionSection.model_validate(diffusion)
    denoiser = Denoiser(network, section.schedule.build(), section.predicts)
    classes = network.config["num_class_embeds"] or 0
    shape = (network.config["in_channels"], 8, 8)
    return ForeignModel(denoiser, "unet", diffusion, shape, classes, 4, is_distilled=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resnet_time_scale_shift": "default"},
        {"flip_sin_to_cos": False},
        {"add_attention": False},
        {"attention_head_dim": None},
    ],
)
def test_a_model_written_for_them_computes_the_same_in_their_network(
    changes: dict[str, object],
) -> None:
    model = ours(**changes)
    DistillerFormat().write(model, Path("a.pt"), {})
    file = torch.load("a.pt", weights_only=True)
    assert (file["n_timesteps"], file["time_scale"]) == (4, 16)
    told = DistillerFormat().to_read_back(model)
    z = noise(4, 8)
    index = torch.arange(4)
    theirs = their_output(file["G"], z.flip(1), index.float() * 16, int(told["heads"])).flip(1)
    t = (index.double() + 1) / 4
    with torch.no_grad():
        made = model.denoiser(z, t).v
        again = DistillerFormat().read(contents_of(Path("a.pt")), told).denoiser(z, t).v
    assert float(made.std()) > 0.1
    assert float((made - theirs).abs().max()) < 2e-5
    assert float((made - again).abs().max()) < 2e-5


def test_what_came_from_them_goes_back_with_the_same_bits() -> None:
    """With 4 heads, whose root is a power of two; else queries differ by a rounding."""
    tensors = their_weights(width=16)
    model = imported(saved(Path("a.pt"), tensors), heads=4)
    DistillerFormat().write(model, Path("b.pt"), {})
    back = torch.load("b.pt", weights_only=True)
    assert (back["n_timesteps"], back["time_scale"]) == (16, 64)
    assert back["G"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        if name == "time.0.inv_freq":
            assert torch.allclose(back["G"][name], tensor, rtol=1e-6, atol=0)
        else:
            assert torch.equal(back["G"][name], tensor), name


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"in_channels": 1, "out_channels": 1}, "pictures of 1 channel"),
        ({"num_class_embeds": 5}, "5 classes"),
        ({"norm_num_groups": 4}, "`norm_num_groups` is 4, and that program has 2"),
        ({"attn_norm_num_groups": None}, "norm before the middle attention"),
        ({"norm_eps": 1e-6}, "`norm_eps`"),
        ({"freq_shift": 1}, "`freq_shift`"),
        ({"downsample_padding": 0}, "`downsample_padding`"),
        ({"time_embedding_dim": 16}, "time embedding"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "attention is at other levels"),
        ({"block_out_channels": [8, 12]}, "whole multiples"),
        (
            {
                "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
                "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
            },
            "number of heads",
        ),
        ({"schedule": {"kind": "cosine_logsnr"}}, "noise schedule"),
        ({"schedule": {"kind": "cosine", "grid": 66}}, "whole multiples of a `time_scale`"),
    ],
)
def test_what_they_cannot_hold_is_named(changes: dict[str, object], problem: str) -> None:
    if changes.get("block_out_channels") == [8, 12]:
        changes = {**changes, "attention_head_dim": None}
    with pytest.raises(ModelFileError, match=problem):
        DistillerFormat().write(ours(**changes), Path("a.pt"), {})  # type: ignore[arg-type]
    assert not Path("a.pt").exists()


def test_an_export_is_compared_with_the_model_at_the_same_noise_levels() -> None:
    """What is read back is fed other times than the model: 0, 16, ... and not 15, 31, ..."""
    SafetensorsFormat().write(ours(), Path("a.safetensors"), {})
    assert cli.main(["import", "a.safetensors", "--out", "run"]) == 0
    assert cli.main(["export", "run/original", "--to", "seed", "--out", "b.pt"]) == 0
    assert torch.load("b.pt", weights_only=True)["time_scale"] == 16
    told = ["--size", "8", "--heads", "2"]
    assert cli.main(["import", "b.pt", "--out", "again", *told]) == 0
    assert checkpoint.load(Path("again/original")).card.times == 4
