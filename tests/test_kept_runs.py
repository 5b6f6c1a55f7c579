"""What stands in a run: a command that is refused, ignored or interrupted
leaves recipe, models and students as they were.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import TinyRun, sha256
from vdiff.cli import main
from vdiff.errors import DataError, ModelFileError, Stopped, UsageError, VdiffError
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import MODEL
from vdiff.reporting import inspection
from vdiff.runs import savepoint
from vdiff.runs.folder import RunFolder, points

WIDER = "network.width=8"


@pytest.fixture
def here(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe."""
    monkeypatch.chdir(tiny_run.path)
    return tiny_run.path


def train(*more: str, code: int = 0, command: str = "train") -> None:
    assert main([command, "--device", "cpu", *more]) == code


def stop(tiny_run: TinyRun, after: int, *changes: str, force: bool = False) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain(*changes, stop_after=after, run="runs/tiny").train(force)


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def recipe(run: str = "runs/tiny") -> str:
    return (Path(run) / "recipe.yaml").read_text()


def refused_change(tiny_run: TinyRun) -> str:
    """The network of a stage that is begun."""
    stop(tiny_run, 3)
    before = recipe()
    train("--set", WIDER, code=2)
    return before


def refused_length(tiny_run: TinyRun) -> str:
    """Fewer updates than are done."""
    stop(tiny_run, 3)
    before = recipe()
    train("--set", "train.updates=1", code=2)
    return before


def other_pictures(tiny_run: TinyRun) -> str:
    stop(tiny_run, 3)
    before = recipe()
    train("--set", "data.path=nowhere", code=3)
    return before


def refused_student(tiny_run: TinyRun) -> str:
    tiny_run.base(run="runs/tiny")
    with pytest.raises(Stopped):
        tiny_run.chain(stop_after=1, run="runs/tiny").distill()
    before = recipe()
    train("--set", "distill.batch_size=3", command="distill", code=2)
    return before


def ignored_change(tiny_run: TinyRun) -> str:
    """The network of a base that is finished."""
    tiny_run.base(run="runs/tiny")
    before = recipe()
    train("--set", WIDER)
    return before


def damaged_saves(tiny_run: TinyRun) -> str:
    stop(tiny_run, 3)
    before = recipe()
    for state in Path("runs/tiny/saves").rglob("weights.safetensors"):
        state.write_bytes(b"")
    train("--set", "sample.num_images=2", code=4)
    return before


REFUSALS = (
    refused_change,
    refused_length,
    other_pictures,
    refused_student,
    ignored_change,
    damaged_saves,
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: each.__name__)
def test_a_change_that_does_nothing_leaves_the_recipe_of_the_run(
    tiny_run: TinyRun, here: Path, refusal: Callable[[TinyRun], str]
) -> None:
    before = refusal(tiny_run)
    assert recipe() == before


