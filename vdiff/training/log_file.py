"""How the log of a run is known: `log.jsonl`, a JSON object a line,
of which some may be damaged.
"""

import json
from pathlib import Path

from vdiff.disk.ours import beginning


def is_log(path: Path) -> bool:
    """Whether a file is the log of a run, of which lines may be damaged;
    an empty one is taken for it.
    """
    return path.stat().st_size == 0 or is_filled_log(path)


def is_filled_log(path: Path) -> bool:
    """As `is_log`, but not for an empty file."""
    data = beginning(path, 2**18)
    first = b'{"stage": "'
    if b"\n" not in data:  # its writer was killed in the first line
        return bool(data) and (data.startswith(first) or first.startswith(data))
    return any(line.startswith(first) and _is_line(line) for line in data.splitlines())


def _is_line(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and isinstance(entry.get("update"), int)
