"""A model that is meant for another sampler than DDIM is drawn with that one,
unless the recipe names one.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.test_evaluate import (  # noqa: F401 - some are fixtures
    content,
    evaluate,
    measured,
    measured_place,
    place,
)
from tests.test_sample import models  # noqa: F401 - a fixture
from tests.test_stages import with_stages
from tests.test_stateful_objective import Consistency
from tests.tiny import TinyRun, sha256
from vdiff.chain.chain import Chain
from vdiff.config import shapes_weights
from vdiff.drawing.pictures import draw_with
from vdiff.errors import ModelFileError
from vdiff.images.images import ImageRow, grid, write_rows
from vdiff.metrics import table
from vdiff.metrics.agreement import agreement
from vdiff.model_folder import checkpoint
from vdiff.objectives import OBJECTIVES
from vdiff.objectives.objective import Objective, ObjectiveSection, Task
from vdiff.reporting.comparison import compare
from vdiff.reporting.pair import drawn as drawn_pair
from vdiff.reporting.pictures import Studio
from vdiff.runs.folder import RunFolder
from vdiff.samplers.ancestral import AncestralSection
from vdiff.samplers.ddim import DdimSection
from vdiff.samplers.sampler import Sampler

ADVICE = {"kind": "ancestral", "variance": "small"}


class AdvisingSection(ObjectiveSection):
    """A stateful way of learning whose network is meant for ancestral sampling."""

    kind: Literal["advising"] = shapes_weights("advising")
    """How the network learns."""
    sampler: str = shapes_weights("ancestral")
    """The kind that it advises."""

    is_denoiser: ClassVar[bool] = False

    def advised_sampler(self) -> dict[str, Any] | None:
        return {**ADVICE, "kind": self.sampler}

    def build(self, task: Task) -> Objective:
        return Consistency(task.updates)


@pytest.fixture
def advising(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES._builtin, "advising", f"{__name__}:AdvisingSection")
    monkeypatch.setitem(OBJECTIVES._builtin, "halving", "tests.test_stages:HalvingSection")


TREND = ("evaluate.every=4", "evaluate.num_images=4", "evaluate.metrics=[swd]")
BASE = ("train.objective=advising", "train.preview_every=4", *TREND)


def drawn(folder: Path, sampler: Sampler, count: int = 4) -> Tensor:
    """Pictures of a finished model, uint8 [count, C, H, W]."""
    model = checkpoint.load(folder)
    return model.codec.decode(draw_with(model, range(count), sampler=sampler))


def pixels(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_previews_and_trend_of_a_network_are_drawn_with_the_sampler_that_its_objective_advises(
    tiny_run: TinyRun, advising: None
) -> None:
    assert tiny_run.base(*BASE).sampler == ADVICE
    model = tiny_run.folder().model("original")
    expected = grid(drawn(model, AncestralSection(variance="small").build()), scale=4)
    assert torch.equal(pixels(model / "samples.png"), expected)

    def seen(name: str) -> list[str]:
        folder = tiny_run.folder(name)
        preview = next(folder.previews.iterdir())
        pictures = [folder.model("original") / "samples.png", preview]
        return [*map(sha256, pictures), *tiny_run.hashes(name).values()]

    named = "sample.sampler={kind: ancestral, variance: small}"
    tiny_run.base(*BASE, named, run="named")
    assert seen("named") == seen("run")


def test_a_sampler_that_the_recipe_names_wins_over_the_advice(
    tiny_run: TinyRun, advising: None
) -> None:
    tiny_run.base(*BASE, "sample.sampler=ddim")
    model = tiny_run.folder().model("original")
    expected = grid(drawn(model, DdimSection().build()), scale=4)
    assert torch.equal(pixels(model / "samples.png"), expected)
    tiny_run.base(*BASE, run="advised")
    one, other = tiny_run.hashes(), tiny_run.hashes("advised")
    assert one["original"] == other["original"]
    assert one["log.jsonl"] != other["log.jsonl"]  # it holds the trend


def test_the_floor_compares_each_of_two_models_as_it_is_meant_to_be_drawn_with(
    tiny_run: TinyRun, advising: None
) -> None:
    floor = ("distill.stop_if.psnr_below=0.001", "evaluate.num_images=6")
    mixed = with_stages(tiny_run, "[{steps: 4, objective: halving}, {steps: 2}]")
    mixed.base(*floor)
    chain = mixed.chain(*floor).distill()
    ddim, ancestral = DdimSection().build(), AncestralSection().build()
    samplers = {"original": ddim, "base_0": ancestral, "base_1": ddim}
    pictures = {
        name: drawn(mixed.folder().model(name), sampler, 6) / 127.5 - 1
        for name, sampler in samplers.items()
    }
    for teacher, card in zip(("original", "base_0"), chain, strict=True):
        assert card.agreement is not None
        expected = agreement(pictures[card.name], pictures[teacher]).psnr
        assert card.agreement["psnr"] == pytest.approx(expected)


def refused(chain: Chain) -> ModelFileError:
    with pytest.raises(ModelFileError) as found:
        chain.train() if chain.run.models() == [] else chain.distill()
    assert "`sample.sampler` in the recipe" in found.value.fix
    return found.value


def test_advice_that_nobody_here_knows_is_told_before_anything_is_trained(
    tiny_run: TinyRun, advising: None
) -> None:
    changes = ("train.objective={kind: advising, sampler: nosuch}", "train.updates=5000")
    assert (
        "`original`: unknown kind `nosuch` of sampler" in refused(tiny_run.chain(*changes)).problem
    )
    assert not tiny_run.folder().saves("original").exists()
    changes = ("train.objective={kind: advising, sampler: nosuch}", "sample.sampler=ddim")
    tiny_run.base(*changes)
    floor = ("distill.stop_if.psnr_below=1", "distill.updates=5000")
    found = refused(tiny_run.chain(*floor))
    assert "`original`: unknown kind `nosuch` of sampler" in found.problem
    assert not tiny_run.folder().saves("base_0").exists()


def test_reports_and_comparisons_draw_with_the_sampler_that_the_recipe_in_the_folder_names(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    named = replace(
        tiny_run, text=tiny_run.text.replace("sample: {", "sample: {sampler: ancestral, ")
    )
    named.base()
    model = named.folder().model("original")
    ancestral = AncestralSection().build()
    expected = drawn(model, ancestral)
    assert not torch.equal(expected, drawn(model, DdimSection().build()))
    studio = Studio({"original": model}, tmp_path / "kept", range(4))
    assert torch.equal(studio.strip("original", "original", 8).pictures, expected)
    assert torch.equal(studio.way("original", 8).frames[-1], expected[0])
    pair = drawn_pair((model, model), ("a", "b"), range(4))
    assert torch.equal(pair.a.strip.pictures, expected)
    compare(model, [], tmp_path / "rows.png", count=4)
    write_rows(tmp_path / "expected.png", [ImageRow("teacher, 8 steps", expected)])
    assert torch.equal(pixels(tmp_path / "rows.png"), pixels(tmp_path / "expected.png"))


# What `vdiff evaluate` draws


def advise(folder: RunFolder, name: str, sampler: dict[str, Any]) -> None:
    """Have a finished model's card name a sampler; its weights, and so its hash, stay."""
    model = checkpoint.load(folder.model(name))
    checkpoint.save(folder.model(name), replace(model.card, sampler=sampler), model.denoiser)


