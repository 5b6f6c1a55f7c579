"""Damage to any file of a model folder or of a save:
found before use, named, and what is whole is used instead.
"""

import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests import test_checkpoint
from tests.test_save_path import TRAJECTORY, models, save
from tests.tiny import RECIPE
from vdiff.cli import app
from vdiff.errors import ModelFileError
from vdiff.images.images import write_png
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import MANIFEST
from vdiff.model_folder.diffusers_files import README
from vdiff.runs import savepoint
from vdiff.runs.folder import STATE

Harm = Callable[[bytes], bytes]

NUM_FLIPS = 50
"""Single bits per file, at places that the file's name decides."""


def flipped(place: float) -> Harm:
    """All bits of the byte at this share of the file."""

    def harm(data: bytes) -> bytes:
        index = round(place * (len(data) - 1))
        return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]

    return harm


HARMS: dict[str, Harm | None] = {
    "first byte": flipped(0),
    "middle byte": flipped(0.5),
    "last byte": flipped(1),
    "truncated": lambda data: data[: len(data) // 2],
    "last byte missing": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "deleted": None,
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the finished model `original`, pictures included, and two saves of `base_0`."""
    run = tmp_path_factory.mktemp("damage") / "run"
    picture = torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8)
    checkpoint.save(
        run / "original",
        test_checkpoint.card(),
        models()[0],
        lambda folder: write_png(folder / "samples.png", picture),
    )
    for update in (2, 4):
        save(run / "saves" / "base_0", update)
    (run / "log.jsonl").touch()
    return run


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(whole_run, tmp_path / "run")
    return tmp_path / "run"


def files(folder: Path) -> list[str]:
    """What a manifest vouches for, and the manifest: all but the README,
    which people complete before they publish a model.
    """
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != README)


def damaged(folder: Path, harm: Harm | None) -> Iterator[str]:
    """Does this to one file after the other, and undoes it."""
    for name in files(folder):
        path = folder / name
        before = path.read_bytes()
        if harm is None:
            path.unlink()
        else:
            path.write_bytes(harm(before))
            assert path.read_bytes() != before
        yield name
        path.write_bytes(before)


def with_flips(folder: Path) -> Iterator[str]:
    """One bit of one file after the other, `NUM_FLIPS` in each, and its repair."""
    for name in files(folder):
        path = folder / name
        before = path.read_bytes()
        rng = random.Random(zlib.crc32(name.encode()))
        for _ in range(NUM_FLIPS):
            place = rng.randrange(len(before))
            path.write_bytes(
                before[:place]
                + bytes([before[place] ^ 1 << rng.randrange(8)])
                + before[place + 1 :]
            )
            yield name
        path.write_bytes(before)


def said_of(name: str, err: ModelFileError) -> bool:
    return name in err.problem or name in err.where


def test_these_are_the_files(run: Path) -> None:
    network = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", MANIFEST]
    assert files(run / "original") == [
        "model_index.json",
        "samples.png",
        "scheduler/scheduler_config.json",
        *network,
    ]
    parts = ["average", "course", "optimizer", "pending"]
    point = [*(f"{part}.safetensors" for part in parts), STATE, "weights.safetensors"]
    assert files(run / "saves/base_0/000000004") == point


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_model_is_refused_and_the_file_named(run: Path, harm: str) -> None:
    for name in damaged(run / "original", HARMS[harm]):
        with pytest.raises(ModelFileError) as found:
            checkpoint.load(run / "original")
        assert said_of(name, found.value)
    assert checkpoint.load(run / "original").card.name == "base_2"


def test_a_file_of_another_size_is_found_without_reading_it(run: Path) -> None:
    for harm in ("truncated", "deleted"):
        for name in damaged(run / "original", HARMS[harm]):
            if name != MANIFEST:
                assert checkpoint.damage(run / "original", hashed=False)[0].startswith(f"{name}: ")


def test_every_single_bit_of_a_model_counts(run: Path) -> None:
    for name in with_flips(run / "original"):
        with pytest.raises(ModelFileError) as found:
            checkpoint.load(run / "original")
        assert said_of(name, found.value)


@pytest.mark.parametrize("harm", HARMS)
def test_inspect_names_the_file_of_a_model(
    run: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in damaged(run / "original", HARMS[harm]):
        if name == MANIFEST and harm == "deleted":
            continue  # it is no model any more, but a pipeline of diffusers
        assert app.run(["inspect", str(run / "original"), "--verify"]) == 4
        assert name in "".join(capsys.readouterr().err.split())
    assert app.run(["inspect", str(run / "original"), "--verify"]) == 0


def test_no_command_uses_a_damaged_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "recipe.yaml").write_text(RECIPE.format(store="store"))
    draw = ["sample", "--checkpoint", "original", "--run", str(run), "-n", "1", "--device", "cpu"]
    draw += ["--recipe", str(run / "recipe.yaml"), "--out", str(run / "x.png")]
    for harm in ("middle byte", "deleted"):
        for name in damaged(run / "original", HARMS[harm]):
            assert app.run(draw) == 4, name
            said = "".join(capsys.readouterr().err.split())
            assert name in said or (name == MANIFEST and "thereisnomodelfolder`original`" in said)
            assert not (run / "x.png").exists()
    assert app.run(draw) == 0
    assert (run / "x.png").is_file()


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_save_is_passed_over_and_the_one_before_used(run: Path, harm: str) -> None:
    saves = run / "saves" / "base_0"
    for name in damaged(saves / "000000004", HARMS[harm]):
        said: list[str] = []
        point = savepoint.newest(saves, TRAJECTORY, said.append)
        assert point is not None
        assert point.update == 2
        assert len(said) == 1
        assert f"{saves / '000000004'}" in said[0]
        assert name in said[0]
    point = savepoint.newest(saves, TRAJECTORY, pytest.fail)
    assert point is not None
    assert point.update == 4


def test_every_single_bit_of_a_save_counts(run: Path) -> None:
    saves = run / "saves" / "base_0"
    for name in with_flips(saves / "000000004"):
        said: list[str] = []
        point = savepoint.newest(saves, TRAJECTORY, said.append)
        assert point is not None
        assert point.update == 2
        assert name in said[0]


@pytest.mark.parametrize("harm", HARMS)
def test_inspect_names_the_file_of_a_save(
    run: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in damaged(run / "saves/base_0/000000004", HARMS[harm]):
        assert app.run(["inspect", str(run), "--verify"]) == 4
        said = "".join(capsys.readouterr().err.split())
        assert "000000004" in said
        assert name in said
    assert app.run(["inspect", str(run), "--verify"]) == 0


def test_where_no_save_is_whole_the_run_does_not_begin_again_by_itself(run: Path) -> None:
    saves = run / "saves" / "base_0"
    for point in savepoint.points(saves):
        (point / "weights.safetensors").unlink()
    with pytest.raises(ModelFileError, match="no save of this stage is whole"):
        savepoint.newest(saves, TRAJECTORY, lambda text: None)
