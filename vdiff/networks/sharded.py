"""FSDP2: every process holds a shard of each weight, and a block is brought
together while it computes.
"""

import gc
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from vdiff.choices import Shard as Shard
from vdiff.errors import MachineError
from vdiff.networks.repeated import repeated


def resolve(wanted: Shard, num_processes: int) -> tuple[bool, str]:
    """Whether the weights are sharded, and why.   Errors: MachineError where there is one process
    only.

    `auto` asks nothing of the machine: the same training must always compute in the same way.
    """
    if wanted == "auto":
        reason = "bringing weights together takes time, and who lacks no memory gains nothing by it"
        return False, reason
    if wanted == "on" and num_processes == 1:
        fix = "start several with `--gpus N`, or set `shard: auto`"
        raise MachineError("one process has nobody to share its networks with", fix, "shard")
    return wanted == "on", "the recipe says so"


def turn_on(network: nn.Module, device: torch.device) -> nn.Module:
    """Keep of every weight this process's shard only, on the device; names stay.

    Every process must call it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # Inner parts first, as FSDP2 wants it: each call takes the weights that no call before it has
    # taken.
    for part in reversed(repeated(network)):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network


def meta_copy(network: nn.Module) -> nn.Module:
    """A copy on the device `meta`, without values.
    torch copies no network whose weights are sharded.
    """
    weights = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"))
        for weight in network.parameters()
    }
    # As if they were copied already: `deepcopy` puts them in the place of the weights.
    return deepcopy(network, weights)


@torch.no_grad()
def copied(network: nn.Module, empty: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a network whose weights are sharded, with shards of its own.

    empty: its `meta_copy`.
    """
    # The hooks of a sharded network hold on to it in a circle: earlier copies go only when Python
    # looks for such.
    gc.collect()
    copy = turn_on(deepcopy(empty), device).to_empty(device=device)
    for weight, source in zip(copy.parameters(), network.parameters(), strict=True):
        local_shard(weight).copy_(local_shard(source))
    for buffer, value in zip(copy.buffers(), network.buffers(), strict=True):
        local_shard(buffer).copy_(local_shard(value))
    return copy


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard, not copied and without a gradient;
    all of a tensor that is not sharded.
    """
    # Before `no_grad`, which takes time: this is asked for every weight after every update.
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        shard: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return shard


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor, in every process, and every process must ask;
    not copied where it is not sharded.
    """
    if not is_sharded(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


@torch.no_grad()
def scatter_into(tensor: Tensor, values: Tensor) -> Tensor:
    """Fill a tensor, or this process's shard of it, from the whole tensor `values`."""
    shard = local_shard(tensor)
    if shard is tensor:
        return tensor.copy_(values)
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    # FSDP2 splits the rows as `torch.chunk` does: equal shards, and the last ones may be shorter or
    # empty.
    rows_per_shard = -(-len(values) // mesh.size())
    first_row = mesh.get_local_rank() * rows_per_shard
    shard.copy_(values[first_row:][: len(shard)])
    return tensor


def on_host(
    tensors: Mapping[str, Tensor], keeps: bool = True, copy: bool = True
) -> dict[str, Tensor]:
    """All of the tensors in the host's memory, one brought together after another;
    every process must ask.

    keeps: whether this process gets them; the others get nothing.
    copy: also where they are there already.
    """
    kept = {}
    for name, tensor in tensors.items():
        # Also where nothing is kept: bringing it together needs every process.
        whole = full_tensor(tensor.detach())
        if keeps:
            # A tensor that was brought together is a copy already.
            kept[name] = whole.to("cpu", copy=copy and not is_sharded(tensor)).contiguous()
    return kept


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has a shard of it only."""
    # By an attribute: importing the class of sharded tensors takes long.
    return hasattr(type(tensor), "full_tensor")
