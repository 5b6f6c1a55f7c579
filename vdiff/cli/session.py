"""What `train` and `distill` share: recipe, run folder, machine, signals and progress, put together."""

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vdiff.cli import completion
from vdiff.cli.options import mode, open_recipe
from vdiff.cli.signals import StopRequest, leaving_at_once
from vdiff.errors import UsageError

if TYPE_CHECKING:
    from vdiff.chain import Chain
    from vdiff.checkpoint import ModelCard
    from vdiff.recipe import Recipe
    from vdiff.recipe_text import RecipeText
    from vdiff.run_folder import RunFolder
    from vdiff.samplers.graphed import CudaGraphs
    from vdiff.training.machine import Machine, Precision
    from vdiff.training.report import Progress

RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run folder [runs/<name of the recipe>]", autocompletion=completion.runs)
]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="cpu|cuda", help="Device [the GPU if any]")]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=1, help="Processes to start, one per GPU (with --device cpu: on the CPU)")
]

ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Measure where the time of an update goes: a table, and a trace in the run")
]

NOTHING_BEGUN = "stopped before anything was begun"

MakeProgress = Callable[[bool], "Progress"]


def run_folder(recipe: "Recipe", run: Path | None) -> "RunFolder":
    """The folder of the run that a command means."""
    from vdiff.run_folder import RunFolder

    return RunFolder(run if run is not None else Path("runs") / recipe.name)


def model_folder(given: str | None) -> Path | None:
    """The model folder that an option names by its path; None where it is a name in the run."""
    return Path(given) if given is not None and (Path(given) / "vdiff.json").is_file() else None


def standing(text: "RecipeText", recipe: "Recipe") -> str:
    """The recipe as it goes into the run: word for word, or written anew where `--set` changed it."""
    from vdiff.recipe_yaml import dump

    return dump(recipe.model_dump(mode="json", exclude_unset=True)) if text.assignments else text.text


def _refuse_own_recipe(text: "RecipeText", folder: "RunFolder", copy: str) -> None:
    """UsageError where the run's copy of the recipe, changed by --set, would take the place of the recipe itself."""
    if text.path is None or not folder.recipe.exists() or not text.path.samefile(folder.recipe):
        return
    if folder.recipe.read_bytes() != copy.encode():
        problem = f"`{folder.recipe}` is your recipe: the run would leave a changed copy in its place"
        fix = "write the changes into it and leave out `--set`, or choose another folder: --run PATH"
        raise UsageError(problem, fix, "--run")


@contextlib.contextmanager
def chain(
    named: str | None,
    assignments: list[str] | None,
    run: Path | None,
    device: str | None,
    make_progress: MakeProgress,
    beside: Path | None = None,
    profile: bool = False,
) -> Iterator["Chain"]:
    """A chain that is ready to work; on leaving, the screen and the other processes are in good order."""
    from vdiff.chain import Chain
    from vdiff.cli import console, launch
    from vdiff.stage_run import Surroundings
    from vdiff.training.machine import Machine

    recipe, text = open_recipe(named, assignments, beside)
    folder = run_folder(recipe, run)
    _refuse_own_recipe(text, folder, standing(text, recipe))
    with contextlib.ExitStack() as stack:
        stop = StopRequest(follows_parent=launch.has_launcher())
        stack.callback(stop.close)
        wanted = (recipe.precision, device, recipe.deterministic, recipe.data.size, recipe.compile, recipe.shard)
        check = functools.partial(stop.leave_if_asked, NOTHING_BEGUN)
        with stop.joining():
            machine = Machine(*wanted, cuda_graphs=recipe.sample.cuda_graphs, say=console.warn, check=check)
        stack.push(machine.close)
        if machine.is_first:
            stack.enter_context(folder.lock(console.warn))
        else:
            mode.json, mode.quiet = False, True
        progress: Progress = stack.enter_context(make_progress(mode.quiet))
        progress.note(f"computes in {machine.precision} on {machine.device}: {machine.why_precision}")
        if machine.compiles:
            progress.note(f"compiled: {machine.why_compile}")
        if machine.shards:
            progress.note(f"in shares, over {machine.world_size} processes: {machine.why_shard}")
        if machine.is_first:
            progress = stack.enter_context(_recorded(progress, folder, machine.described()))
        yield Chain(Surroundings(recipe, standing(text, recipe), folder, machine, progress, stop, profile))


@contextlib.contextmanager
def processes(
    wanted: "tuple[Precision, str | None, CudaGraphs]", image_size: int, what: str = "the pictures are not finished"
) -> "Iterator[tuple[Machine, Callable[[], None]]]":
    """This process, alone or among those that a launcher started; only the first one talks.

    With it comes a function to be called after every batch: it raises Stopped in a process whose launcher is gone, or
    was told to stop. A process that is alone leaves as soon as it is told.
    wanted: precision, device, CUDA graphs.   image_size: of the pictures, which `auto` asks.   what: is left undone
    then.
    """
    from vdiff.cli import console, launch
    from vdiff.training.machine import Machine

    precision, device, graphs = wanted
    make = functools.partial(Machine, precision, device, image_size=image_size, cuda_graphs=graphs, say=console.warn)
    check: Callable[[], None]
    with contextlib.ExitStack() as stack:
        if launch.is_worker():
            stop = StopRequest(follows_parent=launch.has_launcher())
            stack.callback(stop.close)
            check = functools.partial(stop.leave_if_asked, what)
            with stop.joining():
                machine = make(check=check)
        else:
            stack.enter_context(leaving_at_once(what))
            machine, check = make(), _never
        stack.push(machine.close)
        if not machine.is_first:
            mode.json, mode.quiet = False, True
        yield machine, check


def _never() -> None: ...


@contextlib.contextmanager
def _recorded(progress: "Progress", folder: "RunFolder", machine: str) -> Iterator["Progress"]:
    """`progress`, with a status.json that tells how the command ended."""
    from vdiff.cli import failures
    from vdiff.status import Recorder

    recorder = Recorder(progress, folder.status, resume_command(sys.argv[1:]), machine)
    try:
        yield recorder
    except BaseException as err:
        exit_code, reason = failures.ending(err)
        recorder.ended("stopped" if exit_code > 128 else "failed", exit_code, reason)
        raise
    recorder.ended("done", 0)


def resume_command(arguments: Sequence[str]) -> str:
    """The command that goes on where this one was: the same again, but for what would begin anew."""
    return shlex.join(["vdiff", *(word for word in arguments if word != "--force")])


def summary(card: "ModelCard", folder: "RunFolder") -> dict[str, object]:
    """What `--json` says of a finished stage."""
    return {
        "name": card.name,
        "path": str(folder.model(card.name)),
        "num_steps": card.num_steps,
        "updates": card.updates,
        "hash": card.hash,
    }
