"""A chain whose students have guidance inside: what comes first, what is told and kept,
and what is refused before anything is written.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_chain import finish
from tests.tiny import TinyRun
from vdiff.chain.plan import doubts, plan, shaping_values
from vdiff.diffusion import inside
from vdiff.drawing.guidance import Guidance
from vdiff.drawing.pictures import draw_with
from vdiff.errors import ModelFileError, UsageError
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import ModelCard, read_card
from vdiff.networks.network import as_network
from vdiff.networks.unet_section import UNetSection
from vdiff.objectives.guided import GuidedSection
from vdiff.recipe.recipe import DistillSection
from vdiff.runs.folder import RunFolder
from vdiff.training import loop

RANGE = "distill.guidance=[1, 4]"
INPUT = {"kind": "input", "low": 1.0, "high": 4.0}


@pytest.fixture
def guidable(tiny_run: TinyRun) -> TinyRun:
    """A run with a base that knows two classes and one that stands for none."""
    run = with_null_class(tiny_run)
    run.base()
    return run


def with_null_class(run: TinyRun, *more: tuple[str, str]) -> TinyRun:
    """The same place with a recipe whose base learns a null class, and with these other changes."""
    text = run.text
    for before, after in (("train: {", "train: {label_drop: 0.3, "), *more):
        assert before in text
        text = text.replace(before, after)
    (run.path / "recipe.yaml").write_text(text)
    return TinyRun(run.path, text)


def rewritten(folder: Path, change: Callable[[ModelCard], ModelCard]) -> None:
    """The model folder, with another card."""
    loaded = checkpoint.load(folder)
    shutil.rmtree(folder)
    checkpoint.save(folder, change(loaded.card), loaded.denoiser)


def test_a_stage_of_as_many_steps_comes_first() -> None:
    section = DistillSection.model_validate({"start_steps": 8, "updates": 2, "guidance": [1, 4]})
    assert section.steps() == (8, 8, 4)
    kinds = [section.settings(stage).objective.kind for stage in section.listed()]
    assert kinds == ["guided", "progressive"]


def test_a_list_of_stages_says_the_same(tiny_run: TinyRun) -> None:
    short = plan(with_null_class(tiny_run).recipe(RANGE, "distill.overrides={8: {updates: 7}}"))
    stages = (
        "stages: [{factor: 1, objective: {kind: guided, guidance: [1, 4]}, updates: 7}, "
        "{factor: 2}, {factor: 2}, {factor: 2}],"
    )
    listed = plan(with_null_class(tiny_run, ("end_steps: 1,", stages)).recipe())
    assert [(stage.name, stage.start_steps, stage.num_steps) for stage in short] == [
        (stage.name, stage.start_steps, stage.num_steps) for stage in listed
    ]
    recipe = tiny_run.recipe()
    for one, other in zip(short, listed, strict=True):
        assert shaping_values(recipe, one, "fp32") == shaping_values(recipe, other, "fp32")
    assert doubts(short) == doubts(plan(recipe))


def test_a_chain_without_guidance_is_what_it_was(tiny_run: TinyRun) -> None:
    recipe = tiny_run.recipe()
    values = shaping_values(recipe, plan(recipe)[1], "fp32")
    assert not [name for name in values if "guidance" in name]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("guidance: [4, 1],", "from a smaller g to a larger one"),
        ("guidance: 1.5, objective: guided,", "`base_1` would be guided a second time"),
        (
            "stages: [{factor: 1, objective: guided}, {factor: 1, objective: guided}],",
            "`base_1` would be guided a second time",
        ),
        ("guidance: 1.5, stages: [{factor: 2}],", "no place for `guidance`"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tiny_run: TinyRun, options: str, told: str) -> None:
    run = with_null_class(tiny_run, ("end_steps: 1,", options))
    with pytest.raises(UsageError, match=told):
        run.recipe()


def test_a_recipe_whose_base_learns_no_null_class_is_refused(tiny_run: TinyRun) -> None:
    for change in (RANGE, "distill.guidance=1.5"):
        with pytest.raises(UsageError, match=r"--set train.label_drop=0.1"):
            tiny_run.recipe(change)


def test_students_are_told_a_guidance_and_keep_its_range(
    guidable: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, float] | None] = []

    class Seen(loop.Telling):
        def __call__(self, labels: object, rng: object) -> object:
            told.append(self.guidance)
            found = super().__call__(labels, rng)  # type: ignore[arg-type]
            assert found.guidance is not None
            assert 1 <= found.guidance.min() <= found.guidance.max() <= 4
            return found

    import vdiff.chain.guidance as chain_guidance

    monkeypatch.setattr(chain_guidance, "Telling", Seen)
    cards = guidable.chain(RANGE, "distill.end_steps=4").distill()
    assert told == [(1.0, 4.0)] * 4  # two updates of each of two stages
    base, first, second = (
        checkpoint.load(guidable.folder().model(name)) for name in ("original", "base_0", "base_1")
    )
    assert [card.guidance for card in cards] == [INPUT, INPUT]
    assert base.card.guidance is None
    assert (first.card.num_steps, second.card.num_steps) == (8, 4)
    # stage one learned all times, as its teacher knows them; the halving those of its own steps
    assert (first.card.times, second.card.times) == (None, 4)
    assert (first.card.is_denoiser, second.card.is_denoiser) == (True, False)
    assert all(card.null_class and card.num_classes == 2 for card in cards)
    for model in (first, second):
        assert as_network(model.denoiser.network).takes_guidance
        # one g or another: other pictures
        drawn = [draw_with(model, range(2), guidance=Guidance(g)) for g in (1.0, 1.0, 4.0)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        # where nobody names one, it is 1
        assert torch.equal(draw_with(model, range(2)), drawn[0])


def test_a_fixed_guidance_needs_no_input(guidable: TinyRun) -> None:
    cards = guidable.chain("distill.guidance=1.5", "distill.end_steps=4").distill()
    assert [card.guidance for card in cards] == [{"kind": "baked", "value": 1.5}] * 2
    base, student = (checkpoint.load(guidable.folder().model(n)) for n in ("original", "base_1"))
    network = as_network(student.denoiser.network)
    assert network.config == as_network(base.denoiser.network).config
    # it is drawn with in one call, by diffusers too
    index = json.loads((guidable.folder().model("base_1") / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]


def test_the_first_student_begins_as_its_teacher(guidable: TinyRun) -> None:
    changes = (RANGE, "distill.end_steps=8", "distill.learning_rate=1e-30")
    guidable.chain(*changes).distill()
    base, student = (checkpoint.load(guidable.folder().model(n)) for n in ("original", "base_0"))
    assert student.card.parent is not None
    drawn = [draw_with(model, range(3), 8) for model in (base, student)]
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=1e-5)


def test_a_stopped_chain_goes_on_bit_for_bit(guidable: TinyRun) -> None:
    changes = (RANGE, "distill.end_steps=4", "distill.updates=4", "distill.save_every=1")
    shutil.copytree(guidable.folder().path, guidable.folder("broken").path)
    guidable.chain(*changes).distill()
    assert finish(guidable, *changes, distill=True, stop_after=3, run="broken") > 1
    whole, broken = guidable.hashes(), guidable.hashes("broken")
    assert whole.keys() >= {"original", "base_0", "base_1"}
    assert {n: h for n, h in whole.items() if n != "log.jsonl"} == {
        n: h for n, h in broken.items() if n != "log.jsonl"
    }


def test_a_teacher_without_a_null_class_is_refused_before_anything_is_written(
    tiny_run: TinyRun,
) -> None:
    tiny_run.base()
    tiny_run = with_null_class(tiny_run)
    before = files(tiny_run.folder())
    with pytest.raises(UsageError) as caught:
        tiny_run.chain(RANGE).distill()
    assert "`original` cannot be guided" in caught.value.problem
    assert "--set train.label_drop=0.1" in caught.value.fix
    chain = tiny_run.chain(RANGE)
    with pytest.raises(UsageError, match="cannot be guided"):
        chain.foresee(chain.stages[1:], tiny_run.folder().model("original"), False)
    assert files(tiny_run.folder()) == before


def test_a_second_guidance_is_refused_before_anything_is_written(guidable: TinyRun) -> None:
    guidable.chain(RANGE, "distill.end_steps=8").distill()
    student = guidable.folder().model("base_0")
    before = files(guidable.folder("other"))
    with pytest.raises(UsageError) as caught:
        guidable.chain("distill.guidance=2", "distill.end_steps=8", run="other").distill(
            str(student)
        )
    assert "`base_0` has guidance already (inside, 1 to 4)" in caught.value.problem
    assert "--set distill.guidance=null" in caught.value.fix
    assert files(guidable.folder("other")) == before


def test_a_student_from_elsewhere_is_halved_with_its_own_range(guidable: TinyRun) -> None:
    guidable.chain("distill.guidance=[0.5, 3]", "distill.end_steps=8").distill()
    student = guidable.folder().model("base_0")
    for changes in ((RANGE,), ()):
        run = f"other{len(changes)}"
        chain = guidable.chain(*changes, "distill.end_steps=4", run=run)
        (card,) = chain.distill(str(student))
        assert card.guidance == {"kind": "input", "low": 0.5, "high": 3.0}
        assert card.parent is not None
        assert card.parent["name"] == "base_0"
        assert (card.num_steps, card.name) == (4, "base_1" if changes else "base_0")


def files(run: RunFolder) -> list[str]:
    return sorted(str(path) for path in run.path.rglob("*")) if run.path.exists() else []


def test_a_network_and_a_card_that_disagree_are_refused(guidable: TinyRun) -> None:
    guidable.chain(RANGE, "distill.end_steps=8").distill()
    folder = guidable.folder().model("base_0")
    rewritten(folder, lambda card: replace(card, guidance=None))
    with pytest.raises(ModelFileError, match="its network takes a guidance"):
        checkpoint.load(folder)
    base = guidable.folder().model("original")
    rewritten(base, lambda card: replace(card, guidance=INPUT))
    with pytest.raises(ModelFileError, match="its network takes no guidance"):
        checkpoint.load(base)


@pytest.mark.parametrize(
    "guidance",
    [
        {"kind": "input", "low": 4.0, "high": 1.0},
        {"kind": "input", "low": 1.0},
        {"kind": "baked", "value": float("nan")},
        {"kind": "baked", "value": "1.5", "more": 1},
    ],
)
def test_a_card_with_a_guidance_that_cannot_be_is_damaged(
    guidable: TinyRun, guidance: dict[str, object]
) -> None:
    folder = guidable.folder().model("original")
    path = folder / "vdiff.json"
    content = json.loads(path.read_text())
    content["guidance"] = guidance
    path.write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match="is damaged"):
        read_card(folder)


def test_a_student_is_no_teacher_of_guidance(tiny_run: TinyRun) -> None:
    stages = (
        "stages: [{factor: 2}, {factor: 1, objective: {kind: guided, guidance: [1, 4]}}, "
        "{factor: 2}],"
    )
    told = "`base_1` is to be guided, and its teacher predicts"
    with pytest.raises(UsageError, match=told):
        with_null_class(tiny_run, ("end_steps: 1,", stages)).recipe()


def test_a_model_that_is_no_denoiser_is_not_guided(guidable: TinyRun) -> None:
    base = guidable.folder().model("original")
    rewritten(base, lambda card: replace(card, is_denoiser=False))
    before = files(guidable.folder())
    with pytest.raises(UsageError, match="the teacher of `base_0` predicts where a step leads"):
        guidable.chain(RANGE).distill()
    assert files(guidable.folder()) == before


def test_the_card_keeps_the_interval_of_its_guidance() -> None:
    section = GuidedSection.model_validate({"guidance": [1, 4], "interval": [0.2, 5]})
    assert section.guidance_inside == {**INPUT, "interval": [0.2, 5.0]}
    assert inside.told(inside.checked(section.guidance_inside)) == (
        "inside, 1 to 4, at noise levels from 0.2 to 5"
    )
    assert inside.checked(INPUT) == INPUT


def test_a_network_without_an_input_is_given_one_number(
    guidable: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told when the recipe is read, and of another recipe's base before anything is trained."""
    fixed = "distill.guidance=2"
    chain = guidable.chain(RANGE)
    monkeypatch.setattr(UNetSection, "may_take_guidance", False)
    with pytest.raises(UsageError, match="`unet` cannot take guidance as an input"):
        guidable.recipe(RANGE)
    guidable.recipe(fixed)
    before = files(guidable.folder())
    with pytest.raises(UsageError, match="`original` is a network of the kind `unet`, which"):
        chain.distill()
    assert files(guidable.folder()) == before
