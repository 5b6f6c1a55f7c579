"""Networks that lie in shares, over two processes:
the same training, the same saves, half of the memory.
"""

import contextlib
import gc
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.forked import Forked
from tests.test_stateful_objective import Consistency
from tests.test_world import free_port
from tests.tiny import TinyRun
from vdiff import cli
from vdiff.diffusion.condition import of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import MachineError, Stopped
from vdiff.machine.machine import Machine
from vdiff.machine.processes import PATIENCE
from vdiff.model_folder import checkpoint
from vdiff.networks.cpu.prepacked import Prepacked
from vdiff.networks.sharded import local_shard, on_host
from vdiff.networks.unet import UNetSection
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.training.learner import Learner, RngOf

COMMON = [
    (
        "network={width: 4, multipliers: [1], blocks: 1, norm_groups: 1, mid_attention: "
        "false, num_classes: 2}"
    ),
    "network.dropout=0.1",
    (
        "train={updates: 6, batch_size: 5, learning_rate: 1.0e-4, warmup_updates: 0, ema: "
        "0.9, log_every: 1}"
    ),
    (
        "distill={start_steps: 4, end_steps: 2, updates: 3, batch_size: 5, learning_rate: "
        "1.0e-4, log_every: 1}"
    ),
]
"""As in test_processes."""
MORE = [
    "train.micro_batch=2",
    "train.preview_every=4",
    "distill.checkpoint_activations=true",
    "evaluate={every: 3, num_images: 3, metrics: [agreement]}",
]
"""What must not change the weights. Shares of 3 and 2 pictures, two at once:
one process has a part less to do.
"""


def make(
    run: TinyRun, name: str, machine: Machine | None = None, stop_after: int | None = None
) -> None:
    """Train and distill, or the rest of it; or until somebody stops it,
    `stop_after` updates from where it stands.
    """
    chain = run.chain(
        *COMMON, *(MORE if machine else []), stop_after=stop_after, run=name, machine=machine
    )
    with contextlib.suppress(Stopped) if stop_after else contextlib.nullcontext():
        chain.train()
        chain.distill()


def in_each_process(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0])
    warnings.simplefilter("error")
    machine = Machine("fp32", "cpu", shard="on")
    assert machine.world_size == 2
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert group.options._timeout == PATIENCE
    gc.freeze()  # as in conftest
    frozen = machine.freeze(UNetSection(width=8, multipliers=(1,), blocks=1).build(8, 1))
    assert {each.prepacks for each in frozen.modules() if isinstance(each, Prepacked)} == {False}
    run = TinyRun(folder, (folder / "recipe.yaml").read_text())
    make(run, "unbroken", machine)
    make(run, "stopped", machine, stop_after=2)  # stops one update later, when both know of it
    make(run, "stopped", machine, stop_after=4)
    assert run.folder("stopped").points("base_0")
    make(run, "stopped", machine)
    make(run, "changing", machine, stop_after=2)
    shares_are_halves_and_one_bad_share_skips_all(run, machine)
    what_an_objective_remembers_lies_in_shares_and_is_gone_on_from(run, machine)
    machine.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # not through Python's end, where torch now and then aborts, as its threads outlive their group
    os._exit(0)


def shares_are_halves_and_one_bad_share_skips_all(run: TinyRun, machine: Machine) -> None:
    recipe = run.recipe(*COMMON)
    student = Denoiser(recipe.network.build(8, 3), recipe.diffusion.schedule.build(), "v")
    learner = Learner(student, DenoisingObjective("snr_plus_one"), recipe.train, machine)
    x, condition, places = (
        torch.zeros(2, 3, 8, 8),
        of_seeds([0, 0], 2),
        torch.arange(2) + 2 * machine.rank,
    )
    rng_of = RngOf(0, 0, 0, places, 4)
    assert learner.step(x, condition, rng_of).isfinite().all()
    tensors = [
        each
        for name in ("weights", "average", "optimizer")
        for each in learner.state()[name].values()
    ]
    tensors = [each for each in tensors if each.ndim]
    shares = [local_shard(each) for each in tensors]
    held, total = sum(each.numel() for each in shares), sum(each.numel() for each in tensors)
    assert int(machine.sum(torch.tensor(held))) == total
    assert held < 0.55 * total
    before = [each.clone() for each in shares]
    measured = learner.step(x * (float("inf") if machine.rank else 1), condition, rng_of)
    assert bool(measured[0].isfinite()) == machine.is_first
    assert not measured[1].isfinite()
    assert all(map(torch.equal, before, shares))
    assert learner.step(x, condition, rng_of).isfinite().all()
    assert not all(map(torch.equal, before, shares))


