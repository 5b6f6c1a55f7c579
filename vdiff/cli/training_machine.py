"""What a training computes with, and what the user is told of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdiff.machine.machine import Machine
    from vdiff.machine.processes import Processes
    from vdiff.recipe.recipe import Recipe
    from vdiff.training.progress import Progress


def training_machine(recipe: "Recipe", device: str | None, others: "Processes") -> "Machine":
    """The machine that the recipe asks for.   Errors: as `Machine`."""
    from vdiff.cli import console
    from vdiff.machine.machine import Machine

    return Machine(
        recipe.precision,
        device,
        recipe.deterministic,
        recipe.data.size,
        recipe.compile,
        recipe.shard,
        cuda_graphs=recipe.sample.cuda_graphs,
        say=console.warn,
        processes=others,
    )


def tell_how(machine: "Machine", progress: "Progress") -> None:
    """How it computes, and why so: a run that is slow for this reason is asked about first."""
    progress.note(f"computes in {machine.precision} on {machine.device}: {machine.why_precision}")
    if machine.ignored_settings:
        progress.note(machine.ignored_settings)
    if machine.compiles:
        progress.note(f"compiled: {machine.why_compile}")
    if machine.shards:
        progress.note(f"in shares, over {machine.world_size} processes: {machine.why_shard}")
