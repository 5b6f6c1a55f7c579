"""Networks of NVlabs/edm: read from their pickles without running them, sampled and distilled."""

import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.edm_pickles import Persistent, Theirs, denoised, pickled, snapshot
from vdiff import cli
from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import ddim_step, scales
from vdiff.disk.tensor_facts import FormatError
from vdiff.errors import ModelFileError, UsageError, VdiffError
from vdiff.exchange import bring, proof
from vdiff.formats import opcodes, persistent, torch_file
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import contents_of
from vdiff.formats.edm import EdmFormat
from vdiff.formats.edm_frame import framed
from vdiff.formats.foreign import describe
from vdiff.model_folder.checkpoint import load
from vdiff.networks.network import as_network

RECORDED = Path(__file__).parents[2] / "shared" / "data" / "foreign" / "edm_1"
needs_file = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="shared/data/foreign is not beside the repository"
)

NETWORKS: dict[str, Callable[[], Theirs]] = {
    "SongUNet": Theirs,
    "SongUNet with classes, grey, three levels": lambda: Theirs(
        label_dim=4,
        in_channels=1,
        out_channels=1,
        channel_mult=[2, 1, 3],
        num_blocks=2,
        attn_resolutions=[8, 2],
        augment_dim=0,
    ),
    "DhariwalUNet with classes": lambda: Theirs(
        "DhariwalUNet", label_dim=5, model_channels=32, channel_mult=[1, 2, 4], num_blocks=2
    ),
    "DhariwalUNet too narrow for attention": lambda: Theirs("DhariwalUNet"),
}


def read(path: Path, **told: str) -> ForeignModel:
    return EdmFormat().read(contents_of(path), told)


