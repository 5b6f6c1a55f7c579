"""The members of a tar file, one after the other, in little memory whatever their headers say.

`tarfile` parses each header; going from one to the next is done here: it would keep a million of them, read a name of
gigabytes into memory, and take a damaged header for the end of the archive without a word.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
_MAX_HEADER_BYTES = 2**20
_MAX_EMPTY_BYTES = 64 * 2**20
_MAX_BYTES, _MAX_BYTES_EACH = 2**28, 2**14
"""The headers of an archive may have so many bytes, and so many more for each member."""

_LONG = {b"L": "name", b"K": "target"}
_PAX, _PAX_OF_ALL = (b"x", b"X"), b"g"
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "link",
    b"5": "folder",
    b"S": "sparse",
}
_WORDS = {b"path": "name", b"GNU.sparse.name": "name", b"linkpath": "target", b"size": "size"}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_RECORD = re.compile(rb"(\d{1,8}) ([^=\n]{1,256})=")


class Member(NamedTuple):
    """A member of an archive.

    kind: `file`, `link` (symbolic), `hard link`, `folder`, `sparse` or `other`.   target: of a link.
    num_bytes: that follow its header.
    """

    name: str
    kind: str
    num_bytes: int
    target: str


class Stream:
    """Bytes of an archive from its beginning on.   num_bytes: of `file`, where it can be sought in."""

    def __init__(
        self, file: io.RawIOBase | io.BufferedReader, num_bytes: int | None = None
    ) -> None:
        self._file = file
        self._num_bytes = num_bytes
        self._error: Exception | None = None
        self.position = 0

    def read(self, size: int) -> bytes:
        """So many bytes; fewer only at the end."""
        if self._error:
            raise self._error
        pieces: list[bytes] = []
        missing = size
        try:
            while missing and (piece := self._file.read(min(missing, 2**16))):
                pieces.append(piece)
                missing -= len(piece)
        except Exception as err:
            self._error = err  # what is read after that would be nonsense
            raise
        self.position += size - missing
        return b"".join(pieces)

    def skip_to(self, position: int) -> None:
        """Go forward to `position`; EOFError if there is no such place."""
        if self._num_bytes is not None:
            if position > self._num_bytes:
                raise EOFError("it is cut off")
            self._file.seek(position)
            self.position = position
        while self.position < position:
            if not self.read(min(position - self.position, 2**16)):
                raise EOFError("it is cut off")


class Members:
    """The members of the archive that `stream` reads; ValueError or EOFError where it is damaged or cut off.

    The data of a member can be read from the stream until the next one is asked for.
    notes: after the last one, what is odd about the archive's end.
    """

    def __init__(self, stream: Stream) -> None:
        self.notes: list[str] = []
        self._stream = stream
        self._header = b""
        self._place = 0
        self._num_members = 0
        self._header_bytes = 0

    def __iter__(self) -> Iterator[Member]:
        said: dict[str, str] = {}
        while (header := self._next_header()) is not None:
            if header.type in _LONG:
                said = {_LONG[header.type]: self._long_name(header)} | said
            elif header.type in _PAX:
                said = self._records(header) | said
            elif header.type == _PAX_OF_ALL:
                self._records(header)  # they are not used, but must be some
            else:
                member = self._member(header, said)
                said = {}
                end = self._stream.position + _padded(member.num_bytes)
                self._num_members += 1
                yield member
                self._stream.skip_to(end)
        if said:
            raise EOFError("it is cut off")

    def _next_header(self) -> tarfile.TarInfo | None:
        """The next block that is one; None at the end. An archive that was appended to another is read too."""
        empty = 0
        while empty * BLOCK < _MAX_EMPTY_BYTES:
            self._place = self._stream.position
            block = self._header = self._stream.read(BLOCK)
            if not block:
                break
            if not block.strip(b"\0"):
                empty += 1
                continue
            if len(block) < BLOCK:
                raise EOFError("it is cut off")
            self._spend(BLOCK)
            try:
                return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as err:
                if empty < 2:
                    raise self._damaged(str(err)) from err
                self.notes.append(
                    f"what follows the end of the archive, at byte {self._place:,}, is not read"
                )
                return None
        if not empty:
            self.notes.append(
                "the mark at the end of the archive is missing: it may have been cut off"
            )
        return None

    def _member(self, header: tarfile.TarInfo, said: dict[str, str]) -> Member:
        kind = "sparse" if "sparse" in said else _KINDS.get(header.type, "other")
        num_bytes = 0 if header.type in _WITHOUT_DATA else int(said.get("size", header.size))
        if num_bytes < 0:
            raise self._damaged("a size below 0")
        if header.type == b"S":
            self._skip_map_of_sparse_file()
        return Member(
            said.get("name", header.name), kind, num_bytes, said.get("target", header.linkname)
        )

    def _skip_map_of_sparse_file(self) -> None:
        goes_on = self._header[482]
        while goes_on:
            self._spend(BLOCK)
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK:
                raise EOFError("it is cut off")
            goes_on = block[504]

    def _content(self, header: tarfile.TarInfo) -> bytes:
        """What a header of its own, for the next member, holds."""
        if not 0 <= header.size <= _MAX_HEADER_BYTES:
            raise self._damaged(f"a name or a comment of {header.size:,} bytes")
        self._spend(header.size)
        content = self._stream.read(header.size)
        self._stream.skip_to(self._stream.position + _padded(header.size) - len(content))
        return content

    def _long_name(self, header: tarfile.TarInfo) -> str:
        name = self._content(header).rstrip(b"\0")
        if b"\0" in name:
            raise self._damaged("a long name that is none")
        return name.decode(errors="surrogateescape")

    def _records(self, header: tarfile.TarInfo) -> dict[str, str]:
        """What a pax header says about name, target and size."""
        content, place, said = self._content(header), 0, dict[str, str]()
        while place < len(content) and content[place]:
            start = _RECORD.match(content, place)
            end = place + int(start[1]) if start else 0
            if (
                start is None
                or not start.end() < end <= len(content)
                or content[end - 1] != ord("\n")
            ):
                raise self._damaged("a pax header that is none")
            value = content[start.end() : end - 1].decode(errors="surrogateescape")
            if start[2].startswith(b"GNU.sparse."):
                said["sparse"] = ""
            if word := _WORDS.get(start[2]):
                said[word] = value
            place = end
        if not re.fullmatch(r"\d{1,18}", said.get("size", "0")):
            raise self._damaged("a size that is no number")
        return said

    def _spend(self, num_bytes: int) -> None:
        self._header_bytes += num_bytes
        if self._header_bytes > _MAX_BYTES + _MAX_BYTES_EACH * self._num_members:
            raise self._damaged(
                f"headers of more than {_MAX_BYTES:,} bytes for {self._num_members:,} files"
            )

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"it is damaged at byte {self._place:,}: {what}")


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK) * BLOCK
