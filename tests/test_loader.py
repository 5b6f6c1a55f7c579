"""Batches: which pictures an update sees, however the run is split, stopped or sped up."""

import contextlib
import os
import pickle
import signal
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vdiff.config import effect_of
from vdiff.data import DATASETS, lmdb_images
from vdiff.data.dataset import Images
from vdiff.data.lmdb_images import LmdbImages, LmdbImagesSection
from vdiff.data.loader import Batch, batches, flips, sample_indices
from vdiff.data.store import ImageStore, StoreWriter
from vdiff.errors import DataError, MachineError, UsageError
from vdiff.field_docs import field_docs
from vdiff.images import images


class Numbers:
    """Pictures of one pixel that show their own number; its class is the number modulo 3."""

    shape = (1, 1, 2)
    num_classes = 3
    fingerprint = "numbers"

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def __getitem__(self, index: int, /) -> tuple[images.Pixels, int]:
        return np.array([[[index, 255]]], np.uint8), index % 3


class Dying(Numbers):
    """Pictures that kill the process that reads number 2."""

    def __getitem__(self, index: int, /) -> tuple[images.Pixels, int]:
        if index == 2:
            os._exit(1)
        return super().__getitem__(index)


def first(count: int, source: Images, **options: int | bool) -> list[Batch]:
    stream = batches(source, **{"seed": 1, "stage": 0, ("batch_size"): 4, **options})  # type: ignore[arg-type]
    return [next(stream) for _ in range(count)]


def same(some: Batch, other: Batch) -> bool:
    assert (some.labels is None) == (other.labels is None)
    tensors = zip(some[1:], other[1:], strict=True)
    return some.update == other.update and all(a is b or torch.equal(a, b) for a, b in tensors)


def numbers(batch: Batch) -> list[int]:
    shown: list[int] = batch.images.amin(dim=(1, 2, 3)).tolist()
    return shown


