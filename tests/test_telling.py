"""What the network is told in training: classes, some left out, and a guidance."""

import torch

from vdiff.randomness import Randomness
from vdiff.training.telling import AS_THEY_ARE, Telling

LABELS = torch.arange(10_000) % 10


def rng(start: int = 0, stop: int = 10_000) -> Randomness:
    return Randomness.for_update(0, 0, 5, torch.arange(start, stop), 10_000, purpose="telling")


def test_labels_are_told_as_they_are() -> None:
    assert AS_THEY_ARE(LABELS, rng()).label is LABELS
    assert AS_THEY_ARE(None, rng()) == (None, None)


def test_so_many_labels_are_left_out_and_the_others_stay() -> None:
    found = Telling(0.1, 10)(LABELS, rng()).label
    assert found is not None
    is_dropped = found == 10
    assert 900 < int(is_dropped.sum()) < 1100
    assert torch.equal(found[~is_dropped], LABELS[~is_dropped])


def test_each_picture_depends_on_its_own_place() -> None:
    telling = Telling(0.5, 10, (1.0, 4.0))
    whole = telling(LABELS, rng())
    part = telling(LABELS[300:400], rng(300, 400))
    for all_of_them, some in zip(whole, part, strict=True):
        assert all_of_them is not None
        assert some is not None
        assert torch.equal(all_of_them[300:400], some)


def test_the_guidance_is_spread_over_its_range() -> None:
    found = Telling(guidance=(1.0, 4.0))(None, rng()).guidance
    assert found is not None
    assert (found.dtype, found.shape) == (torch.float32, (10_000,))
    assert 1 <= float(found.min()) < 1.01
    assert 3.99 < float(found.max()) <= 4
    assert abs(float(found.mean()) - 2.5) < 0.05


def test_its_numbers_are_not_those_of_the_noise() -> None:
    noise = Randomness.for_update(0, 0, 5, torch.arange(10_000), 10_000)
    together = torch.stack([rng().uniform(), noise.uniform()])
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.05
