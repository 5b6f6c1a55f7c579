"""The README's commands work as they stand, in their order,
on real pictures of the promised size.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.test_checkpoint import card, denoiser
from vdiff.chain.plan import plan
from vdiff.cli import main
from vdiff.images.images import encode
from vdiff.model_folder import checkpoint
from vdiff.recipe import text
from vdiff.recipe.recipe import Recipe

README = Path(__file__).parent.parent / "README.md"

SMALL = """
network:
  width: 4
  multipliers: [1, 1]
  norm_groups: 2
  mid_attention: false
train: {updates: 1, batch_size: 1, warmup_updates: 0}
distill: {start_steps: 1024, end_steps: 8, updates: 1, batch_size: 1}
sample: {num_images: 1}
"""
"""A network and trainings that take no time, with the names,
sizes and steps of the recipe in the README.
"""


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def shrink(recipe: Path) -> None:
    """Keep name, seed and data of a recipe, and replace what costs time."""
    kept = recipe.read_text("utf-8").partition("\nnetwork:")[0]
    recipe.write_text(kept + SMALL, "utf-8")


def test_the_readme_promises_the_four_lines_of_the_interface() -> None:
    promised = {
        "vdiff prepare --size 256",
        "vdiff distill --from base_5 --stages 1",
        "vdiff sample --checkpoint base_6 --clipped",
        "vdiff inspect",
    }
    assert promised <= set(commands())


def test_the_readme_s_commands_work_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    faces = tmp_path / "pictures" / "celeba_hq"
    faces.mkdir(parents=True)
    for number in range(2):
        (faces / f"{number}.png").write_bytes(
            encode(np.full((3, 300, 256), 100 * number, np.uint8), "png")
        )
    for command in commands():
        program, *arguments = shlex.split(command)
        assert program == "vdiff"
        assert main(arguments) == 0, command
        if arguments[0] == "init":
            shrink(tmp_path / "recipe.yaml")
    run = tmp_path / "runs" / "celeba_u"
    assert {path.name for path in run.glob("*/vdiff.json") for path in [path.parent]} >= {
        "original",
        *(f"base_{number}" for number in range(8)),
    }
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "base_6-8-clipped.png",
        "base_6-8-strip.png",
    ]


def test_the_readme_s_python_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has the steps of that name in the recipe of the digits."""
    monkeypatch.chdir(tmp_path)
    recipe = text.validate(Recipe, text.read_file(text.shipped()["digits"]))
    stage = next(stage for stage in plan(recipe) if stage.name == "base_2")
    checkpoint.save(tmp_path / "runs/digits/base_2", card(num_steps=stage.num_steps), denoiser())
    [block] = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert "base_2" in block
    exec(block, {})
    assert (tmp_path / "sixteen.png").is_file()
