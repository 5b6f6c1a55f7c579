"""The trend in log and trackers: it changes nothing, is the same after a stop,
and stops a chain at its floor.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TinyRun
from vdiff.chain import trend
from vdiff.cli import main
from vdiff.disk import manifest
from vdiff.errors import DataError, DivergedError, ModelFileError, Stopped, UsageError
from vdiff.metrics.agreement import AgreementSection
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import MANIFEST

MEASURED = (
    "evaluate.every=2",
    "evaluate.num_images=6",
    "evaluate.metrics=[agreement, 'fd_pixel:3', swd]",
)
SHORT = ("distill.start_steps=4", "distill.end_steps=2")


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def distilled(run: TinyRun, *changes: str, name: str = "run") -> None:
    run.base(*SHORT, *changes, run=name)
    run.chain(*SHORT, *changes, run=name).distill()


def test_a_trend_changes_neither_weights_nor_the_other_lines(tiny_run: TinyRun) -> None:
    distilled(tiny_run, name="without")
    distilled(tiny_run, *MEASURED, name="with")
    without, measured = tiny_run.hashes("without"), tiny_run.hashes("with")
    assert {**without, "log.jsonl": ""} == {**measured, "log.jsonl": ""}
    found = lines(tiny_run.folder("with").log)
    assert [line for line in found if "trend" not in line] == lines(tiny_run.folder("without").log)
    trend = [
        (line["stage"], line["update"], line["num_images"]) for line in found if "trend" in line
    ]
    assert trend == [("original", 2, 6), ("original", 4, 6), ("original", 5, 6), ("base_0", 2, 6)]
    assert set(found[-1]["trend"]) == {"mse", "psnr", "ssim", "fd_pixel", "swd"}
    assert set(next(line for line in found if "trend" in line)["trend"]) == {"fd_pixel", "swd"}
    assert any("base_0: trend at update 2, of 6 pictures: mse" in text for text in tiny_run.said)


@pytest.mark.parametrize("stop", [2, 3])
def test_the_trend_is_the_same_after_a_stop(tiny_run: TinyRun, stop: int) -> None:
    tiny_run.base(*MEASURED, run="unbroken")
    with pytest.raises(Stopped):
        tiny_run.chain(*MEASURED, stop_after=stop).train()
    tiny_run.base(*MEASURED)
    assert tiny_run.hashes() == tiny_run.hashes("unbroken")


def test_a_chain_stops_under_its_floor_and_does_so_again(tiny_run: TinyRun) -> None:
    floor = (
        "distill.stop_if.psnr_below=90",
        "evaluate.num_images=6",
        *SHORT[:1],
        "distill.end_steps=1",
    )
    tiny_run.base(*floor)
    for _ in range(2):
        with pytest.raises(DivergedError) as caught:
            tiny_run.chain(*floor).distill()
        assert "`base_0` agrees with its teacher to" in caught.value.problem
        assert "dB only of 6 pictures, under the floor of 90 dB" in caught.value.problem
        assert caught.value.exit_code == 5
        assert tiny_run.folder().models() == ["original", "base_0"]
    tiny_run.chain(*floor, "distill.stop_if.psnr_below=0.1").distill()
    assert tiny_run.folder().models() == ["original", "base_0", "base_1"]


def test_the_command_tells_it_in_three_lines(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    tiny_run.base(*SHORT, run="runs/tiny")
    sets = [
        word for change in (*SHORT, "distill.stop_if.psnr_below=90") for word in ("--set", change)
    ]
    assert main(["distill", "--device", "cpu", *sets]) == 5
    error = capsys.readouterr().err.splitlines()[-3:]
    assert [line.partition(":")[0] for line in error] == ["error", "where", "fix"]


def test_a_stage_of_which_no_agreement_is_known_is_told(tiny_run: TinyRun) -> None:
    distilled(tiny_run)
    tiny_run.chain(*SHORT, "distill.stop_if.psnr_below=90").distill()
    assert any("its agreement is not known" in text for text in tiny_run.said)


@pytest.mark.parametrize("metrics", ["[fid]", "[swd, swd]", "[nothing]"])
def test_only_cheap_metrics_are_a_trend(tiny_run: TinyRun, metrics: str) -> None:
    with pytest.raises(UsageError):
        tiny_run.recipe(f"evaluate.metrics={metrics}")


def test_too_few_reference_pictures_are_refused_by_the_key_that_asks_for_them(
    tiny_run: TinyRun,
) -> None:
    with pytest.raises(DataError, match="needs at least 65 reference pictures") as caught:
        tiny_run.base(*MEASURED, "evaluate.metrics=[fd_pixel]")
    assert caught.value.where == "evaluate.metrics"


def test_too_few_pictures_are_refused_before_anything_is_trained(tiny_run: TinyRun) -> None:
    with pytest.raises(UsageError, match="`fd_pixel` needs at least 4 samples"):
        tiny_run.base(*MEASURED, "evaluate.num_images=3")
    assert not tiny_run.folder().log.exists()


def test_too_few_pairs_are_refused_before_anything_is_trained(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.base()
    monkeypatch.setattr(AgreementSection, "least", 7)
    with pytest.raises(UsageError, match="`agreement` needs at least 7 samples"):
        tiny_run.chain(*MEASURED, "evaluate.metrics=[agreement]", "evaluate.num_images=6").distill()
    assert not list(tiny_run.folder().path.glob("base_*"))


def test_the_log_tells_the_agreement_of_a_training_of_this_length_only(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        json.dumps({"stage": "base_0", "update": 4, "trend": {"psnr": 20.0}, "num_images": 6})
        + "\n"
    )
    assert trend._of_log(log, "base_0", 4) == {"psnr": 20.0, "num_images": 6}
    assert trend._of_log(log, "base_0", 8) is None


FLOOR = (
    "distill.stop_if.psnr_below=90",
    "evaluate.num_images=6",
    *SHORT[:1],
    "distill.end_steps=2",
)


def test_the_floor_needs_no_log(tiny_run: TinyRun) -> None:
    tiny_run.base(*FLOOR)
    with pytest.raises(DivergedError) as first:
        tiny_run.chain(*FLOOR).distill()
    tiny_run.folder().log.unlink()
    with pytest.raises(DivergedError) as again:
        tiny_run.chain(*FLOOR).distill()
    assert again.value.problem == first.value.problem


def test_the_floor_of_a_student_whose_card_does_not_tell_is_read_in_the_log(
    tiny_run: TinyRun,
) -> None:
    """vdiff 0.1 wrote such cards."""
    tiny_run.base(*FLOOR)
    with pytest.raises(DivergedError) as first:
        tiny_run.chain(*FLOOR).distill()
    path = tiny_run.folder().model("base_0") / MANIFEST
    content = json.loads(path.read_text())
    assert content.pop("agreement").keys() == {"psnr", "num_images"}
    path.write_text(manifest.sealed(content))
    with pytest.raises(DivergedError) as again:
        tiny_run.chain(*FLOOR).distill()
    assert again.value.problem == first.value.problem


def test_a_student_that_was_killed_before_it_was_complete_is_measured_again(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.base(*FLOOR)

    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny_run.chain(*FLOOR).distill()
    told = json.loads(tiny_run.folder().log.read_text().splitlines()[-1])
    tiny_run.folder().log.unlink()
    with pytest.raises(DivergedError, match="under the floor of 90 dB"):
        tiny_run.chain(*FLOOR).distill()
    card = checkpoint.read_card(tiny_run.folder().model("base_0"))
    assert card.agreement == {"psnr": told["trend"]["psnr"], "num_images": 6}


@pytest.mark.parametrize(
    "agreement", [{"psnr": "high", "num_images": 6}, {"psnr": 9.0, "num_images": 0}, 7]
)
def test_a_card_with_no_sound_agreement_is_damaged(tiny_run: TinyRun, agreement: object) -> None:
    tiny_run.base()
    path = tiny_run.folder().model("original") / MANIFEST
    path.write_text(manifest.sealed(json.loads(path.read_text()) | {"agreement": agreement}))
    with pytest.raises(ModelFileError, match="`agreement`"):
        checkpoint.read_card(path.parent)


def test_a_student_is_compared_with_the_way_that_it_learned_whatever_the_recipe_draws_with(
    tiny_run: TinyRun,
) -> None:
    """A solver of the recipe is for the base; students learn where DDIM leads."""
    found = []
    for name, more in (("plain", ()), ("solved", ("sample.sampler.kind=unipc",))):
        distilled(tiny_run, *MEASURED, *more, name=name)
        of_student = [
            line["trend"]
            for line in lines(tiny_run.folder(name).log)
            if "trend" in line and line["stage"] == "base_0"
        ]
        assert of_student
        found.append(of_student)
    assert found[0] == found[1]
