"""Kinds that other packages bring: whether what they make keeps its contract."""

from collections.abc import Collection
from functools import wraps
from importlib.metadata import EntryPoint
from inspect import get_annotations, getattr_static
from typing import Any

from vdiff.errors import MachineError
from vdiff.system.packages import loaded, maker_of, package_of


class UnfitError(TypeError):
    """A class does not keep the contract of its table."""


def look_at_result(
    section: type[Any], method: str, contract: str, what: str, entry: EntryPoint
) -> None:
    """From now on `method` of a stranger's section is an error where what it gives
    does not keep the contract.

    Otherwise the first use of it would fail, far away, and look like a mistake of vdiff. vdiff's
    own are checked by mypy.
    contract: "module:Class", imported when something was made.   what: the kind, for the message.
    """
    made = getattr(section, method)
    if hasattr(made, "__wrapped__"):  # the kind was asked for before
        return

    @wraps(made)
    def checked(self: Any, *given: Any, **named: Any) -> Any:
        result = made(self, *given, **named)
        lacking = _lacking(result, loaded(contract))
        if lacking:
            where = f"`{entry.value}.{method}` gives a `{type(result).__name__}`: {lacking}"
            raise unusable(what, entry, where)
        return result

    setattr(section, method, checked)


def check_name(kinds: Collection[str], entry: EntryPoint) -> None:
    """UnfitError for a section whose `kind` is another than the name of its entry point.

    Otherwise a recipe is told to write the one name for the other, and back.   kinds: what its
    `kind` may be; none if that is any text.
    """
    if kinds and entry.name not in kinds:
        said = ", ".join(f"`{name}`" for name in kinds)
        raise UnfitError(f"its `kind` is {said}, and its entry point `{entry.name}`")


def unusable(what: str, entry: EntryPoint, why: str) -> MachineError:
    """The error about a kind of another package.   what: as in "the sampler `adams`"."""
    problem = f"{what} of the package `{maker_of(entry)}` cannot be used"
    fix = (
        f"get a version of it that fits this vdiff, or remove it: pip uninstall {package_of(entry)}"
    )
    return MachineError(problem, fix, why)


def _lacking(result: object, contract: type) -> str:
    """Which part of a contract something lacks, in words; empty for none."""
    name = f"`{contract.__module__}.{contract.__name__}`"
    if not getattr(contract, "_is_protocol", False):
        return "" if isinstance(result, contract) else f"it is no subclass of {name}"
    if hasattr(type(result), "__getattr__"):  # it may have anything
        return ""
    stated = [each for each in (*get_annotations(contract), *vars(contract)) if each[:1] != "_"]
    stated += [each for each in ("__len__", "__getitem__") if each in vars(contract)]
    # static: a property such as a fingerprint may have to read everything
    lacking = [each for each in stated if getattr_static(result, each, _NOTHING) is _NOTHING]
    return f"it lacks {', '.join(f'`{each}`' for each in lacking)} of {name}" if lacking else ""


_NOTHING = object()
