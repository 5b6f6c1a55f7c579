"""The lock of a folder: one process at a time holds it,
whatever goes and comes in its place meanwhile.
"""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.full_disk import full_disk
from vdiff.data.prepare import prepare
from vdiff.disk import lock
from vdiff.errors import InUseError, MachineError, UsageError
from vdiff.runs.folder import RunFolder

HOLDERS = {
    "run": "from vdiff.runs.folder import RunFolder; held = RunFolder(Path(sys.argv[1])).lock()",
    "store": "held = lock.held(Path(sys.argv[1]))",
}
"""The two kinds of folders that are locked, as programs."""

PROGRAM = """\
import os, sys, time
from pathlib import Path
from vdiff.disk import lock
from vdiff.errors import InUseError
lock.PATIENCE = float(sys.argv[2])
{holder}
print("tries", flush=True)
try:
    with held:
        print("has it", flush=True)
        sys.stdin.readline()
        {work}
except (InUseError, RuntimeError) as err:
    print(type(err).__name__, flush=True)
print("left", flush=True)
"""
FAILS = "raise RuntimeError('as a missing store does')"
WORKS = "Path(sys.argv[1], 'work').touch()"


@contextmanager
def process(folder: Path, kind: str, work: str, patience: float) -> Iterator[subprocess.Popen[str]]:
    """One that locks `folder`, and lets go when it gets a line."""
    program = PROGRAM.format(holder=HOLDERS[kind], work=work)
    command = [sys.executable, "-c", program, str(folder), str(patience)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def says(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def let_go(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


@pytest.mark.parametrize("kind", HOLDERS)
def test_who_waited_for_a_folder_that_went_holds_the_next_one_alone(
    kind: str, tmp_path: Path
) -> None:
    """A fails and takes its fresh folder away, B waited for it, and C comes while B works."""
    folder = tmp_path / "deep" / "folder"
    with ExitStack() as stack:
        a = stack.enter_context(process(folder, kind, FAILS, 0))
        assert (says(a), says(a)) == ("tries", "has it")
        b = stack.enter_context(process(folder, kind, WORKS, 60))
        assert says(b) == "tries"
        time.sleep(0.3)  # B has opened the file by now; if not, it has an easier time
        let_go(a)
        assert (says(a), says(a)) == ("RuntimeError", "left")
        assert says(b) == "has it"
        assert lock.is_held(folder)
        c = stack.enter_context(process(folder, kind, WORKS, 0))
        assert (says(c), says(c)) == ("tries", "InUseError")
        let_go(b)
        assert says(b) == "left"
    assert not lock.is_held(folder)
    assert (folder / "work").exists()


CROWD = """\
import os, sys, time
from pathlib import Path
from vdiff.disk import lock
lock.PATIENCE = 600.0
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 1000)  # so that they meet often
inside, deadline = Path(sys.argv[1]).parent / "inside", time.monotonic() + 3
for turn in range(10_000):
    with lock.held(Path(sys.argv[1])):
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        sleep(0.0002)
        inside.unlink()
    if time.monotonic() > deadline and turn > 20:
        break
"""


def test_a_crowd_is_let_in_one_by_one_though_the_folder_goes_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "run"
    crowd = [subprocess.Popen([sys.executable, "-c", CROWD, str(folder)]) for _ in range(3)]
    assert [each.wait() for each in crowd] == [0, 0, 0]
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_a_file_that_goes_between_opening_and_locking_it_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").touch()
    real = fcntl.flock

    def late(descriptor: int, kind: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        (tmp_path / "run/.lock").unlink()
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock.held(tmp_path / "run"):
        assert lock.is_held(tmp_path / "run")


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with process(tmp_path / "run", "run", WORKS, 0) as killed:
        assert (says(killed), says(killed)) == ("tries", "has it")
        assert lock.is_held(tmp_path / "run")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not lock.is_held(tmp_path / "run")
    with lock.held(tmp_path / "run"):
        assert (tmp_path / "run/.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_the_holder_is_named_and_looking_disturbs_nobody(tmp_path: Path) -> None:
    with (
        lock.held(tmp_path),
        pytest.raises(InUseError, match=rf"process {os.getpid()} on \S+ works in"),
    ):
        lock.refuse_if_held(tmp_path)
    lock.refuse_if_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_stays_is_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        with lock.held(tmp_path / "run"):
            (tmp_path / "run" / "log.jsonl").touch()
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "log.jsonl"]


def test_no_lock_is_left_in_a_folder_of_somebody_else_in_which_nothing_came_of_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MachineError), lock.held(tmp_path):
        raise MachineError("refused", "")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_lock_of_somebody_else_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("the build server's, do not touch\n")
    with lock.held(tmp_path):
        assert lock.is_held(tmp_path)
        with pytest.raises(InUseError, match="another process works in"):
            lock.refuse_if_held(tmp_path)
        (tmp_path / "log.jsonl").touch()
    assert (tmp_path / ".lock").read_text() == "the build server's, do not touch\n"


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_file_in_the_place_of_a_lock_is_refused_and_unchanged(
    kind: str, tmp_path: Path
) -> None:
    place, outside = tmp_path / "run" / ".lock", tmp_path / "outside"
    place.parent.mkdir()
    if kind == "link":
        outside.write_text("process 1 on mine")
    makes = {"folder": place.mkdir, "pipe": lambda: os.mkfifo(place)}
    makes.get(kind, lambda: place.symlink_to(outside))()
    before = place.lstat()
    with (
        pytest.raises(UsageError, match=r"run/\.lock` is not a file that vdiff made"),
        RunFolder(place.parent).lock(),
    ):
        pass
    assert os.path.samestat(before, place.lstat())
    assert not outside.exists() or outside.read_text() == "process 1 on mine"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with (
        pytest.raises(UsageError, match="run` is not a folder"),
        RunFolder(tmp_path / "run").lock(),
    ):
        pass
    assert (tmp_path / "run").read_text() == "mine"


def test_a_disk_too_full_for_a_name_leaves_nothing(tmp_path: Path) -> None:
    with full_disk(0), pytest.raises(MachineError), lock.held(tmp_path / "a" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_disk_without_locks_is_told_and_nothing_is_left(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*unused: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "mine.txt").touch()
    for folder in (tmp_path, tmp_path / "a" / "run"):
        with pytest.raises(MachineError, match="cannot be locked: ") as caught, lock.held(folder):
            pass
        assert "file system has locks" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_who_waited_for_a_store_that_another_made_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is done, and its folder renamed, between the first look and the lock."""
    from tests.conftest import noise_picture

    (tmp_path / "pictures").mkdir()
    noise_picture(8, 8, 0).save(tmp_path / "pictures/a.png")
    take = lock._Lock.take

    def late(self: lock._Lock, deadline: float) -> None:
        monkeypatch.setattr(lock._Lock, "take", take)
        prepare(tmp_path / "pictures", tmp_path / "store", sizes=[8])
        take(self, deadline)

    monkeypatch.setattr(lock._Lock, "take", late)
    assert prepare(tmp_path / "pictures", tmp_path / "store", sizes=[8]).already_done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "store"]
