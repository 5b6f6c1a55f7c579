"""What several processes say to one another, here threads of one process with what
Accelerate would give them.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vdiff.machine.machine import Machine

COUNTS = [2, 3, 5]


class Meeting:
    """Where `count` parties exchange tensors; whoever comes too late ends all of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._all_here = threading.Barrier(count, timeout=60)
        self._given: dict[int, Tensor] = {}

    def exchange(self, rank: int, value: Tensor) -> list[Tensor]:
        self._given[rank] = value
        self._all_here.wait()
        found = [self._given[each] for each in range(self.count)]
        self._all_here.wait()
        return found


class Party:
    """As an Accelerator, for one rank."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def gather(self, value: Tensor) -> Tensor:
        return torch.cat(self._meeting.exchange(self._rank, value))

    def reduce(self, value: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return torch.stack(self._meeting.exchange(self._rank, value)).sum(0)


class Among(Machine):
    """One of several processes."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        super().__init__("fp32", "cpu")
        self._accelerator: Any = Party(meeting, rank)
        self.rank = self.processes.rank = rank
        self.world_size = self.processes.world_size = meeting.count


def together(count: int, work: Callable[[Machine], object]) -> list[Any]:
    """What `work` gives in each of so many processes."""
    meeting, found = Meeting(count), dict[int, object]()
    machines = [Among(meeting, rank) for rank in range(count)]

    def run(rank: int) -> None:
        found[rank] = work(machines[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count, "one of them failed"
    return [found[rank] for rank in range(count)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("num_items", [1, 2, 3, 4, 7, 10, 15])
def test_work_is_shared_out_in_equal_parts_and_everybody_has_all_of_it_in_order(
    count: int, num_items: int
) -> None:
    asked: dict[int, list[int]] = {}

    def square(machine: Machine) -> Tensor:
        def work(part: slice) -> Tensor:
            items = torch.arange(num_items)[part]
            asked[machine.rank] = items.tolist()
            return torch.stack([items, items**2], 1)

        return machine.share_out(work, num_items)

    wanted = torch.stack([torch.arange(num_items), torch.arange(num_items) ** 2], 1)
    for found in together(count, square):
        assert torch.equal(found, wanted)
    assert {len(items) for items in asked.values()} == {-(-num_items // count)}
    assert set().union(*asked.values()) == set(range(num_items))


def test_alone_all_of_the_work_is_ones_own() -> None:
    assert Machine("fp32", "cpu").share_out(lambda part: torch.arange(7)[part], 7).tolist() == list(
        range(7)
    )


@pytest.mark.parametrize("count", COUNTS)
def test_a_flag_in_one_process_is_heard_in_all_and_none_in_none(count: int) -> None:
    for rank in range(count):
        assert (
            together(count, lambda machine, rank=rank: machine.any(machine.rank == rank))
            == [True] * count
        )
    assert together(count, lambda machine: machine.any(False)) == [False] * count
    alone = Machine("fp32", "cpu")
    assert [alone.any(flag) for flag in (True, False)] == [True, False]


@pytest.mark.parametrize("count", COUNTS)
def test_sums_and_least_numbers_are_those_of_all(count: int) -> None:
    ranks = range(count)
    found = together(count, lambda machine: machine.sum(torch.tensor([1.0, machine.rank])).tolist())
    assert found == [[count, sum(ranks)]] * count
    assert together(count, lambda machine: machine.least(10 - machine.rank)) == [11 - count] * count
    alone = Machine("fp32", "cpu")
    assert (alone.sum(torch.tensor(3.0)), alone.least(7)) == (3, 7)


@pytest.mark.parametrize("count", COUNTS)
def test_a_vote_is_heard_by_all_one_question_later(count: int) -> None:
    def votes(machine: Machine) -> list[bool]:
        put = machine.any_late()
        return [put(machine.rank == 1 and number == 2) for number in range(5)]

    assert together(count, votes) == [[False, False, False, True, False]] * count
    alone = Machine("fp32", "cpu").any_late()
    assert [alone(flag) for flag in (False, True, False)] == [False, True, False]


def test_only_the_first_one_writes() -> None:
    assert together(3, lambda machine: machine.is_first) == [True, False, False]
