"""What a metric of pairs is: it compares the pictures of two models from the same noise,
the n-th with the n-th.

Read this to write one. A new one is one file with a section and a class with a `compare`, and a
line in the table of `metrics/__init__.py` or an entry point `vdiff.metrics` of another package.
Agreement is the first: see `agreement.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from vdiff.errors import DataError, MachineError
from vdiff.metrics import METRICS
from vdiff.metrics.metric import AnyMetricSection, Means, Pictures, chunks
from vdiff.metrics.table import PAIR_FACTS, PairNumbers

if TYPE_CHECKING:
    from torch import Tensor

Partner = Literal["original", "teacher"]

PARTNERS: tuple[Partner, ...] = ("original", "teacher")
"""With whom a model is compared: the base at its full number of steps, and its own teacher."""


class Measure(NamedTuple):
    """One number of a metric of pairs, and how people are told of it.

    name: its key in tables and logs.   title, brief: for a chart, and for a heading or within a
    sentence.
    better: what a good one is like.   most: none is greater, None if there is no end.
    column: what stands over it on a terminal, before `to teacher`; None for its name.
    unit, form: as in `format(value, form)` and the unit behind it.
    beside: with whom tables tell it; a measure with nobody is kept, and drawn nowhere.
    metric: the name of its metric; `measures_of` tells it.
    """

    name: str
    title: str
    brief: str
    better: str
    most: float | None = None
    column: str | None = None
    unit: str = ""
    form: str = ".3g"
    beside: tuple[Partner, ...] = PARTNERS
    metric: str = ""


class PairMetric(Protocol):
    """Numbers for the pictures of two models. features: what it compares, in words."""

    features: str

    def compare(self, own: Pictures, other: Pictures) -> Mapping[str, float]:
        """A number for each of the section's measures, by name;
        infinite for equal pictures, if it must be.

        own, other: uint8 [N, C, H, W], read part by part; see `mean_over_pairs`.
        Errors: DataError.
        """


class PairMetricSection(AnyMetricSection, ABC):
    """A metric of pairs and its options.

    measures: its numbers, the most telling first. No other metric may call a number of its own the
    same.
    least: so many pairs it needs, or more.
    """

    least: ClassVar[int] = 1
    measures: ClassVar[tuple[Measure, ...]] = ()
    makes: ClassVar[tuple[str, str]] = ("build", "vdiff.metrics.pair_metric:PairMetric")

    @property
    def suffix(self) -> str:
        """Behind the names of its measures where an option makes other numbers:
        `vgg` for `lpips_vgg`.
        """
        return ""

    @property
    def name(self) -> str:
        """What it is called in a table: its kind, with the suffix."""
        return _with_suffix(self.kind, self.suffix)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of its measures, with the suffix."""
        return tuple(_with_suffix(measure.name, self.suffix) for measure in self.measures)

    @abstractmethod
    def build(self, means: Means) -> PairMetric:
        """The metric, ready to compare.   Errors: DataError, MachineError."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        names = [measure.name for measure in cls.measures]
        if not names and not cls.__abstractmethods__:
            raise TypeError(f"{cls.__name__} states no `measures`")
        for name in names:
            if not name.isidentifier() or name in PAIR_FACTS or names.count(name) > 1:
                raise TypeError(f"{cls.__name__} cannot call a measure `{name}`")


class Pairs:
    """All metrics of pairs among several metrics, ready to compare. features:
    what each one compares, by its name.
    """

    def __init__(self, sections: Iterable[AnyMetricSection], means: Means | None = None) -> None:
        used = means or Means()
        self._built = [
            (each, each.build(used)) for each in sections if isinstance(each, PairMetricSection)
        ]
        self.features = {section.name: metric.features for section, metric in self._built}

    def compare(
        self, own: Pictures, other: Pictures, known: Collection[str] = ()
    ) -> dict[str, float | None]:
        """All numbers by name, None for an infinite one;
        without those of metrics of which all are known.

        own, other: uint8 [N, C, H, W], the n-th of both from the same noise.
        Errors: DataError, MachineError.
        """
        found: dict[str, float | None] = {}
        for section, metric in self._built:
            if not set(section.numbers) <= set(known):
                found |= _compared(section, metric, own, other)
        return found


def are_pairs(section: AnyMetricSection) -> bool:
    """Whether a metric compares pairs."""
    return isinstance(section, PairMetricSection)


def pair_numbers(sections: Iterable[AnyMetricSection]) -> set[str]:
    """The names of all numbers that the metrics of pairs among several give."""
    return {
        number
        for section in sections
        if isinstance(section, PairMetricSection)
        for number in section.numbers
    }


def mean_over_pairs(
    own: Pictures, other: Pictures, of_batch: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
) -> dict[str, float]:
    """Numbers that are means over all pairs, of pictures that need not fit into memory.

    of_batch: takes both as float32 [B, C, H, W] in [-1, 1] and gives [B] by name.
    """
    from vdiff.images.images import to_float  # numpy and PIL, which the sections do without

    sums: dict[str, float] = {}
    start = 0
    for part in chunks(own):
        found = of_batch(to_float(part), to_float(other[start : start + len(part)]))
        for name, values in found.items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
        start += len(part)
    return {name: total / len(own) for name, total in sums.items()}


def measures_of(found: Iterable[PairNumbers | None]) -> list[Measure]:
    """The measures of all numbers that are there, the most telling first;
    one that no metric knows is told by name.
    """
    names = {name for each in found if each is not None for name in each.numbers}
    known = [
        measure._replace(metric=kind)
        for kind, section in METRICS.sections().items()
        if issubclass(section, PairMetricSection)
        for measure in section.measures
    ]
    ranked = [measure for each in known for measure in _named_as(each, known, sorted(names))]
    told = {measure.name for measure in ranked}
    return ranked + [Measure(name, name, name, "") for name in sorted(names - told)]


def written(measure: Measure, value: float | None) -> str:
    """A number as people read it: `equal`, `23.1`, without its unit."""
    if value is None:
        return "equal"
    return format(value, measure.form)


def _named_as(measure: Measure, known: Iterable[Measure], names: Iterable[str]) -> list[Measure]:
    """The measure under each name that it has, with suffixes or without."""
    found = []
    for name in names:
        bases = [
            each.name for each in known if name == each.name or name.startswith(f"{each.name}_")
        ]
        if bases and max(bases, key=len) == measure.name:
            found.append(_suffixed(measure, name.removeprefix(measure.name).removeprefix("_")))
    return found


def _suffixed(measure: Measure, suffix: str) -> Measure:
    if not suffix:
        return measure
    name = _with_suffix(measure.name, suffix)
    title = f"{measure.title} ({suffix})"
    brief = f"{measure.brief} ({suffix})"
    metric = _with_suffix(measure.metric, suffix)
    return measure._replace(name=name, title=title, brief=brief, column=None, metric=metric)


def _with_suffix(name: str, suffix: str) -> str:
    if not suffix:
        return name
    return f"{name}_{suffix}"


def _compared(
    section: PairMetricSection, metric: PairMetric, own: Pictures, other: Pictures
) -> dict[str, float | None]:
    found = dict(metric.compare(own, other))
    wanted = {measure.name for measure in section.measures}
    if found.keys() != wanted:
        problem = (
            f"the metric `{section.kind}` gives the numbers {sorted(found)} and states "
            f"{sorted(wanted)}"
        )
        raise MachineError(
            problem, "leave it out, or get a version of its package in which both are the same"
        )
    for name, value in found.items():
        if math.isnan(value) or value == -math.inf:
            problem = f"`{name}` of these pictures is not a number"
            raise DataError(
                problem, f"leave out the metric `{section.kind}`, or tell the author of it"
            )
    return {
        _with_suffix(name, section.suffix): value if math.isfinite(value) else None
        for name, value in found.items()
    }
