"""The members of a tar file, one after the other, in little memory whatever their headers say.

`tarfile` only parses each header; this module goes from one to the next. `tarfile` would keep a
million headers in memory, read a name of gigabytes, and silently take a damaged header for the end
of the archive.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
# Of one header: a name or a comment.
_MAX_HEADER_BYTES = 2**20
# Zeros between the members. Compressed, gigabytes of them take a few kilobytes.
_MAX_EMPTY_BYTES = 64 * 2**20
_MAX_BYTES = 2**28
_MAX_BYTES_EACH = 2**14
"""All headers of an archive may have so many bytes, and so many more for each member: a compressed
archive may hold headers without end.
"""

# GNU's headers for long names, and those of pax for one member and for all that follow.
_LONG = {b"L": "name", b"K": "target"}
_PAX = (b"x", b"X")
_PAX_OF_ALL = b"g"
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
# Links, devices, folders, pipes: no data follows them, whatever size they state.
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_RECORD = re.compile(rb"(\d{1,8}) ([^=\n]{1,256})=")


class Member(NamedTuple):
    """A member of an archive.

    kind: `file`, `link` (symbolic), `hard link`, `folder`, `sparse` or `other`.
    target: of a link.
    num_bytes: of the data that follows its header.
    """

    name: str
    kind: str
    num_bytes: int
    target: str


class Stream:
    """Bytes of an archive from its beginning on.

    num_bytes: of `file`, if it can be sought in; else None.
    """

    def __init__(
        self, file: io.RawIOBase | io.BufferedReader, num_bytes: int | None = None
    ) -> None:
        self._file = file
        self._num_bytes = num_bytes
        self._error: Exception | None = None
        self.position = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        if self._error:
            raise self._error
        pieces: list[bytes] = []
        missing = size
        try:
            # In pieces: a size of gigabytes may be a lie, and nothing is allocated for it.
            while missing and (piece := self._file.read(min(missing, 2**16))):
                pieces.append(piece)
                missing -= len(piece)
        except Exception as err:
            # A decompressor that failed would go on with nonsense.
            self._error = err
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
    """The members of the archive that `stream` reads;
    ValueError or EOFError where it is damaged or cut off.

    The data of a member can be read from the stream until the next one is asked for.
    notes: what is odd about the end of the archive; complete after the last member.
    """

    def __init__(self, stream: Stream) -> None:
        self.notes: list[str] = []
        self._stream = stream
        self._header = b""
        self._place = 0
        self._num_members = 0
        self._header_bytes = 0

    def __iter__(self) -> Iterator[Member]:
        # What headers before that of a member say about it. Of two that say the same, the first one
        # counts.
        said: dict[str, str] = {}
        while (header := self._next_header()) is not None:
            if header.type in _LONG:
                said = {_LONG[header.type]: self._long_name(header)} | said
            elif header.type in _PAX:
                said = self._records(header) | said
            elif header.type == _PAX_OF_ALL:
                # Read, but not used: only a damaged header would hold something else than records.
                self._records(header)
            else:
                member = self._member(header, said)
                said = {}
                end = self._stream.position + _padded(member.num_bytes)
                self._num_members += 1
                yield member
                self._stream.skip_to(end)
        # The member that they speak of is missing.
        if said:
            raise EOFError("it is cut off")

    def _next_header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end. An archive that was appended to another is read too."""
        num_empty = 0
        while num_empty * BLOCK < _MAX_EMPTY_BYTES:
            self._place = self._stream.position
            block = self._stream.read(BLOCK)
            self._header = block
            if not block:
                break
            # Two blocks of zeros end an archive, but another one may follow.
            if not block.strip(b"\0"):
                num_empty += 1
                continue
            if len(block) < BLOCK:
                raise EOFError("it is cut off")
            self._spend(BLOCK)
            try:
                return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as err:
                # Before the end, it is damage: `tarfile` would stop here without a word.
                if num_empty < 2:
                    raise self._damaged(str(err)) from err
                self.notes.append(
                    f"what follows the end of the archive, at byte {self._place:,}, is not read"
                )
                return None
        if not num_empty:
            self.notes.append(
                "the mark at the end of the archive is missing: it may have been cut off"
            )
        return None

    def _member(self, header: tarfile.TarInfo, said: dict[str, str]) -> Member:
        kind = _KINDS.get(header.type, "other")
        if "sparse" in said:
            kind = "sparse"
        num_bytes = int(said.get("size", header.size))
        if header.type in _WITHOUT_DATA:
            num_bytes = 0
        # Going forward by it would go back, for ever.
        if num_bytes < 0:
            raise self._damaged("a size below 0")
        if header.type == b"S":
            self._skip_map_of_sparse_file()
        return Member(
            said.get("name", header.name), kind, num_bytes, said.get("target", header.linkname)
        )

    def _skip_map_of_sparse_file(self) -> None:
        # In GNU's old format, more blocks of the map follow the header. Byte 482 of the header, and
        # byte 504 of each of those blocks, tells whether one follows.
        has_more = self._header[482]
        while has_more:
            self._spend(BLOCK)
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK:
                raise EOFError("it is cut off")
            has_more = block[504]

    def _content(self, header: tarfile.TarInfo) -> bytes:
        """The data of a header that speaks of the next member."""
        if not 0 <= header.size <= _MAX_HEADER_BYTES:
            raise self._damaged(f"a name or a comment of {header.size:,} bytes")
        self._spend(header.size)
        content = self._stream.read(header.size)
        self._stream.skip_to(self._stream.position + _padded(header.size) - len(content))
        return content

    def _long_name(self, header: tarfile.TarInfo) -> str:
        name = self._content(header).rstrip(b"\0")
        # A damaged type makes a picture a long name, and the picture would be lost without a word.
        if b"\0" in name:
            raise self._damaged("a long name that is none")
        return name.decode(errors="surrogateescape")

    def _records(self, header: tarfile.TarInfo) -> dict[str, str]:
        """What a pax header says about name, target and size."""
        content = self._content(header)
        said: dict[str, str] = {}
        place = 0
        # A record is `LENGTH KEY=VALUE\n`, where the length counts the whole record.
        while place < len(content) and content[place]:
            start = _RECORD.match(content, place)
            if start is None:
                raise self._damaged("a pax header that is none")
            end = place + int(start[1])
            if not start.end() < end <= len(content) or content[end - 1] != ord("\n"):
                raise self._damaged("a pax header that is none")
            value = content[start.end() : end - 1].decode(errors="surrogateescape")
            if start[2].startswith(b"GNU.sparse."):
                said["sparse"] = ""
            word = _WORDS.get(start[2])
            if word is not None:
                said[word] = value
            place = end
        if not re.fullmatch(r"\d{1,18}", said.get("size", "0")):
            raise self._damaged("a size that is no number")
        return said

    def _spend(self, num_bytes: int) -> None:
        """Count bytes of headers; ValueError if there are more than members can need."""
        self._header_bytes += num_bytes
        if self._header_bytes > _MAX_BYTES + _MAX_BYTES_EACH * self._num_members:
            raise self._damaged(
                f"headers of more than {_MAX_BYTES:,} bytes for {self._num_members:,} files"
            )

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"it is damaged at byte {self._place:,}: {what}")


def _padded(num_bytes: int) -> int:
    # Rounded up to whole blocks, in integers.
    return -(-num_bytes // BLOCK) * BLOCK
