"""Micro-batches that find themselves: as large as the memory holds,
and the training is the same whatever they are.
"""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_training import COSINE, flat, network, pictures, rng_of, settings, taught
from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser
from vdiff.machine import memory
from vdiff.machine.machine import Machine
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.unet import UNetSection
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.objectives.progressive import ProgressiveObjective
from vdiff.training.learner import Learner
from vdiff.training.micro_batch import SAFE_SHARE, fitting

CPU = torch.device("cpu")


class Small(Machine):
    """A CPU with so much memory left."""

    def __init__(self, left: int | None) -> None:
        super().__init__("fp32", "cpu")
        self.left = left
        self.waiting: list[bool] = []

    def available_bytes(self) -> int | None:
        return self.left

    def unsynchronised(
        self, network: nn.Module, when: bool
    ) -> contextlib.AbstractContextManager[Any]:
        self.waiting.append(when)
        return super().unsynchronised(network, when)


def made(left: int | None, said: list[str], micro: int | None = None, drop: float = 0.3) -> Learner:
    given = settings(micro_batch=micro, learning_rate=1e-3, ema=0.9)
    student = Denoiser(network(drop), COSINE, "v")
    return Learner(student, DenoisingObjective("snr_plus_one"), given, Small(left), said.append)


def settled(left: int | None, said: list[str], micro: int | None = None) -> Learner:
    found = made(left, said, micro)
    found.choose_micro_batch(pictures(), NOTHING, rng_of())
    return found


def test_processes_talk_of_their_gradients_once_per_update() -> None:
    machine = Small(None)
    given = settings(micro_batch=2)
    learner = Learner(
        Denoiser(network(), COSINE, "v"), DenoisingObjective("snr_plus_one"), given, machine
    )
    learner.step(pictures(), NOTHING, rng_of())
    assert machine.waiting == [True, True, False]


@pytest.mark.parametrize(
    ("available", "size"),
    [(10**9, 64), (640, 32), (450, 32), (300, 22), (113, 10), (50, 4), (0, 1), (-(10**9), 1)],
)
def test_the_parts_are_as_few_as_fit_and_about_equal(available: int, size: int) -> None:
    one, two = 20, 30  # 10 bytes for the network, 10 for every picture
    found = fitting(one, two, 64, int(available / SAFE_SHARE) + 1).size
    assert found == size
    parts = -(-64 // found)
    assert found * 10 + 10 <= max(available + 1, 20)
    assert parts == 1 or (-(-64 // (parts - 1))) * 10 + 10 > available


def test_tensors_that_are_made_are_counted_while_they_live() -> None:
    before = torch.ones(1000)
    with memory.Counted() as counted:
        before.add_(1)
        view = before.view(10, 100)
        one = view * 2  # 4000 bytes
        two = one + 1  # 8000
        del one
        three = torch.cat([two, two])  # 12,000
        del two, three
        torch.ones(2500)
    assert counted.peak == 12_000


def test_the_backward_pass_is_counted_too() -> None:
    weight = torch.ones(1000, requires_grad=True)

    def work() -> None:
        torch.autograd.grad(weight.exp().exp().sum(), weight)

    assert 3 * 4000 <= memory.peak_of(work, CPU) <= 3 * 4000 + 100


def test_what_a_control_group_leaves_is_heeded(tmp_path: Path) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n",
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": "3000000\n",
        "sys/fs/cgroup/a/memory.current": "2000000\n",
        "sys/fs/cgroup/a/memory.stat": "active_file 7\ninactive_file 500000\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "100\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.available_bytes(CPU, tmp_path) == 1_500_000
    (tmp_path / "sys/fs/cgroup/a/memory.max").write_text("max\n")
    assert memory.available_bytes(CPU, tmp_path) == 8000 * 1024
    old = tmp_path / "sys/fs/cgroup/memory"
    old.mkdir()
    (tmp_path / "proc/self/cgroup").write_text("5:cpu:/\n4:memory:/elsewhere\n")
    (old / "memory.limit_in_bytes").write_text("4000\n")
    (old / "memory.usage_in_bytes").write_text("1000\n")
    assert memory.available_bytes(CPU, tmp_path) == 3000
    assert memory.available_bytes(CPU, tmp_path / "nothing") is None


def test_the_training_is_the_same_whatever_micro_batch_is_found() -> None:
    said: list[str] = []
    plenty, tight = settled(10**12, said), settled(250_000, said)
    assert plenty.micro_batch == 6
    assert tight.micro_batch == 2
    assert [line.split(":")[0] for line in said] == ["2 of 6 pictures at once"]
    torch.testing.assert_close(taught(plenty, 2), taught(tight, 2), rtol=1e-5, atol=1e-6)
    wanted, found = flat(plenty.state()), flat(tight.state())
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def settled_with_a_teacher(left: int, packs: bool) -> int | None:
    section = UNetSection(width=64, multipliers=(1,), blocks=1, mid_attention=False)
    frozen = section.build(8, 1).bfloat16().eval().requires_grad_(False)
    fast_on_cpu(frozen, prepacks=packs)
    objective = ProgressiveObjective("snr_plus_one", Denoiser(frozen, COSINE, "v"), num_steps=4)
    found = Learner(Denoiser(network(), COSINE, "v"), objective, settings(), Small(left))
    found.choose_micro_batch(pictures(), NOTHING, rng_of())
    return found.micro_batch


def test_what_a_teacher_keeps_once_and_for_all_is_not_counted_for_every_picture() -> None:
    assert settled_with_a_teacher(10**12, packs=True) == 6
    assert (
        settled_with_a_teacher(300_000, packs=True)
        == settled_with_a_teacher(300_000, packs=False)
        == 2
    )


def test_looking_for_it_changes_nothing() -> None:
    looked, plain = settled(10**12, []), made(10**12, [])
    taught(looked, 2)
    taught(plain, 2)
    wanted, found = flat(plain.state()), flat(looked.state())
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_a_micro_batch_of_the_recipe_or_of_a_save_stays() -> None:
    said: list[str] = []
    assert settled(1, said, micro=5).micro_batch == 5
    assert "at once" not in " ".join(said)
    tight = settled(250_000, [])
    taught(tight, 1)
    saved: dict[str, dict[str, Tensor]] = {
        part: {name: tensor.clone() for name, tensor in named.items()}
        for part, named in tight.state().items()
    }
    resumed = made(10**12, said)
    resumed.load(saved, 1)
    resumed.choose_micro_batch(pictures(), NOTHING, rng_of())
    assert resumed.micro_batch == tight.micro_batch
    del saved["course"]["micro_batch"]  # as older saves are
    older = made(10**12, said)
    older.load(saved, 1)
    assert older.micro_batch is None


def test_where_nobody_tells_the_memory_all_go_at_once() -> None:
    said: list[str] = []
    assert settled(None, said).micro_batch == 6
    assert "at once" not in " ".join(said)


def test_the_loss_of_an_update_holds_on_to_no_activations() -> None:
    """With its graph, every micro-batch would stay in memory until the update ends."""
    learner = made(None, [], micro=2)
    assert not learner._gradient(pictures(), NOTHING, rng_of()).requires_grad
