"""Small wrong changes of a source file, one at a time: what a slip of the pen would make of it."""

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

Node = TypeVar("Node", bound=ast.AST)

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPARISONS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
NOT_CODE = (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)
"""What is left as it is: words for people, and checks of our own mistakes."""


class Mutant(NamedTuple):
    """One change of one file. begin, end: bytes of the source that `new` takes the place of."""

    path: str
    line: int
    kind: str
    begin: int
    end: int
    old: str
    new: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What stays when other lines come and go."""
        return self.path, " ".join(self.old.split()), " ".join(self.new.split())

    def applied(self, source: str) -> str:
        """The source with the change in it."""
        data = source.encode()
        return (data[: self.begin] + self.new.encode() + data[self.end :]).decode()


def mutants(path: str, source: str) -> list[Mutant]:
    """All changes of a file that are still Python, no two of them alike."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    imported = _imported(ast.parse(source))
    found: dict[tuple[int, int, str], Mutant] = {}
    for node, kind, new in _changes(ast.parse(source), imported):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        old = source.encode()[begin:end].decode()
        mutant = Mutant(path, node.lineno, kind, begin, end, old, new)
        if _is_python(mutant.applied(source)):
            found.setdefault((begin, end, new), mutant)
    return list(found.values())


def drawn(candidates: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many of them, the same ones for a seed;
    a file that changes a little changes the choice a little.
    """
    ranked, alike = [], Counter[tuple[str, str, str]]()
    for mutant in candidates:
        name = repr((seed, mutant.key, alike[mutant.key])).encode()
        ranked.append((hashlib.sha256(name).digest(), mutant))
        alike[mutant.key] += 1
    return [mutant for _, mutant in sorted(ranked)[:count]]


Change = tuple[ast.expr | ast.stmt, str, str]
"""What is replaced, in which manner, by which text."""


def _changes(node: ast.AST, imported: set[str]) -> Iterator[Change]:
    if isinstance(node, NOT_CODE) or _is_docstring(node):
        return
    if isinstance(node, ast.expr):
        for kind, new in _of_expression(node, imported):
            yield node, kind, f"({ast.unparse(new)})"
    if isinstance(node, ast.stmt):
        yield from _of_statement(node)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _changes(child, imported)


def _of_statement(node: ast.stmt) -> Iterator[Change]:
    if isinstance(node, ast.Expr) and not isinstance(node.value, (ast.Call, ast.Await)):
        return
    is_state = isinstance(node, ast.Assign) and not any(
        isinstance(target, ast.Name) for target in node.targets
    )
    if is_state or isinstance(node, (ast.Expr, ast.AugAssign, ast.Raise, ast.Delete)):
        yield node, "statement left out", "pass"
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield node, "returns None", "return None"
    if isinstance(node, (ast.If, ast.While)):
        yield node.test, "condition turned round", f"(not ({ast.unparse(node.test)}))"
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        for decorator in node.decorator_list:
            if "no_grad" in ast.unparse(decorator):
                yield decorator, "decorator left out", "(lambda function: function)"


def _of_expression(node: ast.expr, imported: set[str]) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPPED:
        yield "operator", _with(node, op=SWAPPED[type(node.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield "operator left out", node.operand
    if isinstance(node, ast.Compare):
        for place, each in enumerate(node.ops):
            others = COMPARISONS.get(type(each)) or (SWAPPED[type(each)],)
            for other in others:
                yield (
                    "comparison",
                    _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]]),
                )
    if isinstance(node, ast.IfExp):
        yield "branches swapped", _with(node, body=node.orelse, orelse=node.body)
    if isinstance(node, ast.Constant):
        yield from (("constant", ast.Constant(value)) for value in _other_values(node.value))
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            yield (
                f"argument `{keyword.arg}` left out",
                _with(node, keywords=[each for each in node.keywords if each is not keyword]),
            )
        function = node.func
        if isinstance(function, ast.Attribute) and not _is_module(function.value, imported):
            yield "call left out", function.value
    if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
        for place, part in enumerate(node.generators):
            if part.ifs:
                free = _with(part, ifs=[])
                yield (
                    "filter left out",
                    _with(
                        node,
                        generators=[*node.generators[:place], free, *node.generators[place + 1 :]],
                    ),
                )


def _other_values(value: object) -> tuple[bool | int | float, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1,)
    if isinstance(value, float):
        return (value * 1.5 or 1.0,)
    return ()


def _with(node: Node, **changes: object) -> Node:
    made = copy.copy(node)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_module(node: ast.expr, imported: set[str]) -> bool:
    return ast.unparse(node).partition(".")[0] in imported | {"super()", "cls"}


def _imported(tree: ast.Module) -> set[str]:
    """The names that imports bind."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {
        (alias.asname or alias.name).partition(".")[0] for node in nodes for alias in node.names
    }


def _is_python(source: str) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True
