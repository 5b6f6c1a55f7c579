"""The kinds of picture data a recipe can name."""

from typing import TYPE_CHECKING

from vdiff.config import Registry

if TYPE_CHECKING:
    from vdiff.data.dataset import DatasetSection

DATASETS: "Registry[DatasetSection]" = Registry(
    "data",
    {"lmdb": "vdiff.data.lmdb_images:LmdbImagesSection"},
    default="lmdb",
    group="vdiff.datasets",
    contract="vdiff.data.dataset:DatasetSection",
)
