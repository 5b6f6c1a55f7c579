"""`vdiff train`: the base network, from a store of pictures."""

import shlex
from typing import TYPE_CHECKING

from vdiff.cli import hints, session
from vdiff.cli.options import DryRunOption, ForceOption, RecipeOption, SetOption, mode, open_recipe
from vdiff.cli.session import DeviceOption, GpusOption, ProfileOption, RunOption

if TYPE_CHECKING:
    from vdiff.model_folder.card import ModelCard


def train(
    recipe: RecipeOption = None,
    changes: SetOption = None,
    run: RunOption = None,
    device: DeviceOption = None,
    gpus: GpusOption = None,
    profile: ProfileOption = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> int | None:
    """Train the base network on the pictures

    Leaves a model folder `original` in the run. Stopped anywhere, the same command goes on.

    Examples:
      vdiff train
      vdiff train -r celeba_u --gpus 8 --set train.batch_size=64
    """
    from vdiff.chain.plan import counted
    from vdiff.cli import console, displays, estimates, launch, signals

    if gpus is not None and launch.may_start():
        # one process tells its mistakes, not all of them
        open_recipe(recipe, changes)
        return launch.start(gpus, device)
    if dry_run:
        parsed, text = open_recipe(recipe, changes)
        told = session.standing(text, parsed), shlex.join(hints.options((recipe, changes, run)))
        estimates.show(parsed, None, session.run_folder(parsed, run), device, force, *told)
        return None
    with session.chain(
        recipe, changes, run, device, displays.fit_progress, profile, {"--force": force}
    ) as chain:
        card = chain.train(force)
        signals.work_is_done()
        if chain.is_first:
            console.say(
                f"`{chain.run.model(card.name)}` is ready: {counted(card.num_steps)}", "green"
            )
            given = (recipe, changes, run)
            look = hints.command(["sample", "--checkpoint", card.name, *_few_steps(card)], given)
            console.say(f"next: `{hints.command(['distill'], given)}`, or look at it with `{look}`")
        if mode.json and chain.is_first:
            console.emit_json(session.summary(card, chain.run))
    return None


def _few_steps(card: "ModelCard") -> list[str]:
    """The options that show a base in as many steps as its previews; none where it has no more."""
    from vdiff.chain.stage_pictures import PREVIEW_STEPS

    if card.num_steps <= PREVIEW_STEPS:
        return []
    return ["--steps", str(PREVIEW_STEPS)]
