"""FID, KID, precision, recall and inception score:
as torch-fidelity has them on the same folders of pictures.
"""

import json
import pickle
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from vdiff.errors import DataError, MachineError, ModelFileError, UsageError
from vdiff.images.images import write_png
from vdiff.metrics.metric import Reference, named

torch_fidelity = pytest.importorskip("torch_fidelity", reason="the extra [eval] is not installed")

from torch_fidelity import fidelity as command  # noqa: E402
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402


class Small(FeatureExtractorBase):  # type: ignore[misc]
    """A random convolution: features that need no download.

    Its weights are those of a fixed seed, or a file's.
    """

    seen = 0
    seed = 0

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: Any = None,
        **_: Any,
    ):
        super().__init__(name, features_list)
        rng = torch.Generator().manual_seed(Small.seed)
        self.register_buffer("kernel", torch.randn(12, 3, 4, 4, generator=rng) / 10)
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("out",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "out"

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        Small.seen += len(pictures)
        found = torch.nn.functional.conv2d(pictures.float() / 127.5 - 1, self.kernel, stride=2)
        return (found.relu().mean((2, 3)),)


if "small" not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
    torch_fidelity.register_feature_extractor("small", Small)

NAMES = ("fid:small", "kid:small", "precision:small", "recall:small", "inception_score:small")


def pictures(seed: int, count: int, channels: int = 3, high: int = 256) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (count, channels, 8, 8), generator=rng, dtype=torch.uint8)


