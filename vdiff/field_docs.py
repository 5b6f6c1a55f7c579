"""The docstrings beneath the fields of a section, read from its source when somebody asks."""

import ast
import inspect
import textwrap
from functools import cache

from pydantic import BaseModel


def unwrapped(doc: str) -> str:
    """A docstring as it is shown: each paragraph is one line, wherever the source is wrapped."""
    paragraphs = inspect.cleandoc(doc).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)


def field_docs(section: type[BaseModel]) -> dict[str, str]:
    """Field -> the text beneath it, of the class that states the field last;
    nothing for one without.

    pydantic can read them too, but does so for every class as soon as it is imported.
    """
    docs: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            for name, text in _stated(base).items():
                docs.pop(name, None)
                if text is not None:
                    docs[name] = text
    return docs


@cache
def _stated(section: type[BaseModel]) -> dict[str, str | None]:
    """The fields that a class itself states, with the text beneath them."""
    try:
        source = inspect.getsource(section)
    except (OSError, TypeError):
        # a class that was made without a file, as in a notebook's cell
        return {}
    [made] = ast.parse(textwrap.dedent(source)).body
    assert isinstance(made, ast.ClassDef)
    docs: dict[str, str | None] = {}
    last: str | None = None
    for statement in made.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)):
                docs[name] = None
                last = name
                continue
            case ast.Expr(value=ast.Constant(value=str(text))) if last is not None:
                docs[last] = unwrapped(text)
        last = None
    return docs
