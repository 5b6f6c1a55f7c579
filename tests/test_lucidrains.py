"""Files of denoising-diffusion-pytorch: every version's network computes what it computed,
and the rest is refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import MakePictures
from vdiff import cli
from vdiff.conformance import check_network
from vdiff.data.prepare import prepare
from vdiff.diffusion.condition import of_seeds
from vdiff.diffusion.denoiser import Denoiser, ddim_step, scales
from vdiff.errors import ModelFileError, UsageError
from vdiff.exchange import bring, into_run, proof
from vdiff.formats.contents import contents_of
from vdiff.formats.foreign import describe, format_of
from vdiff.formats.lucidrains import LucidrainsFormat
from vdiff.formats.lucidrains_model import told_by_loss
from vdiff.model_folder import checkpoint
from vdiff.networks.lucidrains import (
    ChannelNorm,
    FullAttention,
    LinearAttention,
    LucidrainsSection,
    LucidrainsUNet,
    RootMeanSquareNorm,
)
from vdiff.networks.lucidrains_section import LucidrainsConfig
from vdiff.networks.repeated import recompute_activations

FOREIGN = Path(__file__).parents[2] / "shared" / "data" / "foreign"
needs_files = pytest.mark.skipif(
    not FOREIGN.is_dir(), reason="shared/data/foreign is not beside the repository"
)
STEPS = 40

LINEAR = {"full": False, "heads": 2, "head_dim": 4}
FULL = {"full": True, "heads": 2, "head_dim": 4}
OF_OLD = {"full": False, "heads": 4, "head_dim": 2}
CONFIG: dict[str, Any] = {
    "channels": 3,
    "dim": 8,
    "widths": [8, 8, 16],
    "time_width": 32,
    "last_width": 8,
    "attentions": [LINEAR, FULL],
    "middle": FULL,
}
GROUPED = {**CONFIG, "groups": 4}
WITHOUT_MEMORY = {
    **GROUPED,
    "memory": 0,
    "attentions": [OF_OLD, {**OF_OLD, "full": True}],
    "middle": {**OF_OLD, "full": True},
}
OLDEST = {**WITHOUT_MEMORY, "norm": "layer", "divides_values": True}
GENERATIONS = {"A": CONFIG, "B": GROUPED, "C": WITHOUT_MEMORY, "D": OLDEST}


def network_of(config: dict[str, Any], seed: int = 0) -> LucidrainsUNet:
    """With every weight made ordinary."""
    torch.manual_seed(seed)
    network = LucidrainsSection.restore(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network


def wrapped(name: str) -> str:
    """As generation D has the name of a tensor of an attention."""
    for part in ("downs", "ups"):
        if name.startswith(part) and name.split(".")[2] == "2":
            head, tail = ".".join(name.split(".")[:3]), ".".join(name.split(".")[3:])
            return f"{head}.fn.norm.g" if tail == "norm.g" else f"{head}.fn.fn.{tail}"
    if name.startswith("mid_attn."):
        tail = name.removeprefix("mid_attn.")
        return "mid_attn.fn.norm.g" if tail == "norm.g" else f"mid_attn.fn.fn.{tail}"
    return name


def cosine(steps: int = STEPS) -> Tensor:
    """alpha^2 of each step, as improved DDPM has it."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    free = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - (1 - free[1:] / free[:-1]).clamp(0, 0.999)).cumprod(0)


def tables(signal: Tensor, weigh: Callable[[Tensor], Tensor] | None) -> dict[str, Tensor]:
    """The diffusion's buffers, in float32 as the program keeps them.

    weigh: snr -> weight of the loss.
    """
    before = torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
    found = {"betas": (1 - signal / before).float(), "alphas_cumprod": signal.float()}
    if weigh is None:
        return {**found, "p2_loss_weight": torch.ones(len(signal))}
    return {**found, "loss_weight": weigh(signal / (1 - signal)).float()}


def of_v(snr: Tensor) -> Tensor:
    return snr / (snr + 1)


