"""No text of a stranger acts on the terminal, whatever file, name or argument it comes from."""

import json
import os
import pty
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import lmdb
import pytest

from tests.conftest import noise_picture
from vdiff.cli import main
from vdiff.reporting.markup import escaped
from vdiff.system.printable import printable, printable_json

OWNED = "\x1b]0;owned\x07\x1b[2J\x9b31mred[bold red]x[/]\u202egnp"
"""Renames the window, clears it, paints, tries markup, and turns the direction of writing."""

SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31mred[bold red]x[/]\u202egnp"

RECIPE = """\
name: tiny
data: {{path: {path}, size: 8}}
network: {{width: 4, multipliers: [1, 2], blocks: 1}}
train: {{updates: 2, batch_size: 4, warmup_updates: 0}}
distill: {{start_steps: 4, end_steps: 2, updates: 1, batch_size: 4}}
"""


def test_what_cannot_be_printed_is_visible() -> None:
    assert printable(OWNED) == SHOWN
    assert printable("Grüße, 日本, 🙂, a\u00a0b") == "Grüße, 日本, 🙂, a\u00a0b"
    assert printable("a\tb\nc") == r"a\tb\nc"
    assert printable("a\tb\nc\r", keep="\n\t") == "a\tb\nc\\r"
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert printable("\ud800") == r"\ud800"
    assert escaped(f"<b>{OWNED}") == f"&lt;b&gt;{SHOWN}"


def test_json_says_the_same_without_a_letter_that_acts() -> None:
    content = {"name": OWNED + "\x7f\U000e0041", "line": "a\nb"}
    text = printable_json(json.dumps(content, ensure_ascii=False, indent=1))
    assert json.loads(text) == content
    assert text.replace("\n", "").isprintable()


def said_in_terminal(arguments: list[str], folder: Path) -> str:
    """What a command shows in a terminal."""
    command = [sys.executable, "-m", "vdiff", *arguments]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    pieces: list[bytes] = []
    try:
        while piece := os.read(ours, 4096):
            pieces.append(piece)
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    running.wait()
    return b"".join(pieces).decode()


def assert_harmless(text: str, in_terminal: bool = False, is_shown: bool = True) -> None:
    if in_terminal:  # our own colours, erasing and moving in displays, and the terminal's line ends
        text = re.sub(r"\x1b\[[0-9;?]*[mKAhlJ]", "", text).replace("\r", "")
        assert "\x1b" not in text
    assert text.replace("\n", "").replace("\t", "").isprintable(), ascii(text)
    assert ("owned" in text) == is_shown, "the text in question was shown at all"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Files whose names and contents try it."""
    folders = [tmp_path / "pictures" / name for name in (f"a{OWNED.replace('/', '')}", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        for index in range(4):
            noise_picture(8, 8, index).save(folder / f"{index}.png")
    (folders[0] / f"broken{OWNED.replace('/', '')}.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    quoted = json.dumps(OWNED)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(path='"\\e]0;owned\\a/x"'))
    (tmp_path / "name.yaml").write_text(f"name: {quoted}\n{quoted}: 1\n")
    (tmp_path / "bad.yaml").write_text(f"name: x\ndata: {{path: a, size: {quoted}}}\n")
    lmdb_folder = tmp_path / "store"
    with (
        lmdb.open(str(lmdb_folder), lock=False, map_size=2**20) as opened,
        opened.begin(write=True) as transaction,
    ):
        transaction.put(b"vdiff", json.dumps({"format": OWNED}).encode())
    with zipfile.ZipFile(tmp_path / "owned.pt", "w") as archive:
        archive.writestr(
            f"{OWNED}/data.pkl",
            b"\x80\x02c" + f"owned{OWNED.replace(chr(10), '')}".encode() + b"\nx\n.",
        )
    return tmp_path


COMMANDS = [
    ["recipes", "check", "name.yaml"],
    ["recipes", "check", "bad.yaml"],
    ["train", "--device", "cpu"],
    ["train", "-r", f"nowhere{OWNED}"],
    ["train", "--set", f"{OWNED}=1"],
    ["train", "--set", f"data.path={OWNED}"],
    ["train", f"--{OWNED}"],
    [f"{OWNED}"],
    ["prepare", f"{OWNED}", "--size", "8"],
    [
        "prepare",
        "pictures",
        "--size",
        "8",
        "--out",
        f"made{OWNED.replace('/', '')}",
        "--max-bad",
        "50%",
    ],
    ["prepare", "pictures", "--size", "8", "--out", "made"],
    ["inspect", "store"],
    ["inspect", "owned.pt"],
    ["inspect", f"{OWNED}"],
    ["sample", "--checkpoint", f"{OWNED}"],
    ["distill", "--from", f"{OWNED}"],
    ["evaluate", f"{OWNED}"],
    ["report", f"{OWNED}"],
    ["compare", f"{OWNED}", "b"],
    ["init", f"{OWNED}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: printable(" ".join(command))[:40])
def test_no_command_passes_it_on(
    command: list[str],
    hostile: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(hostile)
    for more in ([], ["--json"]):
        main([*command, *more])
        said = capfd.readouterr()
        # a value is refused for its control characters, and named by its place
        assert_harmless(said.out + said.err, is_shown=f"data.path={OWNED}" not in command)


@pytest.mark.parametrize(
    "command", [COMMANDS[index] for index in (0, 2, 9)], ids=["recipe", "error", "display"]
)
def test_nor_to_a_terminal(command: list[str], hostile: Path) -> None:
    assert_harmless(said_in_terminal(command, hostile), in_terminal=True)


def test_a_training_in_a_folder_with_such_a_name_is_shown_harmlessly(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(hostile)
    assert (
        main(["prepare", "pictures", "--size", "8", "--out", "good", "--max-bad", "50%", "-q"]) == 0
    )
    (hostile / "good.yaml").write_text(RECIPE.format(path="good"))
    run = f"run{OWNED.replace('/', '')}"
    train = ["train", "-r", "good.yaml", "--run", run, "--device", "cpu", "--set", "trackers=[]"]
    assert_harmless(said_in_terminal(train, hostile), in_terminal=True)
    capfd.readouterr()
    for command in (["inspect", run, "--json"], ["report", run, "--no-pictures"]):
        assert main(command) == 0
        said = capfd.readouterr()
        assert_harmless(said.out + said.err)
    page = (hostile / run / "report.html").read_text()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", page)
