"""`vdiff evaluate`: how good every stage of a run is, against its number of steps."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vdiff.cli import session
from vdiff.cli.options import DryRunOption, ForceOption, RecipeOption, SetOption, mode, open_recipe
from vdiff.cli.session import DeviceOption, GpusOption, RunOption
from vdiff.errors import DataError, UsageError

if TYPE_CHECKING:
    from vdiff.data.loader import Images
    from vdiff.evaluation.evaluate import Evaluation
    from vdiff.evaluation.subjects import Subject
    from vdiff.metrics.metric import MetricSection
    from vdiff.metrics.table import AgreementWith, EvaluationTable, Row
    from vdiff.recipe import Recipe
    from vdiff.run_folder import RunFolder

Data = Annotated[Path | None, typer.Option("--data", metavar="STORE", help="Reference pictures [the recipe's]")]
Count = Annotated[int, typer.Option("--n", min=2, help="Pictures drawn with each model; more narrow the intervals")]
Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="A,B", help="Which metrics, as in fd_pixel:48,fid [agreement,fd_pixel,swd]"),
]
FirstSeed = Annotated[int, typer.Option("--first-seed", min=0, help="Seed of the first picture; the others follow")]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Feature extractor's weights, where there is no network")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Pictures at once; changes memory only [64]")
]
KeepSamples = Annotated[bool, typer.Option("--keep-samples", help="Leave the drawn pictures in the run's evaluation/")]


def evaluate(
    places: Annotated[
        list[str] | None, typer.Argument(metavar="RUN|MODEL", help="A run, or models of one [the recipe's run]")
    ] = None,
    data: Data = None,
    num_images: Count = 10_000,
    metrics: Metrics = None,
    first_seed: FirstSeed = 0,
    weights: Weights = None,
    batch_size: BatchSize = None,
    keep_samples: KeepSamples = False,
    recipe: RecipeOption = None,
    changes: SetOption = None,
    run: RunOption = None,
    device: DeviceOption = None,
    gpus: GpusOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> int | None:
    """Measure how good models are at each number of steps

    Every finished stage of a run, and the undistilled base at the same numbers of steps: agreement with the teacher,
    distances to the reference pictures, seconds per picture. The table is kept in the run's evaluation/ folder.
    A model alone gets one row, which is only printed. The same command again goes on where it was interrupted.

    Examples:
      vdiff evaluate
      vdiff evaluate runs/digits --n 2048 --metrics agreement,fd_pixel:48
    """
    from vdiff import metrics as room
    from vdiff.cli import launch
    from vdiff.metrics.metric import named

    wanted = named(metrics.split(",") if metrics is not None else room.DEFAULT)
    beside = next((Path(place) for place in places or [] if Path(place).is_dir()), None)
    named_recipe = recipe or (str(beside) if beside and (beside / "recipe.yaml").is_file() else None)
    parsed, _ = open_recipe(named_recipe, changes, beside)
    folder, subjects = _subjects(places or [], parsed, run)
    if gpus is not None and not (dry_run or launch.is_worker()):
        return launch.start(gpus, device)
    asked = (num_images, first_seed, batch_size or parsed.sample.batch_size)
    with tempfile.TemporaryDirectory() as temporary:
        place = folder.evaluation if folder is not None else Path(temporary)
        images = _reference(parsed, data, subjects[0], wanted)
        evaluation = _evaluation(subjects, wanted, parsed, asked, images, place, weights)
        if dry_run:
            _tell_plan(evaluation)
            return None
        is_run = folder is not None and not _models(places or [])
        return _work(evaluation, folder, is_run, device, force, keep_samples)


def _models(places: Sequence[str]) -> list[str]:
    """Those that are not runs."""
    from vdiff.run_folder import RunFolder

    return [place for place in places if not RunFolder(Path(place)).is_begun()]


def _subjects(places: Sequence[str], recipe: "Recipe", run: Path | None) -> "tuple[RunFolder | None, list[Subject]]":
    """What is to be evaluated, and the run that it belongs to.   Errors: UsageError, ModelFileError."""
    from vdiff.evaluation import subjects
    from vdiff.run_folder import RunFolder

    models = _models(places)
    if not models and len(places) <= 1:
        folder = RunFolder(Path(places[0])) if places else session.run_folder(recipe, run)
        return folder, subjects.of_run(folder)
    if len(models) < len(places):
        raise UsageError("runs are evaluated one at a time", "name one run, or models only")
    folders = [session.run_folder(recipe, run).find(place) for place in models]
    of = RunFolder(folders[0].resolve().parent)
    return of if of.is_begun() else None, subjects.of_models(folders)


def _reference(
    recipe: "Recipe", data: Path | None, subject: "Subject", metrics: "Sequence[MetricSection]"
) -> "Images | None":
    """The pictures to compare with, of the model's shape.   Errors: DataError."""
    from vdiff.data.lmdb_images import LmdbImages
    from vdiff.data.store import ImageStore

    if all(section.of_pairs for section in metrics):
        return None
    channels, size = subject.card.shape[0], subject.card.shape[-1]
    if data is None:
        images: Images = recipe.data.open()
        where = str(getattr(recipe.data, "path", ""))
    else:
        store, where = ImageStore(data), str(data)
        stored = store.metadata.channels if store.metadata else channels
        if stored != channels:
            fix = f"prepare a store with `--set data.channels={channels}`, and name it with --data"
            raise DataError(f"the store's pictures have {stored} channels, the model's {channels}", fix, where)
        images = LmdbImages(store, size, channels, 0)
    if images.shape != subject.card.shape:
        problem = f"the reference pictures are {images.shape}, the model's are {subject.card.shape}"
        raise DataError(problem, f"name a store that holds size {size} with --data", where)
    return images