def trainer_file(
    path: Path,
    network: LucidrainsUNet,
    version: str | None,
    weigh: Callable[[Tensor], Tensor] | None = of_v,
    rename: Callable[[str], str] = lambda name: name,
    change: Callable[[dict[str, Tensor]], None] = lambda weights: None,
) -> Path:
    """What the Trainer saves; the weights that were not averaged are other ones."""
    weights = {rename(name): tensor.clone() for name, tensor in network.state_dict().items()}
    change(weights)
    buffers = tables(cosine(), weigh)
    averaged = {**buffers, **{f"model.{name}": tensor for name, tensor in weights.items()}}
    raw = {**buffers, **{f"model.{name}": tensor + 1 for name, tensor in weights.items()}}
    content: dict[str, object] = {
        "step": 7,
        "model": raw,
        "opt": {"state": {}, "param_groups": []},
        "ema": {
            "initted": torch.tensor(True),
            "step": torch.tensor(7),
            **{f"online_model.{name}": tensor for name, tensor in raw.items()},
            **{f"ema_model.{name}": tensor for name, tensor in averaged.items()},
        },
        "scaler": None,
    }
    if version is not None:
        content["version"] = version
    torch.save(content, path)
    return path


def read(path: Path, **told: str) -> Any:
    return LucidrainsFormat().read(contents_of(path), {"size": "8", **told})


def same(one: nn.Module, other: nn.Module, atol: float = 2e-6) -> None:
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    time = torch.tensor([0.0, 11.5, 39.0])
    with torch.no_grad():
        torch.testing.assert_close(one(z, time), other(z, time), atol=atol, rtol=0)


# --- files that the program wrote


def real(number: int) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    folder = FOREIGN / f"lucid_{number}"
    facts = json.loads((folder / "facts.json").read_text())
    with np.load(folder / "expected.npz") as file:
        return folder / "model-1.pt", facts, {name: torch.from_numpy(file[name]) for name in file}


def real_model(number: int) -> Any:
    path, facts, _ = real(number)
    told = {"size": str(facts["size"])}
    if number == 7:
        told["groups"] = "4"
    found = contents_of(path)
    assert format_of(found, []) == "lucidrains"
    (asked, *_) = LucidrainsFormat().candidates(found, told)
    return LucidrainsFormat().read(found, asked)


@needs_files
@pytest.mark.parametrize("number", [1, 3, 4, 7, 9])
def test_a_real_file_gives_the_outputs_of_the_program(number: int) -> None:
    _, facts, expected = real(number)
    model = real_model(number)
    channels, height, _ = model.shape
    assert (channels, height) == (facts["channels"], facts["size"])
    assert model.denoiser.predicts == facts["predicts"]
    assert model.num_steps == facts["diffusion"]["timesteps"]
    with torch.no_grad():
        output = model.denoiser.network(expected["z"], expected["time"])
    assert (output - expected["output"][:, :channels]).abs().max() < 5e-6
    signal = model.denoiser.schedule.powers((expected["index"].double() + 1) / model.num_steps)[0]
    wanted = expected["alphas_cumprod"][expected["index"]].double()
    assert (signal - wanted).abs().max() < 2e-7


def drawn(
    denoiser: Denoiser,
    z: Tensor,
    steps: int,
    clip: float | None,
    keeps_noise: bool,
    follow: Callable[[Tensor], None] = lambda x: None,
) -> Tensor:
    """DDIM as the program draws.   keeps_noise: eps stays the network's own where x is clipped."""
    for step in range(steps, 0, -1):
        t = torch.full((len(z),), step / steps, dtype=torch.float64)
        with torch.no_grad():
            found = denoiser(z, t)
        if clip is not None:
            alpha, sigma = scales(denoiser.schedule, t, z)
            own = found.eps
            found = found.clipped(clip, z, alpha, sigma)
            if keeps_noise:
                found = found._replace(eps=own)
        follow(found.x)
        z = ddim_step(found, t - 1 / steps, denoiser.schedule)
    return z


