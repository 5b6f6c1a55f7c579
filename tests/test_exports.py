"""Models go out as safetensors, ONNX and programs of torch, and compute there what they did."""

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from vdiff import cli
from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import MachineError, ModelFileError
from vdiff.formats import graphs
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import contents_of
from vdiff.formats.onnx_format import NEEDED, OnnxFormat
from vdiff.formats.plain_safetensors import SafetensorsFormat
from vdiff.formats.torch_export_format import TorchExportFormat
from vdiff.networks.unet import UNet
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim

MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

CONFIG: dict[str, object] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "dropout": 0.1,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def student(
    num_steps: int = 2,
    predicts: str = "v",
    sampler: dict[str, object] | None = None,
    classes: int | None = None,
) -> ForeignModel:
    torch.manual_seed(3)
    network = UNet.from_config(CONFIG | {"num_class_embeds": classes})
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    network.eval().requires_grad_(False)
    diffusion = {"schedule": {"kind": "cosine", "grid": 64}, "predicts": predicts}
    section = DiffusionSection.model_validate(diffusion)
    denoiser = Denoiser(network, section.schedule.build(), section.predicts)
    return ForeignModel(
        denoiser, "unet", diffusion, (1, 8, 8), classes or 0, num_steps, True, sampler=sampler
    )


def drawn(model: ForeignModel, count: int, clip: float | None = None) -> tuple[Any, Any]:
    """Noise, and the pictures that vdiff's own sampler makes of it."""
    rng = Randomness.for_images(torch.arange(count))
    noise = rng.normal(*model.shape)
    with torch.no_grad():
        return noise, Ddim(clip=clip)(model.denoiser, noise, model.num_steps, rng)


# ---- safetensors


