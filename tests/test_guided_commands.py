"""Commands on a run whose students take guidance: each draws with one g, and says with which."""

import json

import pytest

from tests.test_guided_chain import RANGE
from tests.test_guided_chain import guidable as guidable
from tests.tiny import TinyRun
from vdiff import cli


@pytest.fixture
def run(guidable: TinyRun, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    changes = ("evaluate.every=1", "evaluate.num_images=4", "evaluate.metrics=[agreement]")
    guidable.chain(RANGE, "distill.end_steps=4", *changes).distill()
    monkeypatch.chdir(guidable.path)
    return guidable


def test_everything_that_draws_says_with_which_guidance(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    # where it begins as its teacher does, there is nothing to see: the stage that guides is
    # measured at the other end
    trends = [line for line in run.said if "trend at update" in line]
    for stage, g in (("base_0", 4), ("base_1", 1)):
        of_stage = [line for line in trends if line.startswith(stage)]
        assert of_stage
        assert all(f"pictures at guidance {g}: " in line for line in of_stage)
    capsys.readouterr()
    assert cli.main(["inspect", "run/base_1"]) == 0
    assert "guidance     inside, 1 to 4; drawn with 1" in capsys.readouterr().out
    assert cli.main(["inspect", "run/base_1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["guidance"] == {"kind": "input", "low": 1.0, "high": 4.0}
    assert cli.main(["sample", "--checkpoint", "run/base_1", "-n", "2", "--out", "x.png"]) == 0
    assert cli.main(["report", "run"]) == 0
    assert "take guidance (inside, 1 to 4) and draw with 1 here" in (
        run.folder().path / "report.html"
    ).read_text(encoding="utf-8")
    readme = (run.folder().model("base_1") / "README.md").read_text(encoding="utf-8")
    assert "from 1 to 4 (1 is none)" in readme
    assert "`vdiff export base_1 --to diffusers --guidance 4`" in readme
    assert "| guidance | inside, 1 to 4 |" in readme
    assert "library_name: diffusers" not in readme
    assert not (run.folder().model("base_1") / "model_index.json").exists()


def test_a_dry_run_knows_what_would_be_made_and_what_would_be_refused(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    dry = ["distill", "--dry-run", "--json", "--set", RANGE]
    assert cli.main([*dry, "--from", "run/base_1", "--run", "other"]) == 0
    assert [stage["name"] for stage in stages(capsys)] == ["base_2", "base_3"]
    assert cli.main([*dry, "--run", "run", "--force"]) == 0
    assert [stage["name"] for stage in stages(capsys)] == ["base_0", "base_1", "base_2", "base_3"]
    guided = ["--set", "distill.guidance=2", "--set", "distill.end_steps=8"]
    command = ["distill", "--dry-run", *guided, "--from", "run/base_0", "--run", "other"]
    assert cli.main(command) == 2
    assert "would guide it a second time" in capsys.readouterr().err


def stages(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["stages"]
    return found
