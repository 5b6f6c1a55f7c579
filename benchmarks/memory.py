"""Is the memory of training and distilling explained? The measured peak against the sum of what
must be there.

    python benchmarks/memory.py [--device cpu|cuda]

Every case runs in processes of its own. Explained: weights, gradients, average, Adam's two
averages, the teacher, the activations, which are counted as the tensors that the forward pass keeps
for the backward pass, each memory once (where activations are computed again, those of the block
with the most are there a second time), and the kernels: what stays of an update of the same shapes
when all its tensors are gone. On a CPU the peak is that of the process, less what it had after an
update of a tiny network; on a GPU that of torch's tensors, which has no kernels and no gaps.

On a CPU a second process gives every tensor memory of its own (`memory.set_malloc_policy`), so
that its peak has no gaps between tensors. The gaps of the first are what the GNU C library's heap
has grown by at the end, less the most that the learner and the tensors of an update, counted one by
one, took at any moment.
"""

import argparse
import copy
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "digits, batch 64": {"net": "digits", "batch": 64},
    "7.3 M at 32x32, batch 16": {"net": "small", "batch": 16},
    "the same, batch 32": {"net": "small", "batch": 32},
    "the same, distilling": {"net": "small", "batch": 32, "distill": True},
    "the same, activations computed again": {"net": "small", "batch": 32, "recomputes": True},
}
NETS: dict[str, dict[str, Any]] = {
    "digits": {"size": 8, "channels": 1, "width": 16, "multipliers": (1, 4), "blocks": 1},
    "small": {
        "size": 32,
        "channels": 3,
        "width": 64,
        "multipliers": (1, 2, 2),
        "blocks": 2,
        "attention_at": (16, 8),
    },
}
PARTS = ("weights", "gradients", "average", "optimizer", "teacher", "activations", "kernels")


