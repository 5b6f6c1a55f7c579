"""Facts as a person reads them: a table for what there are many of, a line for each of the rest."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from vdiff.cli import console
from vdiff.model_folder.card import PIXELS
from vdiff.system.plural import count

Facts = Mapping[str, Any]


def show(found: Facts) -> None:
    """Print facts of any kind that `vdiff inspect` knows."""
    views = {"run": _run, "model": _model, "store": _store, "recipe": _recipe, "foreign": _foreign}
    views[found["kind"]](found)
    for warning in found.get("warnings", []):
        console.warn(warning)


def size(num_bytes: int | None) -> str:
    """Bytes as megabytes, `4.5`."""
    if num_bytes is None:
        return ""
    # a model of the demo has 40 kB, which is not 0.0 MB
    if num_bytes < 1e5:
        return f"{num_bytes / 1e6:,.3f}"
    return f"{num_bytes / 1e6:,.1f}"


def _run(found: Facts) -> None:
    models = found["models"]
    if models:
        right = ("stage", "steps", "parameters", "updates", "MB")
        console.table(_RUN, [_run_row(row) for row in models], right, _IMPORTANCE)
    if all(row["state"] == "unfinished" for row in models):
        what = "makes the first"
        if models:
            what = "goes on"
        console.say(f"no model folder yet in `{found['path']}`; `vdiff train` {what}")
    if found["status"]:
        _status(found["status"])


def _status(status: Facts) -> None:
    """How the run stands; if it does not work any longer, why, and the command to go on."""
    state = status["state"]
    where = f"`{status['stage']}` at update {status['update']:,} of {status['updates']:,}"
    if state == "running":
        console.say(
            f"running: {where} (process {status['pid']} on {status['host']}, {status['changed']})",
            "green",
        )
    elif state == "killed":
        # it left no reason and no exit code: its lock is free, and status.json still says `running`
        console.say(
            f"killed, without a word: {where} was the last heard of it ({status['changed']})", "red"
        )
    elif state != "done":
        style = "yellow"
        if state == "failed":
            style = "red"
        console.say(f"{state} with exit code {status['exit_code']}: {status['reason']}", style)
    if state not in ("running", "done"):
        console.say(f"go on with `{status['resume_command']}`", "cyan")


_RUN = ("name", "stage", "steps", "parent", "parameters", "updates", "MB", "hash", "state")
_IMPORTANCE = ("steps", "state", "updates", "parent", "MB", "parameters", "hash", "stage")


def _run_row(row: Facts) -> list[str]:
    parent = row["parent"] or {}
    updates = _number(row["updates"])
    planned = row["planned_updates"]
    if planned not in (row["updates"], None):
        updates = f"{updates} of {planned:,}"
    return [
        row["name"],
        _number(row["stage"]),
        str(row["num_steps"] or ""),
        parent.get("name") or str(parent.get("hash", ""))[:_SHORT],
        _number(row["num_parameters"]),
        updates,
        size(row["bytes"]),
        (row["hash"] or "")[:_SHORT],
        row["state"],
    ]


_SHORT = 8


def _model(found: Facts) -> None:
    _lines({**_what_it_is(found), **_how_it_draws(found), **_where_it_comes_from(found)})
    rows = [
        (name, f"{entry['size']:,}", entry["sha256"][:16]) for name, entry in found["files"].items()
    ]
    console.write("")
    console.table(("file", "bytes", "SHA-256"), rows, ("bytes",), ("bytes", "SHA-256"))


def _what_it_is(found: Facts) -> dict[str, Any]:
    steps = str(found["num_steps"])
    if found["is_distilled"]:
        steps = f"{steps}, distilled"
    times = "all"
    if found["times"] is not None:
        times = f"{found['times']:,}, which are i / {found['times']}"
    return {
        "model": found["path"],
        "name": found["name"],
        "stage": found["stage"],
        "steps": steps,
        "times": times,
    }


def _how_it_draws(found: Facts) -> dict[str, Any]:
    """The lines that only some models have are left out of the others."""
    lines: dict[str, Any] = {"predictions": "not the mean of what fits"}
    if found["is_denoiser"]:
        lines["predictions"] = "the mean of what fits"
    for name in ("sampler", "guidance"):
        if found[name] is not None:
            lines[name] = _brief(found[name])
    if found["codec"] != PIXELS:
        lines["codec"] = _brief(found["codec"])
    return lines


def _where_it_comes_from(found: Facts) -> dict[str, Any]:
    channels, height, width = found["shape"]
    packages = [f"{name} {version}" for name, version in found["versions"].items()]
    state = found["state"]
    if not found["verified"]:
        # weights may be many GB; without being asked, nobody reads them to list a run
        state = f"{state} by its sizes; --verify reads all"
    return {
        "updates": f"{found['updates']:,}",
        "pictures": f"{channels} x {height} x {width}",
        "classes": found["num_classes"] or "none",
        "network": f"{found['network']}, {found['num_parameters']:,} parameters",
        "predicts": _brief(found["diffusion"].get("predicts")),
        "schedule": _brief(found["diffusion"].get("schedule")),
        "teachers": _teachers(found["lineage"]),
        "data": _brief(found["data"]),
        "made by": ", ".join([found["made_by"], *packages]),
        "hash": found["hash"],
        "state": state,
    }


def _teachers(lineage: Sequence[Facts]) -> str:
    if not lineage:
        return "none: it learned from pictures"
    return " < ".join(map(_teacher, lineage))


def _teacher(model: Facts) -> str:
    parts = [count(model["num_steps"], "step"), model["hash"][:_SHORT]]
    # the card remembers it, although its folder was moved or removed
    if not model["path"]:
        parts.append("not here")
    return f"{model['name']} ({', '.join(parts)})"


def _store(found: Facts) -> None:
    encoding = found["encoding"] or "unknown: foreign stores do not say"
    if found["quality"]:
        encoding = f"{encoding}, quality {found['quality']}"
    _lines(
        {
            "store": found["path"],
            "format": f"{found['layout']} {found['format'] or ''}".strip(),
            "made by": found["made_by"] or found["layout"],
            "pictures": f"{found['num_images']:,}",
            "sizes": ", ".join(map(str, found["sizes"])),
            "channels": found["channels"] or "unknown: foreign stores do not say",
            "encoding": encoding,
            "resampling": found["resampling"] or "unknown",
            "classes": _classes(found["class_names"]),
            "MB": size(found["bytes"]),
            "fingerprint": found["fingerprint"],
        }
    )


def _classes(names: Sequence[str]) -> str:
    if not names:
        return "none"
    shown = list(names[:_MOST_CLASSES])
    if len(names) > _MOST_CLASSES:
        # ImageNet has a thousand
        shown.append("...")
    return f"{len(names)}: {', '.join(shown)}"


_MOST_CLASSES = 10


def _recipe(found: Facts) -> None:
    settings = found["settings"]
    channels = settings["data"]["channels"]
    pixels = settings["data"]["size"]
    _lines(
        {
            "recipe": found["path"],
            "name": found["name"],
            "pictures": f"{channels} x {pixels} x {pixels}",
            "network": f"{settings['network']['kind']}, {found['num_parameters']:,} parameters",
            "updates": f"{sum(stage['updates'] for stage in found['stages']):,} in all",
        }
    )
    console.write("")
    base, *students = found["stages"]
    ways: tuple[str, ...] = ()
    # all chains but a few have one objective, and their table is narrow enough for any terminal
    if len({stage["objective"] for stage in students}) > 1:
        ways = ("objective",)
    rows = [_stage_row(base, ways, str(base["num_steps"]))]
    for stage in students:
        steps = f"{stage['start_steps']} -> {stage['num_steps']}"
        rows.append(_stage_row(stage, ways, steps))
    numbers = ("steps", "updates", "batch", "rate")
    console.table(("stage", *ways, *numbers), rows, numbers, numbers)


def _stage_row(stage: Facts, ways: Sequence[str], steps: str) -> list[str]:
    return [
        stage["name"],
        *(stage[way] for way in ways),
        steps,
        f"{stage['updates']:,}",
        f"{stage['batch_size']:,}",
        f"{stage['learning_rate']:.1e}",
    ]


def _foreign(found: Facts) -> None:
    more = {
        name.replace("_", " "): _brief(value)
        for name, value in found.items()
        if name not in _SHOWN_ELSEWHERE
    }
    _lines(
        {
            "file": found["path"],
            "format": found["format"],
            "MB": size(found.get("num_bytes")),
            **more,
        }
    )
    executed = found.get("names_that_would_be_executed")
    if executed:
        console.warn(
            f"loading `{found['path']}` without care would run code: {', '.join(executed)}"
        )


_SHOWN_ELSEWHERE = (
    "kind",
    "tensors",
    "path",
    "format",
    "names_that_would_be_executed",
    "num_bytes",
    "warnings",
)
"""Facts of a foreign file that have a line of their own, or none on a terminal."""


def _lines(facts: Facts) -> None:
    """A line for each fact; in a terminal, long ones go on below themselves."""
    width = max(map(len, facts))
    inset = " " * (width + 2)
    # in a file every fact is one line, so that grep finds it
    room = 10_000
    if console.is_terminal():
        room = shutil.get_terminal_size().columns
    for label, value in facts.items():
        text = f"{label:<{width}}  {value}"
        console.write(
            textwrap.fill(
                text, max(room, width + 20), subsequent_indent=inset, break_on_hyphens=False
            )
        )


def _number(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value:,}"


def _brief(value: Any) -> str:
    """Any value on one line of at most 200 characters."""
    text = _whole(value)
    # a stranger's file may hold a text of any length
    if len(text) > 200:
        return f"{text[:197]}..."
    return text


def _whole(value: Any) -> str:
    match value:
        case dict():
            given = {name: inner for name, inner in value.items() if inner is not None}
            return ", ".join(_named(name, inner) for name, inner in given.items())
        case list():
            parts = [_brief(inner) for inner in value[:16]]
            if len(value) > 16:
                parts.append("...")
            return ", ".join(parts)
        case bool():
            return str(value)
        # a year, a seed or a size in pixels reads worse with a comma
        case int() if abs(value) < 10_000:
            return str(value)
        case int():
            return f"{value:,}"
        case _:
            return " ".join(str(value).split())


def _named(name: str, value: Any) -> str:
    # `schedule cosine` reads better than `schedule kind cosine`
    if name == "kind":
        return _brief(value)
    return f"{name} {_brief(value)}"
