"""`vdiff evaluate`: how good every stage of a run is, against its number of steps."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from vdiff.cli import completion, console, guiding, outputs, session
from vdiff.cli.evaluate_options import (
    BatchSize,
    Count,
    Data,
    FirstSeed,
    GuidanceOption,
    KeepSamples,
    Metrics,
    Solvers,
    Weights,
)
from vdiff.cli.options import DryRunOption, ForceOption, RecipeOption, SetOption, mode, open_recipe
from vdiff.cli.session import DeviceOption, GpusOption, RunOption
from vdiff.errors import DataError, UsageError

if TYPE_CHECKING:
    from vdiff.cli.progress import PrepareProgress
    from vdiff.data.dataset import Images
    from vdiff.evaluation.evaluate import Evaluation
    from vdiff.evaluation.known_rows import KnownRows
    from vdiff.evaluation.subjects import Subject
    from vdiff.machine.machine import Machine
    from vdiff.machine.processes import Processes
    from vdiff.metrics.metric import AnyMetricSection
    from vdiff.metrics.table import Protocol
    from vdiff.recipe.recipe import Recipe
    from vdiff.runs.folder import RunFolder

Lock = Callable[[], contextlib.AbstractContextManager[None]]


def evaluate(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run, or models of one [the recipe's run]",
            autocompletion=completion.models_and_runs,
        ),
    ] = None,
    data: Data = None,
    num_images: Count = 10_000,
    metrics: Metrics = None,
    first_seed: FirstSeed = 0,
    guidance: GuidanceOption = None,
    weights: Weights = None,
    batch_size: BatchSize = None,
    keep_samples: KeepSamples = False,
    solvers: Solvers = True,
    recipe: RecipeOption = None,
    changes: SetOption = None,
    run: RunOption = None,
    device: DeviceOption = None,
    gpus: GpusOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> int | None:
    """Measure how good models are at each number of steps

    Every finished stage of a run, and the undistilled base at the same numbers of steps, by DDIM
    and by the best of three solvers: agreement with the teacher, distances to the reference
    pictures, seconds per picture. The table is kept in the run's evaluation/ folder; what it knows
    is not measured again, and numbers that must not stand beside it are refused.
    A model alone gets one row, which is only printed; outside a run its pictures lie in a temporary
    folder. The same command again goes on where it was interrupted.

    Examples:
      vdiff evaluate
      vdiff evaluate runs/digits --n 2048 --metrics agreement,fd_pixel:48
    """
    from vdiff import metrics as room
    from vdiff.cli import launch
    from vdiff.cli.taking_in import all_taken_in
    from vdiff.metrics.metric import named

    wanted = named(metrics.split(",") if metrics is not None else room.DEFAULT)
    options = {
        "--n": num_images,
        "--metrics": metrics,
        "--first-seed": first_seed,
        "--batch-size": batch_size,
        "--solvers": solvers,
        "--guidance": guidance,
    }
    with contextlib.ExitStack() as stack:
        here: session.Company | None = None
        # a process that is alone hears of mistakes before it opens a device
        if launch.is_worker() and not dry_run:
            here = stack.enter_context(session.company(device, options, _UNDONE))
        places = all_taken_in(here.processes if here else None, places or [], not dry_run)
        parsed, folder, found = _found(
            here.processes if here else None, places, recipe, changes, run, solvers
        )
        subjects, left_out = guiding.guidable(found, guidance)
        if gpus is not None and not dry_run and launch.may_start():
            return launch.start(gpus, device)
        asked = (num_images, first_seed, batch_size or parsed.sample.batch_size)
        temporary = stack.enter_context(tempfile.TemporaryDirectory())
        place = folder.evaluation if folder is not None else Path(temporary)
        is_first = here is None or here.processes.is_first  # the others draw, and measure nothing
        images = _reference(parsed, data, subjects[0], wanted) if is_first else None
        evaluation = _evaluation(subjects, wanted, parsed, asked, images, place, weights, guidance)
        evaluation = replace(evaluation, left_out=left_out)
        table_path = folder.table if folder is not None and not _models(places) else None
        if dry_run:
            _tell_plan(evaluation, _earlier(evaluation.protocol(), table_path, force))
            return None
        lock = folder.evaluating if folder is not None else contextlib.nullcontext
        here = here or stack.enter_context(session.company(device, {}, _UNDONE))
        size = subjects[0].card.shape[-1]
        # fp32 wherever it runs: the numbers of two machines can be compared
        machine = session.machine_of(
            here.processes, "fp32", device, size, parsed.sample.cuda_graphs
        )
        return _work(evaluation, table_path, lock, machine, here.check, force, keep_samples)


_UNDONE = "the evaluation goes on with the same command"


def _found(
    others: "Processes | None",
    places: list[str],
    recipe: str | None,
    changes: list[str] | None,
    run: Path | None,
    solvers: bool,
) -> "tuple[Recipe, RunFolder | None, list[Subject]]":
    """The recipe, the run and what is to be evaluated;
    the first process looks, the others get no run.

    others: None where this process decides for itself.
    """
    from vdiff.evaluation import subjects

    beside = next((Path(place) for place in places if Path(place).is_dir()), None)
    named = recipe or (str(beside) if beside and (beside / "recipe.yaml").is_file() else None)
    if others is None:
        parsed, _ = open_recipe(named, changes, beside)
        return parsed, *_subjects(places, parsed, run, solvers)
    parsed, _ = session.common_recipe(others, named, changes, beside)
    own: list[tuple[RunFolder | None, list[Subject]]] = []

    def look() -> list[dict[str, Any]]:
        own.append(_subjects(places, parsed, run, solvers))
        return [subject.facts() for subject in own[0][1]]

    told = others.told(look)
    return parsed, *(own[0] if own else (None, [subjects.from_facts(each) for each in told]))


_OTHER_TABLE = "move it away: the table of a run has this name"


def _models(places: Sequence[str]) -> list[str]:
    """Those that are not runs."""
    from vdiff.runs.folder import RunFolder

    return [place for place in places if not RunFolder(Path(place)).is_begun()]


def _subjects(
    places: Sequence[str], recipe: "Recipe", run: Path | None, solvers: bool
) -> "tuple[RunFolder | None, list[Subject]]":
    """What is to be evaluated, and the run that it belongs to.

    Errors: UsageError, ModelFileError.
    """
    from vdiff.evaluation import subjects
    from vdiff.runs.folder import RunFolder

    models = _models(places)
    if not models and len(places) <= 1:
        folder = RunFolder(Path(places[0])) if places else session.run_folder(recipe, run)
        return folder, subjects.of_run(folder, solvers)
    if len(models) < len(places):
        raise UsageError("runs are evaluated one at a time", "name one run, or models only")
    folders = [session.run_folder(recipe, run).find(place) for place in models]
    of = RunFolder(folders[0].resolve().parent)
    return of if of.is_begun() else None, subjects.of_models(folders)


def _reference(
    recipe: "Recipe", data: Path | None, subject: "Subject", metrics: "Sequence[AnyMetricSection]"
) -> "Images | None":
    """The pictures to compare with, of the model's shape.   Errors: DataError."""
    from vdiff.metrics.pair_metric import are_pairs

    if all(are_pairs(section) for section in metrics):
        return None
    shape = subject.card.shape
    images: Images = recipe.data.open() if data is None else _opened(data, shape)
    if images.shape != shape:
        problem = f"the reference pictures are {images.shape}, the model's are {shape}"
        where = str(getattr(recipe.data, "path", ""))
        raise DataError(problem, f"name a store that holds size {shape[-1]} with --data", where)
    return images


