"""Presets of OpenAI's released files, held against the flags of their README files."""

from pathlib import Path

import pytest

from tests.test_guided import case, saved
from vdiff.formats.contents import contents_of
from vdiff.formats.foreign import describe
from vdiff.formats.guided import GuidedFormat
from vdiff.formats.guided_settings import PRESETS, Preset

FLAGS = {
    "64x64_diffusion": "image_size 64 num_channels 192 num_res_blocks 3 num_head_channels 64 "
    "use_new_attention_order True noise_schedule cosine diffusion_steps 1000",
    "128x128_diffusion": "image_size 128 num_channels 256 num_res_blocks 2 num_heads 4 "
    "noise_schedule linear diffusion_steps 1000",
    "256x256_diffusion": "image_size 256 num_channels 256 num_res_blocks 2 num_head_channels 64 "
    "noise_schedule linear diffusion_steps 1000",
    "256x256_diffusion_uncond": "image_size 256 num_channels 256 num_res_blocks 2 "
    "num_head_channels 64 noise_schedule linear diffusion_steps 1000",
    "lsun_bedroom": "image_size 256 num_channels 256 num_res_blocks 2 num_head_channels 64 "
    "noise_schedule linear diffusion_steps 1000",
    "lsun_horse_nodropout": "image_size 256 num_channels 256 num_res_blocks 2 "
    "num_head_channels 64 noise_schedule linear diffusion_steps 1000",
    "512x512_diffusion": "image_size 512 num_channels 256 num_res_blocks 2 num_head_channels 64 "
    "noise_schedule linear diffusion_steps 1000",
    "cifar10_uncond_50M_500K": "image_size 32 num_channels 128 num_res_blocks 3 num_heads 4 "
    "noise_schedule cosine diffusion_steps 4000 rescale_timesteps True",
    "imagenet64_uncond_100M_1500K": "image_size 64 num_channels 128 num_res_blocks 3 num_heads 4 "
    "noise_schedule cosine diffusion_steps 4000 rescale_timesteps True",
    "imagenet64_cond_270M_250K": "image_size 64 num_channels 192 num_res_blocks 3 num_heads 4 "
    "noise_schedule cosine diffusion_steps 4000 rescale_timesteps False",
    "lsun_uncond_100M_1200K_bs128": "image_size 256 num_channels 128 num_res_blocks 2 num_heads 1 "
    "noise_schedule linear diffusion_steps 1000 rescale_timesteps False",
}
"""Released files, with the flags that decide what is computed."""

EDM_FLAGS = {
    "edm_imagenet64_ema": "image_size 64 num_channels 192 num_res_blocks 3 num_head_channels 64",
    "edm_bedroom256_ema": "image_size 256 num_channels 256 num_res_blocks 2 num_head_channels 64",
    "edm_cat256_ema": "image_size 256 num_channels 256 num_res_blocks 2 num_head_channels 64",
}
"""The EDM teachers of consistency_models."""

MULTIPLIERS = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""`channel_mult` where it is left out, by `image_size`."""


def preset_of(file: str) -> Preset:
    found = [preset for preset in PRESETS.values() if file.startswith(preset.files)]
    assert len(found) == 1
    return found[0]


def flags_of(words: str) -> dict[str, str]:
    given = words.split()
    return dict(zip(given[::2], given[1::2], strict=True))


@pytest.mark.parametrize("file", EDM_FLAGS)
def test_a_preset_of_a_teacher_in_the_frame_of_edm_says_what_its_flags_say(file: str) -> None:
    flags = flags_of(EDM_FLAGS[file])
    preset = preset_of(file)
    assert preset.width == int(flags["num_channels"])
    assert preset.blocks == int(flags["num_res_blocks"])
    assert preset.multipliers == MULTIPLIERS[int(flags["image_size"])]
    assert preset.told == {
        "size": flags["image_size"],
        "schedule": "edm",
        "head_dim": flags["num_head_channels"],
        "qkv_order": "new",
    }


@pytest.mark.parametrize("file", FLAGS)
def test_a_preset_says_what_the_flags_of_its_files_say(file: str) -> None:
    flags = flags_of(FLAGS[file])
    preset = preset_of(file)
    assert preset.width == int(flags["num_channels"])
    assert preset.blocks == int(flags["num_res_blocks"])
    assert preset.multipliers == MULTIPLIERS[int(flags["image_size"])]
    told = dict(preset.told)
    assert told.pop("size") == flags["image_size"]
    assert told.pop("schedule") == flags["noise_schedule"]
    assert told.pop("steps") == flags["diffusion_steps"]
    assert told.pop("predicts") == "eps"
    assert (
        told.pop("rescale")
        == {"True": "yes", "False": "no"}[flags.get("rescale_timesteps", "False")]
    )
    is_new = flags.get("use_new_attention_order") == "True"
    assert told.pop("qkv_order") == {True: "new", False: "legacy"}[is_new]
    heads = {"heads": flags.get("num_heads"), "head_dim": flags.get("num_head_channels")}
    assert told == {key: value for key, value in heads.items() if value is not None}


def test_every_preset_is_held_against_flags() -> None:
    files = [*FLAGS, *EDM_FLAGS]
    assert {preset_of(file).files for file in files} == {each.files for each in PRESETS.values()}


def test_every_division_into_heads_that_the_programs_are_used_with_is_tried(tmp_path: Path) -> None:
    """Heads 64 channels wide are what most released files have."""
    theirs, _, _ = case("convolutions, legacy")
    found = contents_of(saved(theirs, tmp_path / "a.pt"))
    kind = GuidedFormat()
    widths = kind.candidates(found, {"size": "8"})
    tried = {(each.get("heads"), each.get("head_dim")) for each in widths}
    assert (None, None) not in tried
    assert len(tried) > 1


def test_inspect_names_the_preset_of_a_released_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, _, _ = case("convolutions, legacy")
    path = saved(theirs, tmp_path / "mine_000100.pt")
    assert "preset" not in describe(path).facts
    monkeypatch.setattr(Preset, "is_of", lambda self, layout: "64x64_diffusion" in self.files)
    released = path.rename(tmp_path / "64x64_diffusion.pt")
    assert describe(released).facts["preset"] == "guided_64"
