"""Networks of NVlabs/edm, computed from their tensors by name and nothing of vdiff's, and pickles
of them as that program writes them.
"""

import io
import math
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODULE = "torch_utils.persistence"

_INSIDE = ("in_channels", "out_channels")
_BUFFERS = ("resample_filter", "u")


class Theirs:
    """A SongUNet or DhariwalUNet with random weights.

    tensors: by their names.   settings: what it was made with.
    """

    def __init__(self, kind: str = "SongUNet", **changes: Any) -> None:
        self.settings: dict[str, Any] = {
            "img_resolution": 8,
            "in_channels": 3,
            "out_channels": 3,
            "label_dim": 0,
            "model_channels": 16,
            "channel_mult": [1, 2],
            "num_blocks": 1,
            "attn_resolutions": [4],
            "augment_dim": 9,
            "dropout": 0.13,
            **changes,
        }
        self.kind = kind
        self.is_song = kind == "SongUNet"
        self.tensors: dict[str, Tensor] = {}
        self.rng = torch.Generator().manual_seed(11)
        self._make()

    def _linear(self, name: str, *shape: int, bias: bool = True) -> None:
        scale = math.prod(shape[1:]) ** -0.5
        self.tensors[f"{name}.weight"] = torch.randn(shape, generator=self.rng) * scale
        if bias:
            self.tensors[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=self.rng)

    def _norm(self, name: str, width: int) -> None:
        self.tensors[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=self.rng)
        self.tensors[f"{name}.bias"] = 0.2 * torch.randn(width, generator=self.rng)

    def _block(
        self, name: str, before: int, width: int, attends: bool = False, resamples: bool = False
    ) -> None:
        self._norm(f"{name}.norm0", before)
        self._linear(f"{name}.conv0", width, before, 3, 3)
        self._linear(f"{name}.affine", width * (1 if self.is_song else 2), self.embedding)
        self._norm(f"{name}.norm1", width)
        self._linear(f"{name}.conv1", width, width, 3, 3)
        if before != width or (resamples and self.is_song):
            self._linear(f"{name}.skip", width, before, 1, 1)
        if resamples:
            self.tensors[f"{name}.conv0.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
            self.tensors[f"{name}.skip.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
        if attends and self._heads(width):
            self._norm(f"{name}.norm2", width)
            self._linear(f"{name}.qkv", 3 * width, width, 1, 1)
            self._linear(f"{name}.proj", width, width, 1, 1)

    def _heads(self, width: int) -> int:
        return 1 if self.is_song else width // 64

    def _make(self) -> None:
        told = self.settings
        width, factors = told["model_channels"], told["channel_mult"]
        self.embedding = 4 * width
        self._linear("map_layer0", self.embedding, width)
        self._linear("map_layer1", self.embedding, self.embedding)
        if told["label_dim"]:
            joined = width if self.is_song else self.embedding
            self._linear("map_label", joined, told["label_dim"], bias=self.is_song)
        if told["augment_dim"]:
            self._linear("map_augment", width, told["augment_dim"], bias=False)
        now = width if self.is_song else width * factors[0]
        kept = [now]
        size = told["img_resolution"]
        self._linear(f"enc.{size}x{size}_conv", now, told["in_channels"], 3, 3)
        for level, factor in enumerate(factors):
            place = f"{size >> level}x{size >> level}"
            attends = size >> level in told["attn_resolutions"]
            if level:
                self._block(f"enc.{place}_down", now, now, resamples=True)
                kept.append(now)
            for i in range(told["num_blocks"]):
                self._block(f"enc.{place}_block{i}", now, width * factor, attends)
                now = width * factor
                kept.append(now)
        for level, factor in reversed(list(enumerate(factors))):
            place = f"{size >> level}x{size >> level}"
            if level == len(factors) - 1:
                self._block(f"dec.{place}_in0", now, now, attends=True)
                self._block(f"dec.{place}_in1", now, now)
            else:
                self._block(f"dec.{place}_up", now, now, resamples=True)
            for i in range(told["num_blocks"] + 1):
                is_last = i == told["num_blocks"]
                attends = size >> level in told["attn_resolutions"]
                attends = attends and (is_last or not self.is_song)
                self._block(f"dec.{place}_block{i}", now + kept.pop(), width * factor, attends)
                now = width * factor
        last = f"dec.{size}x{size}_aux" if self.is_song else "out"
        self._norm(f"{last}_norm", now)
        self._linear(f"{last}_conv", told["out_channels"], now, 3, 3)

    # ---- what it computes

    def __call__(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W].   noise: what it is told of the noise, [B].   label: int64 [B]."""
        told = self._told(noise, label)
        names = list(dict.fromkeys(name.split(".")[1] for name in self.tensors if "enc." in name))
        kept: list[Tensor] = []
        for name in names:
            if name.endswith("_conv"):
                x = self._convolved(f"enc.{name}", x)
            else:
                x = self._run(f"enc.{name}", x, told)
            kept.append(x)
        names = list(dict.fromkeys(name.split(".")[1] for name in self.tensors if "dec." in name))
        for name in names:
            if "_aux" in name:
                continue
            if "_block" in name:
                x = torch.cat([x, kept.pop()], dim=1)
            x = self._run(f"dec.{name}", x, told)
        size = self.settings["img_resolution"]
        last = f"dec.{size}x{size}_aux" if self.is_song else "out"
        return self._convolved(f"{last}_conv", F.silu(self._normed(f"{last}_norm", x)))

    def _told(self, noise: Tensor, label: Tensor | None) -> Tensor:
        half = self.settings["model_channels"] // 2
        rates = 10_000 ** -(torch.arange(half) / (half - 1 if self.is_song else half))
        angles = noise[:, None] * rates
        waves = [angles.sin(), angles.cos()] if self.is_song else [angles.cos(), angles.sin()]
        told = torch.cat(waves, dim=1)
        ones = None
        if label is not None:
            ones = F.one_hot(label, self.settings["label_dim"]).float()
        if ones is not None and self.is_song:
            scaled = ones * self.settings["label_dim"] ** 0.5
            told = told + F.linear(scaled, *self._pair("map_label"))
        told = F.silu(F.linear(told, *self._pair("map_layer0")))
        told = F.linear(told, *self._pair("map_layer1"))
        if ones is not None and not self.is_song:
            told = told + ones @ self.tensors["map_label.weight"].T
        return F.silu(told)

    def _run(self, name: str, x: Tensor, told: Tensor) -> Tensor:
        h = F.silu(self._normed(f"{name}.norm0", x))
        if name.endswith("_down"):
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if name.endswith("_up"):
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h = self._convolved(f"{name}.conv0", h)
        affine = F.linear(told, *self._pair(f"{name}.affine"))[:, :, None, None]
        if self.is_song:
            h = self._normed(f"{name}.norm1", h + affine)
        else:
            scale, shift = affine.chunk(2, dim=1)
            h = self._normed(f"{name}.norm1", h) * (1 + scale) + shift
        h = self._convolved(f"{name}.conv1", F.silu(h))
        if f"{name}.skip.weight" in self.tensors:
            x = self._convolved(f"{name}.skip", x)
        factor = 0.5**0.5 if self.is_song else 1.0
        h = (h + x) * factor
        if f"{name}.qkv.weight" in self.tensors:
            h = (h + self._attended(name, h)) * factor
        return h

    def _attended(self, name: str, h: Tensor) -> Tensor:
        batch, width, *size = h.shape
        heads = self._heads(width)
        qkv = self._convolved(f"{name}.qkv", self._normed(f"{name}.norm2", h))
        q, k, v = qkv.reshape(batch, heads, width // heads, 3, -1).unbind(3)
        weights = torch.einsum("bhcq,bhck->bhqk", q, k) / (width // heads) ** 0.5
        mixed = torch.einsum("bhqk,bhck->bhcq", weights.softmax(-1), v)
        return self._convolved(f"{name}.proj", mixed.reshape(batch, width, *size))

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def _convolved(self, name: str, h: Tensor) -> Tensor:
        weight, bias = self._pair(name)
        return F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)

    def _normed(self, name: str, h: Tensor) -> Tensor:
        groups = min(32, h.shape[1] // 4)
        eps = 1e-6 if self.is_song else 1e-5
        return F.group_norm(h, groups, *self._pair(name), eps=eps)


def denoised(theirs: Theirs, x_noisy: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
    """D(x; sigma) of a network in EDM's frame with sigma_data 0.5 (Karras et al. 2022, table 1)."""
    s, d = level[:, None, None, None], 0.5
    inside = theirs(x_noisy / (s**2 + d**2).sqrt(), level.log() / 4, label)
    return d**2 / (s**2 + d**2) * x_noisy + s * d / (s**2 + d**2).sqrt() * inside


# ---- pickles


class Persistent:
    """An object that is pickled with source text, which whoever loads the pickle runs."""

    def __init__(self, name: str, state: dict[str, Any], source: str) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": name,
            "state": state,
        }

    def __reduce__(self) -> Any:
        return sys.modules[MODULE]._reconstruct_persistent_obj, (self.meta,)


def snapshot(
    theirs: Theirs,
    path: Path,
    frame: str = "EDMPrecond",
    source: str = "raise SystemExit('this was run')",
    **more: Any,
) -> Path:
    """A `network-snapshot-*.pkl`.   source: the text in it.   more: settings of the frame."""
    told = theirs.settings
    of_both = {name: value for name, value in told.items() if name not in _INSIDE}
    outside = {
        "img_channels": told["in_channels"],
        "model_type": theirs.kind,
        **of_both,
        **more,
    }
    # the one tensor of a frame: the table of iDDPM
    own = {name: tensor for name, tensor in theirs.tensors.items() if name == "u"}
    tree: dict[str, Any] = {}
    for name, tensor in theirs.tensors.items():
        *places, last = name.split(".")
        node = tree
        for place in places:
            node = node.setdefault(place, {})
        if name not in own:
            node[last] = tensor
    network = _module(tree, theirs.kind, dict(told), source)
    content = {
        "ema": Persistent(frame, _state({"model": network}, own, outside), source),
        "loss_fn": None,
        "augment_pipe": None,
        "dataset_kwargs": {"path": "x.zip"},
    }
    path.write_bytes(pickled(content))
    return path


def pickled(content: object) -> bytes:
    """As their program pickles."""
    stream = io.BytesIO()
    with _their_module():
        pickle.dump(content, stream, protocol=4)
    return stream.getvalue()


@contextmanager
def _their_module() -> Iterator[None]:
    persistence = types.ModuleType(MODULE)

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> object:
        raise AssertionError("this was run")

    _reconstruct_persistent_obj.__module__ = MODULE
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in ("torch_utils", MODULE)}
    sys.modules["torch_utils"] = types.ModuleType("torch_utils")
    sys.modules[MODULE] = persistence
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _module(
    tree: dict[str, Any], name: str, settings: dict[str, Any], source: str
) -> "Persistent | nn.ModuleDict":
    parts = {
        part: _module(below, part, {}, source)
        for part, below in tree.items()
        if isinstance(below, dict)
    }
    own = {part: tensor for part, tensor in tree.items() if isinstance(tensor, Tensor)}
    if name in ("enc", "dec"):
        listed = nn.ModuleDict()
        listed._modules.update(parts)  # type: ignore[arg-type]
        return listed
    return Persistent(name, _state(parts, own, settings), source)


def _state(
    parts: dict[str, Any], own: dict[str, Tensor], settings: dict[str, Any]
) -> dict[str, Any]:
    buffers = {name: tensor for name, tensor in own.items() if name in _BUFFERS}
    parameters = {
        name: nn.Parameter(tensor) for name, tensor in own.items() if name not in _BUFFERS
    }
    return {
        "training": False,
        "_parameters": {**parameters, "nothing": None},
        "_buffers": buffers,
        "_modules": parts,
        "_init_args": (),
        "_init_kwargs": settings,
    }