def _opened(data: Path, shape: tuple[int, int, int]) -> "Images":
    """The pictures of a model's shape in a store.   Errors: DataError."""
    from vdiff.data.lmdb_images import LmdbImages
    from vdiff.data.seal import is_store
    from vdiff.data.store import ImageStore

    channels, size = shape[0], shape[-1]
    prepares = f"vdiff prepare {{}} --size {size} --set data.channels={channels} --out STORE"
    if not is_store(data):
        source = data if data.exists() else "PICTURES"
        fix = f"make one: {prepares.format(source)}, and name that: --data STORE"
        raise DataError(f"there is no image store in `{data}`", fix, data)
    store, fix = (
        ImageStore(data),
        f"make another: {prepares.format('PICTURES')}, and name that: --data STORE",
    )
    stored = store.metadata.channels if store.metadata else channels
    if stored != channels:
        raise DataError(
            f"the store's pictures have {stored} channels, the model's {channels}", fix, data
        )
    if size not in store.sizes:
        there = ", ".join(map(str, store.sizes))
        problem = (
            f"the store holds no pictures of size {size}, "
            f"which the model draws (there are: {there})"
        )
        raise DataError(problem, fix, data)
    return LmdbImages(store, size, channels, 0)


def _evaluation(
    subjects: "list[Subject]",
    metrics: "Sequence[AnyMetricSection]",
    recipe: "Recipe",
    asked: tuple[int, int, int],
    images: "Images | None",
    place: Path,
    weights: Path | None,
    guidance: float | None,
) -> "Evaluation":
    from vdiff.drawing.guidance import Guidance
    from vdiff.evaluation.evaluate import Evaluation
    from vdiff.evaluation.samples import SampleRequest

    wanted = SampleRequest(recipe.sample.named_sampler, *asked, Guidance(guidance))
    return Evaluation(subjects, metrics, wanted, images, place, weights)


