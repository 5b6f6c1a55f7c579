"""Saving on a disk that fails at any call, or a process that is killed there:
the last save stays whole and is used.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import test_checkpoint
from tests.failing_disk import Outcome, outcomes
from vdiff.diffusion.denoiser import Denoiser
from vdiff.disk import whole_folder
from vdiff.disk.ours import anything
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import MODEL
from vdiff.runs import contents as run_contents
from vdiff.runs import savepoint
from vdiff.runs.contents import SAVE

TRAJECTORY = {"seed": 3}


def save(folder: Path, update: int) -> None:
    """A savepoint whose weights are all `update`."""
    state = {
        "weights": {"a": torch.full((3,), float(update))},
        "average": {},
        "optimizer": {"step": torch.tensor([update])},
        "course": {"rollbacks": torch.tensor(0)},
    }
    pending = {"rows": torch.zeros(0, 2), "skips": torch.zeros(2, dtype=torch.int64)}
    savepoint.write(folder, update, state, pending, TRAJECTORY)


def newest(folder: Path) -> int:
    """The update of the point that a run would go on from;
    nothing may be damaged on the way to it.
    """
    said: list[str] = []
    point = savepoint.newest(folder, TRAJECTORY, said.append)
    assert said == []
    assert point is not None
    assert point.state["weights"]["a"].tolist() == [point.update] * 3
    return point.update


def temporaries(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*partial*")]


def look_for_rests(outcome: Outcome, folder: Path) -> None:
    """A killed process may leave something beside, until the next one cleans;
    a failed one what cannot be removed.
    """
    if outcome.failure == "killed" or outcome.call.kind in ("unlink", "rmdir"):
        whole_folder.clean(
            folder, SAVE if folder.name == "saves" else MODEL, files=run_contents.FILES
        )
    assert temporaries(folder) == [], outcome


@pytest.mark.parametrize(
    "saved", [pytest.param([2], id="second"), pytest.param([2, 4], id="third, which prunes")]
)
def test_a_save_that_fails_at_any_call_leaves_the_one_before(
    tmp_path: Path, saved: list[int]
) -> None:
    folder = tmp_path / "saves"
    before, new = saved[-1], saved[-1] + 2

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for update in saved:
            save(folder, update)

    seen = set()
    for outcome in outcomes(folder, begin, lambda: save(folder, new)):
        look_for_rests(outcome, folder)
        found = newest(folder)
        assert found == new or (outcome.error and found == before), outcome
        assert before in [int(path.name) for path in savepoint.points(folder)], outcome
        save(folder, new)
        assert newest(folder) == new
        assert len(savepoint.points(folder)) == 2
        seen.add((outcome.failure, found))
    assert seen >= {("full", before), ("broken", before), ("killed", before), ("killed", new)}


def models() -> tuple[Denoiser, Denoiser]:
    """Two models of the same small network."""
    section = test_checkpoint.UNetSection(
        width=4, multipliers=(1,), blocks=1, norm_groups=1, mid_attention=False
    )
    schedule = test_checkpoint.schedule("cosine", 64).build()  # type: ignore[attr-defined]
    made = []
    for value in (0.25, 0.5):
        network = section.build(test_checkpoint.SIZE, 1).eval()
        with torch.no_grad():
            for weight in network.parameters():
                weight.fill_(value)
        made.append(Denoiser(network, schedule, "v"))
    return made[0], made[1]


PUT = Callable[[int], None]


@pytest.fixture
def save_model(tmp_path: Path) -> PUT:
    """Saves a model with this number of updates as run/original;
    so have its weights 1 / 4 of it.
    """
    made = models()

    def picture(target: Path) -> None:
        (target / "samples.png").write_bytes(b"picture")

    def save_one(updates: int) -> None:
        card = test_checkpoint.card(updates=updates)
        checkpoint.save(tmp_path / "run" / "original", card, made[updates - 1], picture)

    return save_one


def content(folder: Path) -> str:
    """A digest of all names and bytes below: the same work on the same content
    need not be done again.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(
            f"{path.relative_to(folder)}\n".encode()
            + (path.read_bytes() if path.is_file() else b"")
        )
    return digest.hexdigest()


def updates_of(run: Path, known: dict[str, int]) -> int:
    """Of the model in the run, as it is loaded; 0 where there is none."""
    if not checkpoint.is_model_folder(run / "original"):
        assert not (run / "original").exists()
        return 0
    digest = content(run)
    if digest not in known:
        loaded = checkpoint.load(run / "original")
        weight = next(loaded.denoiser.network.parameters()).flatten()[0]
        assert float(weight) == loaded.card.updates / 4
        known[digest] = loaded.card.updates
    return known[digest]


@pytest.mark.parametrize("before", [0, 1], ids=["new", "replaced"])
def test_a_model_that_cannot_be_saved_at_any_call_leaves_the_one_before(
    tmp_path: Path, save_model: PUT, before: int
) -> None:
    run, prepared = tmp_path / "run", tmp_path / "prepared"
    run.mkdir()
    if before:
        save_model(before)
    shutil.copytree(run, prepared)

    def begin() -> None:
        shutil.rmtree(run)
        shutil.copytree(prepared, run)

    seen: set[tuple[str, int]] = set()
    known: dict[str, int] = {}
    repeated: set[str] = set()
    for outcome in outcomes(run, begin, lambda: save_model(2)):
        look_for_rests(outcome, run)
        updates = updates_of(run, known)
        assert updates == 2 or (outcome.error and updates == before), outcome
        assert outcome.failure == "killed" or updates == (before if outcome.error else 2), outcome
        seen.add((outcome.failure, updates))
        if content(run) not in repeated:
            repeated.add(content(run))
            save_model(2)
            assert updates_of(run, known) == 2
    assert seen >= {("full", before), ("broken", before), ("killed", before), ("killed", 2)}


def test_a_text_that_cannot_be_written_at_any_call_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    seen = set()

    def write() -> None:
        whole_folder.write_text(path, "the new text", anything)

    for outcome in outcomes(tmp_path, lambda: path.write_text("the old text"), write):
        look_for_rests(outcome, tmp_path)
        text = path.read_text()
        assert text in ("the new text", *(["the old text"] if outcome.error else [])), outcome
        write()
        assert path.read_text() == "the new text"
        seen.add((outcome.failure, text))
    assert len(seen) == 6
