"""What answers without pictures or networks answers at once: it does not import what computes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TinyRun

HEAVY = {"torch", "numpy", "accelerate", "PIL", "lmdb", "safetensors"}
DIGITS = str(Path(__file__).parents[1] / "recipes" / "digits.yaml")
SCHEDULES = ["{kind: cosine_logsnr}", "{kind: betas}", "{kind: betas, table: squaredcos_cap_v2}"]


def start(*arguments: str, code: int = 0) -> tuple[str, set[str]]:
    """What a command said on both streams, and what of the heavy packages it imported."""
    source = (
        f"import sys; from vdiff.cli import main; code = main({arguments}); "
        "print(*sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    *said, modules = done.stdout.splitlines()
    return "\n".join([*said, done.stderr]), set(modules.split()) & HEAVY


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--help"], "distill"),
        (["recipes", "--help"], "schema"),
        (["train", "--help"], "--recipe"),
        (["recipes", "ls"], "cifar10"),
        (["recipes", "show", "digits"], "distill:"),
        (["recipes", "schema"], "minimum"),
        (["recipes", "check", "digits", "cifar10", "celeba_u"], "celeba_u.yaml` is a valid recipe"),
        *(
            (["recipes", "check", DIGITS, "--set", f"diffusion.schedule={each}"], "is a valid")
            for each in SCHEDULES
        ),
        (["recipes", "check", DIGITS, "--set", "sample.sampler=ancestral"], "is a valid recipe"),
    ],
    ids=" ".join,
)
def test_a_command_about_recipes_imports_nothing_that_computes(
    arguments: list[str], word: str
) -> None:
    said, heavy = start(*arguments)
    assert word in said
    assert heavy == set()


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("distill={updates: 1, start_steps: 1048576, end_steps: 1}", "would have no target"),
        ("data.size=9", "cannot be halved"),
        ("evaluate.metrics=[fid]", "takes too long for a trend"),
        ("train.objective=progressive", "it belongs into `distill`"),
        ("network.kind=vit", "unknown kind `vit`"),
    ],
)
def test_mistakes_are_found_without_what_computes(mistake: str, words: str) -> None:
    said, heavy = start("recipes", "check", DIGITS, "--set", mistake, code=2)
    assert words in said.replace("\n", " ")
    assert heavy == set()


def test_a_run_and_a_model_are_described_without_what_computes(tiny_run: TinyRun) -> None:
    tiny_run.base()
    for place in (tiny_run.folder(), tiny_run.folder().model("original")):
        said, heavy = start("inspect", str(getattr(place, "path", place)))
        assert "original" in said
        assert heavy == set()
