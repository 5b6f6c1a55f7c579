"""How vdiff knows what it made: what others put beside, inside or in between stays,
also when a process is killed.
"""

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import MakePictures
from tests.failing_disk import Call, Disk, Killed
from tests.tiny import TinyRun
from vdiff.data import publishing
from vdiff.data.prepare import prepare
from vdiff.data.store import ImageStore, StoreWriter
from vdiff.disk import lock, ours, whole_folder
from vdiff.disk.ours import Kind
from vdiff.errors import Stopped, UsageError
from vdiff.model_folder.card import MODEL
from vdiff.runs import contents as run_contents
from vdiff.runs.contents import SAVE
from vdiff.runs.folder import RunFolder
from vdiff.training import log_file

MINE = "my only copy\n"


def notes(folder: Path) -> Path:
    """A file of the user's in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.txt").write_text(MINE)
    return folder / "notes.txt"


def write(folder: Path, text: str) -> None:
    def fill(target: Path) -> None:
        (target / "unet").mkdir()
        (target / "unet/config.json").write_text(text)

    whole_folder.write(folder, MODEL, {"text": text}, fill, 100)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what vdiff writes is what it knows


def test_all_that_a_run_leaves_is_known_as_ours_also_when_it_is_half_there(
    tiny_run: TinyRun,
) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain("train.save_every=1", stop_after=3).train()
    [*points] = tiny_run.folder().points("original")
    tiny_run.base("train.preview_every=2")
    run = tiny_run.folder()
    assert points
    assert MODEL.stranger(run.model("original")) is None
    (run.model("original") / "vdiff.json").unlink()
    assert MODEL.stranger(run.model("original")) is None
    for path in run.model("original").rglob("*"):
        name = path.relative_to(run.model("original")).as_posix() + "/" * path.is_dir()
        assert MODEL.paths.fullmatch(name), (
            f"a folder that was half made with `{name}` would never be removed"
        )
    assert log_file.is_log(run.log)
    assert list(run.previews.iterdir())
    for path in (*run.previews.iterdir(), run.model("original") / "samples.png"):
        assert ours.is_picture(path), path


def test_every_file_of_a_save_is_known(tiny_run: TinyRun) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain(stop_after=3).train()
    point = tiny_run.folder().points("original")[0]
    for path in point.iterdir():
        assert SAVE.paths.fullmatch(path.name), path.name
    (point / "state.json").unlink()
    assert SAVE.stranger(point) is None


def test_a_pipeline_of_diffusers_is_not_taken_for_a_model_that_lost_its_mark(
    tiny_run: TinyRun,
) -> None:
    """It has the very files that ours has."""
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        8,
        3,
        3,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=1,
    )
    folder = tiny_run.folder().model("original")
    diffusers.DDIMPipeline(network, diffusers.DDIMScheduler()).save_pretrained(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {"model_index.json", "config.json"} <= {path.name for path in before}
    for force in (False, True):
        with pytest.raises(
            UsageError, match="original` is a folder already, and vdiff did not make it"
        ):
            tiny_run.chain().train(force=force)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# ---- in a run


def test_what_lies_in_a_model_folder_keeps_it_from_being_replaced(tiny_run: TinyRun) -> None:
    tiny_run.base()
    tiny_run.chain().distill(count=1)
    for name, make in (
        ("original", lambda: tiny_run.chain().train(force=True)),
        ("base_0", lambda: tiny_run.chain().distill(source="original", count=1, force=True)),
    ):
        mine = notes(tiny_run.folder().model(name))
        hashes = tiny_run.hashes()
        with pytest.raises(
            UsageError, match=rf"{name}/notes\.txt` is there, and vdiff did not make it"
        ) as found:
            make()
        assert "--run" in found.value.fix
        assert mine.read_text() == MINE
        assert tiny_run.hashes() == hashes
        mine.unlink()
        make()


def test_what_lies_in_a_save_survives_the_end_of_its_stage(tiny_run: TinyRun) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain("train.save_every=1", stop_after=3).train()
    saves = tiny_run.folder().saves("original")
    newest, oldest = tiny_run.folder().points("original")
    inside, beside = notes(oldest), notes(saves / "2024-backup")
    (saves / "000000009").write_text(MINE)
    with pytest.raises(UsageError, match=r"notes\.txt|000000009"):
        tiny_run.base()
    (saves / "000000009").rename(saves / "nine")
    with pytest.raises(UsageError, match="notes"):
        tiny_run.chain().train(force=True)
    shutil.move(inside, saves / "kept.txt")
    tiny_run.base()
    assert names(saves) == ["000000005", "2024-backup", "kept.txt", "nine"]
    assert {beside.read_text(), (saves / "kept.txt").read_text(), (saves / "nine").read_text()} == {
        MINE
    }
    assert not newest.exists()


def test_what_is_put_into_a_save_while_training_goes_on_does_not_end_it(tiny_run: TinyRun) -> None:
    chain = tiny_run.chain("train.save_every=1")
    told: list[str] = []
    sound = chain._progress.saved

    def saved(what: str) -> None:
        told.append(what)
        if len(told) == 1:
            notes(tiny_run.folder().points("original")[0])
        sound(what)

    chain._progress.saved = saved  # type: ignore[method-assign]
    chain.train()
    left = [
        path.relative_to(tiny_run.folder().saves("original")).parts[1:]
        for path in _files(tiny_run, "saves")
    ]
    assert ("notes.txt",) in left


def _files(run: TinyRun, name: str) -> Iterator[Path]:
    return (path for path in (run.folder().path / name).rglob("*") if path.is_file())


def test_a_model_that_somebody_puts_into_the_place_while_it_is_trained_stays(
    tiny_run: TinyRun,
) -> None:
    chain = tiny_run.chain()
    folder = tiny_run.folder().model("original")
    sound = chain._progress.saved

    def saved(what: str) -> None:
        if not folder.exists():
            notes(folder)
        sound(what)

    chain._progress.saved = saved  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="original` is a folder already") as found:
        chain.train()
    assert "type the same command again: what was done until now is kept" in found.value.fix
    assert names(folder) == ["notes.txt"]
    assert tiny_run.folder().points("original")[0].name == "000000005"
    shutil.rmtree(folder)
    assert tiny_run.chain().train().updates == 5


@pytest.mark.parametrize("name", ["status.json", "log.jsonl", "recipe.yaml"])
def test_a_damaged_file_of_a_run_is_kept_under_another_name(tiny_run: TinyRun, name: str) -> None:
    with pytest.raises(Stopped), tiny_run.folder().lock():
        tiny_run.chain(stop_after=3).train()
    run = tiny_run.folder()
    (run.path / name).write_text(MINE)
    said: list[str] = []
    with run.lock(said.append):
        tiny_run.base()
    stem, _, ending = name.partition(".")
    assert (run.path / f"{stem}-1.{ending}").read_text() == MINE
    assert any(f"it is kept as `{stem}-1.{ending}`" in line for line in [*said, *tiny_run.said])
    assert name == "status.json" or MINE not in (run.path / name).read_text()


def test_the_recipe_of_a_run_follows_the_recipe_and_what_was_changed_by_hand_is_kept(
    tiny_run: TinyRun,
) -> None:
    tiny_run.base()
    run, text = tiny_run.folder(), tiny_run.text
    tiny_run.text = text + "# 1\n"
    tiny_run.base()
    assert run.recipe.read_text() == text  # nothing came of it
    tiny_run.chain().distill(count=1)
    assert run.recipe.read_text() == tiny_run.text
    assert not list(run.path.glob("recipe-*"))
    run.recipe.write_text("# changed by hand\n")
    tiny_run.chain().distill(count=1)
    assert run.recipe.read_text() == tiny_run.text
    assert (run.path / "recipe-1.yaml").read_text() == "# changed by hand\n"


def test_a_recipe_in_the_place_of_its_own_copy_is_not_replaced_by_a_changed_one(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vdiff.cli import main

    monkeypatch.chdir(tiny_run.path)
    monkeypatch.delenv("VDIFF_RECIPE", raising=False)
    command = ["train", "--run", ".", "--device", "cpu", "-q"]
    assert main([*command, "--set", "train.updates=2"]) == 2
    assert "is your recipe" in capsys.readouterr().err
    assert not Path("log.jsonl").exists()
    assert main(command) == 0
    assert Path("recipe.yaml").read_text() == tiny_run.text


def test_leftovers_of_others_and_those_with_something_of_others_in_them_stay(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path / "run")
    stay = [
        notes(run.path / name)
        for name in (".original.partial-1-2", ".original.partial-old", ".x.partial-mine")
    ]
    (run.path / ".original.partial-1-2/unet").mkdir()
    (run.path / ".original.partial-1-2/unet/config.json").write_text("{}")
    (run.path / ".movie.partial-download").write_text(MINE)
    goes = [run.path / ".base_0.partial-3-4/unet", run.path / ".base_1.partial-7"]
    for folder in goes:
        folder.mkdir(parents=True)
    with run.lock():
        assert not any(folder.exists() for folder in goes)
        (run.path / "log.jsonl").touch()
    assert {path.read_text() for path in (*stay, run.path / ".movie.partial-download")} == {MINE}


def test_leftovers_of_earlier_versions_go(tmp_path: Path) -> None:
    """They set all saves of a stage aside together."""
    run = RunFolder(tmp_path / "run")
    old = run.path / "saves/.original.partial-12-13"
    (old / "000000002").mkdir(parents=True)
    (old / "000000002/weights.safetensors").touch()
    with run.lock():
        assert not old.exists()


def test_previews_and_traces_never_take_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "original-0000002.png").write_text(MINE)
    assert run_contents.preview(tmp_path, "original", 2).name == "original-0000002-1.png"
    (tmp_path / "original.json.gz").write_text(MINE)
    (tmp_path / "original-1.json.gz").symlink_to("nowhere")
    assert ours.free_name(tmp_path / "original.json.gz").name == "original-2.json.gz"


# ---- stores


def test_a_store_of_others_is_not_replaced_though_its_files_have_the_same_names(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    """As diffusion_distiller leaves it."""
    folder, store = make_pictures(), tmp_path / "store"
    prepare(folder, tmp_path / "other", sizes=[8])
    records = {
        f"8-{index:05d}": ImageStore(tmp_path / "other").read(index, 8) for index in range(12)
    }
    store.mkdir()
    with StoreWriter(store) as writer:
        writer.commit({**records, "length": b"12"})
    before = (store / "data.mdb").read_bytes()
    for place, out in ((store, store), (store.with_name("store.partial"), store)):
        if not place.exists():
            store.rename(place)
        for force in (False, True):
            with pytest.raises(
                UsageError, match=f"{place.name}` is a folder already, and vdiff did not make it"
            ):
                prepare(folder, out, sizes=[8], force=force)
            assert (place / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("harm", ["garbage", "no metadata", "no preview, a flipped key"])
def test_a_damaged_store_is_known_as_ours(
    harm: str, make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder, store = make_pictures(), tmp_path / "store"
    prepare(folder, store, sizes=[8])
    if harm == "garbage":
        (store / "data.mdb").write_bytes(b"damaged")
    elif harm == "no metadata":
        with StoreWriter(store) as writer:
            writer.commit({"vdiff": None})
    else:
        (store / "preview.png").unlink()
        data = (store / "data.mdb").read_bytes()
        assert data.count(b"vdiff{") == 1
        (store / "data.mdb").write_bytes(data.replace(b"vdiff{", b"vdifg{"))
    assert prepare(folder, store, sizes=[16], force=True).sizes == (16,)


def test_what_lies_in_a_store_or_a_begun_one_keeps_it_from_being_replaced(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder, store, begun = make_pictures(), tmp_path / "store", tmp_path / "store.partial"
    prepare(folder, store, sizes=[8])
    mine = notes(store)
    with pytest.raises(UsageError, match=r"store/notes\.txt` is there, and vdiff did not make it"):
        prepare(folder, store, sizes=[16], force=True)
    assert mine.read_text() == MINE
    store.rename(begun)
    with pytest.raises(UsageError, match=r"store\.partial/notes\.txt` is there"):
        prepare(folder, store, sizes=[8])
    assert names(begun) == ["data.mdb", "notes.txt", "preview.png", "source.json", "store.json"]


# ---- in between


def begin_store(target: Path) -> None:
    """A finished one beside `target`."""
    with lock.held(target.with_name("part")):
        (target.with_name("part") / "skipped.tsv").write_text("new")


def begin_with_an_old_store(target: Path) -> None:
    begin_store(target)
    target.with_name("part").rename(target)
    begin_store(target)


def publish(target: Path) -> None:
    publishing.publish(target.with_name("part"), target)


def clean(target: Path) -> None:
    whole_folder.clean(target.parent, MODEL)


Work = Callable[[Path], None]
WORKS: dict[str, tuple[Work, Work, Work]] = {
    "a new folder": (lambda target: None, lambda target: write(target, "new"), clean),
    "a folder replaced": (
        lambda target: write(target, "old"),
        lambda target: write(target, "new"),
        clean,
    ),
    "a folder removed": (
        lambda target: write(target, "old"),
        lambda target: whole_folder.remove(target, MODEL),
        clean,
    ),
    "a file": (
        lambda target: None,
        lambda target: whole_folder.write_text(target, "new", ours.nothing),
        clean,
    ),
    "a store": (begin_store, publish, publishing.tidy),
    "a store replaced": (begin_with_an_old_store, publish, publishing.tidy),
}
"""What is there before, what is done to `target`, and what the next command does first."""


def play(work: str, disk: Path, moment: int, kill_at: int | None = None) -> tuple[str, bool, int]:
    """Do it, and put something of the user's at the target after the call of this number.

    kill_at: the call that a kill -9 comes at; the next command cleans up then.
    Returns how it ended, whether there was a place to put it to, and the number of calls.
    """
    begin, act, recover = WORKS[work]
    for folder in (disk, disk.with_name("moved")):
        shutil.rmtree(folder, ignore_errors=True)
    disk.mkdir()
    target, count, is_put = disk / "target", itertools.count(), False
    begin(target)
    mine = notes(disk.with_name("mine")).parent

    def watch(call: Call) -> None:
        nonlocal is_put
        if next(count) == moment and not target.is_file():
            if target.exists():  # the user moves it away
                subprocess.run(["mv", target, disk.with_name("moved")], check=True)
            # not this process, whose calls are counted
            subprocess.run(["mv", mine, target], check=True)
            is_put = True

    with Disk(disk, kill_at, "killed", watch).in_use() as used:
        try:
            act(target)
            ended = "done"
        except UsageError:
            ended = "refused"
        except Killed:
            ended = "killed"
    if ended == "killed":
        recover(target)
    assert not is_put or (target / "notes.txt").read_text() == MINE, (
        f"{ended}, at call {moment} of {used.calls}"
    )
    return ended, is_put, len(used.calls)


@pytest.mark.parametrize("work", WORKS)
def test_what_comes_into_the_place_at_any_moment_stays_there(work: str, tmp_path: Path) -> None:
    seen = set()
    for moment in itertools.count():
        ended, is_put, num_calls = play(work, tmp_path / "disk", moment)
        seen.add((ended, is_put))
        if moment >= num_calls:
            break
    assert ("refused", True) in seen or work == "a folder removed"
    assert ("done", False) in seen
    assert moment > 3


@pytest.mark.parametrize("work", WORKS)
def test_a_kill_at_any_moment_after_that_loses_nothing_either(work: str, tmp_path: Path) -> None:
    num_killed = 0
    for moment in range(100):
        for kill_at in range(moment + 1, 100):
            ended, is_put, num_calls = play(work, tmp_path / "disk", moment, kill_at)
            num_killed += ended == "killed" and is_put
            if ended != "killed":
                break
        if moment >= num_calls:
            break
    assert num_killed >= 3


def test_what_is_changed_between_the_look_and_setting_it_aside_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment that no call on the disk is in."""
    target = tmp_path / "target"
    sound = Kind.refuse_stranger
    for act in (lambda: write(target, "new"), lambda: whole_folder.remove(target, MODEL)):
        shutil.rmtree(target, ignore_errors=True)
        write(target, "old")
        asked = itertools.count()

        def look(kind: Kind, *given: object) -> None:
            sound(kind, *given)  # type: ignore[arg-type]
            if next(asked) == 0:  # noqa: B023
                notes(target)

        with monkeypatch.context() as patch:
            patch.setattr(Kind, "refuse_stranger", look)
            with pytest.raises(
                UsageError, match=r"target/notes\.txt` is there, and vdiff did not make it"
            ):
                act()
        assert (target / "notes.txt").read_text() == MINE
        assert (target / "unet/config.json").read_text() == "old"
        assert names(tmp_path) == ["target"]


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\xff" * 99]
)
def test_half_of_a_file_is_nothing_that_is_ours(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not ours.is_picture(tmp_path / "a")
    assert not ours.is_archive(tmp_path / "a")
    assert not run_contents.is_status(tmp_path / "a")


def test_logs_are_told_from_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = json.dumps({"stage": "original", "update": 2, "loss": 0.5})
    known = ["", line, line[:20], line[:3], f"{line}\n", f"broken\n{line}\n", f"{line}\n{line[:9]}"]
    others = [
        "mine",
        "mine\n",
        '{"stage": 3}\n',
        '{"stage": "train", "epoch": 1}\n',
        '{"step": 1}\n{"step": 2}\n',
        "\0\0",
    ]
    for text in known:
        path.write_text(text)
        assert log_file.is_log(path), text
    for text in others:
        path.write_text(text)
        assert not log_file.is_log(path), text
