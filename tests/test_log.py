"""log.jsonl: every line is the mean of what was sound since the last one,
and says how much was not.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_together import Among, Meeting
from vdiff.errors import DivergedError
from vdiff.machine.machine import Machine
from vdiff.training.log import MOST_SKIPPED, LossRecord
from vdiff.training.progress import Progress
from vdiff.training.settings import FitSection

BAD = math.nan


class Heard(Progress):
    """Whoever watches."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[tuple[Any, ...]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(
        self,
        update: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        images_per_second: float,
    ) -> None:
        self.updates.append((update, loss, grad_norm, learning_rate))


class Log:
    """A report of one stage, and all that it tells."""

    def __init__(self, path: Path, machine: Machine | None = None, **more: Any) -> None:
        self.path = path / "log.jsonl"
        self.heard = Heard()
        self.tracked: list[tuple[int, dict[str, float]]] = []
        settings = FitSection(
            **{"updates": 12, "log_every": 4, "batch_size": 8, **more.pop("settings", {})}
        )
        self.report = LossRecord(
            "base_0",
            settings,
            machine or Machine("fp32", "cpu"),
            self.heard,
            self.path,
            self._track,
            **more,
        )

    def _track(self, values: Mapping[str, float], step: int) -> None:
        self.tracked.append((step, dict(values)))

    def add(self, *losses: float, first: int = 1) -> None:
        for update, loss in enumerate(losses, first):
            self.report.add(update, torch.tensor([float(loss), 10.0 * loss]), 0.5**update)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def test_a_line_comes_every_so_often_and_at_the_end_with_the_means_since_the_last(
    tmp_path: Path,
) -> None:
    log = Log(tmp_path, offset=100, settings={"updates": 6})
    log.add(1, 2, 3, 6, 5, 7)
    assert log.lines() == [
        {
            "stage": "base_0",
            "update": 4,
            "loss": 3.0,
            "grad_norm": 30.0,
            "learning_rate": 0.5**4,
            "skipped": 0,
        },
        {
            "stage": "base_0",
            "update": 6,
            "loss": 6.0,
            "grad_norm": 60.0,
            "learning_rate": 0.5**6,
            "skipped": 0,
        },
    ]
    assert log.report.loss == 6.0
    assert [step for step, _ in log.tracked] == [104, 106]
    names = ("loss", "grad_norm", "learning_rate", "skipped")
    assert log.tracked[0][1] == {f"base_0/{name}": log.lines()[0][name] for name in names}
    assert log.heard.notes == []


