"""NaN and Inf: no picture, number, report or model comes of them,
and whoever meets them is told what to do.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_sample import error, here, models, sample  # noqa: F401 - fixtures
from tests.test_survival import Poison, log, poison, reseal  # noqa: F401 - a fixture
from tests.tiny import TinyRun
from vdiff.cli import main
from vdiff.data.codec import PixelCodec
from vdiff.diffusion.denoiser import Denoiser
from vdiff.disk import manifest, whole_folder
from vdiff.drawing.drawing import decoded_share
from vdiff.errors import DivergedError, ModelFileError, Stopped
from vdiff.images.images import to_uint8
from vdiff.machine.machine import Machine
from vdiff.model_folder.card import MANIFEST, WEIGHTS
from vdiff.model_folder.checkpoint import load_tensors, save_tensors
from vdiff.training.learner import Learner
from vdiff.training.log import _Skips

BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_predictions_become_pictures_only_if_they_are_numbers(
    bad: float, dtype: torch.dtype
) -> None:
    x = torch.linspace(-3, 3, 3 * 1 * 2 * 2, dtype=dtype).reshape(3, 1, 2, 2)
    assert (int(to_uint8(x).min()), int(to_uint8(x).max())) == (0, 255)
    x[1, 0, 1, 0] = bad
    with pytest.raises(
        DivergedError, match=r"^error: 1 of 3 pictures of `base_2` hold NaN or Inf\n"
    ) as found:
        to_uint8(x, "base_2")
    assert found.value.exit_code == 5
    assert "precision=fp32" in found.value.fix
    assert "learning_rate" in found.value.fix


def test_no_process_waits_for_one_whose_pictures_are_no_numbers() -> None:
    class OfTwo:
        def any(self, flag: bool) -> bool:
            return True

    with pytest.raises(DivergedError, match="drawn by another process, hold NaN or Inf"):
        decoded_share(torch.zeros(2, 1, 4, 4), PixelCodec(), ("base_2"), OfTwo())  # type: ignore[arg-type]
    with pytest.raises(DivergedError, match="error: 1 of 1 pictures"):
        decoded_share(torch.full((1, 1, 4, 4), math.nan), PixelCodec(), ("base_2"), OfTwo())  # type: ignore[arg-type]
    assert (
        decoded_share(torch.zeros(2, 1, 4, 4), PixelCodec(), "base_2", Machine("fp32", "cpu")).dtype
        == torch.uint8
    )


def spoil(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the weights of a model folder and make its manifest right again."""
    tensors = {name: tensor.clone() for name, tensor in load_tensors(folder / WEIGHTS).items()}
    change(tensors)
    save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    content = whole_folder.read(folder, MANIFEST)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(
        whole_folder.sealed({**content, "files": manifest.manifest(folder)})
    )


def not_a_number(tensors: dict[str, Tensor]) -> None:
    tensors["conv_out.bias"].fill_(math.nan)


def too_large(tensors: dict[str, Tensor]) -> None:
    """Every weight is finite, and what the network computes with them is not."""
    tensors["conv_out.weight"].fill_(3e38)


def second_class(tensors: dict[str, Tensor]) -> None:
    tensors["class_embedding.weight"][1] = math.nan


FORMS = [["--out", name] for name in ("x.png", "x.npz", "x.zip", "new/folder/")] + [
    ["--strip"],
    ["--gif"],
]


@pytest.mark.parametrize(
    ("form", "change"),
    [(form, not_a_number) for form in FORMS] + [(FORMS[0], too_large), (FORMS[1], second_class)],
)
def test_no_form_of_picture_is_drawn_from_them(
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    form: list[str],
    change: Any,
) -> None:
    spoil(Path("runs/tiny/base_0"), change)
    before = sorted(path for path in here.rglob("*") if path.is_file())
    sample("-n", "4", *form, code=5)
    said = error(capsys)
    assert f"{2 if change is second_class else 4} of 4 pictures of `base_0` hold NaN or Inf" in said
    assert "precision=fp32" in said
    assert sorted(path for path in here.rglob("*") if path.is_file()) == before
    assert not Path("new/folder").exists()


