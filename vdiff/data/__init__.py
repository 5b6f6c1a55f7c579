"""Pictures: the tables of what training reads, what `prepare` reads,
and what lies between pictures and networks.
"""

from typing import TYPE_CHECKING

from vdiff.config import Registry, Table

if TYPE_CHECKING:
    from vdiff.data.codec import CodecSection
    from vdiff.data.section import DatasetSection
    from vdiff.data.sources.source import Source

DATASETS: "Registry[DatasetSection]" = Registry(
    "data",
    {"lmdb": "vdiff.data.lmdb_section:LmdbImagesSection"},
    default="lmdb",
    group="vdiff.datasets",
    contract="vdiff.data.section:DatasetSection",
)
"""What a recipe can name as `data.kind`."""

SOURCES: "Table[Source]" = Table(
    "source",
    {
        "folder": "vdiff.data.sources.folder:FolderSource",
        "tar": "vdiff.data.sources.tar_file:TarSource",
        "zip": "vdiff.data.sources.zip_file:ZipSource",
    },
    group="vdiff.sources",
    contract="vdiff.data.sources.source:Source",
    gives={"listing": "vdiff.data.sources.source:Listing"},
)
"""What a path given to `vdiff prepare` can be, in the order in which they are asked;
see `data.sources.opening`.
"""

CODECS: "Registry[CodecSection]" = Registry(
    "codec",
    {"pixels": "vdiff.data.codec:PixelSection"},
    default="pixels",
    group="vdiff.codecs",
    contract="vdiff.data.codec:CodecSection",
)
"""What a model folder can name; a recipe names none yet."""
