"""Of several processes one takes a foreign model in; the others wait for it and read no file."""

import shutil
from pathlib import Path

import pytest

from tests.test_import import folder, recorded  # noqa: F401 - a fixture
from tests.test_processes_agree import Hosts
from vdiff.model_folder.card import read_card

SHORT = ["distill.start_steps=4", "distill.end_steps=2", "distill.updates=1"]
SHORT += ["distill.batch_size=2", "distill.warmup_updates=0", "data.path=store"]


@pytest.fixture
def hosts(folder: Path, store: Path, tmp_path: Path) -> list[Path]:  # noqa: F811
    """Two folders with pictures; the model lies in the first one alone."""
    folders = [tmp_path / name for name in ("first", "second")]
    for each in folders:
        each.mkdir()
        shutil.copytree(store, each / "store")
    shutil.copytree(folder, folders[0] / "theirs")
    shutil.copy(recorded(folder), folders[0])
    return folders


def imported(said: list[str]) -> list[int]:
    """How often each of them said that it imported."""
    return [text.count("imported `") + text.count("imported a model") for text in said]


def test_distill_imports_its_teacher_once(hosts: list[Path]) -> None:
    changes = [word for change in SHORT for word in ("--set", change)]
    command = ["distill", "--from", "theirs", "--device", "cpu", *changes]
    codes, said = Hosts(hosts, command).ended()
    assert codes == [0, 0], "".join(said)
    assert imported(said) == [1, 0]
    assert [path.name for path in hosts[1].iterdir()] == ["store"]
    student = read_card(hosts[0] / "runs/theirs/base_0")
    assert student.origin is not None
    assert student.origin["file"] == "theirs"


def test_import_and_sample_do_so_once_too(hosts: list[Path]) -> None:
    command = ["import", "theirs", "--expected", "expected.npz"]
    codes, said = Hosts(hosts, command).ended()
    assert codes == [0, 0], "".join(said)
    assert imported(said) == [1, 0]
    shutil.rmtree(hosts[0] / "runs")
    draw = ["sample", "--checkpoint", "theirs", "--steps", "2", "-n", "4", "--out", "a.npz"]
    codes, said = Hosts(hosts, [*draw, "--device", "cpu"]).ended()
    assert codes == [0, 0], "".join(said)
    assert imported(said) == [1, 0]
    assert (hosts[0] / "a.npz").is_file()
    assert [path.name for path in hosts[1].iterdir()] == ["store"]


def test_a_model_that_is_refused_is_refused_in_all(hosts: list[Path]) -> None:
    (hosts[0] / "theirs/unet/diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    command = ["distill", "--from", "theirs", "--device", "cpu"]
    codes, said = Hosts(hosts, command).ended()
    assert codes == [4, 4], "".join(said)
    assert not (hosts[0] / "runs").exists()
