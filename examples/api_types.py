"""What a type checker sees of the Python API:
mypy checks this file, and refuses a type that is not the one stated.
"""

from pathlib import Path
from typing import assert_type

import torch

import vdiff


def check(folder: Path) -> None:
    """Use every public function and class once; each `assert_type` is for the type checker."""
    run = assert_type(vdiff.run(folder), vdiff.Run)
    assert_type(run.models, dict[str, vdiff.ModelCard])
    assert_type(run.log, list[dict[str, str | float | None]])
    assert_type(run.recipe, vdiff.Recipe)
    assert_type(run.report(), vdiff.Report)
    assert_type(run.load("original"), vdiff.Model)
    model = assert_type(vdiff.load(str(folder), device="cpu", precision="fp32"), vdiff.Model)
    assert_type(model.card, vdiff.ModelCard)
    denoiser = assert_type(model.denoiser, vdiff.Denoiser)
    z = torch.zeros(1, *model.card.shape)
    condition = vdiff.Condition(torch.zeros(1, dtype=torch.int64))
    assert_type(denoiser(z, torch.ones(1, dtype=torch.float64), condition).x, torch.Tensor)
    images = model.sample(
        [1, 2], steps=2, label=[0, 1], sampler={"kind": "ddim"}, watch=vdiff.show_progress
    )
    assert_type(images, vdiff.ImageBatch)
    assert_type(images[0], vdiff.ImageBatch)
    assert_type(images.uint8, torch.Tensor)
    assert_type(images.float, torch.Tensor)
    assert_type(images.save("x.png"), Path)
    store = assert_type(vdiff.open_store(folder), vdiff.Store)
    assert_type(store[0], tuple[torch.Tensor, int | None])
    assert_type(vdiff.read_recipe("digits").sample.batch_size, int)
    try:
        model.sample([])
    except vdiff.VdiffError as err:
        assert_type(err.fix, str)
