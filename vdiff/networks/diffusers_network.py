"""A network that diffusers computes, as a network of vdiff:
with diffusers' own names of weights.
"""

from collections.abc import Mapping
from typing import Any, Self

import diffusers
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.errors import ModelFileError
from vdiff.networks.diffusers_section import DiffusersSection as DiffusersSection
from vdiff.networks.network import Network

UNET = "UNet2DModel"


class DiffusersNetwork(Network):
    """A `UNet2DModel` or `DiTTransformer2DModel`, always as it draws:
    without dropout, no labels left out at random.
    """

    def __init__(self, inner: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        # its layers are ours, under their own names; it is no layer itself, or each name would
        # begin with its own
        object.__setattr__(self, "_inner", inner.eval())
        for name, child in inner.named_children():
            self.add_module(name, child)
        self._config = dict(config)
        self._has_classes = _num_classes(config) > 0

    @property
    def config(self) -> dict[str, Any]:
        """What goes into `config.json`."""
        return dict(self._config)

    def diffusers(self) -> dict[str, Any] | None:
        """None for a transformer: no pipeline of diffusers draws pixels with one."""
        return self.config if self._config["_class_name"] == UNET else None

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for child in self.children():
            child.eval()
        return self

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        self.check_guidance(condition)
        label = condition.label
        if (label is None) == self._has_classes:
            told = "needs a `label` [B]" if label is None else "takes no `label`"
            raise ValueError(f"this network {told}")
        dtype = next(self.parameters()).dtype
        inner: Any = self._inner
        out: Tensor = inner(z.to(dtype), time, class_labels=label, return_dict=False)[0]
        return out.to(z.dtype)


def built(config: Mapping[str, Any]) -> DiffusersNetwork:
    """The network of a checked configuration, with fresh weights.

    Errors: ModelFileError where none can be.
    """
    kind = (
        diffusers.UNet2DModel if config["_class_name"] == UNET else diffusers.DiTTransformer2DModel
    )
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        inner = kind(**settings)
    # whatever a constructor of somebody else says to numbers of a stranger
    except (
        ValueError,
        TypeError,
        RuntimeError,
        ArithmeticError,
        LookupError,
        AttributeError,
    ) as err:
        told = str(err).partition("\n")[0][:200]
        problem = (
            f"diffusers cannot build a `{config['_class_name']}` of this configuration: {told}"
        )
        raise ModelFileError(problem, "use an undamaged copy of the model") from err
    return DiffusersNetwork(inner, {"_class_name": config["_class_name"], **settings})


def _num_classes(config: Mapping[str, Any]) -> int:
    if config["_class_name"] == UNET:
        return int(config.get("num_class_embeds") or 0)
    return int(config.get("num_embeds_ada_norm", 1000))


__all__ = ["DiffusersNetwork", "DiffusersSection", "built"]
