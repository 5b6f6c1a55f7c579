"""What `train` and `distill` share: recipe, run folder, machine, signals and progress,
put together.
"""

import contextlib
import functools
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from vdiff.cli import completion, hints
from vdiff.cli.acknowledging import acknowledging
from vdiff.cli.options import mode, open_recipe
from vdiff.cli.recording import recorded
from vdiff.cli.signals import StopRequest, leaving_at_once
from vdiff.cli.training_machine import tell_how, training_machine
from vdiff.errors import MachineError, UsageError

if TYPE_CHECKING:
    from vdiff.chain.chain import Chain
    from vdiff.machine.graphed import CudaGraphs
    from vdiff.machine.machine import Machine, Precision
    from vdiff.machine.processes import Processes
    from vdiff.model_folder.checkpoint import ModelCard
    from vdiff.recipe.recipe import Recipe
    from vdiff.recipe.text import RecipeText
    from vdiff.runs.folder import RunFolder
    from vdiff.training.progress import Progress

RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run", help="Run folder [runs/<name of the recipe>]", autocompletion=completion.runs
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="cpu|cuda|mps", help="Device [the GPU if any]")
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus", min=1, help="Processes to start, one per GPU (with --device cpu: on the CPU)"
    ),
]

ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Measure where the time of an update goes: a table, and a trace in the run",
    ),
]

NOTHING_BEGUN = "stopped before anything was begun"

MakeProgress = Callable[[bool], "Progress"]


def run_folder(recipe: "Recipe", run: Path | None) -> "RunFolder":
    """The folder of the run that a command means."""
    from vdiff.runs.folder import RunFolder

    if run is None:
        run = Path("runs") / recipe.name
    return RunFolder(run)


def model_folder(given: str | None) -> Path | None:
    """The model folder that an option names by its path; None where it is a name in the run."""
    if given is None or not (Path(given) / "vdiff.json").is_file():
        return None
    return Path(given)


def standing(text: "RecipeText", recipe: "Recipe") -> str:
    """The recipe as it goes into the run: word for word, or written anew
    where `--set` changed it.
    """
    from vdiff.recipe.strict_yaml import dump

    if text.assignments:
        return dump(recipe.model_dump(mode="json", exclude_unset=True))
    return text.text


def _refuse_own_recipe(text: "RecipeText", folder: "RunFolder", copy: str) -> None:
    """UsageError where the run's copy of the recipe, changed by --set,
    would take the place of the recipe itself.
    """
    if text.path is None or not folder.recipe.exists() or not text.path.samefile(folder.recipe):
        return
    # in a recipe inside the run's own folder there may be comments that nobody wants to lose
    if folder.recipe.read_bytes() != copy.encode():
        problem = (
            f"`{folder.recipe}` is your recipe: the run would leave a changed copy in its place"
        )
        fix = (
            "write the changes into it and leave out `--set`, or choose another folder: --run PATH"
        )
        raise UsageError(problem, fix, "--run")


@contextlib.contextmanager
def chain(
    named: str | None,
    assignments: list[str] | None,
    run: Path | None,
    device: str | None,
    make_progress: MakeProgress,
    profile: bool = False,
    asked: Mapping[str, object] | None = None,
) -> Iterator["Chain"]:
    """A chain that is ready to work; on leaving, the screen and the other
    processes are in good order.

    asked: options that must be the same in all processes.
    """
    given = (named, assignments, run, device, make_progress)
    with chain_from(None, *given, profile, asked) as (made, _):
        yield made


