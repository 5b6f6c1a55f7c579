"""`vdiff sample`: pictures from a model folder."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from vdiff.cli import backends, completion, guiding, sample_drawing, sample_place, session
from vdiff.cli.options import DryRunOption, ForceOption, RecipeOption, SetOption, mode
from vdiff.cli.session import DeviceOption, GpusOption, RunOption
from vdiff.cli.taking_in import all_taken_in
from vdiff.errors import UsageError

if TYPE_CHECKING:
    from vdiff.model_folder.checkpoint import ModelCard
    from vdiff.recipe.recipe import Recipe
    from vdiff.samplers.sampler import Sampler

Model = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="NAME|PATH",
        help="Model: a name in the run, a model folder, a foreign one, or hf://owner/name",
        autocompletion=completion.models,
    ),
]
Count = Annotated[
    int | None, typer.Option("-n", min=1, help="How many pictures, from seed 0 on [64]")
]
Seeds = Annotated[
    str | None,
    typer.Option("--seeds", metavar="0-63", help="One seed per picture, as 0-63 or 1,5,9"),
]
Kind = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="ddim|unipc|...",
        help="ddim, ancestral, dpmpp, unipc, ipndm, heun [the recipe's, or ddim]",
        autocompletion=completion.samplers,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, help="Steps per picture, a network call each; heun's two [the model's]"
    ),
]
Grid = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="uniform|logsnr|karras",
        help="Where a solver's steps are [uniform; karras for ipndm]",
        autocompletion=completion.grids,
    ),
]
Order = Annotated[
    int | None, typer.Option("--order", min=2, max=3, help="Of dpmpp: 2, or 3 from 11 steps on [2]")
]
Eta = Annotated[
    float | None, typer.Option("--eta", min=0, max=1, help="Share of fresh noise in DDIM, 0 to 1")
]
Variance = Annotated[
    str | None,
    typer.Option(
        "--variance", metavar="small|medium|large", help="Fresh noise of ancestral sampling"
    ),
]
Clipped = Annotated[
    bool, typer.Option("--clipped", help="Keep the predicted picture within the clipping value")
]
ClippingValue = Annotated[
    float | None,
    typer.Option(
        "--clipping-value", min=0.01, help="Limit of --clipped; pictures span -1 to 1 [1.2]"
    ),
]
ClipNoise = Annotated[
    float | None,
    typer.Option(
        "--clip-noise",
        min=0.01,
        help="--clipped, and the predicted noise within this limit: glossier",
    ),
]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="PATH", help="grid.png, file.npz, file.zip or folder/"),
]
Strip = Annotated[
    bool, typer.Option("--strip", help="Show the way from noise to picture, a row per picture")
]
Gif = Annotated[bool, typer.Option("--gif", help="Show the way from noise to picture as a film")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Pictures at once; changes memory, and pictures by rounding only [64]",
    ),
]


def sample(
    checkpoint: Model,
    num_images: Count = None,
    seeds: Seeds = None,
    sampler: Kind = None,
    steps: Steps = None,
    grid: Grid = None,
    order: Order = None,
    eta: Eta = None,
    variance: Variance = None,
    clipped: Clipped = False,
    clipping_value: ClippingValue = None,
    clip_noise: ClipNoise = None,
    classes: guiding.ClassOption = None,
    per_class: guiding.PerClassOption = None,
    guidance: guiding.GuidanceOption = None,
    guidance_interval: guiding.IntervalOption = None,
    guide_with: guiding.GuideOption = None,
    out: Out = None,
    strip: Strip = False,
    gif: Gif = False,
    batch_size: BatchSize = None,
    backend: backends.BackendOption = "torch",
    recipe: RecipeOption = None,
    changes: SetOption = None,
    run: RunOption = None,
    device: DeviceOption = None,
    gpus: GpusOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> int | None:
    """Draw pictures with a model

    The same seed gives the same picture to rounding, whatever the batch size and the other seeds.
    Guidance needs a model that was trained with `train.label_drop`, and two network calls a step.

    Examples:
      vdiff sample --checkpoint base_6 --clipped
      vdiff sample --checkpoint runs/digits/base_3 --seeds 0-15 --out digits.png
    """
    from vdiff.cli import launch

    backends.check(backend, device, gpus, strip or gif)
    numbers = _seeds(seeds, num_images, per_class)
    strongly = guiding.Asked(guidance, guidance_interval, guide_with)
    limits = _limits(clipped, clipping_value, clip_noise)
    options = {"grid": grid, "order": order, "eta": eta, "variance": variance, **limits}
    asked = {
        "-n": num_images,
        "--seeds": seeds,
        "--sampler": sampler,
        "--steps": steps,
        **{f"--{name}": value for name, value in options.items()},
        "--class": classes,
        "--per-class": per_class,
        **strongly.options(),
        "--strip": strip,
        "--gif": gif,
        "--batch-size": batch_size,
        "--backend": backend,
    }
    with contextlib.ExitStack() as stack:
        here: session.Company | None = None
        # a process that is alone hears of mistakes before it opens a device
        if launch.is_worker() and not dry_run:
            here = stack.enter_context(session.company(device, asked))
        processes = here.processes if here else None
        checkpoint, *guides = all_taken_in(processes, strongly.models(checkpoint), not dry_run)
        parsed, folder, card = session.model_of(processes, checkpoint, recipe, changes, run)
        built = _sampler(parsed, card, sampler, options)
        wanted: dict[str, Any] = {"sampler": built, "num_steps": _steps(card, steps, built)}
        form = sample_place.Form(strip, gif)
        chosen = guiding.chosen(card, classes, per_class, numbers, partial(_count, form, parsed))
        wanted |= chosen._asdict()
        wanted["guidance"] = strongly.by(guides).of(processes, parsed, run, card)
        wanted["batch_size"] = batch_size or parsed.sample.batch_size
        backends.check_model(backend, card, wanted)
        ready = _Ready(parsed, folder, card, wanted, form, backend)
        told = guiding.told(card, wanted["guidance"], per_class) | {"class": classes or "by seed"}
        place = partial(_place, out, ready, _how(card, wanted, limits), told, force)
        target, about = here.processes.told(place) if here else place()
        if gpus is not None and not dry_run and launch.may_start():
            return launch.start(gpus, device)
        if dry_run:
            _tell(ready, Path(target), {"dry_run": True})
        else:
            here = here or stack.enter_context(session.company(device, {}))
            _draw(here, ready, device, Path(target), about, force)
    return None


class _Ready(NamedTuple):
    """What is drawn, when everything that was asked for has been looked at.

    wanted: see `sample_drawing.draw`.
    """

    recipe: "Recipe"
    folder: Path
    card: "ModelCard"
    wanted: Mapping[str, Any]
    form: sample_place.Form
    backend: str


def _draw(
    here: session.Company,
    ready: _Ready,
    device: str | None,
    target: Path,
    about: dict[str, str | int] | None,
    force: bool,
) -> None:
    """about: of a drawing that can be gone on with."""
    kept = partial(sample_drawing.kept_for, target, about, force)
    of = (ready.recipe, ready.folder, ready.wanted, device, target, ready.form, kept)
    facts = sample_drawing.draw(here, *of, ready.backend)
    if facts is not None:
        _tell(ready, target, facts)


def _how(card: "ModelCard", wanted: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    """What a file is called by that vdiff chooses."""
    clipping = ""
    if limits:
        clipping = "-clipped"
    if "clip_noise" in limits:
        clipping = "-clip-noise"
    return f"{wanted['num_steps']}{clipping}{guiding.in_name(card, wanted['guidance'])}"


def _count(form: sample_place.Form, recipe: "Recipe") -> int:
    """How many pictures are drawn where nobody says it."""
    if form.strip:
        return 8
    if form.gif:
        return 16
    return recipe.sample.num_images


def _place(
    out: str | None, ready: _Ready, how: str, told: Mapping[str, str], force: bool
) -> tuple[str, dict[str, str | int] | None]:
    """Where the pictures go, which may be left there;
    and what is told of a drawing that can be gone on with, None for one of a single batch.

    told: what shapes the pictures beside `ready.wanted`.
    """
    from vdiff.drawing.drawing import ranges
    from vdiff.drawing.kept import KeptBatches

    wanted = ready.wanted
    target = sample_place.place(out, ready.folder, how, ready.form)
    guiding.check_rows(wanted["rows"], target)
    about = None
    is_long = len(wanted["seeds"]) > wanted["batch_size"]
    if is_long and not ready.form.is_way and sample_place.may_keep(target):
        shaping = {
            "seeds": ranges(wanted["seeds"]),
            "steps": wanted["num_steps"],
            "sampler": str(wanted["sampler"]),
            "batch-size": wanted["batch_size"],
            "backend": ready.backend,
            **told,
        }
        about = sample_place.about(ready.folder, shaping)
    kept = None if about is None else KeptBatches(target, about)
    sample_place.refuse_taken(target, out, kept, force)
    return str(target), about


def _seeds(text: str | None, count: int | None, per_class: int | None) -> list[int]:
    """The seeds that were asked for; none for the recipe's number."""
    guiding.check(per_class, count)
    if text is None:
        return list(range(count)) if count is not None else []
    if count is not None:
        raise UsageError("-n and --seeds both say how many pictures", "leave one of them out")
    return numbers_in(text, "--seeds", 2**63)


