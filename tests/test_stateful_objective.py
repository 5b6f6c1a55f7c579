"""Objectives that remember: their state is saved and gone on from,
and they are told of every update once.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tests.test_training import COSINE, flat, network, pictures, rng_of, settings, taught
from tests.tiny import TinyRun
from tests.toys import Curved
from vdiff.config import shapes_weights
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import ModelFileError, Stopped
from vdiff.machine.machine import Machine
from vdiff.networks import sharded
from vdiff.objectives import OBJECTIVES
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.objectives.objective import Objective, ObjectiveSection, Task, add_noise
from vdiff.objectives.target import Target
from vdiff.objectives.weighting import weighted_loss
from vdiff.randomness import Randomness
from vdiff.training.learner import Learner, State

UPDATES = 10
DECAY = 0.5


class Consistency(Objective):
    """The student says at every time what a slow copy of it says nearer to the picture,
    and nearer the later it is.

    Beside the copy it remembers how many updates were not skipped, as an example of a state without
    a shape.
    heard: what it was told between the calls.
    """

    def __init__(self, updates: int = UPDATES, decay: float = DECAY) -> None:
        self.updates, self.decay = updates, decay
        self.step, self.done = 0.5, torch.zeros(())
        self.heard: list[tuple[str, int, bool]] = []

    def prepare(self, student: Denoiser, copied: Callable[[], nn.Module]) -> None:
        self.target = Target(student, copied, self.decay)
        self.heard.append(("prepare", 0, True))

    def begin(self, update: int) -> None:
        self.step = 0.5 * (1 - update / self.updates)
        self.heard.append(("begin", update, True))

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        t = 1 - rng.stratified()
        alpha, sigma = student.schedule.alpha_sigma(t)
        z = add_noise(x, alpha, sigma, rng)
        with torch.no_grad():
            nearer = self.target.denoiser(z, (1 - self.step) * t, condition).x
            wanted = torch.lerp(nearer, x, (1 + self.done) / 100)
        return weighted_loss("snr_plus_one", student(z, t, condition, rng).x, wanted, alpha, sigma)

    def follow(self, update: int, is_done: Tensor) -> None:
        self.target.follow(is_done)
        self.done += is_done
        self.heard.append(("follow", update, bool(is_done)))

    def state(self) -> dict[str, Tensor]:
        return {
            "done": self.done,
            **{f"target.{name}": tensor for name, tensor in self.target.state().items()},
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        sharded.scatter_into(self.done, state["done"])
        self.target.load(
            {
                name.removeprefix("target."): tensor
                for name, tensor in state.items()
                if name != "done"
            }
        )


class Forgetful(Consistency):
    """Does not say what it remembers."""

    def state(self) -> dict[str, Tensor]:
        return {}


class ConsistencySection(ObjectiveSection):
    """What a recipe says of it."""

    kind: Literal["consistency"] = shapes_weights("consistency")
    forgetful: bool = shapes_weights(False)

    def build(self, task: Task) -> Objective:
        return Forgetful(task.updates) if self.forgetful else Consistency(task.updates)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine("fp32", "cpu")


def learner(machine: Machine, objective: Objective, **more: Any) -> Learner:
    return Learner(
        Denoiser(network(0.3), COSINE, "v"), objective, settings(ema=0.9, **more), machine
    )


def kept(made: Learner) -> State:
    """A copy of its state, as a save has it."""
    return {
        part: {name: tensor.clone() for name, tensor in named.items()}
        for part, named in made.state().items()
    }


def learned(made: Learner, objective: Consistency) -> dict[str, Tensor]:
    """All that is learned, and what the objective remembers whether it says so or not."""
    return flat(made.state() | {"remembered": Consistency.state(objective)})


def different(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


# What is saved, and what is gone on from


def test_what_an_objective_remembers_is_a_part_of_the_save_and_nothing_is_none(
    machine: Machine,
) -> None:
    names = {name for name, _ in network().named_parameters()}
    state = learner(machine, Consistency()).state()
    assert state["objective"].keys() == {"done", *(f"target.{name}" for name in names)}
    for made in (
        learner(machine, Forgetful()),
        learner(machine, DenoisingObjective("snr_plus_one")),
    ):
        assert (
            made.state().keys()
            == state.keys() - {"objective"}
            == {"weights", "average", "optimizer", "course"}
        )


@pytest.mark.parametrize("kind", [Consistency, Forgetful])
def test_a_resumed_learner_has_the_bits_of_an_unbroken_one_if_its_objective_says_what_it_remembers(
    machine: Machine, kind: type[Consistency]
) -> None:
    objective, again = kind(), kind()
    unbroken = learner(machine, objective)
    taught(unbroken, 3)
    saved = kept(unbroken)
    taught(unbroken, 3)
    resumed = learner(machine, again)
    if kind is Consistency:
        taught(resumed, 1)  # whatever was there before counts no more
    resumed.load(saved, 3)
    taught(resumed, 3)
    found = different(learned(resumed, again), learned(unbroken, objective))
    if kind is Consistency:
        assert found == []
    else:  # so the test would find what is not saved
        parts = {name.partition("/")[0] for name in found}
        assert parts == {"weights", "average", "optimizer", "remembered"}


def test_what_is_gone_on_from_is_copied_into_place(machine: Machine) -> None:
    objective = Consistency()
    made = learner(machine, objective)
    taught(made, 2)
    saved = kept(made)
    before = {name: tensor.clone() for name, tensor in saved["objective"].items()}
    again = Consistency()
    resumed = learner(machine, again)
    places = {name: tensor.data_ptr() for name, tensor in again.state().items()}
    resumed.load(saved, 2)
    assert {name: tensor.data_ptr() for name, tensor in again.state().items()} == places
    assert different(again.state(), before) == []
    taught(resumed, 1)
    assert different(saved["objective"], before) == []
    assert len(different(again.state(), before)) == len(before)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {each: tensor for each, tensor in state.items() if each != name}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: None,
        lambda state: {},
        lambda state: without(state, "done"),
        lambda state: without(state, "target.conv_in.bias"),
        lambda state: state | {"more": torch.zeros(())},
        lambda state: state | {"done": torch.zeros(1)},
        lambda state: state | {"target.conv_in.bias": torch.zeros(5)},
        lambda state: {name.removeprefix("target."): tensor for name, tensor in state.items()},
    ],
    ids=[
        "no part",
        "empty",
        "no number",
        "no weight",
        "one more",
        "shape of a number",
        "shape of a weight",
        "names",
    ],
)
def test_a_save_whose_objective_does_not_fit_is_refused_and_nothing_is_changed(
    machine: Machine, change: Any
) -> None:
    made = learner(machine, Consistency())
    taught(made, 2)
    saved = kept(made)
    changed = change(saved.pop("objective"))
    objective = Consistency()
    other = learner(machine, objective)
    taught(other, 1)
    before = learned(other, objective)
    with pytest.raises(ModelFileError, match="the save does not fit") as found:
        other.load(saved if changed is None else saved | {"objective": changed}, 2)
    assert "--force" in found.value.fix
    assert other.update == 1
    assert different(learned(other, objective), before) == []


def test_a_save_of_an_objective_that_remembers_does_not_fit_one_that_does_not(
    machine: Machine,
) -> None:
    saved = kept(learner(machine, Consistency()))
    with pytest.raises(ModelFileError, match="the save does not fit"):
        learner(machine, DenoisingObjective("snr_plus_one")).load(saved, 0)


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_run_that_is_stopped_and_goes_on_is_the_unbroken_one(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, forgetful: bool
) -> None:
    monkeypatch.setitem(OBJECTIVES._builtin, "consistency", f"{__name__}:ConsistencySection")
    kind = f"train.objective={{kind: consistency, forgetful: {str(forgetful).lower()}}}"
    tiny_run.base(kind, run="unbroken")
    with pytest.raises(Stopped):
        tiny_run.chain(kind, stop_after=3).train()
    newest = tiny_run.folder().points("original")[0]
    assert Path(newest, "objective.safetensors").exists() == (not forgetful)
    tiny_run.base(kind)
    assert (tiny_run.hashes() == tiny_run.hashes("unbroken")) == (not forgetful)


# What it is told


def test_every_update_is_begun_with_the_number_before_and_followed_with_the_number_after(
    machine: Machine,
) -> None:
    objective = Consistency()
    made = learner(machine, objective, micro_batch=2)
    made.build_ddp_buckets(pictures(), NOTHING, rng_of())
    assert objective.heard == [("prepare", 0, True)]
    taught(made, 2)
    saved = kept(made)
    told = [("begin", 0, True), ("follow", 1, True), ("begin", 1, True), ("follow", 2, True)]
    assert objective.heard[1:] == told
    again = Consistency()
    resumed = learner(machine, again)
    resumed.load(saved, 2)
    assert again.heard == [("prepare", 0, True)]
    taught(resumed, 1)
    assert again.heard[1:] == [("begin", 2, True), ("follow", 3, True)]


class Cramped(Consistency):
    """Takes four pictures at once, and has no memory for more."""

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(student, x, rng, condition)


def test_what_an_objective_remembers_is_counted_among_what_a_save_will_need(
    machine: Machine,
) -> None:
    class Remembering(DenoisingObjective):
        def state(self) -> dict[str, Tensor]:
            return {"kept": torch.zeros(250_000)}

    plain, remembering = (
        learner(machine, objective=each("snr")) for each in (DenoisingObjective, Remembering)
    )
    assert remembering._later_bytes() - plain._later_bytes() == 1_000_000


def test_an_update_that_is_tried_again_with_less_memory_is_told_once(machine: Machine) -> None:
    objective, plain = Cramped(), Consistency()
    made, wanted = learner(machine, objective), learner(machine, plain, micro_batch=3)
    taught(made, 2)
    taught(wanted, 2)
    assert made.micro_batch == 3
    assert objective.heard == plain.heard
    assert different(learned(made, objective), learned(wanted, plain)) == []


def test_it_is_prepared_with_the_students_own_network_and_copies_it_as_it_is(
    machine: Machine,
) -> None:
    seen: list[tuple[Denoiser, nn.Module]] = []

    class Curious(DenoisingObjective):
        def prepare(self, student: Denoiser, copied: Callable[[], nn.Module]) -> None:
            seen.append((student, copied()))

    student = Denoiser(network(0.3), COSINE, "v")
    Learner(student, Curious("snr_plus_one"), settings(), machine)
    [(given, copy)] = seen
    assert given.network.training
    assert not copy.training
    weights, copies = dict(given.network.named_parameters()), dict(copy.named_parameters())
    assert different(weights, copies) == []
    for name, weight in weights.items():
        assert weight is dict(student.network.named_parameters())[name]
        assert weight.data_ptr() != copies[name].data_ptr()
        assert (weight.requires_grad, copies[name].requires_grad) == (True, False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_skipped_update_leaves_the_target_as_it_was(machine: Machine, bad: float) -> None:
    objective = Consistency()
    made = learner(machine, objective)
    taught(made, 2)
    before = {name: tensor.clone() for name, tensor in objective.state().items()}
    made.step(pictures() * bad, NOTHING, rng_of(2))
    assert objective.heard[-2:] == [("begin", 2, True), ("follow", 3, False)]
    assert different(objective.state(), before) == []
    taught(made, 1)
    assert objective.heard[-2:] == [("begin", 3, True), ("follow", 4, True)]
    assert len(different(objective.state(), before)) == len(before)
    assert float(objective.done) == 3


# The target


def one_weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer.requires_grad_(False)


def test_the_target_is_the_closed_form() -> None:
    """Weights 1, 2, 3, ...: target_u = d target_(u-1) + (1 - d) u from the weight at the start,
    without a warm-up.
    """
    layer, expected = one_weight(10), 10.0
    target = Target(Denoiser(layer, COSINE, "v"), lambda: one_weight(10), 0.75)
    for update in range(1, 20):
        nn.init.constant_(layer.weight, update)
        is_done = update % 3 != 0
        target.follow(torch.tensor(is_done))
        expected = 0.75 * expected + 0.25 * update if is_done else expected
        assert float(target.state()["weight"]) == pytest.approx(expected, rel=1e-6)


def test_buffers_of_the_target_are_the_students_and_are_gone_on_from() -> None:
    def network(count: float) -> nn.Module:
        made = one_weight(0)
        made.register_buffer("seen", torch.tensor([count]))
        return made

    layer = network(3)
    target, again = (
        Target(Denoiser(layer, COSINE, "v"), lambda: network(0), 0.5) for _ in range(2)
    )
    target.follow(torch.tensor(True))
    assert target.state()["seen"].tolist() == [3]
    again.load({name: tensor.clone() for name, tensor in target.state().items()})
    assert dict(again.denoiser.network.named_buffers())["seen"].tolist() == [3]


@pytest.mark.parametrize("before", [1.0, 1e6, -3e5])
def test_with_a_decay_of_0_the_target_is_the_student_bit_for_bit(before: float) -> None:
    layer = one_weight(0.1)
    target = Target(Denoiser(layer, COSINE, "v"), lambda: one_weight(before), 0.0)
    target.follow(torch.tensor(False))
    assert float(target.state()["weight"]) == before
    target.follow(torch.tensor(True))
    assert torch.equal(target.state()["weight"], layer.weight)


def test_the_target_predicts_as_the_student_does_and_stays_what_it_was_made_of() -> None:
    student = Denoiser(Curved(), COSINE, "eps")
    target = Target(student, Curved, DECAY).denoiser
    assert (target.schedule, target.predicts) == (student.schedule, student.predicts)
    assert target.network is not student.network


def test_nothing_is_learned_through_the_target(machine: Machine) -> None:
    objective = Consistency()
    learner(machine, objective)
    assert not objective.target.denoiser.network.training
    x = pictures().requires_grad_(True)
    objective.target.denoiser(x, torch.full((6,), 0.5)).x.sum().backward()
    assert x.grad is not None
    assert all(weight.grad is None for weight in objective.target.state().values())
