"""The command line: what a person types, reads and gets back, whatever goes wrong."""

import errno
import io
import json
import math
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import pytest
import typer

from vdiff.cli import COMMANDS, app, console, displays, failures, main, progress
from vdiff.cli.options import mode
from vdiff.errors import (
    DataError,
    DivergedError,
    InUseError,
    MachineError,
    ModelFileError,
    Stopped,
    UsageError,
    VdiffError,
)
from vdiff.training.progress import StageRow

HEAVY = ("torch", "pydantic", "lmdb", "yaml", "PIL", "numpy", "rich")


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )


def imported_by(*arguments: str) -> set[str]:
    code = f"import sys; from vdiff.cli import main; main({arguments}); print(*sys.modules)"
    return set(python(code).stdout.splitlines()[-1].split()) & set(HEAVY)


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("--help") == set()
    assert imported_by("--version") == set()


def test_the_help_of_a_command_imports_nothing_that_it_does_not_need() -> None:
    # some versions of typer use it
    assert imported_by("recipes", "check", "--help") <= {"pydantic"}


def test_python_m_vdiff_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vdiff", "nonsense"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no command `vdiff nonsense`")


def functions() -> dict[str, Callable[..., object]]:
    found: dict[str, Callable[..., object]] = {}
    for name, (place, _) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        thing = getattr(__import__(module, fromlist=["_"]), attribute)
        inner = (
            {f"{name} {each}": function for each, function in thing.items()}
            if isinstance(thing, Mapping)
            else {}
        )
        found |= inner or {name: thing}
    return found


def test_every_command_has_a_short_help_two_examples_and_explained_options() -> None:
    for name, function in functions().items():
        lines = (function.__doc__ or "").splitlines()
        assert len(lines[0]) < 60, name
        assert not lines[0].endswith("."), name
        examples = [
            line.strip() for line in lines[lines.index("    Examples:") + 1 :] if line.strip()
        ]
        assert len(examples) == 2, name
        assert all(example.startswith(f"vdiff {name}") for example in examples), name
        assert all(
            option.help for option in app.load(f"{function.__module__}:{function.__name__}").params
        ), name


def test_the_table_of_commands_tells_what_the_commands_tell() -> None:
    for name, (place, text) in COMMANDS.items():
        assert (app.load(place).help or "").splitlines()[0] == text, name


def test_help_lists_the_commands_in_the_order_in_which_a_user_meets_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].split("\n")
    assert [line.split()[0] for line in listed if line.strip()] == list(COMMANDS)
    assert all(line == line.rstrip() and not line.endswith("...") for line in listed)


@pytest.mark.parametrize(
    "arguments",
    [["--json", "recipes", "ls"], ["recipes", "--json", "ls"], ["recipes", "ls", "--json"]],
)
def test_json_may_stand_before_and_after_the_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["recipes"]


def test_one_command_line_does_not_change_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json", "--quiet", "--debug", "recipes", "ls"])
    assert (mode.json, mode.quiet, mode.debug) == (True, True, True)
    main(["recipes", "ls"])
    assert (mode.json, mode.quiet, mode.debug) == (False, False, False)


@pytest.mark.parametrize(
    ("arguments", "error", "fix"),
    [
        (["trian"], "there is no command `vdiff trian`; did you mean `train`?", "`vdiff --help`"),
        (
            ["recipes", "chek"],
            "there is no command `vdiff recipes chek`; did you mean `check`?",
            "`vdiff recipes --help`",
        ),
        (
            ["init", "--focre"],
            "there is no option `--focre`; did you mean `--force`?",
            "`vdiff init --help`",
        ),
        (["--jsno"], "there is no option `--jsno`; did you mean `--json`?", "`vdiff --help`"),
        (["init", "a", "b"], "got unexpected extra argument", "`vdiff init --help`"),
        (["init", "--out"], "option `--out` requires an argument", "`vdiff init --help`"),
        (["recipes", "show"], "missing argument `PATH|NAME`", "`vdiff recipes show --help`"),
    ],
)
def test_a_command_line_that_makes_no_sense_gets_three_lines_and_exit_code_2(
    arguments: list[str], error: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[0].startswith(f"error: {error}")
    assert lines[-1].startswith(f"fix: {fix}")
    assert len(lines) <= 3
    assert out == ""


def test_with_json_an_error_is_an_object_on_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--json", "--focre"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "error": "there is no option `--focre`; did you mean `--force`?",
        "where": "vdiff init",
        "fix": "`vdiff init --help` shows what it takes",
        "exit_code": 2,
    }
    assert err.startswith("error: ")


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