def given_the_step_before(network: LucidrainsUNet, path: Path) -> Callable[[Tensor], None]:
    """Put the inputs back that the import leaves out:
    the picture of the step before, zeros at first.
    """
    whole = torch.load(path, weights_only=True)["ema"]["ema_model.model.init_conv.weight"]
    before: list[Tensor] = []

    def add(module: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor:
        return out + F.conv2d(before[-1], whole[:, :3], padding=3) if before else out

    network.init_conv.register_forward_hook(add)
    return before.append


@needs_files
@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("number", [1, 3, 4, 7, 9])
def test_a_real_file_draws_what_the_program_draws(
    number: int, clip: float | None, steps: int
) -> None:
    path, _, expected = real(number)
    denoiser = real_model(number).denoiser
    follow: Callable[[Tensor], None] = lambda x: None  # noqa: E731
    if number == 3:
        follow = given_the_step_before(denoiser.network, path)
    wanted = expected[f"ddim_{steps}_{'free' if clip is None else 'clipped'}"]
    # a learned variance's sampler keeps the network's own noise
    pictures = drawn(denoiser, expected["noise"], steps, clip, number == 4, follow)
    size = max(1.0, float(wanted.square().mean().sqrt()))
    assert (pictures - wanted).abs().max() / size < 5e-6


# --- files of every generation, made here


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_file_of_every_generation_is_read_from_its_averages(
    tmp_path: Path, generation: str
) -> None:
    config = GENERATIONS[generation]
    network = network_of(config)
    version = {"A": "2.1.0", "B": "1.9.0", "C": "1.8.3", "D": "1.6.4"}[generation]
    rename = wrapped if generation == "D" else str
    path = trainer_file(tmp_path / "model-1.pt", network, version, rename=rename)
    file = describe(path)
    assert file.kind == "denoising-diffusion-pytorch checkpoint"
    assert (file.facts["generation"], file.facts["version"]) == (generation, version)
    assert (file.facts["timesteps"], file.facts["weights"]) == (STEPS, "averaged")
    model = read(path, groups="4")
    assert model.denoiser.predicts == "v"
    assert model.diffusion["schedule"] == {"kind": "cosine", "grid": STEPS}
    assert model.denoiser.network.config == {**LucidrainsConfig.read(config).model_dump()}
    if generation == "D":  # its convolutions were standardized each time
        standardize(network)
    same(model.denoiser.network, network)


def standardize(network: LucidrainsUNet) -> None:
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "block1.proj.weight" in name or "block2.proj.weight" in name:
                for row in weight:
                    values = row.double()
                    deviation = (values.var(correction=0) + 1e-5).sqrt()
                    row.copy_((values - values.mean()) / deviation)


@pytest.mark.parametrize(
    ("version", "traits"),
    [
        ("0.27.1", (True, "layer", True)),
        ("1.6.9", (True, "layer", True)),
        ("1.7.1", (True, "rms", True)),
        ("1.7.3", (False, "rms", True)),
        ("1.7.4", (False, "rms", False)),
    ],
)
def test_in_the_oldest_files_the_version_decides(
    tmp_path: Path, version: str, traits: tuple[bool, str, bool]
) -> None:
    is_standardized, norm, divides = traits
    network = network_of({**OLDEST, "norm": norm, "divides_values": divides})
    path = trainer_file(tmp_path / "model-1.pt", network, version, rename=wrapped)
    model = read(path, groups="4")
    unsaid = trainer_file(tmp_path / "model-2.pt", network, None, rename=wrapped)
    told = read(unsaid, groups="4", version=version)
    if is_standardized:
        standardize(network)
    same(model.denoiser.network, network)
    same(told.denoiser.network, network)
    versions = {
        reading["version"]
        for reading in LucidrainsFormat().candidates(
            contents_of(unsaid), {"size": "8", "groups": "4"}
        )
    }
    assert len(versions) == 4


def test_attention_is_its_formula() -> None:
    """One picture, head by head and pixel by pixel, memory first."""
    config = LucidrainsConfig.read({**CONFIG, "memory": 3})
    torch.manual_seed(1)
    x = torch.randn(1, 8, 2, 3)
    for kind in (FullAttention, LinearAttention):
        module: Any = kind(8, config.attentions[0], config)
        pixels = module.to_qkv(module.norm(x))[0].flatten(1).view(3, 2, 4, 6)
        out = torch.zeros(2, 4, 6)
        for head in range(2):
            q, k, v = pixels[:, head]
            memory = module.mem_kv[:, head]
            if kind is FullAttention:
                keys, values = (torch.cat([m.T, p], 1) for m, p in zip(memory, (k, v), strict=True))
                for pixel in range(6):
                    share = (keys.T @ q[:, pixel] / 2).softmax(0)
                    out[head, :, pixel] = values @ share
            else:
                keys, values = (torch.cat([m, p], 1) for m, p in zip(memory, (k, v), strict=True))
                for pixel in range(6):
                    asked = q[:, pixel].softmax(0) / 2
                    out[head, :, pixel] = values @ (keys.softmax(1).T @ asked)
        wanted = module.to_out(out.view(1, 8, 2, 3)) + x
        torch.testing.assert_close(module(x), wanted, atol=1e-5, rtol=0)


def test_values_are_divided_by_the_number_of_pixels_in_old_versions() -> None:
    config = {**OLDEST, "norm": "rms"}
    torch.manual_seed(1)
    new, old = (
        LinearAttention(8, parsed.attentions[0], parsed)
        for parsed in (
            LucidrainsConfig.read({**config, "divides_values": divides})
            for divides in (False, True)
        )
    )
    old.load_state_dict(new.state_dict())
    with torch.no_grad():
        old.to_qkv.weight[-8:] *= 24  # the values, of 4 x 6 pixels
    x = torch.randn(2, 8, 4, 6)
    torch.testing.assert_close(old(x), new(x), atol=1e-5, rtol=0)


def test_norms_are_their_formulas() -> None:
    x = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    of_squares = x / x.square().mean(1, keepdim=True).sqrt()
    centred = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    with torch.no_grad():
        torch.testing.assert_close(RootMeanSquareNorm(6)(x), of_squares, atol=1e-9, rtol=0)
        torch.testing.assert_close(ChannelNorm(6)(x), centred, atol=1e-9, rtol=0)


# --- what the file tells


@pytest.mark.parametrize("limit", [float("inf"), 5.0])
@pytest.mark.parametrize("signal", [cosine(), cosine(1000)])
def test_the_weights_of_the_loss_tell_what_is_predicted(limit: float, signal: Tensor) -> None:
    weights: dict[str, Callable[[Tensor], Tensor]] = {
        "eps": lambda snr: snr.clamp(max=limit) / snr,
        "x": lambda snr: snr.clamp(max=limit),
        "v": lambda snr: snr.clamp(max=limit) / (snr + 1),
    }
    for predicts, weigh in weights.items():
        buffers = {name: table.double() for name, table in tables(signal, weigh).items()}
        assert told_by_loss(buffers) == [predicts]
    other = {name: table.double() for name, table in tables(signal, torch.log1p).items()}
    assert len(told_by_loss(other)) == 3


def test_what_the_file_leaves_open_is_asked_or_taken_and_said(tmp_path: Path) -> None:
    path = trainer_file(tmp_path / "model-1.pt", network_of(GROUPED), "1.9.0", weigh=None)
    found = contents_of(path)
    with pytest.raises(UsageError, match="how large its pictures are"):
        LucidrainsFormat().candidates(found, {})
    with pytest.raises(UsageError, match="1/2"):
        LucidrainsFormat().candidates(found, {"size": "9"})
    readings = LucidrainsFormat().candidates(found, {"size": "8"})
    assert {reading["groups"] for reading in readings} == {"8", "4", "2", "1"}
    assert {reading["predicts"] for reading in readings} == {"eps", "v", "x"}
    told = {"size": "8", "groups": "4", "predicts": "x", "theta": "500"}
    assert LucidrainsFormat().candidates(found, told) == [told]
    model = LucidrainsFormat().read(found, told)
    assert model.denoiser.network.config["theta"] == 500
    assert model.sampler == {"kind": "ddim", "clip": 1.0}
    said = " ".join(model.assumed)
    for part in ("8 x 8", "theta` 500", "groups` 4", "predicts` x"):
        assert part in said


@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_alone_are_read_when_the_rest_is_told(tmp_path: Path, prefix: str) -> None:
    network = network_of(CONFIG)
    weights = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save(weights, path)
    model = read(path, table="linear", steps="50", predicts="eps")
    same(model.denoiser.network, network)
    betas = torch.linspace(0.002, 0.4, 50, dtype=torch.float64)
    signal = model.denoiser.schedule.powers(torch.tensor([0.5, 1.0], dtype=torch.float64))[0]
    torch.testing.assert_close(signal, (1 - betas).cumprod(0)[[24, 49]])


def test_a_diffusion_saved_alone_brings_its_table(tmp_path: Path) -> None:
    network = network_of(CONFIG)
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    uneven = (1 - torch.linspace(0.001, 0.3, 20, dtype=torch.float64).square()).cumprod(0)
    torch.save({**tables(uneven, of_v), **weights}, tmp_path / "weights.pt")
    model = read(tmp_path / "weights.pt")
    assert model.denoiser.predicts == "v"
    times = torch.arange(1, 21, dtype=torch.float64) / 20
    assert (model.denoiser.schedule.powers(times)[0] - uneven).abs().max() < 1e-6


def test_a_variance_and_the_step_before_are_left_out(tmp_path: Path) -> None:
    network = network_of(CONFIG)

    def doubled(weights: dict[str, Tensor]) -> None:
        first = weights["init_conv.weight"]
        weights["init_conv.weight"] = torch.cat([torch.ones_like(first), first], dim=1)
        for name in ("final_conv.weight", "final_conv.bias"):
            weights[name] = torch.cat([weights[name], torch.ones_like(weights[name])])

    path = trainer_file(tmp_path / "model-1.pt", network, "2.1.0", change=doubled)
    facts = describe(path).facts
    assert (facts["channels"], facts["self_condition"], facts["learned_variance"]) == (
        3,
        True,
        True,
    )
    model = read(path)
    same(model.denoiser.network, network)
    assert "zeros" in " ".join(model.assumed)


# --- what is refused


def renamed(old: str, new: str) -> Callable[[str], str]:
    return lambda name: name.replace(old, new)


def test_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    def spoil(weights: dict[str, Tensor]) -> None:
        weights["ups.0.0.other"] = weights.pop("ups.0.0.mlp.1.bias")
        weights["ups.1.1.mlp.1.bias"] = torch.zeros(5)

    path = trainer_file(tmp_path / "model-1.pt", network_of(CONFIG), "2.1.0", change=spoil)
    with pytest.raises(ModelFileError) as caught:
        read(path)
    told = caught.value.problem
    assert "lacks `ups.0.0.mlp.1.bias`" in told
    assert "has `ups.0.0.other` too" in told
    assert "`ups.1.1.mlp.1.bias` is [5] and should be [16]" in told


def shapes_of_terabytes(weights: dict[str, Tensor]) -> None:
    for name in ("mid_block1.block1.proj.weight", "downs.1.0.block1.proj.weight"):
        weights[name] = torch.zeros(60_000, 1, 1, 1)


def first_of_sequences(weights: dict[str, Tensor]) -> None:
    weights["init_conv.weight"] = weights["init_conv.weight"][..., 0]


def with_classes(weights: dict[str, Tensor]) -> None:
    weights["classes_emb.weight"] = torch.zeros(10, 8)


def with_features(weights: dict[str, Tensor]) -> None:
    weights["time_mlp.0.weights"] = torch.zeros(8)


def with_summands(weights: dict[str, Tensor]) -> None:
    weights["mid_attn.norm.b"] = torch.zeros(1, 16, 1, 1)


def without_middle(weights: dict[str, Tensor]) -> None:
    del weights["mid_attn.to_qkv.weight"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (first_of_sequences, "`Unet1D`"),
        (with_classes, "classifier-free guidance"),
        (with_features, "Fourier features"),
        (with_summands, "before 0.26.5"),
        (without_middle, "lacks `mid_attn.to_qkv.weight`"),
        (shapes_of_terabytes, "does not fit the network"),
    ],
)
def test_other_networks_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], told: str
) -> None:
    path = trainer_file(tmp_path / "model-1.pt", network_of(CONFIG), "2.1.0", change=change)
    assert describe(path).kind == "denoising-diffusion-pytorch checkpoint"
    with pytest.raises(ModelFileError, match=told):
        read(path)


