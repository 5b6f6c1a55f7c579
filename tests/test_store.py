"""Image stores: what they hold, what they say of themselves,
and every way in which they can be damaged.
"""

import json
import multiprocessing
import os
import pickle
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

from tests.full_disk import full_disk
from vdiff.cli import failures
from vdiff.data import lmdb_pages
from vdiff.data.metadata import Metadata
from vdiff.data.store import ImageStore, StoreWriter
from vdiff.disk import lock
from vdiff.errors import DataError, MachineError
from vdiff.images import images

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "seed_samples" / "lmdb_32_16"


def change(store: Path, records: dict[str, bytes | None]) -> None:
    """Write into a store behind its back, which breaks its seal: older versions made none."""
    with StoreWriter(store) as writer:
        writer.commit(records)


def foreign_store(path: Path, count: int = 3, sizes: tuple[int, ...] = (16, 128)) -> Path:
    """A store as diffusion_distiller writes it."""
    path.mkdir()
    with StoreWriter(path) as writer:
        picture = images.encode(np.zeros((3, 16, 16), np.uint8), "jpeg")
        writer.commit({f"{size}-{index:05d}": picture for size in sizes for index in range(count)})
        writer.commit({"length": str(count).encode()})
    return path


def read_all(path: Path) -> int:
    store = ImageStore(path)
    return sum(
        len(store.read(index, size)) for size in store.sizes for index in range(store.num_images)
    )


def test_a_store_says_what_it_holds(store: Path) -> None:
    opened = ImageStore(store)
    assert (opened.num_images, opened.sizes, opened.class_names) == (12, (8, 16), ["cat", "dog"])
    assert opened.labels is not None
    assert opened.labels.tolist() == [0] * 6 + [1] * 6
    assert images.decode(opened.read(11, 8), 3).shape == (3, 8, 8)


def test_the_keys_are_those_of_diffusion_distiller(store: Path) -> None:
    with StoreWriter(store) as writer:
        records = writer.records("")
    pictures = [f"{size}-{index:05d}" for size in (16, 8) for index in range(12)]
    assert list(records) == [*pictures, "length", "vdiff"]
    assert records["length"] == b"12"


def test_the_summary_can_be_printed_as_json(store: Path) -> None:
    summary = json.loads(json.dumps(ImageStore(store).summary()))
    assert (summary["kind"], summary["encoding"], summary["channels"], summary["num_classes"]) == (
        "vdiff",
        "png",
        3,
        2,
    )


def test_the_fingerprint_follows_the_content_and_not_the_place(store: Path, tmp_path: Path) -> None:
    before = ImageStore(store)
    size_8 = before.fingerprint_of(8)
    moved = store.rename(tmp_path / "moved")
    assert ImageStore(moved).fingerprint == before.fingerprint
    assert size_8 != before.fingerprint_of(16) != before.fingerprint


def test_other_labels_are_another_fingerprint(store: Path) -> None:
    before = ImageStore(store)
    assert before.metadata is not None
    other = before.metadata.model_copy(update={"labels": [1, *before.metadata.labels[1:]]})
    change(store, {"vdiff": other.to_json()})
    assert ImageStore(store).fingerprint != before.fingerprint


