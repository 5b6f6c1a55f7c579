"""What a network is told beside picture and time:
in parts of a batch, on a device, and from seeds.
"""

import torch

from vdiff.diffusion.condition import NOTHING, Condition, of_seeds


def test_a_part_of_a_batch_is_told_of_its_own_pictures() -> None:
    condition = Condition(torch.tensor([4, 0, 2]))
    found = condition.of(slice(1, 3)).label
    assert found is not None
    assert found.tolist() == [0, 2]
    empty = condition.of(slice(3, 3)).label
    assert empty is not None
    assert empty.tolist() == []


def test_it_goes_to_a_device_whole() -> None:
    found = Condition(torch.tensor([4, 0])).to("meta").label
    assert found is not None
    assert (found.device.type, found.shape, found.dtype) == ("meta", (2,), torch.int64)


def test_nothing_stays_nothing() -> None:
    assert (
        NOTHING
        == Condition()
        == NOTHING.of(slice(0, 1))
        == NOTHING.to("meta")
        == of_seeds([1, 2], 0)
    )
    assert NOTHING.label is None


def test_a_picture_has_the_class_of_its_seed_however_large_that_is() -> None:
    found = of_seeds([7, 8, 2**63 - 1], 3).label
    assert found is not None
    assert found.dtype == torch.int64
    assert found.tolist() == [1, 2, (2**63 - 1) % 3]
