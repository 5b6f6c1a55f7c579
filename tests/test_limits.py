"""What a schedule cannot serve is refused, and whatever is accepted gives
finite numbers at every step.
"""

from itertools import pairwise
from math import acos, ceil, cos, pi
from typing import Any, get_args

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.test_checkpoint import card, denoiser
from tests.tiny import TinyRun
from tests.toys import curved, noise
from vdiff.config import Section
from vdiff.diffusion.limits import check_chain, check_prediction
from vdiff.diffusion.prediction import Predicts
from vdiff.diffusion.process import DiffusionSection
from vdiff.diffusion.schedule import BetaSchedule, CosineSchedule, Schedule
from vdiff.errors import ModelFileError, UsageError
from vdiff.model_folder import checkpoint
from vdiff.objectives.objective import add_noise
from vdiff.objectives.progressive import progressive_target, rho_weights
from vdiff.objectives.weighting import Weighting, weighted_loss
from vdiff.randomness import Randomness
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim

ZERO_SNR = {"kind": "betas", "table": [0.1, 0.3, 0.5, 1.0]}

BETA = st.floats(1e-8, 1) | st.sampled_from([1e-8, 1e-4, 0.02, 0.5, 0.999, 1 - 1e-16, 1.0])
GRID = st.integers(1, 3000) | st.just(1 << 16)
SCHEDULE = st.one_of(
    st.fixed_dictionaries({"kind": st.just("cosine"), "grid": GRID}),
    st.fixed_dictionaries(
        {
            "kind": st.just("cosine_logsnr"),
            "grid": GRID,
            "smallest": st.floats(-40, -1e-300),
            "largest": st.floats(1e-300, 40),
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("betas"),
            "table": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
            "grid": GRID,
            "first": st.floats(1e-8, 1, exclude_max=True),
            "last": st.floats(1e-8, 1, exclude_max=True),
        }
    ),
    st.fixed_dictionaries(
        {"kind": st.just("betas"), "table": st.lists(BETA, min_size=1, max_size=40)}
    ),
)


def opened(schedule: Any, predicts: str) -> Schedule | None:
    """What a recipe makes of it; None where it is refused."""
    try:
        section = DiffusionSection.model_validate({"schedule": schedule, "predicts": predicts})
    except ValueError:
        return None
    built: Schedule = section.schedule.build()
    return built


def every_number(
    schedule: Schedule, predicts: str, num_steps: int, teacher_steps: int, dtype: torch.dtype
) -> None:
    """Weights, targets, losses and samples are finite at each of a student's steps."""
    model, step = curved(schedule, predicts), torch.arange(1, num_steps + 1).double()
    times = [
        (step * teacher_steps - k) / (num_steps * teacher_steps) for k in range(teacher_steps + 1)
    ]
    weights = torch.stack(rho_weights(schedule, times))
    assert ((weights >= 0) & (weights <= 1)).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(num_steps).double(), rtol=1e-9, atol=0)
    alpha, sigma = schedule.alpha_sigma(step / num_steps)
    rng = Randomness.for_images(torch.arange(num_steps))
    z = add_noise(noise(num_steps).to(dtype), alpha, sigma, rng)
    target = progressive_target(model, z, step, num_steps, teacher_steps)
    assert target.isfinite().all()
    pred = model(z, step / num_steps)
    assert all(part.isfinite().all() for part in pred)
    for weighting in get_args(Weighting):
        assert weighted_loss(weighting, pred.x, target, alpha, sigma).isfinite().all(), weighting
    for sampler in (Ddim(), Ddim(eta=1.0, clip=1.0), Ancestral(0.0), Ancestral(1.0)):
        draws = Randomness.for_images(torch.arange(2))
        assert sampler(model, noise(2).to(dtype), num_steps, draws).isfinite().all(), str(sampler)


