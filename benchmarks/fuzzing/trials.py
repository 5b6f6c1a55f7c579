"""Damaged stores are read, verified and gone on with in child processes that have
little time and memory.
"""

import contextlib
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdiff.data import opened
from vdiff.data.prepare import prepare
from vdiff.errors import VdiffError
from vdiff.reporting import inspection

from . import stores
from .stores import Content, Specimen

SECONDS = 20
MEGABYTES = 500
MOST_PICTURES = 8
"""So many can one damage hit: as many bits as are flipped at once."""

GOOD = ("same", "refused", "gone on", "begun anew")
"""Ways in which a reading, or a prepare that goes on, may end."""


@dataclass(frozen=True)
class Case:
    """One damaged store. files: what lies in its folder; how: in words."""

    number: int
    specimen: Specimen
    files: dict[str, bytes]
    how: str


@dataclass(frozen=True)
class Outcome:
    """reading: what a training, or `prepare` that goes on, finds.

    verify: whether `inspect --verify` complains.
    """

    case: Case
    reading: str
    verify: str = "-"

    @property
    def is_good(self) -> bool:
        """Whether nobody was harmed or deceived."""
        reading = self.reading.partition(":")[0]
        if self.case.specimen.kind == "foreign" and reading == "other pictures":
            return True  # it has no checksums: `inspect --verify` says so
        return reading in GOOD and not (reading == "refused" and self.verify == "passed")


def run(cases: Sequence[Case], scratch: Path) -> Iterator[Outcome]:
    """What becomes of each case, in order.

    A child does one after the other until one of them ends it.
    """
    done = 0
    while done < len(cases):
        ended, lines = _in_child(cases[done:], scratch)
        for line in lines:
            yield Outcome(cases[done], *line.split("\t"))
            done += 1
        if ended and done < len(cases):
            yield Outcome(cases[done], ended)
            done += 1


def _in_child(left: Sequence[Case], scratch: Path) -> tuple[str, list[str]]:
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with open("/dev/null", "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # LMDB says which of its asserts failed
        _limit_memory()
        for case in left:
            signal.alarm(SECONDS)
            os.write(writing, (_tried(case, scratch) + "\n").encode())
            _close_all()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "r") as pipe:
        lines = pipe.read().splitlines()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGALRM:
        return "endless", lines
    return f"crash: {signal.Signals(-code).name if code < 0 else code}" if code else "", lines


def _close_all() -> None:
    """Let go of every file that LMDB has mapped: the next case needs the memory."""
    for each in opened._files.values():
        each.environment.close()
    opened._files.clear()


def _limit_memory() -> None:
    """MEGABYTES more than now, and what LMDB maps."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = now + MEGABYTES * 2**20 + 256 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _tried(case: Case, scratch: Path) -> str:
    """`reading`, or `reading` and `verify` with a tab between."""
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    before = _peak(reset=True)
    if case.specimen.kind == "partial":
        found = _gone_on(case, scratch)
    else:
        found = f"{_read(case, scratch)}\t{_verified(scratch / 'store')}"
    if _peak() - before > MEGABYTES * 2**10:
        return "memory\t-"
    return found


def _put(case: Case, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, data in case.files.items():
        (folder / name).write_bytes(data)


def _guarded(work: Callable[[], str]) -> str:
    try:
        return work()
    except VdiffError as err:
        return "refused" if err.exit_code == 3 else _line(f"exit {err.exit_code}: {err}")
    except MemoryError:
        return "memory"
    except BaseException as err:
        return _line(f"bug: {type(err).__name__} {err}")


def _line(text: str) -> str:
    return " ".join(text.split())[:160]


def _read(case: Case, scratch: Path) -> str:
    _put(case, scratch / "store")
    return _guarded(lambda: _compared(stores.read(scratch / "store"), case.specimen.content))


def _compared(found: Content, wanted: Content) -> str:
    """`same`; `other pictures`: of those that are damaged, all else is right; or `differs`."""
    if found == wanted:
        return "same"
    names = [name for name in wanted if found[name] != wanted[name]]
    pairs = list(zip(found["pictures"], wanted["pictures"], strict=False))
    num_others = sum(one != other for one, other in pairs)
    is_right = names == ["pictures", "fingerprint"] and len(found["pictures"]) == len(
        wanted["pictures"]
    )
    return "other pictures" if is_right and num_others <= MOST_PICTURES else "differs"


def _verified(store: Path) -> str:
    def work() -> str:
        found = inspection.store(store, verify=True)
        return "found" if found.get("problems") else "passed"

    return "found" if (said := _guarded(work)) == "refused" else said


def _gone_on(case: Case, scratch: Path) -> str:
    """The same `prepare` again, and whether its store is whole and right."""
    _put(case, scratch / "store.partial")

    def work() -> str:
        report = prepare(out=scratch / "store", **case.specimen.how)
        try:
            compared = _compared(stores.read(report.store), case.specimen.content)
            inspection.store(report.store, verify=True)
        except VdiffError as err:
            return _line(f"broken store: {err}")
        if compared != "same":
            return compared
        return "gone on" if report.resumed_at else "begun anew"

    return _guarded(work)


def _peak(reset: bool = False) -> int:
    """The most memory of this process so far in kB, since the last reset where
    the system can do that.
    """
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0])
