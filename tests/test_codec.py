"""Codecs: pixels go through unchanged, and everything that trains,
draws or shows asks the codec of its model.
"""

import ast
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vdiff
from tests.tiny import TinyRun
from vdiff.cli import main
from vdiff.config import shapes_weights
from vdiff.data import CODECS
from vdiff.data.codec import PIXELS, Codec, CodecSection, PixelCodec, Shape, codec_of
from vdiff.errors import DivergedError, UsageError
from vdiff.model_folder import checkpoint

ROOT = Path(vdiff.__file__).parent
OF_PIXELS = {
    "api/images.py",
    "api/model.py",
    "conformance.py",
    "data/codec.py",
    "images/images.py",
    "metrics/metric.py",
    "metrics/pair_metric.py",
    "reporting/verdict.py",
}
"""Who may turn pixels into numbers: the codec itself,
and what measures pictures whatever the network sees of them.
"""


EXPECTED = {"pixels": ((3, 8, 6), (3, 8, 6))}
"""Codec -> the shape of pictures, and of what the network sees of them."""


class Halved(Codec):
    """The network sees the mean of 2 x 2 pixels, and one channel that is the
    negative of the others' mean.
    """

    def shape(self, pictures: Shape) -> Shape:
        channels, height, width = pictures
        return channels + 1, height // 2, width // 2

    def encode(self, pictures: Tensor) -> Tensor:
        x = torch.nn.functional.avg_pool2d(pictures.float() / 127.5 - 1, 2)
        return torch.cat([x, -x.mean(1, keepdim=True)], 1)

    def decode(self, x: Tensor, made_by: str = "the network") -> Tensor:
        pixels = PixelCodec().decode(x[:, :-1], made_by)
        return pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)


class HalvedSection(CodecSection):
    kind: Literal["pixels"] = shapes_weights("pixels")

    def build(self) -> Codec:
        return Halved()


def test_every_level_of_a_pixel_comes_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    codec = codec_of(PIXELS)
    assert isinstance(codec, PixelCodec)
    x = codec.encode(levels)
    assert (x.dtype, float(x.min()), float(x.max())) == (torch.float32, -1, 1)
    assert torch.equal(codec.decode(x), levels)
    assert codec.shape((3, 8, 8)) == (3, 8, 8)


@pytest.mark.parametrize("kind", list(CODECS))
def test_a_codec_gives_the_shape_that_it_says_and_the_pictures_back(kind: str) -> None:
    shape, seen = EXPECTED[kind]
    pictures = torch.randint(256, (4, *shape), dtype=torch.uint8)
    codec = codec_of(kind)
    x = codec.encode(pictures)
    assert codec.shape(shape) == seen == tuple(x.shape[1:])
    assert x.dtype == torch.float32
    back = codec.decode(x)
    assert (back.dtype, back.shape) == (torch.uint8, pictures.shape)
    assert torch.equal(codec.encode(pictures), x)


def test_what_is_not_finite_is_no_picture() -> None:
    with pytest.raises(DivergedError, match="`base_2`"):
        codec_of(PIXELS).decode(torch.full((1, 1, 2, 2), torch.nan), "base_2")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("pixel", "did you mean `pixels`"),
        ({"kind": "latents"}, "unknown kind `latents` of codec"),
        ({}, "unknown kind `` of codec"),
        ({"kind": "pixels", "scale": 2}, "does not take the options"),
    ],
)
def test_a_codec_that_is_not_there_is_told_of(said: str | dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        codec_of(said)


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_nobody_goes_round_the_codec(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() not in OF_PIXELS:
        names = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert not names & {"to_uint8", "to_float"}


def test_with_another_codec_the_network_sees_something_else_wherever_it_is_asked(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CODECS._builtin, PIXELS, "tests.test_codec:HalvedSection")
    monkeypatch.chdir(tiny_run.path)
    sets = [
        "distill.start_steps=4",
        "distill.end_steps=2",
        "evaluate={every: 2, num_images: 4, metrics: [agreement]}",
    ]
    more = [word for change in sets for word in ("--set", change)]
    assert main(["train", "--device", "cpu", "--dry-run", *more]) == 0
    assert main(["train", "--device", "cpu", *more]) == 0
    assert main(["distill", "--device", "cpu", *more]) == 0
    model = checkpoint.load(Path("runs/tiny/base_0"))
    assert model.card.shape == (3, 8, 8)
    assert model.denoiser.network.config["in_channels"] == 4
    assert model.denoiser.network.config["sample_size"] == 4
    assert is_halved(Path("runs/tiny/base_0/samples.png"), scale=4)

    assert (
        main(["sample", "--device", "cpu", "--checkpoint", "base_0", "--out", "a.npz", "-n", "3"])
        == 0
    )
    images = np.load("a.npz")["images"]
    assert images.shape == (3, 8, 8, 3)
    assert np.array_equal(images[:, ::2, ::2], images[:, 1::2, 1::2])
    assert (
        main(
            [
                "sample",
                "--device",
                "cpu",
                "--checkpoint",
                "base_0",
                "--out",
                "a.gif",
                "--gif",
                "-n",
                "2",
            ]
        )
        == 0
    )
    assert main(["evaluate", "--device", "cpu", "--n", "4", "--metrics", "agreement,swd"]) == 0
    table = json.loads(Path("runs/tiny/evaluation/table.json").read_text())
    assert table["protocol"]["shape"] == [3, 8, 8]
    assert main(["compare", "original", "base_0", "--device", "cpu", "--seeds", "0-1"]) == 0
    assert main(["report", "--device", "cpu", "--out", "report.html"]) == 0
    assert "target" in Path("report.html").read_text("utf-8")


def is_halved(path: Path, scale: int) -> bool:
    """Whether the first picture of a grid is made of blocks of 2 x 2 pixels. scale: of the grid."""
    with Image.open(path) as grid:
        first = np.array(grid)[2 : 2 + 8 * scale : scale, 2 : 2 + 8 * scale : scale]
    return first.std() > 0 and np.array_equal(first[::2, ::2], first[1::2, 1::2])