@contextlib.contextmanager
def chain_from(
    source: str | None,
    named: str | None,
    assignments: list[str] | None,
    run: Path | None,
    device: str | None,
    make_progress: MakeProgress,
    profile: bool = False,
    asked: Mapping[str, object] | None = None,
) -> Iterator[tuple["Chain", str | None]]:
    """The same, with the first teacher that an option names: a name in the run or a model folder.

    source: may also be what `taken_in` knows; of several processes, the first one takes it in.
    """
    from vdiff.chain.chain import Chain
    from vdiff.chain.stage_run import Surroundings
    from vdiff.cli import console, launch
    from vdiff.cli.taking_in import taken_in, taken_in_by_first

    given = source
    alone = None
    # alone, a mistake is told at once; of several processes only the first is to tell it
    if not launch.is_worker():
        source = taken_in(given)
        alone = open_recipe(named, assignments, model_folder(source), source != given)
    with contextlib.ExitStack() as stack:
        stop = StopRequest(launch.has_launcher(), acknowledging("this update"))
        stack.callback(stop.close)
        check = functools.partial(stop.leave_if_asked, NOTHING_BEGUN)
        # it may wait minutes for hosts that never come; Ctrl-C must end that
        with stop.joining():
            others = joined(device, lambda: bool(stop()), asked or {}, check)
        stack.push(others.close)
        if alone is None and source is not None:
            source = taken_in_by_first(others, source)
        beside = model_folder(source)
        recipe, text = alone or common_recipe(others, named, assignments, beside, source != given)
        folder = run_folder(recipe, run)
        others.told(lambda: _refuse_own_recipe(text, folder, standing(text, recipe)))
        machine = training_machine(recipe, device, others)
        if machine.is_first:
            # two trainings of one run would write over each other's saves
            stack.enter_context(folder.lock(console.warn))
        else:
            _be_silent()
        progress: Progress = stack.enter_context(make_progress(mode.quiet))
        tell_how(machine, progress)
        if machine.is_first:
            progress = stack.enter_context(recorded(progress, folder, machine.described()))
        with others.hearing():
            yield (
                Chain(
                    Surroundings(
                        recipe,
                        standing(text, recipe),
                        folder,
                        machine,
                        progress,
                        stop,
                        profile,
                        shlex.join(hints.options((named, assignments, run))),
                    )
                ),
                source,
            )


def _be_silent() -> None:
    """One process of a run talks; two JSON objects on one stdout could not be read."""
    mode.json = False
    mode.quiet = True


def joined(
    device: str | None,
    is_asked: Callable[[], bool],
    asked: Mapping[str, object],
    check: Callable[[], None],
) -> "Processes":
    """This process, alone or among those that a launcher started.

    is_asked: whether it was asked to stop; `check` raises then.
    asked: options that must be the same in all processes.
    Errors, in all of them: MachineError for other versions of vdiff or torch, UsageError for other
    options.
    """
    import torch

    from vdiff import __version__
    from vdiff.cli import console
    from vdiff.machine.machine import pick_device
    from vdiff.machine.processes import Processes

    try:
        processes = Processes(pick_device(device).type == "cpu", console.warn, check, is_asked)
    except Exception:
        # all were asked to stop, and another one has left sooner: that is no error
        check()
        raise
    with contextlib.ExitStack() as stack:
        stack.push(processes.close)
        versions = {"vdiff": __version__, "torch": torch.__version__}
        fix = "install the same ones on every host"
        processes.agree(
            versions, MachineError, "the processes of this run have different versions", fix
        )
        fix = "start the same command on every host"
        processes.agree(
            asked,
            UsageError,
            "the processes of this run were not started with the same options",
            fix,
        )
        stack.pop_all()
    return processes


def common_recipe(
    processes: "Processes",
    named: str | None,
    assignments: list[str] | None,
    beside: Path | None,
    prefers_beside: bool = False,
) -> "tuple[Recipe, RecipeText]":
    """The recipe of the first process, in all of them;
    each takes its pictures from where its own recipe says.

    A process that finds no recipe follows the first one.
    Errors: UsageError, in all of them, for recipes that would not make the same weights.
    """
    from vdiff.config import values_that_shape_weights
    from vdiff.recipe import text as recipe_text
    from vdiff.recipe.recipe import Recipe

    first: list[tuple[Recipe, RecipeText]] = []

    def read() -> str:
        first.append(open_recipe(named, assignments, beside, prefers_beside))
        recipe, text = first[0]
        return standing(text, recipe)

    first_text = recipe_text.parse(processes.told(read), "the first process's recipe")

    def read_here() -> "tuple[Recipe, RecipeText]":
        if first:
            return first[0]
        try:
            text = recipe_text.find(named, beside, prefers_beside)
        except UsageError:
            # a host that has no recipe follows the first one
            text = first_text
        text = recipe_text.set_values(text, assignments or [])
        return recipe_text.validate(Recipe, text), text

    recipe, text = processes.together(read_here)
    fix = "give all hosts the same recipe, or none but the first: the others are told"
    processes.agree(
        values_that_shape_weights(recipe),
        UsageError,
        "the processes of this run have different recipes",
        fix,
    )
    if first:
        return first[0]
    # paths differ from host to host, and change no weights
    common = recipe_text.validate(Recipe, first_text)
    return common.model_copy(update={"data": recipe.data}), text


