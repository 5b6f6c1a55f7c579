"""How a store of vdiff is told from one of another program:
by the file `store.json` beside its data.

Inside `data.mdb`, only the record `vdiff` tells. If one bit of its key changed, the store would be
taken for one of diffusion_distiller, and be read without checksums and labels. So a finished store
has a seal outside, which also holds the checksum of its pages. Older stores have none; they
are known by what is left of their record.
"""

from pathlib import Path

from vdiff import __version__
from vdiff.data.metadata import Metadata, Seal
from vdiff.disk.ours import beginning
from vdiff.disk.whole_folder import write_text
from vdiff.errors import MachineError

FILE = "data.mdb"
SEAL = "store.json"
# A seal has some 200 bytes; a stranger's file of this name may have any number.
_MOST_BYTES = 2**20
_RECORD = b"vdiff"
# In the first 200 bytes of the value of each record `vdiff`.
_MADE_BY = b'"made_by": "vdiff'


def is_store(path: Path) -> bool:
    """Whether the folder holds an LMDB file."""
    return (path / FILE).is_file()


def write_seal(folder: Path, metadata: Metadata, num_bytes: int, pages: int) -> None:
    """Write the seal of the finished store in `folder`.
    pages: CRC-32, as `opened.check_pages` gives it.

    Errors: MachineError when the disk refuses.
    """
    seal = Seal(
        made_by=f"vdiff {__version__}",
        count=metadata.count,
        sizes=metadata.sizes,
        bytes=num_bytes,
        pages=f"{pages:08x}",
    )
    write_text(folder / SEAL, seal.to_json().decode() + "\n", _is_seal)


def _is_seal(path: Path) -> bool:
    return b'"made_by"' in beginning(path, _MOST_BYTES)


def read_seal(folder: Path) -> Seal | None:
    """The seal, or None where there is none.

    ValueError if it is damaged, OSError if it cannot be read.
    """
    try:
        with (folder / SEAL).open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES:,} bytes")
    return Seal.from_json(text)


def break_seal(folder: Path) -> None:
    """Remove the second mark before the store is written to.

    Errors: MachineError when the disk refuses.
    """
    # Before the first write: else a kill would leave a store that its seal calls damaged.
    try:
        (folder / SEAL).unlink(missing_ok=True)
    except OSError as err:
        problem = f"cannot write `{folder / SEAL}`: {err.strerror}"
        raise MachineError(problem, "choose a place that can be written to", folder) from err


def is_ours(key: bytes, value: bytes) -> bool:
    """Whether this was the record of a store of ours, although its key is not `vdiff` any more."""
    # If a bit of the key's length has changed, the key begins as `vdiff` does, and the value may be
    # another. The keys of an unfinished store begin with `vdiff` too.
    if key.startswith(_RECORD) or _RECORD.startswith(key):
        return True
    # If a bit of the key's text has changed, the value is still what it was.
    return _MADE_BY in key + value[:200]
