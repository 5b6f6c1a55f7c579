"""Files of OpenAI's guided-diffusion and improved-diffusion:
every network of theirs, and what they do not tell.
"""

import itertools
import math
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import ddim_step, scales
from vdiff.disk.tensor_facts import FormatError
from vdiff.errors import ModelFileError, UsageError
from vdiff.exchange import bring, proof
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import contents_of
from vdiff.formats.foreign import describe
from vdiff.formats.guided import GuidedFormat
from vdiff.formats.guided_settings import PRESETS
from vdiff.networks.network import as_network

FOREIGN = Path(__file__).parents[2] / "shared" / "data" / "foreign"
needs_files = pytest.mark.skipif(
    not FOREIGN.is_dir(), reason="shared/data/foreign is not beside the repository"
)
RECORDED: dict[str, dict[str, str]] = {
    "guided_1": {"size": "16", "head_dim": "16", "qkv_order": "legacy", "schedule": "linear"},
    "guided_2": {"size": "16", "head_dim": "8", "qkv_order": "new", "schedule": "cosine"},
    "guided_5": {
        "size": "8",
        "heads": "1",
        "schedule": "cosine",
        "steps": "4000",
        "rescale": "yes",
    },
    "improved_1": {
        "size": "16",
        "heads": "4",
        "qkv_order": "legacy",
        "schedule": "cosine",
        "steps": "4000",
        "rescale": "yes",
    },
}
"""What facts.json says of each, and its file does not."""


