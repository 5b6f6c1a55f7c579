"""Every place where a command leaves something:
what somebody else has there stays, byte for byte, and is named.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import noise_picture
from tests.tiny import RECIPE, TinyRun
from vdiff.cli import main
from vdiff.data.prepare import prepare

MINE = b"my only copy\n"


def put_file(place: Path) -> None:
    place.write_bytes(MINE)


def put_folder(place: Path) -> None:
    place.mkdir()
    (place / "notes.txt").write_bytes(MINE)


def put_link(place: Path) -> None:
    Path("elsewhere.txt").write_bytes(MINE)
    place.symlink_to(Path("elsewhere.txt").absolute())


def put_dangling_link(place: Path) -> None:
    place.symlink_to(Path("nowhere.txt").absolute())


def put_link_to_a_folder(place: Path) -> None:
    put_folder(Path("elsewhere"))
    place.symlink_to(Path("elsewhere").absolute())


OBSTACLES: dict[str, Callable[[Path], None]] = {
    "file": put_file,
    "folder": put_folder,
    "link": put_link,
    "dangling": put_dangling_link,
    "link to a folder": put_link_to_a_folder,
}


@dataclass(frozen=True)
class Output:
    """Something that a command leaves.

    command: as it is typed.   place: the path of it.
    state: what is there before, `store`, `base` or `student`.
    codes: of obstacles that end in another exit code than 2.
    has_force: whether the command takes --force.
    is_first: whether nothing at all has been written when it is refused.
    kinds: of obstacles, to save time.
    """

    command: str
    place: str
    state: str = "store"
    codes: dict[str, int] = field(default_factory=dict)
    has_force: bool = True
    is_first: bool = True
    kinds: tuple[str, ...] = tuple(OBSTACLES)

    def __str__(self) -> str:
        return f"{self.command}: {self.place}"


ON_CPU = "--device cpu -q"
TRAIN = f"train --run proj {ON_CPU}"
DISTILL = f"distill --stages 1 {ON_CPU}"
SAMPLE = f"sample --checkpoint original -n 2 --steps 1 {ON_CPU}"
EVALUATE = f"evaluate --n 2 --metrics swd {ON_CPU}"
QUICK = (
    "--set train.updates=1 --set distill.updates=1 --set distill.overrides={} --set "
    "sample.num_images=4"
)
DEMO = f"demo --out . -q {QUICK}"

LINKS = {"link": 6, "dangling": 6, "link to a folder": 6}
"""The folders and the log of a run: `a link out of the run` is a matter of the machine."""
INTO = {"folder": 0, "link to a folder": 0}
"""A folder that is only gone into, and a link to one."""
NOT_TOUCHED = dict.fromkeys(OBSTACLES, 0)
"""Nobody minds what is there."""

OUTPUTS = [
    Output("init digits", "recipe.yaml"),
    Output("init celeba_u -o sub/mine.yaml", "sub/mine.yaml"),
    Output("init celeba_u -o sub/mine.yaml", "sub", codes=INTO),
    Output("init celeba_u -o mine.yaml", ".vdiff/recipe.schema.json"),
    Output("init celeba_u -o mine.yaml", ".vdiff", codes=INTO),
    Output(
        "init digits -o mine.yaml",
        "digits",
        codes={"folder": 0},
        kinds=("file", "folder", "dangling"),
    ),
    Output("init digits -o mine.yaml", "digits/7", kinds=("file", "dangling")),
    Output("init digits -o mine.yaml", "digits/7/0007.png"),
    Output("prepare pictures --size 8 --out data/new", "data/new"),
    Output("prepare pictures --size 8 --out data/new", "data/new.partial"),
    Output("prepare pictures --size 8 --out data/new", "data/.new.replaced", codes=NOT_TOUCHED),
    Output("prepare pictures --size 8 --out data/new", "data/.new.partial-1-2", codes=NOT_TOUCHED),
    Output(
        "prepare pictures --size 8 --out data/new",
        "data",
        codes=INTO | {"file": 6, "link": 6, "dangling": 6},
    ),
    Output(TRAIN, "proj", codes=INTO, kinds=("file", "folder", "link", "dangling")),
    Output(TRAIN, "proj/original"),
    Output(TRAIN, "proj/.original.partial-1-2", codes=NOT_TOUCHED, kinds=("folder", "link")),
    Output(TRAIN, "proj/saves", codes=LINKS),
    Output(TRAIN, "proj/previews", codes=LINKS),
    Output(TRAIN, "proj/tracker", codes=LINKS),
    Output(TRAIN, "proj/evaluation", codes=LINKS),
    Output(TRAIN, "proj/earlier", codes=LINKS),
    Output(TRAIN, "proj/profile"),
    Output(TRAIN, "proj/log.jsonl", codes=LINKS),
    Output(TRAIN, "proj/status.json"),
    Output(TRAIN, "proj/recipe.yaml"),
    Output(TRAIN, "proj/.lock", codes={"file": 0}),
    Output(DISTILL, "runs/tiny/base_0", "base"),
    Output(DISTILL, "runs/tiny/saves/base_0", "base", codes=LINKS | {"folder": 0}),
    Output(DISTILL, "runs/tiny/saves/base_0/000000002", "base"),
    Output(f"{SAMPLE} --out x.png", "x.png", "base"),
    Output(f"{SAMPLE} --out x.npz", "x.npz", "base"),
    Output(f"{SAMPLE} --out x.zip", "x.zip", "base"),
    Output(f"{SAMPLE} --out sub/x.zip", "sub", "base", codes=INTO),
    Output(f"{SAMPLE} --batch-size 1 --out x.npz", ".x.npz.drawing", "base"),
    Output(f"{SAMPLE} --batch-size 1 --out folder/", ".folder.drawing", "base"),
    Output(f"{SAMPLE} --out folder/", "folder", "base"),
    Output(f"{SAMPLE} --out folder", "folder/000000.png", "base"),
    Output(f"{SAMPLE} --strip --out strip.png", "strip.png", "base"),
    Output(f"{SAMPLE} --gif --out film.gif", "film.gif", "base"),
    Output(SAMPLE, "samples/original-1.png", "base"),
    Output(f"{SAMPLE} --gif", "samples/original-1.gif", "base"),
    Output(EVALUATE, "runs/tiny/evaluation", "base", codes=LINKS | {"folder": 0}),
    Output(EVALUATE, "runs/tiny/evaluation/table.json", "base", codes=LINKS, is_first=False),
    Output(
        EVALUATE,
        "runs/tiny/evaluation/samples",
        "base",
        codes=LINKS | {"folder": 0},
        is_first=False,
    ),
    Output("report -q --no-pictures", "runs/tiny/report.html", "base"),
    Output("report -q --no-pictures --out x.html", "x.html", "base"),
    Output("compare original base_0 --seeds 0 -q --out x.png", "x.png", "student"),
    Output("compare original base_0 --seeds 0 -q --out x.html", "x.html", "student"),
    Output(DEMO, "digits.png", has_force=False),
    Output(DEMO, "report.html", has_force=False),
    Output(DEMO, "recipe.yaml", has_force=False, kinds=("folder", "dangling")),
    Output(DEMO, "digits/7/0007.png", has_force=False, kinds=("file", "dangling")),
    Output(DEMO, "data/digits", has_force=False, is_first=False, kinds=("folder",)),
    Output(DEMO, "runs/digits/original", has_force=False, is_first=False, kinds=("folder",)),
    Output(DEMO, "runs/digits/base_1", has_force=False, is_first=False, kinds=("folder",)),
]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store`: pictures, a store of them and a recipe; `base`: the first model too;
    `student`: and a second one.
    """
    root = tmp_path_factory.mktemp("worlds")
    store = root / "store"
    (store / "pictures").mkdir(parents=True)
    for index in range(12):
        folder = store / "pictures" / ("cat", "dog")[index % 2]
        folder.mkdir(exist_ok=True)
        noise_picture(8, 8, index).save(folder / f"{index}.png")
    prepare(store / "pictures", store / "prepared", sizes=[8])
    text = RECIPE.format(store="prepared")
    (store / "mine.txt").write_bytes(MINE)
    (store / "recipe").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        for name, before in (("base", "store"), ("student", "base")):
            shutil.copytree(root / before, root / name)
            patch.chdir(root / name)
            run = TinyRun(root / name, text)
            made = run.chain(run="runs/tiny")
            made.train() if name == "base" else made.distill(count=1)
    return root