@pytest.mark.parametrize(
    ("place", "told"),
    [("denoise_fn.", "before 0.21"), ("net.", "Elucidated"), ("input_block.", "KarrasUnet")],
)
def test_networks_in_another_place_are_refused_by_name(
    tmp_path: Path, place: str, told: str
) -> None:
    path = trainer_file(tmp_path / "model-1.pt", network_of(CONFIG), "2.1.0")
    content = torch.load(path, weights_only=True)
    for part in ("model", "ema"):
        content[part] = {
            name.replace("model.init_conv", f"{place}init_conv")
            .replace("_model.model.", f"_model.{place}")
            .removeprefix("model."): tensor
            for name, tensor in content[part].items()
        }
    content["model"] = {}
    torch.save(content, path)
    assert format_of(contents_of(path), []) == "lucidrains"
    assert "not_supported" in describe(path).facts
    with pytest.raises(ModelFileError, match=told):
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": []},
        {"widths": [8, 8, 10**9]},
        {"groups": 5},
        {"attentions": [LINEAR]},
        {"dim": 7},
        {"theta": float("nan")},
        {"halving": "other"},
        {"more": 1},
        {"memory": True},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=next(iter(change))):
        LucidrainsSection.restore({**CONFIG, **change})
    with pytest.raises(ModelFileError):
        LucidrainsSection.restore([])  # type: ignore[arg-type]


