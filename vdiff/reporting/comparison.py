"""The picture that says it all: teacher, undistilled model and students, from the same noise."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vdiff.chain.own_recipe import sampler_of
from vdiff.chain.plan import counted
from vdiff.drawing.pictures import draw_with
from vdiff.images.images import ImageRow, write_rows
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint


def compare(
    base: Path,
    students: Sequence[Path],
    target: Path,
    *,
    count: int = 16,
    teacher_steps: int | None = None,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a PNG with a row of `count` pictures for the teacher,
    then pairs of rows for every student.

    base: the undistilled model, shown at `teacher_steps` (its own number if None) and at each
    student's number.
    students: model folders, most steps first.   say: told what is being drawn.
    """
    teacher = checkpoint.load(base, device)
    steps = teacher_steps or teacher.card.num_steps
    say(f"drawing the teacher at {counted(steps)}")
    rows = [ImageRow(f"teacher, {counted(steps)}", _pictures(teacher, steps, count, device))]
    loaded = [checkpoint.load(folder, device) for folder in students]
    for student in loaded:
        number = student.card.num_steps
        say(f"drawing at {counted(number)}")
        rows.append(
            ImageRow(
                f"not distilled, {counted(number)}",
                _pictures(teacher, number, count, device),
                gap=True,
            )
        )
        rows.append(
            ImageRow(f"student, {counted(number)}", _pictures(student, number, count, device))
        )
    # the picture travels alone: by these hashes it can be told which weights drew it
    text = {
        "vdiff.model": teacher.card.hash,
        "vdiff.students": " ".join(student.card.hash for student in loaded),
    }
    write_rows(target, rows, text)


def _pictures(model: Checkpoint, num_steps: int, count: int, device: torch.device | str) -> Tensor:
    sampler = sampler_of(model.card, model.folder)
    x = draw_with(model, range(count), num_steps, sampler=sampler, device=device)
    return model.codec.decode(x, model.card.name)
