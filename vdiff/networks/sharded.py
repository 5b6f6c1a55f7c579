"""A network whose weights lie in shares, one in each process: brought together a block at a time while it computes."""

import gc
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vdiff.errors import MachineError
from vdiff.networks.packed import keep_order
from vdiff.networks.repeated import repeated

Shard = Literal["auto", "on", "off"]


def resolve(wanted: Shard, num_processes: int) -> tuple[bool, str]:
    """Whether networks lie in shares, and why.   Errors: MachineError where there is nobody to share with.

    `auto` asks nothing of the machine: the same training must always compute in the same way.
    """
    if wanted == "auto":
        return False, "bringing weights together takes time, and who lacks no memory gains nothing by it"
    if wanted == "on" and num_processes == 1:
        fix = "start several with `--gpus N`, or set `shard: auto`"
        raise MachineError("one process has nobody to share its networks with", fix, "shard")
    return wanted == "on", "the recipe says so"


def turn_on(network: nn.Module, device: torch.device) -> nn.Module:
    """Keep of every weight this process's share only, on the device; names stay. Every process must call it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    keep_order(network)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in [*reversed(repeated(network)), network]:  # inner ones first; what is left is the whole network's
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return network


def outline(network: nn.Module) -> nn.Module:
    """A copy without values, which takes no memory; torch copies no network whose weights lie in shares."""
    weights = {id(weight): nn.Parameter(torch.empty_like(weight, device="meta")) for weight in network.parameters()}
    return deepcopy(network, weights)  # what a copy is to have in their place


@torch.no_grad()
def copied(network: nn.Module, outline: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a network whose weights lie in shares, with shares of its own.   outline: of that network."""
    gc.collect()  # earlier copies: the hooks of a network in shares hold on to it
    copy = turn_on(deepcopy(outline), device).to_empty(device=device)
    pairs = [*zip(copy.parameters(), network.parameters(), strict=True)]
    for mine, other in [*pairs, *zip(copy.buffers(), network.buffers(), strict=True)]:
        own(mine).copy_(own(other))
    return copy


def own(tensor: Tensor) -> Tensor:
    """This process's share, not copied and without a gradient; all of a tensor that does not lie in shares."""
    if not in_shares(tensor):  # asked for every weight after every update
        return tensor
    with torch.no_grad():
        found: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return found


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor brought together, in every process, and all must ask; not copied where it does not lie in shares."""
    found: Tensor = tensor.full_tensor() if in_shares(tensor) else tensor  # type: ignore[attr-defined]
    return found


@torch.no_grad()
def put(tensor: Tensor, values: Tensor) -> Tensor:
    """Fill a tensor, or this process's share of it, with what belongs there of all `values`."""
    mine = own(tensor)
    if mine is tensor:
        return tensor.copy_(values)
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    size = -(-len(values) // mesh.size())  # rows of every share but the last ones
    mine.copy_(values[mesh.get_local_rank() * size :][: len(mine)])
    return tensor


def on_host(tensors: Mapping[str, Tensor], keeps: bool = True, copy: bool = True) -> dict[str, Tensor]:
    """All of the tensors in the host's memory, one brought together after another; every process must ask.

    keeps: whether this process gets them; the others get nothing.   copy: also where they are there already.
    """
    found = {}
    for name, tensor in tensors.items():
        together = whole(tensor.detach())
        if keeps:
            found[name] = together.to("cpu", copy=copy and not in_shares(tensor)).contiguous()
    return found


def in_shares(tensor: Tensor) -> bool:
    """Whether this process has a share of it only."""
    return hasattr(type(tensor), "full_tensor")  # importing the class to ask for it would take long
