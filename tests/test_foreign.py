"""Other people's model files: described as torch and safetensors would load them,
and nothing in them is ever run.
"""

import io
import json
import os
import pickle
import pickletools
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from vdiff.disk.tensor_facts import FormatError
from vdiff.errors import ModelFileError
from vdiff.formats.foreign import ForeignFile, describe
from vdiff.formats.opcodes import follow

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "seed_samples" / "tiny_base_5"
needs_sample = pytest.mark.skipif(
    not SAMPLE.is_dir(), reason="shared/data/seed_samples is not beside the repository"
)


def outline(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()
    }


def described(file: ForeignFile) -> dict[str, tuple[tuple[int, ...], str]]:
    return {tensor.name: (tensor.shape, tensor.dtype) for tensor in file.tensors}


def with_header(path: Path, header: Any, num_data_bytes: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_data_bytes))
    return path


def with_pickle(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
    return path


class Bait:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


# --- what is in good files


@needs_sample
def test_a_checkpoint_of_diffusion_distiller_is_described_from_its_weights() -> None:
    file = describe(SAMPLE / "checkpoint.pt")
    network = json.loads((SAMPLE / "network.json").read_text())["network"]
    assert file.kind == "diffusion_distiller checkpoint"
    assert (file.facts["num_steps"], file.facts["time_scale"], file.facts["base_steps"]) == (
        16,
        64,
        1024,
    )
    assert file.facts["width"] == network["channel"]
    assert file.facts["multipliers"] == network["channel_multiplier"]
    assert file.facts["blocks"] == network["n_res_blocks"]
    assert file.facts["attention_strides"] == network["attn_strides"]
    assert file.facts["affine_time"] == network["use_affine_time"]
    assert (file.facts["channels"], file.facts["fold"]) == (network["in_channel"], network["fold"])
    assert "names_that_would_be_executed" not in file.facts


@needs_sample
def test_the_tensors_of_a_checkpoint_are_those_that_torch_loads() -> None:
    file = describe(SAMPLE / "checkpoint.pt")
    weights = torch.load(SAMPLE / "checkpoint.pt", weights_only=True)["G"]
    assert described(file) == outline({f"G.{name}": tensor for name, tensor in weights.items()})
    assert file.num_parameters == sum(
        t.numel() for name, t in weights.items() if name != "time.0.inv_freq"
    )


def test_every_kind_of_content_that_torch_saves_is_understood(tmp_path: Path) -> None:
    dtypes = [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ]
    tensors = {
        str(dtype): torch.zeros(3, 2, dtype=dtype)
        for dtype in [*dtypes, torch.uint16, torch.float8_e4m3fn]
    }
    tensors |= {
        "view": torch.zeros(4, 6)[1:, ::2],
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(1.0),
    }
    network = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2)).sum().backward()
    optimizer.step()
    others = {
        "parameter": network.weight,
        "size": torch.Size([1]),
        "device": torch.device("cpu"),
        "type": torch.int8,
    }
    saved = {
        **tensors,
        **others,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "n": 2**70,
    }
    torch.save(saved, tmp_path / "all.pt")
    file = describe(tmp_path / "all.pt")
    expected = outline({**tensors, "parameter": network.weight})
    expected |= outline(
        {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    )
    states = optimizer.state_dict()["state"].items()
    expected |= outline(
        {f"optimizer.state.{i}.{name}": t for i, state in states for name, t in state.items()}
    )
    assert described(file) == expected
    assert file.kind == "pytorch checkpoint"
    assert "names_that_would_be_executed" not in file.facts


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_version_of_pickle_gives_the_same_description(tmp_path: Path, protocol: int) -> None:
    content = {"w": torch.zeros(2, 3), "deep": [OrderedDict(b=torch.ones(1))]}
    torch.save(content, tmp_path / "weights.pt", pickle_protocol=protocol)
    expected = {"w": ((2, 3), "float32"), "deep.0.b": ((1,), "float32")}
    assert described(describe(tmp_path / "weights.pt")) == expected


def test_folded_and_plain_networks_of_diffusion_distiller_are_told_apart(tmp_path: Path) -> None:
    shapes = {"down.0.weight": (8, 12, 3, 3), "down.1.resblocks.conv1.weight": (8, 8, 3, 3)}
    shapes |= {
        "down.1.resblocks.time.1.weight": (8, 32),
        "down.2.resblocks.conv1.weight": (8, 8, 3, 3),
    }
    shapes |= {"down.3.0.weight": (8, 8, 3, 3), "down.4.resblocks.conv1.weight": (24, 8, 3, 3)}
    shapes |= {"down.4.attention.qkv.weight": (72, 24, 1, 1)}
    weights = OrderedDict((name, torch.zeros(shape)) for name, shape in shapes.items())
    torch.save({"G": weights, "n_timesteps": 8, "time_scale": 128}, tmp_path / "folded.pt")
    facts = describe(tmp_path / "folded.pt").facts
    assert (facts["channels"], facts["fold"], facts["affine_time"]) == (3, 2, False)
    assert (facts["multipliers"], facts["blocks"], facts["attention_strides"]) == ([1, 3], 2, [2])


def test_a_checkpoint_with_another_network_is_not_mistaken_for_the_unet(tmp_path: Path) -> None:
    weights = OrderedDict({"down.0.weight": torch.zeros(0), "down.9.0.weight": torch.zeros(1)})
    torch.save({"G": weights, "n_timesteps": 8, "time_scale": 128}, tmp_path / "other.pt")
    facts = describe(tmp_path / "other.pt").facts
    assert facts["num_steps"] == 8
    assert facts["network"] == "not the U-Net of diffusion_distiller"


def test_safetensors_are_described_from_their_header(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.zeros(2, 3),
        "b": torch.zeros(5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
    }
    tensors |= {
        "flag": torch.zeros(3, dtype=torch.bool),
        "scalar": torch.tensor(1, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    file = describe(tmp_path / "weights.safetensors")
    assert described(file) == outline(tensors)
    assert (file.kind, file.num_parameters) == ("safetensors weights", 11)
    assert file.facts["metadata"] == {"format": "pt"}


def test_a_diffusers_pipeline_is_described_from_its_configuration(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    diffusers.DDIMPipeline(network, scheduler).save_pretrained(tmp_path / "model")
    file = describe(tmp_path / "model")
    assert (file.kind, file.facts["pipeline"]) == ("diffusers pipeline", "DDIMPipeline")
    assert (file.facts["network"], file.facts["block_out_channels"]) == ("UNet2DModel", [32, 64])
    assert (file.facts["scheduler"], file.facts["prediction_type"]) == (
        "DDIMScheduler",
        "v_prediction",
    )
    assert described(file) == outline(network.state_dict())
    assert file.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    unet = tmp_path / "model" / "unet"
    assert describe(unet).kind == "diffusers network"
    save_file({"half": torch.zeros(2)}, unet / "diffusion_pytorch_model.fp16.safetensors")
    assert described(describe(unet)) == outline(network.state_dict())


def test_a_torchscript_file_is_called_a_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("s/data.pkl", pickle.dumps({}))
        archive.writestr("s/code/__torch__.py", "")
    assert describe(tmp_path / "script.pt").kind == "torchscript program"


# --- nothing is run


def test_a_malicious_checkpoint_is_named_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"model": {"w": torch.zeros(2)}, "args": Bait(trace)}, path)
    file = describe(path)
    assert not trace.exists()
    assert file.facts["names_that_would_be_executed"] == [f"{os.name}.system"]
    assert described(file) == {"model.w": ((2,), "float32")}
    torch.load(path, weights_only=False)
    assert trace.exists()  # the bait is real: unpickling runs it


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_malicious_bare_pickle_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Bait(tmp_path / "trace"), protocol))
    file = describe(tmp_path / "evil.pt")
    assert not (tmp_path / "trace").exists()
    assert file.kind == "legacy pickle"
    assert file.facts["names_that_would_be_executed"] == [f"{os.name}.system"]


def test_files_of_old_pytorch_are_named_legacy_with_a_way_out(tmp_path: Path) -> None:
    content = {"w": torch.zeros(2), "bait": Bait(tmp_path / "trace")}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    file = describe(tmp_path / "old.pt")
    assert not (tmp_path / "trace").exists()
    assert file.kind == "legacy pickle"
    assert "not read" in file.facts["note"]
    assert "weights_only=True" in file.facts["fix"]
    assert file.facts["names_that_would_be_executed"] == [f"{os.name}.system"]


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_renamed_to_safetensors_is_refused_by_name(
    tmp_path: Path, is_zip: bool, protocol: int
) -> None:
    path = tmp_path / "weights.safetensors"
    if is_zip:
        torch.save(Bait(tmp_path / "trace"), path, pickle_protocol=max(protocol, 2))
    else:
        path.write_bytes(pickle.dumps(Bait(tmp_path / "trace"), protocol))
    with pytest.raises(ModelFileError, match="under the name of a safetensors file"):
        describe(path)
    assert not (tmp_path / "trace").exists()


def test_odd_ways_to_call_are_named_too(tmp_path: Path) -> None:
    programs = {
        "GLOBAL": b"cos\nsystem\n.",
        "INST": b"(S'id'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'id'\no.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "NEWOBJ": b"\x80\x02cos\nsystem\n)\x81.",
        "NEWOBJ_EX": b"\x80\x04cos\nsystem\n)}\x92.",
        "SETITEM on it": b"\x80\x02cos\nsystem\nK\x01K\x02s.",
        "hidden under a POP": b"\x80\x02cos\nsystem\n0N.",
        "as a state": b"\x80\x02}cos\nsystem\nb.",
    }
    for way, program in programs.items():
        file = describe(with_pickle(tmp_path / "evil.pt", program))
        assert file.facts["names_that_would_be_executed"] == ["os.system"], way


