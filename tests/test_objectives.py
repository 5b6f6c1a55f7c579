"""What every objective does: its times, its weights, its noise, its labels and its dropout,
in closed form.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest
import torch
from torch import Tensor, nn

from vdiff.chain.plan import Stage
from vdiff.chain.stage_parts import freeze, objective_of
from vdiff.config import Section
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.diffusion.prediction import Predicts, predict
from vdiff.diffusion.schedule import CosineSchedule
from vdiff.machine.machine import Machine
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard
from vdiff.objectives import OBJECTIVES
from vdiff.objectives.denoising import DenoisingObjective, DenoisingSection
from vdiff.objectives.objective import Objective, Task
from vdiff.objectives.progressive import ProgressiveObjective, ProgressiveSection
from vdiff.objectives.weighting import Weighting
from vdiff.randomness import Randomness
from vdiff.recipe.recipe import DistillSection, TrainSection
from vdiff.training.learner import RngOf

GRID = 16
NUM_STEPS, TEACHER_STEPS, UPDATES = 8, 4, 10
PICTURE, STUDENT, TEACHER = 0.75, -0.25, 0.5
"""What all pixels of the pictures, of the student's and of the teacher's predictions are,
where they are constant.
"""

NULL = 5
"""The class that stands for none, of the teacher."""

KOLMOGOROV = 1.95
"""Over the root of the number of draws: a larger distance from the distribution comes
once in a thousand tests.
"""


class Expected(NamedTuple):
    """What an objective is to do.

    num_times: its times are i / num_times; None for any time in (0, 1].
    is_stratified: one time in each of as many equal parts as the batch has pictures.
    learns_from: the value that the student is to predict.
    """

    num_times: int | None
    is_stratified: bool
    learns_from: float


EXPECTED: dict[str, Callable[[Any], Expected]] = {
    "denoising": lambda section: Expected(
        GRID if section.times == "grid" else None, section.stratified, PICTURE
    ),
    "guided": lambda section: Expected(None, section.stratified, TEACHER),
    "progressive": lambda section: Expected(NUM_STEPS, section.stratified, TEACHER),
}
"""For every kind, from its section. An objective without an entry here fails every test below."""

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    "snr": lambda snr: snr,
    "truncated_snr": lambda snr: torch.maximum(snr, torch.ones_like(snr)),
    "snr_plus_one": lambda snr: snr + 1,
    "min_snr": lambda snr: torch.minimum(snr, torch.full_like(snr, 5.0)),
}
"""On the squared error of x, as mathematics.md states them."""


class Constant(nn.Module):
    """Predicts the same for every pixel, and remembers what it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.heard: list[tuple[Tensor, Condition, Tensor | None]] = []

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        self.heard.append((z.detach(), condition, keys))
        return self.value.expand_as(z)


class Listening(CosineSchedule):
    """Remembers the times at which the network was called, in float64."""

    def __init__(self) -> None:
        super().__init__(GRID)
        self.times: list[Tensor] = []

    def time_input(self, t: Tensor) -> Tensor:
        self.times.append(t)
        return super().time_input(t)


class Asked(NamedTuple):
    """One call of an objective: what it gave, and what its student and its teacher
    (None for none) were asked.
    """

    loss: Tensor
    student: Denoiser
    teacher: Denoiser | None

    @property
    def t(self) -> Tensor:
        return heard_times(self.student)[0]

    @property
    def z(self) -> Tensor:
        return self.student.network.heard[0][0]

    def snr(self) -> Tensor:
        alpha, sigma = self.student.schedule.alpha_sigma(self.t)
        return (alpha / sigma) ** 2


def heard_times(denoiser: Denoiser) -> list[Tensor]:
    return denoiser.schedule.times


def constant(value: float, predicts: Predicts = "x") -> Denoiser:
    return Denoiser(Constant(value), Listening(), predicts)


def build(
    section: Any, weighting: Weighting, num_steps: int = NUM_STEPS
) -> tuple[Objective, Denoiser | None]:
    """The objective, and its teacher if it has one."""
    if not section.needs_teacher:
        return section.build(Task(weighting, UPDATES, num_steps)), None
    teacher = constant(TEACHER)
    task = Task(weighting, UPDATES, num_steps, teacher, TEACHER_STEPS, None, NULL)
    return section.build(task), teacher


