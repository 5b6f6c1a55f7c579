"""The work of `vdiff sample`: pictures are drawn, kept and left in their place."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdiff.cli import backends, guiding, sample_place, session
from vdiff.errors import Stopped

if TYPE_CHECKING:
    from vdiff.drawing.drawing import Drawing
    from vdiff.drawing.kept import KeptBatches
    from vdiff.machine.machine import Machine
    from vdiff.recipe.recipe import Recipe


def kept_for(
    target: Path, about: Mapping[str, str | int] | None, force: bool, machine: "Machine"
) -> "KeptBatches | None":
    """What was drawn for this place before; in the first process, after a look whether this machine
    would go on with it in the same way.

    about: as `_place` gives it.   Errors: UsageError.
    """
    from vdiff.drawing.kept import KeptBatches

    if about is None:
        return None
    ways = {
        "device": machine.device.type,
        "precision": machine.precision,
        "processes": machine.world_size,
    }
    kept = KeptBatches(target, {**about, **ways})
    if not force:
        kept.refuse_other()
    return kept


def draw(
    company: session.Company,
    recipe: "Recipe",
    folder: Path,
    wanted: Mapping[str, Any],
    device: str | None,
    target: Path,
    form: sample_place.Form,
    kept_of: "Callable[[Machine], KeptBatches | None]",
    backend: str,
) -> Mapping[str, object] | None:
    """Draw with the model in `folder`, in all processes;
    what the first one has to tell of it, None in the others.

    wanted: of the `Drawing`, by name; its guide is not loaded yet.
    kept_of: see `kept_for`.
    """
    from vdiff.cli import signals
    from vdiff.drawing.drawing import Drawing
    from vdiff.runs import telling

    others, check = company
    loaded = telling.model(others, folder)
    size, graphs = loaded.card.shape[-1], recipe.sample.cuda_graphs
    precision, device = backends.arithmetic(backend, recipe.precision, device)
    machine = session.machine_of(others, precision, device, size, graphs)
    wanted = {**wanted, "graph": backends.graph_of(backend, loaded, wanted)}
    machine.freeze(loaded.denoiser.network)
    wanted["guidance"] = guiding.loaded(wanted["guidance"], others, machine)
    drawing = Drawing(loaded, machine=machine, **wanted)
    found: list[KeptBatches | None] = []

    def look() -> None:
        found.append(kept_of(machine))

    others.told(look)
    if machine.is_first:
        _write(drawing, target, form, found[0], check)
        signals.work_is_done()
        return drawing.facts()
    if not form.is_way:
        # its share of each batch; the first process writes them
        drawing.pictures(lambda pictures, seeds: check())
        signals.work_is_done()
    return None


def _write(
    drawing: "Drawing",
    target: Path,
    form: sample_place.Form,
    kept: "KeptBatches | None",
    check: Callable[[], None],
) -> None:
    from vdiff.drawing import forms

    if form.is_way:
        way = drawing.way(forms.GIF_FRAMES if form.gif else forms.STRIP_COLUMNS)
        target.parent.mkdir(parents=True, exist_ok=True)
        if form.gif:
            forms.write_film(target, way)
        else:
            forms.write_strip(target, way, drawing.facts())
        return
    if kept is None:
        _fill(drawing, target, None, check)
        return
    num_images = len(drawing.seeds)
    with kept.held(replaces=sample_place.is_there(target)):
        try:
            _fill(drawing, target, kept, check)
        except Stopped as err:
            done = min(kept.count() * drawing.size_of_batches, num_images)
            if not done:
                raise
            told = f"{done:,} of {num_images:,} pictures are drawn and kept"
            raise Stopped(err.exit_code - 128, f"{told}: the same command goes on") from err
        kept.forget()


def _fill(
    drawing: "Drawing", target: Path, kept: "KeptBatches | None", check: Callable[[], None]
) -> None:
    """Draw what is missing, and leave all pictures at the target."""
    from vdiff.cli import displays
    from vdiff.drawing import forms

    num_images = len(drawing.seeds)
    before = 0
    done = 0
    if kept is not None:
        before = min(kept.count() * drawing.size_of_batches, num_images)
    with (
        forms.output(
            target, num_images, drawing.facts(), drawing.condition.label, drawing.rows
        ) as output,
        displays.prepare_progress() as progress,
    ):
        progress.update(before, 0, num_images)

        def add(pictures: Any, seeds: Any) -> None:
            nonlocal done
            output.add(pictures, seeds)
            done += len(seeds)
            # what was drawn before says nothing of the pace
            if done > before:
                progress.update(done, 0, num_images)
            check()

        drawing.pictures(add, kept)
        if kept is not None:
            kept.is_ending()
