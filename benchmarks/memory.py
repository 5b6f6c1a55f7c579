"""Is the memory of training and distilling explained? The measured peak against the sum of what must be there.

    python benchmarks/memory.py [--device cpu|cuda]

Every case runs in a process of its own. Explained: weights, gradients, average, Adam's two averages, the teacher, and
the activations, which are counted as the tensors that the forward pass keeps for the backward pass, each memory once.
On a CPU the peak is that of the process, less what it had before there was a network; on a GPU that of torch's tensors.
All tensors: the most at any moment of an update, with what operations hand on; the rest is the kernels' own, and gaps.
"""

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "digits, batch 64": {"net": "digits", "batch": 64},
    "7.3 M at 32x32, batch 16": {"net": "small", "batch": 16},
    "the same, batch 32": {"net": "small", "batch": 32},
    "the same, distilling": {"net": "small", "batch": 32, "distill": True},
    "the same, activations computed again": {"net": "small", "batch": 32, "forgets": True},
}
NETS: dict[str, dict[str, Any]] = {
    "digits": {"size": 8, "channels": 1, "width": 16, "multipliers": (1, 4), "blocks": 1},
    "small": {"size": 32, "channels": 3, "width": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention_at": (16, 8)},
}
PARTS = ("weights", "gradients", "average", "optimizer", "teacher", "activations")


def main() -> None:
    """Print a table, or in an inner process the numbers of one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(options.device, **CASES[options.case])))
        return
    print(
        "| MB | "
        + " | ".join(PARTS)
        + " | sum | peak | unexplained | all tensors | unexplained |\n|---|"
        + "---|" * (len(PARTS) + 5)
    )
    for name in CASES:
        command = [sys.executable, __file__, "--case", name, "--device", options.device]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        total, peak = sum(found[part] for part in PARTS), found["peak"]
        row = " | ".join(f"{found[part] / 1e6:.1f}" for part in PARTS)
        tensors = sum(found[part] for part in ("weights", "average", "optimizer", "teacher")) + found["made"]
        shares = f"{total / 1e6:.1f} | {peak / 1e6:.1f} | {1 - total / peak:.0%}"
        print(f"| {name} | {row} | {shares} | {tensors / 1e6:.1f} | {1 - tensors / peak:.0%} |", flush=True)


def measured(device: str, net: str, batch: int, distill: bool = False, forgets: bool = False) -> dict[str, int]:
    """Bytes of every part, and the peak."""
    import torch

    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.networks.unet import UNetSection
    from vdiff.objectives.denoising import DenoisingObjective
    from vdiff.objectives.progressive import ProgressiveObjective
    from vdiff.recipe import DiffusionSection
    from vdiff.training import memory
    from vdiff.training.learner import Learner, RngOf
    from vdiff.training.machine import Machine
    from vdiff.training.settings import FitSection

    torch.set_num_threads(1)
    settings = dict(NETS[net])
    size, channels = settings.pop("size"), settings.pop("channels")
    machine, schedule = Machine("fp32", device), DiffusionSection().schedule.build()
    # what torch itself needs
    (torch.ones(8, 8, requires_grad=True) @ torch.ones(8, 8)).sum().backward()  # type: ignore[no-untyped-call]
    memory.forget_peak(machine.device)
    before = memory.peak_bytes(machine.device)
    network = UNetSection(**settings).build(size, channels)
    objective: Any = DenoisingObjective("snr_plus_one")
    teacher_bytes = 0
    if distill:
        teacher = machine.freeze(copy.deepcopy(network))
        teacher_bytes = sum(weight.nbytes for weight in teacher.parameters())
        objective = ProgressiveObjective("truncated_snr", Denoiser(teacher, schedule, "v"), 64)
    section = FitSection(updates=100, batch_size=batch, ema=None if distill else 0.999, checkpoint_activations=forgets)
    learner = Learner(Denoiser(network, schedule, "v"), objective, section, machine)
    x = torch.rand(batch, channels, size, size, device=machine.device)
    places = torch.arange(batch, device=machine.device)
    for update in range(3):
        learner.step(x, None, RngOf(0, 0, update, places, batch))
    peak = memory.peak_bytes(machine.device) - before
    with memory.Counted() as counted:  # of tensors, on a CPU and a GPU: the rest of the peak is the allocator's
        learner.step(x, None, RngOf(0, 0, 3, places, batch))
    state = {part: sum(tensor.nbytes for tensor in named.values()) for part, named in learner.state().items()}
    found = {part: state[part] for part in ("weights", "average", "optimizer")}
    student = Denoiser(network, schedule, "v")
    kept = kept_bytes(network, lambda: objective(student, x, RngOf(0, 0, 9, places, batch)(slice(batch))))
    return {
        **found,
        "gradients": found["weights"],
        "teacher": teacher_bytes,
        "activations": kept,
        "peak": peak,
        "made": counted.peak,
    }


def kept_bytes(network: Any, forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights aside, each memory once.

    Where a block's results are computed again, its arguments are kept; what one block then makes is not counted.
    """
    import torch

    from vdiff.networks.repeated import repeated

    found: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def meet(part: Any, given: tuple[Any, ...]) -> None:
        held.extend(keep(each) for each in given if part.forgets and isinstance(each, torch.Tensor))

    held: list[Any] = []
    hooks = [part.register_forward_pre_hook(meet) for part in repeated(network)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = forward()  # alive, so that no memory is used twice
    for hook in hooks:
        hook.remove()
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    assert losses.requires_grad
    return sum(size for place, size in found.items() if place not in weights)


if __name__ == "__main__":
    main()
