"""What every format of other programs must do:
know its own files alone, and describe them in what JSON can hold.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.edm_pickles import Theirs, snapshot
from tests.test_guided import case, saved
from vdiff import cli
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import CosineSection
from vdiff.errors import ModelFileError
from vdiff.formats import FORMATS
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import contents_of
from vdiff.formats.foreign import describe

Make = Callable[[Path], Path]


def distiller(path: Path) -> Path:
    torch.save(
        {"G": {"down.0.weight": torch.zeros(8, 3, 3, 3)}, "n_timesteps": 4, "time_scale": 256},
        path / "a.pt",
    )
    return path / "a.pt"


def rosinality(path: Path) -> Path:
    names = ("time.0.inv_freq", "mid.0.attention.qkv.weight")
    weights = {name: torch.zeros(8) for name in names}
    torch.save({"model": weights, "ema": weights}, path / "a.pt")
    return path / "a.pt"


def diffusers(path: Path) -> Path:
    folder = path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel", "sample_size": 8}')
    save_file(
        {"conv_in.weight": torch.zeros(4, 3, 3, 3)}, folder / "diffusion_pytorch_model.safetensors"
    )
    return folder


def guided(path: Path) -> Path:
    theirs, _, _ = case("convolutions, legacy")
    return saved(theirs, path / "a.pt")


def lucidrains(path: Path) -> Path:
    weights = {"model.init_conv.weight": torch.zeros(8, 3, 7, 7)}
    averages = {f"ema_model.{name}": tensor for name, tensor in weights.items()}
    content = {"step": 1, "model": weights, "opt": {}, "ema": averages, "version": "2.3.4"}
    torch.save(content, path / "a.pt")
    return path / "a.pt"


def edm(path: Path) -> Path:
    return snapshot(Theirs(), path / "a.pkl")


def exported(path: Path) -> Path:
    save_file(
        {"conv_in.weight": torch.zeros(4, 3, 3, 3)},
        path / "a.safetensors",
        {"vdiff": '{"network": "unet", "num_steps": 4}'},
    )
    return path / "a.safetensors"


def graph(kind: str) -> Make:
    def make(path: Path) -> Path:
        folder = path / kind
        folder.mkdir()
        (folder / "export.json").write_text(json.dumps({"kind": kind, "num_steps": 4}))
        (folder / "network.onnx").write_bytes(b"graph")
        (folder / "network.pt2").write_bytes(b"graph")
        return folder

    return make


EXPECTED: dict[str, Make] = {
    "diffusion_distiller": distiller,
    "rosinality": rosinality,
    "diffusers": diffusers,
    "guided_diffusion": guided,
    "lucidrains": lucidrains,
    "edm": edm,
    "onnx": graph("onnx"),
    "torch_export": graph("torch_export"),
    "safetensors": exported,
}
"""For every format: a file or folder of it, put into a folder.
One without an entry here fails every test below.
"""

GRAPHS = {"onnx", "torch_export"}
"""Their tensors lie inside graphs that vdiff does not read."""

NOTHING = Denoiser(torch.nn.Identity(), CosineSection().build(), "v")

every_format = pytest.mark.parametrize("name", list(FORMATS))


@every_format
def test_it_knows_its_own_and_nobody_elses(name: str, tmp_path: Path) -> None:
    found = contents_of(EXPECTED[name](tmp_path))
    assert [each for each in FORMATS if FORMATS.find(each).recognises(found)] == [name]


@every_format
def test_it_knows_nothing_that_is_nobodys(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for each in ("a.safetensors", "a.pt", "a.txt", "empty"):
        assert not FORMATS.find(name).recognises(contents_of(tmp_path / each))


@every_format
def test_what_it_tells_is_json_and_names_all_tensors(name: str, tmp_path: Path) -> None:
    path = EXPECTED[name](tmp_path)
    told = FORMATS.find(name)().describe(contents_of(path))
    assert told.path == path
    assert told.kind
    assert bool(told.tensors) == (name not in GRAPHS)
    assert told.facts["num_bytes"] > 0
    assert json.loads(json.dumps(told.facts)) == told.facts
    assert told == describe(path)


@every_format
def test_what_it_cannot_do_is_an_error_in_words(name: str, tmp_path: Path) -> None:
    kind = FORMATS.find(name)
    found = contents_of(EXPECTED[name](tmp_path))
    if "read" not in vars(kind):
        with pytest.raises(ModelFileError, match="cannot read models of this format"):
            kind().read(found, {})
    if "write" not in vars(kind):
        model = ForeignModel(NOTHING, "unet", {}, (3, 8, 8), num_classes=0, num_steps=4)
        with pytest.raises(ModelFileError, match="cannot write models of this format"):
            kind().write(model, tmp_path / "out", {})


def test_a_file_is_described_without_torch(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from vdiff.formats.foreign import describe
describe(Path(sys.argv[1]))
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(distiller(tmp_path))], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- formats of other packages

GUEST = """
from vdiff.formats.adapter import Format
from vdiff.formats.foreign_file import ForeignFile

class Guest(Format):
    @classmethod
    def recognises(cls, found):
        config = found.config("config.json") or {}
        return found.beginning.startswith(b"guest") or config.get("of") == "guest"

    def describe(self, found):
        return ForeignFile(found.path, "a guest", (), {"num_bytes": found.num_bytes})
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a package with the format `guest` where Python finds it, as pip does."""
    place = tmp_path / "installed"
    told = place / "guest-1.0.dist-info"
    told.mkdir(parents=True)
    monkeypatch.syspath_prepend(place)

    def put(source: str) -> None:
        (place / "guest.py").write_text(source)
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
        (told / "entry_points.txt").write_text("[vdiff.formats]\nguest = guest:Guest\n")
        importlib.invalidate_caches()

    yield put
    sys.modules.pop("guest", None)


def test_a_file_that_vdiff_cannot_read_is_shown_to_formats_of_others(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install(GUEST)
    (tmp_path / "a.bin").write_bytes(b"guest!")
    told = describe(tmp_path / "a.bin")
    assert (told.kind, told.facts) == ("a guest", {"num_bytes": 6})


def test_a_folder_that_names_no_class_of_diffusers_may_be_that_of_others(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install(GUEST)
    (diffusers(tmp_path) / "config.json").write_text('{"of": "guest"}')
    assert describe(tmp_path / "folder").kind == "a guest"


BROKEN = {
    "no format": ("class Guest: ...\n", "it is no subclass of `vdiff.formats.adapter.Format`"),
    "without describe": (GUEST.replace("def describe", "def other"), "it lacks `describe`"),
    "without recognises": (GUEST.replace("def recognises", "def other"), "it lacks `recognises`"),
    "no library": (
        "import no_such_library\n",
        "ModuleNotFoundError: No module named 'no_such_library'",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_format_is_told_and_the_others_go_on(
    install: Callable[[str], None], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, words = BROKEN[what]
    install(source)
    problem = (
        f"the format `guest` of the package `guest 1.0` cannot be used: `guest:Guest`: {words}"
    )
    assert FORMATS.doubts() == [problem]
    assert "warnings" not in describe(distiller(tmp_path)).facts
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert cli.main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    told = capsys.readouterr()
    assert "safetensors weights" in told.out
    assert problem in " ".join(told.err.split())
    (tmp_path / "a.bin").write_bytes(b"guest!")
    with pytest.raises(ModelFileError, match="is not a model file that vdiff knows") as found:
        describe(tmp_path / "a.bin")
    assert problem in found.value.problem