class Theirs:
    """A network of guided-diffusion, computed from its tensors by their names
    and nothing of vdiff's.
    """

    def __init__(self, heads: dict[str, int], new_order: bool, **shape: Any) -> None:
        self.heads, self.new_order = heads, new_order
        self.tensors: OrderedDict[str, Tensor] = OrderedDict()
        self.rng = torch.Generator().manual_seed(5)
        self._make(**shape)

    def _add(self, name: str, *shape: int) -> None:
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        self.tensors[f"{name}.weight"] = torch.randn(shape, generator=self.rng) * scale
        self.tensors[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=self.rng)

    def _norm(self, name: str, width: int) -> None:
        self.tensors[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=self.rng)
        self.tensors[f"{name}.bias"] = 0.2 * torch.randn(width, generator=self.rng)

    def _block(self, name: str, before: int, width: int) -> None:
        self._norm(f"{name}.in_layers.0", before)
        self._add(f"{name}.in_layers.2", width, before, 3, 3)
        self._add(f"{name}.emb_layers.1", width * (1 + self.scale_shift), self.embedding)
        self._norm(f"{name}.out_layers.0", width)
        self._add(f"{name}.out_layers.3", width, width, 3, 3)
        if before != width:
            self._add(f"{name}.skip_connection", width, before, 1, 1)

    def _attention(self, name: str, width: int) -> None:
        self._norm(f"{name}.norm", width)
        self._add(f"{name}.qkv", 3 * width, width, 1)
        self._add(f"{name}.proj_out", width, width, 1)

    def _make(
        self,
        width: int = 32,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        attends: tuple[bool, ...] = (False, True),
        updown: bool = False,
        scale_shift: bool = True,
        inputs: int = 3,
        outputs: int = 3,
        classes: int = 0,
    ) -> None:
        self.embedding, self.scale_shift, self.width = 4 * width, scale_shift, width
        self._add("time_embed.0", self.embedding, width)
        self._add("time_embed.2", self.embedding, self.embedding)
        if classes:
            table = torch.randn(classes, self.embedding, generator=self.rng)
            self.tensors["label_emb.weight"] = table
        self._add("input_blocks.0.0", widths[0], inputs, 3, 3)
        kept, current, i = [widths[0]], widths[0], 1
        for level, now in enumerate(widths):
            for _ in range(blocks):
                self._block(f"input_blocks.{i}.0", current, now)
                if attends[level]:
                    self._attention(f"input_blocks.{i}.1", now)
                current, i = now, i + 1
                kept.append(now)
            if level < len(widths) - 1:
                if updown:
                    self._block(f"input_blocks.{i}.0", now, now)
                else:
                    self._add(f"input_blocks.{i}.0.op", now, now, 3, 3)
                kept, i = [*kept, now], i + 1
        self._block("middle_block.0", current, current)
        self._attention("middle_block.1", current)
        self._block("middle_block.2", current, current)
        k = 0
        for level in reversed(range(len(widths))):
            for j in range(blocks + 1):
                self._block(f"output_blocks.{k}.0", current + kept.pop(), widths[level])
                current = widths[level]
                if attends[level]:
                    self._attention(f"output_blocks.{k}.1", current)
                if level and j == blocks:
                    place = f"output_blocks.{k}.{1 + attends[level]}"
                    if updown:
                        self._block(place, current, current)
                    else:
                        self._add(f"{place}.conv", current, current, 3, 3)
                k += 1
        self._norm("out.0", current)
        self._add("out.2", outputs, current, 3, 3)

    def _apply(self, name: str, h: Tensor, **how: Any) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        if weight.ndim == 1:
            return F.group_norm(h, 32, weight, bias, 1e-5)
        if weight.ndim == 2:
            return F.linear(h, weight, bias)
        if weight.ndim == 3:
            return F.conv1d(h, weight, bias)
        return F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2, **how)

    def _run_block(self, name: str, x: Tensor, told: Tensor, resample: Any = None) -> Tensor:
        h = F.silu(self._apply(f"{name}.in_layers.0", x))
        if resample is not None:
            h, x = resample(h), resample(x)
        h = self._apply(f"{name}.in_layers.2", h)
        time = self._apply(f"{name}.emb_layers.1", F.silu(told))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self._apply(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self._apply(f"{name}.out_layers.0", h + time)
        h = self._apply(f"{name}.out_layers.3", F.silu(h))
        if f"{name}.skip_connection.weight" in self.tensors:
            x = self._apply(f"{name}.skip_connection", x)
        return x + h

    def _run_attention(self, name: str, x: Tensor) -> Tensor:
        heads = self.heads["up" if name.startswith("output") else "down"]
        heads = heads if heads > 0 else x.shape[1] // -heads
        qkv = self._apply(f"{name}.qkv", self._apply(f"{name}.norm", x).flatten(2))
        if self.new_order:
            q, k, v = qkv.unflatten(1, (3, heads, -1)).unbind(1)
        else:
            q, k, v = qkv.unflatten(1, (heads, 3, -1)).unbind(2)
        weight = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(q.shape[2])
        mixed = torch.einsum("bhts,bhcs->bhct", weight.softmax(-1), v).flatten(1, 2)
        return x + self._apply(f"{name}.proj_out", mixed).reshape(x.shape)

    def __call__(self, z: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        half = self.width // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half) / half)
        angles = time[:, None] * rates
        told = torch.cat([angles.cos(), angles.sin()], dim=1)
        told = self._apply("time_embed.2", F.silu(self._apply("time_embed.0", told)))
        if label is not None:
            told = told + self.tensors["label_emb.weight"][label]
        kept: list[Tensor] = []
        h, i = self._apply("input_blocks.0.0", z), 1
        kept.append(h)
        while any(name.startswith(f"input_blocks.{i}.") for name in self.tensors):
            h = self._down(i, h, told)
            kept.append(h)
            i += 1
        h = self._run_block("middle_block.0", h, told)
        h = self._run_attention("middle_block.1", h)
        h = self._run_block("middle_block.2", h, told)
        for k in range(i):
            h = self._run_block(f"output_blocks.{k}.0", torch.cat([h, kept.pop()], 1), told)
            place = 1
            if f"output_blocks.{k}.1.qkv.weight" in self.tensors:
                h, place = self._run_attention(f"output_blocks.{k}.1", h), 2
            h = self._doubled(f"output_blocks.{k}.{place}", h, told)
        return self._apply("out.2", F.silu(self._apply("out.0", h)))

    def _down(self, i: int, h: Tensor, told: Tensor) -> Tensor:
        if f"input_blocks.{i}.0.op.weight" in self.tensors:
            return self._apply(f"input_blocks.{i}.0.op", h, stride=2)
        # a level's last block of equal width halves, where residual blocks do: `updown_at` names
        # them
        resample = nn.AvgPool2d(2) if i in self.updown_at else None
        h = self._run_block(f"input_blocks.{i}.0", h, told, resample)
        if f"input_blocks.{i}.1.qkv.weight" in self.tensors:
            h = self._run_attention(f"input_blocks.{i}.1", h)
        return h

    updown_at: tuple[int, ...] = ()

    def _doubled(self, name: str, h: Tensor, told: Tensor) -> Tensor:
        if f"{name}.conv.weight" in self.tensors:
            return self._apply(f"{name}.conv", F.interpolate(h, scale_factor=2))
        if f"{name}.in_layers.2.weight" in self.tensors:
            return self._run_block(name, h, told, lambda h: F.interpolate(h, scale_factor=2))
        return h


def saved(theirs: Theirs, path: Path) -> Path:
    """As their code saves: parameters, not tensors."""
    table = OrderedDict((name, nn.Parameter(tensor)) for name, tensor in theirs.tensors.items())
    torch.save(table, path)
    return path


def read(path: Path, told: dict[str, str]) -> ForeignModel:
    found, kind = contents_of(path), GuidedFormat()
    return kind.read(found, kind.candidates(found, told)[0])


def case(name: str) -> tuple[Theirs, dict[str, str], tuple[int, ...]]:
    """A network, what is told of it, and which of its blocks halve."""
    four = {"down": 4, "up": 4}
    match name:
        case "convolutions, legacy":
            return Theirs(four, False), {"heads": "4", "qkv_order": "legacy"}, ()
        case "residual blocks, new order, classes, variance":
            theirs = Theirs({"down": -16, "up": -16}, True, updown=True, outputs=6, classes=3)
            return theirs, {"head_dim": "16", "qkv_order": "new"}, (2,)
        case "three levels, two blocks, no scale":
            shape = {"widths": (32, 32, 64), "blocks": 2, "attends": (False, True, False)}
            theirs = Theirs(four, True, updown=True, scale_shift=False, **shape)
            return theirs, {"heads": "4", "qkv_order": "new"}, (3, 6)
        case "other heads on the way up":
            theirs = Theirs({"down": 2, "up": 4}, False, attends=(True, True), inputs=1, outputs=1)
            return theirs, {"heads": "2", "heads_up": "4", "qkv_order": "legacy"}, ()
        case "other heads on the way up, one width":
            theirs = Theirs({"down": 1, "up": 4}, True, widths=(32,), attends=(True,))
            return theirs, {"heads": "1", "heads_up": "4", "qkv_order": "new"}, ()
        case "a first level narrower than the time":
            theirs = Theirs({"down": -32, "up": -32}, False, width=64, updown=True)
            return theirs, {"head_dim": "32", "qkv_order": "legacy"}, (2,)
    raise AssertionError(name)


NAMES = (
    "convolutions, legacy",
    "residual blocks, new order, classes, variance",
    "three levels, two blocks, no scale",
    "other heads on the way up",
    "other heads on the way up, one width",
    "a first level narrower than the time",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_branch_of_their_network_is_computed(name: str, tmp_path: Path) -> None:
    theirs, told, halving = case(name)
    theirs.updown_at = halving
    path = saved(theirs, tmp_path / "ema.pt")
    process = {"size": "8", "schedule": "linear", "steps": "1000", "predicts": "eps"}
    model = read(path, told | process)
    z, time, condition = proof.inputs(model)
    wanted = theirs(z, time, condition.label)
    found = proof.output_of(model, z, time, condition)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted[:, : found.shape[1]], atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_is_told_of_a_network_only_if_it_can_be_one(name: str, tmp_path: Path) -> None:
    theirs, told, _ = case(name)
    process = {"size": "8", "schedule": "linear", "steps": "1000", "predicts": "eps"}
    network = as_network(read(saved(theirs, tmp_path / "a.pt"), told | process).denoiser.network)
    # four heads at one width are heads of one width
    said = ("convolutions, legacy", "residual blocks, new order, classes, variance")
    assert (network.diffusers() is not None) == (name in said)


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named_as_the_file_names_them(
    tmp_path: Path,
) -> None:
    theirs, told, _ = case("convolutions, legacy")
    theirs.tensors["middle_block.3.norm.weight"] = torch.ones(64)
    del theirs.tensors["output_blocks.1.1.qkv.bias"]
    theirs.tensors["out.0.bias"] = torch.zeros(7)
    process = {"size": "8", "schedule": "linear", "steps": "1000", "predicts": "eps"}
    with pytest.raises(ModelFileError) as caught:
        read(saved(theirs, tmp_path / "a.pt"), told | process)
    for part in (
        "lacks `output_blocks.1.1.qkv.bias`",
        "`middle_block.3.norm.weight` too",
        "`out.0.bias` is [7]",
    ):
        assert part in caught.value.problem


def test_a_tensor_that_decides_the_network_is_named_where_it_is_missing(tmp_path: Path) -> None:
    theirs, told, _ = case("convolutions, legacy")
    del theirs.tensors["input_blocks.1.0.out_layers.3.weight"]
    with pytest.raises(FormatError, match=r"input_blocks\.1\.0\.out_layers\.3\.weight"):
        read(saved(theirs, tmp_path / "a.pt"), told | {"size": "8"})


def test_views_into_shared_storages_are_read_each_by_itself(tmp_path: Path) -> None:
    theirs, told, _ = case("convolutions, legacy")
    flat = torch.cat([tensor.flatten() for tensor in theirs.tensors.values()])
    place = 0
    views: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in theirs.tensors.items():
        views[name] = flat[place : place + tensor.numel()].view(tensor.shape)
        place += tensor.numel()
    torch.save(views, tmp_path / "views.pt")
    process = {"size": "8", "schedule": "linear", "steps": "1000", "predicts": "eps"}
    plain = read(saved(theirs, tmp_path / "plain.pt"), told | process)
    shared = read(tmp_path / "views.pt", told | process)
    found = shared.denoiser.network.state_dict()
    for name, tensor in plain.denoiser.network.state_dict().items():
        assert torch.equal(found[name], tensor)
        assert found[name].untyped_storage().nbytes() == tensor.numel() * 4


def test_what_is_not_said_is_tried_and_what_cannot_differ_is_not(tmp_path: Path) -> None:
    theirs, _, _ = case("convolutions, legacy")
    found, kind = contents_of(saved(theirs, tmp_path / "a.pt")), GuidedFormat()
    with pytest.raises(UsageError, match="pixels"):
        kind.candidates(found, {})
    first = kind.candidates(found, {"size": "8"})[0]
    assert first.items() >= {"schedule": "linear", "predicts": "eps", "heads": "4"}.items()
    all_but_order = {"size": "8", "schedule": "cosine", "steps": "1000", "predicts": "x"}
    tried = kind.candidates(found, all_but_order | {"heads": "4"})
    assert [each["qkv_order"] for each in tried] == ["legacy", "new"]
    assert len(kind.candidates(found, all_but_order | {"heads": "1"})) == 1
    every = kind.candidates(found, {"size": "8"})
    assert len({tuple(sorted(each.items())) for each in every}) == len(every)


@pytest.mark.parametrize(
    ("told", "option"),
    [
        ({"heads": "many"}, "heads"),
        ({"heads": "4", "head_dim": "8"}, "heads"),
        ({"heads_up": "4"}, "heads"),
        ({"qkv_order": "old"}, "qkv_order"),
        ({"steps": "0"}, "steps"),
        ({"preset": "guided_65"}, "preset"),
    ],
)
def test_values_that_no_option_has_are_refused(
    told: dict[str, str], option: str, tmp_path: Path
) -> None:
    theirs, _, _ = case("convolutions, legacy")
    found = contents_of(saved(theirs, tmp_path / "a.pt"))
    with pytest.raises(UsageError) as caught:
        GuidedFormat().candidates(found, {"size": "8", **told})
    assert f"`{option}`" in caught.value.problem or option in caught.value.problem


def test_a_preset_goes_by_the_name_of_the_file_if_the_network_is_that_one(tmp_path: Path) -> None:
    other, _, _ = case("convolutions, legacy")
    path = saved(other, tmp_path / "cifar10_uncond_50M_500K.pt")
    found, kind = contents_of(path), GuidedFormat()
    assert "preset" not in kind.candidates(found, {"size": "8"})[0]
    with pytest.raises(ModelFileError, match="improved_cifar10"):
        kind.candidates(found, {"preset": "improved_cifar10"})
    preset = PRESETS["improved_cifar10"]
    assert preset.told.items() >= {"steps": "4000", "rescale": "yes", "heads": "4"}.items()


def test_files_of_no_diffusion_model_are_refused_by_name(tmp_path: Path) -> None:
    told = {"size": "8"}
    theirs, _, _ = case("convolutions, legacy")
    classifier = {k: v for k, v in theirs.tensors.items() if not k.startswith("output_blocks")}
    torch.save(classifier, tmp_path / "classifier.pt")
    torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, tmp_path / "opt000000.pt")
    saved(Theirs({"down": 1, "up": 1}, False, inputs=6), tmp_path / "superres.pt")
    pooled = {k: v for k, v in theirs.tensors.items() if ".op." not in k and ".2.conv." not in k}
    torch.save(pooled, tmp_path / "pooled.pt")
    for name, reason in {
        "classifier": "classifier",
        "opt000000": "optimizer",
        "superres": "super-resolution",
        "pooled": "conv_resample",
    }.items():
        path = tmp_path / f"{name}.pt"
        with pytest.raises(ModelFileError, match=reason):
            bring.read(bring.Source(path, told=told))
        assert describe(path).facts["note"]


# ---- EDM teachers of consistency_models


def in_frame(theirs: Theirs, x_noisy: Tensor, levels: Tensor, label: Tensor | None) -> Tensor:
    """D(x; sigma) with sigma_data 0.5; their network is told 1000 log(sigma) / 4."""
    s, d = levels[:, None, None, None], 0.5
    inside = theirs(x_noisy / (s**2 + d**2).sqrt(), 250 * levels.log(), label)
    return d**2 / (s**2 + d**2) * x_noisy + s * d / (s**2 + d**2).sqrt() * inside


@pytest.mark.parametrize("classes", [0, 3])
def test_an_edm_teacher_is_read_in_its_frame(classes: int, tmp_path: Path) -> None:
    theirs = Theirs({"down": -16, "up": -16}, True, updown=True, classes=classes)
    theirs.updown_at = (2,)
    path = saved(theirs, tmp_path / "a.pt")
    for name, tensor in theirs.tensors.items():
        if name.endswith((".qkv.weight", ".proj_out.weight")):
            theirs.tensors[name] = tensor[..., None]
    flat = saved(theirs, tmp_path / "b.pt")
    for name, tensor in theirs.tensors.items():
        if name.endswith((".qkv.weight", ".proj_out.weight")):
            theirs.tensors[name] = tensor[..., 0]
    levels = torch.tensor([0.002, 0.1, 0.5, 2.0, 20.0, 80.0])
    rng = torch.Generator().manual_seed(5)
    noise = torch.randn(6, 3, 8, 8, generator=rng)
    x = 0.5 * torch.randn(6, 3, 8, 8, generator=rng) + levels[:, None, None, None] * noise
    recorded: dict[str, Any] = {"x_noisy": x, "sigma": levels}
    label = torch.arange(6) % 3 if classes else None
    if label is not None:
        recorded["label"] = label
    recorded["denoised"] = in_frame(theirs, x, levels, label)
    np.savez(tmp_path / "a.npz", **recorded)
    told = {"schedule": "edm", "head_dim": "16"}
    for each in (path, flat):
        brought = bring.read(bring.Source(each, told=told, expected=tmp_path / "a.npz"))
        assert brought.proof.difference < 5e-6
        assert brought.model.network == "edm"
    wrong = bring.Source(path, told={**told, "qkv_order": "legacy"}, expected=tmp_path / "a.npz")
    with pytest.raises(ModelFileError, match="not the one"):
        bring.read(wrong)


def test_an_edm_teacher_has_no_steps_and_others_no_range(tmp_path: Path) -> None:
    theirs, _, _ = case("convolutions, legacy")
    found = contents_of(saved(theirs, tmp_path / "a.pt"))
    kind = GuidedFormat()
    with pytest.raises(UsageError, match="`steps` is told of a network in EDM's frame"):
        kind.candidates(found, {"size": "8", "schedule": "edm", "steps": "1000"})
    with pytest.raises(UsageError, match="`sigma_max` is told of a network that is not"):
        kind.candidates(found, {"size": "8", "schedule": "linear", "sigma_max": "80"})
    readings = kind.candidates(found, {"size": "8"})
    assert {reading["schedule"] for reading in readings} == {"linear", "cosine"}
    readings = kind.candidates(found, {"size": "8", "schedule": "edm", "sigma_max": "20"})
    assert {reading["qkv_order"] for reading in readings} == {"new"}
    model = kind.read(found, readings[0])
    schedule: Any = model.diffusion["schedule"]
    assert (schedule["kind"], schedule["sigma_max"]) == ("edm", 20.0)
    assert "sigma 20" in model.assumed[0]


def test_edm_teachers_have_presets_and_consistency_models_are_refused(tmp_path: Path) -> None:
    for name in ("edm_imagenet64", "edm_bedroom256", "edm_cat256"):
        told = PRESETS[name].told
        assert told.items() >= {"schedule": "edm", "qkv_order": "new", "head_dim": "64"}.items()
    theirs, _, _ = case("residual blocks, new order, classes, variance")
    for name in ("cd_imagenet64_l2", "ct_bedroom256", "cd_cat256_lpips"):
        path = saved(theirs, tmp_path / f"{name}.pt")
        with pytest.raises(ModelFileError, match="consistency model") as caught:
            bring.read(bring.Source(path, told={"size": "8"}))
        assert caught.value.fix is not None
        assert f"edm_{name.split('_')[1]}_ema.pt" in caught.value.fix
    # pictures of computed tomography may be called so
    model = read(saved(theirs, tmp_path / "ct_scans.pt"), {"size": "8", "schedule": "edm"})
    assert model.network == "edm"


def test_inspect_tells_what_the_shapes_tell(tmp_path: Path) -> None:
    theirs, _, _ = case("residual blocks, new order, classes, variance")
    told = describe(saved(theirs, tmp_path / "a.pt"))
    assert told.kind == "guided-diffusion U-Net"
    wanted = {
        "width": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_strides": [2],
        "resamples_with": "residual blocks",
        "num_classes": 3,
        "learned_variance": True,
        "channels": 3,
    }
    assert told.facts.items() >= wanted.items()


def recorded(name: str) -> tuple[Path, dict[str, Any]]:
    with np.load(FOREIGN / name / "expected.npz") as file:
        return next((FOREIGN / name).glob("*.pt")), {key: file[key] for key in file}


@needs_files
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_networks_and_schedules_are_those_that_their_own_code_computed(name: str) -> None:
    path, expected = recorded(name)
    model = read(path, RECORDED[name])
    assert proof.of_file(model, FOREIGN / name / "expected.npz").difference < 5e-6
    t = (torch.arange(model.num_steps, dtype=torch.float64) + 1) / model.num_steps
    signal = model.denoiser.schedule.alpha_sigma(t)[0] ** 2
    wanted = torch.from_numpy(expected["alphas_cumprod"])
    torch.testing.assert_close(signal, wanted, rtol=1e-9, atol=0)
    time = model.denoiser.schedule.time_input(t[expected["index"]])
    torch.testing.assert_close(time.float(), torch.from_numpy(expected["time"]))


def drawn(model: ForeignModel, expected: dict[str, Any], how: str, clips: bool) -> Tensor:
    """DDIM along the recorded indices."""
    denoiser, z = model.denoiser, torch.from_numpy(expected["noise"])
    label = None
    if "noise_label" in expected:
        label = torch.from_numpy(expected["noise_label"])
    times = [*((expected[f"ddim_{how}_index"] + 1) / model.num_steps), 0.0]
    for now, then in itertools.pairwise(times):
        t, s = (torch.full((len(z),), time, dtype=torch.float64) for time in (now, then))
        with torch.no_grad():
            prediction = denoiser(z, t, Condition(label))
        if clips:
            prediction = prediction.clipped(1.0, z, *scales(denoiser.schedule, t, z))
        z = ddim_step(prediction, s, denoiser.schedule)
    return z


@needs_files
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_samples_are_drawn_again(name: str) -> None:
    path, expected = recorded(name)
    model = read(path, RECORDED[name])
    for how in ("ddim4", "ddim10", "4", "25"):
        # from t = 1, rounding in x is divided by alpha: up to 8e4
        limit = 2e-3 if how in ("4", "25") else 2e-5
        for clips in (True, False):
            wanted = torch.from_numpy(expected[f"ddim_{how}_{'clipped' if clips else 'free'}"])
            difference = float((drawn(model, expected, how, clips) - wanted).abs().max())
            assert difference / max(1.0, float(wanted.abs().max())) < limit, (how, clips)


@needs_files
@pytest.mark.parametrize("name", ["guided_1", "guided_2", "improved_1"])
def test_a_wrong_order_of_heads_is_refused(name: str) -> None:
    path, _ = recorded(name)
    wrong = {"legacy": "new", "new": "legacy"}[RECORDED[name]["qkv_order"]]
    told = RECORDED[name] | {"qkv_order": wrong, "predicts": "eps", "steps": "1000"}
    source = bring.Source(path, told=told, expected=FOREIGN / name / "expected.npz")
    with pytest.raises(ModelFileError, match="differ by up to"):
        bring.read(source)


@needs_files
@pytest.mark.parametrize("file", ["opt000000.pt", "classifier.pt", "superres.pt"])
def test_their_other_files_are_refused(file: str) -> None:
    with pytest.raises(ModelFileError, match=r"optimizer|classifier|super-resolution"):
        bring.read(bring.Source(FOREIGN / "negative" / file, told={"size": "16"}))


@needs_files
@pytest.mark.parametrize("name", ["guided_1", "guided_2", "improved_1"])
def test_real_pictures_find_the_order_of_heads(name: str, tmp_path: Path) -> None:
    with tarfile.open(FOREIGN.parent / "cifar10-test.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    told = {key: value for key, value in RECORDED[name].items() if key != "qkv_order"}
    told = {"steps": "1000", "rescale": "no", "predicts": "eps"} | told
    path, _ = recorded(name)
    brought = bring.read(bring.Source(path, told=told, data=tmp_path / "test"))
    assert brought.proof.how == "denoising"
    assert brought.model.facts["told"]["qkv_order"] == RECORDED[name][("qkv_order")]  # type: ignore[index]


@needs_files
def test_real_pictures_find_everything_that_a_file_leaves_open(tmp_path: Path) -> None:
    with tarfile.open(FOREIGN.parent / "cifar10-test.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    path, _ = recorded("guided_1")
    source = bring.Source(path, told={"size": "16"}, data=tmp_path / "test")
    told = bring.read(source).model.facts["told"]
    assert isinstance(told, dict)
    assert (told["schedule"], told["steps"], told["predicts"]) == ("linear", "1000", "eps")
    assert (told["heads"], told["qkv_order"]) == ("2", "legacy")