# --- as a network of vdiff


@pytest.mark.parametrize("generation", GENERATIONS)
def test_it_keeps_the_contract_of_networks(generation: str) -> None:
    class Made(LucidrainsSection):
        """The kind, with a network that has fresh weights."""

        def build(self, image_size: int, channels: int) -> LucidrainsUNet:
            return LucidrainsSection.restore(GENERATIONS[generation])

    check_network(Made())
    misfit = LucidrainsSection.misfit
    assert misfit(CONFIG, (3, 8, 8), 0) is None
    assert misfit(CONFIG, (1, 8, 8), 0) == "channels"
    assert misfit(CONFIG, (3, 8, 8), 4) == "channels"
    assert misfit(CONFIG, (3, 9, 8), 0) == "widths"


@pytest.mark.parametrize("generation", ["A", "D"])
def test_every_weight_learns_and_recomputing_gives_the_same(generation: str) -> None:
    network = network_of(GENERATIONS[generation]).train()
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    gradients = []
    for _ in range(2):
        network.zero_grad()
        network(z, torch.tensor([3.0, 30.0])).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in network.parameters()])  # type: ignore[union-attr]
        recompute_activations(network)
    for one, other in zip(*gradients, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="label"):
        network(z, torch.tensor([3.0, 30.0]), of_seeds(range(2), 4))


