"""The contracts, over every kind of every table, and each theorem seen broken by a
kind that breaks it alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.test_every_dataset import EXPECTED as DATA
from tests.test_every_dataset import folder
from tests.test_every_metric import EXPECTED as OPTIONS
from tests.test_every_network import EXPECTED as SMALL
from tests.test_every_network import IMPORTED
from vdiff import conformance
from vdiff.config import KindSection, Registry, shapes_weights
from vdiff.conformance import BrokenContractError
from vdiff.data import DATASETS
from vdiff.diffusion import SCHEDULES
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import CosineSchedule, CosineSection, Schedule
from vdiff.metrics import METRICS
from vdiff.metrics.agreement import AgreementSection, PixelAgreement
from vdiff.metrics.metric import Means, Pictures, Reference, named
from vdiff.metrics.sliced import SlicedSection
from vdiff.metrics.table import Value
from vdiff.networks import NETWORKS
from vdiff.objectives import OBJECTIVES
from vdiff.objectives.denoising import DenoisingSection
from vdiff.objectives.objective import Objective, ObjectiveSection, Task
from vdiff.randomness import Randomness
from vdiff.samplers import SAMPLERS
from vdiff.samplers.ddim import Ddim, DdimSection
from vdiff.samplers.sampler import Point, Predict, Sampler

TABLES: tuple[Registry[Any], ...] = (SCHEDULES, SAMPLERS, OBJECTIVES)
"""Of kinds that need no options."""


@pytest.mark.parametrize(("table", "kind"), [(table, kind) for table in TABLES for kind in table])
def test_a_kind_keeps_its_contract(table: Registry[Any], kind: str) -> None:
    conformance.check(table.section(kind)())


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind not in IMPORTED])
@pytest.mark.parametrize("classes", [None, 4])
def test_a_network_keeps_its_contract(kind: str, classes: int | None) -> None:
    section: Any = NETWORKS.section(kind)
    conformance.check(section(**SMALL.get(kind, {}), num_classes=classes))


@pytest.mark.parametrize("kind", list(METRICS))
def test_a_metric_keeps_its_contract(kind: str) -> None:
    if "small" in OPTIONS.get(kind, ("",))[0]:
        pytest.importorskip("torch_fidelity", reason="the extra [eval] is not installed")
        import tests.test_fidelity  # noqa: F401 - registers the network `small`
    (section,) = named([kind + OPTIONS.get(kind, ("",))[0]])
    conformance.check_metric(section, Means(), channels=3)


@pytest.mark.parametrize("kind", list(DATASETS))
def test_data_keep_their_contract(kind: str, tmp_path: Path) -> None:
    conformance.check(DATA[kind](folder(tmp_path / "pictures"), tmp_path / "data", 3))


def test_what_has_no_contract_is_not_checked() -> None:
    class Other(KindSection):
        """Nothing."""

        kind: Literal["other"] = shapes_weights("other")

    with pytest.raises(TypeError, match="no section of a part"):
        conformance.check(Other())


# Broken samplers


class BrokenSampler(Ddim):
    """DDIM, but for what a test changes."""

    def __init__(self, changes: Mapping[str, Any]) -> None:
        super().__init__()
        for name, value in changes.items():
            setattr(self, name, value.__get__(self) if callable(value) else value)

    def __str__(self) -> str:
        return str(self.__dict__.get("said", super().__str__()))

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        return self.__dict__.get("moved", super().step)(here, s, before, predict, rng)


def keeps(self: Any, here: Point, s: float, *others: Any) -> Tensor:
    last, self.last = self.__dict__.get("last", 0), here.z.mean()
    found: Tensor = Ddim.step(self, here, s, *others)
    return found + (last if s > 0 else 0)


def in_place(self: Any, here: Point, s: float, *others: Any) -> Tensor:
    found = Ddim.step(self, here, s, *others)
    here.z.mul_(0.5)
    return found


def together(self: Any, here: Point, s: float, *others: Any) -> Tensor:
    found = Ddim.step(self, here, s, *others)
    return found if s == 0 else found - found.mean()


def twice(self: Any, here: Point, s: float, before: Any, predict: Predict, rng: Any) -> Tensor:
    predict(here.z, here.t)
    return Ddim.step(self, here, s, before, predict, rng)


SAMPLERS_BROKEN: dict[str, dict[str, Any]] = {
    "3 times for 4 steps": {"times": lambda self, n, *_: [1.0, 0.5, 0.0]},
    "not from 1 to 0": {"times": lambda self, n, *_: [1 - i / (n + 1) for i in range(n + 1)]},
    "do not fall": {"times": lambda self, n, *_: [1.0, *([0.5] * (n - 1)), 0.0]},
    "have the shape": {"moved": lambda self, here, *_: here.z[:, :, :2]},
    "the pictures are torch.float32": {"moved": lambda self, here, *_: here.prediction.x.float()},
    "do not end at the picture": {"moved": lambda self, here, *_: here.prediction.x * 1.01},
    "changed in place": {"moved": in_place},
    "other bits after another batch": {"moved": keeps},
    "depends on the other pictures": {"moved": together},
    "8 network calls, and it says 4": {"moved": twice},
    "does not begin with": {"said": "other"},
}


@pytest.mark.parametrize("broken", SAMPLERS_BROKEN)
def test_a_broken_sampler_is_told_of(broken: str) -> None:
    class Broken(DdimSection):
        def build(self) -> Sampler:
            return BrokenSampler(SAMPLERS_BROKEN[broken])

    with pytest.raises(BrokenContractError, match=broken):
        conformance.check_sampler(Broken())


# Broken schedules


COSINE = torch.linspace(1, -1, 65, dtype=torch.float64)

SCHEDULES_BROKEN: dict[str, Any] = {
    "not float64": lambda a, s: (a.float(), s.float()),
    "has not the shape": lambda a, s: (a[:-1], s[:-1]),
    "is not 1": lambda a, s: (a * 0.99, s),
    "does not fall": lambda a, s: (a.flip(0), s.flip(0)),
    "is negative": lambda a, s: (COSINE, (1 - COSINE**2).sqrt()),
}


@pytest.mark.parametrize("broken", SCHEDULES_BROKEN)
def test_a_broken_schedule_is_told_of(broken: str) -> None:
    class Bad(CosineSchedule):
        def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = SCHEDULES_BROKEN[broken](*super().alpha_sigma(t))
            return found

    class Broken(CosineSection):
        def build(self) -> Schedule:
            return Bad(1024)

    with pytest.raises(BrokenContractError, match=broken):
        conformance.check_schedule(Broken())


# Broken objectives


class Counts(Objective):
    """Its loss grows with the updates; what a test changes is broken."""

    def __init__(self, broken: str) -> None:
        self.broken, self.done, self.asked = broken, torch.zeros(()), 0

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        t = 1 - rng.stratified()
        losses = student(x, t, condition, rng).x.square().mean((1, 2, 3)) + self.done
        self.asked += 1
        changed = {
            "have the shape": lambda: losses.mean(),
            "the losses are torch.float64": lambda: losses.double(),
            "NaN or Inf": lambda: losses / 0,
            "gives another loss": lambda: losses + self.asked,
            "no finite gradient": lambda: losses.detach().requires_grad_(True),
        }
        return changed.get(self.broken, lambda: losses)()

    def follow(self, update: int, is_done: Tensor) -> None:
        self.done = self.done + 1

    def state(self) -> dict[str, Tensor]:
        if self.broken == "other names":
            return {f"done_{int(self.done)}": self.done}
        return {} if self.broken == "gone on from its state" else {"done": self.done}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if self.broken != "does not take back" and state:
            self.done = next(iter(state.values())).clone()
        if self.broken == "other names":
            self.done = self.done + 1


OBJECTIVES_BROKEN = (
    "have the shape",
    "the losses are torch.float64",
    "NaN or Inf",
    "gives another loss",
    "no finite gradient",
    "other names",
    "does not take back",
    "gone on from its state",
)


def counting(broken: str) -> ObjectiveSection:
    class Broken(DenoisingSection):
        def build(self, task: Task) -> Objective:
            return Counts(broken)

    return Broken()


def test_an_objective_with_a_state_keeps_the_contract() -> None:
    conformance.check_objective(counting(""))


@pytest.mark.parametrize("broken", OBJECTIVES_BROKEN)
def test_a_broken_objective_is_told_of(broken: str) -> None:
    with pytest.raises(BrokenContractError, match=broken):
        conformance.check_objective(counting(broken))


# Broken metrics, data and networks


METRICS_BROKEN: dict[str, Any] = {
    "gives the numbers": lambda found, calls: {**found, "more": 1.0},
    "of pictures that differ is inf": lambda found, calls: {**found, "psnr": float("inf")},
    "more than the most": lambda found, calls: {**found, "ssim": 1.5},
    "give other numbers": lambda found, calls: {**found, "mse": found["mse"] + calls},
    "order of the pairs": lambda found, calls: {**found, "mse": found["mse"] + (calls == 3)},
    "whose partner": lambda found, calls: dict.fromkeys(found, 0.5),
    "a number that is none": lambda found, calls: {
        **found,
        "psnr": found["psnr"] if found["mse"] else float("nan"),
    },
}


@pytest.mark.parametrize("broken", METRICS_BROKEN)
def test_a_broken_metric_of_pairs_is_told_of(broken: str) -> None:
    class Bad(PixelAgreement):
        calls = 0

        def compare(self, own: Pictures, other: Pictures) -> dict[str, float]:
            self.calls += 1
            found: dict[str, float] = METRICS_BROKEN[broken](
                super().compare(own, other), self.calls
            )
            return found

    class Broken(AgreementSection):
        measures: ClassVar[Any] = AgreementSection.measures

        def build(self, means: Means) -> PixelAgreement:
            return Bad()

    with pytest.raises(BrokenContractError, match=broken):
        conformance.check_metric(Broken())


@pytest.mark.parametrize(
    ("broken", "values"),
    [
        ("its number is nan", [Value.model_construct(value=float("nan"))]),
        ("give another number", [Value(value=1.0), Value(value=2.0)]),
        ("outside of its interval", [Value(value=1.0, low=2.0, high=3.0)] * 2),
    ],
)
def test_a_broken_metric_is_told_of(broken: str, values: list[Value]) -> None:
    given = iter(values)

    class Bad:
        features, least = "nothing", 1

        def value(self, samples: Pictures) -> Value:
            return next(given)

    class Broken(SlicedSection):
        def build(self, against: Reference) -> Bad:
            return Bad()

    with pytest.raises(BrokenContractError, match=broken):
        conformance.check_metric(Broken())


DATA_BROKEN: dict[str, dict[str, Any]] = {
    "the section says": {"shape": (3, 9, 9)},
    "no pictures": {"num_images": 0},
    "is no SHA-256": {"fingerprint": "abc"},
    "is float64": {"of": lambda pixels, label: (pixels.astype(np.float64), label)},
    r"has the shape \(3, 8, 7\)": {"of": lambda pixels, label: (pixels[:, :, :7], label)},
    "has the class 3 of 3": {"of": lambda pixels, label: (pixels, 3)},
    "another when it is opened again": {
        "of": lambda pixels, label: (RNG.integers(0, 256, (3, 8, 8), np.uint8), label)
    },
}
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("broken", DATA_BROKEN)
def test_broken_data_are_told_of(broken: str, tmp_path: Path) -> None:
    section = DATA["lmdb"](folder(tmp_path / "pictures"), tmp_path / "data", 3)

    class Bad:
        num_images, shape, num_classes, num_workers = 7, (3, 8, 8), 3, 0
        fingerprint = "ab" * 32

        def __getitem__(self, index: int) -> Any:
            pixels = np.full((3, 8, 8), index, np.uint8)
            return DATA_BROKEN[broken].get("of", lambda *found: found)(pixels, index % 3)

    for name, value in DATA_BROKEN[broken].items():
        setattr(Bad, name, value)

    class Broken(type(section)):  # type: ignore[misc]
        def open(self) -> Any:
            return Bad()

    with pytest.raises(BrokenContractError, match=broken):
        conformance.check_dataset(Broken(**dict(section)))


NETWORKS_BROKEN: dict[str, Any] = {
    "output has the shape": lambda out, calls: out[:, :1],
    "output is torch.float64": lambda out, calls: out.double(),
    "holds NaN or Inf": lambda out, calls: out / 0,
    "gives other bits": lambda out, calls: out + calls,
    "depends on the other pictures": lambda out, calls: out - out.mean(),
    "other names": lambda out, calls: out,
    "another config": lambda out, calls: out,
}


@pytest.mark.parametrize("broken", NETWORKS_BROKEN)
def test_a_broken_network_is_told_of(broken: str) -> None:
    section: Any = NETWORKS.section("unet")

    def spoiled(network: nn.Module) -> nn.Module:
        calls = iter(range(1000))
        network.register_forward_hook(
            lambda module, given, out: NETWORKS_BROKEN[broken](out, next(calls))
        )
        return network

    class Broken(section):  # type: ignore[misc, valid-type]
        def build(self, image_size: int, channels: int) -> nn.Module:
            return spoiled(super().build(image_size, channels))

        @classmethod
        def restore(cls, config: Any) -> nn.Module:
            if broken == "another config":
                config = {**config, "dropout": 0.5}
            made: nn.Module = super().restore(config)
            if broken == "other names":
                made.register_buffer("more", torch.zeros(1))
            return spoiled(made)

    with pytest.raises(BrokenContractError, match=broken):
        conformance.check_network(Broken(**SMALL["unet"]))
