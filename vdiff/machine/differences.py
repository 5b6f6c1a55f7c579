"""What the processes of a run say differently, in words:
each value with the hosts and the processes that have it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def differences(said: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> list[str]:
    """A line per fact that is not the same everywhere;
    a process that does not name a fact does not contradict.

    said: the facts by name, per process in their order.   hosts: where each process runs.
    """
    names = dict.fromkeys(name for facts in said for name in facts)
    return [line for line in (_difference(name, said, hosts) for name in names) if line]


def _difference(name: str, said: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> str:
    holders: dict[str, dict[str, list[int]]] = {}
    for rank, facts in enumerate(said):
        if name in facts:
            value = json.dumps(facts[name], sort_keys=True)
            holders.setdefault(value, {}).setdefault(hosts[rank], []).append(rank)
    if len(holders) < 2:
        return ""
    return f"{name}: " + ", ".join(
        f"{_shown(value)} {_places(there)}" for value, there in holders.items()
    )


def _shown(value: str) -> str:
    text = value
    if text.startswith('"'):
        # without the quotation marks of JSON
        text = text[1:-1]
    if len(text) > 40:
        return f"{text[:24]}..."
    return text


def _places(hosts: Mapping[str, Sequence[int]]) -> str:
    return " and ".join(f"on `{host}` ({_processes(ranks)})" for host, ranks in hosts.items())


def _processes(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    if list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"processes {ranks[0]} to {ranks[-1]}"
    return f"processes {', '.join(map(str, ranks))}"
