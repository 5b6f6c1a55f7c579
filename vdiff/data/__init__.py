"""The kinds of picture data a recipe can name."""

from vdiff.config import Registry

DATASETS = Registry(
    "data", {"lmdb": "vdiff.data.lmdb_images:LmdbImagesSection"}, default="lmdb", group="vdiff.datasets"
)