def test_what_is_not_finite_is_left_out_of_the_means_counted_and_told_once(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.add(1, BAD, 3, math.inf, 1, 1, 1, 1, 1, 1, 1, BAD)
    assert [(line["loss"], line["skipped"]) for line in log.lines()] == [
        (2.0, 2),
        (1.0, 2),
        (1.0, 3),
    ]
    assert log.heard.notes == [
        "2 of the last 4 updates of `base_0` were skipped: their loss or gradient was not finite",
        "1 of the last 4 updates of `base_0` were skipped: their loss or gradient was not finite",
    ]


def test_a_line_of_nothing_but_skipped_updates_has_no_loss_and_the_last_one_stays(
    tmp_path: Path,
) -> None:
    log = Log(tmp_path)
    log.add(2, 2, 2, 2, BAD, BAD, BAD, BAD)
    assert (log.lines()[1]["loss"], log.lines()[1]["grad_norm"]) == (None, None)
    assert log.report.loss == 2.0
    assert log.tracked[1] == (8, {"base_0/learning_rate": 0.5**8, "base_0/skipped": 4})


def test_a_gradient_that_is_not_finite_counts_as_much_as_a_loss(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for update, norm in enumerate((1.0, math.inf, BAD, 3.0), 1):
        log.report.add(update, torch.tensor([1.0, norm]), 1.0)
    assert (log.lines()[0]["grad_norm"], log.lines()[0]["skipped"]) == (2.0, 2)


def test_ten_skipped_updates_in_a_row_end_a_training_and_nine_do_not(tmp_path: Path) -> None:
    assert MOST_SKIPPED == 10
    nine = Log(tmp_path, settings={"updates": 99, "log_every": 20})
    nine.add(*[1.0] * 5, *[BAD] * 9, *[1.0] * 6)
    assert nine.lines()[-1]["skipped"] == 9
    ten = Log(tmp_path, settings={"updates": 99, "log_every": 20})
    with pytest.raises(DivergedError, match="10 updates in a row"):
        ten.add(*[1.0] * 5, *[BAD] * 10, *[1.0] * 5)


def test_what_no_line_holds_yet_is_saved_and_gone_on_from(tmp_path: Path) -> None:
    unbroken = Log(tmp_path / "a")
    unbroken.path.parent.mkdir()
    broken = Log(tmp_path / "b")
    broken.path.parent.mkdir()
    losses = (1.0, BAD, BAD, 4.0, 5.0, BAD, 7.0, 8.0)
    unbroken.add(*losses)
    broken.add(*losses[:6])
    pending = broken.report.pending()
    assert pending["rows"][0].tolist() == [5.0, 50.0]
    assert len(pending["rows"]) == 2
    assert pending["skips"][:2].tolist() == [0, 2]  # as they were at the last line
    again = Log(tmp_path / "b", pending=pending, first_update=6)
    again.add(*losses[6:], first=7)
    assert again.lines() == unbroken.lines()
    assert Log(tmp_path / "b", first_update=8).report.pending()["rows"].shape == (0, 2)


def test_the_screen_hears_of_every_update_and_of_the_last_line(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.add(1, 2, 3, 4)
    assert [update[0] for update in log.heard.updates] == [1, 2, 3, 4]
    assert log.heard.updates[0][1:3] == (
        1.0,
        10.0,
    )  # the first is read at once, so that there is something to see
    assert log.heard.updates[-1] == (4, 2.5, 25.0, 0.5**4)
    log.add(9, first=5)
    assert log.heard.updates[-1][:3] == (5, 2.5, 25.0)


def test_the_part_of_each_process_is_summed_and_its_norm_is_not(tmp_path: Path) -> None:
    meeting = Meeting(1)
    machine = Among(meeting, 0)
    machine.world_size = 3  # of which two measure nothing
    log = Log(tmp_path, machine)
    log.add(1, 1, 1, 1)
    assert (log.lines()[0]["loss"], log.lines()[0]["grad_norm"]) == (1.0, 10.0)
    assert log.heard.updates[0][1:3] == (
        3.0,
        10.0,
    )  # a guess from this process alone, until the line comes
    other = Among(meeting, 1)
    other.world_size = 1
    silent = Log(tmp_path / "other", other)
    silent.report.add(4, torch.tensor([1.0, 1.0]), 1.0)
    assert not silent.path.exists()
    assert silent.tracked == []


def test_a_trend_has_a_line_and_a_curve_of_its_own(tmp_path: Path) -> None:
    log = Log(tmp_path, offset=50)
    log.report.trend(3, {"swd": 0.25, "psnr": None}, 64)
    assert log.lines() == [
        {"stage": "base_0", "update": 3, "num_images": 64, "trend": {"swd": 0.25, "psnr": None}}
    ]
    assert log.tracked == [(53, {"base_0/trend-64/swd": 0.25})]


def test_lines_that_are_damaged_or_of_updates_to_come_are_forgotten_by_the_first_process_alone(
    tmp_path: Path,
) -> None:
    lines = [
        {"stage": "base_0", "update": 3},
        {"stage": "base_0", "update": 4},
        {"stage": "other", "update": 9},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "log.jsonl").write_text(text + '{"stage": \n[1]\n')
    second = Among(Meeting(1), 1)
    second.world_size = 1
    Log(tmp_path, second, first_update=3)
    assert (tmp_path / "log.jsonl").read_text() == text + '{"stage": \n[1]\n'
    log = Log(tmp_path, first_update=3)
    assert log.lines() == [lines[0], lines[2]]
