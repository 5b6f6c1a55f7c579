"""Activations that are computed again instead of kept:
the same gradient to the last bit, and less memory.
"""

import pytest
import torch
from torch import Tensor, nn

from tests.test_training import COSINE, SHAPE, flat, learner, settings, taught
from vdiff.diffusion.condition import Condition, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import UsageError
from vdiff.machine.machine import Machine
from vdiff.networks.repeated import recompute_activations, repeated
from vdiff.networks.unet import UNet, UNetSection
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.randomness import Randomness
from vdiff.training.learner import Learner


def network(recomputes: bool) -> UNet:
    torch.manual_seed(0)
    section = UNetSection(
        width=8, multipliers=(1, 2), blocks=2, attention_at=(4,), dropout=0.3, num_classes=2
    )
    made = section.build(8, 1)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.1)
    if recomputes:
        recompute_activations(made)
    return made


def gradients(made: UNet) -> dict[str, Tensor]:
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(2))
    rng = Randomness.for_update(0, 0, 0, torch.arange(4), 4)
    student = Denoiser(made.train(), COSINE, "v")
    DenoisingObjective("snr_plus_one")(
        student, x, rng, Condition(torch.tensor([0, 1, 1, 0]))
    ).sum().backward()
    return {
        name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None
    }


def kept(made: UNet) -> int:
    """Bytes that the forward pass keeps for the backward pass, each memory once."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in made.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = made.train()(
            torch.ones(4, *SHAPE), torch.ones(4), of_seeds([0] * 4, 2), torch.arange(4)
        )
    assert out.requires_grad
    return sum(size for place, size in found.items() if place not in weights)


def test_gradients_are_the_same_bit_for_bit_with_dropout_classes_and_attention() -> None:
    wanted, found = gradients(network(False)), gradients(network(True))
    assert wanted.keys() == found.keys() == network(False).state_dict().keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_less_is_kept() -> None:
    assert kept(network(True)) < 0.5 * kept(network(False))


def test_names_of_weights_do_not_change() -> None:
    assert network(True).state_dict().keys() == network(False).state_dict().keys()
    assert len(repeated(network(True))) == 18


@pytest.mark.parametrize("dropout", [True, False])
def test_a_training_is_the_same_bit_for_bit(dropout: bool) -> None:
    machine = Machine("fp32", "cpu")
    plain, sparing = (
        learner(machine, drop=0.3, ema=0.9, dropout=dropout, checkpoint_activations=given)
        for given in (False, True)
    )
    assert {part.recomputes for part in repeated(sparing._network)} == {True}
    taught(plain, 3)
    taught(sparing, 3)
    wanted, found = flat(plain.state()), flat(sparing.state())
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    for one, other in zip(
        plain.result().network.parameters(), sparing.result().network.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_network_that_names_no_repeated_parts_is_refused() -> None:
    given = settings(checkpoint_activations=True)
    student = Denoiser(nn.Conv2d(1, 1, 3), COSINE, "v")
    with pytest.raises(UsageError, match="parts repeat"):
        Learner(student, DenoisingObjective("snr_plus_one"), given, Machine("fp32", "cpu"))
