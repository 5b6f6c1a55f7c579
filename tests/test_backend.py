"""`vdiff sample --backend onnx`: the pictures of a graph that is exported once and kept."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import TinyRun
from vdiff.cli import main
from vdiff.diffusion.condition import Condition, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import CosineSchedule
from vdiff.drawing import onnx_graph
from vdiff.drawing.onnx_graph import OnnxSampler, cache_folder, check
from vdiff.drawing.pictures import draw_with
from vdiff.errors import ModelFileError, UsageError
from vdiff.formats.onnx_format import NEEDED
from vdiff.model_folder import checkpoint
from vdiff.networks.unet_section import UNetSection
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.sampler import Sampler

MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture
def run(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe and models of random weights:
    `base_0` (2 steps, with classes) and `base_1` (1 step, without).
    """
    monkeypatch.chdir(tiny_run.path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_run.path / "cache"))
    for number, (steps, classes) in enumerate([(2, 2), (1, None)]):
        torch.manual_seed(number)
        section = UNetSection(width=4, multipliers=(1, 2), blocks=1, num_classes=classes)
        network = section.build(8, 3)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.15)
        card = checkpoint.ModelCard(
            name=f"base_{number}",
            stage=number + 1,
            num_steps=steps,
            times=steps,
            updates=1,
            shape=(3, 8, 8),
            num_classes=classes or 0,
            num_parameters=sum(weight.numel() for weight in network.parameters()),
            network="unet",
            diffusion={"schedule": {"kind": "cosine", "grid": 64}, "predicts": "v"},
            recipe="",
            parent={"name": "original", "num_steps": 2 * steps, "hash": "0" * 64},
            is_denoiser=False,
        )
        place = tiny_run.path / "runs" / "tiny" / f"base_{number}"
        checkpoint.save(place, card, Denoiser(network, CosineSchedule(64), "v"))
    return tiny_run.path


def pretend_installed(monkeypatch: pytest.MonkeyPatch, missing: str = "") -> None:
    """All packages of the extra are found, but for one."""
    find = importlib.util.find_spec

    def found(name: str, *rest: Any) -> Any:
        if name in NEEDED:
            return None if name == missing else object()
        return find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def sample(*arguments: str, model: str = "base_0", code: int = 0) -> None:
    assert main(["sample", "--checkpoint", model, *arguments]) == code


def images(*arguments: str, model: str = "base_0") -> Any:
    sample(*arguments, "--out", "x.npz", "--force", model=model)
    with np.load("x.npz") as content:
        return content["images"].astype(int)


def loaded(name: str = "base_0") -> checkpoint.Checkpoint:
    return checkpoint.load(Path("runs/tiny") / name)


@needs_onnx
@pytest.mark.parametrize(("model", "options"), [("base_0", ["--clipped"]), ("base_1", [])])
def test_the_pictures_are_those_of_torch(run: Path, model: str, options: list[str]) -> None:
    seeds = ["--seeds", "3,1,7,9,20", "--batch-size", "4"]
    ours = images(*options, *seeds, model=model)
    theirs = images(*options, *seeds, "--backend", "onnx", model=model)
    assert ours.std() > 10
    # 0.001 of a range of 2 is an eighth of a level: it may tip a rounding
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.05
    # names and what a picture says are the same but for the backend
    told = []
    for backend in ("onnx", "torch"):
        sample("-n", "2", *options, "--backend", backend, "--force", model=model)
        [file] = Path("samples").iterdir()
        with Image.open(file) as picture:
            told.append(dict(picture.text))  # type: ignore[attr-defined]
    assert told[0].pop("vdiff.backend").startswith("ONNX Runtime ")
    assert told[0] == told[1]


@needs_onnx
def test_a_graph_is_exported_once_and_kept_by_the_models_sha256(run: Path) -> None:
    model = loaded("base_1")
    assert OnnxSampler(model, Ddim(), 1).is_new
    [folder] = cache_folder().iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["graph.json", "sampler.onnx"]
    assert not OnnxSampler(model, Ddim(), 1).is_new
    assert OnnxSampler(model, Ddim(clip=1.0), 1).is_new
    keys = {onnx_graph._key(each.card, Ddim(), 1) for each in (model, loaded("base_0"))}
    assert len(keys) == 2
    assert folder.name in keys


