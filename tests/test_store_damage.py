"""Every bit of a store of ours: found, or of no use to anybody.

And whatever LMDB would trust is looked at before.
"""

import contextlib
import json
import os
import random
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
import torch

from benchmarks.fuzz_stores import cases, every_bit
from benchmarks.fuzzing import pages, stores, trials
from benchmarks.fuzzing.stores import Specimen
from tests.conftest import MakePictures
from tests.tiny import TinyRun
from vdiff.cli import main
from vdiff.data import conversion, lmdb_pages
from vdiff.data.metadata import Seal
from vdiff.data.prepare import PrepareCounts, prepare
from vdiff.data.seal import FILE, SEAL, is_ours, write_seal
from vdiff.data.store import ImageStore, StoreWriter
from vdiff.errors import DataError, Stopped

FORKS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
KEY = b"vdiff"

Damage = Callable[[bytearray], object]


def damage(store: Path, change: Damage) -> None:
    """Another file in the store's place, damaged: as LMDB sees it, the old one is still there."""
    data = bytearray((store / FILE).read_bytes())
    change(data)
    (store / "new").write_bytes(data)
    (store / "new").replace(store / FILE)


def as_older_versions_left_it(store: Path) -> None:
    (store / SEAL).unlink()


def nodes_of(data: bytes | bytearray, key: bytes) -> list[int]:
    """Where the nodes with this key begin, on pages in use or not."""
    head = struct.pack("<H", len(key)) + key
    return [at - 6 for at in range(len(data)) if data.startswith(head, at)]


def bits_of(key: bytes) -> list[int]:
    """The bits of the key, and those of its length before it."""
    return list(range(8 * (2 + len(key))))


