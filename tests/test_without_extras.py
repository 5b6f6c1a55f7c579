"""An environment with vdiff alone: without diffusers, onnx, onnxruntime and torch-fidelity.

What needs one of them says which extra brings it; all else works.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.test_import import folder, recorded  # noqa: F401 - a fixture
from vdiff.system.distribution import with_extra

HIDING = """
import json, sys
from importlib.machinery import PathFinder

HIDDEN = {"diffusers", "onnx", "onnxruntime", "onnxscript", "torch_fidelity"}

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(name, path, target)

sys.meta_path = [Hiding if each is PathFinder else each for each in sys.meta_path]

import contextlib, io
from vdiff import cli

ends = []
for command in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(command)
    ends.append([code, said.getvalue()])
assert not HIDDEN & sys.modules.keys()
with open("ends.json", "w") as file:
    json.dump(ends, file)
"""

TRANSFORMER = {
    "_class_name": "DiTTransformer2DModel",
    "sample_size": 8,
    "in_channels": 3,
    "num_attention_heads": 1,
    "attention_head_dim": 8,
    "num_layers": 1,
    "patch_size": 2,
    "num_embeds_ada_norm": 2,
}


def ends(*commands: list[str]) -> list[list[Any]]:
    """Exit code and what was said of each command."""
    arguments = [sys.executable, "-c", HIDING, json.dumps(commands)]
    subprocess.run(arguments, check=True, capture_output=True, text=True)
    found: list[list[Any]] = json.loads(Path("ends.json").read_text())
    return found


@pytest.fixture
def transformer(tmp_path: Path) -> Path:
    """A folder with a network that only diffusers computes."""
    made = tmp_path / "dit"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(TRANSFORMER))
    import torch

    save_file({"a": torch.zeros(1)}, made / "diffusion_pytorch_model.safetensors")
    return made


def test_what_needs_an_extra_names_it_and_all_else_works(
    folder: Path,  # noqa: F811
    transformer: Path,
) -> None:
    model = "runs/theirs/original"
    draw = ["sample", "--checkpoint", model, "--steps", "2", "-n", "2", "--device", "cpu"]
    measure = ["evaluate", model, "--metrics", "fid", "--n", "2", "--device", "cpu"]
    commands = {
        "import": ["import", str(folder), "--expected", str(recorded(folder))],
        "sample": [*draw, "--out", "a.png"],
        "to diffusers": ["export", model, "--to", "diffusers", "--out", "d"],
        "to safetensors": ["export", model, "--to", "safetensors", "--out", "a.safetensors"],
        "to onnx": ["export", model, "--to", "onnx", "--out", "o"],
        "transformer": ["import", str(transformer)],
        "fid": [*measure, "--data", str(folder)],
    }
    found = dict(zip(commands, ends(*commands.values()), strict=True))
    for name in ("import", "sample", "to diffusers", "to safetensors"):
        assert found[name][0] == 0, found[name][1]
    for name, extra in {"to onnx": "onnx", "transformer": "diffusers"}.items():
        assert found[name][0] == 6, found[name][1]
        assert with_extra(extra) in " ".join(found[name][1].split())
    assert not Path("o").exists()
    assert not Path("runs/dit").exists()
    for code, said in found.values():
        assert "Traceback" not in said
        assert "a bug in vdiff" not in said
        assert code in (0, 3, 6)