def interrupted() -> None:
    raise KeyboardInterrupt


FAILURES: dict[str, tuple[BaseException, int, str]] = {
    "bug": (
        ZeroDivisionError("division by zero"),
        1,
        "this is a bug in vdiff: ZeroDivisionError: division by zero",
    ),
    "usage": (UsageError("no", "do"), 2, "no"),
    "data": (DataError("no", "do"), 3, "no"),
    "model": (ModelFileError("no", "do"), 4, "no"),
    "diverged": (DivergedError("no", "do"), 5, "no"),
    "machine": (MachineError("no", "do"), 6, "no"),
    "in use": (InUseError("no", "do"), 7, "no"),
    "disk full": (
        OSError(errno.ENOSPC, "No space left on device", "x/y"),
        6,
        "no space left on device",
    ),
    "permission": (
        PermissionError(errno.EACCES, "Permission denied", "x/y"),
        6,
        "permission denied",
    ),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "x/y"), 6, "read-only file system"),
    "stale": (OSError(errno.ESTALE, "Stale file handle", "x/y"), 6, "stale file handle"),
    "away": (OSError(errno.ENODEV, "No such device", "x/y"), 6, "no such device"),
    "long name": (
        OSError(errno.ENAMETOOLONG, "File name too long", "x/y"),
        2,
        "file name too long",
    ),
    "loop": (
        OSError(errno.ELOOP, "Too many levels of symbolic links", "x/y"),
        2,
        "too many levels of symbolic links",
    ),
    "gpu memory": (
        OutOfMemoryError("CUDA out of memory.\nTried"),
        6,
        "out of memory: CUDA out of memory.",
    ),
    "memory": (MemoryError(), 6, "out of memory"),
    "cpu memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 6, "out of memory"),
    "library": (
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        6,
        "out of memory",
    ),
    "thread": (RuntimeError("can't start new thread"), 6, "out of memory"),
    "c": (
        SystemError("error return without exception set"),
        6,
        "a library failed without a reason",
    ),
}


def fail() -> None:
    """Raise what `failing` says."""
    raise failing


failing: BaseException = RuntimeError()


