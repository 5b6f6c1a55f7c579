"""One update in numbers: decay of the weights, what a save holds,
and the memory that is still to come.
"""

import pytest
import torch

from tests.test_training import COSINE, flat, learner, network, pictures, rng_of, settings, taught
from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser
from vdiff.machine.machine import Machine
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.training.learner import Learner


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine("fp32", "cpu")


def weights(made: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in made.state()["weights"].items()}


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weights_decay_by_the_share_that_is_asked_for_and_by_none_otherwise(
    machine: Machine, decay: float
) -> None:
    """The first step of Adam is rate * g / (|g| + 1e-8), whatever the decay is;
    that takes rate * decay of a weight.
    """
    rate = 1e-2
    made = learner(machine, weight_decay=decay, clip_norm=None, learning_rate=rate)
    before = weights(made)
    taught(made, 1)
    for name, after in weights(made).items():
        gradient = made.state()["optimizer"][f"exp_avg.{name}"] / (1 - 0.9)
        step = rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(
            after, (1 - rate * decay) * before[name] - step, rtol=1e-4, atol=1e-6
        )


def test_adam_keeps_its_averages_as_long_as_it_is_told_to(machine: Machine) -> None:
    made = learner(machine, adam_betas=(0.5, 0.75), clip_norm=None)
    first = learner(machine, adam_betas=(0.0, 0.0), clip_norm=None)
    taught(made, 1)
    taught(first, 1)
    for name, average in made.state()["optimizer"].items():
        kind, _, weight = name.partition(".")
        gradient = first.state()["optimizer"][f"exp_avg.{weight}"]
        wanted = {
            "exp_avg": 0.5 * gradient,
            "exp_avg_sq": 0.25 * gradient**2,
            "step": torch.tensor(1.0),
        }[kind]
        torch.testing.assert_close(average, wanted, rtol=1e-5, atol=1e-12)


def test_the_learning_rate_of_an_update_is_that_of_its_number_and_halves_with_every_rollback(
    machine: Machine,
) -> None:
    made = learner(machine, learning_rate=0.8, warmup_updates=4)
    assert [made.rate(update) for update in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    made.rollbacks = 2
    assert made.rate(3) == pytest.approx(0.2)
    steps = []
    for halvings in (0, 1):
        each = learner(machine, learning_rate=1e-2, clip_norm=None)
        each.rollbacks = halvings
        before = weights(each)
        taught(each, 1)
        steps.append((weights(each)["conv_in.weight"] - before["conv_in.weight"]).abs().max())
    assert float(steps[0] / steps[1]) == pytest.approx(2, rel=1e-3)


def test_a_state_before_the_first_update_has_no_memory_of_adam_and_can_be_gone_on_from(
    machine: Machine,
) -> None:
    made = learner(machine, ema=0.9)
    state = {
        part: {name: tensor.clone() for name, tensor in named.items()}
        for part, named in made.state().items()
    }
    assert state["optimizer"] == {}
    assert state["course"]["rollbacks"] == 0
    resumed = learner(machine, ema=0.9)
    taught(resumed, 2)
    resumed.load(state, 0)
    assert (resumed.update, resumed.rollbacks) == (0, 0)
    for name, weight in state["weights"].items():
        assert torch.equal(resumed.state()["weights"][name], weight)
        assert torch.equal(resumed.state()["average"][name], state["average"][name])


def test_who_has_not_chosen_a_micro_batch_says_so_in_the_save(machine: Machine) -> None:
    made = learner(machine)
    assert made.micro_batch is None
    assert int(made.state()["course"]["micro_batch"]) == 0
    resumed = learner(machine)
    resumed.load(made.state(), 0)
    assert resumed.micro_batch is None
    made.micro_batch = 4
    resumed.load(made.state(), 0)
    assert resumed.micro_batch == 4
    named = learner(machine, micro_batch=3)
    named.load(made.state(), 0)
    assert named.micro_batch == 3


def test_going_on_changes_nothing_in_what_it_went_on_from(machine: Machine) -> None:
    made = learner(machine, ema=0.9)
    taught(made, 2)
    saved = {
        part: {name: tensor.clone() for name, tensor in named.items()}
        for part, named in made.state().items()
    }
    before = flat(saved)
    resumed = learner(machine, ema=0.9)
    resumed.load(saved, 2)
    taught(resumed, 2)
    assert [
        name for name, tensor in flat(saved).items() if not torch.equal(tensor, before[name])
    ] == []


class Roomy(Machine):
    """A CPU with so many bytes left, that notes which numbers are compared."""

    def __init__(self, left: int) -> None:
        super().__init__("fp32", "cpu")
        self.left = left
        self.compared: list[int] = []

    def available_bytes(self) -> int | None:
        return self.left

    def least(self, number: int) -> int:
        self.compared.append(number)
        return number


def test_memory_for_adam_and_for_a_copy_of_everything_is_left_free_until_they_have_it() -> None:
    """Adam's two averages, and on a CPU the weights, their average and Adam's two,
    copied while a save is written.
    """
    machine = Roomy(10**9)
    made = Learner(Denoiser(network(), COSINE, "v"), DenoisingObjective("snr"), settings(), machine)
    made.choose_micro_batch(pictures(), NOTHING, rng_of())
    num_bytes = sum(weight.nbytes for weight in network().parameters())
    assert machine.compared == [10**9 - 8 * num_bytes, 6]
    taught(made, 1)
    made.micro_batch = None
    made.choose_micro_batch(pictures(), NOTHING, rng_of())
    assert machine.compared[2:] == [10**9, 6]
    assert all(weight.grad is None for weight in made._weights)


def test_a_share_of_another_size_may_be_asked_about() -> None:
    machine = Roomy(10**12)
    made = Learner(
        Denoiser(network(), COSINE, "v"),
        DenoisingObjective("snr"),
        settings(batch_size=40),
        machine,
    )
    made.choose_micro_batch(pictures(), NOTHING, rng_of(), share=17)
    assert made.micro_batch == 17
    made.micro_batch = None
    made.choose_micro_batch(pictures(), NOTHING, rng_of())
    assert made.micro_batch == 40
