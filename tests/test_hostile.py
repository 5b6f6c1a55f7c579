"""Files made up to harm: whatever they say, a VdiffError of the right kind comes out, soon,
and nothing else does.
"""

import io
import json
import os
import pickle
import re
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import test_checkpoint
from tests.test_golden import GOLDEN
from tests.test_save_path import TRAJECTORY, models, save
from vdiff.data.store import ImageStore
from vdiff.disk import manifest
from vdiff.errors import DataError, ModelFileError, UsageError, VdiffError
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import CONFIG, MANIFEST, WEIGHTS
from vdiff.model_folder.checkpoint import Checkpoint
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.runs import savepoint

# No shrinking and no data base of examples: a failure is printed as it was found, the same one
# every time.
CHEAP = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
SHIPPED = [path.read_text(encoding="utf-8") for path in recipe_text.shipped().values()]

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**19, 0.5, 1e308, -0.0]),
    st.sampled_from(["", "x" * 300, "\x1b[2J", "..", "𝄞"]),
    st.text(max_size=5),
    st.lists(st.integers(-1, 9), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def outcome(work: Callable[[], object], *kinds: type[VdiffError]) -> object:
    """What `work` gives, or the error of one of these kinds that came;
    every other one is a failure.
    """
    try:
        return work()
    except kinds as err:
        assert err.problem  # noqa: PT017 - either outcome is right
        assert len(str(err)) < 20_000  # noqa: PT017
        return err


def read_recipe(text: str) -> Recipe:
    return recipe_text.validate(Recipe, recipe_text.parse(text, "recipe.yaml"))


def is_recipe_or_mistake(text: str) -> bool:
    """A recipe that means the same when it is written down and read again,
    or a mistake of the recipe.
    """
    found = outcome(lambda: read_recipe(text), UsageError)
    if isinstance(found, UsageError):
        return True
    assert isinstance(found, Recipe)
    return Recipe.model_validate(found.model_dump(mode="json")) == found


WORDS = [
    "data",
    "path",
    "train",
    "updates",
    "network",
    "width",
    "[",
    "]",
    "{",
    "}",
    ":",
    ",",
    "\n",
    "  ",
    "- ",
    "#",
]
WORDS += [
    "&a",
    "*a",
    "!!python/object:os.system",
    "'",
    '"',
    "|",
    ">",
    "---",
    "%",
    "1e999",
    "0x",
    "9" * 40,
    "null",
    "~",
]
WORDS += ["\t", "\0"]


@settings(max_examples=150, **CHEAP)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), max_size=40).map("".join))
def test_any_text_as_a_recipe_is_a_recipe_or_a_mistake(text: str) -> None:
    assert is_recipe_or_mistake(text)


@settings(max_examples=60, **CHEAP)
@given(st.data())
def test_a_shipped_recipe_with_something_changed_is_a_recipe_or_a_mistake(
    data: st.DataObject,
) -> None:
    text = data.draw(st.sampled_from(SHIPPED))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        removed = data.draw(st.sampled_from([0, 1, 5, 10**6]))
        text = text[:place] + data.draw(st.sampled_from(WORDS)) + text[place + removed :]
    assert is_recipe_or_mistake(text)


VALUE = re.compile(r"(?<=: )[-\w.]+")


@settings(max_examples=60, **CHEAP)
@given(st.data())
def test_a_shipped_recipe_with_an_odd_value_is_a_recipe_or_a_mistake(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SHIPPED))
    found = data.draw(st.sampled_from(list(VALUE.finditer(text))))
    value = data.draw(ODD_VALUES.map(lambda value: json.dumps(value, allow_nan=True)))
    assert is_recipe_or_mistake(text[: found.start()] + value + text[found.end() :])


@pytest.mark.parametrize(
    "change",
    [
        "network.width=1",
        "network.width=true",
        "train.updates=true",
        "network.multipliers=[true, 2]",
    ],
)
def test_a_value_that_no_network_can_have_is_a_mistake_of_the_recipe(change: str) -> None:
    text = recipe_text.set_values(recipe_text.read_file(recipe_text.shipped()["digits"]), [change])
    with pytest.raises(UsageError):
        recipe_text.validate(Recipe, text)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "a:\n"])
def test_a_recipe_is_not_followed_into_any_depth(opening: str) -> None:
    deep = (
        "".join(" " * depth + opening for depth in range(300))
        if opening.endswith("\n")
        else opening * 20_000
    )
    assert isinstance(outcome(lambda: read_recipe(deep), UsageError), UsageError)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that each test puts back as it was."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    checkpoint.save(folder, test_checkpoint.card(), models()[0])
    return folder


