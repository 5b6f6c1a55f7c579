"""What every kind of network must do: one picture at a time, told of time, class and dropout,
and restored.
"""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_unet import randomized
from tests.tiny import TinyRun
from vdiff.chain.stage_parts import fresh
from vdiff.diffusion.condition import NOTHING, Condition, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import MachineError, UsageError
from vdiff.machine.machine import Machine
from vdiff.networks import NETWORKS
from vdiff.networks.dropout import drops
from vdiff.networks.network import as_network

SIZE, CHANNELS, CLASSES = 8, 3, 4

EXPECTED: dict[str, dict[str, Any]] = {
    "unet": {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_at": (4,)},
}
"""For every kind, the options of a small one.
A network without an entry here fails every test below.
"""

IMPORTED = ("imported", "diffusers", "lucidrains", "edm", "edm_unet")
"""Kinds that come with an import: no recipe makes one anew.
The tests of their formats try their networks.
"""

every_kind = pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind not in IMPORTED])


@pytest.mark.parametrize("kind", IMPORTED)
def test_a_kind_that_comes_with_an_import_says_so_when_a_recipe_asks_for_it(kind: str) -> None:
    with pytest.raises(UsageError, match="import"):
        NETWORKS.section(kind)().build(SIZE, CHANNELS)


def built(kind: str, **more: Any) -> nn.Module:
    section: Any = NETWORKS.section(kind)(**EXPECTED[kind], **more)
    section.check(SIZE, CHANNELS)
    network: nn.Module = randomized(section.build(SIZE, CHANNELS))
    return network


def batch(count: int = 4) -> tuple[Tensor, Tensor, Condition, Tensor]:
    rng = torch.Generator().manual_seed(5)
    z = torch.randn(count, CHANNELS, SIZE, SIZE, generator=rng)
    return (
        z,
        torch.rand(count, generator=rng) * 1000,
        of_seeds(range(count), CLASSES),
        torch.arange(count) + 2**40,
    )


def changes(one: Tensor, other: Tensor) -> Tensor:
    """The largest difference in each picture."""
    return (one - other).abs().amax((1, 2, 3))


@every_kind
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_pictures_come_back_in_their_shape_and_precision(kind: str, classes: int | None) -> None:
    network = built(kind, num_classes=classes)
    z, time, condition, keys = batch()
    condition = condition if classes else NOTHING
    for dtype in (torch.float32, torch.float64):
        out = network(z.to(dtype), time, condition, keys)
        assert (out.shape, out.dtype) == (z.shape, dtype)
        assert out.isfinite().all()
    assert torch.equal(network(z, time, condition, keys), network(z, time, condition, keys))


@every_kind
def test_each_picture_counts_for_itself(kind: str) -> None:
    network = built(kind, num_classes=CLASSES, dropout=0.3).train()
    z, time, condition, keys = batch()
    together = network(z, time, condition, keys)
    for i in range(len(z)):
        row = slice(i, i + 1)
        torch.testing.assert_close(
            network(z[row], time[row], condition.of(row), keys[row]),
            together[row],
            atol=1e-5,
            rtol=1e-5,
        )


@every_kind
def test_time_and_class_matter_in_every_picture(kind: str) -> None:
    network = built(kind, num_classes=CLASSES).eval()
    z, time, condition, _ = batch()
    other = of_seeds(range(1, 5), CLASSES)
    before = network(z, time, condition)
    assert changes(network(z, time + 1, condition), before).min() > 1e-4
    assert changes(network(z, time, other), before).min() > 1e-4


@every_kind
def test_a_class_is_asked_for_where_there_are_classes_and_only_there(kind: str) -> None:
    z, time, condition, _ = batch()
    with pytest.raises(ValueError, match="label"):
        built(kind)(z, time, condition)
    with pytest.raises(ValueError, match="label"):
        built(kind, num_classes=CLASSES)(z, time)


@every_kind
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_a_section_says_how_many_classes_its_network_is_told_of(
    kind: str, classes: int | None
) -> None:
    section: Any = NETWORKS.section(kind)(**EXPECTED[kind], num_classes=classes)
    assert section.told_classes == (classes or 0)