def main() -> None:
    """Print a table, or in an inner process the numbers of one case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--sparing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(options.device, options.sparing, **CASES[options.case])))
        return
    titles = [
        "MB",
        *PARTS,
        "sum",
        "peak without gaps",
        "unexplained",
        "peak",
        "gaps",
        "unexplained",
    ]
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for name in CASES:
        command = [sys.executable, __file__, "--case", name, "--device", options.device]
        found, spared = (
            json.loads(subprocess.run([*command, *more], stdout=subprocess.PIPE, check=True).stdout)
            for more in ([], ["--sparing"])
        )
        row = " | ".join(f"{found[part] / 1e6:.1f}" for part in PARTS)
        total = sum(found[part] for part in PARTS)
        spared_total = total - found["kernels"] + spared["kernels"]
        tight = f"{spared['peak'] / 1e6:.1f} | {1 - spared_total / spared['peak']:.0%}"
        loose = (
            f"{found['peak'] / 1e6:.1f} | {found['gaps'] / 1e6:.1f} | "
            f"{1 - (total + found['gaps']) / found['peak']:.0%}"
        )
        print(f"| {name} | {row} | {total / 1e6:.1f} | {tight} | {loose} |", flush=True)


def measured(
    device: str,
    sparing: bool,
    net: str,
    batch: int,
    distill: bool = False,
    recomputes: bool = False,
) -> dict[str, int]:
    """Bytes of every part, and the peak."""
    import torch

    from vdiff.diffusion.condition import NOTHING
    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.diffusion.process import DiffusionSection
    from vdiff.machine import memory
    from vdiff.machine.machine import Machine
    from vdiff.networks.unet import UNetSection
    from vdiff.objectives.denoising import DenoisingObjective
    from vdiff.objectives.progressive import ProgressiveObjective
    from vdiff.training.learner import Learner, RngOf
    from vdiff.training.settings import FitSection

    torch.set_num_threads(1)
    settings = dict(NETS[net])
    size, channels = settings.pop("size"), settings.pop("channels")
    machine, schedule = Machine("fp32", device), DiffusionSection().schedule.build()

    def learner(
        section: UNetSection, objective: Any, network: Any = None, spares: bool = True
    ) -> Learner:
        ema = None if distill else 0.999
        fit = FitSection(updates=100, batch_size=batch, ema=ema, checkpoint_activations=recomputes)
        made = Learner(
            Denoiser(network or section.build(size, channels), schedule, "v"),
            objective,
            fit,
            machine,
        )
        memory.set_malloc_policy(spares)
        return made

    places = torch.arange(batch, device=machine.device)
    rng_of = [RngOf(0, 0, update, places, batch) for update in range(4)]
    x = torch.rand(batch, channels, size, size, device=machine.device)
    tiny = UNetSection(**{**settings, "width": 8})  # what torch itself needs
    learner(tiny, DenoisingObjective("snr_plus_one")).step(x, NOTHING, rng_of[0])
    without = settled(machine)
    learner(UNetSection(**settings), DenoisingObjective("snr_plus_one")).step(x, NOTHING, rng_of[0])
    before, held = settled(machine), heap_bytes()
    network = UNetSection(**settings).build(size, channels)
    objective: Any = DenoisingObjective("snr_plus_one")
    teacher_bytes = 0
    if distill:
        teacher = machine.freeze(copy.deepcopy(network))
        teacher_bytes = sum(weight.nbytes for weight in teacher.parameters())
        objective = ProgressiveObjective("truncated_snr", Denoiser(teacher, schedule, "v"), 64)
    made = learner(UNetSection(**settings), objective, network, sparing or recomputes)
    for update in range(3):
        made.step(x, NOTHING, rng_of[update])
    peak = memory.peak_bytes(machine.device) - without
    counted = memory.peak_of(lambda: made.step(x, NOTHING, rng_of[3]), machine.device)
    grown = heap_bytes() - held
    state = {
        part: sum(tensor.nbytes for tensor in named.values())
        for part, named in made.state().items()
    }
    found = {part: state[part] for part in ("weights", "average", "optimizer")}
    gaps = grown - sum(found.values()) - teacher_bytes - counted
    student = Denoiser(network, schedule, "v")
    kept = kept_bytes(network, lambda: objective(student, x, rng_of[3](slice(batch))))
    more = {
        "gradients": found["weights"],
        "teacher": teacher_bytes,
        "activations": kept,
        "kernels": before - without,
    }
    return {
        **found,
        **more,
        "peak": peak,
        "gaps": 0 if device == "cuda" or sparing or recomputes else gaps,
    }


def settled(machine: Any) -> int:
    """Bytes in use after all tensors of earlier work are gone."""
    from vdiff.machine import memory

    machine.release()
    gc.collect()
    memory.forget_peak(machine.device)
    return memory.peak_bytes(machine.device)


class Heap(ctypes.Structure):
    """What the GNU C library tells of its memory: mallinfo2's first five numbers, and the rest."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 3),
        ("hblkhd", ctypes.c_size_t),
        ("rest", ctypes.c_size_t * 5),
    )


def heap_bytes() -> int:
    """What the GNU C library holds, in use or free; 0 on other systems."""
    ask: Any = getattr(ctypes.CDLL(None), "mallinfo2", Heap)
    ask.restype = Heap
    found = ask()
    return int(found.arena) + int(found.hblkhd)


def kept_bytes(network: Any, forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights aside, each memory once.

    Where blocks compute again, their arguments are kept, and what the largest of them makes when it
    does.
    """
    from vdiff.networks.repeated import repeated

    calls: list[tuple[Any, Any]] = []
    parts = [part for part in repeated(network) if part.recomputes]
    hooks = [
        part.register_forward_pre_hook(lambda part, given: calls.append((part, given)))
        for part in parts
    ]
    found = saved(forward)
    for hook in hooks:
        hook.remove()
    for _, given in calls:
        found |= {
            place_of(each): each.untyped_storage().nbytes() for each in given if each is not None
        }
    again = [0]
    for part, given in calls:
        part.recomputes = False
        again.append(
            sum(size for place, size in saved(partial(part, *given)).items() if place not in found)
        )
        part.recomputes = True
    weights = {place_of(weight) for weight in network.parameters()}
    return sum(size for place, size in found.items() if place not in weights) + max(again)


def saved(work: Callable[[], Any]) -> dict[int, int]:
    """The memories, place and bytes, that `work` keeps for its gradient."""
    import torch

    found: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        found[place_of(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = work()  # alive, so that no memory is used twice
    assert results.requires_grad
    return found


def place_of(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr())


if __name__ == "__main__":
    main()
