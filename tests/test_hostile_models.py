"""Models of other programs made up to harm: each is refused with the reason, nothing is run,
nothing is allocated, nothing is left. `benchmarks/fuzz_models.py` tries many more.
"""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.fuzz_models import Specimen, attack, specimens_in
from tests.test_every_format import EXPECTED, GRAPHS
from tests.test_foreign import Bait
from tests.test_import import CONFIG, folder, recorded  # noqa: F401 - a fixture
from vdiff import cli

FOREIGN = Path(__file__).parents[2] / "shared" / "data" / "foreign"
FORMATS = ["diffusers_1", "diffusers_3", "diffusers_4", "guided_1", "guided_5", "improved_1"]
FORMATS += ["lucid_1", "lucid_7", "lucid_9"]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def refused(
    path: Path, capsys: pytest.CaptureFixture[str], *options: str, codes: tuple[int, ...] = (4,)
) -> str:
    """What is said of a model that is refused, by whichever command takes it."""
    capsys.readouterr()
    assert cli.main(["import", str(path), *options]) in codes
    told = " ".join(capsys.readouterr().err.split())
    assert "a bug in vdiff" not in told
    assert cli.main(["sample", "--checkpoint", str(path), "--device", "cpu"]) in codes
    assert not Path("runs").exists()
    return told


# ---- what the formats share


def test_an_npz_under_the_name_of_a_checkpoint_is_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.npz", "a.pt", "a.bin", "a.pkl", "a.safetensors"):
        with Path(name).open("wb") as file:
            np.savez(file, weight=np.zeros(3))
        assert "npz" in refused(Path(name), capsys) or "zip" in refused(Path(name), capsys)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in GRAPHS])
def test_a_file_of_any_format_that_would_run_something_is_not_loaded(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = EXPECTED[name](tmp_path)
    bait = tmp_path / "bait"
    target = path
    if path.is_dir():
        target = path / "diffusion_pytorch_model.bin"
        (path / "diffusion_pytorch_model.safetensors").unlink()
    content = torch.load(path, weights_only=False) if path.suffix == ".pt" else {}
    torch.save({**content, "more": Bait(bait)}, target)
    refused(path, capsys, "--size", "8", codes=(2, 4))
    assert not bait.exists()


# ---- folders


def test_a_link_that_leads_out_of_the_folder_is_not_followed(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in (WEIGHTS, "unet/config.json", "scheduler/scheduler_config.json"):
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")
        assert "is a link to another place" in refused(folder, capsys)
        (folder / name).unlink()
        shutil.move(folder.parent / "elsewhere", folder / name)


def test_a_shard_by_halves_is_named(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"00001": names[::2], "00002": names[1::2]}
    places = {}
    for number, part in parts.items():
        file = f"diffusion_pytorch_model-{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "unet" / file)
        places |= dict.fromkeys(part, file)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert cli.main(["import", str(folder), "--dry-run"]) == 0
    second = folder / "unet/diffusion_pytorch_model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    assert second.name in refused(folder, capsys)
    second.unlink()
    assert second.name in refused(folder, capsys)


LARGE = [
    {"block_out_channels": [10**6, 10**6]},
    {"block_out_channels": [8, 10**12]},
    {"layers_per_block": 10**12},
    {"layers_per_block": 10**6},
    {"num_class_embeds": 10**12},
    {"in_channels": 10**12, "out_channels": 10**12},
    {"norm_num_groups": 10**12},
    {"sample_size": 10**12},
    {"block_out_channels": [8] * 10**5, "down_block_types": ["DownBlock2D"] * 10**5},
    {"_class_name": "DiTTransformer2DModel", "num_layers": 10**12},
    {"_class_name": "DiTTransformer2DModel", "num_layers": 10**5, "sample_size": 8},
    {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 10**6, "sample_size": 8},
    {"_class_name": "DiTTransformer2DModel", "sample_size": 65536, "patch_size": 1},
    {"mid_block_type": None, "layers_per_block": 10**9},
    {"down_block_types": ["SkipDownBlock2D"] * 2, "layers_per_block": 10**9},
]


@pytest.mark.parametrize("more", LARGE, ids=range(len(LARGE)))
def test_a_configuration_that_asks_for_more_than_the_file_holds_takes_no_memory(
    more: dict[str, object],
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "unet/config.json").write_text(json.dumps(CONFIG | more))
    cli.main(["import", str(folder), "--dry-run"])  # what is imported once is no memory of it
    tracemalloc.start()
    try:
        refused(folder, capsys, codes=(2, 4))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_scheduler_that_asks_for_a_table_without_end_is_refused(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = folder / "scheduler/scheduler_config.json"
    scheduler = json.loads(place.read_text())
    for steps in (10**12, 10**9, -1, 0, "many", 1.5):
        place.write_text(json.dumps(scheduler | {"num_train_timesteps": steps}))
        assert refused(folder, capsys)


# ---- views of shared storages


def test_views_are_read_each_once_and_none_from_outside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand views of one storage, which together would be a thousand times as large."""
    monkeypatch.chdir(tmp_path)
    flat = torch.zeros(1 << 20)
    views = {f"v{number}": flat.as_strided((1 << 20, 1 << 10), (1, 0)) for number in range(100)}
    torch.save(views, "a.pt")
    tracemalloc.start()
    try:
        refused(Path("a.pt"), capsys, "--format", "guided_diffusion", "--size", "8")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


# ---- the harness itself, a few cases of each format


def assert_harmless(specimen: Specimen, work: Path, count: int) -> None:
    work.mkdir()
    outcomes = list(attack(specimen, count, 18, work))
    assert [each for each in outcomes if each.bad] == []
    assert len(outcomes) == count
    assert {each.code for each in outcomes} & {2, 4}


def test_changed_folders_are_refused_or_compute_the_same(
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    options = ("--expected", str(recorded(folder)))
    assert_harmless(Specimen("diffusers", folder, options), tmp_path / "work", 60)


@pytest.mark.skipif(not FOREIGN.is_dir(), reason="shared/data/foreign is not beside the repository")
@pytest.mark.parametrize("name", FORMATS)
def test_changed_files_of_other_programs_are_refused_or_compute_the_same(
    name: str, tmp_path: Path
) -> None:
    (specimen,) = specimens_in([FOREIGN / name])
    assert_harmless(specimen, tmp_path / "work", 12)


def test_the_harness_sees_a_program_that_was_run_and_what_is_left(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    work.mkdir()

    def harmful(path: Path, options: object, run: Path) -> tuple[int, str]:
        (path.parent / "bait").touch()
        return 4, ""

    monkeypatch.setattr("benchmarks.fuzz_models._imported", harmful)
    found = next(attack(Specimen("a", folder), 1, 0, work))
    assert found.bad == "a program was run"
    shutil.rmtree(work)
    work.mkdir()

    def untidy(path: Path, options: object, run: Path) -> tuple[int, str]:
        os.mkdir(run)
        return 4, ""

    monkeypatch.setattr("benchmarks.fuzz_models._imported", untidy)
    assert next(attack(Specimen("a", folder), 1, 0, work)).bad == "left behind: ['run']"