def ask(
    section: Any,
    x: Tensor,
    rng: Randomness,
    *,
    weighting: Weighting = "constant",
    predicts: Predicts = "x",
    condition: Condition = NOTHING,
    training: bool = False,
    num_steps: int = NUM_STEPS,
) -> Asked:
    objective, teacher = build(section, weighting, num_steps)
    student = constant(STUDENT, predicts)
    student.network.train(training)
    if section.guidance_inside is not None and condition.label is None:
        condition = with_labels(len(x))
    return Asked(objective(student, x, rng, condition), student, teacher)


def with_labels(count: int) -> Condition:
    """What guidance cannot do without."""
    return Condition(torch.zeros(count, dtype=torch.int64))


def takes_steps(section: Any) -> bool:
    """Whether the teacher goes step by step along the student's grid."""
    return section.needs_teacher and not section.is_as_teacher


def pictures(count: int, *shape: int, seed: int | None = None) -> Tensor:
    """All pixels PICTURE, or random ones."""
    if seed is None:
        return torch.full((count, *(shape or (1, 1, 1))), PICTURE, dtype=torch.float64)
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, *(shape or (1, 2, 2)), dtype=torch.float64, generator=random) * 2 - 1


def rng(count: int, update: int = 0, places: Tensor | None = None) -> Randomness:
    return Randomness.for_update(
        3, 1, update, torch.arange(count) if places is None else places, count
    )


def kinds() -> list[str]:
    return list(OBJECTIVES)


def ways() -> Iterator[Any]:
    """Every kind of objective with every combination of its choices, as a section."""
    for kind in OBJECTIVES:
        section = OBJECTIVES.section(kind)
        fields = {
            name: choices(field.annotation)
            for name, field in section.model_fields.items()
            if name != "kind"
        }
        chosen = {name: values for name, values in fields.items() if values}
        for values in itertools.product(*chosen.values()):
            yield section(**dict(zip(chosen, values, strict=True)))


def choices(annotation: Any) -> tuple[Any, ...]:
    if annotation is bool:
        return (True, False)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def named(section: Section) -> str:
    return "-".join(str(value) for value in section.model_dump().values())


every_kind = pytest.mark.parametrize(
    "section", [OBJECTIVES.section(kind)() for kind in OBJECTIVES], ids=kinds()
)
every_way = pytest.mark.parametrize("section", list(ways()), ids=named)
every_weighting = pytest.mark.parametrize("weighting", get_args(Weighting))


def expected(section: Any) -> Expected:
    return EXPECTED[section.kind](section)


def test_every_objective_has_its_expectations() -> None:
    assert EXPECTED.keys() == set(OBJECTIVES)
    assert WEIGHTS.keys() == set(get_args(Weighting))


# Times


def times_of(section: Any, updates: int, count: int, num_steps: int = NUM_STEPS) -> Tensor:
    """[updates, count]"""
    return torch.stack(
        [
            ask(section, pictures(count), rng(count, u), num_steps=num_steps).t
            for u in range(updates)
        ]
    )


def distance_from_uniform(t: Tensor, num_times: int | None) -> float:
    """Kolmogorov's: the largest difference of the distribution functions,
    on (0, 1] or on the points i / num_times.
    """
    t = t.flatten().sort().values
    if num_times is not None:
        points = torch.arange(1, num_times + 1, dtype=torch.float64) / num_times
        return float((torch.searchsorted(t, points, right=True) / len(t) - points).abs().max())
    ranks = torch.arange(len(t) + 1, dtype=torch.float64) / len(t)
    return float(torch.maximum((t - ranks[:-1]).abs(), (t - ranks[1:]).abs()).max())


@every_way
def test_times_are_the_expected_points_and_no_others(section: Any) -> None:
    t, wanted = times_of(section, updates=8, count=256), expected(section)
    if wanted.num_times is None:
        assert 0 < t.min() < 1e-2
        assert 1 - 1e-2 < t.max() <= 1
        assert t.unique().numel() == t.numel()
    else:
        points = torch.arange(1, wanted.num_times + 1, dtype=torch.float64) / wanted.num_times
        assert torch.equal(t.unique(), points)


@every_way
def test_times_are_uniform_over_the_batch(section: Any) -> None:
    t, wanted = times_of(section, updates=8, count=2048), expected(section)
    assert distance_from_uniform(t, wanted.num_times) < KOLMOGOROV / math.sqrt(t.numel())


@every_way
def test_the_times_of_one_place_are_uniform_over_the_updates(section: Any) -> None:
    t, wanted = times_of(section, updates=120, count=3), expected(section)
    for place in range(3):
        assert distance_from_uniform(t[:, place], wanted.num_times) < KOLMOGOROV / math.sqrt(120)