@pytest.mark.parametrize(
    "other",
    [
        {"diffusion": {"schedule": {"kind": "edm", "grid": 64}, "predicts": "v"}},
        {"shape": (3, 16, 16)},
        {"num_classes": 7},
        {"times": 64},
        {"network": "another"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_equal_weights_that_are_read_otherwise_have_a_graph_of_their_own(
    run: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    """Such as one file imported with two schedules; or somebody's folder, to spoil another's."""
    monkeypatch.setattr(onnx_graph, "version", lambda name: "1")
    card = loaded("base_0").card
    key = onnx_graph._key(card, Ddim(), 2)
    assert key == onnx_graph._key(card, Ddim(), 2)
    assert key != onnx_graph._key(replace(card, **other), Ddim(), 2)
    settings = {**card.files, "unet/config.json": {"size": 1, "sha256": "0" * 64}}
    assert key != onnx_graph._key(replace(card, files=settings), Ddim(), 2)


@needs_onnx
def test_a_damaged_graph_is_made_anew(run: Path) -> None:
    model = loaded("base_1")
    OnnxSampler(model, Ddim(), 1)
    [folder] = cache_folder().iterdir()
    file = folder / "sampler.onnx"

    def flip() -> None:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    for damage in (flip, lambda: file.write_bytes(b"short"), (folder / "graph.json").unlink):
        damage()
        again = OnnxSampler(model, Ddim(), 1)
        assert again.is_new
        assert not OnnxSampler(model, Ddim(), 1).is_new
    wanted = draw_with(model, [1, 2])
    assert float((again([1, 2], told_of(model, [1, 2])) - wanted).abs().max()) < 1e-3


def told_of(model: checkpoint.Checkpoint, seeds: list[int]) -> Condition:
    return of_seeds(seeds, model.card.num_classes)


@needs_onnx
def test_a_graph_that_draws_something_else_is_not_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdiff.formats import onnx_writing

    opened = onnx_writing.opened
    monkeypatch.setattr(
        onnx_writing, "opened", lambda path, *rest: lambda given: opened(path)(given) + 0.01
    )
    with pytest.raises(ModelFileError, match=r"differ by 0\.01"):
        OnnxSampler(loaded("base_1"), Ddim(), 1)
    assert list(cache_folder().iterdir()) == []


@pytest.mark.parametrize(
    ("sampler", "num_steps", "said"),
    [
        (Ancestral(1.0), 2, "is not DDIM"),
        (Ddim(eta=0.5), 2, "fresh noise"),
        (Ddim(clip=1.2, clip_noise=1.2), 2, "clips the noise"),
        (Ddim(), 5, "not of equal length"),
        (Ddim(), 17, "at most 16"),
    ],
)
def test_what_no_graph_holds_is_refused_with_the_reason(
    run: Path, monkeypatch: pytest.MonkeyPatch, sampler: Sampler, num_steps: int, said: str
) -> None:
    card = loaded().card
    pretend_installed(monkeypatch)
    with pytest.raises(UsageError, match=said):
        check(replace(card, times=8, num_steps=8), sampler, num_steps)
    check(card, Ddim(clip=1.0), 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "tensorrt"], "no backend `tensorrt`"),
        (["--backend", "onnx", "--strip"], "no steps between"),
        (["--backend", "onnx", "--gif"], "no steps between"),
        (["--backend", "onnx", "--device", "cuda"], "on the CPU"),
        (["--backend", "onnx", "--gpus", "2"], "one process"),
    ],
)
def test_what_the_backend_cannot_do_is_told_before_anything_is_drawn(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    sample(*options, code=2)
    assert said in capsys.readouterr().err
    assert not Path("samples").exists()


@pytest.mark.parametrize("package", NEEDED)
@pytest.mark.parametrize("way", [[], ["--dry-run"]])
def test_a_missing_package_is_told_with_the_extra(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    way: list[str],
) -> None:
    pretend_installed(monkeypatch, missing=package)
    code = main(["sample", "--checkpoint", "base_0", "--backend", "onnx", *way])
    said = capsys.readouterr().err
    assert code not in (0, 1)
    assert package in said
    assert "vdiff-distill[onnx]" in said
    assert not Path("samples").exists()


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vdiff" / "graphs"
    for told in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", told)
        assert cache_folder() == Path.home() / ".cache" / "vdiff" / "graphs"


def test_a_guided_model_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(loaded().card, guidance={"kind": "classifier_free"})
    pretend_installed(monkeypatch)
    with pytest.raises(UsageError, match="it is guided"):
        check(card, Ddim(), 2)
    card = replace(card, guidance={"kind": "input", "low": 1.0, "high": 4.0})
    with pytest.raises(UsageError, match="takes guidance as an input, for which a graph has no"):
        check(card, Ddim(), 2)
