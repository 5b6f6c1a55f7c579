"""Randomness: the published generator, and numbers that depend on nothing
but their place or seed.
"""

import hashlib
import math

import pytest
import torch

from vdiff.randomness import Randomness, philox

KNOWN = [  # Random123 1.14, tests/kat_vectors, philox4x32 10
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox(tuple(torch.tensor(word) for word in counter), key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def update(places, number=7, seed=3, stage=2, num_places=64):
    return Randomness.for_update(seed, stage, number, torch.as_tensor(places), num_places)


@pytest.mark.parametrize("draw", ["normal", "uniform", "stratified", "keys"])
def test_a_split_batch_has_the_numbers_of_the_whole_one(draw):
    def numbers(places):
        random = update(places)
        return [getattr(random, draw)(*((3, 5, 5) if draw == "normal" else ())) for _ in range(2)]

    whole, left, right = numbers(range(64)), numbers(range(20)), numbers(range(20, 64))
    for expected, first, second in zip(whole, left, right, strict=True):
        assert torch.equal(torch.cat([first, second]), expected)


@pytest.mark.parametrize("other", [{"number": 8}, {"seed": 4}, {"stage": 3}])
def test_another_update_seed_or_stage_has_other_numbers(other):
    assert not torch.isin(update(range(64), **other).normal(4), update(range(64)).normal(4)).any()


def test_every_call_draws_anew():
    random = update(range(64))
    assert not torch.isin(random.normal(4), random.normal(4)).any()


def test_pictures_follow_their_own_seed_up_to_63_bits():
    seeds = torch.tensor([0, 1, 2**32, 2**63 - 1])
    numbers = Randomness.for_images(seeds).normal(8)
    assert len(numbers.unique()) == 32
    assert torch.equal(Randomness.for_images(seeds[[2]]).normal(8)[0], numbers[2])


def test_normal_numbers_have_the_moments_of_a_normal_distribution():
    x = update(range(512)).normal(2048).double().flatten()
    moments = [float(value) for value in (x.mean(), x.var(), (x**3).mean(), (x**4).mean())]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.02)
    assert abs(float((x[1:] * x[:-1]).mean())) < 0.005


def test_uniform_numbers_fill_the_unit_interval():
    u = torch.cat([update(range(1000), number).uniform() for number in range(20)])
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u.float(), 20, 0, 1)
    # chi-square, 19 degrees of freedom, 0.1 %
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8


def test_stratified_numbers_are_evenly_spread():
    u = update(range(64)).stratified()
    gaps = u.sort().values.diff()
    torch.testing.assert_close(
        gaps, torch.full((63,), 1 / 64, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


def test_an_odd_number_of_values_is_the_beginning_of_an_even_one():
    assert torch.equal(update(range(3)).normal(5), update(range(3)).normal(8)[:, :5])


def test_stratified_numbers_rise_by_one_part_from_place_to_place():
    """(u + place / num_places) mod 1, with the same u for all of them."""
    u = update(range(64)).stratified()
    steps = (u[1:] - u[:-1]) % 1
    torch.testing.assert_close(
        steps, torch.full((63,), 1 / 64, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


def test_a_picture_of_a_large_seed_has_other_numbers_than_that_of_its_lower_half():
    low, high = torch.tensor([5, 6]), torch.tensor([5, 6]) + 2**40
    one, other = (Randomness.for_images(seeds).normal(4) for seeds in (low, high))
    assert not torch.isin(one, other).any()


def words_of(key, *counter):
    return [int(word) for word in philox(tuple(torch.tensor(part) for part in counter), key)]


def key_of(names):
    return int.from_bytes(hashlib.sha256(names).digest()[:8], "little")


def unit_of(words):
    return ((words[0] << 21) | (words[1] >> 11)) / 2**53


def polar(first, second):
    """Box & Muller 1958."""
    radius, angle = math.sqrt(-2 * math.log((first + 0.5) / 2**32)), 2 * math.pi * second / 2**32
    return [radius * math.cos(angle), radius * math.sin(angle)]


def test_numbers_are_those_of_the_counters_and_keys_that_saved_runs_rely_on():
    """By the definition: with another layout, the same seed would be other
    weights and other pictures.
    """
    key, number = key_of(b"('update', 3, 2)"), 7
    random = update([0, 5], number=number, seed=3, stage=2, num_places=6)
    drawn = [random.normal(6), random.uniform(), random.keys(), random.stratified()]
    for row, place in enumerate((0, 5)):
        first, second = (words_of(key, block, 0, place, number) for block in (0, 1))
        wanted = [*polar(*first[:2]), *polar(*first[2:]), *polar(*second[:2])]
        assert drawn[0][row].tolist() == pytest.approx(wanted, abs=1e-5)
        assert float(drawn[1][row]) == unit_of(words_of(key, 0, 1, place, number))
        words = words_of(key, 0, 2, place, number)
        assert int(drawn[2][row]) == (words[0] >> 1 << 31) | (words[1] >> 1)
        common = unit_of(words_of(key, 0, 3, 2**32 - 1, number))
        assert float(drawn[3][row]) == pytest.approx((common + place / 6) % 1, abs=1e-15)


def test_numbers_of_a_picture_are_those_of_both_halves_of_its_seed():
    words = words_of(key_of(b"('image',)"), 0, 0, 9, 2**8)
    found = Randomness.for_images(torch.tensor([2**40 + 9])).keys()
    assert int(found[0]) == (words[0] >> 1 << 31) | (words[1] >> 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (1,), (3, 16, 16)])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_a_few_numbers_have_the_bits_of_many(shape, count, monkeypatch):
    seeds = torch.arange(count) * 2**55 + torch.arange(count)
    of_few, of_many = Randomness.for_images(seeds), Randomness.for_images(seeds)
    for _ in range(2):
        few = [of_few.normal(*shape), of_few.uniform()]
        with monkeypatch.context() as context:
            context.setattr("vdiff.randomness._MOST_SMALL", 0)
            many = [of_many.normal(*shape), of_many.uniform()]
        assert all(torch.equal(*pair) for pair in zip(few, many, strict=True))
