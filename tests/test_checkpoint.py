"""Model folders: whole or not there at all, every damage found before use,
and diffusers pipelines as they stand.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.full_disk import full_disk
from vdiff.config import Section
from vdiff.diffusion import SCHEDULES
from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.prediction import Predicts
from vdiff.disk import whole_folder
from vdiff.drawing import asked
from vdiff.errors import DivergedError, MachineError, ModelFileError, UsageError
from vdiff.model_folder import card as model_card
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import MODEL, check_steps
from vdiff.model_folder.checkpoint import ModelCard
from vdiff.networks.fast import fast_on
from vdiff.networks.unet import UNetSection
from vdiff.randomness import Randomness
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim

SIZE = 8


def schedule(kind: str, grid: int) -> Section:
    return SCHEDULES.section(kind)(grid=grid)


def denoiser(
    kind: str = "cosine", predicts: Predicts = "v", grid: int = 64, scale: float = 0.05
) -> Denoiser:
    """A small network without a single weight that is zero."""
    section = UNetSection(width=8, multipliers=(1, 2), blocks=1, attention_at=(4,))
    generator = torch.Generator().manual_seed(7)
    network = section.build(SIZE, 1).eval()
    for name, weight in network.named_parameters():
        with torch.no_grad():
            weight.copy_(
                torch.randn(weight.shape, generator=generator) * scale
                + ("norm" in name and weight.ndim == 1)
            )
    return Denoiser(network, schedule(kind, grid).build(), predicts)  # type: ignore[attr-defined]


def card(kind: str = "cosine", predicts: str = "v", grid: int = 64, **more: Any) -> ModelCard:
    facts: dict[str, Any] = {
        "name": "base_2",
        "stage": 3,
        "num_steps": 8,
        "updates": 5,
        "shape": (1, SIZE, SIZE),
        "num_classes": 0,
        "num_parameters": 1,
        "network": "unet",
        "diffusion": {
            "schedule": schedule(kind, grid).model_dump(mode="json"),
            "predicts": predicts,
        },
        "recipe": "name: tiny\n",
        "parent": {"name": "base_1", "num_steps": 16, "hash": "0" * 64},
        "trajectory": {"train.adam_betas": (0.9, 0.99), "seed": 0},
    }
    facts |= more
    facts.setdefault("is_denoiser", facts["parent"] is None)
    facts.setdefault("times", facts["num_steps"] if facts["parent"] else None)
    return ModelCard(**facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "base_2", card(), denoiser())
    return tmp_path / "base_2"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "vdiff.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(whole_folder.sealed(content))


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_a_model_comes_back_as_it_was(folder: Path) -> None:
    loaded, before = checkpoint.load(folder), denoiser()
    fast_on(before.network, "cpu")
    t = torch.tensor([1.0, 0.5, 0.125], dtype=torch.float64)
    assert torch.equal(loaded.denoiser(noise(), t).x, before(noise(), t).x)
    assert not loaded.denoiser.network.training
    assert not any(weight.requires_grad for weight in loaded.denoiser.network.parameters())
    assert loaded.denoiser.predicts == "v"
    assert loaded.card == checkpoint.read_card(folder)
    assert (loaded.card.name, loaded.card.num_steps, loaded.card.times) == ("base_2", 8, 8)
    assert loaded.card.shape == (1, SIZE, SIZE)
    assert loaded.card.trajectory == {"train.adam_betas": [0.9, 0.99], "seed": 0}
    assert loaded.card.made_by.startswith("vdiff ")
    assert {"python", "torch"} <= loaded.card.versions.keys()


def test_saving_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = checkpoint.save(tmp_path / "again", card(), denoiser())
    assert again.files == checkpoint.read_card(folder).files


def test_every_file_is_listed_with_its_size_and_hash(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    listed = checkpoint.read_card(folder).files
    assert listed.keys() == files - {"vdiff.json", "README.md"}
    assert all(entry["size"] == (folder / name).stat().st_size for name, entry in listed.items())
    assert checkpoint.damage(folder) == []


def test_more_files_can_be_put_into_it(tmp_path: Path) -> None:
    saved = checkpoint.save(
        tmp_path / "m", card(), denoiser(), lambda target: (target / "a.txt").touch()
    )
    assert saved.files["a.txt"]["size"] == 0


@pytest.mark.parametrize(
    "harm", ["first byte", "middle bit", "last byte", "truncated", "longer", "missing"]
)
def test_every_damage_to_every_file_is_found_and_named(folder: Path, harm: str) -> None:
    for name in checkpoint.read_card(folder).files:
        path = folder / name
        before = path.read_bytes()
        path.unlink()
        if harm != "missing":
            path.write_bytes(harmed(before, harm))
        with pytest.raises(ModelFileError, match="is damaged \\(1 of 4 files\\)") as found:
            checkpoint.load(folder)
        assert found.value.where.startswith(f"{name}: ")
        path.write_bytes(before)
    assert checkpoint.load(folder).card.name == "base_2"


def harmed(content: bytes, harm: str) -> bytes:
    if harm == "truncated":
        return content[:-1]
    if harm == "longer":
        return content + b"\0"
    place = {"first byte": 0, "middle bit": len(content) // 2, "last byte": len(content) - 1}[harm]
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def test_a_folder_without_its_mark_is_no_model(folder: Path) -> None:
    (folder / "vdiff.json").unlink()
    assert not checkpoint.is_model_folder(folder)
    with pytest.raises(ModelFileError, match="not a finished folder"):
        checkpoint.load(folder)


def test_a_newer_format_is_refused_with_its_maker(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(format=3, made_by="vdiff 9.9"))
    with pytest.raises(
        ModelFileError, match=r"format 3, made by vdiff >= 9\.9; this vdiff knows up to 2"
    ) as found:
        checkpoint.load(folder)
    assert "upgrade" in found.value.fix


def test_what_a_later_vdiff_adds_to_the_card_is_not_in_the_way(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(taste="sweet"))
    assert checkpoint.load(folder).card.name == "base_2"


def test_an_unknown_network_or_schedule_names_what_is_missing(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(network="dit"))
    with pytest.raises(ModelFileError, match="unknown kind `dit` of network"):
        checkpoint.load(folder)
    rewritten(
        folder,
        lambda content: content.update(network="unet", diffusion={"schedule": {"kind": "odd"}}),
    )
    with pytest.raises(ModelFileError, match="noise process that this vdiff does not know"):
        checkpoint.load(folder)


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    made = denoiser()
    made.network.extra = torch.nn.Parameter(torch.ones(1))  # type: ignore[assignment]
    checkpoint.save(tmp_path / "m", card(), made)
    with pytest.raises(ModelFileError, match="do not fit"):
        checkpoint.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("in_channels", {"shape": [3, SIZE, SIZE]}),
        ("num_class_embeds", {"num_classes": 2}),
        ("sample_size", {"shape": [1, SIZE, 2 * SIZE]}),
        ("sample_size", {"shape": [1, 2 * SIZE, 2 * SIZE]}),
    ],
)
def test_a_card_that_contradicts_the_configuration_is_refused(
    folder: Path, name: str, change: dict[str, Any]
) -> None:
    rewritten(folder, lambda content: content.update(change))
    with pytest.raises(ModelFileError, match=f"contradicts itself: `{name}`"):
        checkpoint.load(folder)


def test_whoever_may_read_the_card_may_read_the_weights(folder: Path) -> None:
    weights, card = folder / "unet/diffusion_pytorch_model.safetensors", folder / "vdiff.json"
    assert weights.stat().st_mode == card.stat().st_mode


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, value: float) -> None:
    made = denoiser()
    with torch.no_grad():
        next(made.network.parameters())[0] = value
    with pytest.raises(DivergedError, match="not finite"):
        checkpoint.save(tmp_path / "m", card(), made)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def digest(folder: Path) -> Callable[[], dict[str, bytes]]:
    return lambda: {
        str(path): path.read_bytes() for path in sorted(folder.parent.rglob("*")) if path.is_file()
    }


def test_a_full_disk_leaves_the_old_folder_whole_and_nothing_beside(
    folder: Path, digest: Callable[[], dict[str, bytes]]
) -> None:
    before, model = digest(), denoiser()
    size = sum(weight.nbytes for weight in model.network.state_dict().values())
    with (
        full_disk(8000),
        pytest.raises(
            MachineError, match=f"the disk is full: {size:,} bytes are needed, [0-9,]+ are"
        ),
    ):
        checkpoint.save(folder, card(updates=6), denoiser(scale=0.1))
    assert digest() == before


def test_a_failure_half_way_leaves_the_old_folder_whole_and_nothing_beside(
    folder: Path, digest: Callable[[], dict[str, bytes]]
) -> None:
    def fail(target: Path) -> None:
        raise ZeroDivisionError

    before = digest()
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(folder, card(updates=6), denoiser(scale=0.1), fail)
    assert digest() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_a_failure_of_the_machine(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="cannot write"):
        checkpoint.save(tmp_path / "m", card(), denoiser())


def test_saving_over_a_model_replaces_it(folder: Path) -> None:
    checkpoint.save(folder, card(updates=6), denoiser(scale=0.1))
    assert checkpoint.load(folder).card.updates == 6
    assert [path.name for path in folder.parent.iterdir()] == ["base_2"]


def test_a_model_that_a_killed_writer_had_set_aside_comes_back(folder: Path) -> None:
    folder.rename(folder.parent / ".base_2.partial-old-123")
    (folder.parent / ".base_2.partial-123" / "unet").mkdir(parents=True)
    whole_folder.clean(folder.parent, MODEL)
    assert checkpoint.load(folder).card.name == "base_2"
    assert [path.name for path in folder.parent.iterdir()] == ["base_2"]


@pytest.fixture
def pipeline_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Opens a model folder with diffusers, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    diffusers = pytest.importorskip("diffusers")
    diffusers.utils.logging.disable_progress_bar()

    def opened(folder: Path) -> Any:
        pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return opened


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def ours(model: Denoiser, num_steps: int) -> Tensor:
    z = torch.randn(4, 1, SIZE, SIZE, generator=seeded())
    return Ddim()(model, z, num_steps, Randomness.for_images(torch.arange(4)), NOTHING, 8)


@pytest.mark.parametrize("kind", ["cosine", "cosine_logsnr", "betas"])
@pytest.mark.parametrize("predicts", ["v", "x"])
def test_diffusers_opens_the_folder_and_draws_the_same_pictures(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    pipeline_of: Callable[[Path], Any],
    kind: str,
    predicts: Predicts,
) -> None:
    told = card(kind, predicts, 1024, parent=None)
    checkpoint.save(tmp_path / "m", told, denoiser(kind, predicts, 1024))
    model = checkpoint.load(tmp_path / "m").denoiser
    pipeline = pipeline_of(tmp_path / "m")
    for num_steps in (8, 4, 1):
        theirs = pipeline(
            4, generator=seeded(), num_inference_steps=num_steps, output_type="np"
        ).images
        found = (ours(model, num_steps) / 2 + 0.5).permute(0, 2, 3, 1)
        assert (found.clamp(0, 1) - torch.from_numpy(theirs)).abs().max() < 1e-4
        assert ((found > 0) & (found < 1)).float().mean() > 0.2  # not only black and white
        assert found.std() > 0.02
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_diffusers_draws_the_same_with_a_model_that_predicts_eps(
    tmp_path: Path, pipeline_of: Callable[[Path], Any]
) -> None:
    """Before the last clamp: x = (z - sigma eps) / alpha is far from [-1, 1] for weights
    that were never trained.

    A linear table still has some signal at t = 1. The other schedules end at alpha = 5e-5, where no
    two programs agree.
    """
    checkpoint.save(tmp_path / "m", card("betas", "eps", 1024), denoiser("betas", "eps", 1024))
    model, pipeline = checkpoint.load(tmp_path / "m").denoiser, pipeline_of(tmp_path / "m")
    for num_steps in (8, 4, 1):
        pipeline.scheduler.set_timesteps(num_steps)
        z = torch.randn(4, 1, SIZE, SIZE, generator=seeded())
        for time in pipeline.scheduler.timesteps:
            with torch.no_grad():
                z = pipeline.scheduler.step(pipeline.unet(z, time).sample, time, z).prev_sample
        found = ours(model, num_steps)
        assert (found - z).abs().max() < 1e-4 * found.abs().max()


OF_FORMAT_1 = [
    "name",
    "stage",
    "num_steps",
    "is_distilled",
    "updates",
    "shape",
    "num_classes",
    "num_parameters",
    "network",
    "diffusion",
    "recipe",
    "parent",
    "data",
    "trajectory",
    "versions",
    "made_by",
    "format",
    "files",
]
"""The keys of a manifest of format 1, in their order, as version 0.1 wrote them;
the checksum of the manifest itself aside.
"""


@pytest.mark.parametrize("is_student", [True, False])
def test_a_model_that_an_older_vdiff_would_understand_is_written_for_it(
    tmp_path: Path, is_student: bool
) -> None:
    told = card() if is_student else card(parent=None)
    checkpoint.save(tmp_path / "m", told, denoiser())
    content = json.loads((tmp_path / "m/vdiff.json").read_text())
    assert [name for name in content if name in OF_FORMAT_1] == OF_FORMAT_1
    assert not {"times", "sampler", "guidance", "is_denoiser", "codec"} & content.keys()
    assert (content["format"], content["is_distilled"]) == (1, is_student)
    found = checkpoint.read_card(tmp_path / "m")
    assert (found.times, found.is_denoiser) == ((8, False) if is_student else (None, True))


@pytest.mark.parametrize(
    "new",
    [
        {"times": 64},
        {"times": None},
        {"times": 8, "parent": None},
        {"sampler": {"kind": "ancestral"}},
        {"guidance": {"kind": "classifier_free", "scale": 3.0}},
        {"is_denoiser": True},
        {"is_denoiser": False, "parent": None},
        {"codec": "vae"},
        {"codec": {"kind": "vae", "scale": 0.18}},
    ],
    ids=str,
)
def test_what_an_older_vdiff_would_misunderstand_is_refused_by_it(
    tmp_path: Path, new: dict[str, Any]
) -> None:
    checkpoint.save(tmp_path / "m", card(**new), denoiser())
    content = json.loads((tmp_path / "m/vdiff.json").read_text())
    assert content["format"] == 2
    assert "is_distilled" not in content
    found = checkpoint.read_card(tmp_path / "m")
    assert {name: getattr(found, name) for name in new} == new
    assert model_card.parse(model_card.content(found), tmp_path) == found


def test_a_base_is_not_told_that_it_was_distilled() -> None:
    for told, words in (
        (card(), "was distilled to 8 steps"),
        (card(parent=None, times=8), "knows the 8 times i / 8 only"),
    ):
        with pytest.raises(UsageError, match=words):
            check_steps(told, 9, told.name)
        noisy = asked.doubts(told, 8, Ancestral(mix=0.5))
        assert any("was distilled" in doubt for doubt in noisy) == told.is_distilled


def test_a_model_with_a_codec_or_guidance_that_is_not_known_here_is_not_drawn_with(
    tmp_path: Path,
) -> None:
    checkpoint.save(tmp_path / "coded", card(codec={"kind": "vae"}), denoiser())
    checkpoint.save(tmp_path / "guided", card(guidance={"kind": "free"}), denoiser())
    with pytest.raises(ModelFileError, match="unknown kind `vae` of codec"):
        checkpoint.load(tmp_path / "coded")
    with pytest.raises(ModelFileError, match="meant to be guided"):
        checkpoint.load(tmp_path / "guided")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"times": 4}, "knows 4 times and is meant for 8 steps"),
        ({"times": 0}, "`times`"),
        ({"sampler": {"eta": 1}}, "`sampler`"),
        ({"codec": {}}, "`codec"),
        ({"is_denoiser": "yes"}, "`is_denoiser`"),
    ],
)
def test_a_card_that_contradicts_itself_is_damaged(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    folder = tmp_path / "m"
    checkpoint.save(folder, card(times=64), denoiser())
    rewritten(folder, lambda content: content.update(change))
    with pytest.raises(ModelFileError, match="is damaged") as found:
        checkpoint.read_card(folder)
    assert problem in found.value.problem


def test_more_steps_than_times_are_refused_by_what_the_card_says() -> None:
    model_card.check_steps(card(times=64), 64, "m")
    model_card.check_steps(card(parent=None), 10_000, "m")
    with pytest.raises(UsageError, match="`m` knows the 64 times i / 64 only"):
        model_card.check_steps(card(times=64), 65, "m")
    with pytest.raises(
        UsageError, match="`m` was distilled to 8 steps and knows no times between them"
    ):
        model_card.check_steps(card(), 9, "m")
