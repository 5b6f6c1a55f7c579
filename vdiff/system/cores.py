"""How many CPU cores this process may use, on systems that tell and on
those that do not (macOS).
"""

import os


def num_cores() -> int:
    """Those that the system gives to this process; else all there are."""
    allowed = getattr(os, "sched_getaffinity", None)
    if allowed is not None:
        return len(allowed(0))
    return os.cpu_count() or 1