def what_an_objective_remembers_lies_in_shares_and_is_gone_on_from(
    run: TinyRun, machine: Machine
) -> None:
    recipe, places = run.recipe(*COMMON), torch.arange(2) + 2 * machine.rank
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))[places] * 2 - 1

    def made() -> Learner:
        torch.manual_seed(1)
        student = Denoiser(recipe.network.build(8, 3), recipe.diffusion.schedule.build(), "v")
        return Learner(student, Consistency(), recipe.train, machine)

    def taught(learner: Learner, updates: int) -> list[torch.Tensor]:
        for _ in range(updates):
            learner.step(x, of_seeds([0, 1], 2), RngOf(0, 0, learner.update, places, 4))
        parts = ("weights", "average", "objective")
        return [local_shard(each).clone() for part in parts for each in state(learner, part)]

    def state(learner: Learner, part: str) -> list[torch.Tensor]:
        return list(learner.state()[part].values())

    unbroken = made()
    taught(unbroken, 2)
    remembered = [each for each in state(unbroken, "objective") if each.ndim]
    assert sum(local_shard(each).numel() for each in remembered) < 0.55 * sum(
        each.numel() for each in remembered
    )
    saved = {part: on_host(named) for part, named in unbroken.state().items()}
    wanted, resumed = taught(unbroken, 2), made()
    taught(resumed, 1)
    resumed.load(saved, 2)
    assert all(map(torch.equal, taught(resumed, 2), wanted))


def weights(run: TinyRun, name: str, stage: str) -> torch.Tensor:
    network = checkpoint.load(run.folder(name).model(stage)).denoiser.network
    return torch.cat([weight.flatten() for weight in network.parameters()])


def lines(run: TinyRun, name: str) -> list[dict[str, float]]:
    found = [json.loads(line) for line in run.folder(name).log.read_text().splitlines()]
    return [line for line in found if "loss" in line]


def test_shares_learn_what_a_whole_network_learns_and_their_saves_fit_it(tiny_run: TinyRun) -> None:
    make(tiny_run, "whole")
    make(tiny_run, "changing", stop_after=2)
    common = {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    folder = tiny_run.path
    processes = [
        Forked(in_each_process, [str(folder)], folder, common | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "".join(said)
    assert tiny_run.folder("changing").points("original")[0].name == "000000005"
    make(tiny_run, "changing")

    assert tiny_run.hashes("stopped") == tiny_run.hashes("unbroken")
    wanted = lines(tiny_run, "whole")
    for name in ("unbroken", "changing"):
        for stage in ("original", "base_0"):
            made, whole = (weights(tiny_run, each, stage) for each in (name, "whole"))
            torch.testing.assert_close(made, whole, rtol=0, atol=1e-5)
        for key in ("loss", "grad_norm"):
            assert [line[key] for line in lines(tiny_run, name)] == pytest.approx(
                [line[key] for line in wanted], 1e-5
            )
    pictures = [path.name for path in tiny_run.folder("unbroken").previews.iterdir()]
    assert pictures == ["original-0000004.png"]


def test_one_process_has_nobody_to_share_with(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not Machine("fp32", "cpu", shard="auto").shards
    with pytest.raises(MachineError, match="nobody to share"):
        Machine("fp32", "cpu", shard="on")
    recipe = str(tiny_run.path / "recipe.yaml")
    assert cli.main(["train", "-r", recipe, "--device", "cpu", "--set", "shard=on"]) == 6
    assert "start several with `--gpus N`" in capsys.readouterr().err
    assert (
        cli.main(["train", "-r", recipe, "--device", "cpu", "--set", "shard=on", "--dry-run"]) == 0
    )
    assert "in one process, which holds its networks whole" in capsys.readouterr().err
