"""The table of an evaluation: how good each model is at each number of steps,
and under which conditions that holds.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from vdiff.disk import whole_folder
from vdiff.disk.ours import beginning
from vdiff.errors import ModelFileError
from vdiff.system.plural import count

Role = Literal["original", "undistilled", "solved", "student"]


class _Part(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False
    )


class ReferenceImages(_Part):
    """The pictures that samples are compared with."""

    fingerprint: str
    num_images: int

    def __str__(self) -> str:
        return f"{count(self.num_images, 'picture')} ({self.fingerprint[:8]})"


class Protocol(_Part):
    """What a number depends on beside the model: numbers of two protocols must not be compared.

    sampler: of all models that advise no other one, see `EvaluationRow`.
    features: metric -> what it compares, in words.
    resizing: what is done to pictures before, `none` for nothing.
    labels: which classes were asked for, None without classes.
    """

    num_images: int
    first_seed: int
    sampler: str
    shape: tuple[int, int, int]
    resizing: str
    reference: ReferenceImages | None
    features: dict[str, str]
    labels: str | None = None

    def line(self, has_reference: bool = True) -> str:
        """All of it in one line, to stand beside a number. has_reference:
        whether the number looks at the reference.
        """
        channels, height, width = self.shape
        last = self.first_seed + self.num_images - 1
        parts = [f"n = {self.num_images:,}", f"seeds {self.first_seed}-{last}", self.sampler]
        parts.append(f"{channels} x {height} x {width} pixels of 8 bits, resizing: {self.resizing}")
        if self.labels is not None:
            parts.append(self.labels)
        if self.reference is not None and has_reference:
            parts.append(f"reference {self.reference}")
        return "; ".join(parts)

    def difference(self, other: "Protocol") -> str | None:
        """Why the numbers of the two must not be compared, None if they may:
        what one alone tells is no difference.
        """
        for name in type(self).model_fields:
            one = getattr(self, name)
            two = getattr(other, name)
            if name == "features":
                changed = [metric for metric in one if one[metric] != two.get(metric, one[metric])]
                if changed:
                    return (
                        f"`{changed[0]}` compares other features: "
                        f"{one[changed[0]]} and {two[changed[0]]}"
                    )
            elif one != two and not (name == "reference" and None in (one, two)):
                return f"`{name}` differs: {one} and {two}"
        return None

    def joined_with(self, other: "Protocol") -> "Protocol":
        """What the two tell together, where they have no difference."""
        features = {**self.features, **other.features}
        return self.model_copy(
            update={"features": features, "reference": other.reference or self.reference}
        )


class Value(_Part):
    """A number and its 95 % interval, by bootstrap; None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


class PairNumbers(_Part):
    """What metrics of pairs say of a model's pictures and those of another from the same noise.

    name, hash, num_steps: of the other model.   numbers: by name, None for an infinite one: that of
    equal pictures.
    sampler: that drew the other model's pictures, None for the one of the protocol.
    In a file the numbers stand among the other facts.
    """

    name: str
    hash: str
    num_steps: int
    numbers: dict[str, float | None]
    sampler: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "numbers" in value:
            return value
        facts = {name: each for name, each in value.items() if name in PAIR_FACTS}
        return {
            **facts,
            "numbers": {name: each for name, each in value.items() if name not in PAIR_FACTS},
        }

    @model_serializer(mode="plain")
    def _spread(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "name": self.name,
            "hash": self.hash,
            "num_steps": self.num_steps,
        }
        if self.sampler is not None:
            facts["sampler"] = self.sampler
        return facts | self.numbers


PAIR_FACTS = ("name", "hash", "num_steps", "numbers", "sampler")
"""What no measure of pairs may be called: see `PairNumbers`."""


