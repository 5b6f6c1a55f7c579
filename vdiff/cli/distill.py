"""`vdiff distill`: students that need half the steps, one stage after another."""

import shlex
from typing import Annotated

import typer

from vdiff.cli import completion, hints, session
from vdiff.cli.options import DryRunOption, ForceOption, RecipeOption, SetOption, mode, open_recipe
from vdiff.cli.session import DeviceOption, GpusOption, ProfileOption, RunOption


def distill(
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|PATH",
            help="First teacher: a name in the run, any model folder, a foreign one, or hf://owner/name",
            autocompletion=completion.models,
        ),
    ] = None,
    stages: Annotated[
        int | None, typer.Option("--stages", help="How many stages to make [all]")
    ] = None,
    to: Annotated[
        int | None,
        typer.Option("--to", help="Sampler steps of the last student; all stages that end there"),
    ] = None,
    recipe: RecipeOption = None,
    changes: SetOption = None,
    run: RunOption = None,
    device: DeviceOption = None,
    gpus: GpusOption = None,
    profile: ProfileOption = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> int | None:
    """Halve the number of sampler steps, stage by stage

    Without options: the whole chain of the recipe. Finished stages are kept; an unfinished one goes
    on.

    Examples:
      vdiff distill
      vdiff distill --from base_5 --stages 1
    """
    from vdiff.chain.plan import check_count, counted
    from vdiff.cli import console, displays, estimates, launch, signals
    from vdiff.cli.taking_in import taken_in

    check_count(stages)
    starts_processes = gpus is not None and launch.may_start()
    if starts_processes or dry_run:
        # one process tells its mistakes, not all of them
        taken = taken_in(source, may_write=not dry_run)
        is_foreign = taken != source
        source = taken
        parsed, text = open_recipe(recipe, changes, session.model_folder(source), is_foreign)
        if starts_processes and dry_run:
            estimates.stages_of(parsed, (source, stages, to), session.run_folder(parsed, run))
        if gpus is not None and starts_processes:
            return launch.start(gpus, device)
        told = session.standing(text, parsed), shlex.join(hints.options((recipe, changes, run)))
        choice = (source, stages, to)
        estimates.show(parsed, choice, session.run_folder(parsed, run), device, force, *told)
        return None
    asked = {"--stages": stages, "--to": to, "--force": force}
    with session.chain_from(
        source, recipe, changes, run, device, displays.chain_progress, profile, asked
    ) as (chain, teacher):
        cards = chain.distill(teacher, stages, to, force)
        signals.work_is_done()
        last = cards[-1]
        if chain.is_first:
            console.say(
                f"`{chain.run.model(last.name)}` is ready: {counted(last.num_steps)}", "green"
            )
            look = hints.command(["sample", "--checkpoint", last.name], (recipe, changes, run))
            console.say(f"next: `{look}`")
        if mode.json and chain.is_first:
            console.emit_json([session.summary(card, chain.run) for card in cards])
    return None
