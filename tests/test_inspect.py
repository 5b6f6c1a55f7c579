"""`vdiff inspect`: what it tells of runs, models, stores, recipes and foreign files,
and that no stranger harms it.
"""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vdiff.cli import main
from vdiff.data.store import ImageStore
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.disk import manifest
from vdiff.errors import DataError, ModelFileError, UsageError
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import CONFIG, MANIFEST, WEIGHTS
from vdiff.model_folder.checkpoint import ModelCard
from vdiff.networks.unet import UNetSection
from vdiff.runs import folder as run_folder
from vdiff.runs import savepoint

RECIPE = """
name: toy
data: {path: data/toy, size: 8, channels: 1}
network: {width: 8, multipliers: [1], blocks: 1}
train: {updates: 100, batch_size: 4}
distill: {start_steps: 4, end_steps: 1, updates: 10, batch_size: 2}
"""
NETWORK = UNetSection(width=8, multipliers=(1,), blocks=1)
NAMES = ["original", "base_0", "base_1"]


def denoiser(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    section = DiffusionSection()
    return Denoiser(NETWORK.build(8, 1), section.schedule.build(), section.predicts)


def save(run: Path, stage: int, teacher: ModelCard | None, seed: int) -> ModelCard:
    """A model folder as a chain of 4, 2 and 1 steps leaves it."""
    model = denoiser(seed)
    card = ModelCard(
        name=NAMES[stage],
        stage=stage,
        num_steps=4 >> stage,
        times=None if teacher is None else 4 >> stage,
        updates=10 if stage else 100,
        shape=(1, 8, 8),
        num_classes=0,
        num_parameters=sum(weight.numel() for weight in model.network.parameters()),
        network="unet",
        diffusion=DiffusionSection().model_dump(mode="json"),
        recipe=RECIPE,
        parent={"name": teacher.name, "num_steps": teacher.num_steps, "hash": teacher.hash}
        if teacher
        else None,
        data={"fingerprint": "ab" * 32, "num_images": 12},
        is_denoiser=teacher is None,
    )
    return checkpoint.save(run / card.name, card, model)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three model folders; not to be changed."""
    run = tmp_path_factory.mktemp("finished")
    teacher = None
    for stage in range(3):
        teacher = save(run, stage, teacher, seed=stage)
    (run / ".lock").touch()
    return run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the recipe of the run `runs/toy`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VDIFF_RECIPE", raising=False)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def run(finished: Path, here: Path) -> Path:
    """A copy of the run, where `vdiff inspect` looks for it."""
    shutil.copytree(finished, here / "runs/toy")
    return Path("runs/toy")


Inspect = Callable[..., dict[str, Any]]


@pytest.fixture
def facts(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """The object that `vdiff inspect --json` prints."""

    def inspect(*arguments: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["inspect", "--json", *arguments]) == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return inspect


def edit(folder: Path, **changes: Any) -> None:
    """Change what a model folder says about itself."""
    path = folder / MANIFEST
    content = {
        name: value
        for name, value in json.loads(path.read_text()).items()
        if name not in ("sealed", "sha256")
    }
    path.write_text(json.dumps({**content, **changes}))  # without a seal, as in the first release


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_every_model_folder_of_the_run_is_listed_with_its_steps(
    run: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    assert main(["inspect"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == [
        "name",
        "stage",
        "steps",
        "parent",
        "parameters",
        "updates",
        "MB",
        "hash",
        "state",
    ]
    assert [(row[0], row[2], row[-1]) for row in rows[1:]] == [
        ("original", "4", "whole"),
        ("base_0", "2", "whole"),
        ("base_1", "1", "whole"),
    ]
    found = facts()
    assert (found["kind"], found["path"], found["warnings"]) == ("run", "runs/toy", [])
    assert [row["num_steps"] for row in found["models"]] == [4, 2, 1]
    parents = [row["parent"]["hash"] for row in found["models"][1:]]
    assert parents == [row["hash"] for row in found["models"][:-1]]
    sizes = [
        sum(
            path.stat().st_size
            for path in (run / name).rglob("*.*")
            if path.name not in (MANIFEST, "README.md")
        )
        for name in NAMES
    ]
    assert [row["bytes"] for row in found["models"]] == sizes


def test_a_mistake_in_the_recipe_does_not_hide_its_run(
    run: Path, here: Path, facts: Inspect
) -> None:
    (here / "recipe.yaml").write_text(RECIPE.replace("updates", "updaets"))
    assert len(facts()["models"]) == 3


def test_a_recipe_without_a_usable_name_tells_its_mistake(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "recipe.yaml").write_text(RECIPE.replace("name: toy", "name: ../toy"))
    assert main(["inspect"]) == UsageError.exit_code
    assert "`name`" in capsys.readouterr().err


def test_a_run_that_has_not_begun_is_no_error(
    capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    assert main(["inspect"]) == 0
    assert "`vdiff train` makes the first" in capsys.readouterr().err
    assert facts()["models"] == []


def test_run_names_another_run(
    run: Path, here: Path, facts: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    run.rename(here / "elsewhere")
    assert len(facts("--run", "elsewhere")["models"]) == 3
    assert len(facts("elsewhere")["models"]) == 3
    assert main(["inspect", "--run", "nowhere"]) == UsageError.exit_code
    assert "there is no run folder `nowhere`" in capsys.readouterr().err


def test_a_model_in_the_run_can_be_named(
    run: Path, facts: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    assert facts("base_1")["path"] == "runs/toy/base_1"
    assert main(["inspect", "base_7"]) == ModelFileError.exit_code
    assert "take one of: original, base_0, base_1" in capsys.readouterr().err


def test_a_path_that_does_not_exist_is_one_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "recipe.yaml").unlink()
    assert main(["inspect", "typo.pt"]) == UsageError.exit_code
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "error: there is no `typo.pt`")


def stop_stage(run: Path, stage: str, teacher: str, *updates: int) -> Path:
    """Leave the saves of a stage that was stopped."""
    trajectory = {
        "stage": 3,
        "num_steps": 1,
        "start_steps": 2,
        "distill.updates": 500,
        "teacher": teacher,
    }
    state = {"weights": {"w": torch.ones(3)}}
    for update in updates:
        savepoint.write(
            run / "saves" / stage, update, state, {"rows": torch.zeros(0, 2)}, trajectory
        )
    return run / "saves" / stage / f"{updates[-1]:09d}"


def test_a_stage_that_was_stopped_is_listed_with_its_last_save(
    run: Path, facts: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = checkpoint.read_card(run / "base_1")
    newest = stop_stage(run, "base_2", teacher.hash, 100, 200)
    last = facts()["models"][-1]
    assert (last["name"], last["state"], last["num_steps"], last["stage"]) == (
        "base_2",
        "unfinished",
        1,
        3,
    )
    assert (last["updates"], last["planned_updates"], last["parent"]["name"]) == (
        200,
        500,
        "base_1",
    )
    assert main(["inspect"]) == 0
    assert "200 of 500" in capsys.readouterr().out
    (newest / "weights.safetensors").write_bytes(b"")
    damaged = facts(code=4)["models"][-1]
    assert (damaged["state"], damaged["updates"]) == ("unfinished", 100)
    assert damaged["problems"][0].startswith("000000200/weights.safetensors: 0 bytes instead of ")


@pytest.mark.parametrize(
    "trajectory", [[], "x", {"stage": "1", "num_steps": -1, "teacher": [], "train.updates": {}}]
)
def test_odd_facts_in_a_save_are_left_out(run: Path, trajectory: Any, facts: Inspect) -> None:
    point = stop_stage(run, "base_2", "", 100)
    state = json.loads((point / run_folder.STATE).read_text())
    (point / run_folder.STATE).write_text(
        manifest.sealed({**state, "trajectory": trajectory, "update": "many"})
    )
    last = facts()["models"][-1]
    assert (last["state"], last["stage"], last["parent"], last["updates"]) == (
        "unfinished",
        None,
        None,
        None,
    )


def test_only_saves_is_a_run_without_models(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop_stage(here / "runs/toy", "original", "", 100)
    assert main(["inspect"]) == 0
    out, err = capsys.readouterr()
    assert "unfinished" in out
    assert "no model folder yet in `runs/toy`; `vdiff train` goes on" in err


def test_a_student_of_another_teacher_is_pointed_out(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(run, 0, None, seed=7)
    assert main(["inspect"]) == 0
    assert "warning: `base_0` was distilled from another `original`" in capsys.readouterr().err


def test_what_is_missing_or_cut_off_is_seen_without_verify(
    run: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    (run / "base_0" / WEIGHTS).write_bytes(b"short")
    (run / "base_1" / CONFIG).unlink()
    assert [row["state"] for row in facts(code=4)["models"]] == ["whole", "damaged", "damaged"]
    assert main(["inspect"]) == 4
    out, err = capsys.readouterr()
    assert out.count("damaged") == 2
    assert f"runs/toy/base_0: {WEIGHTS}: 5 bytes instead of" in err
    assert f"runs/toy/base_1: {CONFIG}: missing" in err


@pytest.mark.parametrize("target", ["", "base_0", "runs/toy/base_0", "runs/toy/base_0/vdiff.json"])
def test_a_flipped_bit_is_found_by_verify(
    target: str, run: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    targets = [target] if target else []
    assert main(["inspect", "--verify", *targets]) == 0
    assert "every file of" in capsys.readouterr().err
    flip_a_bit(run / "base_0" / WEIGHTS)
    assert main(["inspect", *targets]) == 0
    assert main(["inspect", "--verify", *targets]) == 4
    assert f"{WEIGHTS}: its content changed (SHA-256 differs)" in capsys.readouterr().err
    assert facts("--verify", *targets, code=4)["verified"]


def test_a_model_folder_tells_all_that_is_on_its_card(
    run: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    card, found = checkpoint.read_card(run / "base_1"), facts("base_1")
    assert (found["kind"], found["name"], found["stage"], found["num_steps"]) == (
        "model",
        "base_1",
        2,
        1,
    )
    assert (found["shape"], found["hash"], found["recipe"]) == ([1, 8, 8], card.hash, RECIPE)
    assert (found["files"], found["versions"]) == (card.files, card.versions)
    assert [(each["name"], each["path"] is not None) for each in found["lineage"]] == [
        ("base_0", True),
        ("original", True),
    ]
    assert main(["inspect", "base_1"]) == 0
    out = capsys.readouterr().out
    for text in (
        "1, distilled",
        "1 x 8 x 8",
        "cosine, grid 1024",
        "base_0 (2 steps",
        card.hash,
        "torch",
        "ab" * 32,
    ):
        assert text in out
    assert all(name in out for name in card.files)


def test_a_teacher_that_lies_elsewhere_ends_the_lineage(run: Path, facts: Inspect) -> None:
    shutil.rmtree(run / "original")
    assert [(each["name"], each["path"]) for each in facts("base_0")["lineage"]] == [
        ("original", None)
    ]


def test_a_model_that_is_its_own_teacher_does_not_go_on_forever(run: Path, facts: Inspect) -> None:
    own = checkpoint.read_card(run / "base_0").hash
    edit(run / "base_0", parent={"name": "base_0", "num_steps": 2, "hash": own})
    assert [each["name"] for each in facts("base_0")["lineage"]] == ["base_0"]


def test_a_store_tells_what_it_says_about_itself(
    store: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    found = facts(str(store), "--verify")
    assert (found["kind"], found["num_images"], found["sizes"], found["verified"]) == (
        "store",
        12,
        [8, 16],
        True,
    )
    assert (found["channels"], found["encoding"], found["class_names"]) == (
        3,
        "png",
        ["cat", "dog"],
    )
    assert main(["inspect", str(store / "data.mdb")]) == 0
    assert "2: cat, dog" in capsys.readouterr().out
    record = ImageStore(store).read(3, 16)
    with (store / "data.mdb").open("r+b") as file:
        file.seek(file.read().index(record) + 40)
        file.write(bytes([record[40] ^ 1]))
    # so small a picture lies in a page that leads to others
    assert main(["inspect", str(store)]) == 3
    (store / "store.json").unlink()
    assert main(["inspect", str(store)]) == 0
    assert main(["inspect", str(store), "--verify"]) == DataError.exit_code
    assert "its checksum differs" in capsys.readouterr().err


def test_a_recipe_tells_its_stages_and_the_number_of_weights(
    capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    found = facts("recipe.yaml")
    assert found["num_parameters"] == sum(
        weight.numel() for weight in NETWORK.build(8, 1).parameters()
    )
    stages = [
        (stage["name"], stage["start_steps"], stage["num_steps"], stage["updates"])
        for stage in found["stages"]
    ]
    assert stages == [("original", 4, 4, 100), ("base_0", 4, 2, 10), ("base_1", 2, 1, 10)]
    assert facts(".")["kind"] == "recipe"
    assert main(["inspect", "recipe.yaml"]) == 0
    assert "4 -> 2" in capsys.readouterr().out


def test_a_wrong_recipe_tells_its_mistakes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "wrong.yaml").write_text(RECIPE.replace("width", "wdith"))
    assert main(["inspect", "wrong.yaml"]) == UsageError.exit_code
    assert "did you mean" in capsys.readouterr().err


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("was-executed",)


def test_a_foreign_file_is_described_and_nothing_in_it_is_run(
    here: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    torch.save({"weights": torch.ones(2, 3), "evil": Evil()}, here / "evil.pt")
    found = facts("evil.pt")
    assert (found["kind"], found["num_parameters"]) == ("foreign", 6)
    assert main(["inspect", "evil.pt", "--verify"]) == 0
    err = capsys.readouterr().err
    assert "would run code: posix.mkdir" in err
    assert "tells no checksums" in err
    assert not (here / "was-executed").exists()


def test_several_paths_are_one_object_and_one_text_each(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    save_file({"w": torch.ones(2)}, here / "w.safetensors")
    paths = ["base_0", "w.safetensors", "recipe.yaml", "runs/toy"]
    assert [each["kind"] for each in facts(*paths)["inspected"]] == [
        "model",
        "foreign",
        "recipe",
        "run",
    ]
    assert main(["inspect", *paths]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(":")] == [
        "runs/toy/base_0:",
        *(f"{path}:" for path in paths[1:]),
    ]


def test_nothing_is_changed(run: Path, here: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in here.rglob("*")}
    assert main(["inspect", "--verify"]) == 0
    assert main(["inspect", "--verify", "base_1", "recipe.yaml"]) == 0
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in here.rglob("*")
    } == before


def test_runs_and_models_are_described_without_torch(run: Path) -> None:
    code = (
        "import sys; from vdiff.cli import main; main(['inspect']); main(['inspect', 'base_0']); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "base_1" in done.stdout
    assert not {"torch", "safetensors"} & set(done.stdout.splitlines()[-1].split())


def in_terminal(columns: int, *arguments: str) -> list[str]:
    """The lines that a terminal of this width shows."""
    ours, theirs = pty.openpty()
    code = f"from vdiff.cli import main; main({list(arguments)})"
    env = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=subprocess.DEVNULL, env=env
    ):
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # how Linux says that the other end is closed
        finally:
            os.close(ours)
    return re.sub(r"\r|\x1b\[\d*m", "", shown.decode()).splitlines()


def test_a_narrow_terminal_gets_the_most_important_columns(run: Path) -> None:
    lines = in_terminal(60, "inspect")
    assert max(map(len, lines)) <= 60
    assert {"name", "steps", "updates", "state"} <= set(lines[0].split())
    assert [line.split()[0] for line in lines[1:]] == NAMES


SHA = "0" * 64
ENTRY = {"size": 1, "sha256": SHA}
FILES = {WEIGHTS: ENTRY, CONFIG: ENTRY}
RED = "\x1b[31m"

HOSTILE: dict[str, dict[str, Any]] = {
    "a name with an escape sequence": {"name": f"{RED}base"},
    "a name with a C1 control": {"name": "\x9b31mbase"},
    "a name with a right-to-left override": {"name": "base\u202e"},
    "a name with a line break": {"name": "base\nbase"},
    "a name that is a number": {"name": 3},
    "a network with an escape sequence": {"network": f"unet{RED}"},
    "an escape sequence deep inside": {"trajectory": {"a": [{"b": RED}]}},
    "an escape sequence in a key": {"versions": {RED: "1"}},
    "versions that are no text": {"versions": {"torch": [1]}},
    "steps below one": {"num_steps": 0},
    "steps that are text": {"num_steps": "4"},
    "steps that are true": {"num_steps": True},
    "steps that are a fraction": {"num_steps": 1.5},
    "steps without end": {"num_steps": 10**30},
    "steps with more digits than Python reads": {"num_steps": 10**4000},
    "parameters below zero": {"num_parameters": -1},
    "a shape of two": {"shape": [8, 8]},
    "a shape of text": {"shape": "888"},
    "a shape with a zero": {"shape": [1, 0, 8]},
    "an endless shape": {"shape": [1] * 100_000},
    "a long number that nobody asks for": {"data": {"x": 10**4000}},
    "thirty levels": {"trajectory": json.loads('{"a": ' * 30 + "1" + "}" * 30)},
    "not a number": {"data": {"x": float("nan")}},
    "infinity": {"data": {"x": float("inf")}},
    "a diffusion that is a list": {"diffusion": []},
    "a recipe that is none": {"recipe": None},
    "a parent without a hash": {"parent": {"name": "base_0", "num_steps": 2}},
    "a parent with an odd hash": {"parent": {"name": "base_0", "num_steps": 2, "hash": RED}},
    "a parent that is text": {"parent": "base_0"},
    "a format from the future": {"format": 10**9},
    "a format that is text": {"format": "1"},
    "no format": {"format": None},
    "no files": {"files": {}},
    "files that are a list": {"files": []},
    "a file outside": {"files": {**FILES, "../../secret": ENTRY}},
    "an absolute file": {"files": {**FILES, "/etc/passwd": ENTRY}},
    "a file with a NUL": {"files": {**FILES, "a\0b": ENTRY}},
    "a file with an endless name": {"files": {**FILES, "a" * 5000: ENTRY}},
    "a file without a hash": {"files": {**FILES, "a": {"size": 1}}},
    "a file with an infinite size": {"files": {**FILES, "a": {"size": 1e999, "sha256": SHA}}},
    "a file with a size that is text": {
        "files": {**FILES, "a": {"size": "9" * 5000, "sha256": SHA}}
    },
    "a file that is a number": {"files": {**FILES, "a": 7}},
    "no weights among the files": {"files": {CONFIG: ENTRY}},
}


def assert_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One message, exit code 4, and nothing that a terminal would obey."""
    capsys.readouterr()
    for options in ([], ["--verify"], ["--json"]):
        assert main(["inspect", *options, str(folder)]) == ModelFileError.exit_code
        out, err = capsys.readouterr()
        assert err.count("error: ") == 1
        assert "bug in vdiff" not in err
        assert max(map(len, err.splitlines())) < 500
        assert not {"\x1b", "\x9b", "\u202e"} & set(out + err)


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_card_is_refused_with_one_message(
    changes: dict[str, Any], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run / "base_0", **changes)
    assert_refused(run / "base_0", capsys)


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"[]",
            b"3",
            b"{",
            b"\xff\xfe",
            b'{"files": ' + b"[" * 100_000,
            b'{"a": ' * 50 + b"1" + b"}" * 50,
        ),
        *(b'{"files": {}, "a": "' + b"x" * 2**23 + b'"}', b'{"num_steps": ' + b"9" * 10_000 + b"}"),
    ],
)
def test_a_file_that_is_no_card_is_refused_with_one_message(
    content: bytes, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "base_0" / MANIFEST).write_bytes(content)
    assert_refused(run / "base_0", capsys)