def rows(folder: RunFolder) -> dict[tuple[str, int], Any]:
    """All but those of solvers, which draw whatever a model is meant for."""
    return {
        (row["model"], row["num_steps"]): row
        for row in content(folder)["rows"]
        if row["role"] != "solved"
    }


def oldest_format(folder: RunFolder) -> int:
    """That could say these rows."""
    found = table.read(folder.table)
    assert found is not None
    plain = tuple(row for row in found.rows if row.role != "solved")
    return found.model_copy(update={"rows": plain}).format


SAID = f"ancestral mix={AncestralSection(variance='small').build().mix}"


def test_an_evaluation_draws_each_model_with_its_own_sampler_and_says_so(
    measured: RunFolder,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = rows(measured)
    assert oldest_format(measured) == 1
    advise(measured, "base_0", ADVICE)
    evaluate()
    now = rows(measured)
    assert oldest_format(measured) == 2
    assert content(measured)["protocol"]["sampler"] == "ddim eta=0.0"
    others = [("original", 8), ("original", 4), ("original", 2)]
    assert {key: now[key] for key in others} == {key: before[key] for key in others}
    assert now["base_0", 4]["sampler"] == SAID
    assert now["base_0", 4]["metrics"]["swd"] != before["base_0", 4]["metrics"]["swd"]
    assert "sampler" not in now["base_1", 2]
    assert now["base_1", 2]["metrics"] == before["base_1", 2]["metrics"]
    assert now["base_1", 2]["teacher"]["sampler"] == SAID
    assert now["base_1", 2]["original"] == before["base_1", 2]["original"]
    ddim, ancestral = DdimSection().build(), AncestralSection(variance="small").build()
    student = drawn(measured.model("base_1"), ddim, 12) / 127.5 - 1
    teacher = drawn(measured.model("base_0"), ancestral, 12) / 127.5 - 1
    expected = agreement(student, teacher).psnr
    assert now["base_1", 2]["teacher"]["psnr"] == pytest.approx(expected)
    assert f"base_0 with {SAID}" in " ".join(capsys.readouterr().out.split())
    known = measured.table.read_bytes()
    evaluate()
    assert measured.table.read_bytes() == known


def test_an_evaluation_whose_recipe_names_a_sampler_draws_all_with_that_one(
    measured: RunFolder,  # noqa: F811
) -> None:
    before = rows(measured)
    advise(measured, "base_0", ADVICE)
    evaluate("--set", "sample.sampler=ddim")
    assert rows(measured) == before
    assert oldest_format(measured) == 1
    known = rows(measured)
    evaluate()
    evaluate("--set", "sample.sampler=ddim")
    now = rows(measured)
    numbers = ("metrics", "teacher", "original")
    assert now.keys() == known.keys()
    for key, row in known.items():
        found = now[key]
        assert [found[name] for name in numbers] == [row[name] for name in numbers]
    assert oldest_format(measured) == 1
