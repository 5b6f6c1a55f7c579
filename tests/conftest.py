"""Pictures, stores and runs to test with, made on the spot."""

import gc
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.forked import CONTEXT
from tests.tiny import RECIPE, TinyRun
from vdiff.cli import app
from vdiff.cli.options import mode
from vdiff.data.prepare import prepare

torch.set_num_threads(1)  # for networks this small, more threads only wait for one another

LONGEST = (
    "test_processes.py",
    "test_faults.py",
    "test_evaluate.py",
    "test_processes_agree.py",
    "test_chain.py",
    "test_longer.py",
    "test_lucidrains.py",
    "test_extending.py",
    "test_exports.py",
    "test_fidelity.py",
    "test_elsewhere.py",
    "test_benchmarks.py",
    "test_report.py",
    "test_not_finite.py",
    "test_accelerate_settings.py",
    "test_data_faults.py",
    "test_outputs.py",
    "test_sharded.py",
    "test_estimate.py",
    "test_readme.py",
)
"""Files that take longest, by `-p tests.cpu_time` and by what they wait for. They are begun first,
so that no core is left alone with one of them at the end.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes a file belongs to one of them, and they take files in this order."""
    items.sort(
        key=lambda item: (
            LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)
        )
    )


MakePictures = Callable[..., Path]


def noise_picture(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    """A picture of random pixels."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    )


@pytest.fixture(autouse=True)
def fresh_mode() -> None:
    """Each test talks as a fresh process does, whatever `--json` or `--quiet` another one has said
    in this process.
    """
    mode.json = mode.quiet = mode.debug = False


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """What a test starts hears HUP and QUIT, although the tests themselves may run
    under `nohup` and with `&`.
    """
    before = {
        number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGQUIT)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that load pictures are forks of a process that has torch already, see tests.forked:
    a new one imports it for seconds. For tests of what workers do, not of how they begin.
    """

    def loader(*given: Any, **named: Any) -> DataLoader[Any]:
        return DataLoader(*given, **{**named, "multiprocessing_context": CONTEXT})

    monkeypatch.setattr("vdiff.data.loader.DataLoader", loader)


@pytest.fixture
def make_pictures(tmp_path: Path) -> MakePictures:
    """Makes a folder of `count` PNG pictures, spread over class folders if there are any."""

    def make(
        count: int = 12, size: tuple[int, int] = (12, 10), classes: tuple[str, ...] = ("",)
    ) -> Path:
        folder = tmp_path / "pictures"
        for index in range(count):
            path = folder / classes[index % len(classes)] / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise_picture(*size, seed=index).save(path)
        return folder

    return make


@pytest.fixture
def store(make_pictures: MakePictures, tmp_path: Path) -> Path:
    """An image store of 12 pictures of two classes, in sizes 8 and 16."""
    prepare(make_pictures(classes=("cat", "dog")), tmp_path / "store", sizes=[8, 16])
    return tmp_path / "store"


@pytest.fixture
def tiny_run(store: Path, tmp_path: Path) -> Iterator[TinyRun]:
    """A place to train and distill in: the store's pictures in size 8,
    and the recipe of a very small network.
    """
    # every stage ends with a collection: what is imported need not be looked through again
    gc.freeze()
    text = RECIPE.format(store=store)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    yield TinyRun(tmp_path, text)
    gc.unfreeze()


@pytest.fixture(scope="session")
def distilled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a recipe and its run `runs/tiny` of 8, 4, 2 and 1 steps,
    as the commands make them. No test writes to it.
    """
    folder = tmp_path_factory.mktemp("distilled")
    for index in range(12):
        path = folder / "pictures" / ("cat", "dog")[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(12, 10, seed=index).save(path)
    prepare(folder / "pictures", folder / "store", sizes=[8, 16])
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(store=folder / "store"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert app.run(["distill", "-q", "--device", "cpu"]) == 4  # no base yet
        assert app.run(["train", "-q", "--device", "cpu"]) == 0
        assert app.run(["distill", "-q", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def distilled(distilled_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run in the current folder, beside its recipe.
    The pictures and the store stay where they are.
    """
    shutil.copytree(distilled_once / "runs", tmp_path / "runs")
    shutil.copy(distilled_once / "recipe.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path("runs/tiny")
