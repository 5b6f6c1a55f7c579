"""The settings of a U-Net as diffusers' `UNet2DModel` writes them:
which vdiff computes, and which it refuses.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from vdiff.errors import ModelFileError, UsageError

CLASS_NAME = "UNet2DModel"
MOST_LEVELS = 12
MOST_LAYERS = 16
"""More than any picture or any published U-Net needs;
a stranger's file could ask for minutes of building otherwise.
"""
Width = Annotated[int, Field(ge=1, le=65536)]
DownBlockType = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlockType = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
OWN_CLASS_NAME = "VdiffUNet"
"""Of a network that `UNet2DModel` cannot be:
another name, or diffusers would compute something else with its weights.
"""


class UNetConfig(BaseModel):
    """The keys, defaults and meaning of diffusers' `UNet2DModel`,
    with the values that vdiff computes.

    The last four keys are vdiff's own. They are written only where they are set.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    sample_size: int | tuple[int, int] | None = None
    in_channels: Width = 3
    out_channels: Width = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Width | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[DownBlockType, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[UpBlockType, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: tuple[Width, ...] = Field(
        (224, 448, 672, 896), min_length=1, max_length=MOST_LEVELS
    )
    layers_per_block: int = Field(2, ge=1, le=MOST_LAYERS)
    mid_block_scale_factor: Literal[1] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    dropout: float = Field(0.0, ge=0, lt=1)
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: PositiveInt | None = 8
    norm_num_groups: PositiveInt = 32
    attn_norm_num_groups: PositiveInt | None = None
    norm_eps: float = Field(1e-5, ge=0, le=1)
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: Literal[None] = None
    num_class_embeds: int | None = Field(None, ge=1, le=2**24)
    num_train_timesteps: int | None = None
    num_attention_heads: PositiveInt | None = None
    """Heads at every attended level, whatever its width; `attention_head_dim` is None then."""
    num_attention_heads_up: PositiveInt | None = None
    """The same on the way up, where it is another number than on the way down and in the middle."""
    time_width: Annotated[int, Field(ge=2, le=65536)] | None = None
    """Sines and cosines of the time, where they are not as many as the first level has channels."""
    takes_guidance: Literal[True] | None = None
    """Whether the network is told the strength of guidance."""

    @classmethod
    def parse(cls, config: object) -> Self:
        """The configuration in a parsed `config.json`, before anything is allocated.

        UsageError: a setting that diffusers has and vdiff does not compute.
        ModelFileError: one that cannot be.
        """
        if not isinstance(config, Mapping):
            raise ModelFileError(
                f"the network's configuration is a {type(config).__name__}",
                "use another model file",
            )
        if config.get("_class_name", CLASS_NAME) not in (CLASS_NAME, OWN_CLASS_NAME):
            raise _unsupported("_class_name", config["_class_name"], f"it computes `{CLASS_NAME}`")
        try:
            return cls.model_validate(
                {key: value for key, value in config.items() if not str(key).startswith("_")}
            )
        except ValidationError as err:
            raise _refusal(err.errors()[0]) from err

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse settings that do not fit each other."""
        num_levels = len(self.block_out_channels)
        if not len(self.down_block_types) == len(self.up_block_types) == num_levels:
            raise _impossible(
                "block_out_channels", f"has {num_levels} levels, the block types another number"
            )
        if math.gcd(*self.block_out_channels) % self.norm_num_groups:
            raise _impossible(
                "norm_num_groups", f"is {self.norm_num_groups}, no divisor of every level's width"
            )
        if self.add_attention and self.block_out_channels[-1] % (self.mid_norm_groups or 1):
            raise _impossible(
                "attn_norm_num_groups", f"is {self.mid_norm_groups}, no divisor of the last width"
            )
        if not 0 <= self.freq_shift < self.sinusoid // 2:
            raise _impossible(
                "freq_shift", f"is {self.freq_shift}: below 0, or not below half the first width"
            )
        self._check_heads()
        return self

    def _check_heads(self) -> None:
        if self.attention_head_dim and math.gcd(*self.attended_widths) % self.attention_head_dim:
            raise _unsupported(
                "attention_head_dim", self.attention_head_dim, "it must divide every attended width"
            )
        if self.num_attention_heads is None:
            if self.num_attention_heads_up is not None:
                raise _impossible("num_attention_heads_up", "is set without `num_attention_heads`")
            return
        if self.attention_head_dim is not None:
            raise _impossible("num_attention_heads", "is set beside `attention_head_dim`")
        counted = {
            "num_attention_heads": self.num_attention_heads,
            "num_attention_heads_up": self.num_attention_heads_up,
        }
        for key, heads in counted.items():
            if heads is not None and math.gcd(*self.attended_widths) % heads:
                raise _impossible(key, f"is {heads}, no divisor of every attended width")

    def to_json(self) -> dict[str, Any]:
        """What goes into `config.json`; `read` takes it back."""
        settings = self.model_dump(mode="json")
        own = [key for key in _OWN_KEYS if settings[key] is None]
        return {
            "_class_name": CLASS_NAME if self.is_known_to_diffusers else OWN_CLASS_NAME,
            "_diffusers_version": "0.35.0",
            **{key: value for key, value in settings.items() if key not in own},
        }

    @property
    def is_known_to_diffusers(self) -> bool:
        """Whether `UNet2DModel` can be told of everything here."""
        own = (self.num_attention_heads, self.time_width, self.takes_guidance)
        return all(value is None for value in own)

    @property
    def sinusoid(self) -> int:
        """Number of sines and cosines of the time."""
        return self.time_width or self.block_out_channels[0]

    @property
    def embedding(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def mid_norm_groups(self) -> int | None:
        """Groups of the norm before the attention in the middle; None: there is no such norm."""
        if self.attn_norm_num_groups is not None:
            return self.attn_norm_num_groups
        # The code of diffusers gives this attention no norm where the time scales and shifts.
        if self.resnet_time_scale_shift == "scale_shift":
            return None
        return self.norm_num_groups

    @property
    def attended_widths(self) -> list[int]:
        """The widths at which attention sits."""
        down = zip(self.down_block_types, self.block_out_channels, strict=True)
        up = zip(self.up_block_types, reversed(self.block_out_channels), strict=True)
        widths = [width for block_type, width in (*down, *up) if block_type.startswith("Attn")]
        if self.add_attention:
            widths.append(self.block_out_channels[-1])
        return widths


_OWN_KEYS = ("num_attention_heads", "num_attention_heads_up", "time_width", "takes_guidance")


def _refusal(error: ErrorDetails) -> ModelFileError | UsageError:
    """The error for a value that the checks refuse, or a key that they do not know."""
    key = str(error["loc"][0])
    # diffusers may well compute this one, and vdiff does not. Anything else is right nowhere: the
    # file is damaged.
    if error["type"] in ("literal_error", "extra_forbidden"):
        return _unsupported(key, error["input"], error["msg"])
    return _impossible(key, f"is {str(error['input'])[:40]!r}: {error['msg']}")


def _unsupported(key: str, value: object, why: str) -> UsageError:
    return UsageError(
        f"vdiff does not compute a network with `{key}` {str(value)[:40]!r}: {why}",
        "use a model without this setting",
        f"`{key}` in the network's config.json",
    )


def _impossible(key: str, why: str) -> ModelFileError:
    return ModelFileError(
        f"`{key}` {why}",
        "use an undamaged copy of the model",
        f"`{key}` in the network's config.json",
    )
