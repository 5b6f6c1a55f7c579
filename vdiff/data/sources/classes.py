"""The class of each picture: from a list of labels, from the folders that it lies in, or none;
and the reason.

Labels that a source has are used; or users are told why not, and what to type to have them used.
"""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vdiff.choices import Labels as Labels
from vdiff.data.sources import dataset_json
from vdiff.data.sources.labels_file import LabelsFile
from vdiff.data.sources.names import folder_of, parts_of
from vdiff.system.printable import printable

_SPLITS = frozenset(
    {
        *("train", "training", "trainset"),
        *("val", "valid", "validation", "valset", "dev", "eval"),
        *("test", "testing", "testset"),
        *("extra", "unlabeled"),
    }
)
_COUNT = re.compile(r"\d{2,}")
_NUMBER = re.compile(r"(\d+)\D*$")
# Folders that only divide the pictures are full, but for damaged pictures that somebody removed.
_ALMOST = 0.95

Folder = tuple[str, ...]
LabelsFrom = Labels | LabelsFile
"""How, or out of which file."""


@dataclass(frozen=True)
class Classes:
    """The class of each picture.

    names: of the classes, in order.   labels: for each picture the place of its class in `names`,
    -1 for none.
    told: where the classes come from, or why there are none; a part of a sentence.
    """

    names: list[str]
    labels: list[int]
    told: str

    def only(self, order: Sequence[int]) -> "Classes":
        """Those of some pictures."""
        return Classes(self.names, [self.labels[index] for index in order], self.told)


@dataclass
class Lists:
    """Labels that a source has beside its pictures.

    dataset: its `dataset.json`.   cls: the numbers in WebDataset's .cls files, by the names of
    their samples; -1 for a file that holds no number.
    """

    dataset: dataset_json.Found | None = None
    cls: dict[str, int] = field(default_factory=dict)


def classes_of(names: Sequence[str], lists: Lists, labels_from: LabelsFrom) -> Classes:
    """The classes of the pictures with these names, which are their paths in the source.

    Errors: DataError for pictures of which a labels file does not tell.
    """
    if isinstance(labels_from, LabelsFile):
        return _by_file(names, labels_from)
    if labels_from == "none" or not names:
        return _none(names, "as `--labels none` asks")
    folders = _Folders(names)
    if labels_from == "folders":
        return _topmost(folders)
    why_not: list[str] = []
    for listed in _by_lists(names, lists):
        if listed.names:
            return listed
        why_not.append(listed.told)
    classes = _by_folders(folders)
    if not why_not:
        return classes
    return replace(classes, told=f"{classes.told}; {'; '.join(why_not)}")


def _by_file(names: Sequence[str], labels: LabelsFile) -> Classes:
    """By a labels file. A class that none of the pictures has keeps its place."""
    class_names = labels.class_names()
    places = {name: place for place, name in enumerate(class_names)}
    told = f"by `{labels.path}`"
    return Classes(class_names, [places[kind] for kind in labels.of(list(names))], told)


def some(names: Collection[str]) -> str:
    """The first ten names, for a line of text."""
    shown = ", ".join(printable(name) for name in sorted(names)[:10])
    if len(names) > 10:
        return f"{shown}, ..."
    return shown