@pytest.fixture
def failing_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    def prepare(err: BaseException) -> None:
        monkeypatch.setitem(COMMANDS, "fail", (f"{__name__}:fail", "Fail"))
        monkeypatch.setattr(sys.modules[__name__], "failing", err)

    return prepare


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_ends_in_a_message_and_its_exit_code(
    name: str, failing_with: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    err, code, message = FAILURES[name]
    failing_with(err)
    assert main(["fail"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert "\nfix: " in shown
    assert "Traceback" not in shown
    if isinstance(err, OSError):
        assert "\nwhere: x/y\n" in shown


@pytest.mark.parametrize("arguments", [["fail", "--debug"], ["--debug", "fail"]])
def test_debug_shows_the_traceback_before_the_message(
    arguments: list[str],
    failing_with: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_with(ZeroDivisionError("division by zero"))
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert "error: this is a bug" in shown


@pytest.mark.parametrize(
    ("err", "code"),
    [(Stopped(15, "saved"), 143), (Stopped(2, "saved"), 130), (KeyboardInterrupt(), 130)],
)
def test_a_stopped_command_has_the_exit_code_of_its_signal(
    err: BaseException,
    code: int,
    failing_with: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_with(err)
    assert main(["fail"]) == code
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["recipes", "ls"]])
def test_whoever_closes_stdout_early_has_read_enough(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "vdiff", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        shown = child.stderr.read()
    assert shown == b""
    assert child.returncode == 0


def test_a_command_goes_on_when_nobody_reads_its_data_any_more() -> None:
    code = (
        "import sys; from vdiff.cli import console; console.write('a'); console.write('b'); "
        "console.say('alive')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        shown = child.stderr.read()
    assert (shown, child.returncode) == (b"alive\n", 0)


def test_closed_streams_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        console.say("nobody hears this")
        console.show_error(VdiffError("no", "do"))
        with displays.fit_progress() as shown:
            shown.show_stages([StageRow("original", 4, 4, 10, "waiting")])
    heard = io.StringIO()
    monkeypatch.setattr(sys, "stderr", heard)
    console.say("somebody hears this")
    assert heard.getvalue() == "somebody hears this\n"


def test_quiet_leaves_errors_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mode, "quiet", True)
    console.say("talk")
    console.warn("more talk")
    with displays.chain_progress() as shown:
        run_through(shown)
    console.show_error(VdiffError("no", "do"))
    assert capsys.readouterr().err == "error: no\nfix: do\n"


def test_the_lines_of_where_stand_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_error(UsageError("2 mistakes", "mend", "a:1  x\nb:2  y"))
    assert capsys.readouterr().err == "error: 2 mistakes\nwhere: a:1  x\n       b:2  y\nfix: mend\n"


def in_terminal(code: str, **env: str) -> str:
    """What a person with a terminal sees on stderr."""
    ours, theirs = pty.openpty()
    settings = {
        "TERM": "xterm-256color",
        **{key: value for key, value in os.environ.items() if key != "NO_COLOR"},
        **env,
    }
    child = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=settings)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError as err:
        if err.errno != errno.EIO:  # how Linux says that the other end is closed
            raise
    finally:
        os.close(ours)
        child.wait()
    return shown.decode()


def test_errors_are_red_in_a_terminal_but_not_with_no_color() -> None:
    code = "from vdiff.cli import main; main(['nonsense'])"
    assert "\x1b[1;31merror:" in in_terminal(code, TERM="xterm-256color")
    plain = in_terminal(code, TERM="xterm-256color", NO_COLOR="1")
    assert "error:" in plain
    assert "31m" not in plain
    assert "36m" not in plain


def test_a_terminal_gets_a_bar_and_a_log_gets_lines() -> None:
    code = (
        "from vdiff.cli import displays; print(type(displays.fit_progress()).__name__, "
        "file=__import__('sys').stderr)"
    )
    assert "FitDisplay" in in_terminal(code, TERM="xterm-256color")
    assert "FitLines" in in_terminal(code, TERM="dumb")
    assert "FitLines" in python(code, FORCE_COLOR="1").stderr


SIXTEEN_SECONDS = """
import time
now = 0.0
time.monotonic = lambda: now
from vdiff.cli import displays
from vdiff.training.progress import StageRow
with displays.chain_progress() as shown:
    shown.show_stages([StageRow("base_0", 1024, 512, 150, "waiting")])
    shown.begin("base_0", 150, 0)
    for update in range(1, 151):
        now += 0.107
        shown.update(update, 0.5, 1.0, 2e-4, 80.0)
    shown.end("base_0", 0.5, now)
"""
"""150 updates, as they are shown."""


@pytest.mark.parametrize(
    "notebook",
    [
        {"JPY_PARENT_PID": "7"},
        {"COLAB_RELEASE_TAG": "release-colab_2026"},
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    ],
)
def test_a_notebook_gets_a_few_lines_and_nothing_that_paints_over_them(
    notebook: dict[str, str],
) -> None:
    """Its cells look like a terminal, but know no way back up,
    and keep all that was ever printed.
    """
    terminal = in_terminal(SIXTEEN_SECONDS)
    assert (terminal.count("\x1b[1A") > 100, len(terminal) > 15_000) == (True, True)
    cell = in_terminal(SIXTEEN_SECONDS, **notebook)
    assert cell.count("\x1b[1A") == 0
    assert 3 <= len(cell.splitlines()) <= 8
    assert len(cell) < 1_000


def test_the_lines_in_a_notebook_become_ever_more_rare() -> None:
    clock, told = Clock(), []
    shown = progress.FitLines(lambda text: told.append(clock.now), clock, progress.ever_more_rarely)
    shown.begin("original", 300_000, 0)
    for update in range(1, 259_201):  # three days
        clock.now += 1.0
        shown.update(update, 0.5, 1.0, 2e-4, 80.0)
    assert told[1] == 3.0
    assert 10 <= sum(moment <= 30.0 for moment in told) <= 12
    assert 50 <= sum(moment <= 3600.0 for moment in told) <= 60
    assert len(told) < 1000
    assert told[-1] - told[-2] == 300.0


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


ROWS = [
    StageRow("base_0", 1024, 512, 300, "skipped", 0.0123, 4000.0),
    StageRow("base_1", 512, 256, 300, "waiting"),
    StageRow("base_2", 256, 128, 300, "waiting"),
]


def run_through(shown: progress.FitLines | displays.FitDisplay, clock: Clock | None = None) -> None:
    shown.show_stages(ROWS)
    shown.begin("base_1", 300, 100)
    for update in range(101, 301):
        if clock:
            clock.now += 1
        shown.update(update, 0.5, 0.25, 2e-4, 1234.0)
        if update == 200:
            shown.saved("runs/x/[base_1]")
    shown.note("a note")
    shown.end("base_1", 0.5, 200.0)


def test_without_a_terminal_there_is_a_line_at_each_change_and_every_half_minute() -> None:
    lines: list[str] = []
    clock = Clock()
    run_through(progress.FitLines(lines.append, clock), clock)
    assert lines[0] == "base_0: 1024 -> 512 steps, is complete already, skipped"
    assert lines[1] == "base_1: 512 -> 256 steps, 300 updates, going on at update 100"
    assert lines[2] == (
        "base_1: update 130 of 300 (43%), loss 0.5000, gradient 0.2500, rate 2.00e-04, "
        "1,234 images/s, 2:50 left"
    )
    assert lines[-3:] == [
        (
            "base_1: update 290 of 300 (96%), loss 0.5000, gradient 0.2500, rate 2.00e-04, "
            "1,234 images/s, 0:10 left"
        ),
        "a note",
        "base_1: done, loss 0.5000, 3:20",
    ]
    assert "base_1: saved runs/x/[base_1]" in lines
    assert len(lines) == 2 + 6 + 1 + 2


def test_preparing_without_a_terminal_is_told_in_lines() -> None:
    lines: list[str] = []
    clock = Clock()
    with progress.PrepareLines(lines.append, clock) as shown:
        for done in range(0, 1201, 10):
            shown.update(done - done // 600, done // 600, 1200)
            clock.now += 0.5
    assert lines[0] == "1,200 pictures"
    assert lines[1] == "600 of 1,200 pictures, 1 skipped, 20 images/s, 0:30 left"
    assert len(lines) == 3


def frame_of(display: displays._Display, width: int) -> list[str]:
    console.stderr.size = (width, 30)  # type: ignore[assignment]
    with console.stderr.capture() as captured:
        console.stderr.print(display.frame())
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.fixture
def own_size() -> object:
    yield
    console.stderr._width = console.stderr._height = None


@pytest.mark.usefixtures("own_size", "capsys")
@pytest.mark.parametrize("width", [*range(20, 72), 100, 200])
def test_displays_fit_any_width(width: int) -> None:
    clock = Clock()
    console.stderr.size = (width, 30)  # type: ignore[assignment]
    chain, fit, prepare = (
        displays.ChainDisplay(clock),
        displays.FitDisplay(clock),
        displays.PrepareDisplay(clock),
    )
    chain.show_stages(ROWS)
    for display in (chain, fit):
        display.begin("base_1", 300, 100)
        clock.now += 1
        display.update(110, 0.5, 0.25, 2e-4, 1234.0)
        display.saved("runs/x/[base_1]")
    prepare.update(10_000, 3, 30_000)
    chain_lines, fit_lines, prepare_lines = (
        frame_of(display, width) for display in (chain, fit, prepare)
    )
    assert [len(chain_lines), len(fit_lines), len(prepare_lines)] == [2 + 3 + 2, 2, 2]
    assert max(len(line) for line in chain_lines + fit_lines + prepare_lines) <= width
    assert set(chain_lines[0].split()) <= {"stage", "steps", "state", "updates", "loss", "time"}
    assert "…" not in "".join(chain_lines + fit_lines + prepare_lines)
    assert "running" in chain_lines[3]
    assert fit_lines[0].startswith("base_1")
    assert "36%" in fit_lines[0]
    assert fit_lines[1].startswith("loss 0.5000")
    assert prepare_lines[1].startswith("3 skipped")


@pytest.mark.usefixtures("own_size", "capsys")
def test_the_table_of_the_chain_tells_every_stage() -> None:
    clock = Clock()
    chain = displays.ChainDisplay(clock)
    run_through(chain, clock)
    chain.begin("base_2", 300, 0)
    lines = frame_of(chain, 100)
    assert lines[0].split() == ["stage", "steps", "state", "updates", "loss", "time"]
    assert lines[2].split() == [
        "base_0",
        "1024",
        "->",
        "512",
        "skipped",
        "300",
        "0.0123",
        "1:06:40",
    ]
    assert lines[3].split() == ["base_1", "512", "->", "256", "done", "300", "0.5000", "3:20"]
    assert lines[4].split() == ["base_2", "256", "->", "128", "running", "300", "0:00"]
    assert len({line.index("->") for line in lines[2:5]}) == 1


@pytest.mark.usefixtures("own_size", "capsys")
def test_a_low_terminal_shows_the_stage_that_runs() -> None:
    chain = displays.ChainDisplay(Clock())
    console.stderr.size = (100, 10)  # type: ignore[assignment]
    chain.show_stages(
        [StageRow(f"base_{k}", 2, 1, 300, "done" if k < 9 else "waiting") for k in range(12)]
    )
    chain.begin("base_9", 300, 0)
    lines = [row.name for row in chain._visible()]
    assert "base_9" in lines
    assert len(lines) == 4


def test_a_skipped_update_does_not_spoil_the_loss() -> None:
    smooth = progress.Smooth()
    for value in (2.0, math.nan, math.inf, 2.0):
        smooth.add(value)
    assert smooth.value == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (42.4, "0:42"),
        (751, "12:31"),
        (3723, "1:02:03"),
        (86_399, "23:59:59"),
        (31 * 3600 + 123, "1 d 7:02:03"),
        (None, "-:--"),
        (math.inf, "-:--"),
    ],
)
def test_durations_read_like_a_clock(seconds: float | None, text: str) -> None:
    assert progress.duration(seconds) == text


def test_tables_are_whole_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("name", "count"), [("[a]" * 60, 5), ("b", 12)], right=["count"])
    assert capsys.readouterr().out.splitlines() == [
        f"{'name':<180}  count",
        f"{'[a]' * 60}      5",
        f"{'b':<180}     12",
    ]


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VDIFF_RECIPE", raising=False)
    return tmp_path


def test_init_writes_a_valid_recipe_that_editors_understand(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "digits"]) == 0
    assert "recipe.yaml" in capsys.readouterr().err
    first = (empty_folder / "recipe.yaml").read_text().splitlines()[0]
    schema = json.loads(
        (empty_folder / first.removeprefix("# yaml-language-server: $schema=")).read_text()
    )
    assert {"data", "network", "train", "distill"} <= set(schema["properties"])
    assert main(["recipes", "check"]) == 0
    assert sorted(path.name for path in empty_folder.iterdir()) == [
        ".vdiff",
        "digits",
        "recipe.yaml",
    ]
    assert len(list(empty_folder.glob("digits/*/*.png"))) == 1797


