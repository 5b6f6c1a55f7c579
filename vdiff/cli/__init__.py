"""The command line: which commands there are.

A command's module is imported when the command is called.
"""

from collections.abc import Sequence

COMMANDS = {
    "init": ("vdiff.cli.init:init", "Write a recipe to start from"),
    "recipes": ("vdiff.cli.recipes:RECIPES", "List, show and check recipes"),
    "prepare": ("vdiff.cli.prepare:prepare", "Turn a folder of pictures into an image store"),
    "train": ("vdiff.cli.train:train", "Train the base network on the pictures"),
    "distill": ("vdiff.cli.distill:distill", "Halve the number of sampler steps, stage by stage"),
    "sample": ("vdiff.cli.sample:sample", "Draw pictures with a model"),
    "import": (
        "vdiff.cli.import_model:import_model",
        "Take in a model that another program made",
    ),
    "export": (
        "vdiff.cli.export_model:export_model",
        "Write a model for another program",
    ),
    "evaluate": (
        "vdiff.cli.evaluate:evaluate",
        "Measure how good models are at each number of steps",
    ),
    "inspect": (
        "vdiff.cli.inspect:inspect",
        "Describe runs, models, stores, recipes and foreign files",
    ),
    "report": ("vdiff.cli.report:report", "Show a run on one page that works offline"),
    "compare": ("vdiff.cli.compare:compare", "Show two models side by side, from the same noise"),
    "demo": ("vdiff.cli.demo:demo", "Go the whole way with handwritten digits"),
}
"""Command -> (its function as "module:name", its one-line help),
in the order in which a user meets them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code says how it ended, see `vdiff.errors`."""
    try:
        # signals notes who started this process, while that one lives
        from vdiff.cli import app, signals

        try:
            if arguments is None:
                return app.answer(None)
            return app.run(arguments)
        finally:
            # the process ends with its own command line: a late signal changes nothing any more
            if arguments is None:
                signals.work_is_done()
            signals.be_deaf_at_exit()
    except KeyboardInterrupt:
        # Ctrl-C while the first modules are imported: nobody listens yet, and nothing has begun
        return 130
