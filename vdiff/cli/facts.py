"""Facts as a person reads them: a table for what there are many of, a line for each of the rest."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from vdiff.cli import console
from vdiff.model_folder.card import PIXELS

Facts = Mapping[str, Any]


def show(found: Facts) -> None:
    """Print facts of any kind that `vdiff inspect` knows."""
    views = {"run": _run, "model": _model, "store": _store, "recipe": _recipe, "foreign": _foreign}
    views[found["kind"]](found)
    for warning in found.get("warnings", []):
        console.warn(warning)


def size(num_bytes: int | None) -> str:
    """Bytes as megabytes, `4.5`."""
    return "" if num_bytes is None else f"{num_bytes / 1e6:,.{1 if num_bytes >= 1e5 else 3}f}"


def _run(found: Facts) -> None:
    models = found["models"]
    if models:
        right = ("stage", "steps", "parameters", "updates", "MB")
        console.table(_RUN, [_run_row(row) for row in models], right, _IMPORTANCE)
    if all(row["state"] == "unfinished" for row in models):
        console.say(
            f"no model folder yet in `{found['path']}`; `vdiff train` {'goes on' if models else 'makes the first'}"
        )
    if found["status"]:
        _status(found["status"])


def _status(status: Facts) -> None:
    """How the run stands; if it does not work any longer, why, and the command to go on."""
    state, where = (
        status["state"],
        f"`{status['stage']}` at update {status['update']:,} of {status['updates']:,}",
    )
    if state == "running":
        console.say(
            f"running: {where} (process {status['pid']} on {status['host']}, {status['changed']})",
            "green",
        )
    elif state == "killed":
        console.say(
            f"killed, without a word: {where} was the last heard of it ({status['changed']})", "red"
        )
    elif state != "done":
        style = "red" if state == "failed" else "yellow"
        console.say(f"{state} with exit code {status['exit_code']}: {status['reason']}", style)
    if state not in ("running", "done"):
        console.say(f"go on with `{status['resume_command']}`", "cyan")


_RUN = ("name", "stage", "steps", "parent", "parameters", "updates", "MB", "hash", "state")
_IMPORTANCE = ("steps", "state", "updates", "parent", "MB", "parameters", "hash", "stage")


def _run_row(row: Facts) -> list[str]:
    parent, updates, planned = row["parent"] or {}, row["updates"], row["planned_updates"]
    of = f" of {planned:,}" if planned not in (updates, None) else ""
    return [
        row["name"],
        _number(row["stage"]),
        str(row["num_steps"] or ""),
        parent.get("name") or str(parent.get("hash", ""))[:_SHORT],
        _number(row["num_parameters"]),
        _number(updates) + of,
        size(row["bytes"]),
        (row["hash"] or "")[:_SHORT],
        row["state"],
    ]


_SHORT = 8


def _model(found: Facts) -> None:
    channels, height, width = found["shape"]
    diffusion, data = found["diffusion"], found["data"]
    _lines(
        {
            "model": found["path"],
            "name": found["name"],
            "stage": found["stage"],
            "steps": f"{found['num_steps']}{', distilled' if found['is_distilled'] else ''}",
            "times": "all"
            if found["times"] is None
            else f"{found['times']:,}, which are i / {found['times']}",
            "predictions": "the mean of what fits"
            if found["is_denoiser"]
            else "not the mean of what fits",
            **{
                name: _brief(found[name])
                for name in ("sampler", "guidance")
                if found[name] is not None
            },
            **({} if found["codec"] == PIXELS else {"codec": _brief(found["codec"])}),
            "updates": f"{found['updates']:,}",
            "pictures": f"{channels} x {height} x {width}",
            "classes": found["num_classes"] or "none",
            "network": f"{found['network']}, {found['num_parameters']:,} parameters",
            "predicts": _brief(diffusion.get("predicts")),
            "schedule": _brief(diffusion.get("schedule")),
            "teachers": _teachers(found["lineage"]),
            "data": _brief(data),
            "made by": ", ".join(
                [found["made_by"], *(f"{name} {text}" for name, text in found["versions"].items())]
            ),
            "hash": found["hash"],
            "state": found["state"]
            if found["verified"]
            else f"{found['state']} by its sizes; --verify reads all",
        }
    )
    rows = [
        (name, f"{entry['size']:,}", entry["sha256"][:16]) for name, entry in found["files"].items()
    ]
    console.write("")
    console.table(("file", "bytes", "SHA-256"), rows, ("bytes",), ("bytes", "SHA-256"))


def _teachers(lineage: Sequence[Facts]) -> str:
    names = [
        f"{each['name']} ({each['num_steps']} steps, {each['hash'][:_SHORT]}{'' if each['path'] else ', not here'})"
        for each in lineage
    ]
    return " < ".join(names) or "none: it learned from pictures"


def _store(found: Facts) -> None:
    names = found["class_names"]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    encoding = found["encoding"] or "unknown: foreign stores do not say"
    _lines(
        {
            "store": found["path"],
            "format": f"{found['layout']} {found['format'] or ''}".strip(),
            "made by": found["made_by"] or found["layout"],
            "pictures": f"{found['num_images']:,}",
            "sizes": ", ".join(map(str, found["sizes"])),
            "channels": found["channels"] or "unknown: foreign stores do not say",
            "encoding": encoding + (f", quality {found['quality']}" if found["quality"] else ""),
            "resampling": found["resampling"] or "unknown",
            "classes": f"{len(names)}: {shown}" if names else "none",
            "MB": size(found["bytes"]),
            "fingerprint": found["fingerprint"],
        }
    )


def _recipe(found: Facts) -> None:
    settings = found["settings"]
    _lines(
        {
            "recipe": found["path"],
            "name": found["name"],
            "pictures": f"{settings['data']['channels']} x {settings['data']['size']} x {settings['data']['size']}",
            "network": f"{settings['network']['kind']}, {found['num_parameters']:,} parameters",
            "updates": f"{sum(stage['updates'] for stage in found['stages']):,} in all",
        }
    )
    console.write("")
    kinds = {stage["objective"] for stage in found["stages"][1:]}
    ways = ("objective",) if len(kinds) > 1 else ()
    rows = [
        [
            stage["name"],
            *(stage[way] for way in ways),
            f"{stage['start_steps']} -> {stage['num_steps']}"
            if number
            else str(stage["num_steps"]),
            f"{stage['updates']:,}",
            f"{stage['batch_size']:,}",
            f"{stage['learning_rate']:.1e}",
        ]
        for number, stage in enumerate(found["stages"])
    ]
    numbers = ("steps", "updates", "batch", "rate")
    console.table(("stage", *ways, *numbers), rows, numbers, numbers)


def _foreign(found: Facts) -> None:
    hidden = (
        "kind",
        "tensors",
        "path",
        "format",
        "names_that_would_be_executed",
        "num_bytes",
        "warnings",
    )
    more = {
        name.replace("_", " "): _brief(value) for name, value in found.items() if name not in hidden
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


def _lines(facts: Facts) -> None:
    """A line for each fact; in a terminal, long ones go on below themselves."""
    width = max(map(len, facts))
    for label, value in facts.items():
        text = f"{label:<{width}}  {value}"
        room = shutil.get_terminal_size().columns if _is_terminal() else 10_000
        inset = " " * (width + 2)
        console.write(
            textwrap.fill(
                text, max(room, width + 20), subsequent_indent=inset, break_on_hyphens=False
            )
        )


def _is_terminal() -> bool:
    return bool(sys.stdout and sys.stdout.isatty())


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _brief(value: Any) -> str:
    """Any value on one line of at most 200 characters."""
    if isinstance(value, dict):
        given = {name: _brief(inner) for name, inner in value.items() if inner is not None}
        text = ", ".join(
            inner if name == "kind" else f"{name} {inner}" for name, inner in given.items()
        )
    elif isinstance(value, list):
        text = ", ".join(map(_brief, value[:16])) + (", ..." if len(value) > 16 else "")
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}" if abs(value) >= 10_000 else str(value)
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
