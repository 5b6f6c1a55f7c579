"""The classes that somebody asks a model for, by number or by name."""

import difflib
from collections.abc import Sequence

from vdiff.errors import UsageError
from vdiff.model_folder.card import ModelCard
from vdiff.system.plural import count


def check(card: ModelCard, where: str) -> None:
    """UsageError for a model that knows no classes."""
    if not card.num_classes:
        raise UsageError(f"`{card.name}` knows no classes", f"leave out `{where}`", where)


def listed(card: ModelCard, text: str, where: str) -> list[int]:
    """The classes in a text: `3`, `0-9`, `cat`, `cat,dog,7`.   Errors: UsageError.

    A class is found by its name first, then by its number: classes may be called by numbers.
    """
    check(card, where)
    if text in card.class_names:
        # it may hold a comma or a dash
        return [numbered(card, text, where)]
    found: list[int] = []
    for part in text.split(","):
        part = part.strip()
        first, dash, last = part.partition("-")
        if dash and first.isdecimal() and last.isdecimal():
            ends = numbered(card, first, where), numbered(card, last, where)
            if ends[0] > ends[1]:
                raise UsageError(
                    f"`{part}` is no range of classes", "write the smaller one first", where
                )
            found.extend(range(ends[0], ends[1] + 1))
        else:
            found.append(numbered(card, part, where))
    return found


def numbered(card: ModelCard, asked: int | str, where: str) -> int:
    """One class by its number or name.   Errors: UsageError, with the nearest that there is."""
    last = card.num_classes - 1
    if isinstance(asked, str) and asked in card.class_names:
        return card.class_names.index(asked)
    if isinstance(asked, int) or asked.isdecimal():
        number = int(asked)
        if not 0 <= number <= last:
            known = f"{count(card.num_classes, 'class')}, 0 to {last}"
            problem = f"`{asked}` is no class of `{card.name}`, which knows {known}"
            nearest = shown(card, 0 if number < 0 else last)
            raise UsageError(problem, f"the nearest is {nearest}", where)
        return number
    names = card.class_names
    if not names:
        fix = f"take a number from 0 to {last}: the model does not know what its classes are called"
        raise UsageError(f"`{asked}` is no class of `{card.name}`", fix, where)
    raise UsageError(f"`{asked}` is no class of `{card.name}`", _nearest(names, asked), where)


def shown(card: ModelCard, number: int) -> str:
    """A class for people: its name where it has one, and its number."""
    names = card.class_names
    if number < len(names) and names[number] != str(number):
        return f"{number} (`{names[number]}`)"
    return str(number)


def names_of(card: ModelCard, numbers: Sequence[int]) -> list[str]:
    """What stands beside pictures of these classes: names, or numbers where they have none."""
    names = card.class_names
    return [names[each] if each < len(names) else str(each) for each in numbers]


def _nearest(names: Sequence[str], asked: str) -> str:
    by_small = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(asked.casefold(), list(by_small), n=1, cutoff=0.5)
    if near:
        return f"did you mean `{by_small[near[0]]}`?"
    some = ", ".join(f"`{name}`" for name in names[:10])
    return f"there are: {some}{', ...' if len(names) > 10 else ''}"
