"""Facts as a person reads them: a table for what there are many of, a line for each of the rest."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from vdiff.cli import console
from vdiff.diffusion import inside
from vdiff.model_folder import origin
from vdiff.model_folder.card import PIXELS
from vdiff.system.plural import count

Facts = Mapping[str, Any]


def show(facts: Facts) -> None:
    """Print facts of any kind that `vdiff inspect` knows."""
    views = {"run": _run, "model": _model, "store": _store, "recipe": _recipe, "foreign": _foreign}
    views[facts["kind"]](facts)
    for warning in facts.get("warnings", []):
        console.warn(warning)


def size(num_bytes: int | None) -> str:
    """Bytes as megabytes, `4.5`."""
    if num_bytes is None:
        return ""
    # a file of some kilobytes would read 0.0
    if num_bytes < 1e5:
        return f"{num_bytes / 1e6:,.3f}"
    return f"{num_bytes / 1e6:,.1f}"


def _run(run: Facts) -> None:
    models = run["models"]
    if models:
        right = ("stage", "steps", "parameters", "updates", "MB")
        console.table(_RUN, [_run_row(row) for row in models], right, _IMPORTANCE)
        _imported(models)
    if all(row["state"] == "unfinished" for row in models):
        what = "makes the first"
        if models:
            what = "goes on"
        console.say(f"no model folder yet in `{run['path']}`; `vdiff train` {what}")
    if run["status"]:
        _status(run["status"])


def _imported(models: Sequence[Facts]) -> None:
    """Where the first model comes from, if another program made it."""
    told = next((row["origin"] for row in models if row["origin"]), None)
    if told is not None:
        console.write("")
        _lines(origin.lines(told))


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


def _model(model: Facts) -> None:
    imported = {} if model["origin"] is None else origin.lines(model["origin"])
    _lines(
        {**_what_it_is(model), **_how_it_draws(model), **_where_it_comes_from(model), **imported}
    )
    rows = [
        (name, f"{entry['size']:,}", entry["sha256"][:16]) for name, entry in model["files"].items()
    ]
    console.write("")
    console.table(("file", "bytes", "SHA-256"), rows, ("bytes",), ("bytes", "SHA-256"))


def _what_it_is(model: Facts) -> dict[str, Any]:
    steps = str(model["num_steps"])
    if model["is_distilled"]:
        steps = f"{steps}, distilled"
    times = "all"
    if model["times"] is not None:
        times = f"{model['times']:,}, which are i / {model['times']}"
    return {
        "model": model["path"],
        "name": model["name"],
        "stage": model["stage"],
        "steps": steps,
        "times": times,
    }


def _how_it_draws(model: Facts) -> dict[str, Any]:
    """The lines that only some models have are left out of the others."""
    lines: dict[str, Any] = {"predictions": "not the mean of what fits"}
    if model["is_denoiser"]:
        lines["predictions"] = "the mean of what fits"
    if model["sampler"] is not None:
        lines["sampler"] = _brief(model["sampler"])
    if model["guidance"] is not None:
        lines["guidance"] = _guidance(model["guidance"])
    if model["codec"] != PIXELS:
        lines["codec"] = _brief(model["codec"])
    return lines


def _guidance(found: Mapping[str, Any]) -> str:
    """What it has inside, and what it is drawn with where nobody names a g."""
    drawn = inside.usual(found)
    told = inside.told(found)
    return told if drawn is None else f"{told}; drawn with {drawn:g} unless told otherwise"


def _where_it_comes_from(model: Facts) -> dict[str, Any]:
    channels, height, width = model["shape"]
    packages = [f"{name} {version}" for name, version in model["versions"].items()]
    state = model["state"]
    if not model["verified"]:
        # weights may be many GB; without being asked, nobody reads them to list a run
        state = f"{state} by its sizes; --verify reads all"
    return {
        "updates": f"{model['updates']:,}",
        "pictures": f"{channels} x {height} x {width}",
        "classes": _classes_of(model),
        "network": f"{model['network']}, {model['num_parameters']:,} parameters",
        "predicts": _brief(model["diffusion"].get("predicts")),
        "schedule": _brief(model["diffusion"].get("schedule")),
        "teachers": _teachers(model["lineage"], model["origin"]),
        "data": _brief({k: v for k, v in model["data"].items() if k != "class_names"}),
        "made by": ", ".join([model["made_by"], *packages]),
        "hash": model["hash"],
        "state": state,
    }


def _classes_of(model: Facts) -> str:
    """How many, their names, and whether there is one for none."""
    if not model["num_classes"]:
        return "none"
    told = f"{model['num_classes']:,}"
    if model["class_names"]:
        told = _classes(model["class_names"])
    if model["null_class"]:
        told += "; and a null class, for `--guidance`"
    return told


def _teachers(lineage: Sequence[Facts], imported: Facts | None) -> str:
    if not lineage:
        return "none: it learned from pictures" if imported is None else "none: it was imported"
    return " < ".join(map(_teacher, lineage))


def _teacher(model: Facts) -> str:
    parts = [count(model["num_steps"], "step"), model["hash"][:_SHORT]]
    # the card remembers it, although its folder was moved or removed
    if not model["path"]:
        parts.append("not here")
    return f"{model['name']} ({', '.join(parts)})"


def _store(store: Facts) -> None:
    encoding = store["encoding"] or "unknown: foreign stores do not say"
    if store["quality"]:
        encoding = f"{encoding}, quality {store['quality']}"
    _lines(
        {
            "store": store["path"],
            "format": f"{store['layout']} {store['format'] or ''}".strip(),
            "made by": store["made_by"] or store["layout"],
            "pictures": f"{store['num_images']:,}",
            "sizes": ", ".join(map(str, store["sizes"])),
            "channels": store["channels"] or "unknown: foreign stores do not say",
            "encoding": encoding,
            "resampling": store["resampling"] or "unknown",
            "classes": _classes(store["class_names"]),
            "MB": size(store["bytes"]),
            "fingerprint": store["fingerprint"],
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


def _recipe(recipe: Facts) -> None:
    settings = recipe["settings"]
    channels = settings["data"]["channels"]
    pixels = settings["data"]["size"]
    _lines(
        {
            "recipe": recipe["path"],
            "name": recipe["name"],
            "pictures": f"{channels} x {pixels} x {pixels}",
            "network": f"{settings['network']['kind']}, {recipe['num_parameters']:,} parameters",
            "updates": f"{sum(stage['updates'] for stage in recipe['stages']):,} in all",
        }
    )
    console.write("")
    base, *students = recipe["stages"]
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


def _foreign(file: Facts) -> None:
    more = {
        name.replace("_", " "): _brief(value)
        for name, value in file.items()
        if name not in _SHOWN_ELSEWHERE
    }
    _lines(
        {
            "file": file["path"],
            "format": file["format"],
            "MB": size(file.get("num_bytes")),
            **more,
        }
    )
    executed = file.get("names_that_would_be_executed")
    if executed:
        console.warn(f"loading `{file['path']}` without care would run code: {', '.join(executed)}")


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