def test_a_pickled_store_is_read_in_another_process(store: Path) -> None:
    opened = ImageStore(store)
    expected = opened.read(3, 16)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(opened.read, (3, 16)) == expected
    assert pickle.loads(pickle.dumps(opened)).read(3, 16) == expected  # noqa: S301


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_opens_the_file_again(store: Path) -> None:
    opened = ImageStore(store)
    expected, inherited = opened.read(5, 8), opened._opened
    child = os.fork()
    if child == 0:
        is_read = opened.read(5, 8) == expected == ImageStore(store).read(5, 8)
        os._exit(0 if is_read and opened._opened is not inherited else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert opened.read(0, 8)


def test_a_store_can_be_opened_twice_in_one_process(store: Path) -> None:
    assert ImageStore(store).read(0, 8) == ImageStore(store.parent / "." / store.name).read(0, 8)


def test_a_missing_store_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ImageStore(tmp_path / "nothing")
    assert "vdiff prepare" in caught.value.fix


def test_the_sample_of_diffusion_distiller_is_read_as_it_is() -> None:
    if not SAMPLE.exists():
        pytest.skip("the sample store of diffusion_distiller is not beside this repository")
    opened = ImageStore(SAMPLE)
    assert (opened.num_images, opened.sizes, opened.labels, opened.metadata) == (
        60,
        (16, 32),
        None,
        None,
    )
    for size in opened.sizes:
        for index in range(60):
            assert images.decode(opened.read(index, size), 3).shape == (3, size, size)
    assert len(opened.fingerprint) == 64


def test_a_foreign_store_has_a_fingerprint_of_its_content(tmp_path: Path) -> None:
    one, other = foreign_store(tmp_path / "a"), foreign_store(tmp_path / "b")
    assert ImageStore(one).fingerprint == ImageStore(other).fingerprint
    change(other, {"128-00002": b"something else"})
    assert ImageStore(one).fingerprint != ImageStore(other).fingerprint
    assert ImageStore(one).sizes == (16, 128)
    assert ImageStore(one).summary()["kind"] == "diffusion_distiller"


@pytest.mark.parametrize(
    "length", [None, b"", b"0", b"-3", b"4", b"999999999", b"9" * 5000, b"\xff", b"3.0"]
)
def test_an_absurd_length_is_refused(length: bytes | None, tmp_path: Path) -> None:
    path = foreign_store(tmp_path / "foreign")
    change(path, {"length": length})
    with pytest.raises(DataError, match=r"length|missing"):
        ImageStore(path)


def test_a_length_that_contradicts_the_metadata_is_refused(store: Path) -> None:
    change(store, {"length": b"11"})
    with pytest.raises(DataError, match="contradicts"):
        ImageStore(store)


@pytest.mark.parametrize("key", ["16-00000", "16-00001", "16-00002", "128-00001"])
def test_a_missing_record_is_found_when_the_store_is_opened(key: str, tmp_path: Path) -> None:
    path = foreign_store(tmp_path / "foreign")
    change(path, {key: None, "other": None})
    with pytest.raises(DataError, match="missing"):
        ImageStore(path)


def test_an_lmdb_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    change(tmp_path / "other", {"words": b"many", "length": b"1"})
    with pytest.raises(DataError, match="no pictures"):
        ImageStore(tmp_path / "other")


def test_a_record_that_vanished_since_is_refused_when_it_is_read(store: Path) -> None:
    change(store, {"8-00004": None, "8-99999": b""})
    with pytest.raises(DataError, match="`8-00004` is missing"):
        read_all(store)


def test_a_store_of_a_newer_vdiff_says_so(store: Path) -> None:
    change(store, {"vdiff": b'{"format": 2}'})
    with pytest.raises(DataError, match="format 2") as caught:
        ImageStore(store)
    assert "newer vdiff" in caught.value.fix


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"nonsense", b"\xff", b"[" * 100_000, b'{"format": 1}']
)
def test_metadata_that_is_not_metadata_is_refused(text: bytes, store: Path) -> None:
    change(store, {"vdiff": text})
    with pytest.raises(DataError, match="`vdiff`"):
        ImageStore(store)


Changed = dict[str, object]


@pytest.mark.parametrize(
    "changed",
    [
        {"count": 13},
        {"labels": [0] * 11},
        {"labels": [9] * 12},
        {"sizes": [8, 16, 32]},
        {"crcs": {8: "", 16: ""}},
    ],
)
def test_metadata_that_contradicts_itself_is_refused(changed: Changed, store: Path) -> None:
    metadata = ImageStore(store).metadata
    assert metadata is not None
    change(store, {"vdiff": metadata.model_copy(update=changed).to_json()})
    with pytest.raises(DataError, match=r"`vdiff`: .*there is"):
        ImageStore(store)


def test_metadata_survives_its_own_text() -> None:
    metadata = Metadata(
        made_by="vdiff", count=1, sizes=[8], channels=1, encoding="png", quality=None, resampling=(
            "box"
        ),
        labels=[0], class_names=["größer"], source="0", crcs={8: "01234567"},
    )  # fmt: skip
    assert Metadata.from_json(metadata.to_json()) == metadata


def damaged_copy(store: Path, damage: Callable[[bytearray], object]) -> Path:
    data = bytearray((store / "data.mdb").read_bytes())
    damage(data)
    path = store.with_name("damaged")
    path.mkdir(exist_ok=True)
    (path / "new").write_bytes(data)
    (path / "new").replace(path / "data.mdb")
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.9, 0.99999])
def test_a_truncated_file_is_refused_before_lmdb_sees_it(share: float, store: Path) -> None:
    path = damaged_copy(store, lambda data: data.__delitem__(slice(int(len(data) * share), None)))
    with pytest.raises(DataError, match=r"cut off|empty"):
        ImageStore(path)


def test_the_newer_of_the_two_meta_pages_counts(store: Path) -> None:
    def end_of_file_far_away(newest: bool) -> Callable[[bytearray], object]:
        def damage(data: bytearray) -> None:
            transactions = [struct.unpack_from("<Q", data, page + 144)[0] for page in (0, 4096)]
            page = 4096 * transactions.index(max(transactions) if newest else min(transactions))
            struct.pack_into("<Q", data, page + 136, 10**6)

        return damage

    assert read_all(damaged_copy(store, end_of_file_far_away(newest=False)))
    with pytest.raises(DataError, match="cut off"):
        ImageStore(damaged_copy(store, end_of_file_far_away(newest=True)))


