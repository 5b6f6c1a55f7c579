"""`--dry-run` of train and distill: the stages, and what they will cost,
measured in as many processes as asked for.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vdiff.cli.options import mode
from vdiff.cli.signals import StopRequest, leaving_at_once
from vdiff.system.plural import count

if TYPE_CHECKING:
    from vdiff.chain.costs import Estimate
    from vdiff.chain.plan import Stage
    from vdiff.chain.surroundings import Surroundings
    from vdiff.machine.machine import Machine
    from vdiff.recipe.recipe import Recipe
    from vdiff.runs.folder import RunFolder

Choice = tuple[str | None, int | None, int | None]
"""--from, --stages and --to of distill."""


_PARTS = {
    "updates": "updates",
    "saves": "saving",
    "pictures": "previews",
    "trend": "evaluation",
    "start": "starting",
}
"""What an estimate consists of, and what people call it."""


def show(
    recipe: "Recipe",
    choice: Choice | None,
    run: "RunFolder",
    device: str | None,
    force: bool,
    text: str = "",
    options: str = "",
) -> None:
    """Print the plan of train (choice None) or distill; nothing is written. What the command would
    refuse is refused, and of a stage that goes on only what is left is told.

    force: finished stages are made again. With several processes, all of them must come here.
    text, options: of `Surroundings`.
    """
    import time

    from vdiff.chain.estimate import estimate
    from vdiff.chain.plan import doubts, plan
    from vdiff.cli import console, launch
    from vdiff.machine.machine import Machine

    if launch.is_echo():
        mode.json, mode.quiet = False, True
    shard = recipe.shard if launch.is_worker() else "auto"
    with contextlib.ExitStack() as stack:
        stack.callback(StopRequest(follows_parent=launch.has_launcher()).close)
        stack.enter_context(leaving_at_once("nothing was written"))
        machine = Machine(
            recipe.precision,
            device,
            image_size=recipe.data.size,
            compile=recipe.compile,
            shard=shard,
            say=console.warn,
        )
        stack.push(machine.close)

        at = _Command(recipe, text, choice, run, machine, force, options)
        kept = machine.processes.told(at.kept)
        saved = machine.processes.told(at.saved)
        stages = [stage for stage in plan(recipe) if stage.name in kept]
        todo = [stage for stage in stages if kept[stage.name] is None]
        updates = {stage.name: kept[stage.name] or stage.settings.updates for stage in stages}
        for doubt in doubts(stages):
            console.warn(doubt)
        begun = time.process_time()  # importing took so long until here
        found: Estimate | None = None
        if todo:
            reference = run.evaluation / "reference"
            named = machine.processes.told(at.teacher)
            teacher = Path(named) if named else None
            found = estimate(recipe, todo, machine, begun, reference, saved, teacher)
    if machine.is_first:
        _tell(recipe, stages, (updates, saved), found, run, machine.world_size)


@dataclass(frozen=True)
class _Command:
    """What `train` (choice None) or `distill` would find; the first process looks."""

    recipe: "Recipe"
    text: str
    choice: Choice | None
    run: "RunFolder"
    machine: "Machine"
    force: bool
    options: str

    def kept(self) -> dict[str, int | None]:
        """Of each stage the updates of the model that stays, None where one is to be made."""
        from vdiff.chain.finished import is_finished
        from vdiff.chain.plan import shaping_values
        from vdiff.model_folder.checkpoint import read_card

        found: dict[str, int | None] = {}
        command = self._surroundings().command
        for stage in stages_of(self.recipe, self.choice, self.run):
            wanted = shaping_values(self.recipe, stage, self.machine.precision)
            found[stage.name] = None
            if not self.force and is_finished(self.run, stage, wanted, command):
                found[stage.name] = read_card(self.run.model(stage.name)).updates
        return found

    def saved(self) -> dict[str, int]:
        """See `Chain.foresee`."""
        from vdiff.chain.chain import Chain

        teacher, stages = _teacher_and_stages(self.recipe, self.choice, self.run)
        return Chain(self._surroundings()).foresee(stages, teacher, self.force)

    def _surroundings(self) -> "Surroundings":
        from vdiff.chain.surroundings import Surroundings
        from vdiff.cli import console
        from vdiff.cli.progress import FitLines

        progress = FitLines(console.warn)
        given = (self.recipe, self.text, self.run, self.machine, progress, _never)
        return Surroundings(*given, options=self.options)

    def teacher(self) -> str:
        """The folder of the first stage's teacher; empty where it is still to be made."""
        return str(_teacher_and_stages(self.recipe, self.choice, self.run)[0] or "")