def numbers_in(text: str, option: str, limit: int) -> list[int]:
    """Whole numbers below `limit`, as people write them: `0-63`, `1,5,9`.   Errors: UsageError."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise UsageError(
                f"`{text}` is not a list of whole numbers",
                f"write it as {option} 0-63 or {option} 1,5,9",
            )
        end = int(last) if dash else int(first)
        if not int(first) <= end < limit or end - int(first) > 10_000_000:
            fix = f"write numbers from 0 to {limit - 1}, the smaller one first"
            raise UsageError(
                f"`{part.strip()}` is not a range of numbers below {limit}", fix, option
            )
        found.extend(range(int(first), end + 1))
    return found


def _limits(is_clipped: bool, value: float | None, noise: float | None) -> dict[str, float]:
    """The limits of the predictions, as fields of the sampler's section; none for no clipping."""
    if value is not None and not is_clipped and noise is None:
        raise UsageError(
            "--clipping-value does nothing by itself", "add `--clipped`, or leave it out"
        )
    if noise is not None:
        return {"clip": value or 1.2, "clip_noise": noise}
    return {"clip": value or 1.2} if is_clipped else {}


def _sampler(
    recipe: "Recipe", card: "ModelCard", kind: str | None, options: Mapping[str, Any]
) -> "Sampler":
    """The recipe's sampler, or where it names none the model's,
    changed by what the command line says.

    Options that are None change nothing.
    """
    from vdiff.samplers import SAMPLERS
    from vdiff.samplers.advised import sampler_for

    section = recipe.sample.sampler
    if kind is None:
        named = recipe.sample.named_sampler
        section = sampler_for(named, card.sampler, card.name, is_solvable=card.is_solvable)
    if kind is not None and kind not in SAMPLERS:
        raise UsageError(
            SAMPLERS.unknown(kind), f"choose one of: {', '.join(SAMPLERS)}", "--sampler"
        )
    if kind is not None and kind != section.kind:
        section = SAMPLERS.section(kind).model_validate({})
    asked = {name: value for name, value in options.items() if value is not None}
    for name in asked:
        if name not in type(section).model_fields:
            fix = (
                "--sampler ddim takes --eta and --clip-noise, --sampler ancestral takes "
                "--variance; dpmpp, unipc, ipndm and heun take --grid, and dpmpp --order"
            )
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"the sampler `{section.kind}` has no `{name.replace('_', '-')}`", fix, option
            )
    _check_choice(asked, "variance", ("small", "medium", "large"))
    _check_choice(asked, "grid", completion.GRIDS)
    built: Sampler = type(section).model_validate({**section.model_dump(), **asked}).build()
    return built


