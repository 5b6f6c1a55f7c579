"""A model of vdiff in the format of another program:
written beside its place, proved, and only then given its name.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vdiff.disk import whole_folder
from vdiff.disk.tensor_facts import FormatError
from vdiff.errors import ModelFileError, UsageError
from vdiff.exchange import bake, proof
from vdiff.exchange.proof import Proof
from vdiff.formats import FORMATS
from vdiff.formats.adapter import ForeignModel, Format
from vdiff.formats.contents import contents_of
from vdiff.metrics import table
from vdiff.model_folder.card import ModelCard
from vdiff.model_folder.checkpoint import Checkpoint
from vdiff.networks.network import as_network
from vdiff.runs.folder import RunFolder


def model_of(loaded: Checkpoint) -> ForeignModel:
    """A model folder as a format sees it."""
    card = loaded.card
    origin = card.origin or {}
    licence = origin.get("licence")
    return ForeignModel(
        denoiser=loaded.denoiser,
        network=card.network,
        diffusion=card.diffusion,
        shape=card.shape,
        num_classes=card.num_classes,
        null_class=card.null_class,
        num_steps=card.num_steps,
        is_distilled=card.times is not None,
        sampler=card.sampler,
        codec=card.codec,
        guidance=card.guidance,
        licence=licence if isinstance(licence, str) else None,
        facts={
            "name": card.name,
            "card": card,
            "origin": origin,
            "teacher": card.parent,
            "picture": loaded.folder / "samples.png",
            "numbers": _numbers(loaded.folder, card),
        },
    )


def _numbers(folder: Path, card: ModelCard) -> list[str]:
    """What the run's evaluation says of the model, a line each, and the protocol last;
    nothing without one.
    """
    try:
        found = table.read(RunFolder(folder.resolve().parent).table)
    except ModelFileError:
        return []
    row = None if found is None else found.row(card.name, card.num_steps)
    if found is None or row is None or row.hash != card.hash or not row.metrics:
        return []
    lines = [f"{name}: {value.value:.4g}" for name, value in row.metrics.items()]
    protocol = found.protocol.line()
    if row.guidance is not None:
        protocol += f", guidance {row.guidance:g}"
    return [*lines, f"measured with: {protocol}"]


def write(
    loaded: Checkpoint,
    name: str,
    path: Path,
    asked: Mapping[str, str],
    guidance: float | None = None,
) -> Proof:
    """Write the model at `path` in the format `name`, where nothing is,
    and compare it with what it was.

    asked: values for some of the format's `write_options`.
    guidance: g that goes into the weights of a model that takes it as an input.
    Errors: UsageError, ModelFileError for a model that the format cannot hold or that came out
    different, MachineError for a package that is missing or a disk that refuses. Whatever fails,
    nothing is left at `path`.
    """
    if os.path.lexists(path):
        raise UsageError(
            f"`{path}` is there already", "move it away, or name another place", "--out"
        )
    kind = FORMATS.find(name)()
    for option in asked:
        if option not in kind.write_options:
            known = ", ".join(kind.write_options) or "nothing"
            raise UsageError(
                f"the format `{name}` is not asked for `{option}`", f"it knows: {known}", "--set"
            )
    bake.check(loaded.card, guidance)
    also: tuple[str, ...] = ()
    model = model_of(loaded)
    if guidance is not None and as_network(loaded.denoiser.network).takes_guidance:
        before = model
        model = bake.of_one(model_of(bake.baked(loaded, guidance)), loaded.card, guidance)
        also = (bake.prove(before, model, guidance),)
    beside = whole_folder.free_beside(path).with_suffix(path.suffix)
    try:
        with whole_folder.refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            kind.write(model, beside, asked)
            checked = _proved(kind, name, model, beside, asked)
            os.rename(beside, path)
    finally:
        _forget(beside)
    return replace(checked, also=(*checked.also, *also))


def _proved(
    kind: Format, name: str, model: ForeignModel, path: Path, asked: Mapping[str, str]
) -> Proof:
    """What was written beside what it was written from: by the program it is for, or read back."""
    z, time, condition = proof.inputs(model)
    try:
        found = contents_of(path)
        theirs = kind.outputs(found, z, time, condition.label)
        if theirs is not None:
            return proof.of_outputs(
                model, z, time, condition, theirs.output, theirs.by, kind.tolerance(asked)
            )
        again = kind.read(found, kind.to_read_back(model))
    except FormatError as err:
        problem = f"what was written as {name} cannot be read back: it {err.reason}"
        raise ModelFileError(problem, "report this: it is a fault of vdiff", path) from err
    # the same times, as what was read is fed them: a format may count them in another way
    _, theirs_time, _ = proof.inputs(again)
    output = proof.output_of(again, z, theirs_time, condition)
    return proof.of_outputs(
        model, z, time, condition, output, "the file, read back", kind.tolerance(asked)
    )


def _forget(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
