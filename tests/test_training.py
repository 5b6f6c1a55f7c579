"""Training: the learning rate, the average, one update however it is split,
and what an objective must do.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.full_disk import full_disk
from tests.tiny import TinyRun, never
from tests.toys import SCHEDULES, curved
from vdiff.cli.progress import FitLines
from vdiff.data.codec import PixelCodec
from vdiff.data.loader import Batch
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import DivergedError, UsageError
from vdiff.images.images import to_float
from vdiff.machine.machine import Machine
from vdiff.model_folder import checkpoint
from vdiff.networks.unet import UNetSection
from vdiff.objectives import OBJECTIVES
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.objectives.objective import Objective, Task
from vdiff.randomness import Randomness
from vdiff.training import ema
from vdiff.training.ema import Average
from vdiff.training.learner import Learner, RngOf, State
from vdiff.training.log import LossRecord
from vdiff.training.loop import Chore, Moment, always, fit
from vdiff.training.settings import FitSection

COSINE = SCHEDULES["cosine"]
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine("fp32", "cpu")


def settings(**more: Any) -> FitSection:
    return FitSection(
        **{"updates": 10, "batch_size": 6, "learning_rate": 1e-2, "log_every": 1, **more}
    )


def network(dropout: float = 0.0, num_classes: int | None = None) -> nn.Module:
    torch.manual_seed(1)
    # one norm group and no attention: a weight whose gradient is 0 but for rounding would be moved
    # at random by Adam
    section = UNetSection(
        width=4,
        multipliers=(1,),
        blocks=1,
        dropout=dropout,
        num_classes=num_classes,
        norm_groups=1,
        mid_attention=False,
    )
    made = section.build(8, 1)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.1)
    return made


def learner(
    machine: Machine, drop: float = 0.0, num_classes: int | None = None, **more: Any
) -> Learner:
    student = Denoiser(network(drop, num_classes), COSINE, "v")
    return Learner(student, DenoisingObjective("snr_plus_one"), settings(**more), machine)


def pictures(count: int = 6) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def rng_of(update: int = 0, count: int = 6) -> RngOf:
    return RngOf(0, 0, update, torch.arange(count), count)


def taught(learner: Learner, updates: int, condition: Condition = NOTHING) -> list[Tensor]:
    return [learner.step(pictures(), condition, rng_of(learner.update)) for _ in range(updates)]


def flat(state: State) -> dict[str, Tensor]:
    """All that is learned; how an update is computed is not."""
    found = {
        f"{part}/{name}": tensor.clone()
        for part, named in state.items()
        for name, tensor in named.items()
    }
    return {name: tensor for name, tensor in found.items() if name != "course/micro_batch"}


def test_the_learning_rate_rises_and_then_stays_or_falls() -> None:
    constant = settings(learning_rate=1.0, warmup_updates=4)
    assert [constant.rate(update) for update in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1, 1, 1]
    linear = settings(learning_rate=1.0, decay="linear")
    assert [linear.rate(update) for update in (0, 5, 9)] == pytest.approx([1, 0.5, 0.1])
    cosine = settings(learning_rate=1.0, decay="cosine", warmup_updates=2)
    assert [cosine.rate(update) for update in (1, 2, 6, 9)] == pytest.approx(
        [1, 1, 0.5, (1 + math.cos(math.pi * 7 / 8)) / 2]
    )
    assert settings(updates=2, warmup_updates=2, decay="linear", learning_rate=1.0).rate(1) == 1


def test_the_average_is_the_closed_form() -> None:
    """Weights 1, 2, 3, ...: average_u = d_u average_(u-1) + (1 - d_u) u with d_u =
    min(decay, (1 + u) / (10 + u)).
    """
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average, expected = Average(layer, 0.5), 0.0
    for update in range(1, 20):
        nn.init.constant_(layer.weight, update)
        average.follow(update, torch.tensor(True))
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
        assert float(average.tensors()["weight"]) == pytest.approx(expected, rel=1e-6)
    assert (1 + 7) / (10 + 7) < 0.5 < (1 + 9) / (10 + 9)  # both sides of the minimum were seen


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_average_of_gpus_is_that_of_cpus(share: float) -> None:
    weights = [torch.rand(3, 4), torch.rand(5)]
    each, all_together = ([torch.ones_like(weight) for weight in weights] for _ in range(2))
    ema.move_each(each, weights, torch.tensor(share))
    ema.move_all(all_together, weights, torch.tensor(share))
    torch.testing.assert_close(each, all_together)
    torch.testing.assert_close(each, [1 + share * (weight - 1) for weight in weights])


@pytest.mark.parametrize("size", [1, 3, 4])
def test_an_update_is_the_same_in_parts(machine: Machine, size: int) -> None:
    whole, parts = (
        learner(machine, drop=0.3, num_classes=2, micro_batch=micro, learning_rate=1e-3)
        for micro in (None, size)
    )
    condition = Condition(torch.tensor([0, 1, 1, 0, 1, 0]))
    torch.testing.assert_close(
        taught(whole, 1, condition), taught(parts, 1, condition), rtol=1e-6, atol=1e-6
    )
    expected, found = flat(whole.state()), flat(parts.state())
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: name + text
        )


def test_one_update_is_one_step_of_adam_on_the_mean_loss(machine: Machine) -> None:
    made = learner(machine, clip_norm=None)
    by_hand = network()
    adam = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    for update in range(2):
        student = Denoiser(by_hand, COSINE, "v")
        loss = DenoisingObjective("snr_plus_one")(
            student, pictures(), rng_of(update)(slice(6))
        ).mean()
        adam.zero_grad()
        loss.backward()
        measured = made.step(pictures(), NOTHING, rng_of(update))
        assert float(measured[0]) == pytest.approx(float(loss.detach()), rel=1e-5)
        norm = torch.stack(
            [w.grad.norm() for w in by_hand.parameters() if w.grad is not None]
        ).norm()
        assert float(measured[1]) == pytest.approx(float(norm), rel=1e-5)
        adam.step()
    for name, weight in by_hand.state_dict().items():
        torch.testing.assert_close(weight, made.state()["weights"][name], rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped(machine: Machine) -> None:
    free, clipped = (
        learner(machine, clip_norm=norm, adam_betas=(0.0, 0.999)) for norm in (None, 1e-3)
    )
    assert float(taught(clipped, 1)[0][1]) > 1e-3
    taught(free, 1)
    norms = [
        torch.stack(
            [
                t.norm()
                for name, t in made.state()["optimizer"].items()
                if name.startswith("exp_avg.")
            ]
        ).norm()
        for made in (clipped, free)
    ]
    assert float(norms[0]) == pytest.approx(1e-3, rel=1e-3)
    assert float(norms[1]) > 1e-2


def test_a_state_that_was_saved_is_gone_on_from_bit_for_bit(machine: Machine) -> None:
    unbroken = learner(machine, drop=0.3, ema=0.9)
    taught(unbroken, 2)
    saved = {
        part: {name: tensor.clone() for name, tensor in named.items()}
        for part, named in unbroken.state().items()
    }
    taught(unbroken, 2)
    resumed = learner(machine, drop=0.3, ema=0.9)
    taught(resumed, 1)  # whatever was there before counts no more
    resumed.load(saved, 2)
    taught(resumed, 2)
    assert resumed.update == unbroken.update == 4
    found, wanted = flat(resumed.state()), flat(unbroken.state())
    assert found.keys() == wanted.keys()
    assert {name for name in wanted if name.startswith("average/")}
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_the_average_is_what_is_meant_for_sampling(machine: Machine) -> None:
    made = learner(machine, ema=0.9)
    taught(made, 3)
    result, state = made.result().network, made.state()
    assert not result.training
    for name, weight in result.state_dict().items():
        assert torch.equal(weight, state["average"][name])
        assert not torch.equal(weight, state["weights"][name])
    plain = learner(machine)
    taught(plain, 1)
    before = {name: weight.clone() for name, weight in plain.result().network.state_dict().items()}
    result = plain.result().network
    taught(plain, 1)
    # it is a copy
    assert all(torch.equal(weight, before[name]) for name, weight in result.state_dict().items())


def test_the_loss_of_a_toy_falls(machine: Machine) -> None:
    made = learner(machine, updates=60)
    x = torch.ones(6, *SHAPE) * torch.tensor([-0.5, 0.5] * 3)[:, None, None, None]
    losses = [float(made.step(x, NOTHING, rng_of(update))[0]) for update in range(60)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_dropout_acts_only_where_the_settings_say_so(machine: Machine) -> None:
    with_it, without, never_had = (
        float(taught(learner(machine, rate, dropout=acts), 1)[0][0])
        for rate, acts in ((0.5, True), (0.5, False), (0.0, True))
    )
    assert without == never_had
    assert with_it != without


def test_only_a_network_with_dropout_asks_for_its_keys(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Randomness] = []
    draw = Randomness.keys
    monkeypatch.setattr(Randomness, "keys", lambda rng: asked.append(rng) or draw(rng))
    for rate, count in ((0.0, 0), (0.5, 1)):
        taught(learner(machine, rate), 1)
        assert len(asked) == count


def stream(start: int = 0) -> Iterator[Batch]:
    places = torch.arange(6)
    update = start
    while True:
        yield Batch(update, (pictures() * 100 + 120).byte(), None, places)
        update += 1


def run(
    machine: Machine, made: Learner, should_stop: Callable[[], bool] = never
) -> tuple[bool, list[str]]:
    """A fit with two chores: what each of them saw."""
    seen: list[str] = []
    third = Chore(
        lambda now: now.is_last or now.is_each(3), lambda now: seen.append(f"third {now.update}")
    )
    second = Chore(
        lambda now: not now.is_last and now.is_each(2),
        lambda now: seen.append(f"second {now.update}"),
    )
    unasked = Chore(lambda now: now.is_each(None), lambda now: seen.append("never"))
    chores = [third, second, unasked]
    return fit(
        made,
        stream(),
        machine,
        codec=PixelCodec(),
        seed=0,
        stage=0,
        should_stop=should_stop,
        chores=chores,
    ), seen


def test_the_loop_does_the_chores_that_are_due_in_their_order(machine: Machine) -> None:
    is_complete, seen = run(machine, learner(machine, updates=6))
    assert is_complete
    assert seen == ["second 2", "third 3", "second 4", "third 6"]
    assert run(machine, learner(machine, updates=7))[1][-3:] == ["third 6", "second 6", "third 7"]


def test_the_loop_does_the_chores_of_the_last_update_before_it_leaves(machine: Machine) -> None:
    made = learner(machine)
    is_complete, seen = run(machine, made, should_stop=lambda: made.update == 4)
    assert not is_complete
    assert seen == ["second 2", "third 3", "third 4"]


def test_a_chore_sees_what_was_measured_and_why_the_loop_ends(machine: Machine) -> None:
    moments: list[Moment] = []
    made, other = learner(machine, updates=3), learner(machine, updates=3)
    fit(
        made,
        stream(),
        machine,
        codec=PixelCodec(),
        seed=0,
        stage=0,
        should_stop=never,
        chores=[Chore(always, moments.append)],
    )
    assert [(now.update, now.is_complete, now.is_stopped) for now in moments] == [
        (1, False, False),
        (2, False, False),
        (3, True, False),
    ]
    x = to_float(next(stream()).images)
    loss, norm = other.step(x, NOTHING, RngOf(0, 0, 0, torch.arange(6), other.settings.batch_size))
    assert moments[0].measured.tolist() == [float(loss), float(norm)]
    moments.clear()
    fit(
        other,
        stream(1),
        machine,
        codec=PixelCodec(),
        seed=0,
        stage=0,
        should_stop=lambda: True,
        chores=[Chore(always, moments.append)],
    )
    assert [(now.update, now.is_complete, now.is_stopped) for now in moments] == [(2, False, True)]


def test_the_loop_hands_over_the_batch_as_it_is_and_prepares_once(machine: Machine) -> None:
    """Pictures through the codec, labels, and randomness of this seed, stage and update."""
    steps: list[tuple[Tensor, Condition, RngOf]] = []
    prepared: list[str] = []

    class Noting(Learner):
        def choose_micro_batch(self, x: Tensor, condition: Condition, rng_of: RngOf) -> None:
            prepared.append(f"settle before {self.update + 1}")

        def build_ddp_buckets(self, x: Tensor, condition: Condition, rng_of: RngOf) -> None:
            prepared.append(f"rehearse before {self.update + 1}")

        def step(self, x: Tensor, condition: Condition, rng_of: RngOf) -> Tensor:
            steps.append((x, condition, rng_of))
            return super().step(x, condition, rng_of)

    student = Denoiser(network(num_classes=2), COSINE, "v")
    made = Noting(student, DenoisingObjective("snr"), settings(updates=5), machine)
    made.update = 2
    places, labels = torch.tensor([1, 3, 5, 7, 9, 11]), torch.tensor([0, 1, 0, 1, 0, 1])
    batches = (batch._replace(places=places, labels=labels) for batch in stream(2))
    fit(
        made,
        batches,
        machine,
        codec=PixelCodec(),
        seed=7,
        stage=3,
        should_stop=never,
        chores=[],
    )
    assert prepared == ["settle before 3", "rehearse before 3"]
    assert torch.equal(steps[0][0], to_float(next(stream()).images))
    for update, (_, condition, rng_of) in enumerate(steps, start=2):
        expected = RngOf(7, 3, update, places, 6)(slice(0, 6)).uniform()
        assert torch.equal(rng_of(slice(0, 6)).uniform(), expected)
        assert condition.label is not None
        assert torch.equal(condition.label, labels)
    assert len(steps) == 3


def test_a_training_that_is_complete_learns_no_more(machine: Machine) -> None:
    made = learner(machine, updates=1)
    assert run(machine, made) == (True, ["third 1"])
    assert run(machine, made) == (True, [])
    assert made.update == 1


def test_a_machine_that_need_not_be_deterministic_does_not_import_the_compiler() -> None:
    code = (
        "import sys; from vdiff.machine.machine import Machine; Machine('fp32', 'cpu');print([name "
        "for name in ('torch', 'torch._inductor', 'torch._dynamo') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "['torch']\n"
    )


def test_a_machine_is_deterministic_when_it_is_asked_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        made = learner(Machine("fp32", "cpu", deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        taught(made, 1)
    finally:
        Machine("fp32", "cpu")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_disk_that_is_full_under_the_curves_is_told_once(
    machine: Machine, tmp_path: Path
) -> None:
    """Here pytest makes an error of an exception that a thread prints."""
    pytest.importorskip("tensorboard")

    said: list[str] = []

    def follow() -> None:
        with machine.trackers(tmp_path / "curves", say=said.append) as trackers:
            for update in range(100):
                trackers.log({"loss": 1.0}, update)
                time.sleep(0.01)

    with full_disk(10):
        follow()
    [told] = said
    assert "the tracker `tensorboard` failed and is left out from here on" in told
    assert "File too large" in told


def test_updates_without_end_that_are_not_finite_end_the_training(
    machine: Machine, tmp_path: Path
) -> None:
    made = learner(machine, learning_rate=1e30, clip_norm=None, log_every=5, updates=40)
    progress, log = FitLines(lambda text: None), tmp_path / "log.jsonl"
    report = LossRecord("stage", made.settings, machine, progress, log, lambda values, step: None)
    tell = Chore(
        always, lambda now: report.add(now.update, now.measured, made.rate(now.update - 1))
    )
    with pytest.raises(DivergedError, match="10 updates in a row"):
        fit(
            made,
            stream(),
            machine,
            codec=PixelCodec(),
            seed=0,
            stage=0,
            should_stop=never,
            chores=[tell],
        )


def test_an_update_that_is_not_finite_leaves_all_but_the_count_as_it_was(machine: Machine) -> None:
    made = learner(machine, ema=0.9)
    taught(made, 3)
    before = flat(made.state())
    made.step(pictures() * float("nan"), NOTHING, rng_of(3))
    after = flat(made.state())
    assert made.update == 4
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    taught(made, 1)
    for name in ("weights/conv_in.weight", "average/conv_in.weight"):
        assert not torch.equal(flat(made.state())[name], before[name])


class Infinite(DenoisingObjective):
    """Its loss is infinite, and the gradient is not."""

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        return super().__call__(student, x, rng, condition) + float("inf")


def test_an_infinite_loss_with_a_finite_gradient_is_skipped_too(machine: Machine) -> None:
    made = learner(machine, ema=0.9)
    made._objective = Infinite("snr_plus_one")
    before = flat(made.state())
    loss, norm = made.step(pictures(), NOTHING, rng_of()).tolist()
    after = flat(made.state())
    assert loss == float("inf")
    assert math.isnan(norm)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_lines_of_updates_that_are_done_again_are_forgotten(
    machine: Machine, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        {"stage": stage, "update": update}
        for stage, update in (("a", 1), ("stage", 2), ("stage", 3), ("b", 9))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "st')
    LossRecord(
        "stage",
        settings(),
        machine,
        FitLines(lambda text: None),
        path,
        lambda values, step: None,
        first_update=2,
    )
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        lines[0],
        lines[1],
        lines[3],
    ]


def built(kind: str) -> Objective:
    section: Any = OBJECTIVES.section(kind)()
    task = Task("truncated_snr", updates=10, num_steps=4)
    if section.needs_teacher:
        task = replace(task, teacher=curved(COSINE), teacher_steps=2, null_label=2)
    objective: Objective = section.build(task)
    return objective


TWO_CLASSES = Condition(torch.tensor([0, 1, 1, 0, 1, 0]))


def beginner(dropout: float = 0.0) -> Denoiser:
    """A student that is told two classes, and one that stands for none."""
    return Denoiser(network(dropout, 3), COSINE, "v")


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_every_objective_gives_a_finite_loss_per_picture_that_reaches_the_network(
    kind: str,
) -> None:
    student = beginner()
    loss = built(kind)(student, pictures(), rng_of()(slice(6)), TWO_CLASSES)
    assert loss.shape == (6,)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert (loss > 0).all()
    loss.mean().backward()
    gradients = [weight.grad for weight in student.network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_every_objective_is_a_function_of_its_randomness(kind: str) -> None:
    student, objective = beginner(), built(kind)
    first, again, other = (
        objective(student, pictures(), rng_of(update)(slice(6)), TWO_CLASSES)
        for update in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_every_objective_gives_a_picture_the_same_loss_in_any_part_of_the_batch(kind: str) -> None:
    student, objective, x = beginner(0.3), built(kind), pictures()
    student.network.train()
    whole = objective(student, x, rng_of()(slice(6)), TWO_CLASSES)
    parts = torch.cat(
        [
            objective(student, x[part], rng_of()(part), TWO_CLASSES.of(part))
            for part in (slice(0, 1), slice(1, 6))
        ]
    )
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)


def test_a_way_of_learning_stands_in_the_section_that_can_use_it(tiny_run: TinyRun) -> None:
    with pytest.raises(UsageError, match="`progressive` learns from a teacher") as found:
        tiny_run.recipe("train.objective=progressive")
    assert found.value.where == "--set train.objective"
    with pytest.raises(UsageError, match="`denoising` learns from pictures alone"):
        tiny_run.recipe("distill.objective=denoising")


def test_the_model_folder_of_a_training_holds_the_average(tiny_run: TinyRun) -> None:
    averaged, plain = tiny_run.base(), tiny_run.base("train.ema=null", run="plain")
    assert averaged.hash != plain.hash
    loaded = checkpoint.load(tiny_run.folder().model("original"))
    assert loaded.card.updates == 5
    assert loaded.card.num_parameters == sum(
        w.numel() for w in loaded.denoiser.network.parameters()
    )


def test_randomness_of_a_part_is_the_batchs_own() -> None:
    whole, part = rng_of()(slice(6)), rng_of()(slice(2, 5))
    assert isinstance(whole, Randomness)
    assert torch.equal(whole.normal(3)[2:5], part.normal(3))