@pytest.fixture
def here(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Path]]:
    """Makes a fresh copy of a world the current folder."""
    monkeypatch.setenv("VDIFF_RECIPE", "recipe")
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def begin(state: str) -> Path:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(tmp_path / "here", ignore_errors=True)
        shutil.copytree(worlds / state, tmp_path / "here")
        monkeypatch.chdir(tmp_path / "here")
        return tmp_path / "here"

    yield begin
    monkeypatch.chdir(tmp_path.parent)


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """All paths below, with what they hold: bytes of a file, where a link leads,
    None for a folder.
    """
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_what_is_in_the_way_of_an_output_is_unchanged_and_named(
    output: Output, here: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in output.kinds:
        for force in (False, True) if output.has_force else (False,):
            folder = here(output.state)
            place = folder / output.place
            place.parent.mkdir(parents=True, exist_ok=True)
            OBSTACLES[kind](place)
            before = tree(folder)
            mine = {
                name: content
                for name, content in before.items()
                if content == MINE or name == output.place
            }
            code = main([*output.command.split(), *["--force"] * force])
            said = capsys.readouterr().err
            told = f"{output}, a {kind} in the way, force {force}: exit {code}, {said}"
            wanted = output.codes.get(kind, 2)
            assert code == wanted, told
            after = tree(folder)
            assert mine.items() <= after.items(), told
            if code:
                assert Path(output.place).name in said, told
                assert "\nfix: " in said, told
            if code == 2 and output.is_first:
                assert after == before, told