def folder(path: Path, images: torch.Tensor) -> str:
    path.mkdir()
    for index, image in enumerate(images):
        write_png(path / f"{index:05d}.png", image)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_numbers_are_those_of_torch_fidelitys_own_command(
    channels: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reference, samples = pictures(0, 1010, channels), pictures(1, 1030, channels, high=200)
    options = (
        "--cpu --fid --kid --prc --isc --feature-extractor small --json --silent "
        "--no-cache --save-cpu-ram"
    )
    folders = folder(tmp_path / "samples", samples), folder(tmp_path / "reference", reference)
    monkeypatch.setattr(
        "sys.argv", ["fidelity", *options.split(), "--input1", folders[0], "--input2", folders[1]]
    )
    command.main()
    theirs = json.loads(capsys.readouterr().out)
    against = Reference(reference, "a", tmp_path / "cache")
    ours = {section.name: section.build(against).value(samples) for section in named(NAMES)}
    assert ours["fd_small"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert ours["kd_small"].value == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-5
    )
    assert ours["precision_small"].value == pytest.approx(theirs["precision"])
    assert ours["recall_small"].value == pytest.approx(theirs["recall"])
    assert ours["score_small"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["fd_small"].value > 0.01
    assert (ours["fd_small"].low or 0) < ours["fd_small"].value < (ours["fd_small"].high or 0)


def test_the_network_sees_samples_and_reference_once_for_all_metrics(tmp_path: Path) -> None:
    reference, samples = pictures(0, 1000), pictures(1, 1001)
    before = Small.seen
    against = Reference(reference, "a", tmp_path / "cache")
    built = [section.build(against) for section in named(NAMES)]
    for drawn in (samples, samples.clone()):
        for metric in built:
            metric.value(drawn)
    assert Small.seen - before == 1000 + 2 * 1001
    assert len(list((tmp_path / "cache").iterdir())) == 1  # all of them compare one layer


def test_only_the_usual_network_gives_the_usual_name() -> None:
    assert [section.name for section in named(["fid", "kid", "fd_dinov2", "fid:vgg16"])] == [
        "fid",
        "kid",
        "fd_dinov2",
        "fd_vgg16",
    ]


def test_weights_from_a_file_are_used_and_told_apart(tmp_path: Path) -> None:
    torch.save({"kernel": torch.ones(12, 3, 4, 4)}, tmp_path / "w.pth")
    reference, samples = pictures(0, 30), pictures(1, 30)
    values = [
        named(["fid:small"])[0]
        .build(Reference(reference, "a", tmp_path / "cache", weights=weights))
        .value(samples)
        .value
        for weights in (None, tmp_path / "w.pth")
    ]
    assert values[0] != pytest.approx(values[1])


def test_what_is_kept_of_the_reference_is_of_the_weights_that_look_at_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of two sets of weights have a distance also where the pictures are the same."""
    reference, found = pictures(0, 30), []
    for kernel in (None, torch.ones(12, 3, 4, 4), torch.full((12, 3, 4, 4), 0.5)):
        weights = None if kernel is None else tmp_path / "w.pth"
        if kernel is not None:
            torch.save({"kernel": kernel}, weights)
        metric = named(["fid:small"])[0].build(
            Reference(reference, "a", tmp_path / "cache", weights=weights)
        )
        found.append(metric.value(reference).value)
    monkeypatch.setattr(Small, "seed", 1)  # another download under the same name
    found.append(
        named(["fid:small"])[0]
        .build(Reference(reference, "a", tmp_path / "cache"))
        .value(reference)
        .value
    )
    assert found == pytest.approx([0, 0, 0, 0], abs=1e-9)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    before = Small.seen
    named(["fid:small"])[0].build(Reference(reference, "a", tmp_path / "cache")).value(reference)
    assert Small.seen - before == 30  # the samples alone: the reference's are known


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("as_torch", [True, False])
def test_weights_that_would_run_code_are_refused(
    as_torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if as_torch:
        torch.save({"kernel": Harmful()}, "w.pth")
    else:
        Path("w.pth").write_bytes(pickle.dumps({"kernel": Harmful()}))
    with pytest.raises(ModelFileError, match="can be read safely"):
        named(["fid:small"])[0].build(Reference(pictures(0, 9), "a", weights=Path("w.pth")))
    with pytest.raises(ModelFileError, match="can be read safely"):
        named(["fid"])[0].build(Reference(pictures(0, 9), "a", weights=Path("w.pth")))
    assert not Path("harmed").exists()


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    torch.save({"kernel": torch.full((12, 3, 4, 4), torch.nan)}, tmp_path / "w.pth")
    metric = named(["fid:small"])[0].build(
        Reference(pictures(0, 9), "a", weights=tmp_path / "w.pth")
    )
    with pytest.raises(DataError, match="features `out` of 9 of 9 pictures are NaN"):
        metric.value(pictures(1, 9))


def test_too_few_reference_pictures_and_four_channels_are_refused() -> None:
    with pytest.raises(
        DataError, match="`kd_small` needs at least 1,000 reference pictures"
    ) as caught:
        named(["kid:small"])[0].build(Reference(pictures(0, 9), "a"))
    assert str(caught.value).splitlines()[1:] == ["where: --data", "fix: give more pictures"]
    with pytest.raises(DataError, match="1 or 3 channels"):
        named(["fid:small"])[0].build(Reference(pictures(0, 9, 4), "a")).value(pictures(0, 9, 4))
    with pytest.raises(UsageError, match="has no network `smal`"):
        named(["fid:smal"])[0].build(Reference(pictures(0, 9), "a"))


@pytest.mark.parametrize(
    ("name", "words"), [("fid:small", "--weights PATH"), ("fd_dinov2", "copy torch.hub's folder")]
)
def test_without_a_network_the_way_around_is_told(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        try:
            raise URLError("no such host")
        except URLError:
            raise RuntimeError("there is no connection")  # noqa: B904 - as torch.hub does it

    monkeypatch.setattr(Small, "__init__", unreachable)
    monkeypatch.setattr("torch.hub.load", unreachable)
    with pytest.raises(
        MachineError, match="could not be downloaded: there is no connection"
    ) as caught:
        named([name])[0].build(Reference(pictures(0, 9), "a"))
    assert words in caught.value.fix


def test_a_damaged_download_is_not_called_a_missing_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(*_: Any, **__: Any) -> None:
        raise RuntimeError("not a zip archive")

    monkeypatch.setattr(Small, "__init__", damaged)
    with pytest.raises(ModelFileError, match="cannot be read safely") as caught:
        named(["fid:small"])[0].build(Reference(pictures(0, 9), "a"))
    assert torch.hub.get_dir() in caught.value.fix


def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MachineError) as caught:
        named(["fid:small"])[0].build(Reference(pictures(0, 9), "a"))
    assert str(caught.value).splitlines()[1:] == [
        "where: --metrics",
        "fix: pip install 'vdiff-distill[eval]'",
    ]


def test_who_waits_is_told_how_many_pictures_of_each_set_are_looked_at() -> None:
    told: list[tuple[int, int]] = []
    against = Reference(
        pictures(0, 70), "a", on_progress=lambda done, total: told.append((done, total))
    )
    named(["fid:small"])[0].build(against).value(pictures(1, 65))
    assert told == [(0, 65), (64, 65), (65, 65), (0, 70), (64, 70), (70, 70)]
