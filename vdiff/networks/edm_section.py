"""What a folder says of a network in EDM's frame. Without torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vdiff.config import shapes_weights
from vdiff.errors import ModelFileError
from vdiff.networks import NETWORKS
from vdiff.networks.taken_in import TakenInSection

if TYPE_CHECKING:
    from vdiff.networks.edm import EdmNetwork


class EdmConfig(BaseModel):
    """The frame, and the network in it.

    sigma_data: standard deviation of the pictures that it was trained on.
    time_scale: what log(sigma) is multiplied by, and the network in the frame is told.
    inner_kind, inner: that network and its own configuration.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True)

    sigma_data: float = Field(ge=1e-4, le=1e4)
    time_scale: float = Field(gt=0, le=1e6)
    inner_kind: Literal["unet", "edm_unet"]
    inner: dict[str, Any]

    @classmethod
    def read(cls, config: object) -> Self:
        """The configuration in a parsed `config.json`.   Errors: ModelFileError."""
        try:
            return cls.model_validate(config)
        except ValidationError as err:
            first = err.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the network"
            problem = f"`{key}` of a network in EDM's frame: {first['msg']}"
            where = "the network's config.json"
            raise ModelFileError(problem, "use an undamaged copy of the model", where) from err


class EdmSection(TakenInSection):
    """A network in EDM's frame. Such networks are imported, and students are copies of them."""

    kind: Literal["edm"] = shapes_weights("edm")
    """Which network this is."""

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> "EdmNetwork":
        """The network of a model folder, with any weights, from its parsed `config.json`."""
        from vdiff.networks.edm import EdmNetwork

        read = EdmConfig.read(config)
        inner = NETWORKS.section(read.inner_kind).restore(read.inner)
        return EdmNetwork(inner, read)

    @classmethod
    def misfit(
        cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int
    ) -> str | None:
        read = EdmConfig.read(config)
        if NETWORKS.section(read.inner_kind).misfit(read.inner, shape, num_classes) is None:
            return None
        return "inner"