def test_a_flipped_bit_in_a_picture_is_found_before_use(store: Path) -> None:
    picture = ImageStore(store).read(7, 16)

    def damage(data: bytearray) -> None:
        data[data.index(picture) + len(picture) // 2] ^= 4

    opened = ImageStore(damaged_copy(store, damage))
    assert opened.read(6, 16)
    with pytest.raises(DataError, match="`16-00007` is not what was written") as caught:
        opened.read(7, 16)
    assert "damaged" in caught.value.where


def test_a_flipped_bit_in_the_metadata_is_found(store: Path) -> None:
    def damage(data: bytearray) -> None:
        # also in pages that are not in use any more
        for found in re.finditer(b'"cat"', bytes(data)):
            data[found.start() + 1] ^= 1

    with pytest.raises(DataError, match="`vdiff`: it is not what was written"):
        ImageStore(damaged_copy(store, damage))


def test_no_flipped_bit_anywhere_gives_other_pictures_or_kills_the_process(store: Path) -> None:
    def content(path: Path) -> list[object]:
        opened = ImageStore(path)
        pictures = [
            opened.read(index, size) for size in opened.sizes for index in range(opened.num_images)
        ]
        return [pictures, opened.summary()["class_names"], opened.metadata]

    expected, rng = content(store), random.Random(0)
    size = (store / "data.mdb").stat().st_size
    refused = 0
    for _ in range(400):
        place, bit = (
            rng.choice(
                [rng.randrange(size), rng.randrange(152), 4096 * rng.randrange(size // 4096) + 10]
            ),
            1,
        )
        bit = 1 << rng.randrange(8)
        path = damaged_copy(
            store, lambda data, place=place, bit=bit: data.__setitem__(place, data[place] ^ bit)
        )
        try:
            assert content(path) == expected
        except DataError:
            refused += 1
    assert refused > 20


def test_another_order_of_keys_is_refused_where_lmdb_would_search_for_ever(store: Path) -> None:
    for page in (0, 4096):
        with pytest.raises(DataError, match="keys are not in order"):
            ImageStore(damaged_copy(store, lambda data, page=page: data.__setitem__(page + 92, 2)))


def test_a_page_of_the_wrong_kind_is_refused_where_lmdb_would_abort(store: Path) -> None:
    def damage(data: bytearray) -> None:
        for kind in range(2 * 4096 + 10, len(data), 4096):
            if struct.unpack_from("<H", data, kind)[0] == 2:
                struct.pack_into("<H", data, kind, 1)

    with pytest.raises(DataError, match=r"page .* is damaged"):
        ImageStore(damaged_copy(store, damage))


def test_a_big_store_of_many_pages_is_sound(tmp_path: Path) -> None:
    records = {f"8-{index:05d}": bytes(index % 5000) for index in range(3000)}
    change(tmp_path, {**records, "length": b"3000"})
    lmdb_pages.check(tmp_path / "data.mdb")
    assert read_all(tmp_path) == sum(map(len, records.values()))


def test_the_map_grows_with_the_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        for index in range(5):
            writer.commit({f"8-{index:05d}": bytes(30 * 2**20)})
        assert len(writer.get("8-00004") or b"") == 30 * 2**20
    assert (tmp_path / "data.mdb").stat().st_size >= 150 * 2**20


def test_a_file_whose_last_pages_were_never_written_is_filled_up(tmp_path: Path) -> None:
    change(tmp_path, {"8-00000": b"picture", "length": b"1"})
    size = (tmp_path / "data.mdb").stat().st_size
    with StoreWriter(tmp_path):
        os.truncate(tmp_path / "data.mdb", size - 1)
    assert (
        (tmp_path / "data.mdb").stat().st_size
        == size
        == lmdb_pages.whole_size(tmp_path / "data.mdb")
    )


def test_a_commit_is_whole_or_not_at_all_on_a_full_disk(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, expected_bytes=12_345) as writer:
        writer.commit({"8-00000": b"small"})
        with full_disk(2**20), pytest.raises(MachineError, match=r"12,345 bytes, [\d,]+ are free"):
            writer.commit({"8-00001": bytes(2**22), "8-00002": b"small"})
        assert writer.records("8-") == {"8-00000": b"small"}


@pytest.mark.parametrize(
    "trouble", [lmdb.MemoryError("mdb_env_open: Cannot allocate memory"), MemoryError()]
)
def test_a_machine_without_memory_is_not_taken_for_a_damaged_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise trouble

    path = foreign_store(tmp_path / "store")
    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(type(trouble)) as found:
        ImageStore(path)
    assert failures.explain(found.value).exit_code == MachineError.exit_code
    assert "out of memory" in failures.explain(found.value).problem


def test_the_folders_made_for_a_store_are_there_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    with lock.held(tmp_path / "a" / "b" / "store"):
        parents = [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
        assert {each.stat().st_ino for each in parents} <= set(flushed)
