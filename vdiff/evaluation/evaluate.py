"""One evaluation: draw, measure, and put the rows of one protocol into one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vdiff.data.dataset import Images
from vdiff.errors import UsageError
from vdiff.evaluation.known_rows import KnownRows
from vdiff.evaluation.samples import SampleRequest, Samples
from vdiff.evaluation.subjects import Key, Subject
from vdiff.machine.machine import Machine
from vdiff.metrics.metric import (
    AnyMetricSection,
    Means,
    Metric,
    MetricSection,
    OnProgress,
    Reference,
)
from vdiff.metrics.pair_metric import PARTNERS, Pairs, Partner, are_pairs, pair_numbers
from vdiff.metrics.reference import StorePictures
from vdiff.metrics.table import (
    EvaluationRow,
    EvaluationTable,
    PairNumbers,
    Protocol,
    ReferenceImages,
    Value,
)
from vdiff.model_folder.checkpoint import ModelCard
from vdiff.system.plural import count


@dataclass(frozen=True)
class Ready:
    """Metrics that can be asked. of_sets: by name.   of_pairs: all metrics of pairs."""

    of_sets: Mapping[str, Metric]
    of_pairs: Pairs

    def features(self) -> dict[str, str]:
        """What each of them compares, in words, by name."""
        return {
            **{name: metric.features for name, metric in self.of_sets.items()},
            **self.of_pairs.features,
        }


NOT_READY = Ready({}, Pairs([]))
"""Before any metric is built: a protocol that tells no features."""


@dataclass(frozen=True)
class Evaluation:
    """What is to be measured, and where what is in the making lies.

    images: the reference, None where no metric needs one.
    folder: for samples and what is known of the reference.
    left_out: what is in the run and cannot be guided as it is asked: what the table knows of it
    stays.
    """

    subjects: Sequence[Subject]
    metrics: Sequence[AnyMetricSection]
    wanted: SampleRequest
    images: Images | None
    folder: Path
    weights: Path | None = None
    left_out: Sequence[Subject] = ()

    def samples(self) -> dict[Key, Samples]:
        """The pictures of all subjects, drawn or not."""
        place = self.folder / "samples"
        return {subject.key: Samples(place, subject, self.wanted) for subject in self.subjects}

    def needed(self, earlier: KnownRows) -> set[Key]:
        """Whose pictures are needed for what is not known yet, by `Subject.key`."""
        names = {section.name for section in self.metrics if not are_pairs(section)}
        pairs = pair_numbers(self.metrics)
        needed: set[Key] = set()
        for subject in self.subjects:
            known = self._known(subject, earlier)
            others = []
            for whom, each in self._partners(subject).items():
                numbers = self._known_of(known, whom, each)
                if not pairs <= numbers.keys():
                    others.append(each)
            if subject.is_shown and (known is None or others or not names <= set(known.metrics)):
                needed |= {subject.key, *((other.hash, other.num_steps, None) for other in others)}
        return needed

    def draw(self, machine: Machine, on_passes: Callable[[int], None], earlier: KnownRows) -> None:
        """Draw all that is missing; every process must come here.

        on_passes: told how many more pictures went once through a network.
        earlier: what the first process knows of.
        """
        needed = self.needed(earlier)
        samples = self.samples()
        for subject in {subject.key: subject for subject in self.subjects}.values():
            own = samples[subject.key]
            own.draw(machine, _as_passes(on_passes, own.num_calls), subject.key in needed)

    def num_passes(self, earlier: KnownRows) -> int:
        """How many times a picture goes through a network for what is not known yet."""
        samples = self.samples()
        calls = sum(samples[key].num_calls for key in self.needed(earlier))
        return calls * self.wanted.num_images

    def ready(
        self, device: torch.device | str, on_progress: OnProgress = lambda done, total: None
    ) -> Ready:
        """The metrics, the reference looked at.

        Errors: DataError, MachineError, ModelFileError, UsageError.
        """
        self._check_weights()
        for section in self.metrics:
            self._check_number(section.name, section.least)  # before anything is downloaded
        means = Means(device=device, weights=self.weights, on_progress=on_progress)
        return Ready(self._of_sets(means), Pairs(self.metrics, means))

    def _of_sets(self, means: Means) -> dict[str, Metric]:
        if self.images is None:
            return {}
        pictures = StorePictures(self.images)
        cache = self.folder / "reference"
        against = Reference(pictures, self.images.fingerprint, cache, **vars(means))
        built: dict[str, Metric] = {}
        for section in self.metrics:
            if isinstance(section, MetricSection):
                built[section.name] = section.build(against)
                self._check_number(section.name, built[section.name].least)
        return built

    def protocol(self, ready: Ready = NOT_READY) -> Protocol:
        """The conditions that all numbers hold under."""
        card = self.subjects[0].card
        reference: ReferenceImages | None = None
        if self.images is not None:
            reference = ReferenceImages(
                fingerprint=self.images.fingerprint, num_images=self.images.num_images
            )
        return Protocol(
            num_images=self.wanted.num_images,
            first_seed=self.wanted.first_seed,
            sampler=str(self.wanted.usual_sampler),
            shape=card.shape,
            resizing="none",
            reference=reference,
            features=ready.features(),
            labels=self.wanted.labels(card.num_classes),
        )

    def table(
        self,
        ready: Ready,
        machine: Machine,
        on_row: Callable[[EvaluationRow], None],
        earlier: KnownRows,
    ) -> EvaluationTable:
        """Measure what is drawn and not known yet; in the first process alone.

        Errors: DataError.
        """
        samples = self.samples()
        rows: list[EvaluationRow] = []
        for subject in self.subjects:
            if subject.is_shown:
                known = self._known(subject, earlier)
                rows.append(self._row(subject, ready, samples, known))
                on_row(rows[-1])
        threads = count(torch.get_num_threads(), "thread")
        here = f"{machine.described()}, {threads}, torch {torch.__version__}"
        rows = earlier.beside_others(rows, [*self.subjects, *self.left_out])
        return earlier.with_rows(rows, self.protocol(ready), here)

    def refuse_strangers(self) -> None:
        """UsageError for anything of somebody else in the place of
        pictures that are to be drawn.
        """
        for samples in self.samples().values():
            samples.refuse_strangers()

    def forget_samples(self) -> None:
        """The table is complete."""
        for samples in self.samples().values():
            samples.forget()

    def _check_number(self, name: str, least: int) -> None:
        if self.wanted.num_images < least:
            found = f"`{name}` needs at least {least:,} samples, --n is {self.wanted.num_images:,}"
            raise UsageError(found, f"ask for more: --n {least}", "--n")

    def _check_weights(self) -> None:
        """UsageError for a file of weights that no metric reads,
        or that two networks would have to read.
        """
        networks = sorted(
            {section.network for section in self.metrics if section.network is not None}
        )
        if self.weights is None or len(networks) == 1:
            return
        if networks:
            fix = "evaluate one after another, each with its own --weights: the table is extended"
            raise UsageError(
                f"one file cannot hold the weights of {' and '.join(networks)}", fix, "--weights"
            )
        fix = "leave it out, or name a metric that looks with a network, as in --metrics fid"
        raise UsageError("no metric that is asked for reads weights", fix, "--weights")

    def _row(
        self,
        subject: Subject,
        ready: Ready,
        samples: Mapping[Key, Samples],
        known: EvaluationRow | None,
    ) -> EvaluationRow:
        own = samples[subject.key]
        card = subject.card
        values: dict[str, Value] = {}
        compared: dict[Partner, PairNumbers | None] = {}
        if known is not None:
            values |= known.metrics
            compared |= {whom: known.partner(whom) for whom in PARTNERS}
        for name, metric in ready.of_sets.items():
            if name not in values:
                values[name] = metric.value(own)
        for whom, other in self._partners(subject).items():
            before = self._known_of(known, whom, other)
            found = ready.of_pairs.compare(own, samples[other.hash, other.num_steps, None], before)
            if found:
                compared[whom] = PairNumbers(
                    name=other.name,
                    hash=other.hash,
                    num_steps=other.num_steps,
                    numbers=before | found,
                    sampler=self.wanted.other_sampler(other),
                )
        if known is not None:
            seconds = known.seconds_per_image
        else:
            seconds = own.seconds_per_image()
        return EvaluationRow(
            model=card.name,
            hash=card.hash,
            num_steps=subject.num_steps,
            role=subject.role,
            seconds_per_image=seconds,
            metrics=values,
            teacher=compared.get("teacher"),
            original=compared.get("original"),
            sampler=self.wanted.own_sampler(subject),
            guidance=self.wanted.strength(card),
            num_calls=own.num_calls if own.num_calls != subject.num_steps else None,
        )

    def _partners(self, subject: Subject) -> dict[Partner, ModelCard]:
        """Whom a row is compared with, as far as they are here."""
        if not any(are_pairs(section) for section in self.metrics):
            return {}
        card = subject.card
        cards = {each.card.hash: each.card for each in self.subjects}
        found: dict[Partner, ModelCard] = {}
        for other in (cards[partner] for partner in subject.partners):
            if card.parent is not None and card.parent["hash"] == other.hash:
                found["teacher"] = other
            if not other.is_distilled:
                found["original"] = other
        return found

    def _known(self, subject: Subject, earlier: KnownRows) -> EvaluationRow | None:
        """What is known of a model whose pictures are drawn as they would be now."""
        return earlier.row(subject, self.wanted.own_sampler(subject))

    def _known_of(
        self, known: EvaluationRow | None, whom: Partner, other: ModelCard
    ) -> dict[str, float | None]:
        """The numbers that a row tells of the comparison with this very model,
        drawn as it would be now.
        """
        if known is None:
            return {}
        told = known.partner(whom)
        if told is None:
            return {}
        now = (other.hash, other.num_steps, self.wanted.other_sampler(other))
        if (told.hash, told.num_steps, told.sampler) != now:
            return {}
        return dict(told.numbers)


def _as_passes(on_passes: Callable[[int], None], num_calls: int) -> Callable[[int], None]:
    """What hears of drawn pictures, for one that wants to hear of passes through a network.

    num_calls: passes of each picture.
    """
    return lambda num_images: on_passes(num_images * num_calls)