def _warn_of_few(evaluation: "Evaluation") -> None:
    count = evaluation.wanted.num_images
    for section in evaluation.metrics:
        if section.enough is not None and count < section.enough:
            console.warn(
                f"`{section.name}` of {count:,} samples is too high: "
                f"compare it only with others of as many, or add --n {section.enough}"
            )


def _work(
    evaluation: "Evaluation",
    table_path: Path | None,
    lock: Lock,
    machine: "Machine",
    check: Callable[[], None],
    force: bool,
    keep: bool,
) -> int | None:
    """Draw in all processes, then measure in the first one while the others have left.

    table_path: where the table is kept, None where it is only printed.
    lock: keeps other evaluations out.
    check: is called after every batch.
    """
    from vdiff.cli import displays, evaluation_table, signals
    from vdiff.evaluation.evaluate import NOT_READY
    from vdiff.evaluation.known_rows import KnownRows
    from vdiff.metrics import table

    with contextlib.ExitStack() as stack:
        looking = stack.enter_context(_Looking(check))
        ready, earlier = NOT_READY, KnownRows()
        if machine.is_first:
            stack.enter_context(lock())
            evaluation.refuse_strangers()
            if table_path is not None:
                outputs.check_file(table_path, table.is_ours, force=True, fix=_OTHER_TABLE)
            ready = evaluation.ready(machine.device, looking)
            _warn_of_few(evaluation)
            earlier = _earlier(evaluation.protocol(ready), table_path, force)
        machine.wait()
        total = evaluation.num_passes(KnownRows())
        progress = stack.enter_context(
            displays.prepare_progress(not machine.is_first, "passes through a network")
        )
        done = 0

        def passed(count: int) -> None:
            nonlocal done
            done = min(done + count * machine.world_size, total)
            progress.update(done, 0, total)
            check()

        evaluation.draw(machine, passed, earlier)
        if not machine.is_first:
            signals.work_is_done()
            return None
        progress.close()  # networks that look at pictures have their own
        found = evaluation.table(ready, machine, lambda row: check(), earlier)
        if table_path is not None:
            table.write(table_path, found)
        signals.work_is_done()
        if not keep:
            evaluation.forget_samples()
        evaluation_table.show(found, table_path)
    return None


class _Looking:
    """Shows how far the networks of metrics are, one set of pictures after another. check:
    called after every batch.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._open: PrepareProgress | None = None

    def __call__(self, done: int, total: int) -> None:
        from vdiff.cli import displays

        self._open = self._open or displays.prepare_progress(
            unit="pictures through the network of a metric"
        )
        self._open.update(done, 0, total)
        if done == total:
            self.close()
        self._check()

    def close(self) -> None:
        """The set is through."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *err: object) -> None:
        self.close()


def _earlier(protocol: "Protocol", path: Path | None, force: bool) -> "KnownRows":
    """What the table knows already.

    Errors: UsageError where the new numbers must not stand beside the old.
    """
    from vdiff.evaluation.known_rows import KnownRows, check_comparable
    from vdiff.metrics import table

    if path is None or force:
        return KnownRows()
    before = table.read(path)
    check_comparable(before, protocol, path)
    return KnownRows(before)


def _tell_plan(evaluation: "Evaluation", earlier: "KnownRows") -> None:
    from vdiff.cli import console

    calls, needed = evaluation.num_passes(earlier), evaluation.needed(earlier)
    rows = [
        (
            subject.card.name,
            subject.num_steps,
            subject.solver or subject.role,
            "" if subject.key in needed else "known",
        )
        for subject in evaluation.subjects
    ]
    if mode.json:
        plan = [subject.told() for subject in evaluation.subjects if subject.key in needed]
        console.emit_json(
            {"plan": plan, "num_images": evaluation.wanted.num_images, "network_calls": calls}
        )
        return
    console.table(("model", "steps", "role", ""), rows, ("steps",))
    told = f"{calls:,} passes of a picture through a network"
    console.say(
        f"would draw {evaluation.wanted.num_images:,} pictures for each that is not known: {told}"
    )
