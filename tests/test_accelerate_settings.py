"""Settings of `accelerate` in the environment:
none of them shapes the weights, and those that ask for it are named.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.forked import Forked, vdiff_and_workers
from tests.tiny import TinyRun
from vdiff import cli
from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import CosineSection
from vdiff.machine import accelerate_settings
from vdiff.machine.machine import Machine, pick_device
from vdiff.networks.unet import UNetSection
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.recipe.recipe import TrainSection
from vdiff.training.learner import Learner, RngOf

SECONDS = 180.0
PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")


OWN = re.compile(rf"({'|'.join(PREFIXES)})[A-Z0-9_]*[A-Z0-9]")


def all_settings() -> list[str]:
    """Every variable of its own that `accelerate` reads, out of its source:
    of the version that is installed.
    """
    found = {"FORK_LAUNCHED"}
    root = Path(accelerate.__path__[0])
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] not in ("commands", "test_utils"):
            parsed = ast.parse(path.read_text(encoding="utf-8"))
            found |= {text for text in texts(parsed) if OWN.fullmatch(text)}
            functions = (node for node in ast.walk(parsed) if isinstance(node, ast.FunctionDef))
            found |= {name for function in functions for name in put_together(function)}
    return sorted(found)


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def put_together(function: ast.FunctionDef) -> Iterator[str]:
    """Names as in `prefix = "ACCELERATE_DYNAMO_"` and `prefix + "MODE"`."""
    nodes = list(ast.walk(function))
    named = [
        node
        for node in nodes
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in PREFIX_NAMES
    ]
    prefixes = [prefix for node in named for prefix in texts(node.value)]
    for node in nodes:
        if isinstance(node, ast.BinOp) and ast.unparse(node.left) in PREFIX_NAMES:
            yield from (prefix + ast.literal_eval(node.right) for prefix in prefixes)


PREFIX_NAMES = ("prefix", "env_prefix")
SETTINGS = all_settings()
VALUES = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_TORCH_DEVICE": "meta",
}
"""What asks for something; of the others, which are flags, numbers and words,
`true` is either obeyed or an error.
"""


def value_of(name: str) -> str:
    return VALUES.get(name, "true")


@pytest.fixture
def anew() -> Iterator[None]:
    """`accelerate` looks into the environment again: it does once a process."""
    forget()
    yield
    forget()


def forget() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def trained() -> torch.Tensor:
    """All weights after two updates."""
    torch.manual_seed(0)
    network = UNetSection(
        width=4, multipliers=(1,), blocks=1, norm_groups=1, mid_attention=False
    ).build(8, 1)
    student = Denoiser(network, CosineSection(grid=64).build(), "v")
    settings = TrainSection(
        updates=2, batch_size=2, learning_rate=1e-2, warmup_updates=0, clip_norm=0.01
    )
    learner = Learner(student, DenoisingObjective("snr_plus_one"), settings, Machine("fp32", "cpu"))
    x, places = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8), torch.arange(2)
    for update in range(2):
        learner.step(x, NOTHING, RngOf(0, 0, update, places, 2))
    return torch.cat([weight.detach().flatten() for weight in learner.state()["weights"].values()])


WANTED: list[torch.Tensor] = []


def test_the_settings_are_found() -> None:
    wanted = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "ACCELERATE_DYNAMO_MODE",
        "FSDP_VERSION",
        *VALUES,
    }
    assert wanted <= set(SETTINGS)
    assert len(SETTINGS) > 80


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_changes_the_weights(
    name: str, anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not WANTED:
        WANTED.append(trained())
        forget()
    monkeypatch.setenv(name, value_of(name))
    assert torch.equal(trained(), WANTED[0])
    assert os.environ[name] == value_of(name)


@pytest.mark.parametrize(
    "name", [name for name in SETTINGS if name not in accelerate_settings._TALK]
)
def test_a_setting_that_asks_for_something_is_named(name: str) -> None:
    told = accelerate_settings.ignored("fp32", {name: value_of(name)})
    if name == accelerate_settings.USE_CPU:
        assert told == ""
    else:
        assert f"{name}={value_of(name)}" in told
        assert told.startswith("settings of `accelerate` are ignored")


def test_what_accelerate_launch_always_sets_is_not_talked_about() -> None:
    asks_nothing = {
        "ACCELERATE_USE_CPU": "False",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    }
    assert accelerate_settings.ignored("fp32", asks_nothing) == ""
    assert accelerate_settings.ignored("bf16", {"ACCELERATE_MIXED_PRECISION": "bf16"}) == ""
    assert "here `precision`" in accelerate_settings.ignored(
        "fp32", {"ACCELERATE_MIXED_PRECISION": "bf16"}
    )


def test_many_settings_are_one_line_in_which_those_with_a_word_of_ours_come_first() -> None:
    told = accelerate_settings.ignored("fp32", {name: value_of(name) for name in SETTINGS})
    assert "\n" not in told
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 (here `micro_batch`)" in told
    assert re.search(r", \d+ more$", told)


def test_use_cpu_is_followed_where_no_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(None).type == "cuda"
    monkeypatch.setenv(accelerate_settings.USE_CPU, "true")
    assert pick_device(None).type == "cpu"
    assert pick_device("cuda").type == "cuda"


def test_a_training_says_what_it_ignores(
    tiny_run: TinyRun,
    anew: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tiny_run.path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    asked = ["--set", "precision=fp32", "--device", "cpu"]
    assert cli.main(["train", "--run", "run", *asked]) == 0
    assert capsys.readouterr().err.count("settings of `accelerate` are ignored") == 1
    tiny_run.base("precision=fp32", run="alone")
    assert tiny_run.hashes("run") == tiny_run.hashes("alone")
    assert (
        cli.main(
            [
                "sample",
                "--run",
                "run",
                "--checkpoint",
                "original",
                "--device",
                "cpu",
                "--out",
                "a.png",
            ]
        )
        == 0
    )
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4" in capsys.readouterr().err


def test_two_processes_under_all_settings_at_once_are_those_without(tiny_run: TinyRun) -> None:
    arguments = ["train", "--gpus", "2", "--device", "cpu", "--run"]
    threads = {"OMP_NUM_THREADS": "1"}
    plain = Forked(vdiff_and_workers, [*arguments, "plain"], tiny_run.path, threads)
    said = plain.communicate(timeout=SECONDS)[0]
    assert plain.returncode == 0, said
    # begun with nothing: `accelerate` may look at a setting while it is imported
    done = subprocess.run(
        [sys.executable, "-m", "vdiff", *arguments, "set"],
        env={**os.environ, **threads, **{name: value_of(name) for name in SETTINGS}},
        cwd=tiny_run.path,
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert tiny_run.hashes("plain") == tiny_run.hashes("set")
