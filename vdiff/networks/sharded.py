"""FSDP2: every process holds a shard of each weight, and a block is brought together while it computes."""

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
    """Whether networks lie in shares, and why.   Errors: MachineError where there is nobody to share with.

    `auto` asks nothing of the machine: the same training must always compute in the same way.
    """
    if wanted == "auto":
        return (
            False,
            "bringing weights together takes time, and who lacks no memory gains nothing by it",
        )
    if wanted == "on" and num_processes == 1:
        fix = "start several with `--gpus N`, or set `shard: auto`"
        raise MachineError("one process has nobody to share its networks with", fix, "shard")
    return wanted == "on", "the recipe says so"


def turn_on(network: nn.Module, device: torch.device) -> nn.Module:
    """Keep of every weight this process's shard only, on the device; names stay. Every process must call it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in [
        *reversed(repeated(network)),
        network,
    ]:  # inner ones first; what is left is the whole network's
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return network


def meta_copy(network: nn.Module) -> nn.Module:
    """A copy on the device `meta`, without values. torch copies no network whose weights are sharded."""
    weights = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"))
        for weight in network.parameters()
    }
    return deepcopy(network, weights)  # what a copy is to have in their place


@torch.no_grad()
def copied(network: nn.Module, empty: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a network whose weights are sharded, with shards of its own.   empty: its `meta_copy`."""
    gc.collect()  # earlier copies: the hooks of a sharded network hold on to it
    copy = turn_on(deepcopy(empty), device).to_empty(device=device)
    pairs = [*zip(copy.parameters(), network.parameters(), strict=True)]
    for mine, other in [*pairs, *zip(copy.buffers(), network.buffers(), strict=True)]:
        local_shard(mine).copy_(local_shard(other))
    return copy


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard, not copied and without a gradient; all of a tensor that is not sharded."""
    if not is_sharded(tensor):  # asked for every weight after every update
        return tensor
    with torch.no_grad():
        found: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return found


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor brought together, in every process, and all must ask; not copied where it is not sharded."""
    found: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found


@torch.no_grad()
def scatter_into(tensor: Tensor, values: Tensor) -> Tensor:
    """Fill a tensor, or this process's shard of it, with what belongs there of all `values`."""
    mine = local_shard(tensor)
    if mine is tensor:
        return tensor.copy_(values)
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    size = -(-len(values) // mesh.size())  # rows of every shard but the last ones
    mine.copy_(values[mesh.get_local_rank() * size :][: len(mine)])
    return tensor


def on_host(
    tensors: Mapping[str, Tensor], keeps: bool = True, copy: bool = True
) -> dict[str, Tensor]:
    """All of the tensors in the host's memory, one brought together after another; every process must ask.

    keeps: whether this process gets them; the others get nothing.   copy: also where they are there already.
    """
    found = {}
    for name, tensor in tensors.items():
        together = full_tensor(tensor.detach())
        if keeps:
            found[name] = together.to("cpu", copy=copy and not is_sharded(tensor)).contiguous()
    return found


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has a shard of it only."""
    return hasattr(type(tensor), "full_tensor")  # importing the class to ask for it would take long