def test_a_name_cannot_send_commands_to_the_terminal(tmp_path: Path) -> None:
    file = describe(with_pickle(tmp_path / "evil.pt", b"cos\n\x1b[2Jsystem\n."))
    assert file.facts["names_that_would_be_executed"] == [r"os.\x1b[2Jsystem"]


# --- bad files


def torch_bytes(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def rewritten(path: Path, **changes: bytes | None) -> Path:
    """A checkpoint of two tensors with some records replaced or, by None, left out."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"a": torch.zeros(4), "b": torch.ones(2)}))) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in {
            **records,
            **{f"archive/data/{key[1:]}": data for key, data in changes.items()},
        }.items():
            if content is not None:
                new.writestr(name, content)
    return path


def test_a_missing_or_short_storage_is_found(tmp_path: Path) -> None:
    assert len(describe(rewritten(tmp_path / "whole.pt")).tensors) == 2
    with pytest.raises(ModelFileError, match="`data/0` should have 16 bytes and is missing"):
        describe(rewritten(tmp_path / "missing.pt", _0=None))
    with pytest.raises(ModelFileError, match="`data/1` should have 8 bytes and has 7"):
        describe(rewritten(tmp_path / "short.pt", _1=b"1234567"))


@pytest.mark.parametrize(
    ("shape", "strides", "problem"),
    [
        ("(K\x05t", "K\x01\x85", "reaches beyond its storage"),
        ("(K\x02t", "K\x04\x85", "reaches beyond its storage"),
        ("(J\xff\xff\xff\xfft", "K\x01\x85", "not a shape"),
        ("(\x88t", "K\x01\x85", "not a shape"),
        ("(K\x02t", "J\xff\xff\xff\xff\x85", "odd about where"),
        ("(K\x02K\x02t", "K\x01\x85", "odd about where"),
        ("(X\x01\x00\x00\x00xt", "K\x01\x85", "not a shape"),
        ("N", "K\x01\x85", "not a shape"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, shape: str, strides: str, problem: str
) -> None:
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    )
    tail = f"K\x00{shape}{strides}".encode("latin-1") + b"\x89NtR."
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + tail
    with zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", bytes(16))
    with pytest.raises(ModelFileError, match=problem):
        describe(tmp_path / "odd.pt")


HOSTILE = {
    "doubles a tuple 200 times": (b"\x80\x02)" + b"2\x86" * 200 + b".", "more than 32 deep"),
    "nests 100,000 deep": (
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        "more than 32 deep",
    ),
    "copies 2,000 pairs 3,000 times": (
        b"]("
        + b"K\x01K\x02\x86" * 2000
        + b"eq\x000"
        + b"ccollections\nOrderedDict\nh\x00\x85R0" * 3000
        + b"N.",
        "copies one list over and over",
    ),
    "has memo keys of one hash": (
        b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(1, 9)) + b".",
        "damaged",
    ),
    "has an endless name": (
        b"\x80\x04\x8c\x02osX" + (5000).to_bytes(4, "little") + b"x" * 5000 + b"\x93.",
        "damaged",
    ),
    "never ends": (b"N0" * 1_000_001 + b"N.", "more than 2000000 instructions"),
    "takes from an empty stack": (b"0.", "damaged"),
    "has no end": (b"\x80\x02}", "damaged"),
    "reads extension codes": (b"\x80\x02\x82\x01.", "instruction EXT1"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_pickle_is_refused_soon_that(tmp_path: Path, what: str) -> None:
    program, problem = HOSTILE[what]
    begin = time.monotonic()
    with pytest.raises(ModelFileError, match=problem):
        describe(with_pickle(tmp_path / "hostile.pt", program))
    assert time.monotonic() - begin < 20


def test_two_billion_paths_to_one_table_are_one_table(tmp_path: Path) -> None:
    level: Any = {"w": torch.zeros(2)}
    for _ in range(30):
        level = [level, level]
    torch.save(level, tmp_path / "laughs.pt")
    assert list(described(describe(tmp_path / "laughs.pt"))) == ["0." * 30 + "w"]


def test_a_container_that_holds_itself_is_entered_once(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"w": torch.zeros(2)}
    loop["again"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    assert described(describe(tmp_path / "loop.pt")) == {"w": ((2,), "float32")}


def test_zip_files_that_lie_or_are_not_of_pytorch_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.pt", "w") as archive:
        archive.writestr("picture.png", b"")
    with pytest.raises(ModelFileError, match="not one of PyTorch"):
        describe(tmp_path / "pictures.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**22))
    with pytest.raises(ModelFileError, match="compressed"):
        describe(tmp_path / "bomb.pt")
    whole = torch_bytes({"a": torch.zeros(100)})
    (tmp_path / "cut.pt").write_bytes(whole[:-30])
    with pytest.raises(ModelFileError, match="damaged zip"):
        describe(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "twice.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b"cos\nsystem\n.")
    with pytest.raises(ModelFileError, match="twice"):
        describe(tmp_path / "twice.pt")


def test_a_record_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\x00\x00\x00\x10tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00J\x00\x00\x00\x10\x85K\x01\x85\x89NtR"
    )
    path = with_pickle(tmp_path / "claims.pt", b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/0", b"")
    content = path.read_bytes()
    # the two sizes of the last record in the list of records
    at = content.rindex(b"PK\x01\x02") + 20
    path.write_bytes(content[:at] + (2**30).to_bytes(4, "little") * 2 + content[at + 8 :])
    with pytest.raises(ModelFileError, match="claim more bytes than it has"):
        describe(path)


def test_absurd_sizes_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    """Files with holes: they are long and take no disk."""
    absurd = 100 * 2**20
    with zipfile.ZipFile(small := io.BytesIO(), "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
    content = small.getvalue()
    ends = {
        "holds a pickle of": content.replace(
            (2).to_bytes(4, "little") * 2, absurd.to_bytes(4, "little") * 2
        ),
        "bytes at once": content[:-10]
        + absurd.to_bytes(4, "little")
        + (0).to_bytes(4, "little")
        + content[-2:],
    }
    for problem, end in ends.items():
        with (tmp_path / "absurd.pt").open("wb") as file:
            file.write(b"PK\x03\x04")
            file.seek(2 * absurd)
            file.write(end)
        with pytest.raises(ModelFileError, match=problem):
            describe(tmp_path / "absurd.pt")


def test_more_tensors_than_any_network_has_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)] * 200_001, tmp_path / "many.pt")
    with pytest.raises(ModelFileError, match="more than 200000 tensors"):
        describe(tmp_path / "many.pt")


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "num_data_bytes", "problem"),
    [
        ({"a": ONE}, 7, "cut short or too long"),
        ({"a": ONE}, 9, "cut short or too long"),
        ({"a": {**ONE, "shape": [3]}}, 8, "gives 8 bytes to `a`"),
        ({"a": {**ONE, "shape": [-1, -2]}}, 8, "not a shape"),
        ({"a": {**ONE, "shape": [True, 2]}}, 8, "not a shape"),
        ({"a": {**ONE, "shape": [2.0]}}, 8, "not a shape"),
        ({"a": {**ONE, "shape": [2**62, 2**62]}}, 8, "gives 8 bytes"),
        ({"a": {**ONE, "shape": [10**400]}}, 8, "not a shape"),
        ({"a": {**ONE, "shape": [1] * 65}}, 8, "not a shape"),
        ({"a": {**ONE, "shape": "2"}}, 8, "not a shape"),
        ({"a": {**ONE, "dtype": "F31"}}, 8, "unknown type of number"),
        ({"a": {**ONE, "dtype": ["F32"]}}, 8, "unknown type of number"),
        ({"a": {**ONE, "data_offsets": [8, 0]}}, 8, "gives -8 bytes"),
        ({"a": {**ONE, "data_offsets": [0]}}, 8, "two offsets"),
        ({"a": {**ONE, "data_offsets": [-8, 0]}}, 8, "two offsets"),
        ({"a": {**ONE, "data_offsets": [4, 12]}}, 12, "gap or an overlap"),
        ({"a": ONE, "b": ONE}, 8, "gap or an overlap"),
        ({"a": {**ONE, "more": 1}}, 8, "should give dtype, shape"),
        ({"a": [ONE]}, 8, "should give dtype, shape"),
        ({"\x1b[2J": ONE}, 8, "a name that no program gives"),
        ({"a" * 501: ONE}, 8, "a name that no program gives"),
        ({"__metadata__": {"a": 1}}, 0, "table of texts"),
        ({"__metadata__": []}, 0, "table of texts"),
        (b'{"a": {}, "a": {}}', 0, "a key appears twice"),
        (b"[]", 0, "is not a model file"),
        (b"{" * 2000, 0, "not JSON"),
        (b'{"a":' * 5000, 0, "not JSON"),
        (b'{"a": ' + b"[" * 20000 + b"]" * 20000 + b"}", 0, "not JSON"),
        (b'{"a": [' + b"," * 2_000_001 + b"]}", 0, "more than 2000000 values"),
        (b'{"\xff": 1}', 0, "not JSON"),
        (b"{" + b"1" * 5000, 0, "not JSON"),
    ],
)
def test_every_lie_in_a_safetensors_header_is_refused(
    tmp_path: Path, header: Any, num_data_bytes: int, problem: str
) -> None:
    path = with_header(tmp_path / "weights.sft", header, num_data_bytes)
    with pytest.raises(ModelFileError, match=problem):
        describe(path)


@pytest.mark.parametrize("length", [5, 100, 100 * 2**20 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused_before_reading(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}  ")
    with pytest.raises(ModelFileError, match=f"12 bytes, a header of {length}"):
        describe(path)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_header_that_ends_too_early_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}  ")
    with pytest.raises(ModelFileError, match=r"not JSON|cut short"):
        describe(path)


def test_a_header_over_the_limit_of_the_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write((100 * 2**20 + 1).to_bytes(8, "little") + b"{")
        file.truncate(200 * 2**20)  # a hole in the file: no disk is used
    with pytest.raises(ModelFileError, match="the format allows"):
        describe(path)


@pytest.mark.parametrize("name", ["notes.txt", "weights.safetensors", "weights.pt"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n", b"\x89PNG\r\n\x1a\n", bytes(100), b"\x80\x02garbage", b"PK\x03\x04"],
)
def test_files_that_are_no_models_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        describe(tmp_path / name)
    assert caught.value.fix
    assert caught.value.where == str(tmp_path / name)


def test_paths_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        describe(tmp_path / "nowhere.pt")
    with pytest.raises(ModelFileError, match=r"without `model_index\.json`"):
        describe(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ModelFileError, match="is not a file"):
        describe(tmp_path / "pipe.pt")


def test_bad_diffusers_folders_are_refused(tmp_path: Path) -> None:
    network = tmp_path / "unet"
    network.mkdir()
    (network / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ModelFileError, match="has no weights in `unet`"):
        describe(tmp_path)
    (network / "diffusion_pytorch_model.safetensors").write_bytes(
        pickle.dumps(Bait(tmp_path / "trace"))
    )
    with pytest.raises(
        ModelFileError, match=r"`diffusion_pytorch_model.safetensors`, that is a pickle"
    ):
        describe(tmp_path)
    (network / "config.json").write_text("[" * 2**21)
    with pytest.raises(ModelFileError, match="more than 1048576 bytes"):
        describe(tmp_path)


# --- whatever comes

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)
GOOD = {
    ".safetensors": save(
        {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int8)}, {"made": "here"}
    ),
    ".pt": torch_bytes({"G": OrderedDict(a=torch.zeros(2)), "n_timesteps": 4, "time_scale": 2}),
    ".ckpt": pickle.dumps({"a": (1, 2.0, None), "b": [b"x", {1}]}, protocol=4),
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def description(path: Path, content: bytes) -> dict[str, Any] | None:
    """What is told of a file, as JSON holds it;
    None where it is refused, in an error of three lines.
    """
    path.write_bytes(content)
    try:
        found = describe(path)
    except ModelFileError as err:
        assert str(err).count("\n") == 2  # noqa: PT017 - either outcome is right
        return None
    facts: dict[str, Any] = json.loads(json.dumps(found.facts))
    return facts


@QUICK
@given(
    suffix=st.sampled_from(sorted(GOOD)),
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]),
    rest=st.binary(),
)
def test_random_bytes_are_only_ever_refused(
    scratch: Path, suffix: str, start: bytes, rest: bytes
) -> None:
    found = description(scratch / f"random{suffix}", start + rest)
    assert found is None or found["note"] == "a bare pickle: not read"


@QUICK
@given(
    suffix=st.sampled_from(sorted(GOOD)),
    where=st.floats(0, 1, exclude_max=True),
    new=st.binary(max_size=9),
    data=st.data(),
)
def test_changed_files_are_described_or_refused(
    scratch: Path, suffix: str, where: float, new: bytes, data: Any
) -> None:
    good = GOOD[suffix]
    at = int(where * len(good))
    skipped = data.draw(st.sampled_from([0, 1, len(new), len(good)]))
    changed = good[:at] + new + good[at + skipped :]
    found = description(scratch / f"changed{suffix}", changed)
    assert found is None or found["num_bytes"] == len(changed)
    assert found is not None or changed != good


@QUICK
@given(
    st.lists(
        st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes]),
        max_size=30,
    )
)
def test_any_row_of_instructions_is_followed_or_refused(opcodes: list[bytes]) -> None:
    program = b"cos\nsystem\n(NK\x01" + b"".join(
        code + b"\x01\n\n"[: 3 * (code in b"cipgPqh")] for code in opcodes
    )
    try:
        names = follow(io.BytesIO(program + b".")).names
    except FormatError as err:
        assert "pickle" in err.reason  # noqa: PT017 - either outcome is right
    else:
        assert names[0] == "os.system"
