"""Commands that vdiff names: typed as they are printed, they do what is said of them;
and what a dry run tells of a run that has begun.
"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import noise_picture
from tests.tiny import TinyRun
from vdiff.cli import hints, main
from vdiff.errors import Stopped
from vdiff.recipe.strict_yaml import read_line

RECIPE = "my recipes/it's tiny.yaml"
RUN = "runs of $HOME/a b"
CHANGE = "distill.end_steps=4"


@pytest.fixture
def here(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, whose recipe has another name than usual."""
    monkeypatch.chdir(tiny_run.path)
    place = Path(RECIPE)
    place.parent.mkdir()
    Path("recipe.yaml").rename(place)
    return tiny_run.path


def commands(said: str) -> list[list[str]]:
    """What stands in backticks on the line of the next step, as a shell reads it."""
    [line] = [line for line in said.splitlines() if line.startswith("next: ")]
    return [shlex.split(text) for text in re.findall("`([^`]*)`", line)]


def run(words: Sequence[str], *more: str, code: int = 0) -> None:
    assert words[0] == "vdiff"
    assert main([*words[1:], *more]) == code


def test_the_next_commands_of_a_run_mean_that_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["-r", RECIPE, "--run", RUN, "--set", CHANGE]
    run(["vdiff", "train", *given, "--device", "cpu"])
    distill, look = commands(capsys.readouterr().err)
    run(look, "--device", "cpu")
    assert f"with `{RUN}/original` in 8 steps" in capsys.readouterr().err
    run(distill, "--device", "cpu")
    said = capsys.readouterr().err
    assert f"`{RUN}/base_0` is ready: 4 steps" in said
    assert "the recipe has changed" not in said
    [look] = commands(said)
    run(look, "--device", "cpu")
    assert f"with `{RUN}/base_0` in 4 steps" in capsys.readouterr().err


def test_a_name_that_is_set_is_the_name_of_the_run_that_is_meant(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["vdiff", "train", "-r", RECIPE, "--set", "name=other", "--device", "cpu"])
    _, look = commands(capsys.readouterr().err)
    run(look, "--device", "cpu")
    assert "with `runs/other/original`" in capsys.readouterr().err


def test_a_base_of_many_steps_is_looked_at_in_as_many_as_its_previews(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--set", "distill.start_steps=64", "--device", "cpu"]
    run(["vdiff", "train", "-r", RECIPE, *more])
    _, look = commands(capsys.readouterr().err)
    assert look[look.index("--steps") + 1] == "32"
    run(look, "--device", "cpu")
    assert "in 32 steps" in capsys.readouterr().err


def test_what_advises_to_distill_anew_means_the_same_run(
    here: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["-r", RECIPE, "--run", RUN, "--device", "cpu"]
    run(["vdiff", "train", *given])
    run(["vdiff", "distill", *given, "--stages", "1"])
    capsys.readouterr()
    run(["vdiff", "train", *given, "--set", "seed=4", "--force"])
    said = capsys.readouterr().err
    advised = set(re.findall("`(vdiff distill --from [^`]*)`", said))
    # before and after
    assert len(re.findall("`vdiff distill --from ", said)) == 2
    [again] = advised
    run(["vdiff", "distill", *given, "--set", "seed=4"], code=2)
    assert again in capsys.readouterr().err
    run(shlex.split(again), "--stages", "1", "--device", "cpu")


def test_a_prepared_store_is_trained_on_by_the_command_that_is_named(
    here: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "stores: old & new"
    for index in range(12):
        place = here / "photographs" / ("cat", "dog")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise_picture(8, 8, index).save(place / f"{index}.png")
    more = ["--size", "8", "--out", out]
    run(["vdiff", "prepare", "photographs", "-r", RECIPE, "--set", "name=it", *more])
    [train] = commands(capsys.readouterr().err)
    assert f'data.path="{out}"' in train
    run(train, "--device", "cpu")
    assert "`runs/it/original` is ready" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["plain", "a: b", "1", "true", "x # y", "it's", '"', "", "-", "~"])
def test_a_text_is_set_as_that_text(text: str) -> None:
    assert read_line(hints.value(text), "--set").data == text


def stopped(tiny_run: TinyRun, after: int, *changes: str) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain(*changes, stop_after=after, run="runs/tiny").train()


def plan(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    capsys.readouterr()
    run(["vdiff", "train", "-r", RECIPE, "--device", "cpu", "--dry-run", "--json", *more])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_dry_run_of_a_begun_run_prices_what_is_left(
    here: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(tiny_run, 4)
    [stage] = plan(capsys)["stages"]  # type: ignore[misc]
    assert (stage["updates"], stage["saved_updates"]) == (5, 4)
    [anew] = plan(capsys, "--force")["stages"]  # type: ignore[misc]
    assert anew["saved_updates"] == 0
    run(["vdiff", "train", "-r", RECIPE, "--device", "cpu", "--dry-run"])
    said = capsys.readouterr().err
    assert "`original` goes on at update 4: 1 update left, which is what is priced" in said


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ("network.width=8", 2, "network.width: 4 -> 8"),
        ("train.updates=1", 2, "4 updates of this stage are done"),
        ("data.path=nowhere", 3, "nowhere"),
    ],
)
def test_a_dry_run_of_a_begun_run_refuses_what_the_command_refuses(
    here: Path,
    tiny_run: TinyRun,
    capsys: pytest.CaptureFixture[str],
    change: str,
    code: int,
    told: str,
) -> None:
    stopped(tiny_run, 4)
    before = sorted(here.rglob("*"))
    for more in (["--dry-run"], []):
        given = ["-r", RECIPE, "--device", "cpu", "--set", change]
        run(["vdiff", "train", *given, *more], code=code)
        assert told in capsys.readouterr().err
    assert [path for path in sorted(here.rglob("*")) if path not in before] == []


def test_a_dry_run_tells_of_changes_that_are_ignored_and_models_that_are_replaced(
    here: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill(count=1)
    given = ["-r", RECIPE, "--device", "cpu", "--dry-run"]
    run(["vdiff", "train", *given, "--set", "network.width=8"])
    assert "network.width: 4 -> 8" in capsys.readouterr().err
    run(["vdiff", "train", *given, "--force"])
    assert "`base_0`: distilled from the `original` that is there" in capsys.readouterr().err
    run(["vdiff", "distill", *given, "--set", "distill.factor=[4, 2]"], code=2)
