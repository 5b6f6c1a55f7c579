"""One evaluation: draw, measure, and put the rows of one protocol into one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vdiff.checkpoint import ModelCard
from vdiff.data.dataset import Images
from vdiff.errors import UsageError
from vdiff.evaluation.earlier import Earlier
from vdiff.evaluation.samples import Samples, Wanted
from vdiff.evaluation.subjects import Subject
from vdiff.metrics.agreement import FEATURES, agreement_of
from vdiff.metrics.metric import Against, Metric, MetricSection, Watch
from vdiff.metrics.reference import StorePictures
from vdiff.metrics.table import AgreementWith, EvaluationTable, Protocol, Reference, Row
from vdiff.training.machine import Machine


@dataclass(frozen=True)
class Evaluation:
    """What is to be measured, and where what is in the making lies.

    images: the reference, None where no metric needs one.   folder: for samples and what is known of the reference.
    """

    subjects: Sequence[Subject]
    metrics: Sequence[MetricSection]
    wanted: Wanted
    images: Images | None
    folder: Path
    weights: Path | None = None

    def samples(self) -> dict[tuple[str, int], Samples]:
        """The pictures of all subjects, drawn or not."""
        place = self.folder / "samples"
        return {subject.key: Samples(place, subject, self.wanted) for subject in self.subjects}

    def needed(self, earlier: Earlier) -> set[tuple[str, int]]:
        """Whose pictures are needed for what is not known yet, by `Subject.key`."""
        names, needed = {section.name for section in self.metrics if not section.of_pairs}, set()
        for subject in self.subjects:
            known = earlier.row(subject)
            others = [each for whom, each in self._partners(subject).items() if not _agrees_with(known, whom, each)]
            if subject.is_shown and (known is None or others or not names <= set(known.metrics)):
                needed |= {subject.key, *((other.hash, other.num_steps) for other in others)}
        return needed

    def draw(self, machine: Machine, on_passes: Callable[[int], None], earlier: Earlier) -> None:
        """Draw all that is missing; every process must come here.

        on_passes: told how many more pictures went once through a network.   earlier: what the first process knows of.
        """
        needed, samples = self.needed(earlier), self.samples()
        for subject in {subject.key: subject for subject in self.subjects}.values():
            steps = subject.num_steps
            on_batch = lambda count, steps=steps: on_passes(count * steps)  # noqa: E731
            samples[subject.key].draw(machine, on_batch, subject.key in needed)

    def num_passes(self, earlier: Earlier) -> int:
        """How many times a picture goes through a network for what is not known yet."""
        return sum(num_steps for _, num_steps in self.needed(earlier)) * self.wanted.num_images

    def ready(self, device: torch.device | str, watch: Watch = lambda done, total: None) -> dict[str, Metric]:
        """The metrics by name, the reference looked at.   Errors: DataError, MachineError, ModelFileError."""
        self._check_weights()
        if self.images is None:
            return {}
        pictures, cache = StorePictures(self.images), self.folder / "reference"
        against = Against(pictures, self.images.fingerprint, cache, device, self.weights, watch=watch)
        built: dict[str, Metric] = {}
        for section in (each for each in self.metrics if not each.of_pairs):
            self._check_number(section.name, section.least)  # before anything is downloaded
            built[section.name] = section.build(against)
            self._check_number(section.name, built[section.name].least)
        return built

    def protocol(self, metrics: Mapping[str, Metric]) -> Protocol:
        """The conditions that all numbers hold under."""
        features = {name: metric.features for name, metric in metrics.items()}
        if self._has_pairs():
            features["agreement"] = FEATURES
        images, card = self.images, self.subjects[0].card
        return Protocol(
            num_images=self.wanted.num_images,
            first_seed=self.wanted.first_seed,
            sampler=str(self.wanted.sampler),
            shape=card.shape,
            resizing="none",
            reference=Reference(fingerprint=images.fingerprint, num_images=images.num_images) if images else None,
            features=features,
            labels=self.wanted.labels(card.num_classes),
        )

    def table(
        self, metrics: Mapping[str, Metric], machine: Machine, on_row: Callable[[Row], None], earlier: Earlier
    ) -> EvaluationTable:
        """Measure what is drawn and not known yet; in the first process alone.   Errors: DataError."""
        samples, rows = self.samples(), []
        for subject in self.subjects:
            if subject.is_shown:
                rows.append(self._row(subject, metrics, samples, earlier.row(subject)))
                on_row(rows[-1])
        threads = torch.get_num_threads()
        here = f"{machine.described()}, {threads} thread{'s' * (threads != 1)}, torch {torch.__version__}"
        return earlier.with_rows(rows, self.protocol(metrics), here)

    def refuse_strangers(self) -> None:
        """UsageError for anything of somebody else in the place of pictures that are to be drawn."""
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
        """UsageError for a file of weights that no metric reads, or that two networks would have to read."""
        networks = sorted({section.network for section in self.metrics if section.network is not None})
        if self.weights is None or len(networks) == 1:
            return
        if networks:
            fix = "evaluate one after another, each with its own --weights: the table is extended"
            raise UsageError(f"one file cannot hold the weights of {' and '.join(networks)}", fix, "--weights")
        fix = "leave it out, or name a metric that looks with a network, as in --metrics fid"
        raise UsageError("no metric that is asked for reads weights", fix, "--weights")

    def _row(
        self,
        subject: Subject,
        metrics: Mapping[str, Metric],
        samples: Mapping[tuple[str, int], Samples],
        known: Row | None,
    ) -> Row:
        own, card = samples[subject.key], subject.card
        values = dict(known.metrics) if known else {}
        values |= {name: metric.value(own) for name, metric in metrics.items() if name not in values}
        agreed = {"teacher": known.teacher, "original": known.original} if known else {}
        for whom, other in self._partners(subject).items():
            if not _agrees_with(known, whom, other):
                agreed[whom] = _compared(own, samples[other.hash, other.num_steps], other)
        seconds = known.seconds_per_image if known else own.seconds_per_image()
        return Row(
            model=card.name,
            hash=card.hash,
            num_steps=subject.num_steps,
            role=subject.role,
            seconds_per_image=seconds,
            metrics=values,
            **agreed,
        )

    def _partners(self, subject: Subject) -> dict[str, ModelCard]:
        """Whom a row is compared with, `teacher` and `original`, as far as they are here."""
        if not self._has_pairs():
            return {}
        card, cards = subject.card, {each.card.hash: each.card for each in self.subjects}
        found = {}
        for other in (cards[partner] for partner in subject.partners):
            if card.parent is not None and card.parent["hash"] == other.hash:
                found["teacher"] = other
            if not other.is_distilled:
                found["original"] = other
        return found

    def _has_pairs(self) -> bool:
        return any(section.of_pairs for section in self.metrics)


def _agrees_with(known: Row | None, whom: str, other: ModelCard) -> bool:
    """Whether a row tells the agreement with this very model."""
    found: AgreementWith | None = getattr(known, whom, None)
    return found is not None and (found.hash, found.num_steps) == (other.hash, other.num_steps)


def _compared(own: Samples, other: Samples, card: ModelCard) -> AgreementWith:
    mse, psnr, ssim = agreement_of(own, other)
    known = {"name": card.name, "hash": card.hash, "num_steps": card.num_steps}
    return AgreementWith(**known, mse=mse, psnr=psnr if mse > 0 else None, ssim=ssim)
