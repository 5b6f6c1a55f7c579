"""What a metric is: it takes sampled pictures, compares them with reference pictures,
and says what it compared.

Read this to write one. A new metric is one file with a section and a class, and a line in the table
of `metrics/__init__.py` or an entry point `vdiff.metrics` of another package. What compares the
pictures of two models, one by one, is a metric of pairs: see `metrics/pair_metric.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from vdiff.config import KindSection
from vdiff.errors import DataError, UsageError
from vdiff.metrics import METRICS

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from vdiff.metrics.pair_metric import PairMetricSection
    from vdiff.metrics.table import Value

_CHUNK_BYTES = 2**25

OnProgress = Callable[[int, int], None]
"""Told how many pictures of a set, of how many, a network has looked at; it may take hours."""


class Pictures(Protocol):
    """Pictures [N, C, H, W] of which a part is read at a time; a tensor is one."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Tensor: ...


class Metric(Protocol):
    """A number for sampled pictures. features: what it compares, in words.

    least: how many samples it needs.
    """

    features: str
    least: int

    def value(self, samples: Pictures) -> Value:
        """The number for samples, uint8 [N, C, H, W].   Errors: DataError."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What metrics work with.

    device: for networks.   weights: a feature extractor's weights, None for its own download.
    extractors: those in use, for all metrics.   on_progress: see `OnProgress`.
    """

    device: torch.device | str = "cpu"
    weights: Path | None = None
    extractors: dict[str, Any] = field(default_factory=dict)
    on_progress: OnProgress = lambda done, total: None


@dataclass(frozen=True)
class Reference(Means):
    """What samples are compared with, and with what means.

    pictures: the reference, uint8 [N, C, H, W].   cache: a folder for what is known of the
    reference, None for none.
    where: the option or the key that named the reference, for errors.
    """

    pictures: Pictures
    fingerprint: str
    cache: Path | None = None
    where: str = "--data"

    def check_number(self, least: int, what: str, fix: str = "give more pictures") -> None:
        """DataError for fewer reference pictures than a metric needs."""
        if len(self.pictures) < least:
            found = f"the reference has {len(self.pictures):,}"
            raise DataError(
                f"{what} needs at least {least:,} reference pictures, {found}", fix, self.where
            )


class AnyMetricSection(KindSection, ABC):
    """What metrics of both sorts say of themselves;
    a new one is a `MetricSection` or a `PairMetricSection`.

    short: the option that `kind:value` sets.   is_cheap: whether a trend may have it.

    title, better: its name for people, and what a good number is like.
    renamed: its name with an option that makes another number of it is this and the option,
    `fd_vgg16`.   least: so many samples it needs, or more.
    most: no number of it is greater.   enough: with fewer samples its number is clearly too high.
    """

    short: ClassVar[str | None] = None
    is_cheap: ClassVar[bool] = False
    title: ClassVar[str] = ""
    better: ClassVar[str] = ""
    renamed: ClassVar[str | None] = None
    least: ClassVar[int] = 2
    most: ClassVar[float | None] = None
    enough: ClassVar[int | None] = None

    @property
    def network(self) -> str | None:
        """The network whose weights it needs, None for none."""
        return None

    @property
    def name(self) -> str:
        """What it is called in a table."""
        return self.kind

    @property
    @abstractmethod
    def numbers(self) -> tuple[str, ...]:
        """What its numbers are called in a table and in a log."""


class MetricSection(AnyMetricSection, ABC):
    """A metric that compares a set of samples with a set of reference pictures,
    and its options: one number.
    """

    makes: ClassVar[tuple[str, str]] = ("build", "vdiff.metrics.metric:Metric")

    @property
    def numbers(self) -> tuple[str, ...]:
        """Its name."""
        return (self.name,)

    @abstractmethod
    def build(self, against: Reference) -> Metric:
        """The metric, with what it must know of the reference.

        Errors: DataError, MachineError.
        """


class AsFloat:
    """Pictures of 8 bits as floats in [-1, 1], read as they are needed."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self.shape = pictures.shape

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, part: slice) -> Tensor:
        from vdiff.images.images import to_float

        return to_float(self._pictures[part])


def chunks(pictures: Pictures) -> Iterator[Tensor]:
    """The pictures part by part, in parts that fit into memory."""
    size = max(1, _CHUNK_BYTES // (8 * max(1, prod(pictures.shape[1:]))))
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def named(texts: Sequence[str]) -> list[MetricSection | PairMetricSection]:
    """The metrics that are named as `fd_pixel` or, with an option, `fd_pixel:48`.

    Errors: UsageError.
    """
    found = [_named(text) for text in texts]
    makers: dict[str, str] = {}
    for section in found:
        for number in section.numbers:
            maker = makers.setdefault(number, section.name)
            if maker != section.name:
                problem = (
                    f"the metrics `{maker}` and `{section.name}` both call a number `{number}`"
                )
                raise UsageError(problem, "ask for one of them at a time", "--metrics")
    names = [section.name for section in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the metric `{name}` is asked for twice", "name it once", "--metrics")
    return found


class Words(NamedTuple):
    """What a number of a table is called for people, and what a good one is like.

    rank: its place among others.   most: none is greater, None if there is no end.
    """

    title: str
    better: str
    rank: int
    most: float | None = None


def words_for(name: str) -> Words:
    """The words for a number with this name in a table; for an unknown one, its name."""
    sections = METRICS.sections()
    for rank, (kind, section) in enumerate(sections.items()):
        if name == kind:
            return Words(section.title or name, section.better, rank, section.most)
        if (
            section.renamed is not None
            and name.startswith(f"{section.renamed}_")
            and name not in METRICS
        ):
            return Words(name, section.better, rank, section.most)
    return Words(name, "", len(sections))


def ordered(names: Iterable[str]) -> list[str]:
    """Names of numbers, the most telling first."""
    return sorted(names, key=lambda name: (words_for(name).rank, name))


def _named(text: str) -> MetricSection | PairMetricSection:
    kind, colon, option = text.strip().partition(":")
    if kind not in METRICS:
        raise UsageError(METRICS.unknown(kind), f"choose among: {', '.join(METRICS)}", "--metrics")
    section = METRICS.section(kind)
    if colon and section.short is None:
        raise UsageError(f"the metric `{kind}` takes no option", f"write `{kind}`", "--metrics")
    options: dict[str, str] = {}
    if colon and section.short is not None:
        options[section.short] = option
    try:
        return section.model_validate(options)
    except ValueError as err:
        problem = f"`{option}` is no {section.short} of the metric `{kind}`"
        raise UsageError(
            problem, f"write it as `{kind}`, or `{kind}:48` where it takes a number", "--metrics"
        ) from err


# The name of version 0.1, by which packages outside vdiff may know it.
Against = Reference