def test_an_epoch_shows_every_picture_once_and_the_next_in_another_order() -> None:
    stream = first(10, Numbers(10), batch_size=2)
    epochs = [[n for batch in part for n in numbers(batch)] for part in (stream[:5], stream[5:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_the_order_depends_on_seed_and_stage() -> None:
    orders = {tuple(sample_indices(50, seed, stage, 0, 50)) for seed in (0, 1) for stage in (0, 1)}
    assert len(orders) == 4


def test_the_order_is_the_same_in_every_version() -> None:
    # Written down when the first version was made; a change would break the resumption of every
    # run.
    assert sample_indices(10, 0, 0, 0, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert sample_indices(10, 3, 2, 7, 4).tolist() == [2, 1, 8, 9]
    assert flips(0, 0, 0, 8).astype(int).tolist() == [1, 1, 1, 1, 1, 1, 0, 1]


def test_a_batch_may_be_larger_than_all_pictures() -> None:
    (batch,) = first(1, Numbers(3), batch_size=8)
    assert sorted(numbers(batch)[:3]) == sorted(numbers(batch)[3:6]) == [0, 1, 2]


def test_a_batch_smaller_than_the_number_of_ranks_is_refused() -> None:
    with pytest.raises(UsageError, match="batch of 4"):
        first(1, Numbers(9), world_size=5)


def test_images_labels_and_places_belong_together() -> None:
    for batch in first(5, Numbers(7)):
        assert batch.images.dtype == torch.uint8
        assert batch.labels is not None
        assert batch.labels.tolist() == [n % 3 for n in numbers(batch)]
        assert batch.places.tolist() == [0, 1, 2, 3]


@settings(max_examples=50, deadline=None)
@given(
    num_images=st.integers(1, 40),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 5),
    start=st.integers(0, 30),
    seed=st.integers(0, 2**63),
    flip=st.booleans(),
)
def test_any_start_and_any_number_of_ranks_give_the_same_batches(
    num_images: int, batch_size: int, world_size: int, start: int, seed: int, flip: bool
) -> None:
    assume(world_size <= batch_size)
    options = {"seed": seed, "batch_size": batch_size, "flip": flip}
    whole = first(start + 2, Numbers(num_images), **options)[start:]
    shares = [
        first(
            2, Numbers(num_images), **options, start_update=start, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    for update, batch in enumerate(whole):
        parts = [share[update] for share in shares]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.cat([part.places for part in parts]).tolist() == list(range(batch_size))
        assert [part.update for part in parts] == [start + update] * world_size
        assert (
            max(len(part.places) for part in parts) - min(len(part.places) for part in parts) <= 1
        )


def test_about_half_of_the_pictures_are_mirrored_and_only_if_asked() -> None:
    plain = torch.cat([batch.images for batch in first(100, Numbers(10))])
    mirrored = torch.cat([batch.images for batch in first(100, Numbers(10), flip=True)])
    is_mirrored = (plain != mirrored).flatten(1).any(1)
    assert torch.equal(mirrored[is_mirrored], plain[is_mirrored].flip(-1))
    assert 0.4 < is_mirrored.float().mean() < 0.6


def test_mirroring_does_not_touch_the_pictures_in_memory(store: Path) -> None:
    source = LmdbImagesSection(path=store, size=8).open()
    before = [source[index][0].copy() for index in range(12)]
    first(10, source, flip=True)
    assert all(np.array_equal(source[index][0], before[index]) for index in range(12))


def test_workers_give_the_same_batches_and_leave_the_global_rng_alone(store: Path) -> None:
    source = LmdbImagesSection(path=store, size=16, flip=True).open()
    alone = first(6, source, batch_size=5, flip=True, start_update=3)
    state = torch.get_rng_state()
    ahead = first(6, source, batch_size=5, flip=True, start_update=3, num_workers=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(same(*pair) for pair in zip(alone, ahead, strict=True))


@pytest.mark.usefixtures("forked_workers")
def test_an_error_in_a_worker_is_the_error_of_the_run(store: Path) -> None:
    source = LmdbImagesSection(path=store, size=8).open()
    with StoreWriter(store) as writer:
        writer.commit({"8-00003": b"damaged"})
    with pytest.raises(DataError, match="`8-00003`") as caught:
        first(12, source, batch_size=1, num_workers=1)
    assert caught.value.fix


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_dies_is_reported_with_advice() -> None:
    with pytest.raises(MachineError, match="died") as caught:
        first(5, Dying(4), batch_size=1, num_workers=1)
    assert "data.workers" in caught.value.fix


def test_the_section_opens_the_store(store: Path) -> None:
    section = DATASETS.section("lmdb").model_validate({"path": store, "size": 16})
    assert isinstance(section, LmdbImagesSection)
    source = section.open()
    assert (source.num_images, source.shape, source.num_classes) == (12, (3, 16, 16), 2)
    pixels, label = source[11]
    assert (pixels.dtype, pixels.shape, label) == (np.uint8, (3, 16, 16), 1)
    assert source.fingerprint == ImageStore(store).fingerprint_of(16)


def test_every_field_is_marked_and_explained() -> None:
    docs = field_docs(LmdbImagesSection)
    for name in LmdbImagesSection.model_fields:
        assert effect_of(LmdbImagesSection, name), name
        assert docs.get(name), name


def test_grey_pictures_can_be_had_from_a_store_in_colour(store: Path) -> None:
    assert LmdbImagesSection(path=store, size=8, channels=1).open()[0][0].shape == (1, 8, 8)


def test_a_size_that_the_store_lacks_names_those_it_has(store: Path) -> None:
    with pytest.raises(DataError, match=r"size 32 \(there are: 8, 16\)") as caught:
        LmdbImagesSection(path=store, size=32).open()
    assert "vdiff prepare --size 32" in caught.value.fix


def test_a_record_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.commit(
            {"16-00000": images.encode(np.zeros((3, 8, 8), np.uint8), "png"), "length": b"1"}
        )
    with pytest.raises(DataError, match="8 x 8, not 16 x 16"):
        LmdbImagesSection(path=tmp_path, size=16).open()[0]


def test_a_record_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.commit({"16-00000": b"not a picture", "length": b"1"})
    with pytest.raises(DataError, match="`16-00000` cannot be decoded"):
        LmdbImagesSection(path=tmp_path, size=16).open()[0]


def test_pictures_are_decoded_once_and_only_if_they_fit_in_memory(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = LmdbImages(ImageStore(store), 8, 3)
    monkeypatch.setattr(lmdb_images, "_CACHE_BYTES", 12 * 3 * 8 * 8 - 1)
    uncached = LmdbImages(ImageStore(store), 8, 3)
    assert all(np.array_equal(cached[index][0], uncached[index][0]) for index in range(12))
    assert (cached.num_workers, uncached.num_workers > 0) == (0, True)
    with StoreWriter(store) as writer:
        writer.commit({f"8-{index:05d}": b"damaged" for index in range(12)})
    assert cached[5][0].shape == (3, 8, 8)
    with pytest.raises(DataError):
        uncached[5]


def test_decoded_pictures_do_not_travel_to_workers(store: Path) -> None:
    source = LmdbImagesSection(path=store, size=16).open()
    before = len(pickle.dumps(source))
    source.take(np.arange(12))
    assert len(pickle.dumps(source)) == before


class Signalling(Numbers):
    """Pictures that send their process a signal, as happens to the whole group at Ctrl-C
    or at the end of a job.
    """

    def __init__(self, num_images: int, number: int) -> None:
        super().__init__(num_images)
        self.number = number

    def __getitem__(self, index: int, /) -> tuple[images.Pixels, int]:
        if index == 2:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGALRM])
def test_a_worker_outlives_the_first_signals_so_that_the_update_can_be_finished(
    number: int,
) -> None:
    batch = first(4, Signalling(4, number), batch_size=1, num_workers=1)
    assert sorted(n for one in batch for n in numbers(one)) == [0, 1, 2, 3]


def test_a_signal_that_reaches_workers_while_they_start_does_not_end_them() -> None:
    """As that of a terminal which is closed then;
    the trainer, which hears it too, needs them for its last update.
    """
    resource_tracker.ensure_running()  # it would be taken for a worker
    me, told = os.getpid(), []
    others = [
        pid
        for path in Path(f"/proc/{me}/task").glob("*/children")
        for pid in path.read_text().split()
    ]

    def tell() -> None:
        ends = time.monotonic() + 30
        while not told and time.monotonic() < ends:
            for thread in Path(f"/proc/{me}/task").iterdir():
                with contextlib.suppress(FileNotFoundError):  # a thread that has ended
                    children = (thread / "children").read_text().split()
                    told.extend(pid for pid in children if pid not in others)
        for _ in range(20):
            for pid in told:
                with contextlib.suppress(ProcessLookupError):  # a worker that is done
                    os.kill(int(pid), signal.SIGHUP)
            time.sleep(0.02)

    teller = threading.Thread(target=tell)
    teller.start()
    batch = first(4, Numbers(4), batch_size=1, num_workers=1)
    teller.join()
    assert told
    assert sorted(n for one in batch for n in numbers(one)) == [0, 1, 2, 3]
