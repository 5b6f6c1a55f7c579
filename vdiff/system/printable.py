"""Strangers' texts for a line of ours: no letter of them acts on a terminal,
breaks a line or hides.

Names of files and classes, recipes, stores and arguments may hold escape sequences that rename a
window, clear it or type into it. Everything that is shown passes here, at the doors: the console,
pages, and lists of files.
"""

import json
import unicodedata


def printable(text: str, keep: str = "") -> str:
    """`text` with what cannot be printed as escapes, such as `\\x1b`;
    bytes that are not UTF-8 as `\\xff`.

    keep: letters that stay although they cannot be printed, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter in keep or _is_harmless(letter) else _escaped(letter) for letter in text
    )


def printable_json(text: str) -> str:
    """JSON text in which what cannot be printed stands as JSON's own escapes:
    it still says the same.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        letter if letter == "\n" or _is_harmless(letter) else json.dumps(letter)[1:-1]
        for letter in text
    )


def _is_harmless(letter: str) -> bool:
    # a space that is not broken, for one
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python holds a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape", "backslashreplace").decode()
