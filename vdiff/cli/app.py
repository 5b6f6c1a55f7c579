"""The Typer app: commands that are imported when they are called, and exit codes."""

import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

import vdiff
from vdiff.cli import COMMANDS, options, signals
from vdiff.errors import MachineError, UsageError
from vdiff.system import distribution
from vdiff.system.printable import printable


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line as `answer` does, in a process that goes on:
    signals do afterwards what they did before.
    """
    with signals.restored():
        return answer(arguments)


def answer(arguments: Sequence[str] | None) -> int:
    """Run one command line, that of this process by default;
    every failure is shown and becomes an exit code.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    given = list(arguments)
    # in a notebook or a test the command before this one may have set them
    options.mode.json = False
    options.mode.quiet = False
    options.mode.debug = False
    _never_fail_to_print()
    try:
        _check_installation()
        result = root().main(given, prog_name="vdiff", standalone_mode=False)
    except (Exception, KeyboardInterrupt, SystemExit) as err:
        return _reported(err, given)
    if isinstance(result, int):
        return result
    return 0


def _reported(err: BaseException, given: Sequence[str]) -> int:
    try:
        from vdiff.cli import failures

        return failures.report(err, given)
    except MemoryError:
        # there is too little even for importing rich, which tells the other failures
        sys.stderr.write(
            "error: out of memory\nfix: close other programs, then run the same command again\n"
        )
        return MachineError.exit_code


def root() -> TyperGroup:
    """The group that holds all commands."""
    app = typer.Typer(cls=Group, add_completion=True, **_SETTINGS)
    app.callback(
        help=(
            "Train a diffusion model on your pictures, then make it draw in 4 steps instead of 1024"
        )
    )(options.with_mode(_root))
    group: TyperGroup = typer.main.get_command(app)  # type: ignore[assignment]
    for name, (place, text) in COMMANDS.items():
        group.add_command(LazyCommand(name, place, text))
    return group


class _Readable:
    """What commands and groups share: painted help, and mistakes that know the
    command they were made in.
    """

    def get_help(self, ctx: Any) -> str:
        return _painted(super().get_help(ctx))  # type: ignore[misc]

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]
        except Exception as err:
            # click leaves it out where an option is unknown; the message is to name the command
            if getattr(err, "ctx", ctx) is None:
                err.ctx = ctx  # type: ignore[attr-defined]
            raise


class Command(_Readable, TyperCommand):
    """A command of vdiff."""


class Group(_Readable, TyperGroup):
    """A group that names the nearest command when it is asked for one that it does not have."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        wanted = args[0]
        if wanted not in self.commands and not wanted.startswith("-"):
            from vdiff.cli import failures

            near = failures.nearest(wanted, self.commands)
            fix = f"`{ctx.command_path} --help` lists the commands"
            raise UsageError(f"there is no command `{ctx.command_path} {wanted}`{near}", fix)
        return super().resolve_command(ctx, args)


class LazyCommand(TyperCommand):
    """The name and one-line help of a command or group;
    the real one is imported when it is called.
    """

    def __init__(self, name: str, place: str, text: str) -> None:
        super().__init__(name, help=text, rich_markup_mode=None)
        self.place = place

    def make_context(self, *args: Any, **more: Any) -> Any:
        return load(self.place).make_context(*args, **more)


def load(place: str) -> Any:
    """The command at "module:name"; a mapping there is a group of name -> function."""
    module, _, name = place.partition(":")
    command: Callable[..., Any] | Mapping[str, Callable[..., Any]] = getattr(
        importlib.import_module(module), name
    )
    app = typer.Typer(cls=Group, add_completion=False, **_SETTINGS)
    if callable(command):
        _add(app, None, command)
    else:
        app.callback(help=importlib.import_module(module).__doc__)(options.with_mode(_group))
        for inner_name, function in command.items():
            _add(app, inner_name, function)
    return typer.main.get_command(app)


_SETTINGS: dict[str, Any] = {
    # rich doubles the time that `vdiff --help` takes
    "rich_markup_mode": None,
    # `failures.report` shows every failure in three lines; a traceback only with --debug
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
    # without a command the callbacks print the help; click would call it a mistake
    "invoke_without_command": True,
}


def _add(app: typer.Typer, name: str | None, function: Callable[..., Any]) -> None:
    # \b keeps click from joining the lines of the examples
    text = (function.__doc__ or "").replace("Examples:\n", "\b\n    Examples:\n")
    app.command(name, cls=Command, help=text)(options.with_mode(function))


def _group(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vdiff {vdiff.__version__}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    _group(ctx)


def _check_installation() -> None:
    """A warning, or a MachineError, where vdiff's namesake on the package
    index was installed over it.
    """
    warning = distribution.check(Path(__file__).parents[1])
    if warning:
        typer.echo(f"warning: {printable(warning)}", err=True)


def _never_fail_to_print() -> None:
    """A character that the terminal's encoding lacks becomes `?`; it must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _painted(text: str) -> str:
    """`text` with bold headings and cyan options, where a person looks at it."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    # under pythonw, and where somebody closed it, there is no stdout at all
    if not sys.stdout or not sys.stdout.isatty():
        return text
    text = re.sub(r"(?m)^(\w+:)", "\x1b[1m\\1\x1b[0m", text)
    return re.sub(r"(?m)^(  (?:-[\w-]+(?:, )?)+)", "\x1b[36m\\1\x1b[0m", text)