def model_of(
    others: "Processes | None",
    checkpoint: str,
    named: str | None,
    assignments: list[str] | None,
    run: Path | None,
) -> "tuple[Recipe, Path, ModelCard]":
    """The model that an option names: its recipe, its folder and its card; the first process looks.

    others: None where this process decides for itself.   Errors: UsageError, ModelFileError.
    """
    from vdiff.model_folder import checkpoint as model
    from vdiff.runs import telling

    beside = model_folder(checkpoint)
    if others is None:
        recipe, _ = open_recipe(named, assignments, beside)
        folder = run_folder(recipe, run).find(checkpoint)
        return recipe, folder, model.read_card(folder)
    recipe, _ = common_recipe(others, named, assignments, beside)
    folder = Path(others.told(lambda: str(run_folder(recipe, run).find(checkpoint))))
    return recipe, folder, telling.card(others, lambda: model.read_card(folder))


class Company(NamedTuple):
    """The processes of a command that draws, and a function to be called after every batch;
    see `company`.
    """

    processes: "Processes"
    check: Callable[[], None]


@contextlib.contextmanager
def company(
    device: str | None, asked: Mapping[str, object], what: str = "the pictures are not finished"
) -> Iterator[Company]:
    """This process, alone or among those that a launcher started; only the first one talks.

    With it comes a function to be called after every batch: it raises Stopped in a process whose
    launcher is gone, or was told to stop. A process that is alone leaves as soon as it is told.
    asked: options that must be the same in all processes.   what: is left undone then.
    """
    from vdiff.cli import launch

    check: Callable[[], None]
    with contextlib.ExitStack() as stack:
        if launch.is_worker():
            stop = StopRequest(launch.has_launcher(), acknowledging("this batch"))
            stack.callback(stop.close)
            check = functools.partial(stop.leave_if_asked, what)
            with stop.joining():
                others = joined(device, lambda: bool(stop()), asked, check)
        else:
            stack.enter_context(leaving_at_once(what))
            others = joined(device, bool, asked, _never)
            check = _never
        stack.push(others.close)
        if not others.is_first:
            _be_silent()
        with others.hearing():
            yield Company(others, check)


def machine_of(
    others: "Processes",
    precision: "Precision",
    device: str | None,
    image_size: int,
    graphs: "CudaGraphs",
) -> "Machine":
    """The machine that draws pictures of so many pixels.

    Errors: MachineError; UsageError for unequal precisions.
    """
    from vdiff.cli import console
    from vdiff.machine.machine import Machine

    machine = Machine(
        precision,
        device,
        image_size=image_size,
        cuda_graphs=graphs,
        say=console.warn,
        processes=others,
    )
    fix = "set `precision` in the recipe to one that all of them have"
    others.agree(
        {"precision": machine.precision},
        UsageError,
        "the processes of this run compute differently",
        fix,
    )
    if machine.ignored_settings:
        console.warn(machine.ignored_settings)
    return machine


def _never() -> None: ...


def summary(card: "ModelCard", folder: "RunFolder") -> dict[str, object]:
    """What `--json` says of a finished stage."""
    return {
        "name": card.name,
        "path": str(folder.model(card.name)),
        "num_steps": card.num_steps,
        "updates": card.updates,
        "hash": card.hash,
    }
