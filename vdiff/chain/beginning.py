"""What a command leaves in the run when its first stage begins, and not before:
a command that is refused, or has nothing to do, leaves everything as it was.
"""

from collections.abc import Callable, Sequence

from vdiff.chain.plan import Stage
from vdiff.errors import UsageError
from vdiff.machine import trackers
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.recipe.strict_yaml import dump
from vdiff.runs import contents as run_contents
from vdiff.runs import savepoint
from vdiff.runs.folder import RunFolder

BASE_SECTIONS = ("network.", "train.")
"""Values whose names begin so shape the base alone."""


class Beginning:
    """To be asked by the first process, before a stage looks for its savepoints and after.

    text: the recipe that goes into the run.   anew: the stages that are made again.
    say: told of a recipe that is kept under another name.
    """

    def __init__(
        self, run: RunFolder, text: str, anew: Sequence[Stage], say: Callable[[str], None]
    ) -> None:
        self._run = run
        self._text = text
        self._anew = anew
        self._say = say
        self._has_made_room = False

    def make_room(self) -> None:
        """Have the stages that are made again begin beside what is there of them."""
        if self._has_made_room:
            return
        self._has_made_room = True
        # The last one first: whatever a kill leaves, no student is taken for finished whose teacher
        # is to be made again.
        is_again = [savepoint.begin_anew(self._run, stage.name) for stage in reversed(self._anew)]
        if any(is_again):
            trackers.begin_anew(self._run.tracker)

    def keep_recipe(self) -> None:
        """Leave the recipe in the run: from now on weights come of it."""
        run_contents.write_recipe(self._run.path, self._text, self._say)


def without_ignored(text: str, recipe: Recipe, made_by: str) -> str:
    """The text of a recipe, but with the network and the training of a base that is kept.

    recipe: what `text` says, with its changes.   made_by: the recipe that made the base.
    """
    try:
        before = recipe_text.validate(Recipe, recipe_text.parse(made_by, "recipe of the base"))
    except UsageError:  # an earlier version wrote it, in words that this one does not know
        return text
    true = recipe.model_copy(update={"network": before.network, "train": before.train})
    return dump(true.model_dump(mode="json", exclude_unset=True))
