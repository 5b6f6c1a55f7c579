"""What is known of the reference pictures, computed once and kept beside the evaluations of a run."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff import __version__, whole_folder
from vdiff.data.loader import Images, take
from vdiff.errors import MachineError

Arrays = dict[str, np.ndarray[Any, Any]]

_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class StorePictures:
    """The pictures of a data set, uint8 [N, C, H, W], decoded as they are needed."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self.shape = (images.num_images, *images.shape)

    def __len__(self) -> int:
        return self._images.num_images

    def __getitem__(self, part: slice) -> Tensor:
        return torch.from_numpy(take(self._images, np.arange(*part.indices(len(self))))[0])


def remembered(folder: Path | None, about: Mapping[str, object], compute: Callable[[], Arrays]) -> Arrays:
    """The arrays that `compute` makes, read from `folder` where it has them from before.

    about: everything that they depend on; another version of vdiff computes them anew, as for a damaged file.
    """
    if folder is None:
        return compute()
    key = json.dumps({**about, "version": __version__}, sort_keys=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes())) as content:
            found = {name: content[name] for name in content.files}
        if str(found.pop("about")) == key and all(np.isfinite(array).all() for array in found.values()):
            return found
    except _DAMAGE:
        pass
    arrays, file = compute(), io.BytesIO()
    np.savez(file, about=np.array(key), **arrays)  # type: ignore[arg-type]
    try:
        whole_folder.write_bytes(path, file.getvalue())
    except MachineError:
        return arrays  # a folder that cannot be written to costs time, not the number
    return arrays
