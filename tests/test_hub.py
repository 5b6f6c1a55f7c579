"""Models on a hub: one commit is fetched and its name kept,
by the real client from a server here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vdiff
from tests.fake_hub import REVISION, FakeHub, FakeRepository, files_of, served
from tests.test_import import CONFIG, SCHEDULER
from vdiff import cli
from vdiff.errors import MachineError, ModelFileError, UsageError
from vdiff.exchange import hub, hub_name
from vdiff.model_folder.card import read_card
from vdiff.networks.unet import UNet

NAME = "owner/model"
DRAW = ["--steps", "2", "-n", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of a repository with a pipeline of diffusers, and code beside it that nobody wants."""
    made = tmp_path_factory.mktemp("theirs")
    texts = {
        "model_index.json": json.dumps({"_class_name": "DDPMPipeline"}),
        "unet/config.json": json.dumps(CONFIG),
        "scheduler/scheduler_config.json": json.dumps(SCHEDULER),
        "README.md": "---\nlicense: apache-2.0\n---\n# A model\n",
        "unet/model.py": "raise SystemExit('code was run')\n",
        "unet/diffusion_pytorch_model.bin": "a pickle that is never opened",
        "training/optimizer.bin": "large",
    }
    for name, content in texts.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(content)
    torch.manual_seed(0)
    save_file(
        UNet.from_config(CONFIG).state_dict(), made / "unet/diffusion_pytorch_model.safetensors"
    )
    return files_of(made)


