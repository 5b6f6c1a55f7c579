"""A file that says the class of each picture: lines of a .csv, `name,class`, or a .json object."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vdiff.data.sources.names import parts_of
from vdiff.data.sources.trouble import unreadable
from vdiff.errors import DataError
from vdiff.system.plural import count
from vdiff.system.printable import printable

SUFFIXES = (".csv", ".json")
_MAX_BYTES = 128 * 2**20
_SHOWN = 5

_NAMES = frozenset(
    {"file", "file_name", "filename", "image", "image_id", "name", "path", "picture"}
)
_CLASSES = ("class", "label", "class_name", "category")
"""What the columns are called in a first line that names them."""

Named = tuple[str, str, str]
"""Where it stands, the name of a picture, and its class."""


@dataclass(frozen=True)
class LabelsFile:
    """What such a file says.

    classes: the class of each name, a path with slashes.
    """

    path: Path
    classes: Mapping[str, str] = field(repr=False)

    def class_names(self) -> list[str]:
        """In order: by number, where all are numbers."""
        found = set(self.classes.values())
        if all(name.isdecimal() for name in found):
            return sorted(found, key=lambda name: (int(name), name))
        return sorted(found)

    def of(self, names: list[str]) -> list[str]:
        """The class of each picture: by its path in the source, or by its name alone where no two
        pictures have the same.

        Errors: DataError for pictures that it does not name.
        """
        alone = [name.rpartition("/")[2] for name in names]
        are_unique = len(set(alone)) == len(alone)
        found: list[str] = []
        missing: list[str] = []
        for name, base in zip(names, alone, strict=True):
            known = self.classes.get("/".join(parts_of(name)))
            if known is None and are_unique:
                known = self.classes.get(base)
            if known is None:
                missing.append(name)
            else:
                found.append(known)
        if missing:
            problem = f"`{self.path}` has no class for {_some(missing, 'picture')}"
            fix = "add them to it, by their path in the source, or take them out of the source"
            raise DataError(problem, fix, self.path)
        return found


def read(path: Path) -> LabelsFile:
    """The file at `path`.   Errors: DataError, with all rows that are none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(
                f"`{path}` is larger than {_MAX_BYTES:,} bytes", "is it a labels file?", path
            )
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise DataError(f"`{path}` is no UTF-8 text", "save it as UTF-8", path) from err
    except OSError as err:
        raise unreadable(path, err) from err
    bad: list[str] = []
    rows = _of_json(text, bad) if path.suffix.lower() == ".json" else _of_csv(text, bad)
    classes = _collected(rows, bad)
    if bad:
        problem = f"`{path}` has {_some(bad, 'bad row', quote=False)}"
        raise DataError(problem, "each row is the name of a picture and its class", path)
    if len(set(classes.values())) < 2:
        problem = f"`{path}` names {count(len(set(classes.values())), 'class')} only"
        raise DataError(problem, "a network with classes needs two or more", path)
    return LabelsFile(path, classes)


def _collected(rows: Iterable[Named], bad: list[str]) -> dict[str, str]:
    """Names and classes; what is wrong with a row goes to `bad`."""
    classes: dict[str, str] = {}
    for where, name, kind in rows:
        # on Windows, tools write backslashes
        key = "/".join(parts_of(name.strip().replace("\\", "/")))
        kind = printable(kind.strip())
        if not key or not kind:
            bad.append(f"{where}: no {'class' if key else 'name'}")
        elif classes.setdefault(key, kind) != kind:
            bad.append(f"{where}: `{key}` is of the class `{classes[key]}` already, and `{kind}`")
    return classes


def _of_csv(text: str, bad: list[str]) -> Iterator[Named]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns = (0, 1)
    width = 2
    is_first = True
    try:
        for row in reader:
            where = f"line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if is_first:
                is_first = False
                named = _columns(row)
                if named is not None:
                    columns = named
                    width = len(row)
                    continue
            if len(row) != width:
                bad.append(f"{where}: {count(len(row), 'column')}, not {width}")
                continue
            yield where, row[columns[0]], row[columns[1]]
    except csv.Error as err:
        bad.append(f"line {reader.line_num}: {err}")


def _columns(row: list[str]) -> tuple[int, int] | None:
    """Where names and classes stand, by a first line that says so; None for one that does not."""
    words = [cell.strip().lower() for cell in row]
    names = [place for place, word in enumerate(words) if word in _NAMES]
    classes = [words.index(word) for word in _CLASSES if word in words]
    if not names or not classes:
        return None
    return names[0], classes[0]


def _of_json(text: str, bad: list[str]) -> Iterator[Named]:
    """Of an object name -> class, or of NVlabs' `{"labels": [[name, class], ...]}`."""
    try:
        # pairs, as an object may have a name twice
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as err:
        bad.append(f"no JSON: {printable(str(err))[:120]}")
        return
    if isinstance(found, _Pairs):
        found = next(
            (value for name, value in found if name == "labels" and _is_list(value)), found
        )
    if not isinstance(found, list):
        bad.append("it is neither an object nor a list of pairs")
        return
    for number, pair in enumerate(found, start=1):
        where = f"entry {number}"
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], str):
            bad.append(f"{where}: no pair of a name and a class")
        elif isinstance(pair[1], bool) or not isinstance(pair[1], str | int):
            bad.append(f"{where}: the class of `{printable(pair[0])}` is neither text nor a number")
        else:
            yield where, pair[0], str(pair[1])


class _Pairs(list[tuple[str, object]]):
    """An object of JSON, every name as often as it stands there."""


def _is_list(value: object) -> bool:
    return isinstance(value, list) and not isinstance(value, _Pairs)


def _some(texts: list[str], what: str, quote: bool = True) -> str:
    """How many, and the first of them."""
    shown = [f"`{printable(text)}`" if quote else printable(text) for text in texts[:_SHOWN]]
    if len(texts) > _SHOWN:
        shown.append("...")
    return f"{count(len(texts), what)}: {', '.join(shown)}"
