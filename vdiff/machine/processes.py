"""The processes of a run: how they join, and the tensors that one gives the others.

Tensors go through torch's process group, within minutes; all else is told in a `Meeting`.
"""

import secrets
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

import torch
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined] # its stubs say that it is not there

from vdiff.machine import accelerate_settings, rendezvous, world
from vdiff.machine.line import Line
from vdiff.machine.meeting import Meeting

PATIENCE = timedelta(minutes=5)
"""How long processes wait for one another's tensors;
all of them compute the same then, at about the same speed.

Not 10 minutes: `accelerate` takes them for nothing said, and torch then waits 30.
"""


class Processes(Meeting):
    """All processes of a run, as one of them sees them.

    local_size: how many of them are on this host.
    """

    def __init__(
        self,
        cpu: bool,
        say: Callable[[str], None] = lambda text: None,
        check: Callable[[], None] = lambda: None,
        is_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """Join the others, if a launcher started any: see `world` and `rendezvous`.

        say, check: told for whom this process waits, and called meanwhile; `check` may raise.
        is_asked: as for `Meeting`.
        """
        own = world.from_environment()
        self.local_size = own.local_size
        self._store = rendezvous.meet(own, say, check)
        # accelerate reads the environment by rules of its own
        with accelerate_settings.hidden(), world.told(own):
            # here, because it reads some settings when it is imported
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs

            patience = InitProcessGroupKwargs(timeout=PATIENCE)
            # its own mixed precision would cast every input and output again
            self.accelerator = Accelerator(
                cpu=cpu,
                mixed_precision="no",
                step_scheduler_with_optimizer=False,
                kwargs_handlers=[patience],
            )
        rank = int(self.accelerator.process_index)
        world_size = int(self.accelerator.num_processes)
        line: Line | None = None
        if world_size > 1:
            place = f"{own.host}:{own.port}"
            line = Line(self._own_store(), rank, world_size, own.listens, place)
        super().__init__(line, rank, world_size, is_asked)

    def spread(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in every process, on the CPU.

        The others give one without values, on the device `meta`, and get a new one.
        """
        if self._line is None:
            return tensor
        given = tensor
        if tensor.is_meta:
            given = torch.empty_like(tensor, device="cpu")
        self.fill(given)
        return given

    def fill(self, tensor: Tensor) -> None:
        """Give a tensor the values that it has in the first process."""
        if self._line is None:
            return
        there = tensor.detach().to(self.accelerator.device).contiguous()
        torch.distributed.broadcast(there, 0)
        if not self.is_first:
            tensor.detach().copy_(there)

    def close(
        self,
        kind: type[BaseException] | None = None,
        err: BaseException | None = None,
        _: TracebackType | None = None,
    ) -> None:
        """Leave the others in good order; with an error, tell them."""
        self.leave(err)
        if kind is not None and self.world_size > 1 and torch.distributed.get_backend() == "nccl":
            # in good order it would wait for the others, who wait for this one, and nobody would
            # hear of the error
            torch.distributed.distributed_c10d._abort_process_group()
            return
        self.accelerator.end_training()

    def _own_store(self) -> PrefixStore:
        # torchrun gives the same store to processes that it starts again: what they were told
        # before must not count
        name = torch.tensor(secrets.randbits(62), device=self.accelerator.device)
        torch.distributed.broadcast(name, 0)
        store = torch.distributed.distributed_c10d._get_default_store()
        return PrefixStore(f"vdiff-{int(name):x}", store)