def test_a_change_that_is_ignored_is_told(
    tiny_run: TinyRun, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run.base(run="runs/tiny")
    for command in ("train", "distill"):
        train("--set", WIDER, command=command)
        said = capsys.readouterr().err
        assert "`original` is kept as it was made" in said
        assert "network.width: 4 -> 8" in said


def test_students_are_made_by_a_recipe_that_tells_their_base_as_it_is(
    tiny_run: TinyRun, here: Path
) -> None:
    tiny_run.base(run="runs/tiny")
    train("--set", WIDER, "--set", "distill.updates=3", "--stages", "1", command="distill")
    card = checkpoint.read_card(Path("runs/tiny/base_0"))
    for text in (recipe(), card.recipe):
        Path("told.yaml").write_text(text)
        found = inspection.recipe(Path("told.yaml"))["settings"]
        assert found["network"]["width"] == 4
        assert found["distill"]["updates"] == 3


def test_a_change_that_is_taken_is_in_the_recipe_of_the_run(tiny_run: TinyRun, here: Path) -> None:
    stop(tiny_run, 3)
    train("--set", "train.log_every=1")
    assert "log_every: 1" in recipe()


def test_a_finished_base_stays_until_the_new_one_is_whole(tiny_run: TinyRun, here: Path) -> None:
    tiny_run.base(run="runs/tiny")
    run = tiny_run.folder("runs/tiny")
    before = tree(run.model("original")), tree(run.saves("original"))
    stop(tiny_run, 3, "seed=4", force=True)
    assert tree(run.model("original")) == before[0]
    assert tree(run.kept_saves("original")) == before[1]
    assert not checkpoint.damage(run.model("original"))
    assert run.unfinished() == ["original"]
    states = {row["state"] for row in inspection.run(run.path)["models"]}
    assert states == {"whole", "unfinished"}
    # without --force it goes on, and is the model that nobody stopped
    train("--set", "seed=4")
    tiny_run.base("seed=4", run="unbroken")
    assert tiny_run.hashes("runs/tiny")["original"] == tiny_run.hashes("unbroken")["original"]
    assert run.unfinished() == []
    names = {path.relative_to(run.path).as_posix() for path in run.path.glob("saves/*/*")}
    assert names == {"saves/original/000000005"}


def test_what_is_unfinished_stays_until_what_is_made_again_is_whole(
    tiny_run: TinyRun, here: Path
) -> None:
    stop(tiny_run, 4)
    run = tiny_run.folder("runs/tiny")
    before = tree(run.saves("original"))
    assert before
    stop(tiny_run, 2, "seed=4", force=True)
    assert tree(run.kept_saves("original")) == before
    train("--set", "seed=4")
    tiny_run.base("seed=4", run="unbroken")
    assert tiny_run.hashes("runs/tiny")["original"] == tiny_run.hashes("unbroken")["original"]


def test_a_forced_training_that_is_refused_replaces_nothing_later(
    tiny_run: TinyRun, here: Path
) -> None:
    tiny_run.base(run="runs/tiny")
    before = tree(here / "runs")
    with pytest.raises(DataError):
        tiny_run.chain("data.path=nowhere", run="runs/tiny").train(force=True)
    assert tree(here / "runs") == before
    assert not RunFolder(Path("runs/tiny")).is_anew("original")


def test_a_forced_chain_that_is_stopped_goes_on_with_the_stages_that_are_left(
    tiny_run: TinyRun, here: Path
) -> None:
    tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill(count=3)
    change = "distill.learning_rate=2.0e-3"
    old = tree(here / "runs/tiny/base_2")
    with pytest.raises(Stopped):
        tiny_run.chain(change, stop_after=3, run="runs/tiny").distill(force=True)
    assert tree(here / "runs/tiny/base_2") == old
    for name in ("original", "base_0", "base_1", "base_2"):
        assert not checkpoint.damage(Path("runs/tiny") / name)
    train("--set", change, command="distill")
    tiny_run.base(run="unbroken")
    tiny_run.chain(change, run="unbroken").distill()
    made, wanted = tiny_run.hashes("runs/tiny"), tiny_run.hashes("unbroken")
    assert {name: made[name] for name in made if name != "log.jsonl"} == {
        name: wanted[name] for name in wanted if name != "log.jsonl"
    }
    assert not list(Path("runs/tiny/saves").glob("*.anew"))
    assert not Path("runs/tiny/earlier").exists()


def test_the_teacher_of_students_that_stay_is_set_aside_whole_which_is_said_before(
    tiny_run: TinyRun, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill(count=2)
    run = tiny_run.folder("runs/tiny")
    teacher = tree(run.model("original"))
    students = {name: tree(run.model(name)) for name in ("base_0", "base_1")}
    train("--set", "seed=4", "--force")
    said = capsys.readouterr().err
    aside = run.path.relative_to(here) / "earlier" / f"original-{old.hash[:8]}"
    told = said.index("`base_0`, `base_1`: distilled from the `original` that is there, and kept")
    assert str(aside) in said
    assert told < said.index("original: 5 updates")
    assert tree(aside) == teacher
    assert not checkpoint.damage(aside)
    assert {name: tree(run.model(name)) for name in students} == students
    # it is found as the teacher that it is, and can be drawn with
    lineage = inspection.model(run.model("base_0"))["lineage"]
    assert [Path(each["path"]).name for each in lineage] == [aside.name]
    given = ("--checkpoint", str(aside), "--steps", "2", "-n", "1", "--out", "x.png")
    train(*given, command="sample")
    assert checkpoint.read_card(run.model("original")).hash != old.hash


def test_the_same_base_again_leaves_nothing_aside(tiny_run: TinyRun, here: Path) -> None:
    tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill(count=1)
    train("--force")
    assert not Path("runs/tiny/earlier").exists()


def test_a_longer_base_sets_the_teacher_of_its_students_aside_too(
    tiny_run: TinyRun, here: Path
) -> None:
    constant = ("train.decay=constant",)
    old = tiny_run.base(*constant, run="runs/tiny")
    tiny_run.chain(*constant, run="runs/tiny").distill(count=1)
    tiny_run.chain(*constant, "train.updates=7", run="runs/tiny").train()
    aside = Path("runs/tiny/earlier") / f"original-{old.hash[:8]}"
    assert checkpoint.read_card(aside).hash == old.hash
    assert not checkpoint.damage(aside)


def test_a_folder_of_somebody_else_in_the_place_of_what_is_set_aside_stays(
    tiny_run: TinyRun, here: Path
) -> None:
    old = tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill(count=1)
    mine = Path("runs/tiny/earlier")
    mine.write_text("my only copy")
    with pytest.raises(VdiffError), RunFolder(Path("runs/tiny")).lock():
        raise AssertionError
    train("--set", "seed=4", "--force", code=2)
    assert mine.read_text() == "my only copy"
    assert checkpoint.read_card(Path("runs/tiny/original")).hash == old.hash


def test_a_kill_in_the_middle_of_the_exchange_goes_on(
    tiny_run: TinyRun, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdiff.runs import replacing, savepoint

    old = tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill(count=1)
    shutil.copytree("runs", "before")
    tiny_run.base("seed=4", run="unbroken")
    wanted = tiny_run.hashes("unbroken")["original"]

    class Killed(BaseException):
        pass

    def killed(*given: object) -> None:
        raise Killed

    places = [
        (replacing, "set_aside"),
        (checkpoint, "save"),
        (replacing, "forget_equal"),
        (savepoint, "settle"),
        (savepoint, "clear"),
        (savepoint, "keep_last"),
    ]
    for module, name in places:
        shutil.rmtree("runs")
        shutil.copytree("before", "runs")
        stop(tiny_run, 3, "seed=4", force=True)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(Killed):
                tiny_run.chain("seed=4", run="runs/tiny").train()
        run = tiny_run.folder("runs/tiny")
        assert not checkpoint.damage(run.model("original")), name
        tiny_run.chain("seed=4", run="runs/tiny").train()
        assert tiny_run.hashes("runs/tiny")["original"] == wanted, name
        aside = run.earlier / f"original-{old.hash[:8]}"
        assert MODEL.stranger(aside) is None, name
        assert not checkpoint.damage(aside), name
        points = {path.relative_to(run.path).as_posix() for path in run.path.glob("saves/*/*")}
        assert points == {"saves/original/000000005"}, name


def test_a_distill_from_a_lost_base_is_refused_with_the_recipe_as_it_was(
    tiny_run: TinyRun, here: Path
) -> None:
    tiny_run.base(run="runs/tiny")
    before = recipe()
    shutil.rmtree("runs/tiny/original")
    with pytest.raises((UsageError, ModelFileError)):
        tiny_run.chain(WIDER, run="runs/tiny").distill()
    assert recipe() == before


@pytest.mark.parametrize("keeps", [True, False])
def test_a_kill_while_saves_are_forgotten_begins_no_stage_again(
    tiny_run: TinyRun, here: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    change = f"train.keep_state={str(keeps).lower()}"
    tiny_run.base(change, run="runs/tiny")
    run = tiny_run.folder("runs/tiny")
    forgotten = []

    def killed(folder: Path) -> None:
        forgotten.append(folder)
        for point in points(folder):
            shutil.rmtree(point)
        if folder == run.anew("original"):
            raise KeyboardInterrupt

    stop(tiny_run, 3, change, "seed=4", force=True)
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(savepoint, "clear", killed)
        tiny_run.chain(change, "seed=4", run="runs/tiny").train()
    assert forgotten
    assert not run.is_anew("original")
    new = checkpoint.read_card(run.model("original"))
    assert tiny_run.chain(change, "seed=4", run="runs/tiny").train() == new


def test_a_model_that_is_being_made_again_teaches_nobody(
    tiny_run: TinyRun, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its students would be outdated when the new one is whole."""
    tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill(count=1)
    stop(tiny_run, 3, "seed=4", force=True)
    for more in ((), ("--dry-run",)):
        train("--set", "seed=4", *more, command="distill", code=2)
        told = capsys.readouterr().err
        assert "`original` is being made again" in told
        assert "`vdiff train`" in told
    train("--set", "seed=4")
    train("--set", "seed=4", "--force", "--stages", "1", "--from", "original", command="distill")


def test_a_chain_stands_before_the_stage_that_is_being_made_again(
    tiny_run: TinyRun, here: Path
) -> None:
    tiny_run.base(run="runs/tiny")
    chain = tiny_run.chain(run="runs/tiny")
    chain.distill(count=2)
    with pytest.raises(Stopped):
        tiny_run.chain(stop_after=1, run="runs/tiny").distill("base_0", count=1, force=True)
    assert [card.name for card in chain.distill(count=1)] == ["base_1"]
