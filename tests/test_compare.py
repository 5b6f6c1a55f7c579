"""`vdiff compare`: two models from the same noise; numbers stand together only where they may."""

import json
from pathlib import Path

import pytest
import torch

from tests.browser import complaints, opened, requests
from tests.test_report import check, evaluated
from vdiff.cli import app
from vdiff.diffusion.condition import Condition
from vdiff.images.images import decode, to_float, to_uint8
from vdiff.metrics.agreement import agreement
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import read_card
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert app.run(["compare", *arguments, "--json", "--device", "cpu", "--force"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_numbers_are_those_of_the_pictures_from_the_same_noise(
    distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, "original", "base_2", "--seeds", "3,5")
    pictures = []
    for name in ("original", "base_2"):
        model = checkpoint.load(distilled / name)
        card = model.card
        condition = Condition(torch.tensor([3, 5]) % 2)
        drawn = draw(
            model.denoiser,
            Ddim(),
            [3, 5],
            card.shape,
            card.num_steps,
            model_steps=card.times,
            condition=condition,
        )
        pictures.append(to_float(to_uint8(drawn)))
    assert found["agreement"] == agreement(*pictures)._asdict()
    assert decode(Path("compare.png").read_bytes(), 3).shape[0] == 3


def test_a_run_stands_for_its_last_stage_and_a_model_agrees_with_itself(
    distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, str(distilled), str(distilled / "base_2"), "--seeds", "0-1")
    assert found["agreement"] == {"mse": 0.0, "psnr": None, "ssim": pytest.approx(1.0)}
    assert found["a"]["hash"] == read_card(distilled / "base_2").hash  # type: ignore[index]


def test_numbers_of_one_protocol_stand_together_and_others_apart(
    distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(distilled)
    page = [
        "compare",
        "original",
        "base_2",
        "--seeds",
        "0-1",
        "--out",
        "pair.html",
        "--force",
        "--device",
        "cpu",
    ]
    assert app.run(page) == 0
    assert "1.00 (0.900 to 1.10)" in capsys.readouterr().out
    shown = check(Path("pair.html").read_text())
    assert "Both under one protocol." in shown.text
    assert len(shown.all("table")) == 2

    assert app.run(["train", "-q", "--device", "cpu", "--set", "name=other"]) == 0
    assert app.run(["distill", "-q", "--device", "cpu", "--set", "name=other"]) == 0
    evaluated(Path("runs/other"), num_images=50)
    page[1:3] = ["runs/tiny", "runs/other"]
    assert app.run(page) == 0
    out = capsys.readouterr()
    assert "not to be compared: of the two protocols, `num_images` differs: 100 and 50" in out.err
    assert "fid" not in out.out
    shown = check(Path("pair.html").read_text())
    assert "Not to be compared: of the two protocols, num_images differs: 100 and 50." in shown.text
    assert len(shown.all("table")) == 3
    assert "tiny/base_2 and other/base_2" in shown.text


def test_models_of_different_pictures_are_refused(
    distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = ["--set", "data.size=16", "--set", "name=large"]
    assert app.run(["train", "-q", "--device", "cpu", *large]) == 0
    plain = ["--set", "network.num_classes=null", "--set", "name=plain"]
    assert app.run(["train", "-q", "--device", "cpu", *plain]) == 0
    for other, words in (("runs/large", "draws 3 x 16 x 16"), ("runs/plain", "`original` knows 0")):
        capsys.readouterr()
        assert app.run(["compare", "base_2", other]) == 3
        assert words in capsys.readouterr().err
    assert not Path("compare.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "3"], "was distilled to 1 step"),
        (["--seeds", "0-64"], "do not fit beside one another"),
        (["--seeds", "x"], "is not a list of whole numbers"),
        (["--out", "compare.gif"], "names no form"),
        (["--out", "recipe.png"], "is there already"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_drawn(
    distilled: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recipe.png").write_text("mine")
    assert app.run(["compare", "original", "base_2", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert Path("recipe.png").read_text() == "mine"


def test_in_a_browser_the_page_asks_for_nothing(distilled: Path) -> None:
    assert (
        app.run(
            [
                "compare",
                "original",
                "base_2",
                "--seeds",
                "0-1",
                "--out",
                "pair.html",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    with opened(Path("pair.html"), 360) as driver:
        assert complaints(driver) == []
        assert requests(driver) == [Path("pair.html").resolve().as_uri()]
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