def _evaluation(
    subjects: "list[Subject]",
    metrics: "Sequence[MetricSection]",
    recipe: "Recipe",
    asked: tuple[int, int, int],
    images: "Images | None",
    place: Path,
    weights: Path | None,
) -> "Evaluation":
    from vdiff.evaluation.evaluate import Evaluation
    from vdiff.evaluation.samples import Wanted

    num_images, first_seed, batch_size = asked
    wanted = Wanted(recipe.sample.sampler.build(), num_images, first_seed, batch_size)
    return Evaluation(subjects, metrics, wanted, images, place, weights)


def _work(
    evaluation: "Evaluation", folder: "RunFolder | None", is_run: bool, device: str | None, force: bool, keep: bool
) -> int | None:
    """Draw in all processes, then measure in the first one while the others have left."""
    import contextlib

    from vdiff.cli import displays
    from vdiff.evaluation.evaluate import check_comparable, machine_in_words
    from vdiff.metrics import table

    with contextlib.ExitStack() as stack:
        # fp32 wherever it runs: the numbers of two machines can be compared
        size, what = evaluation.subjects[0].card.shape[-1], "the evaluation goes on with the same command"
        machine, check = stack.enter_context(session.processes(("fp32", device), size, what))
        metrics = {}
        if machine.is_first:
            if folder is not None:
                stack.enter_context(folder.evaluating())
            metrics = evaluation.ready(machine.device)
            if is_run and folder is not None and not force:
                check_comparable(table.read(folder.table), evaluation.protocol(metrics), folder.table)
        machine.wait()
        total = len(evaluation.subjects) * evaluation.wanted.num_images
        progress = stack.enter_context(displays.prepare_progress(not machine.is_first))
        done = 0

        def drawn(count: int) -> None:
            nonlocal done
            done = min(done + count * machine.world_size, total)
            progress.update(done, 0, total)
            check()

        evaluation.draw(machine, drawn)
        if not machine.is_first:
            return None
        found = evaluation.table(metrics, machine_in_words(machine), lambda row: check())
        if is_run and folder is not None:
            table.write(folder.table, found)
        if not keep:
            evaluation.forget_samples()
        progress.close()
        _show(found, folder.table if is_run and folder is not None else None)
    return None


def _show(found: "EvaluationTable", path: Path | None) -> None:
    from vdiff.cli import console

    if mode.json:
        console.emit_json({**found.model_dump(mode="json"), "path": str(path) if path else None})
        return
    names = list(dict.fromkeys(name for row in found.rows for name in row.metrics))
    pairs = "agreement" in found.protocol.features
    columns = ["model", "steps", "s/picture", *names, *(["psnr: teacher", "psnr: original", "ssim"] if pairs else [])]
    console.table(columns, [_cells(row, names, pairs) for row in found.rows], columns[1:])
    console.write(f"\n{found.protocol.line()}")
    for name, features in found.protocol.features.items():
        console.write(f"{name}: {features}")
    console.write(f"{found.machine}; ± is half of a 95 % interval by bootstrap of the samples")
    if path is not None:
        console.say(f"written to `{path}`", "green")


def _cells(row: "Row", names: Sequence[str], pairs: bool) -> list[str]:
    shown = f"{row.model}, undistilled" if row.role == "undistilled" else row.model
    cells = [shown, str(row.num_steps), "" if row.seconds_per_image is None else f"{row.seconds_per_image:.3g}"]
    for name in names:
        found = row.metrics.get(name)
        spread = f" ±{(found.high - found.low) / 2:.2g}" if found and found.high is not None and found.low else ""
        cells.append(f"{found.value:.4g}{spread}" if found else "")
    best = row.teacher or row.original
    return cells + ([_psnr(row.teacher), _psnr(row.original), f"{best.ssim:.3f}" if best else ""] if pairs else [])


def _psnr(found: "AgreementWith | None") -> str:
    if found is None:
        return ""
    return "equal" if found.psnr is None else f"{found.psnr:.1f} dB"


def _tell_plan(evaluation: "Evaluation") -> None:
    from vdiff.cli import console

    calls = sum(subject.num_steps for subject in evaluation.subjects) * evaluation.wanted.num_images
    rows = [(subject.card.name, subject.num_steps, subject.role) for subject in evaluation.subjects]
    if mode.json:
        plan = [dict(zip(("model", "num_steps", "role"), row, strict=True)) for row in rows]
        console.emit_json({"plan": plan, "num_images": evaluation.wanted.num_images, "network_calls": calls})
        return
    console.table(("model", "steps", "role"), rows, ("steps",))
    told = f"{calls:,} passes of a picture through a network"
    console.say(f"would draw {evaluation.wanted.num_images:,} pictures for each: {told}")