def test_safetensors_holds_the_weights_and_what_they_mean() -> None:
    model = student(classes=3)
    SafetensorsFormat().write(model, Path("a.safetensors"), {})
    with safe_open("a.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["vdiff"])
    assert (settings["num_steps"], settings["is_distilled"], settings["shape"]) == (
        2,
        True,
        [1, 8, 8],
    )
    again = SafetensorsFormat().read(contents_of(Path("a.safetensors")), {})
    for name, tensor in model.denoiser.network.state_dict().items():
        assert torch.equal(again.denoiser.network.state_dict()[name], tensor)
    assert (again.diffusion, again.num_classes, again.is_distilled) == (model.diffusion, 3, True)


def test_safetensors_in_half_precision_is_half_as_large() -> None:
    model = student()
    SafetensorsFormat().write(model, Path("a.safetensors"), {})
    SafetensorsFormat().write(model, Path("b.safetensors"), {"fp16": "true"})
    assert Path("b.safetensors").stat().st_size < 0.75 * Path("a.safetensors").stat().st_size
    again = SafetensorsFormat().read(contents_of(Path("b.safetensors")), {})
    weight = model.denoiser.network.state_dict()["conv_in.weight"]
    assert torch.equal(again.denoiser.network.state_dict()["conv_in.weight"], weight.half().float())


def test_safetensors_whose_settings_do_not_fit_the_weights_are_refused() -> None:
    model = student()
    SafetensorsFormat().write(model, Path("a.safetensors"), {})
    raw = Path("a.safetensors").read_bytes()
    assert raw.count(b'block_out_channels\\": [8, 16]') == 1
    Path("b.safetensors").write_bytes(raw.replace(b"[8, 16], ", b"[8, 64], "))
    with pytest.raises(ModelFileError, match="should be"):
        SafetensorsFormat().read(contents_of(Path("b.safetensors")), {})


# ---- graphs


@pytest.mark.parametrize(
    ("predicts", "sampler"), [("v", None), ("x", None), ("eps", {"kind": "ddim", "clip": 1.0})]
)
def test_the_sampler_as_one_function_draws_what_vdiff_draws(
    predicts: str, sampler: dict[str, object] | None
) -> None:
    model = student(4, predicts, sampler)
    noise, wanted = drawn(model, 3, 1.0 if sampler else None)
    _, graph = graphs.graphs_of(model)
    with torch.no_grad():
        pictures = graph.module(noise)
    assert float((pictures - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_graphs_in_half_precision_are_smaller_and_take_and_give_float32() -> None:
    # of so many steps the network alone is a graph, which is quick
    model = student(17, classes=3)
    TorchExportFormat().write(model, Path("full"), {})
    TorchExportFormat().write(model, Path("half"), {"fp16": "true"})
    sizes = [Path(f"{name}/network.pt2").stat().st_size for name in ("full", "half")]
    weights = sum(weight.numel() for weight in model.denoiser.network.parameters())
    assert sizes[0] - sizes[1] > 1.8 * weights
    z, time, label = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 30.0, 63.0]), torch.arange(3)
    outputs = TorchExportFormat().outputs(contents_of(Path("half")), z, time, label)
    assert outputs is not None
    assert outputs.output.dtype == torch.float32
    with torch.no_grad():
        wanted = model.denoiser.network(z, time, Condition(label))
    difference = float((outputs.output - wanted).abs().max())
    limit = TorchExportFormat().tolerance({"fp16": "true"})
    assert limit is not None
    assert 0 < difference < limit
    # the model itself is as it was
    assert model.denoiser.network.conv_in.weight.dtype == torch.float32


@needs_onnx
def test_onnx_in_half_precision_draws_nearly_the_same() -> None:
    model = student(4)
    OnnxFormat().write(model, Path("full"), {})
    OnnxFormat().write(model, Path("half"), {"fp16": "true"})
    sizes = [Path(f"{name}/sampler.onnx").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.9 * sizes[0]
    from vdiff.formats.onnx_writing import opened

    noise, wanted = drawn(model, 3)
    pictures = opened(Path("half/sampler.onnx"))({"noise": noise})
    assert pictures.dtype == torch.float32
    assert float((pictures - wanted).abs().max()) < graphs.HALF_PICTURES_TOLERANCE


def test_a_half_that_is_too_far_off_says_to_leave_it_out() -> None:
    model = graphs.halved(student(2))
    graph = graphs.graphs_of(model)[1]
    with pytest.raises(ModelFileError) as caught:
        graphs.check_pictures(model, graph, lambda inputs: inputs["noise"] + 1, "somebody")
    assert caught.value.fix == "leave out --fp16"


def test_a_sampler_that_is_no_graph_says_why() -> None:
    assert "17 steps" in str(graphs.hindrance(student(17)))
    assert "not DDIM" in str(graphs.hindrance(student(2, sampler={"kind": "ancestral"})))
    assert [graph.name for graph in graphs.graphs_of(student(17))] == ["network"]


def test_a_program_of_torch_computes_the_same_at_other_batch_sizes() -> None:
    model = student()
    TorchExportFormat().write(model, Path("out"), {})
    with zipfile.ZipFile("out/sampler.pt2") as archive:
        assert not any(b"/vdiff/" in archive.read(name) for name in archive.namelist())
    noise, wanted = drawn(model, 5)
    extra = {"vdiff.json": ""}
    program = torch.export.load("out/sampler.pt2", extra_files=extra)
    with torch.no_grad():
        pictures = program.module()(noise)
    assert float((pictures - wanted).abs().max()) < 1e-5
    assert json.loads(extra["vdiff.json"])["num_steps"] == 2
    assert "not clipped" in json.loads(Path("out/export.json").read_text())["pictures"]
    found = TorchExportFormat().outputs(contents_of(Path("out")), noise, torch.ones(5), None)
    assert found is not None
    with torch.no_grad():
        ours = model.denoiser.network(noise, torch.ones(5))
    assert float((found.output - ours).abs().max()) < 1e-5


def test_a_sampler_that_draws_something_else_is_refused() -> None:
    model = student()
    _, graph = graphs.graphs_of(model)

    def off(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return graph.module(*inputs.values()) + 0.01

    with torch.no_grad(), pytest.raises(ModelFileError, match=r"differ by 0\.01"):
        graphs.check_pictures(model, graph, off, "another program")


@needs_onnx
@pytest.mark.parametrize("classes", [None, 3])
def test_onnx_runtime_computes_the_same_at_other_batch_sizes(classes: int | None) -> None:
    import onnx
    import onnxruntime

    model = student(classes=classes)
    OnnxFormat().write(model, Path("out"), {})
    written = onnx.load("out/sampler.onnx")
    assert [each.version for each in written.opset_import if not each.domain] == [18]
    batch = written.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "batch"
    facts = {each.key: each.value for each in written.metadata_props}
    assert json.loads(facts["vdiff"])["shape"] == [1, 8, 8]
    assert b"/vdiff/" not in Path("out/sampler.onnx").read_bytes()
    _, graph = graphs.graphs_of(model)
    for count in (1, 5):
        inputs = {"noise": Randomness.for_images(torch.arange(count)).normal(1, 8, 8)}
        if classes:
            inputs["label"] = torch.arange(count) % classes
        with torch.no_grad():
            wanted = graph.module(*inputs.values())
        session = onnxruntime.InferenceSession("out/sampler.onnx")
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        pictures = torch.from_numpy(session.run(["pictures"], arrays)[0])
        assert float((pictures - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize("package", NEEDED)
def test_a_missing_package_is_named_with_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(MachineError, match=package) as caught:
        OnnxFormat().write(student(), Path("out"), {})
    assert "vdiff-distill[onnx]" in str(caught.value.fix)
    assert not Path("out").exists()


def test_the_command_exports_and_imports_again() -> None:
    SafetensorsFormat().write(student(), Path("a.safetensors"), {})
    assert cli.main(["import", "a.safetensors", "--out", "run"]) == 0
    for name, out in (("safetensors", "b.safetensors"), ("torch-export", "b")):
        assert cli.main(["export", "run/original", "--to", name, "--out", out]) == 0
        assert Path(out).exists()
    assert cli.main(["inspect", "b"]) == 0