def test_a_folder_keeps_the_good_pictures_that_came_before(here: Path) -> None:  # noqa: F811
    spoil(Path("runs/tiny/base_0"), second_class)
    sample("-n", "4", "--out", "folder/", "--batch-size", "1", code=5)
    assert [path.name for path in Path("folder").iterdir()] == ["000000.png"]


@pytest.mark.parametrize("change", [not_a_number, too_large])
def test_clipping_does_not_hide_them(here: Path, change: Any) -> None:  # noqa: F811
    spoil(Path("runs/tiny/base_0"), change)
    for options in (["--clipped"], ["--clip-noise", "1"], ["--sampler", "ancestral"]):
        sample(*options, "--out", "x.png", code=5)
        assert not Path("x.png").exists()


def test_nothing_is_measured_or_compared(tiny_run: TinyRun, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tiny_run.path)
    tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill(count=1)
    spoil(Path("runs/tiny/base_0"), too_large)
    evaluate = ["evaluate", "--n", "4", "--metrics", "agreement", "--device", "cpu"]
    assert main(evaluate) == 5
    assert "pictures of `runs/tiny/base_0` hold NaN or Inf" in error(capsys)
    assert not Path("runs/tiny/evaluation/table.json").exists()
    assert main(["compare", "original", "base_0", "--out", "pair.png", "--device", "cpu"]) == 5
    assert "pictures of `base_0` hold NaN or Inf" in error(capsys)
    assert not Path("pair.png").exists()
    assert main(["report", "runs/tiny", "--out", "report.html", "--device", "cpu"]) == 0
    assert "warning: no pictures: " in error(capsys)
    page = Path("report.html").read_text()
    assert "hold NaN or Inf" in page
    assert "data:image" not in page


def test_a_teacher_whose_weights_are_no_numbers_is_blamed_before_the_first_update(
    tiny_run: TinyRun,
) -> None:
    tiny_run.base()
    folder = tiny_run.folder().model("original")
    spoil(folder, not_a_number)
    with pytest.raises(
        ModelFileError, match="the weights of the teacher `original` are not finite"
    ) as caught:
        tiny_run.chain().distill(count=1)
    assert caught.value.where.startswith(f"{folder}: `")
    assert not tiny_run.folder().saves("base_0").exists()


def test_a_student_whose_error_is_no_number_is_told(tiny_run: TinyRun) -> None:
    from vdiff.reporting.pictures import Studio

    tiny_run.base()
    tiny_run.chain().distill(count=1)
    spoil(tiny_run.folder().model("base_0"), too_large)
    folders = {name: tiny_run.folder().model(name) for name in ("original", "base_0")}
    studio = Studio(folders, tiny_run.path / "kept", range(2))
    with pytest.raises(
        DivergedError, match="`base_0` or its teacher `original` predicts holds NaN or Inf"
    ):
        studio.errors("base_0", torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.fixture
def unsound(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Learner], bool]], None]:
    """Makes what is learned, where a function of the learner says so,
    finite weights whose predictions are not.
    """
    sound = Learner.result

    def mix(is_bad: Callable[[Learner], bool]) -> None:
        def result(self: Learner) -> Denoiser:
            made = sound(self)
            if is_bad(self):
                with torch.no_grad():
                    made.network.conv_out.weight.fill_(3e38)  # type: ignore[union-attr, operator]
            return made

        monkeypatch.setattr(Learner, "result", result)

    return mix


@pytest.mark.parametrize(
    "more", [(), ("train.rollbacks=3",), ("evaluate.every=2", "evaluate.num_images=6")]
)
def test_a_model_that_draws_no_numbers_is_not_published(
    tiny_run: TinyRun, unsound: Any, more: tuple[str, ...]
) -> None:
    unsound(lambda learner: learner.update == 5)
    for _ in range(2):  # the same command comes to the same end
        with pytest.raises(DivergedError, match=r"\d of \d pictures of `original` hold NaN or Inf"):
            tiny_run.chain("evaluate.metrics=[swd]", *more).train()
        assert tiny_run.folder().models() == []
    unsound(lambda learner: False)