def test_init_replaces_its_own_recipe_with_force_and_no_other(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init"]) == 0
    recipe = empty_folder / "recipe.yaml"
    whole = recipe.read_text()
    recipe.write_text(whole.replace("seed: 0", "seed: 7"))
    assert main(["init"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["init", "--force", "--dry-run"]) == 0
    assert "seed: 7" in recipe.read_text()
    assert main(["init", "--force"]) == 0
    assert recipe.read_text() == whole
    recipe.write_text("mine")
    assert main(["init", "--force"]) == 2
    assert "recipe.yaml` is there already, and vdiff did not make it" in capsys.readouterr().err
    assert recipe.read_text() == "mine"


def test_init_names_the_recipes_there_are(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "digitz"]) == 2
    assert "did you mean `digits`?" in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []


@pytest.mark.usefixtures("empty_folder")
def test_check_tells_all_mistakes_of_all_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text("name: one\nseeed: 1\n")
    Path("two.yaml").write_text("name: *x\n")
    assert main(["recipes", "check", "digits", "one.yaml", "two.yaml"]) == 2
    err = capsys.readouterr().err
    assert "`seeed`: is unknown; did you mean `seed`?" in err
    assert "one.yaml:1:1  `data`: is missing" in err
    assert "two.yaml:1:7" in err
    assert "error: 2 recipes are wrong" in err


@pytest.mark.usefixtures("empty_folder")
def test_show_prints_the_recipe_word_for_word(capsys: pytest.CaptureFixture[str]) -> None:
    text = "# mine\nname: x  # yes\n"
    Path("x.yaml").write_text(text)
    assert main(["recipes", "show", "x.yaml"]) == 0
    assert capsys.readouterr().out == text


def test_ls_names_every_shipped_recipe_with_its_headline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes", "ls", "--json"]) == 0
    found = {
        recipe["name"]: recipe["about"] for recipe in json.loads(capsys.readouterr().out)["recipes"]
    }
    assert "digits" in found
    assert all(found.values())


def test_a_command_may_use_names_of_its_own_beside_the_common_options() -> None:
    def greet(name: Annotated[str, typer.Option(help="Who")] = "you") -> str:
        return name

    wrapped = app.options.with_mode(greet)
    assert wrapped(name="me", json=True, quiet=False, debug=False) == "me"
    assert mode.json


def test_where_memory_lacks_for_telling_what_failed_that_is_told(
    failing_with: Callable[[BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lack(*unused: object) -> int:
        raise MemoryError

    failing_with(MemoryError())
    monkeypatch.setattr(failures, "report", lack)
    assert main(["fail"]) == 6
    assert capsys.readouterr().err.startswith("error: out of memory\nfix: ")


def test_the_nearest_word_may_not_be_far() -> None:
    assert failures.nearest("--stepz", ["--steps", "--seeds"]) == "; did you mean `--steps`?"
    assert failures.nearest("zzz", ["--steps"]) == ""


@pytest.mark.parametrize(
    "number",
    [errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH],
    ids=errno.errorcode.get,
)
def test_what_a_disk_refuses_is_no_bug(number: int) -> None:
    found = failures.explain(OSError(number, os.strerror(number), "some/place"))
    assert (found.exit_code, found.problem, found.where) == (
        6,
        os.strerror(number).lower(),
        "some/place",
    )
    assert found.fix


def test_a_changed_recipe_is_kept_beside_the_one_that_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "cifar10"]) == 0
    assert main(["init", "digits", "--force"]) == 0
    assert not list(tmp_path.glob("recipe-*")), "a shipped one can be had again"
    for number in (1, 2):
        mine = Path("recipe.yaml").read_text() + f"# mine, {number}\n"
        Path("recipe.yaml").write_text(mine)
        capsys.readouterr()
        assert main(["init", "cifar10", "--force"]) == 0
        assert Path(f"recipe-{number}.yaml").read_text() == mine
        assert f"is kept as `recipe-{number}.yaml`" in capsys.readouterr().err
        assert "# mine" not in Path("recipe.yaml").read_text()
