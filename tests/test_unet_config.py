"""The settings of a U-Net: diffusers' meaning for those we compute,
a refusal by name for the rest.
"""

import json
import warnings
from typing import Any

import pytest
import torch

from vdiff.errors import ModelFileError, UsageError
from vdiff.networks.unet import UNet

LEVELS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
LEVELS |= {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}


def test_settings_left_out_mean_what_they_mean_in_diffusers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers")
        from diffusers import UNet2DModel
    with torch.device("meta"):
        ours, theirs = UNet.from_config({"num_class_embeds": 2}), UNet2DModel(num_class_embeds=2)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    known = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert json.loads(json.dumps(known)) == {
        k: v for k, v in ours.config.items() if not k.startswith("_")
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("down_block_types", ["DownBlock2D", "KDownBlock2D"]),
        ("up_block_types", ["UpBlock2D", "SkipUpBlock2D"]),
        ("mid_block_type", None),
        ("mid_block_scale_factor", 1.414),
        ("time_embedding_type", "fourier"),
        ("downsample_type", "average"),
        ("upsample_type", "shuffle"),
        ("downsample_padding", 2),
        ("act_fn", "gelu"),
        ("class_embed_type", "timestep"),
        ("center_input_sample", True),
        ("resnet_time_scale_shift", "spatial"),
        ("attention_head_dim", 6),
        ("cross_attention_dim", 64),
        ("_class_name", "UNet2DConditionModel"),
    ],
)
def test_a_setting_that_we_do_not_compute_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        UNet.from_config(LEVELS | {key: value})
    assert f"`{key}`" in caught.value.problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_out_channels", [8, 65540]),
        ("block_out_channels", []),
        ("block_out_channels", [8, 8, 8]),
        ("block_out_channels", "wide"),
        ("layers_per_block", 10**9),
        ("layers_per_block", 0),
        ("in_channels", 10**30),
        ("out_channels", -1),
        ("num_class_embeds", 2**40),
        ("norm_num_groups", 3),
        ("attn_norm_num_groups", 5),
        ("norm_eps", float("nan")),
        ("dropout", 1.0),
        ("freq_shift", 4),
        ("num_attention_heads", 2),
        ("num_attention_heads_up", 2),
        ("time_width", 1),
    ],
)
def test_a_config_that_no_network_can_have_is_called_a_bad_file(key: str, value: Any) -> None:
    with pytest.raises(ModelFileError) as caught:
        UNet.from_config(LEVELS | {key: value})
    assert f"`{key}`" in caught.value.problem
    assert len(caught.value.problem) < 200


@pytest.mark.parametrize(
    "heads",
    [
        {"num_attention_heads": 3},
        {"num_attention_heads": 2, "num_attention_heads_up": 5},
    ],
)
def test_heads_that_do_not_divide_the_channels_are_a_bad_file(heads: dict[str, int]) -> None:
    with pytest.raises(ModelFileError, match=f"`{list(heads)[-1]}`"):
        UNet.from_config(LEVELS | {"attention_head_dim": None} | heads)


def test_more_than_20_levels_are_called_a_bad_file() -> None:
    levels = {"down_block_types": ["DownBlock2D"] * 21, "up_block_types": ["UpBlock2D"] * 21}
    with pytest.raises(ModelFileError, match="`block_out_channels`"):
        UNet.from_config(LEVELS | levels | {"block_out_channels": [8] * 21})


def test_a_config_that_is_no_mapping_is_called_a_bad_file() -> None:
    with pytest.raises(ModelFileError, match="list"):
        UNet.from_config([1, 2])