# ---- a store of ours stays one of ours


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_store_whose_key_has_a_flipped_bit_is_not_taken_for_a_foreign_one(
    is_sealed: bool, store: Path
) -> None:
    if not is_sealed:
        as_older_versions_left_it(store)
    whole = (store / FILE).read_bytes()
    places = nodes_of(whole, KEY)
    assert places
    for bit in bits_of(KEY):

        def flip(data: bytearray, bit: int = bit) -> None:
            data[:] = whole
            for place in places:  # in every copy of the page: one of them is in use
                data[place + 6 + bit // 8] ^= 1 << bit % 8

        damage(store, flip)
        with pytest.raises(DataError, match="damaged"):
            ImageStore(store)


def test_a_lost_key_ends_training_and_inspection(
    tiny_run: TinyRun, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rename(data: bytearray) -> None:
        for place in nodes_of(data, KEY):
            data[place + 8 + 4] ^= 1

    damage(store, rename)
    for is_sealed in (True, False):
        if not is_sealed:
            as_older_versions_left_it(store)
        assert main(["inspect", str(store), "--verify"]) == 3
        assert "vdiff prepare --force" in capsys.readouterr().err
        with pytest.raises(DataError, match="damaged"):
            tiny_run.base()
        assert not (tiny_run.path / "run").exists()


def test_a_seal_beside_a_store_without_its_record_is_believed(store: Path) -> None:
    """Also where somebody else made the pages and the seal fits them."""
    metadata = ImageStore(store).metadata
    assert metadata is not None
    with StoreWriter(store) as writer:
        writer.commit({"vdiff": None})
    write_seal(store, metadata, (store / FILE).stat().st_size, lmdb_pages.check(store / FILE))
    with pytest.raises(DataError, match="`vdiff` is missing"):
        ImageStore(store)


@pytest.mark.parametrize(
    "key",
    [b"v", b"vd", b"vdif", b"vdiff\x07\0\0\0\0\0\0\0", b"vdiff-job", b"vdiff-part-0000000000"],
)
def test_a_key_of_ours_with_another_length_is_recognised_whatever_its_value(key: bytes) -> None:
    """The value of a long record is found by a number behind the key: it is another one then."""
    assert is_ours(key, b"\x89PNG")


@pytest.mark.parametrize("other", ["words", "label-00001", "dataset", "16-mean"])
def test_a_foreign_store_may_hold_other_records(other: str, tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.commit(
            {
                "16-00000": b"picture",
                "16-00001": b"picture",
                "length": b"2",
                other: b'{"made_by": "me"}',
            }
        )
    opened = ImageStore(tmp_path)
    assert (opened.metadata, opened.sizes, opened.num_images) == (None, (16,), 2)


def test_a_size_whose_first_key_has_changed_is_missed(tmp_path: Path) -> None:
    """It must not look as if the store had never held that size."""
    pictures = {f"{size}-{index:05d}": b"picture" for size in (16, 8) for index in range(3)}
    pictures["16-0000/"] = pictures.pop("16-00000")
    with StoreWriter(tmp_path) as writer:
        writer.commit({**pictures, "length": b"3"})
    with pytest.raises(DataError, match="`16-00000` is missing"):
        ImageStore(tmp_path)


def test_a_store_that_was_never_finished_is_not_a_foreign_one(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    unfinished = stopped(make_pictures(), tmp_path / "store", after=6)
    with StoreWriter(unfinished) as writer:
        writer.commit({"length": b"6"})
    with pytest.raises(DataError, match="never finished"):
        ImageStore(unfinished)


# ---- the seal


def test_every_bit_of_the_seal_counts(store: Path) -> None:
    text = (store / SEAL).read_bytes()
    for number in range(8 * len(text.rstrip())):
        changed = bytearray(text)
        changed[number // 8] ^= 1 << number % 8
        (store / SEAL).write_bytes(changed)
        with pytest.raises(DataError, match=f"its file `{SEAL}`"):
            ImageStore(store)


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 100_000, b"\xff", b"x" * 2**21])
def test_a_seal_that_is_none_is_refused(text: bytes, store: Path) -> None:
    (store / SEAL).write_bytes(text)
    with pytest.raises(DataError, match=f"its file `{SEAL}`"):
        ImageStore(store)


def test_a_seal_of_a_newer_vdiff_says_so_and_nothing_else(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / SEAL).write_text(json.dumps({"format": "\x1b]0;owned\x07\x1b[2J" + "x" * 5000}))
    assert main(["inspect", str(store)]) == 3
    said = capsys.readouterr().err
    assert "install a newer vdiff" in said
    assert said.isprintable() or set(filter(lambda letter: not letter.isprintable(), said)) == {
        "\n"
    }
    assert len(said) < 500


def test_the_record_of_a_stranger_sends_no_escape_sequence_to_the_terminal(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StoreWriter(store) as writer:
        writer.commit(
            {"vdiff": json.dumps({"format": "\x1b]0;owned\x07\x1b[2J\x1b[31mred"}).encode()}
        )
    for arguments in (
        ["inspect", str(store)],
        ["prepare", str(store.parent / "pictures"), "--size", "8", "--out", str(store)],
    ):
        assert main(arguments) == 3
        said = capsys.readouterr().err
        assert "owned" in said
        assert "\x1b" not in said
        assert "\x07" not in said


def test_a_sealed_store_is_refused_when_its_file_is_missing_longer_or_another_one(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, seal = (store / FILE).read_bytes(), (store / SEAL).read_bytes()
    (store / SEAL).write_bytes(
        Seal.from_json(seal).model_copy(update={"pages": "0123abcd"}).to_json()
    )
    with pytest.raises(DataError, match="a page of"):
        ImageStore(store)
    (store / SEAL).write_bytes(seal)
    damage(store, lambda data: data.extend(b"more"))
    with pytest.raises(DataError, match=f"has {len(whole) + 4:,} bytes, not"):
        ImageStore(store)
    (store / FILE).unlink()
    with pytest.raises(DataError, match="is missing"):
        ImageStore(store)
    for place in (store, store / SEAL):
        assert main(["inspect", str(place)]) == 3
        assert "`data.mdb` is missing" in capsys.readouterr().err


def test_a_store_without_a_seal_is_read_as_before(store: Path) -> None:
    before = stores.read(store)
    as_older_versions_left_it(store)
    assert stores.read(store) == before
    assert main(["inspect", str(store), "--verify"]) == 0


def test_writing_to_a_store_breaks_its_seal(store: Path) -> None:
    with StoreWriter(store) as writer:
        writer.commit({"more": b""})
    assert not (store / SEAL).exists()
    assert stores.read(store)


def test_a_seal_survives_its_own_text() -> None:
    seal = Seal(made_by="vdiff", count=1, sizes=[8], bytes=8192, pages="0123abcd")
    assert Seal.from_json(seal.to_json()) == seal


# ---- every bit


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> list[Specimen]:
    torch.set_num_threads(1)
    return stores.build(tmp_path_factory.mktemp("specimens"))


USED = {"newest meta page", "older meta page", "page heads", "pointers", "node heads", "keys", SEAL}


@FORKS
@pytest.mark.parametrize("number", [0, 1])
def test_no_bit_of_a_store_goes_wrong_and_those_in_use_are_all_found(
    number: int, specimens: list[Specimen], tmp_path: Path
) -> None:
    """A sample; `python -m benchmarks.fuzz_stores --exhaustive` takes all."""
    specimen = specimens[number]
    drawn = [*every_bit(specimen, FILE, step=1999), *every_bit(specimen, SEAL, step=101)]
    found = pages.chart(specimen.files[FILE])
    rng = random.Random(number)
    for part in sorted(USED & set(found.parts)):
        bits = [8 * found.place(rng, part) + rng.randrange(8) for _ in range(40)]
        drawn += [case for bit in bits for case in every_bit(specimen, FILE, numbers=[bit])]
    outcomes = list(trials.run(drawn, tmp_path / "scratch"))
    assert [each for each in outcomes if not each.is_good] == []
    used = [each for each in outcomes if each.case.how in USED]
    assert len(used) > 200
    assert {(each.reading, each.verify) for each in used} == {("refused", "found")}
    assert ("same", "passed") in {(each.reading, each.verify) for each in outcomes}


@FORKS
@pytest.mark.parametrize("kind", ["ours", "old", "foreign", "partial"])
def test_seeded_damage_harms_nobody(kind: str, specimens: list[Specimen], tmp_path: Path) -> None:
    drawn = cases([each for each in specimens if each.kind == kind], range(150), seed=7)
    outcomes = list(trials.run(list(drawn), tmp_path / "scratch"))
    assert len(outcomes) == 150
    assert [
        (each.case.number, each.case.how, each.reading) for each in outcomes if not each.is_good
    ] == []
    assert len({each.reading for each in outcomes}) > 1


# ---- pages that are not in order


def test_a_store_whose_pages_are_not_in_order_is_refused_where_reading_had_no_end(
    tmp_path: Path,
) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.commit({f"{size}-00000": bytes(1500) for size in (5, 6, 7, 8)} | {"length": b"1"})
    assert ImageStore(tmp_path).sizes == (5, 6, 7, 8)

    def other_keys(data: bytearray) -> None:
        for key, changed in ((b"6-00000", b"4-00000"), (b"7-00000", b"3-00000")):
            for place in nodes_of(data, key):
                data[place + 8 : place + 8 + len(key)] = changed

    damage(tmp_path, other_keys)
    with pytest.raises(DataError, match="not in order"):
        ImageStore(tmp_path)


def test_a_leaf_that_says_it_has_fewer_records_is_refused(store: Path) -> None:
    """The last record of all, of which nothing else would tell that it is gone,
    is that of a store of ours.
    """
    as_older_versions_left_it(store)

    def shorten(data: bytearray) -> None:
        for page in range(0, len(data), 4096):
            flags, lower = struct.unpack_from("<HH", data, page + 10)
            if flags == 2 and nodes_of(data[page : page + 4096], KEY):
                struct.pack_into("<H", data, page + 12, lower - 2)

    damage(store, shorten)
    with pytest.raises(DataError, match="records, but its pages hold"):
        ImageStore(store)


def test_keys_of_branches_are_looked_at_too(tmp_path: Path) -> None:
    """Three levels: a key of a branch that does not divide what lies below
    hides records from LMDB.
    """
    with StoreWriter(tmp_path) as writer:
        writer.commit({f"8-{index:05d}": bytes(180) for index in range(6000)} | {"length": b"6000"})
    whole = (tmp_path / FILE).read_bytes()
    assert struct.unpack_from("<H", whole, 4096 * newest(whole) + 16 + 24 + 48 + 6)[0] == 3
    branches = [
        page
        for page in range(2, len(whole) // 4096)
        if whole[4096 * page + 10 : 4096 * page + 12] == b"\1\0"
    ]
    rng = random.Random(0)
    found = 0
    for _ in range(60):
        page = 4096 * rng.choice(branches)
        lower = struct.unpack_from("<H", whole, page + 12)[0]
        pointer = page + rng.randrange(18, lower, 2)
        node = page + struct.unpack_from("<H", whole, pointer)[0]
        last = node + 8 + struct.unpack_from("<H", whole, node + 6)[0] - 1
        changed = bytearray(whole)
        changed[last] ^= 1 << rng.randrange(3)
        (tmp_path / "changed").write_bytes(changed)
        with contextlib.suppress(ValueError):
            lmdb_pages.check(tmp_path / "changed")
            continue
        found += 1
    assert found > 20


def newest(data: bytes) -> int:
    transactions = [struct.unpack_from("<Q", data, page + 144)[0] for page in (0, 4096)]
    return transactions.index(max(transactions))


@pytest.mark.parametrize("seed", range(6))
def test_what_lmdb_writes_is_never_refused(seed: int, tmp_path: Path) -> None:
    rng, keys = random.Random(seed), set()
    for _ in range(rng.randrange(1, 4)):
        with StoreWriter(tmp_path) as writer:
            for _ in range(rng.randrange(1, 20)):
                records: dict[str, bytes | None] = {}
                for _ in range(rng.choice([1, 5, 50, 300])):
                    key = (
                        f"{rng.choice([8, 16, 128])}-{rng.randrange(3000):05d}"
                        + "x" * rng.choice([0, 0, 40])
                    )
                    is_there = key in keys and key not in records
                    # a long value that a shorter one replaces is lmdb.verify's mistake
                    if is_there or key not in keys:
                        records[key] = (
                            None
                            if is_there
                            else bytes(rng.choice([0, 1, 300, 2100, 9000]) + rng.randrange(50))
                        )
                        keys ^= {key}
                writer.commit(records)
    lmdb_pages.check(tmp_path / FILE)
    lmdb_pages.check_for_writing(tmp_path / FILE)
    with lmdb.open(str(tmp_path), readonly=True, lock=False) as environment:
        for is_compact in (False, True):
            (tmp_path / f"{is_compact}").mkdir()
            environment.copy(str(tmp_path / f"{is_compact}"), compact=is_compact)
            lmdb_pages.check(tmp_path / f"{is_compact}" / FILE)
            lmdb_pages.check_for_writing(tmp_path / f"{is_compact}" / FILE)
    with StoreWriter(tmp_path) as writer:
        assert all(writer.get(key) is not None for key in keys)


# ---- what a stopped prepare left


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is converted alone and committed at once."""
    monkeypatch.setattr(conversion, "_CHUNK_PICTURES", 1)
    monkeypatch.setattr(conversion, "_COMMIT_SECONDS", -1.0)


def stopped(pictures: Path, store: Path, after: int) -> Path:
    """A `prepare` that was stopped after so many pictures: the folder that it left."""

    def stop(progress: PrepareCounts) -> None:
        if progress.done >= after:
            raise Stopped(15, "stopped")

    with pytest.raises(Stopped):
        prepare(pictures, store, sizes=[8], num_threads=1, on_progress=stop)
    return store.with_name(f"{store.name}.partial")


def free_list_flags(data: bytearray) -> None:
    data[4096 * newest(data) + 44] = 69  # lmdb.verify does not look there; liblmdb aborts


def upper_bound(data: bytearray) -> None:
    for page in range(8192, len(data), 4096):
        if data[page + 10] == 2:
            upper = struct.unpack_from("<H", data, page + 14)[0]
            # nor here: the page has more space than it says
            struct.pack_into("<H", data, page + 14, upper - 2)


def count_of_a_free_record(data: bytearray) -> None:
    root = struct.unpack_from("<Q", data, 4096 * newest(data) + 16 + 64)[0]
    node = 4096 * root + struct.unpack_from("<H", data, 4096 * root + 16)[0]
    data[node + 16] ^= 4


def a_used_page_is_free(data: bytearray) -> None:
    root = struct.unpack_from("<Q", data, 4096 * newest(data) + 16 + 64)[0]
    main_root = data[4096 * newest(data) + 16 + 112 :][:8]
    node = 4096 * root + struct.unpack_from("<H", data, 4096 * root + 16)[0]
    data[node + 24 : node + 32] = main_root


def pictures(data: bytearray) -> None:
    # those on pages that are not used any more, too
    for match in re.finditer(b"IDAT", bytes(data)):
        data[match.end() + 5] ^= 1


DAMAGES: dict[Damage, str] = {
    free_list_flags: "head of the file",
    upper_bound: "space between its nodes",
    count_of_a_free_record: "freeDB: record",
    a_used_page_is_free: "freeDB",
    pictures: "a picture in it is not what was written",
}


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("change", DAMAGES, ids=lambda change: change.__name__)
def test_a_damaged_beginning_is_begun_anew_with_a_word(
    change: Damage, make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(20)
    wanted = ImageStore(prepare(folder, tmp_path / "unbroken", sizes=[8]).store).fingerprint
    unfinished = stopped(folder, tmp_path / "store", after=12)
    damage(unfinished, change)
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "vdiff",
            "prepare",
            str(folder),
            "--size",
            "8",
            "--out",
            str(tmp_path / "store"),
        ],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    said = " ".join(ended.stderr.split())
    assert "all pictures were prepared anew" in said
    assert DAMAGES[change] in said
    assert ImageStore(tmp_path / "store").fingerprint == wanted
    assert main(["inspect", "--verify", str(tmp_path / "store")]) == 0


@pytest.mark.usefixtures("small_steps")
def test_a_beginning_that_is_whole_is_gone_on_with_and_one_of_other_pictures_is_told(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    pictures = make_pictures(20)
    stopped(pictures, tmp_path / "store", after=12)
    report = prepare(pictures, tmp_path / "store", sizes=[8])
    assert report.resumed_at >= 12
    assert report.anew == ""
    stopped(pictures, tmp_path / "other", after=12)
    report = prepare(pictures, tmp_path / "other", sizes=[16])
    assert (report.resumed_at, report.sizes) == (0, (16,))
    assert "other pictures, or they have changed, or with other settings" in report.anew
    (tmp_path / "third.partial").mkdir()
    with StoreWriter(tmp_path / "third.partial") as writer:  # nothing was done yet: nothing is lost
        writer.commit({"vdiff-job": b"of other pictures"})
    assert prepare(pictures, tmp_path / "third", sizes=[8]).anew == ""


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_store_that_was_finished_but_not_sealed_is_looked_through_first(
    is_damaged: bool, make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(20)
    finished = prepare(folder, tmp_path / "store", sizes=[8]).store
    wanted = ImageStore(finished).fingerprint
    unfinished = finished.rename(tmp_path / "store.partial")
    as_older_versions_left_it(unfinished)
    if is_damaged:
        damage(unfinished, pictures)
    report = prepare(folder, tmp_path / "store", sizes=[8])
    assert report.resumed_at == (0 if is_damaged else 20)
    assert bool(report.anew) == is_damaged
    assert (report.store / SEAL).is_file()
    assert ImageStore(report.store).fingerprint == wanted


def test_a_list_of_free_pages_that_asks_for_gigabytes_gets_none(tmp_path: Path) -> None:
    """A file of 6 GB, most of it a hole; one record of its list says it has 3 GB."""
    with StoreWriter(tmp_path) as writer:
        writer.commit({f"x{index:05d}": bytes(3000) for index in range(800)})
        writer.commit({f"x{index:05d}": None for index in range(800)})
        writer.commit({"8-00000": b"picture"})
    last = 6 * 2**30 // 4096 - 1
    with (tmp_path / FILE).open("r+b") as file:
        data = bytearray(file.read())
        meta = 4096 * newest(data)
        struct.pack_into("<Q", data, meta + 16 + 120, last)
        root = struct.unpack_from("<Q", data, meta + 16 + 64)[0]
        for at in range(16, struct.unpack_from("<H", data, 4096 * root + 12)[0], 2):
            node = 4096 * root + struct.unpack_from("<H", data, 4096 * root + at)[0]
            if data[node + 4] == 1:  # a long one, whose pages begin where it says
                struct.pack_into("<HH", data, node, 0, 3 * 2**30 >> 16)
        file.seek(0)
        file.write(data)
        file.truncate((last + 1) * 4096)
    code = (
        "import sys; from pathlib import Path; from vdiff.data.lmdb_pages import "
        "check_for_writing as check"
    )
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}; check(Path(sys.argv[1]))", str(tmp_path / FILE)],
        capture_output=True,
        text=True,
        timeout=180,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (500 * 10**6, 500 * 10**6)),
    )
    assert (
        "ValueError: its list of free pages is damaged: it is longer than the file has pages"
        in ended.stderr
    )


def test_a_store_is_of_the_engine_that_all_versions_read_whatever_the_environment_says(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    arguments = ["prepare", str(make_pictures()), "--size", "8", "--out", str(tmp_path / "store")]
    environment = {**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"}
    command = [sys.executable, "-m", "vdiff", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ImageStore(tmp_path / "store").num_images == 12


@pytest.mark.parametrize(
    "trouble", [lmdb.CorruptedError("mdb_put"), lmdb.PageNotFoundError("mdb_put")]
)
def test_a_damaged_file_that_is_written_to_is_not_taken_for_a_full_disk(
    trouble: lmdb.Error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def begin(self, **_: object) -> None:
            raise trouble

    with StoreWriter(tmp_path) as writer:
        writer.commit({"8-00000": b""})
        environment, writer._environment = writer._environment, Broken()
        with pytest.raises(DataError, match="damaged"):
            writer.commit({"8-00001": b""})
        writer._environment = environment
