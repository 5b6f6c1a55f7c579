"""CPU seconds of each file of tests, with those of the processes that it starts: what waits for
the disk or for another process costs nothing here, and a busy machine disturbs little.

    python -m pytest -p tests.cpu_time tests/test_chain.py      (also with -n 2)

A process that outlives the one that started it is not counted.
"""

import os
import resource
from collections import Counter
from collections.abc import Generator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

MOST = 30
"""Files that are shown."""

_SPENT: Counter[str] = Counter()


def _now() -> float:
    """CPU seconds so far: of this process, its children, and the forks of tests.forked."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is None:
        return own
    times = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[11:15]
    return own + sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Count a test with its fixtures for its file."""
    before = _now()
    try:
        return (yield)
    finally:
        _SPENT[item.path.name] += _now() - before


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist hands on what it counted."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cpu_time"] = dict(_SPENT)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker of xdist counted."""
    _SPENT.update(node.workeroutput.get("cpu_time", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The files that take most."""
    terminalreporter.section(f"CPU seconds, in all {_SPENT.total():.0f}")
    for name, seconds in _SPENT.most_common(MOST):
        terminalreporter.line(f"{seconds:8.1f} {name}")
