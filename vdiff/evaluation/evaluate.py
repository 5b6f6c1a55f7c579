"""One evaluation: draw, measure, and put the rows of one protocol into one table."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from vdiff import __version__
from vdiff.data.loader import Images
from vdiff.errors import UsageError
from vdiff.evaluation.samples import Samples, Wanted
from vdiff.evaluation.subjects import Subject, lineage
from vdiff.metrics.agreement import FEATURES, agreement_of
from vdiff.metrics.metric import Against, Metric, MetricSection
from vdiff.metrics.reference import StorePictures
from vdiff.metrics.table import AgreementWith, EvaluationTable, Protocol, Reference, Row, Value
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

    def draw(self, machine: Machine, on_batch: Callable[[int], None]) -> None:
        """Draw all that is missing; every process must come here."""
        for samples in self.samples().values():
            samples.draw(machine, on_batch)

    def ready(self, device: torch.device | str) -> dict[str, Metric]:
        """The metrics by name, the reference looked at.   Errors: DataError, MachineError, ModelFileError."""
        if self.images is None:
            return {}
        pictures, cache = StorePictures(self.images), self.folder / "reference"
        against = Against(pictures, self.images.fingerprint, cache, device, self.weights)
        built = {section.name: section.build(against) for section in self.metrics if not section.of_pairs}
        for name, metric in built.items():
            if self.wanted.num_images < metric.least:
                found = f"`{name}` needs at least {metric.least:,} samples, --n is {self.wanted.num_images:,}"
                raise UsageError(found, f"ask for more: --n {metric.least}", "--n")
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
            labels=f"classes 0-{card.num_classes - 1} in turn" if card.num_classes else None,
        )

    def table(self, metrics: Mapping[str, Metric], machine: str, on_row: Callable[[Row], None]) -> EvaluationTable:
        """Measure what is drawn; in the first process alone.   Errors: DataError."""
        samples, rows = self.samples(), []
        for subject in self.subjects:
            if subject.is_shown:
                own = samples[subject.key]
                values: dict[str, Value] = {name: metric.value(own) for name, metric in metrics.items()}
                rows.append(self._row(subject, values, samples))
                on_row(rows[-1])
        made = datetime.now(UTC).isoformat(timespec="seconds")
        protocol = self.protocol(metrics)
        return EvaluationTable(
            protocol=protocol, made=made, made_by=f"vdiff {__version__}", machine=machine, rows=tuple(rows)
        )

    def forget_samples(self) -> None:
        """The table is complete."""
        for samples in self.samples().values():
            samples.forget()

    def _row(self, subject: Subject, values: Mapping[str, Value], samples: Mapping[tuple[str, int], Samples]) -> Row:
        own, card = samples[subject.key], subject.card
        with_teacher = with_original = None
        if self._has_pairs() and subject.role != "original":
            known = {each.card.hash: each.card for each in self.subjects}
            found = lineage(card, list(known.values())) if subject.role == "student" else [card]
            for other in found:
                compared = _compared(own, samples[other.hash, other.num_steps], other.name, other.hash, other.num_steps)
                if card.parent is not None and card.parent["hash"] == other.hash:
                    with_teacher = compared
                if not other.is_distilled:
                    with_original = compared
        return Row(
            model=card.name,
            hash=card.hash,
            num_steps=subject.num_steps,
            role=subject.role,
            seconds_per_image=own.seconds_per_image(),
            metrics=dict(values),
            teacher=with_teacher,
            original=with_original,
        )

    def _has_pairs(self) -> bool:
        return any(section.of_pairs for section in self.metrics)


def _compared(own: Samples, other: Samples, name: str, hash_: str, num_steps: int) -> AgreementWith:
    mse, psnr, ssim = agreement_of(own, other)
    return AgreementWith(name=name, hash=hash_, num_steps=num_steps, mse=mse, psnr=psnr if mse > 0 else None, ssim=ssim)


def check_comparable(before: EvaluationTable | None, protocol: Protocol, path: Path) -> None:
    """UsageError for a table of other conditions that would be replaced, or whose numbers would be set beside these."""
    if before is None:
        return
    different = [name for name in Protocol.model_fields if getattr(before.protocol, name) != getattr(protocol, name)]
    if different:
        told = f"`{different[0]}` differs: {getattr(before.protocol, different[0])}"
        problem = f"`{path}` holds numbers of another protocol ({told}), which cannot be compared with these"
        raise UsageError(problem, "ask for the same again, or replace the table with --force", path)


def machine_in_words(machine: Machine) -> str:
    """Where seconds were measured."""
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else platform.machine()
    return f"{machine.world_size} x {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