@pytest.fixture
def fake(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A hub with that model, which the client of this process asks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served({NAME: FakeRepository(dict(files), licence="apache-2.0")}) as found:
        place = "huggingface_hub.constants."
        monkeypatch.setattr(place + "ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(place + "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(place + "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(place + "HF_HUB_DISABLE_XET", True)
        yield found


def fetch(given: str = f"hf://{NAME}") -> hub.Fetched:
    return hub.fetch(hub_name.parse(given), lambda text: None, has_bars=False)


# ---- names


def test_a_name_has_a_place_and_a_revision() -> None:
    found = hub_name.parse("hf://owner/some.model/sub/unet@refs/pr/1")
    assert found == ("owner", "some.model", "sub/unet", "refs/pr/1")
    assert str(found) == "hf://owner/some.model/sub/unet@refs/pr/1"
    assert hub_name.parse("hf://a/b") == ("a", "b", "", None)
    assert (found.run, hub_name.parse("hf://a/b").run) == ("some.model-unet", "b")


WRONG = ["hf://", "hf://a", "hf:///b", "hf://a/b/../c", "hf://a/b@", "hf://a/b@../c", "hf://a/b c"]


@pytest.mark.parametrize(
    "given", [*WRONG, "hf://a/b\x1b[2J", "hf://../../etc", "hf://a/..", "hf:///"]
)
def test_what_is_no_name_is_refused_with_the_form_of_one(given: str) -> None:
    with pytest.raises(UsageError) as found:
        hub_name.parse(given)
    assert hub_name.FORM in found.value.fix


STEM = "diffusion_pytorch_model"
SHARDS = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
LAYOUTS: dict[str, tuple[list[str], set[str]]] = {
    "safetensors before a pickle": (
        ["unet/config.json", f"unet/{STEM}.bin", f"unet/{STEM}.safetensors", "unet/a.py"],
        {"unet/config.json", f"unet/{STEM}.safetensors"},
    ),
    "shards with their index, not those of a variant": (
        [
            "config.json",
            *SHARDS,
            f"{STEM}.safetensors.index.json",
            f"{STEM}.fp16-00001-of-00001.safetensors",
        ],
        {"config.json", *SHARDS, f"{STEM}.safetensors.index.json"},
    ),
    "a variant alone": (
        ["config.json", f"{STEM}.fp16.safetensors", "README.md"],
        {"config.json", f"{STEM}.fp16.safetensors", "README.md"},
    ),
    "one file": (["README.md", "a/ema.pt", "a/train.py"], {"README.md", "a/ema.pt"}),
    "vdiff": (
        ["vdiff.json", "unet/config.json", f"unet/{STEM}.safetensors", f"unet/{STEM}.bin"],
        {"vdiff.json", "unet/config.json", f"unet/{STEM}.safetensors"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_configurations_and_one_set_of_weights_are_chosen_and_no_code(layout: str) -> None:
    names, wanted = LAYOUTS[layout]
    found = hub_name.chosen(hub_name.parse(f"hf://{NAME}"), names)
    assert set(found.files) == wanted
    assert len(found.files) == len(wanted)
    assert found.place == ("a/ema.pt" if layout == "one file" else "")


def test_where_a_repository_leaves_open_which_the_message_lists_them() -> None:
    with pytest.raises(UsageError) as found:
        hub_name.chosen(hub_name.parse(f"hf://{NAME}"), ["a.pt", "b.pt"])
    assert f"hf://{NAME}/a.pt" in found.value.fix
    named = hub_name.chosen(hub_name.parse(f"hf://{NAME}/b.pt"), ["a.pt", "b.pt"])
    assert named == (["b.pt"], "b.pt")
    with pytest.raises(UsageError, match="no file of weights"):
        hub_name.chosen(hub_name.parse(f"hf://{NAME}/a.py"), ["a.py"])
    with pytest.raises(UsageError, match="has no `sub`"):
        hub_name.chosen(hub_name.parse(f"hf://{NAME}/sub"), ["a.py"])
    with pytest.raises(UsageError, match="holds no model"):
        hub_name.chosen(hub_name.parse(f"hf://{NAME}"), ["a.py"])


# ---- what is fetched


def test_a_pipeline_is_imported_with_its_commit_and_licence_in_the_lineage(
    fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", f"hf://{NAME}"]) == 0
    told = capsys.readouterr().err
    assert "fetching 5 files" in told
    assert REVISION in told
    origin = read_card(Path("runs/model/original")).origin
    assert origin is not None
    assert (origin["hub"], origin["revision"]) == (NAME, REVISION)
    assert (origin["file"], origin["licence"]) == ("model", "apache-2.0")
    assert not {"unet/model.py", "unet/diffusion_pytorch_model.bin"} & fake.fetched()
    assert len(fake.fetched()) == 5


def test_sample_takes_one_once_and_again_without_a_network(
    fake: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["sample", "--checkpoint", f"hf://{NAME}", *DRAW, "--out", "a.png"]) == 0
    assert "imported `hf://" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(fake.asked)
    assert cli.main(["sample", "--checkpoint", f"hf://{NAME}", *DRAW, "--out", "b.png"]) == 0
    told = capsys.readouterr().err
    assert "is of commit 0123456789" in told
    assert "imported" not in told
    assert len(fake.asked) == asked
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_inspect_looks_at_one_and_imports_nothing(
    fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", f"hf://{NAME}", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "foreign"
    assert facts["num_parameters"] > 0
    assert not Path("runs").exists()
    assert cli.main(["import", f"hf://{NAME}"]) == 0
    capsys.readouterr()
    # what was made of it here is what the commands use
    assert cli.main(["inspect", f"hf://{NAME}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "runs/model/original"


def test_another_commit_is_not_taken_for_the_one_that_is_here(
    fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = ["sample", "--checkpoint", f"hf://{NAME}", *DRAW, "--out", "a.png", "--force"]
    assert cli.main(draw) == 0
    first = fake.models[NAME].revision
    fake.models[NAME].revision = "f" * 40
    capsys.readouterr()
    # a chain goes on with the teacher that it has, whatever was published since
    assert cli.main(draw) == 0
    assert f"is of commit {first[:10]}" in capsys.readouterr().err
    draw[2] += "@" + "f" * 40
    assert cli.main(draw) == 2
    assert "another model than" in capsys.readouterr().err


def test_a_dry_run_fetches_nothing(fake: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["sample", "--checkpoint", f"hf://{NAME}", *DRAW, "--force", "--dry-run"]
    assert cli.main(draw) == 2
    assert "is not here yet" in capsys.readouterr().err
    assert fake.asked == []
    assert not Path("runs").exists()
    assert cli.main(draw[:-1]) == 0
    asked = len(fake.asked)
    assert cli.main(draw) == 0
    assert len(fake.asked) == asked


def test_another_place_in_the_repository_is_not_taken_for_the_one_that_is_here(
    fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both make a run of the same name."""
    repository = fake.models[NAME]
    for folder in ("a/it", "b/it"):
        for name, content in list(repository.files.items()):
            if name.startswith(("unet/", "scheduler/", "model_index")):
                repository.files[f"{folder}/{name}"] = content
    draw = ["sample", *DRAW, "--out", "a.png", "--force", "--checkpoint"]
    assert cli.main([*draw, f"hf://{NAME}/a/it"]) == 0
    assert cli.main([*draw, f"hf://{NAME}/a/it"]) == 0
    capsys.readouterr()
    assert cli.main([*draw, f"hf://{NAME}/b/it"]) == 2
    assert "another model than" in capsys.readouterr().err


def test_a_model_folder_of_vdiff_is_copied_bit_for_bit(
    fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", f"hf://{NAME}"]) == 0
    own = Path("runs/model/original")
    fake.models["me/own"] = FakeRepository(files_of(own))
    loaded = vdiff.load("hf://me/own", device="cpu")
    assert loaded.path == Path("runs/own/original")
    there, here = files_of(own), files_of(loaded.path)
    assert there.keys() == here.keys()
    assert {name for name in there if there[name] != here[name]} == {"vdiff.json"}
    assert loaded.card.origin is not None
    assert loaded.card.origin["by_way_of"] == f"me/own at {REVISION}"
    assert cli.main(["import", "hf://me/own"]) == 2
    assert "nothing to import" in capsys.readouterr().err
    changed = fake.models["me/own"].files["unet/diffusion_pytorch_model.safetensors"]
    fake.models["me/bad"] = FakeRepository(files_of(own))
    fake.models["me/bad"].files["unet/diffusion_pytorch_model.safetensors"] = changed[:-1] + b"x"
    with pytest.raises(ModelFileError, match="damaged"):
        vdiff.load("hf://me/bad")
    assert not Path("runs/bad").exists()


def test_a_model_of_a_hub_becomes_no_stage_of_a_run_that_was_begun_here(
    fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", f"hf://{NAME}"]) == 0
    fake.models["me/digits"] = FakeRepository(files_of(Path("runs/model/original")))
    mine = Path("runs/digits/recipe.yaml")
    mine.parent.mkdir()
    mine.write_text("name: digits\n")
    capsys.readouterr()
    assert cli.main(["sample", "--checkpoint", "hf://me/digits", *DRAW, "--out", "a.png"]) == 2
    assert "would become a stage of it" in capsys.readouterr().err
    assert list(mine.parent.iterdir()) == [mine]


def test_compare_and_evaluate_take_one_too(fake: FakeHub, store: Path) -> None:
    fake.models["owner/other"] = fake.models[NAME]
    both = [f"hf://{NAME}", "hf://owner/other"]
    assert cli.main(["compare", *both, "--steps", "1", "--seeds", "0-1", "--device", "cpu"]) == 0
    options = ["--metrics", "swd", "--n", "2", "--data", str(store), "--dry-run"]
    assert cli.main(["evaluate", f"hf://{NAME}", *options]) == 0


# ---- what goes wrong


def test_what_is_refused_says_what_to_do(fake: FakeHub) -> None:
    with pytest.raises(UsageError, match="there is no model `owner/other`") as found:
        fetch("hf://owner/other")
    assert "hf auth login" in found.value.fix
    with pytest.raises(UsageError, match="has no revision `v9`"):
        fetch(f"hf://{NAME}@v9")
    fake.models[NAME].refused = "gated"
    with pytest.raises(UsageError, match="is gated") as found:
        fetch()
    assert f"{fake.url}/{NAME}" in found.value.fix
    fake.models[NAME].refused = "private"
    with pytest.raises(UsageError, match="or it is private"):
        fetch()


def test_without_a_network_and_without_a_copy_it_says_how_to_get_one(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.status = 503
    with pytest.raises(MachineError, match=r"HTTP 503.*nothing of it is in the cache") as found:
        fetch()
    assert "hf download owner/model" in found.value.fix
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set") as found:
        fetch()
    assert "unset HF_HUB_OFFLINE" in found.value.fix


def test_nobody_listens(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match=r"http://127.0.0.1:9 cannot be reached"):
        fetch()


def test_a_copy_by_halves_is_not_used_without_a_network(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch().path == found.path
    (found.path / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MachineError, match="lacks the weights"):
        fetch()


def test_a_file_that_came_by_halves_is_named(fake: FakeHub) -> None:
    found = fetch()
    weights = (found.path / "unet/diffusion_pytorch_model.safetensors").resolve()
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ModelFileError, match="bytes here: it was fetched by halves") as told:
        fetch()
    assert str(weights) in told.value.fix
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(ModelFileError, match="another SHA-256 here"):
        fetch()


def test_a_server_that_breaks_off_leaves_no_run(
    fake: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again, ever later
    fake.models[NAME].cut = {"unet/diffusion_pytorch_model.safetensors"}
    assert cli.main(["import", f"hf://{NAME}"]) == 6
    assert f"broke off while `hf://{NAME}` was fetched" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_shard_that_the_index_names_is_missed(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = fake.models[NAME].files
    weights = stored.pop("unet/diffusion_pytorch_model.safetensors")
    del stored["unet/diffusion_pytorch_model.bin"]
    places = {"a": SHARDS[0], "b": SHARDS[1]}
    index = json.dumps({"weight_map": places}).encode()
    stored[f"unet/{STEM}.safetensors.index.json"] = index
    stored |= {f"unet/{name}": weights for name in SHARDS}
    found = fetch()
    (found.path / "unet" / SHARDS[1]).unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match=SHARDS[1]):
        fetch()


def test_names_that_lead_out_of_the_repository_are_never_fetched(fake: FakeHub) -> None:
    fake.models["a/b"] = FakeRepository({"../../x.pt": b"", "a.pt": b"0", "/etc/b.pt": b""})
    assert fetch("hf://a/b").path.read_bytes() == b"0"
    assert fake.fetched() == {"a.pt"}


# ---- as a user has it: its own process, told by the environment


def test_the_environment_says_which_hub(fake: FakeHub, tmp_path: Path) -> None:
    told = {
        "HF_ENDPOINT": fake.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "vdiff", "import", f"hf://{NAME}@main", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | told)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["hub"], found["revision"]) == (NAME, REVISION)
    again = subprocess.run(
        [*command, "--out", "runs/again"],
        capture_output=True,
        text=True,
        env=os.environ | told | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["sha256"] == found["sha256"]