def put(folder: Path, name: str, data: bytes) -> None:
    """Replace a file, and have the folder vouch for it: only what is in it can give it away."""
    (folder / name).write_bytes(data)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][name] = manifest.manifest(folder)[name]
    (folder / MANIFEST).write_text(manifest.sealed(content), encoding="utf-8")


def places(value: Any, keys: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values inside."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [found for key, each in inner for found in [(*keys, key), *places(each, (*keys, key))]]


def changed(data: st.DataObject, content: Any) -> Any:
    """A copy of something made of dicts and lists in which one to three values are odd or gone."""
    content = json.loads(json.dumps(content))
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(places(content)))
        inner = content
        for key in way:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[last] = data.draw(ODD_VALUES)
        else:
            del inner[last]
        if not places(content):
            break
    return content


@settings(max_examples=80, **CHEAP)
@given(st.data())
def test_a_card_with_odd_values_is_a_card_or_refused(model: Path, data: st.DataObject) -> None:
    before = (model / MANIFEST).read_text(encoding="utf-8")
    try:
        content = changed(data, json.loads(before))
        text = manifest.sealed(content) if data.draw(st.booleans()) else json.dumps(content)
        (model / MANIFEST).write_text(text, encoding="utf-8", errors="surrogatepass")
        assert isinstance(
            outcome(lambda: checkpoint.load(model), ModelFileError), Checkpoint | ModelFileError
        )
    finally:
        (model / MANIFEST).write_text(before, encoding="utf-8")


@settings(max_examples=60, **CHEAP)
@given(st.data())
def test_a_network_with_odd_settings_is_refused_before_it_is_made(
    model: Path, data: st.DataObject
) -> None:
    before = (model / CONFIG).read_bytes()
    try:
        put(model, CONFIG, json.dumps(changed(data, json.loads(before))).encode())
        assert isinstance(
            outcome(lambda: checkpoint.load(model), ModelFileError), Checkpoint | ModelFileError
        )
    finally:
        put(model, CONFIG, before)