def test_a_preview_or_trend_that_is_none_is_told_and_the_training_goes_on(
    tiny_run: TinyRun, unsound: Any
) -> None:
    unsound(lambda learner: learner.update in (2, 3))
    more = (
        "train.preview_every=1",
        "evaluate.every=1",
        "evaluate.num_images=6",
        "evaluate.metrics=[swd]",
    )
    assert tiny_run.base(*more).updates == 5
    told = [line for line in tiny_run.said if "hold NaN or Inf" in line]
    for what, update in (("preview", 2), ("preview", 3), ("trend", 2), ("trend", 3)):
        assert sum(f"no {what} at update {update}" in line for line in told) == 1
    assert sorted(path.name for path in tiny_run.folder().previews.iterdir()) == [
        "original-0000001.png",
        "original-0000004.png",
    ]
    assert [line["update"] for line in log(tiny_run) if "trend" in line] == [1, 4, 5]


@pytest.mark.parametrize("more", [(), ("train.rollbacks=2",)])
def test_a_short_training_without_a_single_sound_update_is_not_published(
    tiny_run: TinyRun,
    poison: Poison,  # noqa: F811
    more: tuple[str, ...],
) -> None:
    poison(lambda learner: True)
    for _ in range(2):
        with pytest.raises(
            DivergedError, match="`original` learned nothing: all its updates"
        ) as found:
            tiny_run.chain(*more).train()
        assert found.value.exit_code == 5
        assert "learning_rate" in found.value.fix
        assert "--force" in found.value.fix
        assert tiny_run.folder().models() == []


def test_one_sound_update_is_enough_to_be_published_and_told(
    tiny_run: TinyRun,
    poison: Poison,  # noqa: F811
) -> None:
    poison(lambda learner: learner.update != 3)
    assert tiny_run.base().updates == 5
    assert any("were skipped" in line for line in tiny_run.said)


@pytest.mark.parametrize("student", [False, True])
def test_every_other_update_skipped_ends_a_training(
    tiny_run: TinyRun,
    poison: Poison,  # noqa: F811
    student: bool,
) -> None:
    section = "distill" if student else "train"
    more = (f"{section}.updates=200", f"{section}.log_every=5")
    if student:
        tiny_run.base()
    poison(lambda learner: learner.update % 2 == 0)
    chain = tiny_run.chain(*more)
    with pytest.raises(
        DivergedError,
        match=r"more than one in three had a loss or gradient that is not finite \(\d+ in",
    ):
        chain.distill() if student else chain.train()
    assert tiny_run.folder().models() == ["original"] * student


def test_one_in_three_skipped_is_endured(tiny_run: TinyRun, poison: Poison) -> None:  # noqa: F811
    poison(lambda learner: learner.update % 3 == 0)
    assert tiny_run.base("train.updates=150", "train.log_every=5").updates == 150


def test_the_share_of_skipped_updates_is_counted_over_saves(
    tiny_run: TinyRun,
    poison: Poison,  # noqa: F811
) -> None:
    poison(lambda learner: learner.update % 2 == 0)
    more = ("train.updates=200", "train.log_every=7")
    ends: list[int] = []
    with pytest.raises(DivergedError):
        tiny_run.chain(*more, run="unbroken").train()
    for _ in range(20):
        try:
            tiny_run.chain(*more, stop_after=5).train()
        except Stopped:
            ends.append(int(tiny_run.folder().points("original")[0].name))
        except DivergedError:
            break
    last = [json.loads(line)["update"] for line in tiny_run.folder().log.read_text().splitlines()][
        -1
    ]
    assert ends[-1] >= 50
    unbroken = tiny_run.folder("unbroken").log.read_text().splitlines()
    assert last == json.loads(unbroken[-1])["update"]


def test_a_save_of_before_that_share_was_counted_is_gone_on_from(tiny_run: TinyRun) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain(stop_after=3).train()
    for point in tiny_run.folder().points("original"):
        tensors = load_tensors(point / "pending.safetensors")
        assert tensors["skips"].tolist() == [0, 0, 0]
        save_tensors(
            point / "pending.safetensors", {**tensors, "skips": tensors["skips"][:2].clone()}
        )
        reseal(point)
    assert tiny_run.base().updates == 5
    assert _Skips(*[4, 7]).debt == 0
