"""JSON of strangers: one object, bounded in depth and number of values, every key once."""

import json
from typing import Any

from vdiff.disk.tensor_facts import FormatError, printable

MOST_VALUES = 2_000_000
"""More than ten times the header of the largest published models;
keeps the parsed object under about 300 MB.
"""


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in UTF-8 `data`; FormatError, which calls it `what`, for everything else."""
    # Counted before parsing: 100 MiB of `{},{},` would become gigabytes of dicts.
    # Commas in texts are counted too; no real header comes near the limit.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_VALUES:
        raise FormatError(f"has {what} of more than {MOST_VALUES} values")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_every_key_once, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as err:
        raise FormatError(f"has {what} that is not JSON: {printable(str(err))}") from err
    if not isinstance(value, dict):
        raise FormatError(f"has {what} that is not a JSON object")
    return value


def _no_number(name: str) -> None:
    # Python writes NaN and Infinity, and JSON has neither: they could not be written again.
    raise ValueError(f"{name} is no number of JSON")


def _every_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers differ in which of two values they take. A file with a key twice could show one thing
    # here and load another elsewhere.
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key appears twice")
    return values
