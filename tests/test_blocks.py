"""The parts of a U-Net: a dropout that depends on the image alone,
and a time that float32 resolves.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from vdiff.networks.blocks import TimeEmbedding
from vdiff.networks.dropout import Dropout, drops, random_int16


def test_the_time_is_resolved_in_float32_whatever_the_weights_are() -> None:
    # With identities for its linear layers, the first number that comes out is silu(cos(time)).
    embedding = TimeEmbedding(8, 8, freq_shift=0, cosine_first=True).bfloat16()
    nn.init.eye_(embedding.linear_1.weight), nn.init.zeros_(embedding.linear_1.bias)
    nn.init.eye_(embedding.linear_2.weight), nn.init.zeros_(embedding.linear_2.bias)
    out = embedding(torch.tensor([1022.0, 1023.0]))[:, 0]
    expected = nn.functional.silu(torch.tensor([math.cos(1022), math.cos(1023)]))
    torch.testing.assert_close(out.float(), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_stated_share_and_the_mean(probability: float) -> None:
    dropout = Dropout(probability)
    out = dropout(torch.ones(64, 32, 16, 16), torch.arange(64))
    deviation = math.sqrt(probability * (1 - probability) / out.numel())
    assert abs((out == 0).double().mean() - probability) < 4 * deviation + 2**-17
    assert abs(out.double().mean() - 1) < 4 * deviation / (1 - probability)
    assert out.unique().numel() == 2


def test_dropout_masks_are_uncorrelated_between_elements_layers_and_keys() -> None:
    # Adjacent keys and layers are the hard case; real keys are random. [layer, key, row, column]
    bits = torch.stack([random_int16(torch.arange(-8, 24), layer, 4096) for layer in range(4)])
    for sign in (
        bits.view(4, 32, 64, 64) >= 0,
        bits.view(4, 32, 64, 64) % 2 == 1,
        bits.view(4, 32, 64, 64) < -26000,
    ):
        mask = sign.double() - sign.double().mean()
        for axis in range(4):
            for distance in (1, 2, 8):
                _assert_uncorrelated(mask, axis, distance)


def _assert_uncorrelated(mask: Tensor, axis: int, distance: int) -> None:
    if distance >= mask.shape[axis]:
        return
    kept = mask.shape[axis] - distance
    product = mask.narrow(axis, 0, kept) * mask.narrow(axis, distance, kept)
    correlation = product.mean() / mask.var()
    assert abs(correlation) < 4.5 / math.sqrt(product.numel()), (axis, distance)


def test_every_pair_of_keys_shares_only_chance() -> None:
    signs = (random_int16(torch.arange(256) << 32, 0, 8192) >= 0).float() * 2 - 1
    correlation = (signs @ signs.T / 8192).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / math.sqrt(8192)


def test_dropout_bits_are_those_of_the_same_hash_in_unbounded_integers() -> None:
    # Runs on disk depend on these bits: they may not change with torch, the device or a later
    # version.
    keys, layer, count = [5, -3, 2**62 + 1], 2, 7
    expected = [[_hashed(key, layer, element) for element in range(count)] for key in keys]
    assert random_int16(torch.tensor(keys), layer, count).tolist() == expected


def _hashed(key: int, layer: int, element: int) -> int:
    def mix64(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    def mix32(x: int) -> int:
        x = (x ^ x >> 16) * 0x165667B1 % 2**32
        x = (x ^ x >> 15) * 0x5BD1E995 % 2**32
        return x ^ x >> 16

    mixed = mix64((mix64(key % 2**64) + layer) % 2**64)
    word = mix32((mix32(element // 2) ^ mixed >> 32) * 0x7FEB352D % 2**32 ^ mixed % 2**32)
    half = word >> 16 * (element % 2) & 0xFFFF
    return half - 2**16 * (half >= 2**15)


def test_dropout_is_the_same_in_all_memory_formats_and_passes_gradients_where_it_keeps() -> None:
    h = torch.randn(3, 5, 7, 7, requires_grad=True)
    keys = torch.tensor([4, 2**62, -1])
    out = Dropout(0.4)(h, keys)
    out.sum().backward()
    assert torch.equal(h.grad != 0, out != 0)
    assert torch.equal(out, Dropout(0.4)(h.to(memory_format=torch.channels_last), keys))


def test_a_network_drops_if_a_dropout_in_it_does_something() -> None:
    assert drops(nn.Sequential(nn.Linear(2, 2), nn.Sequential(Dropout(0.1))))
    assert not drops(nn.Sequential(nn.Linear(2, 2), Dropout(0.0)))