@given(
    SCHEDULE,
    st.sampled_from(get_args(Predicts)),
    st.integers(1, 48),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.float64]),
)
@example({"kind": "cosine", "grid": 1}, "v", 31, 2, torch.float32)
@example({"kind": "cosine", "grid": 1}, "eps", 32, 2, torch.float32)
@example(ZERO_SNR, "v", 7, 3, torch.float32)
@example({"kind": "betas", "table": [1.0]}, "x", 5, 2, torch.float32)
@example({"kind": "betas", "table": [0.999] * 40}, "v", 40, 2, torch.float32)
@example({"kind": "betas", "table": [1 - 1e-8] * 20}, "eps", 20, 1, torch.float32)
@settings(deadline=None, max_examples=80)
def test_whatever_is_accepted_is_finite_at_every_step_and_the_rest_is_refused(
    section: Any, predicts: str, num_steps: int, teacher_steps: int, dtype: torch.dtype
) -> None:
    schedule = opened(section, predicts)
    assume(schedule is not None)
    assert schedule is not None
    try:
        check_chain(schedule, (num_steps * teacher_steps, num_steps))
    except ValueError:
        step = torch.arange(1, num_steps + 1).double()
        assert (
            not torch.stack(rho_weights(schedule, [step / num_steps, (step - 1) / num_steps]))
            .isfinite()
            .all()
        )
        return
    every_number(schedule, predicts, num_steps, teacher_steps, dtype)


@given(SCHEDULE)
@settings(deadline=None, max_examples=200)
def test_only_what_leaves_no_signal_is_refused_within_the_limits_of_the_fields(
    section: Any,
) -> None:
    """Of eps more is refused than of v, and of betas those whose product
    vanishes before the last.
    """
    if opened(section, "v") is not None:
        alpha = opened(section, "x").alpha_sigma(torch.ones(()))[0]  # type: ignore[union-attr]
        assert (opened(section, "eps") is None) == bool(alpha < 2.0**-50)
        return
    assert section["kind"] == "betas"
    product, survives = 1.0, True
    for beta in section["table"][:-1] if isinstance(section["table"], list) else ():
        product *= 1 - beta
        survives = survives and product >= 1e-300
    assert not survives or isinstance(section["table"], str)


@pytest.mark.parametrize(
    ("table", "place", "reason"),
    [
        ("[]", "diffusion.schedule.table", "a list of at least 1"),
        ("[0, 0.1]", "diffusion.schedule.table.0", "at least 1e-08, is 0"),
        ("[0.1, 0.0, 0.1]", "diffusion.schedule.table.1", "at least 1e-08, is 0.0"),
        ("[0.1, -0.1]", "diffusion.schedule.table.1", "at least 1e-08, is -0.1"),
        ("[0.1, 1.5]", "diffusion.schedule.table.1", "at most 1, is 1.5"),
        ("[0.1, yes, 0.2]", "diffusion.schedule.table.1", "should be a number"),
        ("[0.1, 1, 0.2]", "diffusion.schedule", "left after 2 of 3 betas"),
        ("[1, 1]", "diffusion.schedule", "left after 1 of 2 betas"),
        ("[" + "0.999, " * 200 + "0.5]", "diffusion.schedule", "left after 101 of 201 betas"),
        ("linear, last: 0.9, grid: 5000", "diffusion.schedule", "of 5000 betas"),
        ("linear, first: 1.0e-9", "diffusion.schedule.first", "at least 1e-08"),
    ],
)
def test_betas_that_are_none_are_refused_by_their_place(
    tiny_run: TinyRun, table: str, place: str, reason: str
) -> None:
    with pytest.raises(UsageError) as found:
        tiny_run.recipe(f"diffusion.schedule={{kind: betas, table: {table}}}")
    assert found.value.exit_code == 2
    assert f"`{place}`: " in found.value.problem
    assert reason in found.value.problem


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_betas_that_are_no_numbers_are_refused_where_no_recipe_was_read(bad: float) -> None:
    for table in ([bad, 0.1], [0.1, bad]):
        assert opened({"kind": "betas", "table": table}, "v") is None


def test_a_model_folder_whose_betas_are_none_is_refused(tmp_path: Any) -> None:
    bad = {"schedule": {"kind": "betas", "table": [0.1, 1.5]}, "predicts": "v"}
    checkpoint.save(tmp_path / "model", card(diffusion=bad), denoiser())
    with pytest.raises(ModelFileError, match="or cannot draw from"):
        checkpoint.load(tmp_path / "model")


def test_zero_terminal_snr_is_right_with_v_and_x_and_refused_with_eps(tiny_run: TinyRun) -> None:
    told = f"diffusion={{schedule: {{kind: betas, table: {ZERO_SNR['table']}}}, predicts: %s}}"
    for predicts in ("v", "x"):
        built: Section = tiny_run.recipe(
            told % predicts, "distill.start_steps=4"
        ).diffusion.schedule
        assert float(built.build().alpha_sigma(torch.ones(()))[0]) == 0  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="where no signal is left") as found:
        tiny_run.recipe(told % "eps", "distill.start_steps=4")
    assert "`predicts: v` and `predicts: x` can" in found.value.problem