def noisy(theirs: Theirs, levels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Pictures of the deviation 0.5 with noise, and classes."""
    rng = torch.Generator().manual_seed(3)
    shape = (len(levels), theirs.settings["in_channels"], 8, 8)
    x = 0.5 * torch.randn(shape, generator=rng)
    x = x + levels[:, None, None, None] * torch.randn(shape, generator=rng)
    classes = theirs.settings["label_dim"]
    return x, torch.arange(len(levels)) % classes if classes else None


LEVELS = torch.tensor([0.002, 0.1, 0.5, 2.0, 20.0, 80.0])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return snapshot(Theirs(), tmp_path / "network-snapshot-000001.pkl")


# ---- what is computed


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pictures_are_those_of_their_network_and_frame(name: str, tmp_path: Path) -> None:
    theirs = NETWORKS[name]()
    x_noisy, label = noisy(theirs, LEVELS)
    wanted = denoised(theirs, x_noisy, LEVELS, label)
    recorded: dict[str, Any] = {"x_noisy": x_noisy, "sigma": LEVELS, "denoised": wanted}
    if label is not None:
        recorded["label"] = label
    np.savez(tmp_path / "a.npz", **recorded)
    path = snapshot(theirs, tmp_path / "a.pkl")
    brought = bring.read(bring.Source(path, expected=tmp_path / "a.npz"))
    assert brought.format == "edm"
    assert brought.proof.difference < 2e-6
    assert wanted.std() > 0.1
    wrong = {**recorded, "denoised": wanted + 1e-4}
    np.savez(tmp_path / "a.npz", **wrong)
    with pytest.raises(ModelFileError, match="not the one that made"):
        bring.read(bring.Source(path, expected=tmp_path / "a.npz"))


def test_ddim_is_eulers_method_in_their_noise_levels(made: Path) -> None:
    model, theirs = read(made), Theirs()
    schedule = model.denoiser.schedule
    times = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(times)
    levels = (sigma / alpha).float()
    assert levels[0] == pytest.approx(80)
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    x = z / alpha[0].float()
    for i in range(5):
        t, s = (times[place].expand(2) for place in (i, i + 1))
        with torch.no_grad():
            z = ddim_step(model.denoiser(z, t), s, schedule)
        level = levels[i].expand(2)
        slope = (x - denoised(theirs, x, level)) / levels[i]
        x = x + (levels[i + 1] - levels[i]) * slope
    torch.testing.assert_close(z, x, atol=5e-6, rtol=5e-6)


def test_a_vp_network_predicts_noise_on_its_own_schedule(tmp_path: Path) -> None:
    theirs = Theirs()
    model = read(snapshot(theirs, tmp_path / "a.pkl", "VPPrecond", beta_d=12.0, M=400))
    assert model.diffusion == {
        "schedule": {"kind": "vp", "grid": 400, "beta_min": 0.1, "beta_d": 12.0},
        "predicts": "eps",
    }
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    alpha, sigma = scales(model.denoiser.schedule, t, z)
    assert alpha[1].item() ** 2 == pytest.approx(np.exp(-12 * 0.5**2 / 2 - 0.1 * 0.5))
    # D = x_noisy - s F, and what is told is (M - 1) t
    wanted = z / alpha - sigma / alpha * theirs(z, 399 * t.float())
    torch.testing.assert_close(model.denoiser(z, t).x, wanted, atol=1e-4, rtol=1e-5)


def test_an_iddpm_network_is_told_places_in_the_cosine_table(tmp_path: Path) -> None:
    theirs = Theirs("DhariwalUNet", out_channels=6)
    theirs.tensors["u"] = torch.zeros(1001)
    model = read(snapshot(theirs, tmp_path / "a.pkl", "iDDPMPrecond"))
    assert model.diffusion == {"schedule": {"kind": "cosine", "grid": 1000}, "predicts": "eps"}
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([0.25, 0.8], dtype=torch.float64)
    wanted = theirs(z, torch.tensor([249.0, 799.0]))[:, :3]
    # float32 knows angles of 799 to 3e-5
    torch.testing.assert_close(model.denoiser(z, t).eps, wanted, atol=1e-4, rtol=1e-5)


# ---- nothing is run


def test_the_source_in_a_pickle_is_never_run_and_its_names_are_told(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: object, **more: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    monkeypatch.setattr(torch, "load", refused)
    assert read(made).num_classes == 0
    told = describe(made)
    assert told.kind == "NVlabs pickle"
    named = told.facts["names_that_would_be_executed"]
    assert "torch_utils.persistence._reconstruct_persistent_obj" in named
    assert "CC BY-NC-SA" in told.facts["licence"]
    assert told.facts["widths"] == [16, 32]
    assert {fact.name for fact in told.tensors} == {f"model.{name}" for name in Theirs().tensors}


class Bait:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_call_in_the_place_of_a_tensor_is_not_made(tmp_path: Path) -> None:
    theirs = Theirs()
    path = snapshot(theirs, tmp_path / "a.pkl")
    content = path.read_bytes()
    assert content.count(b"_load_from_bytes") == 1
    path.write_bytes(content.replace(b"\x10_load_from_bytes", b"\x10_load_from_evil!"))
    with pytest.raises(ModelFileError, match="names a storage in a way that PyTorch does not"):
        bring.read(bring.Source(path))
    path.write_bytes(pickled({"ema": Bait(tmp_path / "touched"), "x": Theirs().settings}))
    with pytest.raises(VdiffError):
        bring.read(bring.Source(path))
    assert not (tmp_path / "touched").exists()


# ---- what is refused


def refusal(path: Path, **told: str) -> VdiffError:
    with pytest.raises(VdiffError) as caught:
        bring.read(bring.Source(path, told=told))
    return caught.value


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "NCSN++": ({"embedding_type": "fourier"}, {}, "NCSN++"),
    "NCSN++ by its encoder": ({"encoder_type": "residual"}, {}, "NCSN++"),
    "another filter": ({"resample_filter": [1, 3, 3, 1]}, {}, "filter"),
    "VE": ({}, {"frame": "VEPrecond"}, "variance-exploding"),
    "EDM2": ({}, {"frame": "Precond"}, "`Precond`"),
    "a setting of a fork": ({"gated": True}, {}, "gated"),
    "a width that is not in the tensors": ({"model_channels": 32}, {}, r"and should be \[32"),
    "10^12 parameters": ({"model_channels": 2**24, "channel_mult": [2**24]}, {}, "`first`"),
    "a million levels": ({"channel_mult": [1] * 10**6}, {}, "channel_mult"),
    "a million blocks": ({"num_blocks": 10**6}, {}, "blocks"),
    "no size": ({"img_resolution": None}, {}, "img_resolution"),
    "a size that cannot be halved": ({"img_resolution": 7}, {}, "image_size"),
    "a list in the place of a number": ({"model_channels": [[[]]]}, {}, "model_channels"),
    "a number of very many digits": ({"num_blocks": 10**5000}, {}, "num_blocks"),
    "half a picture": ({"out_channels": 1}, {}, "out_channels"),
    "no deviation": ({}, {"sigma_data": 0.0}, "sigma_data"),
    "an endless deviation": ({}, {"sigma_data": float("inf")}, "sigma_data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_computed_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    settings, more, words = REFUSED[name]
    theirs = Theirs()
    theirs.settings |= settings
    path = snapshot(theirs, tmp_path / "a.pkl", **more)
    with pytest.raises(VdiffError, match=words) as caught:
        bring.read(bring.Source(path))
    assert caught.value.fix
    described = describe(path)
    assert described.kind == "NVlabs pickle"


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    theirs = Theirs()
    theirs.tensors.pop("enc.4x4_block0.qkv.bias")
    theirs.tensors["enc.4x4_block0.extra.weight"] = torch.zeros(2)
    theirs.tensors["map_layer0.weight"] = torch.zeros(3, 3)
    problem = refusal(snapshot(theirs, tmp_path / "a.pkl")).problem
    for words in (
        "lacks `enc.4x4_block0.qkv.bias`",
        "has `enc.4x4_block0.extra.weight` too",
        "`map_layer0.weight` is [3, 3] and should be [64, 16]",
    ):
        assert words in problem


def test_a_shape_of_very_many_numbers_on_few_bytes_is_not_made(tmp_path: Path) -> None:
    theirs = Theirs()
    theirs.tensors["map_layer0.weight"] = torch.zeros(1).expand(10**6, 10**6)
    path = snapshot(theirs, tmp_path / "a.pkl")
    assert path.stat().st_size < 2**20
    assert "in one another's place" in refusal(path).problem


def test_another_filter_in_the_tensors_is_refused(tmp_path: Path) -> None:
    theirs = Theirs()
    theirs.tensors["enc.4x4_down.conv0.resample_filter"] = torch.full((1, 1, 2, 2), 0.5)
    assert "filter" in refusal(snapshot(theirs, tmp_path / "a.pkl")).problem


def test_views_of_one_storage_are_read_each_by_itself(tmp_path: Path) -> None:
    theirs = Theirs()
    whole = torch.cat([theirs.tensors["map_layer0.weight"].T.flatten(), torch.zeros(7)])
    theirs.tensors["map_layer0.weight"] = whole[:-7].view(16, 64).T
    theirs.tensors["map_layer0.bias"] = whole[64:128]
    network = read(snapshot(theirs, tmp_path / "a.pkl")).denoiser.network
    found = dict(network.named_parameters())
    assert torch.equal(
        found["inner.time_embedding.linear_1.weight"], theirs.tensors["map_layer0.weight"]
    )
    assert torch.equal(
        found["inner.time_embedding.linear_1.bias"], theirs.tensors["map_layer0.bias"]
    )


def test_a_pickle_without_a_network_says_what_it_has(tmp_path: Path) -> None:
    path = snapshot(Theirs(), tmp_path / "a.pkl")
    path.write_bytes(path.read_bytes().replace(b"\x03ema", b"\x03net"))
    assert "it has `net`, `loss_fn`" in refusal(path).problem


def test_the_range_of_noise_is_told_or_taken_for_given(made: Path) -> None:
    assert "80" in read(made).assumed[0]
    schedule = read(made, sigma_min="0.01", sigma_max="20").diffusion["schedule"]
    assert schedule == {
        "kind": "edm",
        "grid": 1024,
        "sigma_min": 0.01,
        "sigma_max": 20.0,
        "sigma_data": 0.5,
    }
    for wrong in ({"sigma_max": "0.001"}, {"sigma_max": "nan"}, {"sigma_min": "much"}):
        with pytest.raises(UsageError, match="sigma_m"):
            read(made, **wrong)


def test_recorded_noise_that_the_schedule_has_at_no_time_is_told(
    made: Path, tmp_path: Path
) -> None:
    x = torch.zeros(1, 3, 8, 8)
    np.savez(tmp_path / "a.npz", x_noisy=x, sigma=torch.tensor([300.0]), denoised=x)
    with pytest.raises(ModelFileError, match=r"sigma 300, .* from 0.002 to 80"):
        bring.read(bring.Source(made, expected=tmp_path / "a.npz"))


# ---- damaged files


def test_weights_are_passed_over_and_what_is_read_is_limited(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle of gigabytes of weights is followed with little memory; one of text is refused."""
    num_text = 1_000_000
    told = snapshot(Theirs(), tmp_path / "told.pkl", source="x" * num_text)
    assert read(told).shape == (3, 8, 8)
    monkeypatch.setattr(torch_file, "LARGEST_READ", 150_000)
    assert made.stat().st_size > 4 * torch_file.LARGEST_READ
    assert read(made).shape == (3, 8, 8)
    # the text stands in the pickle once
    assert "not a model file that vdiff knows" in refusal(told).problem


def test_a_pickle_that_is_cut_short_anywhere_is_refused(made: Path, tmp_path: Path) -> None:
    content = made.read_bytes()
    rng = random.Random(7)
    for place in [1, 2, 100, len(content) - 1, *(rng.randrange(len(content)) for _ in range(20))]:
        (tmp_path / "cut.pkl").write_bytes(content[:place])
        assert refusal(tmp_path / "cut.pkl").fix


def test_bytes_that_a_stretch_promises_and_a_file_has_not_are_missed() -> None:
    """A file may be sought beyond its end, so nobody else would."""
    whole = io.BytesIO(b"\x03\x00\x00\x00abc")
    assert opcodes._stretch(whole, 4).size == 3
    with pytest.raises(ValueError, match="fewer bytes than it says"):
        opcodes._stretch(io.BytesIO(b"\x04\x00\x00\x00abc"), 4)


@pytest.mark.parametrize("way", ["read", "readline"])
def test_no_more_of_a_pickle_is_taken_into_memory_than_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(torch_file, "LARGEST_READ", 10)
    path = tmp_path / "a.pkl"
    path.write_bytes(b"x" * 7 + b"\n" + b"y" * 7)
    with path.open("rb", buffering=0) as raw:
        file = torch_file._Frugal(raw)
        assert len(getattr(file, way)(8)) == 8
        with pytest.raises(FormatError, match="beside its tensors"):
            getattr(file, way)(8)


def outcome(path: Path) -> str:
    """What becomes of a file; any error but those of vdiff is raised."""
    try:
        bring.read(bring.Source(path))
    except VdiffError as err:
        return type(err).__name__ if err.problem and err.fix else "an error without words"
    return "a network"


def test_changed_bytes_give_an_error_in_words_or_a_network(made: Path, tmp_path: Path) -> None:
    """A fuzz: nothing else comes out, and nothing is run."""
    content = made.read_bytes()
    weights = len(content) // 8
    rng = random.Random(8)
    outcomes = set()
    for trial in range(60):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 3, 20])):
            # the beginning has most of what steers; the rest is mostly numbers
            last = weights if trial % 2 else len(changed)
            changed[rng.randrange(last)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        path = tmp_path / "changed.pkl"
        path.write_bytes(changed)
        outcomes.add(outcome(path))
    assert {"a network", "ModelFileError"} <= outcomes


@pytest.mark.parametrize("depth", [40, 20])
def test_networks_in_networks_without_end_are_none(depth: int, tmp_path: Path) -> None:
    """40 are too deep; 20 that each hold the next one twice are a million."""
    network = torch.nn.ModuleDict()
    below = network
    for _ in range(depth):
        inner = torch.nn.ModuleDict()
        below["a"] = inner
        below["b"] = inner
        below = inner
    content = {"ema": network, "other": Persistent("X", {}, "")}
    (tmp_path / "a.pkl").write_bytes(pickled(content))
    with pytest.raises(FormatError, match="nests its networks"):
        EdmFormat().read(contents_of(tmp_path / "a.pkl"), {})


def test_what_the_parts_of_a_network_hold_is_limited_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that many share is looked at as often as it is met."""
    monkeypatch.setattr(persistent, "MOST_TENSORS", 10_000)
    assert read(snapshot(Theirs(), tmp_path / "a.pkl")).shape == (3, 8, 8)
    many = {f"k{number}": number for number in range(12_000)}
    told = snapshot(Theirs(), tmp_path / "b.pkl", **many)
    with pytest.raises(FormatError, match="endless many"):
        EdmFormat().read(contents_of(told), {})


# ---- recorded by their own code


@needs_file
def test_the_recorded_network_is_the_one_that_their_code_computed() -> None:
    path = RECORDED / "network-snapshot-000001.pkl"
    brought = bring.read(bring.Source(path, expected=RECORDED / "expected.npz"))
    assert brought.proof.difference < 1e-6
    network = brought.model.denoiser.network
    with np.load(RECORDED / "expected.npz") as file:
        recorded = {name: torch.from_numpy(file[name]) for name in file}
    inside = recorded["x_noisy"] / (recorded["sigma"] ** 2 + 0.25).sqrt()[:, None, None, None]
    inner = network.get_submodule("inner")
    with torch.no_grad():
        output = inner(inside, recorded["network_time"])
    torch.testing.assert_close(output, recorded["network_output"], atol=5e-7, rtol=0)


# ---- from end to end


def test_it_is_imported_sampled_inspected_and_distilled_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = snapshot(Theirs(label_dim=3), tmp_path / "edm.pkl")
    folder = tmp_path / "pictures"
    _pictures(folder)
    assert cli.main(["prepare", str(folder), "--out", "store", "--size", "8"]) == 0
    # a command takes it as it is
    told = ["sample", "--checkpoint", str(path), "-n", "1", "--out", "s", "--steps", "4"]
    assert cli.main(told) == 0
    run = Path("runs/edm")
    changes = {
        "data.path": str(tmp_path / "store"),
        "distill.start_steps": "4",
        "distill.end_steps": "2",
        "distill.updates": "3",
        "distill.batch_size": "4",
        "distill.warmup_updates": "0",
    }
    told = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    assert cli.main(["distill", "--from", str(path), *told]) == 0
    student = run / "base_0"
    capsys.readouterr()
    assert cli.main(["inspect", str(student), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_steps"] == 2
    for model in (run / "original", student):
        drawn = Path(f"of_{model.name}")
        told = [
            "sample",
            "--checkpoint",
            str(model),
            "-n",
            "2",
            "--out",
            str(drawn),
            "--steps",
            "2",
        ]
        assert cli.main(told) == 0
        assert len(list(drawn.glob("*.png"))) >= 2
    card = json.loads((run / "original" / "vdiff.json").read_text())
    assert card["network"] == "edm"
    assert card["origin"]["format"] == "edm"
    assert "CC BY-NC-SA 4.0" in card["origin"]["licence"]
    before = weights(run / "original")
    after = weights(student)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load(folder).denoiser.network.state_dict())


def _pictures(folder: Path) -> None:
    rng = np.random.default_rng(5)
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number}.png")


def test_the_frame_with_deviation_1_is_minus_the_network(made: Path) -> None:
    inner = as_network(read(made).denoiser.network.get_submodule("inner"))
    network = framed(inner, "edm_unet", 1.0, 0.25)
    z, time = torch.randn(2, 3, 8, 8), torch.tensor([-3.0, 4.0])
    with torch.no_grad():
        torch.testing.assert_close(network(z, time), -inner(z, time / 4), atol=1e-6, rtol=1e-6)


def test_a_label_is_asked_for_where_there_are_classes_and_only_there(tmp_path: Path) -> None:
    for kind in ("SongUNet", "DhariwalUNet"):
        for classes in (0, 3):
            model = read(snapshot(Theirs(kind, label_dim=classes), tmp_path / "a.pkl"))
            z, time, condition = proof.inputs(model)
            other = (
                Condition(torch.zeros(len(z), dtype=torch.int64)) if not classes else Condition()
            )
            with pytest.raises(ValueError, match="label"):
                model.denoiser.network(z, time, other)
            assert model.denoiser.network(z, time, condition).isfinite().all()