class _Folders:
    """The folders that pictures lie in.

    level: how many folders at the beginning of its path every picture has in common with all
    others.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.counts: Counter[Folder] = Counter()
        self._parts: dict[str, Folder] = {}
        for text, count in Counter(map(folder_of, names)).items():
            self._parts[text] = tuple(parts_of(text))
            self.counts[self._parts[text]] += count
        # What the first and the last one in order have in common, all between them have too.
        first = min(self.counts)
        last = max(self.counts)
        self.level = sum(1 for _ in itertools.takewhile(_are_equal, zip(first, last, strict=False)))

    def of(self, name: str) -> Folder:
        """The folder of a picture, in parts."""
        return self._parts[folder_of(name)]

    def at(self, level: int) -> set[str]:
        """The names of the folders at this level."""
        return {folder[level] for folder in self.counts if len(folder) > level}

    def depths(self) -> set[int]:
        """How many folders the pictures lie below the one that all have in common."""
        return {len(folder) - self.level for folder in self.counts}

    def labelled(self, level: int, told: str) -> Classes:
        """The folders at this level as classes."""
        # Names that only differ in what cannot be printed are one class.
        names = sorted({printable(name) for name in self.at(level)})
        places = {name: place for place, name in enumerate(names)}
        label_of = {
            folder: places[printable(folder[level])]
            for folder in self.counts
            if len(folder) > level
        }
        return Classes(names, [label_of.get(self.of(name), -1) for name in self.names], told)


def _are_equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def _none(names: Sequence[str], why: str) -> Classes:
    return Classes([], [-1] * len(names), why)


def sample_of(name: str) -> str:
    """What WebDataset calls the sample that a file belongs to:
    its name without all that follows the first dot.
    """
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _by_lists(names: Sequence[str], lists: Lists) -> Iterator[Classes]:
    """By each list of labels that there is, the best first."""
    if lists.dataset is not None:
        yield _by_dataset(names, lists.dataset)
    if lists.cls:
        numbers = [lists.cls.get(sample_of(name), -1) for name in names]
        yield _numbered(names, numbers, "the .cls files of the WebDataset", "have")


def _by_dataset(names: Sequence[str], dataset: dataset_json.Found) -> Classes:
    if not dataset_json.has_labels(dataset):
        return _none(names, f"`{dataset_json.NAME}` has no labels")
    places = {name: place for place, name in enumerate(names)}
    numbers = [-1] * len(names)
    try:
        for name, number in dataset_json.entries(dataset):
            place = places.get(name)
            if place is not None:
                numbers[place] = number
    except ValueError as err:
        return _none(names, printable(f"`{dataset_json.NAME}` cannot be used: {err}"))
    return _numbered(names, numbers, f"`{dataset_json.NAME}`", "has")


def _numbered(names: Sequence[str], numbers: list[int], what: str, has: str) -> Classes:
    """By a number for each picture, -1 for none. Classes are the numbers that occur."""
    if -1 in numbers:
        first = printable(names[numbers.index(-1)])
        count = f"{numbers.count(-1):,} of {len(names):,} pictures, `{first}` for one"
        return _none(names, f"{what} {has} no label for {count}")
    used_numbers = sorted(set(numbers))
    if len(used_numbers) == 1:
        return _none(names, f"{what} {has} one label only")
    # Labels are 0, 1, 2, ... without gaps: an embedding has a row for each.
    label_of = {number: label for label, number in enumerate(used_numbers)}
    class_names = [str(number) for number in used_numbers]
    return Classes(class_names, [label_of[number] for number in numbers], f"by {what}")


def _by_folders(folders: _Folders) -> Classes:
    """By folders that lie side by side and hold all pictures;
    or by those inside of `train`, `val` and so on.
    """
    names = folders.names
    level = folders.level
    if len(folders.counts) == 1:
        return _none(names, "all pictures lie in one folder")
    tops = folders.at(level)
    if folders.depths() == {1}:
        if _are_splits(tops):
            return _none(names, f"{some(tops)} are parts of a data set, not classes")
        if _are_counting(folders, level):
            return _none(
                names,
                f"{some(tops)} only count the pictures; `--labels folders` takes them as classes",
            )
        return folders.labelled(level, "by their folders")
    if folders.depths() == {2} and _are_parts(folders, level):
        if _are_counting(folders, level + 1):
            return _none(names, f"{some(folders.at(level + 1))} only count the pictures")
        return folders.labelled(level + 1, f"by the folders in {some(tops)}")
    return _none(names, _why_not(folders))


def _topmost(folders: _Folders) -> Classes:
    """By the topmost folders, as torchvision's ImageFolder;
    by those inside of them if they are `train`, `val`.
    """
    level = folders.level
    while len(folders.at(level)) == 1:
        level += 1
    if _are_splits(folders.at(level)):
        level += 1
    classes = folders.labelled(level, "by the topmost folders")
    if len(classes.names) < 2:
        return _none(folders.names, "there are no two class folders")
    return classes


def _are_splits(tops: Collection[str]) -> bool:
    return bool(tops) and all(name.lower() in _SPLITS for name in tops)


def _are_parts(folders: _Folders, level: int) -> bool:
    """Whether the folders at this level are parts with classes inside:
    called `train` and so on, or all alike.
    """
    inner: dict[str, set[str]] = {}
    for folder in folders.counts:
        inner.setdefault(folder[level], set()).add(folder[level + 1])
    are_alike = len({frozenset(names) for names in inner.values()}) == 1
    return len(folders.at(level + 1)) > 1 and (are_alike or _are_splits(inner))


def _are_counting(folders: _Folders, level: int) -> bool:
    """Whether the folders at this level only divide the pictures into portions,
    such as 00000, 00001, ...

    That is so if their names are numbers of one length, the first of which begins with 0, if all
    folders but the last are full, and if the numbers of the pictures go on from folder to folder.
    """
    tops = folders.at(level)
    if not all(_COUNT.fullmatch(name) for name in tops) or len({len(name) for name in tops}) > 1:
        return False
    if not min(tops).startswith("0"):
        return False
    numbers: dict[Folder, list[int]] = {}
    for name in folders.names:
        numbers.setdefault(folders.of(name), []).append(_number_in(name))
    in_order = [numbers[folder] for folder in sorted(numbers)]
    goes_on = all(max(earlier) < min(later) for earlier, later in itertools.pairwise(in_order))
    counts = [len(numbers_in_folder) for numbers_in_folder in in_order]
    return goes_on and min(counts[:-1]) >= _ALMOST * max(counts) and counts[-1] <= max(counts[:-1])


def _number_in(name: str) -> int:
    """The last number in the name of a picture; -1 without one."""
    match = _NUMBER.search(name, name.rfind("/") + 1)
    if match is None:
        return -1
    # Turning thousands of digits into an int is slow, and beyond a limit Python refuses.
    return int(match[1][-18:])


def _why_not(folders: _Folders) -> str:
    """Why the folders are not taken as classes, and what `--labels folders` would do."""
    offered = _topmost(folders)
    strays = [name for name, label in zip(folders.names, offered.labels, strict=True) if label < 0]
    if not offered.names:
        return f"`{printable(strays[0])}` and others lie in no class folder"
    classes = f"{len(offered.names):,} classes ({some(offered.names)})"
    if not strays:
        return (
            f"the folders differ in depth; `--labels folders` takes the topmost ones as {classes}"
        )
    one = printable(strays[0])
    more = len(strays) - 1
    subject = f"`{one}` lies"
    them = "it"
    if more:
        subject = f"`{one}` and {more:,} more lie"
        them = "them"
    return (
        f"{subject} outside of the class folders; `--labels folders` leaves {them} "
        f"out and finds {classes}"
    )