def _never() -> int:
    return 0


def _tell(
    recipe: "Recipe",
    stages: "list[Stage]",
    counts: tuple[Mapping[str, int], Mapping[str, int]],
    found: "Estimate | None",
    run: "RunFolder",
    num_processes: int,
) -> None:
    """counts: by stage its updates, and how many of them are saved."""
    from vdiff.cli import console
    from vdiff.cli.progress import duration

    updates, saved = counts
    seconds = {each.stage.name: each.seconds for each in found.stages} if found else {}
    kinds = {stage.settings.objective.kind for stage in stages if stage.index}
    ways = ["objective"] if len(kinds) > 1 else []
    rows = [
        [
            stage.name,
            *([stage.settings.objective.kind] if ways else []),
            f"{stage.start_steps} -> {stage.num_steps}" if stage.index else f"{stage.num_steps}",
            f"{updates[stage.name]:,}",
            f"{stage.settings.batch_size:,}",
            f"{stage.settings.learning_rate:.1e}",
            duration(seconds[stage.name]) if stage.name in seconds else "done",
        ]
        for stage in stages
    ]
    if mode.json:
        console.emit_json(
            _facts(stages, counts, seconds, found, run) | {"processes": num_processes}
        )
        return
    console.table(
        ["stage", *ways, "steps", "updates", "batch", "rate", "time"],
        rows,
        right=["updates", "batch", "time"],
    )
    for name, update in saved.items():
        left = count(updates[name] - update, "update")
        console.say(f"`{name}` goes on at update {update:,}: {left} left, which is what is priced")
    if found:
        each = f" in each of {num_processes} processes" * (num_processes > 1)
        console.say(
            f"{found.num_parameters:,} parameters; about {duration(found.seconds)}, "
            f"{found.memory_bytes / 1e6:,.0f} MB of memory at most{each}, "
            f"{found.disk_bytes / 1e6:,.0f} MB of disk"
        )
        parts = {name: sum(getattr(each, name) for each in found.stages) for name in _PARTS}
        parts["start"] += found.start
        told = (f"{_PARTS[name]} {duration(value)}" for name, value in parts.items() if value >= 1)
        console.say(
            f"of which {', '.join(told)}" if found.seconds >= 1 else "which is next to nothing"
        )
    if found and recipe.shard == "on" and num_processes == 1:
        console.say(
            "measured in one process, which holds its networks whole: `--gpus N` divides them"
        )
    console.say(f"nothing was written to `{run.path}`")


def stages_of(recipe: "Recipe", choice: Choice | None, run: "RunFolder") -> "list[Stage]":
    """The stages that train (choice None) or distill would make.

    Errors: UsageError for one that there is not.
    """
    return _teacher_and_stages(recipe, choice, run)[1]


def _teacher_and_stages(
    recipe: "Recipe", choice: Choice | None, run: "RunFolder"
) -> "tuple[Path | None, list[Stage]]":
    """As `stages_of`, with the teacher of the first stage; None where it is still to be made."""
    from vdiff.chain.chain import choose
    from vdiff.chain.plan import BASE, chosen, plan

    stages = plan(recipe)
    if choice is None:
        return None, stages[:1]
    source, number, to = choice
    if source is None and BASE not in run.models():
        # the chain as it will be once the base is trained
        return None, chosen(stages[1:], number, to)
    return choose(run, stages, source, number, to)


def _facts(
    stages: "list[Stage]",
    counts: tuple[Mapping[str, int], Mapping[str, int]],
    seconds: dict[str, float],
    found: "Estimate | None",
    run: "RunFolder",
) -> dict[str, object]:
    updates, saved = counts
    rows = [
        {
            "name": stage.name,
            "start_steps": stage.start_steps,
            "num_steps": stage.num_steps,
            "objective": stage.settings.objective.kind,
            "updates": updates[stage.name],
            "saved_updates": saved.get(stage.name, 0),
            "batch_size": stage.settings.batch_size,
            "is_done": stage.name not in seconds,
            "seconds": seconds.get(stage.name),
        }
        for stage in stages
    ]
    costs = {
        name: getattr(found, name, 0)
        for name in ("num_parameters", "disk_bytes", "memory_bytes", "seconds")
    }
    stages_found = getattr(found, "stages", [])
    costs["parts"] = {name: sum(getattr(each, name) for each in stages_found) for name in _PARTS}
    return {"run": str(run.path), "stages": rows, **costs, "dry_run": True}
