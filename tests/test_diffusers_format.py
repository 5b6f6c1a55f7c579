"""Folders of diffusers, in every layout that people have, come in exactly;
those that cannot are refused by name.
"""

import builtins
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.process import DiffusionSection
from vdiff.disk.tensor_facts import FormatError
from vdiff.errors import MachineError, ModelFileError, VdiffError
from vdiff.exchange import bring, into_run, proof, take
from vdiff.formats import diffusers_schedule
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import contents_of
from vdiff.formats.diffusers import DiffusersFormat
from vdiff.model_folder import checkpoint
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim

diffusers = pytest.importorskip("diffusers")

SHARED = Path(__file__).parents[2] / "shared" / "data" / "foreign"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="shared/data/foreign is not beside the repository"
)

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
WEIGHTS = "unet/diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    diffusers.utils.logging.disable_progress_bar()


def network(kind: str = "UNet2DModel", **more: Any) -> Any:
    torch.manual_seed(0)
    made = getattr(diffusers, kind)(**(CONFIG if kind == "UNet2DModel" else {}) | more).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return made


def pipeline(path: Path, made: Any, noise: dict[str, Any] | None = None, **how: Any) -> Path:
    place = "unet" if isinstance(made, diffusers.UNet2DModel) else "transformer"
    made.save_pretrained(path / place, **how)
    scheduler = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction", **(noise or {})}
    (path / "scheduler").mkdir()
    (path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return path


def read(path: Path, **asked: str) -> ForeignModel:
    return DiffusersFormat().read(contents_of(path), asked)


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    content |= values
    path.write_text(
        json.dumps({name: value for name, value in content.items() if value != "absent"})
    )


def difference(model: ForeignModel, made: Any) -> float:
    """From what diffusers computes: the prediction alone."""
    z, time, condition = proof.inputs(model)
    with torch.no_grad():
        theirs = made(z, time, class_labels=condition.label).sample[:, : z.shape[1]]
    return float((proof.output_of(model, z, time, condition) - theirs).abs().max())


def flat(path: Path) -> None:
    for each in list(path.glob("*/*")):
        each.rename(path / each.name)
    shutil.rmtree(path / "unet")


def old_names(path: Path) -> None:
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path / f"{WEIGHTS}.safetensors")
    for new, old in words.items():
        tensors = {name.replace(f".{new}.", f".{old}."): each for name, each in tensors.items()}
    assert "mid_block.attentions.0.query.weight" in tensors
    torch.save(tensors, path / f"{WEIGHTS}.bin")
    (path / f"{WEIGHTS}.safetensors").unlink()


def old_blocks(path: Path) -> None:
    types = ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]
    change(path / "unet/config.json", down_block_types=types)


def without_defaults(path: Path) -> None:
    names = ("attention_head_dim", "norm_eps", "flip_sin_to_cos", "freq_shift", "dropout")
    change(path / "unet/config.json", **dict.fromkeys(names, "absent"))


LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "plain": ({}, lambda path: None),
    "flat": ({}, flat),
    "pickled": ({"safe_serialization": False}, lambda path: None),
    "sharded": ({"max_shard_size": "20KB"}, lambda path: None),
    "sharded pickles": ({"max_shard_size": "20KB", "safe_serialization": False}, lambda path: None),
    "a sharded variant": ({"max_shard_size": "20KB", "variant": "fp32"}, lambda path: None),
    "old names": ({}, old_names),
    "old blocks": ({}, old_blocks),
    "silent": ({}, without_defaults),
    "flat and old": ({}, lambda path: (old_names(path), flat(path))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_every_layout_computes_what_diffusers_computes(
    layout: str, tmp_path: Path
) -> None:
    how, alter = LAYOUTS[layout]
    made = network()
    path = pipeline(tmp_path / "theirs", made, **how)
    alter(path)
    brought = bring.read(bring.Source(path))
    assert brought.model.network == "unet"
    assert brought.model.assumed == ()
    assert difference(brought.model, made) < 5e-6
    # diffusers itself reads every one of these
    assert brought.proof.how == "outputs"
    assert brought.proof.difference < 5e-6


def test_a_variant_alone_becomes_float32_and_that_is_said(tmp_path: Path) -> None:
    made = network().half()
    path = pipeline(tmp_path / "theirs", made, variant="fp16")
    brought = bring.read(bring.Source(path))
    assert {weight.dtype for weight in brought.model.denoiser.network.parameters()} == {
        torch.float32
    }
    assert "fp16.safetensors" in brought.model.assumed[0]
    assert difference(brought.model, made.float()) < 5e-6
    full = network()
    full.save_pretrained(path / "unet")
    assert difference(read(path), full) < 5e-6, "the full weights come first"


def test_a_network_alone_is_taken_with_what_is_told_of_its_noise(tmp_path: Path) -> None:
    made = network()
    made.save_pretrained(tmp_path / "alone")
    found = contents_of(tmp_path / "alone")
    readings = DiffusersFormat().candidates(found, {})
    assert {reading["prediction_type"] for reading in readings} == {"epsilon", "v_prediction"}
    told = {"prediction_type": "sample", "beta_schedule": "scaled_linear", "beta_end": "0.012"}
    assert DiffusersFormat().candidates(found, told) == [told]
    model = read(tmp_path / "alone", **told)
    assert model.diffusion["predicts"] == "x"
    assert difference(model, made) < 5e-6


def test_a_first_version_that_is_silent_on_heads_is_read_both_ways(tmp_path: Path) -> None:
    path = pipeline(tmp_path / "theirs", network(attention_head_dim=None))
    change(path / "unet/config.json", _diffusers_version="0.1.3", attention_head_dim="absent")
    readings = DiffusersFormat().candidates(contents_of(path), {})
    assert [reading["head_dim"] for reading in readings] == ["8", "none"]
    assert difference(read(path, head_dim="none"), network(attention_head_dim=None)) < 5e-6
    assert difference(read(path, head_dim="8"), network(attention_head_dim=8)) < 5e-6
    assert difference(read(path), network(attention_head_dim=None)) > 1e-4


KINDS: dict[str, dict[str, Any]] = {
    "classes": {"num_class_embeds": 5},
    "no square": {"sample_size": (8, 16)},
    "a learned variance": {"out_channels": 6},
    "shift": {"resnet_time_scale_shift": "scale_shift", "downsample_padding": 0, "freq_shift": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_network_may_be_told_comes_in(kind: str, tmp_path: Path) -> None:
    made = network(**KINDS[kind])
    noise = {"variance_type": "learned_range"} if kind == "a learned variance" else {}
    model = read(pipeline(tmp_path / "theirs", made, noise))
    assert model.shape == (3, 8, 16 if kind == "no square" else 8)
    assert model.num_classes == (5 if kind == "classes" else 0)
    assert (model.network, model.assumed) == ("unet", ())
    assert difference(model, made) < 5e-6


# --- networks that diffusers computes

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "no middle": ("UNet2DModel", {"mid_block_type": None}),
    "center": ("UNet2DModel", {"center_input_sample": True, "num_class_embeds": 4}),
    "transformer": (
        "DiTTransformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 3,
            "out_channels": 6,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_embeds_ada_norm": 4,
        },
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_networks_are_computed_by_diffusers_and_go_into_a_model_folder(
    what: str, tmp_path: Path
) -> None:
    kind, settings = OTHERS[what]
    made = network(kind, **settings)
    path = pipeline(tmp_path / "theirs", made)
    brought = bring.read(bring.Source(path))
    assert brought.model.network == "diffusers"
    assert brought.proof.how == "outputs"
    into_run.write(brought, path, tmp_path / "run", None, print)
    loaded = checkpoint.load(tmp_path / "run/original")
    model = take.model_of(loaded)
    assert difference(model, made) < 5e-6
    # it trains as it draws: no dropout, no class left out at random
    z, time, condition = proof.inputs(model)
    before = loaded.denoiser.network(z, time, condition)
    assert torch.equal(loaded.denoiser.network.train()(z, time, condition), before)
    if model.num_classes:
        with pytest.raises(ValueError, match="needs a `label`"):
            loaded.denoiser.network(z, time)


def test_without_diffusers_such_a_network_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pipeline(tmp_path / "theirs", network(mid_block_type=None))
    plain = pipeline(tmp_path / "plain", network())
    find = importlib.util.find_spec
    real = builtins.__import__

    def refuse(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "diffusers":
            raise ModuleNotFoundError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "diffusers" else find(name)
    )
    monkeypatch.setattr("vdiff.formats.diffusers_network.find_spec", lambda name: None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MachineError, match="not installed") as found:
        read(path)
    assert found.value.fix == "pip install 'vdiff-distill[diffusers]'"
    assert bring.read(bring.Source(plain)).proof.how == "none"


# --- schedules


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("table", diffusers_schedule.TABLES)
def test_every_table_is_that_of_diffusers(table: str, zero: bool, tmp_path: Path) -> None:
    theirs = diffusers.DDPMScheduler(
        500, 0.0002, 0.015, beta_schedule=table, rescale_betas_zero_snr=zero
    )
    config = {**theirs.config, "prediction_type": "v_prediction"}
    section = DiffusionSection.model_validate(diffusers_schedule.diffusion(config, tmp_path))
    t = (torch.arange(500, dtype=torch.float64) + 1) / 500
    signal = section.schedule.build().alpha_sigma(t)[0] ** 2
    assert torch.allclose(signal, theirs.alphas_cumprod.double(), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("table", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_table_in_numbers_is_recognised_and_kept_in_float64(table: str) -> None:
    theirs = diffusers.DDPMScheduler(1000, 0.0001, 0.02, beta_schedule=table)
    found = diffusers_schedule.recognised(theirs.betas.tolist())
    kind = {"kind": "cosine"} if table == "squaredcos_cap_v2" else {"kind": "betas", "table": table}
    assert kind.items() <= found.items()
    assert found.get("first", 0.0001) == 0.0001
    assert found.get("last", 0.02) == 0.02
    other = [*theirs.betas.tolist()[:-1], 0.5]
    assert diffusers_schedule.recognised(other) == {"kind": "betas", "table": other}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "variance exploding": ({"_class_name": "ScoreSdeVeScheduler"}, "grows without limit"),
    "edm": ({"_class_name": "EDMEulerScheduler"}, "`EDMEulerScheduler` belongs to a model"),
    "flow": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow model"),
    "a prediction": ({"prediction_type": "flow_prediction"}, "predicts `flow_prediction`"),
    "a table": ({"beta_schedule": "somebody's"}, "table of betas is `somebody's`"),
    "noise alone": (
        {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"},
        "no signal is left",
    ),
    "words": ({"trained_betas": ["a"]}, "no list of up to"),
    "a number": ({"beta_end": [1]}, "a number of the scheduler is none"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_noise_process_of_another_kind_is_refused_by_name(what: str, tmp_path: Path) -> None:
    noise, words = REFUSED[what]
    with pytest.raises(ModelFileError, match=re.escape(words)):
        read(pipeline(tmp_path / "theirs", network(), noise))


def test_a_network_that_predicts_noise_is_kept_within_the_pictures(tmp_path: Path) -> None:
    for number, (noise, wanted) in enumerate(
        [
            ({"prediction_type": "epsilon"}, {"kind": "ddim", "clip": 1.0}),
            (
                {"prediction_type": "epsilon", "clip_sample_range": 1.5},
                {"kind": "ddim", "clip": 1.5},
            ),
            ({"prediction_type": "sample"}, None),
        ]
    ):
        assert read(pipeline(tmp_path / str(number), network(), noise)).sampler == wanted


# --- faults


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def elsewhere(path: Path) -> None:
    other = path.parents[2] / "other.safetensors"
    path.rename(other)
    path.symlink_to(other)


def shard(path: Path) -> Path:
    return sorted((path / "unet").glob("*-of-*"))[1]


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no shard": (lambda path: shard(path).unlink(), "-00002-of-.* is missing"),
    "half a shard": (lambda path: cut(shard(path)), "-00002-of-.* is cut short"),
    "a link": (lambda path: elsewhere(shard(path)), "-00002-of-.* link to another place"),
    "a shard of another": (
        lambda path: save_file({"a": torch.zeros(1)}, shard(path)),
        "do not agree about",
    ),
    "a way out": (
        lambda path: change(
            path / f"{WEIGHTS}.safetensors.index.json", weight_map={"a": "../../x.safetensors"}
        ),
        r"names `../../x",
    ),
    "another class": (
        lambda path: change(path / "unet/config.json", _class_name="UNet2DConditionModel"),
        "`UNet2DConditionModel`, which vdiff does not compute",
    ),
    "latents": (lambda path: change(path / "model_index.json", vae=["a", "b"]), "draws latents"),
    "fourier": (
        lambda path: change(path / "unet/config.json", time_embedding_type="fourier"),
        "outside its domain",
    ),
    "10^12 parameters": (
        lambda path: change(path / "unet/config.json", block_out_channels=[8, 65536]),
        "does not fit the network",
    ),
    "10^12 by diffusers": (
        lambda path: change(
            path / "unet/config.json", block_out_channels=[8, 2**20], mid_block_type=None
        ),
        "does not fit the network",
    ),
    "no number of layers": (
        lambda path: change(path / "unet/config.json", layers_per_block=10**12),
        "layers_per_block",
    ),
    "no size": (lambda path: change(path / "unet/config.json", sample_size=None), "--size|no size"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_named(fault: str, tmp_path: Path) -> None:
    spoil, words = FAULTS[fault]
    path = pipeline(tmp_path / "theirs", network(), max_shard_size="20KB")
    spoil(path)
    with pytest.raises((VdiffError, FormatError)) as found:
        read(path)
    told = f"{found.value} {getattr(found.value, 'reason', '')}"
    assert re.search(words, told), told


def test_weights_in_flashpack_and_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = pipeline(tmp_path / "theirs", network())
    weights = path / f"{WEIGHTS}.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(ModelFileError, match=r"`conv_in\.bias` .* is not finite"):
        read(path)
    weights.rename(path / "unet/model.flashpack")
    with pytest.raises(FormatError, match="flashpack"):
        read(path)


def test_a_pickle_that_would_run_something_is_not_loaded(tmp_path: Path) -> None:
    class Bait:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    path = pipeline(tmp_path / "theirs", network())
    (path / f"{WEIGHTS}.safetensors").unlink()
    state = {**network().state_dict(), "a": Bait()}
    torch.save(state, path / f"{WEIGHTS}.bin")
    with pytest.raises(ModelFileError, match="would run"):
        bring.read(bring.Source(path))
    assert not (tmp_path / "ran").exists()


def test_the_cache_of_a_hub_links_to_its_own_blobs(tmp_path: Path) -> None:
    made = network()
    snapshot = pipeline(tmp_path / "models--a--b/snapshots/rev", made)
    blobs = tmp_path / "models--a--b/blobs"
    blobs.mkdir()
    weights = snapshot / f"{WEIGHTS}.safetensors"
    weights.rename(blobs / "hash.safetensors")
    weights.symlink_to(blobs / "hash.safetensors")
    assert difference(read(snapshot), made) < 5e-6


# --- files that diffusers wrote


@needs_shared
@pytest.mark.parametrize("name", ["diffusers_1", "diffusers_3", "diffusers_4", "diffusers_7"])
def test_folders_of_diffusers_give_the_recorded_outputs_and_samples(name: str) -> None:
    path = SHARED / name
    model = read(path)
    assert proof.of_file(model, path / "expected.npz").difference < 5e-6
    recorded = np.load(path / "expected.npz")
    condition = NOTHING
    if model.num_classes:
        condition = Condition(torch.from_numpy(recorded["noise_label"]))
    for num_steps in (4, 10, 20):
        z = torch.from_numpy(recorded["noise"])
        rng = Randomness.for_images(torch.arange(len(z)))
        with torch.no_grad():
            x = Ddim()(model.denoiser, z, num_steps, rng, condition)
        wanted = torch.from_numpy(recorded[f"ddim_{num_steps}_trailing_free"])
        # without clipping, eps models leave [-1, 1] far behind: relative to the largest value
        assert (x - wanted).abs().max() < 5e-6 * max(1.0, float(wanted.abs().max()))


@needs_shared
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing_tensor", r"lacks `down_blocks\.0\.downsamplers\.0\.conv\.weight`"),
        ("scheduler_only", "has no weights"),
    ],
)
def test_folders_that_are_not_whole_are_refused(name: str, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        bring.read(bring.Source(SHARED / "negative" / name))
