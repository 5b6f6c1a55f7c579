"""vdiff: progressive distillation. Train a diffusion model, then make it draw in 4 steps instead of
1024.

The names below are the Python API; `docs/api.md` describes them. Everything else may change in any
version.
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = [
    "Condition",
    "DataError",
    "Denoiser",
    "DivergedError",
    "ImageBatch",
    "MachineError",
    "Model",
    "ModelCard",
    "ModelFileError",
    "Recipe",
    "Report",
    "Run",
    "Store",
    "UsageError",
    "VdiffError",
    "load",
    "open_store",
    "read_recipe",
    "run",
    "show_progress",
]

if TYPE_CHECKING:
    from vdiff.api.images import ImageBatch
    from vdiff.api.model import Model, load
    from vdiff.api.progress import show_progress
    from vdiff.api.recipe import read_recipe
    from vdiff.api.run import Report, Run, run
    from vdiff.api.store import Store, open_store
    from vdiff.diffusion.condition import Condition
    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.errors import (
        DataError,
        DivergedError,
        MachineError,
        ModelFileError,
        UsageError,
        VdiffError,
    )
    from vdiff.model_folder.card import ModelCard
    from vdiff.recipe.recipe import Recipe
else:
    # PEP 562: `import vdiff` must not wait for torch, so a name is imported when it is first used.
    _PLACES = {
        "Condition": "vdiff.diffusion.condition",
        "DataError": "vdiff.errors",
        "Denoiser": "vdiff.diffusion.denoiser",
        "DivergedError": "vdiff.errors",
        "ImageBatch": "vdiff.api.images",
        "MachineError": "vdiff.errors",
        "Model": "vdiff.api.model",
        "ModelCard": "vdiff.model_folder.card",
        "ModelFileError": "vdiff.errors",
        "Recipe": "vdiff.recipe.recipe",
        "Report": "vdiff.api.run",
        "Run": "vdiff.api.run",
        "Store": "vdiff.api.store",
        "UsageError": "vdiff.errors",
        "VdiffError": "vdiff.errors",
        "load": "vdiff.api.model",
        "open_store": "vdiff.api.store",
        "read_recipe": "vdiff.api.recipe",
        "run": "vdiff.api.run",
        "show_progress": "vdiff.api.progress",
    }

    def __getattr__(name):
        if name not in _PLACES:
            raise AttributeError(f"module `vdiff` has no attribute `{name}`")
        from importlib import import_module

        found = getattr(import_module(_PLACES[name]), name)
        globals()[name] = found  # the next use does not come here
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