@pytest.fixture
def run(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose base was imported from a file of generation A, with its store."""
    monkeypatch.chdir(tmp_path)
    path = trainer_file(tmp_path / "model-1.pt", network_of(CONFIG), "2.1.0")
    brought = bring.read(bring.Source(path, None, {"size": "8"}))
    into_run.write(brought, path, Path("run"), store, lambda text: None)
    return Path("run")


def test_a_student_of_such_a_teacher_is_a_copy_that_learns(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = checkpoint.load(run / "original")
    assert teacher.card.network == "lucidrains"
    assert teacher.card.sampler == {"kind": "ddim", "clip": 1.0}
    assert "diffusers does not know this network" in (run / "original/README.md").read_text()
    assert not (run / "original/model_index.json").exists()
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    for before, after in {
        "start_steps: 256": "start_steps: 4",
        "end_steps: 4": "end_steps: 2",
        "updates: 10000": "updates: 3",
        "batch_size: 64": "batch_size: 4",
        "warmup_updates: 100": "warmup_updates: 1",
    }.items():
        text = text.replace(before, after)
    recipe.write_text(text)
    assert cli.main(["distill", "-r", str(recipe), "--run", str(run)]) == 0
    student = checkpoint.load(run / "base_0")
    assert student.card.network == "lucidrains"
    assert student.card.num_steps == 2
    theirs, ours = (each.denoiser.network.state_dict() for each in (teacher, student))
    assert theirs.keys() == ours.keys()
    assert any(not torch.equal(theirs[name], ours[name]) for name in theirs)
    capsys.readouterr()
    folder = str(run / "base_0")
    drawn_to = ["--seeds", "0-1", "--out", "pictures.npz"]
    assert cli.main(["sample", "--checkpoint", folder, *drawn_to]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", "--json", folder]) == 0
    assert "lucidrains" in capsys.readouterr().out
    measures = ["--n", "4", "--metrics", "agreement,swd"]
    assert cli.main(["evaluate", "-r", str(recipe), "--run", str(run), *measures]) == 0


def test_the_recorded_or_stored_size_is_taken(
    tmp_path: Path, make_pictures: MakePictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = network_of(CONFIG)
    path = trainer_file(tmp_path / "model-1.pt", network, "2.1.0")
    prepare(make_pictures(), tmp_path / "store", sizes=[8])
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.0, 30.0])
    with torch.no_grad():
        output = network(z, time)
    np.savez("expected.npz", z=z.numpy(), time=time.numpy(), output=output.numpy())
    brought = bring.read(bring.Source(path, None, {}, Path("expected.npz")))
    assert brought.model.shape == (3, 8, 8)
    assert brought.proof.difference < 2e-6
    # a network of random weights knows no pictures, and what is asked here is their size
    monkeypatch.setattr(proof, "WORST_SHARE", float("inf"))
    by_pictures = bring.read(bring.Source(path, None, {}, None, Path("store")))
    assert (by_pictures.model.shape, by_pictures.proof.how) == ((3, 8, 8), "denoising")
    with pytest.raises(UsageError, match="how large"):
        bring.read(bring.Source(path, None, {}))