@every_kind
def test_dropout_follows_its_keys_in_training_and_is_gone_after_it(kind: str) -> None:
    network = built(kind, dropout=0.3).train()
    z, time, _, keys = batch()
    assert drops(network)
    assert not drops(built(kind))
    one = network(z, time, NOTHING, keys)
    assert torch.equal(network(z, time, NOTHING, keys), one)
    assert changes(network(z, time, NOTHING, keys + 1), one).min() > 1e-4
    network.eval()
    torch.testing.assert_close(
        network(z, time, NOTHING, keys), built(kind).eval()(z, time), atol=1e-6, rtol=1e-6
    )


@every_kind
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_a_network_is_restored_from_its_configuration_and_weights(
    kind: str, classes: int | None
) -> None:
    network = built(kind, num_classes=classes).eval()
    section: Any = NETWORKS.section(kind)
    again = section.restore(json.loads(json.dumps(network.config))).eval()
    again.load_state_dict(network.state_dict())
    z, time, condition, _ = batch()
    condition = condition if classes else NOTHING
    assert again.config == network.config
    assert torch.equal(again(z, time, condition), network(z, time, condition))


@every_kind
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_a_class_of_diffusers_is_named_only_if_it_has_these_weights(
    kind: str, classes: int | None
) -> None:
    network = as_network(built(kind, num_classes=classes))
    settings = network.diffusers()
    if settings is None:
        return
    diffusers = pytest.importorskip("diffusers")
    theirs = getattr(diffusers, settings["_class_name"]).from_config(
        json.loads(json.dumps(settings))
    )
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in theirs.state_dict().items()} == shapes
    again = NETWORKS.section(kind).restore(json.loads(json.dumps(settings)))
    assert again.config == network.config


@every_kind
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_a_configuration_fits_the_pictures_that_it_was_made_for_and_no_others(
    kind: str, classes: int | None
) -> None:
    network = as_network(built(kind, num_classes=classes))
    config = json.loads(json.dumps(network.diffusers() or network.config))
    misfit, count = NETWORKS.section(kind).misfit, classes or 0
    assert misfit(config, (CHANNELS, SIZE, SIZE), count) is None
    for other in (
        (CHANNELS + 1, SIZE, SIZE),
        (CHANNELS, 2 * SIZE, 2 * SIZE),
        (CHANNELS, SIZE, 2 * SIZE),
    ):
        assert misfit(config, other, count) in config, other
    assert misfit(config, (CHANNELS, SIZE, SIZE), count + 1) in config


def test_what_is_no_network_is_told_before_it_is_trained() -> None:
    with pytest.raises(MachineError, match="`Linear` is no network"):
        as_network(nn.Linear(1, 1))


@every_kind
def test_at_first_no_picture_depends_on_its_time_its_class_or_itself(kind: str) -> None:
    """A prediction of 0 is where training is begun from, whatever the random weights are."""
    section: Any = NETWORKS.section(kind)(**EXPECTED[kind], num_classes=CLASSES)
    z, time, condition, _ = batch()
    assert not section.build(SIZE, CHANNELS)(z, time, condition).any()


@every_kind
def test_every_weight_learns(kind: str) -> None:
    network = built(kind, num_classes=CLASSES)
    z, time, condition, keys = batch()
    network(z, time, condition, keys).square().sum().backward()
    assert [
        name
        for name, weight in network.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ] == []


@every_kind
def test_a_frozen_network_gives_what_it_gave_and_learns_nothing(kind: str) -> None:
    network = built(kind).eval()
    z, time, _, _ = batch()
    expected = network(z, time).detach()
    frozen = Machine("fp32", "cpu").freeze(built(kind).train())
    assert not frozen.training
    out = frozen(z, time)
    assert not out.requires_grad
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@every_kind
def test_a_fresh_network_depends_on_the_seed_alone_and_leaves_the_global_generator(
    kind: str, tiny_run: TinyRun
) -> None:
    def weights(seed: int) -> list[Tensor]:
        section = NETWORKS.section(kind)(**EXPECTED[kind], num_classes=CLASSES)
        recipe = tiny_run.recipe(f"seed={seed}").model_copy(update={"network": section})
        made = fresh(recipe, (CHANNELS, SIZE, SIZE))
        assert isinstance(made, Denoiser)
        return list(made.network.parameters())

    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert all(torch.equal(a, b) for a, b in zip(one, weights(1), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, weights(2), strict=True))
