"""Is a damaged image store ever read wrongly, and does it harm the process? Seeded damage of every
sort to every kind.

    python -m benchmarks.fuzz_stores --count 10000 --seed 0
    python -m benchmarks.fuzz_stores --exhaustive           # every bit of the smallest finished
                                                            store, one by one

Each case is read as a training reads it and by `inspect --verify`, or gone on with by the same
`prepare`, in child processes that have 20 seconds and 500 MB. Good: the same pictures, refused with
exit code 3, and for what a stopped `prepare` left also gone on with or begun anew, if the store is
right in the end. A foreign store has no checksums: of its pictures, damage goes unseen, and
`inspect --verify` says that it cannot tell. Exit code 1 if anything was bad.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.fuzzing import pages, stores, trials
from benchmarks.fuzzing.stores import FILE, SEAL, Specimen
from benchmarks.fuzzing.trials import Case, Outcome


def cases(specimens: Sequence[Specimen], numbers: Iterable[int], seed: int) -> Iterator[Case]:
    """Case `number` is a function of (seed, number) alone: a store, and how it is damaged."""
    maps = {each.name: pages.chart(each.files[FILE]) for each in specimens}
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        specimen = rng.choice(specimens)
        files = dict(specimen.files)
        if SEAL in files and rng.random() < 0.1:
            files[SEAL], how = _spoilt_text(rng, files[SEAL])
            how = f"{SEAL}: {how}"
        else:
            data = bytearray(files[FILE])
            how = pages.spoil(rng, data, maps[specimen.name])
            files[FILE] = bytes(data)
        yield Case(number, specimen, files, how)


def _spoilt_text(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    place = rng.randrange(len(text))
    if rng.random() < 0.2:
        return text[:place], f"cut to {place:,} bytes"
    bit = rng.randrange(8)
    return text[:place] + bytes([text[place] ^ 1 << bit]) + text[
        place + 1 :
    ], f"bit {bit} of byte {place:,} flipped"


def every_bit(
    specimen: Specimen, name: str, step: int = 1, numbers: Iterable[int] | None = None
) -> Iterator[Case]:
    """The store with each of its bits flipped, one at a time, in the file `name`.

    step: of so many only one.   numbers: these bits alone.
    """
    data = specimen.files[name]
    found = pages.chart(specimen.files[FILE])
    for number in numbers if numbers is not None else range(0, 8 * len(data), step):
        place, bit = divmod(number, 8)
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        part = found.part_of(place) if name == FILE else name
        yield Case(number, specimen, {**specimen.files, name: bytes(changed)}, part)


def table(outcomes: Iterable[Outcome], by: str) -> str:
    """Counts per kind of store, or per part of it: what came of reading, and what --verify said."""
    counts: dict[str, Counter[str]] = {}
    for each in outcomes:
        row = counts.setdefault(
            each.case.specimen.name if by == "store" else each.case.how, Counter()
        )
        reading = each.reading.partition(":")[0]
        row[reading] += 1
        if each.verify != "-":
            row[f"{reading}, --verify {each.verify.partition(':')[0]}"] += 1
    columns = sorted({name for row in counts.values() for name in row})
    lines = [f"| {by} | cases | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, row in counts.items():
        total = sum(count for column, count in row.items() if "," not in column)
        lines.append(
            f"| {name} | {total:,} | " + " | ".join(f"{row[column]:,}" for column in columns) + " |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, damage, read, count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="how many cases [2000]")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same damage [0]")
    parser.add_argument("--only", type=int, help="this case alone")
    parser.add_argument("--kind", help="ours, old, foreign or partial alone [all]")
    parser.add_argument(
        "--exhaustive", action="store_true", help="every bit of the smallest store instead"
    )
    parser.add_argument(
        "--step", type=int, default=1, help="with --exhaustive: of so many bits one [1]"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work; in memory it is faster [a temporary folder]"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        specimens = [each for each in stores.build(folder) if options.kind in (None, each.kind)]
        if options.exhaustive:
            drawn = [
                case
                for name in (FILE, SEAL)
                for case in _all_bits(specimens[0], name, options.step)
            ]
        else:
            numbers = range(options.count) if options.only is None else [options.only]
            drawn = list(cases(specimens, numbers, options.seed))
        outcomes = []
        for outcome in trials.run(drawn, folder / "scratch"):
            outcomes.append(outcome)
            if not outcome.is_good:
                case = outcome.case
                print(
                    f"{case.number}: {case.specimen.name}: {case.how} -> {outcome.reading}; "
                    f"{outcome.verify}",
                    flush=True,
                )
    bad = sum(not each.is_good for each in outcomes)
    print(table(outcomes, "part" if options.exhaustive else "store"))
    print(
        f"{len(outcomes):,} cases, seed {options.seed}, {bad:,} bad, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if bad else 0


def _all_bits(specimen: Specimen, name: str, step: int) -> Iterator[Case]:
    if name in specimen.files:
        yield from every_bit(specimen, name, step)


if __name__ == "__main__":
    sys.exit(main())
