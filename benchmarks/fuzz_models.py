"""Does a damaged or hostile model file ever cost vdiff more than a message, or run anything?

    python benchmarks/fuzz_models.py network-snapshot-000001.pkl --count 1000 --seed 0

Each case changes a model file at some places (single bytes, cut-off ends, stretches that are
doubled or zeroed) and imports it, in a child process that may grow by 500 MB and has 20 seconds.
Most changes are near the beginning, where the instructions stand. Bad is: a crash, a hang, that
much memory, an error that is no message to the user, and anything that is run.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vdiff.errors import VdiffError
from vdiff.exchange import bring

SECONDS = 20
MEGABYTES = 500

RUN = {"os.system", "subprocess.Popen", "pickle.find_class", "os.exec", "os.posix_spawn"}
"""What Python tells of when a program starts another, or a pickle is loaded."""


def main() -> None:
    """Try all cases, and end with 1 if one of them is bad."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args()
    told = dict(each.split("=", 1) for each in asked.assume)
    content = asked.file.read_bytes()
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / asked.file.name
        cases = list(range(asked.seed, asked.seed + asked.count))
        for number, outcome in _outcomes(cases, content, place, told):
            outcomes[outcome.partition(":")[0]] += 1
            if outcome not in ("read", "refused"):
                print(f"case {number}: {outcome}")
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    if outcomes.keys() - {"read", "refused"}:
        raise SystemExit(1)


def _outcomes(
    cases: list[int], content: bytes, place: Path, told: dict[str, str]
) -> Iterator[tuple[int, str]]:
    """A child does one case after the other until one of them ends it."""
    while cases:
        sys.stdout.flush()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _in_child(cases, content, place, told, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            lines = pipe.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield from zip(cases, lines, strict=False)
        cases = cases[len(lines) :]
        if code and cases:
            ended = "endless" if code == -signal.SIGALRM else f"crash: {code}"
            yield cases[0], ended
            cases = cases[1:]


def _in_child(
    cases: list[int], content: bytes, place: Path, told: dict[str, str], writing: int
) -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = now + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    ran: list[str] = []
    sys.addaudithook(lambda event, given: ran.append(event) if event in RUN else None)
    for case in cases:
        signal.alarm(SECONDS)
        place.write_bytes(changed(content, random.Random(case)))
        outcome = _tried(place, told)
        if ran:
            outcome = f"ran: {ran[0]}"
            ran.clear()
        os.write(writing, f"{outcome}\n".encode())
    os._exit(0)


def _tried(place: Path, told: dict[str, str]) -> str:
    try:
        bring.read(bring.Source(place, told=told))
    except VdiffError:
        return "refused"
    except MemoryError:
        return "memory"
    except Exception as err:
        return " ".join(f"bug: {type(err).__name__} {err}".split())[:160]
    return "read"


def changed(content: bytes, rng: random.Random) -> bytes:
    """The file with one kind of damage."""
    damaged = bytearray(content)
    last = len(damaged) if rng.random() < 0.3 else max(1, len(damaged) // 8)
    place = rng.randrange(last)
    match rng.randrange(6):
        case 0:
            return content[:place]
        case 1:
            size = rng.choice([1, 8, 100, 5000])
            damaged[place : place + size] = bytes(size)
        case 2:
            size = rng.choice([1, 8, 100, 5000])
            damaged[place:place] = damaged[place : place + size]
        case _:
            for _ in range(rng.choice([1, 1, 2, 8])):
                value = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
                damaged[rng.randrange(last)] = value
    return bytes(damaged)


if __name__ == "__main__":
    main()
