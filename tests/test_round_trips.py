"""Out to another program and back: the same weights, bit for bit, and the same pictures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_checkpoint import card
from tests.test_diffusers_format import offline as offline
from tests.test_distiller import OURS, saved, their_weights
from tests.test_guided import case
from tests.test_guided import saved as saved_guided
from vdiff import cli
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint
from vdiff.networks.unet import UNet
from vdiff.recipe.text import shipped
from vdiff.samplers.advised import sampler_for
from vdiff.samplers.draw import draw


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(model: Checkpoint) -> dict[str, Tensor]:
    return dict(model.denoiser.network.state_dict())


def pictures(model: Checkpoint) -> Tensor:
    """Four, as `vdiff sample --steps 4` draws them."""
    card = model.card
    sampler = sampler_for(None, card.sampler, card.name, is_solvable=card.is_solvable).build()
    classes = model.card.num_classes
    condition = Condition(torch.arange(4) % classes) if classes else NOTHING
    times = model.card.times
    return draw(
        model.denoiser,
        sampler,
        range(4),
        model.card.shape,
        4,
        model_steps=times,
        condition=condition,
    )


def folder_of(name: str, diffusion: dict[str, object], **changes: object) -> Checkpoint:
    """A model folder with random weights; of a base, that knows all times."""
    torch.manual_seed(7)
    network = UNet.from_config(OURS | changes)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    section = DiffusionSection.model_validate(diffusion)
    model = Denoiser(network.eval(), section.schedule.build(), section.predicts)
    is_base = name == "original"
    steps = model.schedule.grid if is_base else 4
    facts = card(
        name=name,
        stage=0 if is_base else 3,
        num_steps=steps,
        times=None if is_base else steps,
        shape=(3, 8, 8),
        num_classes=network.config["num_class_embeds"] or 0,
        diffusion=diffusion,
        parent=None,
        recipe=shipped()["digits"].read_text(),
        sampler={"kind": "ddim", "clip": 1.0} if section.predicts == "eps" else None,
    )
    checkpoint.save(Path(name), facts, model)
    return checkpoint.load(Path(name))


def there_and_back(folder: Path, to: str, *told: str) -> Checkpoint:
    out = Path("out.pt" if to == "seed" else "out")
    assert cli.main(["export", str(folder), "--to", to, "--out", str(out)]) == 0
    assert cli.main(["import", str(out), "--out", "back", *told]) == 0
    return checkpoint.load(Path("back/original"))


def assert_equal(found: Checkpoint, wanted: Checkpoint) -> None:
    ours, theirs = weights(wanted), weights(found)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert found.card.times == wanted.card.times
    assert found.card.sampler == wanted.card.sampler
    drawn = pictures(wanted)
    assert float(drawn.std()) > 0.1
    assert torch.equal(pictures(found), drawn)


def test_from_the_seed_and_back_to_it() -> None:
    """With 4 heads, whose root is a power of two."""
    saved(Path("a.pt"), their_weights(width=16))
    told = ["--size", "8", "--heads", "4"]
    assert cli.main(["import", "a.pt", "--out", "run", *told]) == 0
    first = checkpoint.load(Path("run/original"))
    assert_equal(there_and_back(Path("run/original"), "seed", *told), first)


def test_a_student_of_vdiff_to_the_seed_and_back() -> None:
    """That program is fed i 16 where vdiff's network is fed i 16 + 15: only the layer behind the
    sines changes, and a factor of a norm goes into the layer of the time.
    """
    student = folder_of("base_3", {"schedule": {"kind": "cosine", "grid": 64}, "predicts": "v"})
    told = ["--size", "8", "--heads", "2"]
    back = there_and_back(Path("base_3"), "seed", *told)
    changed = ("time_embedding.linear_1.weight", "time_emb_proj", "norm2", "to_q")
    ours, theirs = weights(student), weights(back)
    assert ours.keys() == theirs.keys()
    kept = [name for name in ours if not any(part in name for part in changed)]
    assert len(kept) > len(ours) / 2
    for name in kept:
        assert torch.equal(ours[name], theirs[name]), name
    for name in ours:
        if "to_q" in name:  # times the root of 2, and divided by it
            torch.testing.assert_close(theirs[name], ours[name], rtol=2.5e-7, atol=0)
    assert back.card.times == student.card.times
    # its table ends at another alpha: the noise level of the first step is not vdiff's
    z = pictures(student)
    for index in range(3):
        t = torch.full((4,), (index + 1) / 4, dtype=torch.float64)
        with torch.no_grad():
            one, other = student.denoiser(z, t).v, back.denoiser(z, t).v
        assert float(one.std()) > 0.1
        assert float((one - other).abs().max()) < 2e-5


COSINE = {"schedule": {"kind": "cosine", "grid": 64}, "predicts": "v"}
LINEAR = {"schedule": {"kind": "betas", "table": "linear", "grid": 1000}, "predicts": "eps"}
ZERO = {
    "schedule": {
        "kind": "betas",
        "table": "squaredcos_cap_v2",
        "grid": 100,
        "zero_terminal": True,
    },
    "predicts": "x",
}


@pytest.mark.parametrize("name", ["original", "base_3"])
@pytest.mark.parametrize("diffusion", [COSINE, LINEAR, ZERO], ids=["cosine", "linear", "zero"])
@pytest.mark.parametrize("classes", [None, 3])
def test_to_diffusers_and_back(
    name: str, diffusion: dict[str, object], classes: int | None
) -> None:
    pytest.importorskip("diffusers")
    model = folder_of(name, diffusion, num_class_embeds=classes)
    back = there_and_back(Path(name), "diffusers")
    assert_equal(back, model)
    assert back.denoiser.predicts == model.denoiser.predicts
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    scales = zip(
        model.denoiser.schedule.alpha_sigma(t),
        back.denoiser.schedule.alpha_sigma(t),
        strict=True,
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in scales)


@pytest.mark.parametrize(
    "name", ["convolutions, legacy", "residual blocks, new order, classes, variance"]
)
def test_from_guided_diffusion_to_diffusers_and_back(name: str) -> None:
    pytest.importorskip("diffusers")
    theirs, network, halving = case(name)
    theirs.updown_at = halving
    saved_guided(theirs, Path("ema.pt"))
    process = {"size": "8", "schedule": "linear", "steps": "1000", "predicts": "eps"}
    told = [f"{key}={value}" for key, value in (network | process).items()]
    options = [part for each in told for part in ("--assume", each)]
    assert cli.main(["import", "ema.pt", "--out", "run", *options]) == 0
    first = checkpoint.load(Path("run/original"))
    back = there_and_back(Path("run/original"), "diffusers")
    assert_equal(back, first)
    # and the weights that came back are those of the file
    z = pictures(first)
    time = torch.tensor([0.0, 10.0, 400.0, 999.0])
    label = torch.arange(4) % 3 if first.card.num_classes else None
    with torch.no_grad():
        found = back.denoiser.network(z, time, Condition(label))
    wanted = theirs(z, time, label)[:, :3]
    torch.testing.assert_close(found, wanted, atol=5e-6, rtol=5e-6)