class EvaluationRow(_Part):
    """One model at one number of steps.

    role: `original` is the base at its full number, `undistilled` the base at fewer, and `solved`
    the base at fewer by a solver, whatever the sampler of the protocol is.
    metrics: by name.
    sampler: that drew, None for the one of the protocol. A file says it only where it is another
    one.
    teacher, original: compared with the model's own teacher and with the base at its full number of
    steps.
    guidance: g; None for a model without guidance.   num_calls: of the network for one picture,
    None for as many as steps. A file says both only where they are some.
    """

    model: str
    hash: str
    num_steps: int
    role: Role
    seconds_per_image: float | None = None
    metrics: dict[str, Value] = {}
    teacher: PairNumbers | None = None
    original: PairNumbers | None = None
    sampler: str | None = None
    guidance: float | None = None
    num_calls: int | None = None

    @model_serializer(mode="wrap")
    def _in_few_words(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = handler(self)
        for name in ("sampler", "guidance", "num_calls"):
            if getattr(self, name) is None:
                del told[name]
        return told

    @property
    def g(self) -> float:
        """The strength of guidance; 1 is none."""
        return 1.0 if self.guidance is None else self.guidance

    @property
    def name(self) -> str:
        """The model, and the guidance that it was drawn with."""
        return self.model if self.guidance is None else f"{self.model}, g {self.guidance:.6g}"

    @property
    def all_calls(self) -> int:
        """Network calls for one picture."""
        return self.num_steps if self.num_calls is None else self.num_calls

    @property
    def calls(self) -> str:
        """For people: the steps, and the network calls where these are more."""
        if self.num_calls is None:
            return f"{self.num_steps:,}"
        return f"{self.num_steps:,} ({self.num_calls:,} calls)"

    def partner(self, whom: Literal["original", "teacher"]) -> PairNumbers | None:
        """One of the two."""
        if whom == "teacher":
            return self.teacher
        return self.original


class EvaluationTable(_Part):
    """All rows of one protocol. made: when, ISO 8601.   machine: on what, in words."""

    protocol: Protocol
    made: str
    made_by: str
    machine: str
    rows: tuple[EvaluationRow, ...]

    def row(self, model: str, num_steps: int | None = None) -> EvaluationRow | None:
        """The row of a model, at its own number of steps unless another is asked for."""
        found = [
            row
            for row in self.rows
            if row.model == model and row.role not in ("undistilled", "solved")
        ]
        if num_steps is not None:
            found = [row for row in self.rows if row.model == model and row.num_steps == num_steps]
        # without guidance, where that was measured
        return min(found, key=lambda row: abs(row.g - 1), default=None)

    def shown(self) -> list[EvaluationRow]:
        """The rows that people are told of: of the solvers at each number of steps, the best.

        That is the best by the most telling metric that any row has, else by the PSNR to the
        original; where none was measured, the first.
        """
        best: dict[tuple[str, int, float], EvaluationRow] = {}
        for row in self.rows:
            if row.role == "solved":
                key = (row.hash, row.num_steps, row.g)
                other = best.get(key)
                if other is None or self._is_better(row, other):
                    best[key] = row
        of_solvers = [id(row) for row in best.values()]
        return [row for row in self.rows if row.role != "solved" or id(row) in of_solvers]

    def _is_better(self, row: EvaluationRow, other: EvaluationRow) -> bool:
        from vdiff.metrics.metric import ordered, words_for

        for metric in ordered({name for each in self.rows for name in each.metrics}):
            if metric in row.metrics and metric in other.metrics:
                one, two = row.metrics[metric].value, other.metrics[metric].value
                if words_for(metric).better.startswith("more"):
                    return one > two
                return one < two
        told = [
            each.original.numbers.get("psnr") if each.original is not None else None
            for each in (row, other)
        ]
        if told[0] is None or told[1] is None:
            return False
        return told[0] > told[1]

    @property
    def format(self) -> int:
        """The oldest format that can say all of it: to format 1, one sampler has drawn everything,
        and to format 2, no solver has drawn and nothing was guided.
        """
        is_guided = any(row.guidance is not None or row.num_calls is not None for row in self.rows)
        if is_guided or any(row.role == "solved" for row in self.rows):
            return 3
        for row in self.rows:
            for told in (row, row.teacher, row.original):
                if told is not None and told.sampler is not None:
                    return 2
        return 1

    def alike(self) -> "EvaluationTable":
        """The rows of one guidance, which curves and verdicts are drawn through: that of most
        students, and among equals the one nearest to none.
        """
        strengths = {row.g for row in self.rows}
        if len(strengths) < 2:
            return self
        students = [row.g for row in self.rows if row.role == "student"]
        # one at which the original was measured, too, if there is any
        both = strengths & {row.g for row in self.rows if row.role == "original"} & set(students)
        g = min(both or strengths, key=lambda each: (-students.count(each), abs(each - 1)))
        return self.model_copy(update={"rows": tuple(row for row in self.rows if row.g == g)})

    def line(self, has_reference: bool = True) -> str:
        """The protocol in one line, and which models were drawn with a sampler of their own."""
        models: dict[str, list[str]] = {}
        solved: dict[str, list[str]] = {}
        for row in self.shown():
            if row.role == "solved":
                solved.setdefault(str(row.sampler), []).append(f"{row.num_steps:,}")
            elif row.sampler is not None:
                models.setdefault(row.sampler, []).append(row.model)
        others = [
            f"{', '.join(dict.fromkeys(names))} with {sampler}" for sampler, names in models.items()
        ]
        others += [
            f"best solver in {' and '.join(steps)}: {sampler}" for sampler, steps in solved.items()
        ]
        return "; ".join([self.protocol.line(has_reference), *others])


def read(path: Path) -> EvaluationTable | None:
    """The table in a file that `write` left; None where there is none.   Errors: ModelFileError."""
    if not path.is_file():
        return None
    content = whole_folder.read_json(path)
    newer = content.pop("format", 1) not in _FORMATS
    try:
        return EvaluationTable.model_validate(content)
    except ValidationError as err:
        reason = "it is damaged"
        if newer:
            reason = "it was made by another version of vdiff"
        problem = f"`{path}` is no table of an evaluation: {reason}"
        raise ModelFileError(problem, "run `vdiff evaluate` again", path) from err


def write(path: Path, table: EvaluationTable) -> None:
    """Leave the table in a file, in one step.   Errors: MachineError."""
    content = {"format": table.format, **table.model_dump(mode="json")}
    whole_folder.write_text(
        path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", is_ours
    )


def is_ours(path: Path) -> bool:
    """Whether a file, which may be damaged, is a table that `write` left,
    in this version or another one.
    """
    return re.match(rb'\{\s*"(format|protocol)": ', beginning(path, 100)) is not None


_FORMATS = (1, 2, 3)
