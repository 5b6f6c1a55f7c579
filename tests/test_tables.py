"""Every table of kinds is a test's parameter:
what is added to a table without a test that knows it is found here.
"""

import importlib
import pkgutil

import pytest

import vdiff
from tests import (
    test_codec,
    test_every_dataset,
    test_every_format,
    test_every_metric,
    test_every_network,
    test_every_sampler,
    test_every_schedule,
    test_every_source,
    test_objectives,
)
from vdiff.config import Table

EXPECTED = {
    "codec": test_codec.EXPECTED,
    "data": test_every_dataset.EXPECTED,
    "format": test_every_format.EXPECTED,
    "metric": test_every_metric.EXPECTED,
    "network": {
        **test_every_network.EXPECTED,
        **{kind: {} for kind in test_every_network.IMPORTED},
    },
    "objective": test_objectives.EXPECTED,
    "sampler": test_every_sampler.OPTIONS,
    "schedule": test_every_schedule.EXPECTED,
    "source": test_every_source.EXPECTED,
}
"""What the tests know, by the word for what a table has kinds of."""


def tables() -> dict[str, Table]:
    modules = [
        importlib.import_module(each.name)
        for each in pkgutil.iter_modules(vdiff.__path__, "vdiff.")
        if each.ispkg
    ]
    found = [
        value for module in modules for value in vars(module).values() if isinstance(value, Table)
    ]
    return {table.part: table for table in found}


def test_every_table_has_a_test_that_runs_over_it() -> None:
    assert EXPECTED.keys() == tables().keys()


@pytest.mark.parametrize("part", sorted(tables()))
def test_every_kind_of_a_table_is_known_to_that_test(part: str) -> None:
    assert EXPECTED[part].keys() == set(tables()[part]), (
        f"add what is expected of the new kind of {part}"
    )