def test_a_hostile_card_does_not_hide_the_others(
    run: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    evil = (run / "original").rename(run / f"{RED}original")
    edit(evil, name=RED)
    assert [row["state"] for row in facts(code=4)["models"]] == ["whole", "whole", "damaged"]
    assert main(["inspect"]) == 4
    out, err = capsys.readouterr()
    assert "base_1" in out
    assert "\x1b" not in out + err


def test_texts_that_a_card_may_hold_do_no_harm(
    run: Path, capsys: pytest.CaptureFixture[str], facts: Inspect
) -> None:
    texts = {
        "kind": ["a\u202eb", {"b\nc": "d\te"}],
        "n": 10**18,
        "list": list(range(10_000)),
        "long": "x" * 9999,
    }
    edit(run / "base_0", diffusion=texts, data=texts, trajectory=texts, recipe="# \u200d\n\u202e")
    assert facts("base_0")["recipe"] == "# \\u200d\n\\u202e"
    assert main(["inspect", "base_0"]) == 0
    out = capsys.readouterr().out
    assert "\u202e" not in out
    assert max(map(len, out.splitlines())) < 300


def test_a_link_out_of_a_model_folder_is_damage(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "base_0" / CONFIG
    outside = path.rename(here / "outside.json")
    path.symlink_to(outside)
    assert main(["inspect", "base_0"]) == 4
    assert f"{CONFIG}: leads out of the folder" in capsys.readouterr().err


def rewrite(folder: Path, name: str, content: bytes | None = None) -> None:
    """Replace a file of a model folder, and let its card agree."""
    if content is not None:
        (folder / name).write_bytes(content)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    size, sha256 = (folder / name).stat().st_size, manifest.sha256_of(folder / name)
    edit(folder, files={**files, name: {"size": size, "sha256": sha256}})


def test_a_configuration_that_does_not_fit_the_weights_takes_no_memory(run: Path) -> None:
    config = json.loads((run / "base_0" / CONFIG).read_text())
    config |= {
        "block_out_channels": [65536],
        "norm_num_groups": 1,
        "attn_norm_num_groups": 1,
        "layers_per_block": 16,
    }
    rewrite(run / "base_0", CONFIG, json.dumps(config).encode())
    with pytest.raises(ModelFileError, match="do not fit"):
        checkpoint.load(run / "base_0")


def test_a_configuration_that_is_not_json_is_refused(run: Path) -> None:
    rewrite(run / "base_0", CONFIG, b"{")
    with pytest.raises(ModelFileError, match="damaged"):
        checkpoint.load(run / "base_0")


def test_weights_that_are_whole_numbers_are_refused(run: Path) -> None:
    weights = checkpoint.load_tensors(run / "base_0" / WEIGHTS)
    save_file(
        {name: tensor.to(torch.int32) for name, tensor in weights.items()}, run / "base_0" / WEIGHTS
    )
    rewrite(run / "base_0", WEIGHTS)
    with pytest.raises(ModelFileError, match="do not fit"):
        checkpoint.load(run / "base_0")


@pytest.mark.parametrize(
    "diffusion", [{}, {"schedule": {"kind": "os"}}, {"predicts": "z"}, {"schedule": 3}]
)
def test_a_noise_process_that_nobody_knows_is_refused(diffusion: dict[str, Any], run: Path) -> None:
    edit(run / "base_0", diffusion={**diffusion, "unknown": 1})
    with pytest.raises(ModelFileError, match="noise process"):
        checkpoint.load(run / "base_0")


def test_a_card_of_this_version_with_more_on_it_is_read(run: Path) -> None:
    before = checkpoint.read_card(run / "base_0")
    edit(run / "base_0", something="new")
    assert checkpoint.read_card(run / "base_0") == before
    assert replace(before, num_steps=2) == before