@every_way
@pytest.mark.parametrize("count", [6, 64])
def test_stratified_times_lie_one_in_each_part_and_others_do_not(section: Any, count: int) -> None:
    wanted = expected(section)
    for t in times_of(section, updates=20, count=count):
        if wanted.num_times is None:
            counts = torch.bincount((t * count).ceil().long(), minlength=count + 1)[1:]
        else:
            counts = torch.bincount(
                (t * wanted.num_times).round().long(), minlength=wanted.num_times + 1
            )[1:]
        share = count / len(counts)
        is_even = bool((counts >= math.floor(share)).all() and (counts <= math.ceil(share)).all())
        if wanted.is_stratified:
            assert is_even, counts
        elif not is_even:
            break
    else:
        assert wanted.is_stratified, (
            "all of 20 batches were spread evenly, though nobody asked for it"
        )


def test_an_objective_that_is_made_by_hand_is_that_of_a_recipe_that_says_nothing() -> None:
    teacher = constant(TEACHER)
    made = [DenoisingObjective("snr"), ProgressiveObjective("snr", teacher, 8)]
    meant = [
        DenoisingSection().build(Task("snr", 1, 8)),
        ProgressiveSection().build(Task("snr", 1, 8, teacher, 2)),
    ]
    assert [vars(each) for each in made] == [vars(each) for each in meant]


