"""A base that is shown pictures without their class too: its network, its card, its students."""

from pathlib import Path

import pytest
import torch

from tests.tiny import TinyRun
from vdiff.chain.stage_parts import fresh, num_classes
from vdiff.cli import main
from vdiff.errors import Stopped
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import content, parse
from vdiff.recipe.recipe import Recipe
from vdiff.reporting import inspection
from vdiff.runs.values import changes

DROP = "train.label_drop=0.5"


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return fresh(recipe, (3, 8, 8)).network.state_dict()


def test_the_network_has_one_class_more_and_the_recipe_says_what_it_said(tiny_run: TinyRun) -> None:
    recipe = tiny_run.recipe(DROP)
    assert (recipe.network.told_classes, recipe.base_network.told_classes) == (2, 3)
    assert num_classes(recipe, None) == 2
    plain = tiny_run.recipe()
    assert plain.base_network is plain.network
    grown = {name for name, weight in weights(recipe).items() if len(weight) == 3}
    assert "class_embedding.weight" in grown


def test_the_card_says_so_and_the_folder_has_its_row(tiny_run: TinyRun) -> None:
    card = tiny_run.base(DROP)
    assert (card.num_classes, card.null_class, card.null_label, card.format) == (2, True, 2, 2)
    assert card.class_names == ["cat", "dog"]
    assert card.trajectory["train.label_drop"] == 0.5
    folder = tiny_run.folder().model("original")
    network = checkpoint.load(folder).denoiser.network
    assert network.state_dict()["class_embedding.weight"].shape[0] == 3
    assert "Class 2 stands for no class" in (folder / "README.md").read_text()
    told = inspection.model(folder)
    assert (told["num_classes"], told["null_class"]) == (2, True)


def test_students_have_the_null_class_and_the_names_of_their_teacher(tiny_run: TinyRun) -> None:
    tiny_run.base(DROP)
    # the recipe says nothing of it any more: a student is a copy of its teacher
    (card,) = tiny_run.chain("train.label_drop=0").distill(count=1)
    assert (card.num_classes, card.null_class) == (2, True)
    assert card.class_names == ["cat", "dog"]
    assert "train.label_drop" not in card.trajectory


def test_the_null_class_learns(tiny_run: TinyRun) -> None:
    """The row of a class that no picture has stays as it was."""
    tiny_run.base("train.label_drop=0.9", "train.ema=null", run="dropped")
    recipe = tiny_run.recipe("train.label_drop=0.9")
    name = "class_embedding.weight"
    begun = weights(recipe)[name]
    folder = tiny_run.folder("dropped").model("original")
    found = checkpoint.load(folder).denoiser.network.state_dict()[name]
    assert not torch.equal(found[2], begun[2])


@pytest.mark.parametrize("stop_after", [1, 3])
def test_such_a_run_goes_on_bit_for_bit(tiny_run: TinyRun, stop_after: int) -> None:
    tiny_run.base(DROP, run="whole")
    for _ in range(5):
        try:
            tiny_run.chain(DROP, stop_after=stop_after).train()
        except Stopped:
            continue
        break
    assert tiny_run.hashes() == tiny_run.hashes("whole")


def test_another_share_is_another_training_and_none_is_what_older_runs_had() -> None:
    assert changes({"seed": 0}, {"seed": 0, "train.label_drop": 0.0}) == []
    found = changes({"seed": 0}, {"seed": 0, "train.label_drop": 0.1})
    assert found == ["train.label_drop: None -> 0.1"]


def test_names_of_classes_that_are_not_one_each_are_not_taken(tiny_run: TinyRun) -> None:
    card = tiny_run.base()
    assert card.class_names == ["cat", "dog"]
    told = content(card)
    for wrong in ("cat", ["a", "b", "c"], [], {"a": 1}, ["a", 1]):
        told["data"] = {**card.data, "class_names": wrong}
        assert parse(told, Path("original")).class_names == []


def test_a_network_without_classes_has_none_to_leave_out(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run.path)
    (tiny_run.path / "recipe.yaml").write_text(tiny_run.text)
    without = ["--set", "network.num_classes=null", "--set", DROP]
    assert main(["recipes", "check", *without]) == 2
    told = capsys.readouterr().err
    assert "is told no classes" in told
    assert "network.num_classes" in told
    for wrong in ("1", "-0.1", "true"):
        assert main(["recipes", "check", "--set", f"train.label_drop={wrong}"]) == 2
        assert "label_drop" in capsys.readouterr().err
