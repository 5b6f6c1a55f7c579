"""Settings of `accelerate` in the environment: a launcher or another tool left them there;
the recipe is what counts.

`accelerate` reads some hundred variables. Left to itself it divides gradients by one, compiles
because of another, and ends with an error because of a third. What shapes the weights must stand in
the recipe, so all of them are hidden while it works, but for the one that is followed here:
`ACCELERATE_USE_CPU`.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping

USE_CPU = "ACCELERATE_USE_CPU"

_PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FORK_LAUNCHED")
_TALK = ("ACCELERATE_LOG_LEVEL", "ACCELERATE_ENABLE_RICH", "ACCELERATE_DEBUG_MODE")
"""Those that change what it says, not what it does:
nobody needs to be told that they are hidden.
"""

_ASK_NOTHING = ("", "0", "no", "n", "none", "false", "f", "off", "default")
"""Values, in small letters, that `accelerate launch` gives to what nobody asked for."""
_YES = ("1", "y", "yes", "t", "true", "on")

_OURS = {
    "ACCELERATE_MIXED_PRECISION": "precision",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "micro_batch",
    "ACCELERATE_GRADIENT_CLIPPING": "clip_norm",
    "ACCELERATE_DYNAMO_BACKEND": "compile",
    "ACCELERATE_USE_FSDP": "shard",
}
"""The field of a recipe that says the same."""

_MOST_NAMED = 4


def wants_cpu() -> bool:
    """Whether `accelerate` was told to compute on the CPU."""
    return os.environ.get(USE_CPU, "").strip().lower() in _YES


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Within it, the environment holds no setting of `accelerate`."""
    taken = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
    for name in taken:
        del os.environ[name]
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(_PREFIXES)]:
            del os.environ[name]  # which `accelerate` has set for itself
        os.environ.update(taken)


def ignored(precision: str, environment: Mapping[str, str] | None = None) -> str:
    """The line that names the settings which ask for something and are not followed;
    empty where there are none.

    precision: what the run computes in; who asks for the same is not contradicted.
    environment: else the process's.
    """
    given = os.environ if environment is None else environment
    asked = {
        name: value
        for name, value in sorted(given.items())
        if name.startswith(_PREFIXES)
        and name not in (USE_CPU, *_TALK)
        and value.strip().lower() not in _ASK_NOTHING
    }
    if asked.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") == "1":
        del asked["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"]
    if asked.get("ACCELERATE_MIXED_PRECISION") == precision:
        del asked["ACCELERATE_MIXED_PRECISION"]
    if not asked:
        return ""
    # those that have a word of ours come first
    named = sorted(asked, key=lambda name: (name not in _OURS, name))
    told = [_told(name, asked[name]) for name in named[:_MOST_NAMED]]
    more = len(named) - len(told)
    if more:
        told.append(f"{more} more")
    return f"settings of `accelerate` are ignored, the recipe counts: {', '.join(told)}"


def _told(name: str, value: str) -> str:
    ours = f" (here `{_OURS[name]}`)" if name in _OURS else ""
    return f"{name}={value[:40]}{ours}"
