"""A small finished run to use the Python API on: a store, a base and three students."""

from pathlib import Path

from tests.conftest import noise_picture
from tests.tiny import RECIPE, TinyRun
from vdiff.data.prepare import prepare


def make(folder: Path) -> None:
    """Leave a store in `store` and a run in `runs/tiny`, as the examples in
    `docs/api.md` name them.
    """
    for index in range(12):
        path = folder / "pictures" / ("cat", "dog")[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(12, 10, seed=index).save(path)
    prepare(folder / "pictures", folder / "store", sizes=[8, 16])
    made = TinyRun(folder, RECIPE.format(store=folder / "store"))
    changes = ("evaluate.every=2", "evaluate.num_images=4", "evaluate.metrics=[swd]")
    made.chain(*changes, run="runs/tiny").train()
    made.chain(*changes, run="runs/tiny").distill()
