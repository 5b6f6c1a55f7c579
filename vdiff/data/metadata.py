"""What an image store says about itself: a record inside it and a file beside it.

Both are JSON with a checksum.
"""

import json
import zlib
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

FORMAT: Literal[1] = 1


class NewerFormatError(ValueError):
    """The store has a format that this version does not know: a newer vdiff wrote it."""


class _Record(BaseModel):
    """JSON of an image store, with its format and a checksum."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    format: Literal[1] = FORMAT
    made_by: str

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The record that `to_json` wrote; ValueError if it is damaged,
        NewerFormatError if it is not format 1.
        """
        try:
            document = json.loads(text)
            version = document["format"]
            checksum = document.pop("checksum", None)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
            raise ValueError("it is not JSON of an image store") from err
        is_whole = checksum == _checksum(json.dumps(document))
        # Only a whole one is newer. With a wrong checksum, the number of the format may be what is
        # damaged.
        if version != FORMAT and (is_whole or checksum is None):
            # `repr`: a stranger may have written it, and his control characters must not reach a
            # terminal.
            raise NewerFormatError(
                f"the image store has format {repr(version)[:40]}; this vdiff reads format {FORMAT}"
            )
        if not is_whole:
            raise ValueError("it is not what was written (its checksum differs)")
        try:
            return cls.model_validate(document)
        except ValidationError as err:
            raise ValueError(str(err.errors()[0]["msg"])) from err

    def to_json(self) -> bytes:
        """The record as it is stored, checksum included."""
        document = self.model_dump(mode="json")
        return json.dumps({**document, "checksum": _checksum(json.dumps(document))}).encode()


class Seal(_Record):
    """The file `store.json` beside a finished store:
    the seal of a store of ours, by which damage is found.

    bytes: size of data.mdb.   pages: CRC-32 of its meta pages, branches and leaves, eight
    hexadecimal digits.
    """

    count: int
    sizes: list[int]
    bytes: int
    pages: str


class Metadata(_Record):
    """The record under the key `vdiff`.

    depth: bits that grey pictures of 16 bits were taken to use.
    labels: the class of each picture.
    source: SHA-256 of the listing that the pictures came from.
    crcs: for each size the CRC-32 of each record, eight hexadecimal digits apiece, in one string.
    """

    count: int
    sizes: list[int]
    channels: Literal[1, 3, 4]
    encoding: str
    quality: int | None
    resampling: str
    depth: int = 16
    labels: list[int] | None
    class_names: list[str] | None
    source: str
    crcs: dict[int, str]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # A label without a class would be an index error inside the network, in the middle of a
        # training.
        counts = [len(crcs) / 8 for crcs in self.crcs.values()]
        if self.labels is not None:
            counts.append(len(self.labels))
        if any(count != self.count for count in counts) or set(self.crcs) != set(self.sizes):
            raise ValueError("there is not one checksum and one label for each picture")
        if self.labels:
            num_classes = len(self.class_names or [])
            if min(self.labels) < 0 or max(self.labels) >= num_classes:
                raise ValueError("there is a label without a class")
        return self


def _checksum(document: str) -> int:
    return zlib.crc32(document.encode())
