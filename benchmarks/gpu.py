"""What does one GPU do? Training, distilling and sampling with the networks of two recipes, in one
table.

    benchmarks/gpu.sh                                   # everything, in under ten minutes
    python -m benchmarks.gpu --device cpu --tiny        # the same code with tiny networks: says
                                                        nothing about speed

Against the plain eager float32 loop over the same network, as diffusion_distiller works, and
against diffusers as its unconditional training example uses it; DDIMPipeline draws. Every party
takes the recipe's number of pictures at once, or half of it, and so on, until they fit into the
memory. The parties of one task work in turn, round after round; the table has medians of the
rounds, slowest and fastest. The share of the peak is the arithmetic of vdiff's network over that of
bf16 matrix products in this run. Pictures are random numbers on the device. Progress goes to
stderr; interrupted, or when the time is over, it prints what it has. Not run on a GPU yet.
"""

import argparse
import contextlib
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_parties import STEPS, Case, Make, Work
from vdiff.machine.machine import Machine

RECIPES = ("celeba_u", "cifar10")
MANY, ROUNDS = 64, 3
OUT_OF_MEMORY = "out of memory"
COLUMNS = (
    "network",
    "what",
    "who",
    "pictures at once",
    "pictures/s: median (slowest - fastest)",
    "ms",
    "share of the bf16 peak",
    "against the plain loop",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, a moment per row")
    parser.add_argument(
        "--seconds", type=float, default=540, help="begin nothing new after so many [540]"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA GPU, which is what this benchmark measures", file=sys.stderr)
        return 6
    warnings.simplefilter("ignore")
    machine = Machine("auto", options.device)
    bench = (
        Bench(machine, options.seconds, 1, 0.01, 4)
        if options.tiny
        else Bench(machine, options.seconds)
    )
    try:
        bench.find_peak(256 if options.tiny else 8192)
        for name in RECIPES:
            bench.run(Case.of(name, machine, options.tiny))
    except KeyboardInterrupt:
        return 130
    finally:
        bench.show()
    return 0


@dataclass
class BenchRow:
    """A line of the table. seconds: of one update or drawing in each round.

    note: why there are none.
    """

    case: str
    what: str
    who: str
    most: int
    flops: int = 0
    count: int = 0
    seconds: list[float] = field(default_factory=list)
    note: str = "no time left"

    @property
    def task(self) -> str:
        return f"{self.case} {self.what}, {self.most}"


class Bench:
    """Everything that is measured, within its time.

    seconds: after so many nothing new begins.   slice_seconds: for each party in each round.
    most: pictures at once.
    """

    def __init__(
        self,
        machine: Machine,
        seconds: float,
        rounds: int = ROUNDS,
        slice_seconds: float = 2.0,
        most: int = 10**6,
    ) -> None:
        self._machine, self._rounds, self._slice, self._most = machine, rounds, slice_seconds, most
        self._begun = time.perf_counter()
        self._end = self._begun + seconds
        self._rows: list[BenchRow] = []
        self._peak = 0.0

    def find_peak(self, size: int) -> None:
        """Products of square matrices in bf16, per second."""
        a = torch.randn(size, size, device=self._machine.device).bfloat16()
        times = [self._seconds(lambda: a @ a, self._slice) for _ in range(self._rounds)]
        self._peak = 2 * size**3 / statistics.median(times)
        name = self._machine.described()
        print(
            f"{name}, torch {torch.__version__}, auto = {self._machine.precision}, "
            f"sampling in {STEPS} steps;"
        )
        print(
            f"bf16 products of {size} x {size} matrices: {self._peak / 1e12:.2f} TFLOP/s\n",
            flush=True,
        )

    def run(self, case: Case) -> None:
        """All tasks of one network."""
        tasks = [
            ("training", case.recipe.train.batch_size),
            ("distilling", case.recipe.distill.batch_size),
        ]
        for what, most in [*tasks, ("sampling", 1), ("sampling", MANY)]:
            rows = [
                BenchRow(case.name, what, who, min(most, self._most)) for who in case.makers(what)
            ]
            self._rows += rows
            if self._left() > 0:
                self._measure(case, rows)
            self._free()

    def _measure(self, case: Case, rows: list[BenchRow]) -> None:
        makers, works = case.makers(rows[0].what), {}
        flops = 0
        with contextlib.suppress(RuntimeError):
            flops = arithmetic(makers[next(who for who in makers if who.startswith("vdiff"))](1))
        # CUDA graphs first: the others do with the memory that these do not hold
        for row in reversed(rows):
            row.flops = flops
            works[row.who], row.count = self._fitted(row, makers[row.who])
        for number in range(self._rounds):
            for row in rows:
                work = works[row.who]
                if work is not None and self._left() > 0 and not self._time(row, work):
                    works[row.who] = None
            self._tell(f"{rows[0].task}: round {number + 1} of {self._rounds}")

    def _time(self, row: BenchRow, work: Work) -> bool:
        """One round of one party; whether it went well."""
        try:
            row.seconds.append(self._seconds(as_usual(row.who, work), self._slice))
        except RuntimeError as err:
            row.note = first_line(err)
            return False
        self._tell(f"{row.task}: {row.who} {row.count / row.seconds[-1]:.1f} pictures/s")
        return True

    def _fitted(self, row: BenchRow, make: Make) -> tuple[Work | None, int]:
        """With as many pictures at once as fit."""
        count = row.most
        while count and self._left() > 0:
            work, row.note = attempted(row.who, make, count)
            if work is not None:
                self._tell(f"{row.task}: {row.who} takes {count} at once")
                return work, count
            if row.note != OUT_OF_MEMORY:
                break
            count //= 2
            self._free()
        self._tell(f"{row.task}: {row.who}: {row.note}")
        return None, 0

    def _seconds(self, work: Work, budget: float) -> float:
        """Of one call, on average over as many as the time allows."""
        begun = self._now()
        work()
        once = self._now() - begun
        number = max(1, min(1000, int(min(budget, self._left()) / max(once, 1e-6))))
        begun = self._now()
        for _ in range(number):
            work()
        return (self._now() - begun) / number

    def _now(self) -> float:
        """After the device has done all that it was given."""
        if self._machine.device.type == "cuda":
            torch.cuda.synchronize(self._machine.device)
        return time.perf_counter()

    def _left(self) -> float:
        return self._end - time.perf_counter()

    def _free(self) -> None:
        self._machine.release()
        gc.collect()
        self._machine.free_cache()

    def _tell(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._begun:4.0f} s] {text}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """The table, as far as it goes."""
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for row in self._rows:
            print(f"| {' | '.join(self._cells(row))} |")
        print(f"\nafter {time.perf_counter() - self._begun:.0f} s", flush=True)

    def _cells(self, row: BenchRow) -> Iterator[str]:
        yield from (
            row.case,
            f"{row.what}, {row.most}" if row.what == "sampling" else row.what,
            row.who,
        )
        if not row.seconds:
            yield from ("-", row.note, "-", "-", "-")
            return
        median, slow, fast = statistics.median(row.seconds), max(row.seconds), min(row.seconds)
        yield str(row.count)
        yield f"{row.count / median:.1f} ({row.count / slow:.1f} - {row.count / fast:.1f})"
        yield f"{median * 1e3:.2f}"
        yield f"{row.flops * row.count / median / self._peak:.1%}" if row.flops else "-"
        first = next(each for each in self._rows if each.task == row.task)  # the plain loop
        yield (
            f"{statistics.median(first.seconds) / first.count / (median / row.count):.2f}"
            if first.seconds
            else "-"
        )


def attempted(who: str, make: Make, count: int) -> tuple[Work | None, str]:
    """Work that has been done twice, or why it cannot be."""
    try:
        work = make(count)
        for _ in range(2):
            as_usual(who, work)()
        return work, ""
    except RuntimeError as err:  # one party's failure is no reason to lose the others' numbers
        return None, first_line(err)


def first_line(err: RuntimeError) -> str:
    """Why something failed, short."""
    return OUT_OF_MEMORY if OUT_OF_MEMORY in str(err) else str(err).strip().partition("\n")[0]


def as_usual(who: str, work: Work) -> Work:
    """Work with torch's own setting for float32 products, but for vdiff, which sets another."""
    torch.backends.cuda.matmul.allow_tf32 = who.startswith("vdiff")
    return work


def arithmetic(work: Work) -> int:
    """Floating-point operations."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    sys.exit(main())