def _check_choice(asked: Mapping[str, Any], name: str, choices: Sequence[str]) -> None:
    """UsageError for a value that is none of the choices."""
    value = asked.get(name)
    if value is not None and value not in choices:
        fix = f"choose one of: {', '.join(choices)}"
        raise UsageError(f"there is no {name} `{value}`", fix, f"--{name}")


def _steps(card: "ModelCard", steps: int | None, sampler: "Sampler") -> int:
    from vdiff.cli import console
    from vdiff.drawing import asked

    num_steps = asked.num_steps(card, steps, "--steps")
    asked.check_sampler(card, sampler, "--sampler")
    for doubt in asked.doubts(card, num_steps, sampler):
        console.warn(doubt)
    return num_steps


def _tell(ready: _Ready, target: Path, facts: Mapping[str, object]) -> None:
    from vdiff.chain.plan import counted
    from vdiff.cli import console
    from vdiff.drawing import guidance

    _, folder, card, wanted, *_ = ready
    sampler = wanted["sampler"]
    count = len(wanted["seeds"])
    verb = "would draw" if "dry_run" in facts else "drew"
    pictures = f"{count:,} picture{'s' * (count != 1)}"
    num_steps = wanted["num_steps"]
    steps = counted(num_steps)
    calls = sampler.calls(num_steps) * guidance.calls(card, wanted["guidance"])
    if calls != num_steps:
        steps += f" and {calls} network calls"
    how = str(sampler)
    if told := guidance.facts(card, wanted["guidance"]).get("guidance"):
        how += f", guidance {told}"
    console.say(f"{verb} {pictures} with `{folder}` in {steps} ({how}): `{target}`", "green")
    if mode.json:
        console.emit_json({"out": str(target), "num_images": count, **facts})