@pytest.mark.parametrize("num_steps", [1, 3, 8, 512, 4096])
@pytest.mark.parametrize(
    "section", [section for section in ways() if takes_steps(section)], ids=named
)
def test_a_student_learns_at_the_times_of_its_own_grid_whatever_that_is(
    section: Any, num_steps: int
) -> None:
    t = times_of(section, updates=4, count=4096, num_steps=num_steps)
    assert torch.equal(t * num_steps, (t * num_steps).round())
    assert (t.min(), t.max()) == (1 / num_steps, 1)
    if section.stratified:
        assert (t.min(dim=1).values == 1 / num_steps).all()
        counts = torch.bincount((t * num_steps).round().long().flatten(), minlength=num_steps + 1)[
            1:
        ]
        assert 4 * (4096 // num_steps) <= counts.min()
        assert counts.max() <= 4 * -(-4096 // num_steps)


class Extreme(Randomness):
    """Draws the number `u` for every picture."""

    u = 0.0

    def uniform(self) -> Tensor:
        return torch.full_like(super().uniform(), self.u)

    def stratified(self) -> Tensor:
        return self.uniform()


@every_way
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_smallest_and_the_largest_number_give_times_too(section: Any, u: float) -> None:
    random = Extreme.for_update(3, 1, 0, torch.arange(4), 4)
    random.u = u
    asked, wanted = ask(section, pictures(4), random, weighting="snr"), expected(section)
    if wanted.num_times is None:
        assert (asked.t > 0).all()
        assert (asked.t <= 1).all()
    else:
        assert (asked.t == (1 / wanted.num_times if u == 0 else 1)).all()
    assert asked.loss.isfinite().all()


@every_way
def test_numbers_are_drawn_in_the_order_that_saved_runs_rely_on(section: Any) -> None:
    """First the times, then the noise, then the keys:
    else a run that goes on would see other numbers.
    """
    wanted, x = expected(section), pictures(6, 1, 2, 2, seed=0)
    asked, again = ask(section, x, rng(6), training=True), rng(6)
    u = again.stratified() if wanted.is_stratified else again.uniform()
    t = (
        1 - u
        if wanted.num_times is None
        else ((u * wanted.num_times).floor() + 1) / wanted.num_times
    )
    assert torch.equal(asked.t, t)
    alpha, sigma = scales(asked.student.schedule, t, x)
    torch.testing.assert_close(
        asked.z, alpha * x + sigma * again.normal(1, 2, 2), rtol=1e-12, atol=1e-12
    )
    assert torch.equal(asked.student.network.heard[0][2], again.keys())


# Weights


@every_way
@every_weighting
def test_the_loss_at_each_noise_level_is_the_weight_times_the_error_of_x(
    section: Any, weighting: Weighting
) -> None:
    asked = ask(section, pictures(64), rng(64), weighting=weighting)
    error = (STUDENT - expected(section).learns_from) ** 2
    torch.testing.assert_close(
        asked.loss, error * WEIGHTS[weighting](asked.snr()), rtol=1e-12, atol=0
    )
    assert asked.snr().min() < 0.1
    assert asked.snr().max() > 10


@every_kind
@pytest.mark.parametrize(
    ("weighting", "predicts"),
    [("constant", "x"), ("snr", "eps"), ("snr_plus_one", "v")],
    ids=["x", "eps", "v"],
)
def test_what_a_network_predicts_is_compared_with_the_truth_about_it(
    section: Any, weighting: Weighting, predicts: Predicts
) -> None:
    """The squared error of x, eps or v in the words of the network itself."""
    x = pictures(32, 1, 2, 2, seed=1)
    asked = ask(section, x, rng(32), weighting=weighting, predicts=predicts)
    target = x if asked.teacher is None else torch.full_like(x, TEACHER)
    truth = predict("x", target, asked.z, *scales(asked.student.schedule, asked.t, x))
    wanted = (STUDENT - getattr(truth, predicts)).square().mean((1, 2, 3))
    torch.testing.assert_close(asked.loss, wanted, rtol=1e-6, atol=0)


@every_kind
def test_an_error_counts_as_the_mean_over_all_pixels_and_channels(section: Any) -> None:
    small, large = (
        ask(section, pictures(8, *shape), rng(8)).loss for shape in ((1, 1, 1), (3, 4, 5))
    )
    torch.testing.assert_close(small, large, rtol=1e-12, atol=0)


@every_way
def test_only_the_student_learns_and_its_gradient_is_that_of_the_weighted_error(
    section: Any,
) -> None:
    asked = ask(section, pictures(16), rng(16), weighting="snr_plus_one")
    asked.loss.sum().backward()
    wanted = 2 * (STUDENT - expected(section).learns_from) * (asked.snr() + 1).sum()
    torch.testing.assert_close(asked.student.network.value.grad, wanted, rtol=1e-12, atol=0)
    assert asked.teacher is None or asked.teacher.network.value.grad is None


def stage_of(section: Any, weighting: Weighting) -> Stage:
    kind = DistillSection if section.needs_teacher else TrainSection
    # one stage alone: guidance is learned once
    more = {"stages": [{"factor": 2}]} if section.needs_teacher else {}
    settings = kind(updates=1, weighting=weighting, objective=section, **more)
    return Stage(1, "stage", NUM_STEPS * TEACHER_STEPS, NUM_STEPS, settings)


def checkpoint_of(denoiser: Denoiser) -> Checkpoint:
    card = ModelCard(
        name="teacher",
        stage=0,
        num_steps=NUM_STEPS * TEACHER_STEPS,
        times=None,
        updates=1,
        shape=(1, 1, 1),
        num_classes=0,
        num_parameters=1,
        network="constant",
        diffusion={},
        recipe="",
    )
    return Checkpoint(Path("teacher"), card, denoiser)


@every_way
@every_weighting
def test_a_stage_learns_with_the_objective_and_the_weighting_of_its_settings(
    section: Any, weighting: Weighting
) -> None:
    teacher = (
        freeze(checkpoint_of(constant(TEACHER)), Machine("fp32", "cpu"))
        if section.needs_teacher
        else None
    )
    guide = teacher.denoiser if teacher else None
    objective = objective_of(stage_of(section, weighting), guide, None, NULL)
    student, x, random = constant(STUDENT), pictures(64).float(), rng(64)
    loss = objective(student, x, random, with_labels(64) if section.is_as_teacher else NOTHING)
    alpha, sigma = student.schedule.alpha_sigma(heard_times(student)[0])
    error = (STUDENT - expected(section).learns_from) ** 2
    torch.testing.assert_close(
        loss.double(), error * WEIGHTS[weighting]((alpha / sigma) ** 2), rtol=1e-4, atol=0
    )
    assert torch.equal(heard_times(student)[0], ask(section, x, rng(64)).t)
    if teacher is not None:
        calls = TEACHER_STEPS if takes_steps(section) else 1
        assert len(teacher.denoiser.network.heard) == calls
        assert not teacher.denoiser.network.training
        assert not any(weight.requires_grad for weight in teacher.denoiser.network.parameters())


# Noise


@every_way
def test_noise_is_standard_normal_and_depends_on_neither_time_nor_picture(section: Any) -> None:
    count, shape = 4096, (1, 4, 4)
    x = pictures(count, *shape, seed=2)
    asked = ask(section, x, rng(count))
    alpha, sigma = scales(asked.student.schedule, asked.t, x)
    eps = (asked.z - alpha * x) / sigma
    n = eps.numel()
    assert abs(float(eps.mean())) < 4 / math.sqrt(n)
    assert abs(float(eps.var()) - 1) < 4 * math.sqrt(2 / n)
    normal = 0.5 * (1 + torch.special.erf(eps.flatten() / math.sqrt(2)))
    assert distance_from_uniform(normal, None) < KOLMOGOROV / math.sqrt(n)
    for other in (asked.t, asked.t.square(), x.mean((1, 2, 3))):
        for of_eps in (eps.mean((1, 2, 3)), eps.square().mean((1, 2, 3)), eps[:, 0, 0, 0]):
            assert abs(correlation(other, of_eps)) < 4 / math.sqrt(count)
    assert abs(correlation(x.flatten(), eps.flatten())) < 4 / math.sqrt(n)
    assert abs(correlation(eps[:-1].flatten(), eps[1:].flatten())) < 4 / math.sqrt(n)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@every_kind
def test_every_picture_and_every_update_has_noise_of_its_own(section: Any) -> None:
    seen = [ask(section, pictures(4, 1, 2, 2, seed=0) * 0, rng(4, update)).z for update in range(3)]
    rows = torch.cat(seen).flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert ((rows @ rows.T).fill_diagonal_(0).abs() < 0.999).all()


# The teacher


@pytest.mark.parametrize(
    "section", [section for section in ways() if takes_steps(section)], ids=named
)
def test_the_teacher_begins_where_the_student_stands_and_takes_its_own_steps(section: Any) -> None:
    asked = ask(section, pictures(64, 1, 2, 2, seed=3), rng(64))
    assert asked.teacher is not None
    times, fine = heard_times(asked.teacher), NUM_STEPS * TEACHER_STEPS
    assert len(times) == len(asked.teacher.network.heard) == TEACHER_STEPS
    assert torch.equal(asked.teacher.network.heard[0][0], asked.z)
    for k, t in enumerate(times):
        torch.testing.assert_close(t, asked.t - k / fine, rtol=0, atol=1e-15)


# Labels and dropout


@every_way
@pytest.mark.parametrize("training", [True, False])
def test_labels_reach_the_student_and_its_teacher_and_keys_only_a_student_in_training(
    section: Any, training: bool
) -> None:
    condition = Condition(torch.tensor([4, 0, 2, 2, 1, 3]))
    asked = ask(section, pictures(6), rng(6), condition=condition, training=training)
    ((_, heard, keys),) = asked.student.network.heard
    assert heard is condition
    assert (keys is not None) == training
    for _, heard, keys in asked.teacher.network.heard if asked.teacher else ():
        if takes_steps(section):
            assert heard is condition
        else:  # with its class and without, in one batch
            assert heard.label.tolist() == [4, 0, 2, 2, 1, 3, *([NULL] * 6)]
        assert keys is None


@pytest.mark.parametrize(
    "section", [section for section in ways() if not section.is_as_teacher], ids=named
)
def test_without_labels_nobody_hears_of_any(section: Any) -> None:
    asked = ask(section, pictures(6), rng(6))
    for denoiser in (asked.student, asked.teacher):
        assert denoiser is None or all(heard == NOTHING for _, heard, _ in denoiser.network.heard)


@every_kind
def test_every_picture_update_stage_and_seed_has_a_dropout_key_of_its_own(section: Any) -> None:
    seen = []
    for seed, stage, update in ((3, 1, 0), (3, 1, 1), (3, 2, 0), (4, 1, 0)):
        random = RngOf(seed, stage, update, torch.arange(6), 6)(slice(0, 6))
        seen.append(ask(section, pictures(6), random, training=True).student.network.heard[0][2])
    keys = torch.cat(seen)
    assert keys.unique().numel() == 24
    assert (keys >= 0).all()
    again = ask(
        section, pictures(3), RngOf(3, 1, 0, torch.arange(6), 6)(slice(2, 5)), training=True
    )
    assert torch.equal(again.student.network.heard[0][2], seen[0][2:5])


def test_by_default_a_base_is_trained_with_dropout_and_a_student_without() -> None:
    assert TrainSection(updates=1).dropout
    assert not DistillSection(updates=1).dropout
    assert (TrainSection(updates=1).weighting, DistillSection(updates=1).weighting) == (
        "snr_plus_one",
        "truncated_snr",
    )
