"""What an image store says about itself: one record of JSON, with a checksum of its own."""

import json
import zlib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

FORMAT: Literal[1] = 1


class NewerFormatError(ValueError):
    """The record was written by a vdiff that knows more than this one."""


class Metadata(BaseModel):
    """The record under the key `vdiff`.

    labels: the class of each picture.   source: SHA-256 of the listing that the pictures came from.
    crcs: for each size the CRC-32 of each record, eight hexadecimal digits apiece, in one string.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = FORMAT
    made_by: str
    count: int
    sizes: list[int]
    channels: Literal[1, 3, 4]
    encoding: str
    quality: int | None
    resampling: str
    labels: list[int] | None
    class_names: list[str] | None
    source: str
    crcs: dict[int, str]

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The record that `to_json` wrote; ValueError if it is damaged, NewerFormatError if it is not format 1."""
        try:
            document = json.loads(text)
            found = document["format"]
            checksum = document.pop("checksum", None)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
            raise ValueError("it is not JSON of an image store") from err
        if found != FORMAT:
            raise NewerFormatError(f"the image store has format {found}; this vdiff reads format {FORMAT}")
        if checksum != _checksum(json.dumps(document)):
            raise ValueError("it is not what was written (its checksum differs)")
        try:
            return cls.model_validate(document)
        except ValidationError as err:
            raise ValueError(str(err.errors()[0]["msg"])) from err

    def to_json(self) -> bytes:
        """The record as it is stored, checksum included."""
        document = self.model_dump(mode="json")
        return json.dumps({**document, "checksum": _checksum(json.dumps(document))}).encode()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        per_picture = [len(crcs) / 8 for crcs in self.crcs.values()]
        per_picture += [len(self.labels)] if self.labels is not None else []
        if any(number != self.count for number in per_picture) or set(self.crcs) != set(self.sizes):
            raise ValueError("there is not one checksum and one label for each picture")
        if self.labels and not 0 <= min(self.labels) <= max(self.labels) < len(self.class_names or []):
            raise ValueError("there is a label without a class")
        return self


def _checksum(document: str) -> int:
    return zlib.crc32(document.encode())
