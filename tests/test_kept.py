"""A drawing of many pictures that something ends: what was drawn is kept,
the same command goes on, and its result is that of one that nobody ended.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.forked import Forked, vdiff
from tests.full_disk import full_disk
from tests.tiny import TinyRun
from vdiff.cli import main, sample_place
from vdiff.disk import array_file, lock, manifest
from vdiff.drawing.drawing import Drawing
from vdiff.drawing.kept import ABOUT, KEPT, KeptBatches
from vdiff.errors import Stopped, UsageError

FORMS = ["x.npz", "x.zip", "x.png", "x/"]
COUNT = 14
SECONDS = 180.0

Interrupt = Callable[[int | None], None]


@pytest.fixture
def here(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe and a run of one model."""
    tiny_run.base(run="runs/tiny")
    monkeypatch.chdir(tiny_run.path)
    return tiny_run.path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each batch has that is drawn, not read."""
    counts: list[int] = []
    shared = Drawing._shared

    def counted(self: Drawing, part: range) -> Tensor:
        counts.append(len(part))
        return shared(self, part)

    monkeypatch.setattr(Drawing, "_shared", counted)
    return counts


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch, drawn: list[int]) -> Interrupt:
    """Has every drawing end after so many batches, as a signal does; not at all for None."""
    shared = Drawing._shared
    left: list[int | None] = [None]

    def ending(self: Drawing, part: range) -> Tensor:
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped(signal.SIGTERM, "the pictures are not finished")
        return shared(self, part)

    monkeypatch.setattr(Drawing, "_shared", ending)

    def after(batches: int | None) -> None:
        left[0] = batches

    return after


def sample(out: str, *more: str, code: int = 0, count: int = COUNT) -> None:
    given = ["-n", str(count), "--steps", "4", "--batch-size", "4", "--out", out, *more]
    assert main(["sample", "--checkpoint", "original", "--device", "cpu", *given]) == code


def digests(out: str) -> dict[str, str]:
    """SHA-256 of a file, or of every file in a folder; of what is hidden too."""
    path = Path(out)
    files = [path]
    if path.is_dir():
        files = sorted(path.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def beside() -> list[str]:
    """What lies in the current folder and is hidden."""
    return sorted(name for name in os.listdir() if name.startswith(".x"))


def unbroken(out: str) -> dict[str, str]:
    """The same drawing, which nobody ends, in a folder of its own."""
    Path("unbroken").mkdir(exist_ok=True)
    sample(f"unbroken/{out}")
    return digests(f"unbroken/{out}")


@pytest.mark.parametrize("out", FORMS)
def test_a_drawing_that_was_stopped_goes_on_and_is_the_unbroken_one(
    here: Path,
    drawn: list[int],
    interrupt: Interrupt,
    capsys: pytest.CaptureFixture[str],
    out: str,
) -> None:
    wanted = unbroken(out)
    drawn.clear()
    interrupt(2)
    sample(out, code=143)
    assert (
        "8 of 14 pictures are drawn and kept: the same command goes on" in capsys.readouterr().err
    )
    assert beside() == [".x.drawing"] if out == "x/" else [f".{out}.drawing"]
    interrupt(1)
    sample(out, code=143)
    interrupt(None)
    sample(out)
    assert "12 of them done before" in capsys.readouterr().err
    # each batch was drawn once, and the last one is the rest
    assert drawn == [4, 4, 4, 2]
    assert digests(out) == wanted
    assert beside() == []
    # it is complete now, and is told to be there already
    sample(out, code=2)


@pytest.mark.parametrize("out", FORMS)
def test_a_drawing_that_was_killed_goes_on_and_is_the_unbroken_one(here: Path, out: str) -> None:
    count = 300
    rest = ("-n", str(count), "--steps", "8", "--batch-size", "2", "--device", "cpu")
    command = ["sample", "--checkpoint", "original", *rest, "--out", out]
    Path("unbroken").mkdir()
    assert main([*command[:-1], f"unbroken/{out}"]) == 0
    folder = Path(f".{out.rstrip('/')}.drawing")
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = len(list(folder.glob("[0-9]*.npz")))
        process = Forked(vdiff, command, here, {"OMP_NUM_THREADS": "1"})
        try:
            deadline = time.monotonic() + SECONDS
            while len(list(folder.glob("[0-9]*.npz"))) < before + 5 and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(number)
            said = process.communicate(timeout=SECONDS)[0]
        finally:
            process.kill()
        assert process.returncode == code, said
        assert len(list(folder.glob("[0-9]*.npz"))) < count / 2
    assert main(command) == 0
    assert digests(out) == digests(f"unbroken/{out}")
    assert beside() == []


@pytest.mark.parametrize("out", FORMS)
def test_a_full_disk_keeps_what_was_drawn(
    here: Path, drawn: list[int], capsys: pytest.CaptureFixture[str], out: str
) -> None:
    wanted = unbroken(out)
    drawn.clear()
    # the archive of all pictures does not fit, or of a folder not the first batch
    with full_disk(900 if out == "x/" else 1200):
        sample(out, code=6)
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "run the same command again: it goes on" in said
    assert not any(".partial-" in name for name in beside())
    sample(out)
    assert digests(out) == wanted
    assert sum(drawn) < 2 * COUNT


@pytest.mark.parametrize(
    ("more", "change"),
    [
        (["--steps", "2"], "steps: 4 -> 2"),
        (["--seeds", "1-20"], "seeds: 0-13 -> 1-20"),
        (["--sampler", "ancestral"], "sampler: ddim eta=0.0 -> ancestral"),
        (["--class", "1"], "class: by seed -> 1"),
        (["--batch-size", "3"], "batch-size: 4 -> 3"),
    ],
)
def test_another_drawing_is_not_mixed_with_one_that_is_begun(
    here: Path,
    drawn: list[int],
    interrupt: Interrupt,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    change: str,
) -> None:
    interrupt(2)
    for out in ("x.npz", "x/"):
        sample(out, code=143)
        interrupt(None)
        drawn.clear()
        before = digests(f".{out.rstrip('/')}.drawing")
        given = [
            word
            for word in ("-n", "14", "--steps", "4", "--batch-size", "4")
            if "--seeds" not in more or word not in ("-n", "14")
        ]
        command = ["sample", "--checkpoint", "original", "--device", "cpu", "--out", out, *given]
        assert main([*command, *more]) == 2
        said = capsys.readouterr().err
        assert change in said
        assert "type that command again and it goes on" in said
        assert drawn == []
        assert digests(f".{out.rstrip('/')}.drawing") == before
        # --force gives up the other one, and does not take its batches
        assert main([*command, *more, "--force"]) == 0
        assert sum(drawn) in (14, 20)
        assert beside() == []
        interrupt(2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"precision": "bf16"}, "precision: fp32 -> bf16"),
        ({"device": "cuda"}, "device: cpu -> cuda"),
        ({"processes": 2}, "processes: 1 -> 2"),
    ],
)
def test_another_way_of_computing_is_not_mixed_with_one_that_is_begun(
    tmp_path: Path, change: dict[str, str | int], told: str
) -> None:
    about = {"steps": 4, "device": "cpu", "precision": "fp32", "processes": 1}
    kept = KeptBatches(tmp_path / "x.npz", about)
    with kept.held(replaces=False):
        kept.write(0, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    kept.refuse_other()
    with pytest.raises(UsageError) as found:
        KeptBatches(tmp_path / "x.npz", about | change).refuse_other()
    assert found.value.where == told


def test_another_model_is_not_mixed_with_one_that_is_begun(
    here: Path, interrupt: Interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(1)
    sample("x.zip", code=143)
    card = Path("runs/tiny/original/vdiff.json")
    card.write_text(manifest.sealed(json.loads(card.read_text()) | {"hash": "0" * 64}))
    sample("x.zip", code=2)
    assert "model: original " in capsys.readouterr().err


def test_force_goes_on_too_and_replaces_what_is_there_when_the_new_one_is_whole(
    here: Path, drawn: list[int], interrupt: Interrupt
) -> None:
    sample("x.npz", count=5)
    before = digests("x.npz")
    wanted = unbroken("x.npz")
    drawn.clear()
    interrupt(2)
    sample("x.npz", "--force", code=143)
    assert digests("x.npz") == before
    interrupt(1)
    sample("x.npz", "--force", code=143)
    interrupt(None)
    # it was said once that the old one may go
    sample("x.npz")
    assert digests("x.npz") == wanted
    assert sum(drawn) == COUNT


def test_a_kill_after_the_archive_is_there_leaves_nothing_in_the_way(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = unbroken("x.zip")

    def killed(self: KeptBatches) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeptBatches, "forget", killed)
        sample("x.zip", code=130)
    assert digests("x.zip") == wanted
    sample("x.zip")
    assert digests("x.zip") == wanted
    assert beside() == []


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "other"])
def test_a_damaged_batch_is_drawn_again(
    here: Path, drawn: list[int], interrupt: Interrupt, harm: str
) -> None:
    wanted = unbroken("x.npz")
    drawn.clear()
    interrupt(2)
    sample("x.npz", code=143)
    batch = Path(".x.npz.drawing/00000004.npz")
    data = bytearray(batch.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    elif harm == "cut":
        del data[-30:]
    elif harm == "empty":
        data.clear()
    else:
        data = bytearray(array_file.packed({"images": Drawing.__doc__}))  # type: ignore[dict-item]
    batch.write_bytes(data)
    interrupt(None)
    sample("x.npz")
    assert digests("x.npz") == wanted
    assert drawn == [4, 4, 4, 4, 2]


def test_two_commands_do_not_draw_for_one_place(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock.held(Path(".x.npz.drawing")):
        sample("x.npz", code=7)
        sample("x.npz", "--force", code=7)
    assert "works in `.x.npz.drawing`" in capsys.readouterr().err
    sample("x.npz")


def test_what_vdiff_did_not_make_is_not_taken_for_batches(
    here: Path, interrupt: Interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(1)
    sample("x.npz", code=143)
    interrupt(None)
    mine = Path(".x.npz.drawing/notes.txt")
    mine.write_text("my only copy")
    for more in ([], ["--force"]):
        sample("x.npz", *more, code=2)
        assert "notes.txt` is there, and vdiff did not make it" in capsys.readouterr().err
        assert mine.read_text() == "my only copy"
    mine.unlink()
    sample("x.npz")


def test_nothing_stays_of_a_drawing_that_ended_before_its_first_batch(
    here: Path, interrupt: Interrupt
) -> None:
    before = sorted(here.rglob("*"))
    interrupt(0)
    sample("x.npz", code=143)
    assert sorted(here.rglob("*")) == before


def test_a_dry_run_refuses_what_the_command_refuses_and_writes_nothing(
    here: Path, interrupt: Interrupt
) -> None:
    interrupt(1)
    sample("x.npz", code=143)
    before = digests(".x.npz.drawing")
    sample("x.npz", "--dry-run")
    sample("x.npz", "--dry-run", "--class", "1", code=2)
    assert digests(".x.npz.drawing") == before


def test_a_folder_that_was_just_begun_is_known(tmp_path: Path) -> None:
    folder = tmp_path / ".x.npz.drawing"
    with lock.held(folder):
        assert KEPT.stranger(folder) is None
    folder.mkdir(exist_ok=True)
    (folder / lock.FILE).write_text("not a lock of vdiff")
    assert KEPT.stranger(folder) == folder


def test_a_folder_whose_first_file_was_never_whole_is_known(tmp_path: Path) -> None:
    folder = tmp_path / ".x.npz.drawing"
    with lock.held(folder):
        (folder / f".{ABOUT}.partial-12-34").write_text("{")
        KEPT.refuse_stranger(folder)
        (folder / ABOUT).write_text("{")
        KEPT.refuse_stranger(folder)
        (folder / "mine.txt").write_text("my only copy")
        with pytest.raises(UsageError):
            KEPT.refuse_stranger(folder)


def test_pictures_may_go_into_the_current_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "drawn").mkdir()
    recipe = here / "recipe.yaml"
    monkeypatch.chdir(here / "drawn")
    model = str(here / "runs/tiny/original")
    told = ["--checkpoint", model, "-r", str(recipe), "--batch-size", "4", "--device", "cpu"]
    assert main(["sample", *told, "-n", "9", "--steps", "2", "--out", "."]) == 0
    assert len(list(Path().glob("*.png"))) == 9
    assert not list(here.glob(".*drawing"))


def test_where_nothing_can_lie_beside_the_folder_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample_place.may_keep(tmp_path / "new" / "x.npz")
    assert sample_place.may_keep(tmp_path / "x.npz")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not sample_place.may_keep(tmp_path / "x.npz")