def header_of(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return found


def with_header(header: bytes, rest: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + rest


@settings(max_examples=80, **CHEAP)
@given(st.data())
def test_weights_with_an_odd_header_are_refused(model: Path, data: st.DataObject) -> None:
    before = (model / WEIGHTS).read_bytes()
    header = header_of(before)
    body = before[8 + struct.unpack("<Q", before[:8])[0] :]
    try:
        text = json.dumps(changed(data, header)).encode(errors="surrogatepass")
        put(
            model,
            WEIGHTS,
            with_header(
                text, body, data.draw(st.sampled_from([None, None, None, 0, 7, 2**63, 2**64 - 1]))
            ),
        )
        assert isinstance(
            outcome(lambda: checkpoint.load(model), ModelFileError), Checkpoint | ModelFileError
        )
        assert isinstance(
            outcome(lambda: checkpoint.load_tensors(model / WEIGHTS), ModelFileError),
            dict | ModelFileError,
        )
    finally:
        put(model, WEIGHTS, before)


class Trap:
    """What a pickle can do to whoever loads it: here, make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def pickled(trap: Path) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save({"weights": Trap(trap)}, file)
    return {"bare": pickle.dumps(Trap(trap)), "torch": file.getvalue()}


def crafted(tensors: dict[str, Any], num_bytes: int) -> bytes:
    return with_header(json.dumps(tensors).encode(), bytes(num_bytes))


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty": b"",
    "seven bytes": b"\x02\0\0\0\0\0\0",
    "a header as long as the world": with_header(b"{}", b"", 2**64 - 1),
    "a header longer than the file": with_header(b"{}", b"", 3),
    "a header over the limit": with_header(b"{}", b"", 100 * 2**20 + 1),
    "no JSON": with_header(b"{]", b""),
    "a list": with_header(b"[]", b""),
    "deep": with_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
    "millions of values": with_header(b'{"a":[' + b"{}," * 2_000_001 + b"{}]}", b""),
    "a number of a million digits": with_header(b'{"a":' + b"9" * 1_000_000 + b"}", b""),
    "a name twice": with_header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2 + b'"b":{}}', bytes(4)
    ),
    "more than there is": crafted({"a": tensor("F32", [2**30], 0, 2**32)}, 4),
    "a shape beyond its bytes": crafted({"a": tensor("F32", [2**30], 0, 4)}, 4),
    "a shape that overflows": crafted({"a": tensor("F32", [2**32, 2**32, 2**32], 0, 0)}, 0),
    "a negative shape": crafted({"a": tensor("F32", [-1], 0, 4)}, 4),
    "offsets backwards": crafted({"a": tensor("F32", [1], 4, 0)}, 4),
    "an overlap": crafted({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [1], 4, 8)}, 8),
    "a gap": crafted({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}, 12),
    "a tail": crafted({"a": tensor("F32", [1], 0, 4)}, 400),
    "an unknown number type": crafted({"a": tensor("PICKLE", [1], 0, 4)}, 4),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def allocates(*_: object) -> None:
        pytest.fail("the file was handed to safetensors")

    path = tmp_path / "weights.safetensors"
    path.write_bytes(HOSTILE[kind])
    monkeypatch.setattr(checkpoint, "load_file", allocates)
    tracemalloc.start()
    try:
        err = outcome(lambda: checkpoint.load_tensors(path), ModelFileError)
        assert isinstance(err, ModelFileError)
        assert err.exit_code == 4
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("change", ["dtype", "shape", "one more", "one less", "name"])
def test_weights_for_another_network_are_refused_before_anything_is_allocated(
    model: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The same bytes under another description, which is sound in itself."""

    def allocates(*_: object) -> None:
        pytest.fail("the file was handed to safetensors")

    before = (model / WEIGHTS).read_bytes()
    header, body = header_of(before), before[8 + struct.unpack("<Q", before[:8])[0] :]
    name = "conv_in.weight"
    entry = header[name]
    if change == "dtype":
        entry["dtype"] = "I32"
    elif change == "shape":
        entry["shape"] = [*entry["shape"], 1]
    elif change == "one more":
        header["more"] = tensor("F32", [0], len(body), len(body))
    elif change == "one less":
        end = max(
            entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"
        )
        last = next(
            key
            for key, entry in header.items()
            if key != "__metadata__" and entry["data_offsets"][1] == end
        )
        body = body[: header.pop(last)["data_offsets"][0]]
    else:
        header["conv_im.weight"] = header.pop(name)
    monkeypatch.setattr(checkpoint, "load_file", allocates)
    try:
        put(model, WEIGHTS, with_header(json.dumps(header).encode(), body))
        with pytest.raises(ModelFileError, match="do not fit the network's configuration"):
            checkpoint.load(model)
    finally:
        put(model, WEIGHTS, before)


@pytest.mark.parametrize("kind", ["bare", "torch"])
def test_a_pickle_under_another_name_is_never_unpickled(
    model: Path, tmp_path: Path, kind: str
) -> None:
    before, trap = (model / WEIGHTS).read_bytes(), tmp_path / "trap"
    try:
        put(model, WEIGHTS, pickled(trap)[kind])
        assert isinstance(outcome(lambda: checkpoint.load(model), ModelFileError), ModelFileError)
    finally:
        put(model, WEIGHTS, before)
    assert not trap.exists()
    pickle.loads(pickled(trap)["bare"])  # noqa: S301 - the trap works
    assert trap.exists()


@settings(max_examples=40, **CHEAP)
@given(st.data())
def test_a_save_with_odd_values_is_a_save_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("saves")
    save(folder, 2)
    path = folder / "000000002" / "state.json"
    path.write_text(
        manifest.sealed(changed(data, json.loads(path.read_text()))), errors="surrogatepass"
    )
    said: list[str] = []
    found = outcome(
        lambda: savepoint.newest(folder, TRAJECTORY, said.append),
        ModelFileError,
        UsageError,
        DataError,
    )
    # one that is passed over is told of
    assert isinstance(found, savepoint.SavePoint | VdiffError) or said
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def golden_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "store"
    shutil.copytree(GOLDEN / "format_1" / "store", folder)
    return folder


@settings(max_examples=60, **CHEAP)
@given(st.integers(0, 36863), st.integers(1, 255), st.sampled_from([1, 1, 1, 64, 5000]))
def test_an_image_store_with_odd_bytes_is_a_store_or_refused(
    golden_store: Path, place: int, change: int, length: int
) -> None:
    path = golden_store / "data.mdb"
    before = path.read_bytes()
    spoiled = bytes(byte ^ change for byte in before[place : place + length])

    def read_all() -> list[bytes]:
        store = ImageStore(golden_store)
        return [store.read(index, 8) for index in range(store.num_images)]

    good = read_all()

    try:
        path.write_bytes(before[:place] + spoiled + before[place + length :])
        found = outcome(read_all, DataError)
        assert isinstance(found, DataError) or found == good
    finally:
        path.write_bytes(before)