def test_hardly_any_signal_is_too_little_for_eps() -> None:
    enough, faint = (
        BetaSchedule(torch.tensor([1 - 1e-15, 1 - left], dtype=torch.float64))
        for left in (1e-14, 1e-16)
    )
    check_prediction(enough, "eps")
    with pytest.raises(ValueError, match=r"hardly any signal is left \(alpha is 3e-16\)"):
        check_prediction(faint, "eps")
    check_prediction(faint, "v")


@pytest.mark.parametrize("grid", [1, 7, 32, 64, 1024])
def test_a_cosine_student_has_at_most_31_times_the_grids_steps(grid: int) -> None:
    """The last beta of 0.999 leaves 0.001 of alpha^2, which the free cosine reaches at about t = 1
    - 0.0316 / grid.
    """
    schedule = CosineSchedule(grid)
    angle = acos(0.001**0.5 * cos((1 - 1 / grid + 0.008) / 1.008 * pi / 2))
    flat = angle * 2 / pi * 1.008 - 0.008
    with pytest.raises(ValueError) as found:
        check_chain(schedule, (128 * grid, 64 * grid))
    most = int(str(found.value).rpartition("at most ")[2].removesuffix(" steps").replace(",", ""))
    assert most == ceil(1 / (1 - flat)) - 1
    assert grid == 1 or most == pytest.approx(31.62 * grid, rel=0.02)
    check_chain(schedule, (2 * most, most))
    step = torch.arange(1, most + 1).double()
    assert progressive_target(curved(schedule), noise(most), step, most, 2).isfinite().all()
    with pytest.raises(ValueError):
        check_chain(schedule, (2 * most + 2, most + 1))
    step = torch.tensor([most + 1.0]).double()
    assert not progressive_target(curved(schedule), noise(1), step, most + 1, 2).isfinite().all()


def test_the_base_may_have_more_steps_than_its_students() -> None:
    """Two of its steps may stand at one noise level: the later one alone makes the target then."""
    schedule, most = CosineSchedule(32), 1011
    check_chain(schedule, (4 * most, most, most // 3))
    times = [torch.tensor([(4 * most - k) / (4 * most)]).double() for k in range(5)]
    assert torch.stack(rho_weights(schedule, times)).flatten().tolist()[:1] == [0]
    check_chain(schedule, (100_000,))


def test_too_many_steps_are_a_mistake_of_the_recipe_with_the_largest_number(
    tiny_run: TinyRun,
) -> None:
    tiny_run.recipe("distill.start_steps=2048")
    with pytest.raises(UsageError) as found:
        tiny_run.recipe("distill.start_steps=8192")
    assert found.value.problem.startswith(
        "`distill`: a student of 4,096 steps would have no target"
    )
    assert "at most 2,024 steps" in found.value.problem


def test_a_schedule_that_hardly_changes_has_no_targets() -> None:
    flat = opened({"kind": "cosine_logsnr", "smallest": -1e-20, "largest": 1e-20}, "v")
    assert flat is not None
    with pytest.raises(ValueError, match="at most 1 steps"):
        check_chain(flat, (16, 8))


def test_a_teacher_from_elsewhere_is_asked_for_its_own_schedule(tiny_run: TinyRun) -> None:
    """The recipe's schedule has targets for these steps, and the teacher's has not."""
    tiny_run.base(
        "diffusion.schedule.grid=4",
        "distill.start_steps=512",
        "distill.end_steps=512",
        run="elsewhere",
    )
    teacher = str(tiny_run.folder("elsewhere").model("original"))
    with pytest.raises(UsageError, match="a student of 256 steps would have no target") as found:
        tiny_run.chain("distill.start_steps=512", "distill.end_steps=256").distill(source=teacher)
    assert f"with the schedule of `{teacher}`" in found.value.problem


def test_times_are_looked_at_at_both_ends_where_there_are_very_many() -> None:
    seen = []

    class Counting(CosineSchedule):
        def powers(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(t)
            return super().powers(t)

    check_chain(Counting(1 << 16), (1 << 21, 1 << 20))
    assert max(times.numel() for times in seen) == 1 << 16
    assert seen[-1].min() == 1 / (1 << 20)
    assert seen[-1].max() == 1
    assert all(before < after for before, after in pairwise(seen[-1].tolist()))
