"""Which products are wanted: `incidence < 80 and pixel_size < 2`, told of the facts of each.

Comparisons, `and`, `or`, `not`, `in`, and the four kinds of arithmetic, written as in Python but never run as Python:
every part is looked at here, and what is not listed is refused. A fact that is not known makes its comparison unknown;
`and` and `or` say what follows from that (`unknown or true` is true). What stays unknown is not wanted, and is told.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lunar_processing.errors import ParameterError

LONGEST = 1000  # characters
EXAMPLE = "write it as in 'incidence < 80 and pixel_size < 2'."

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, among: value in among,
    ast.NotIn: lambda value, among: value not in among,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ALLOWED = (
    *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.BinOp, ast.Compare),
    *(ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.List, *_COMPARE, *_ARITHMETIC),
)


@dataclass(frozen=True)
class Where:
    """A condition on facts, whose names are written in small letters."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    def __call__(self, facts: Mapping[str, Any]) -> bool | None:
        """Whether a product is wanted; None where its facts do not tell."""
        try:
            return _truth(_value(self.tree, facts), self.text)
        except TypeError:
            raise ParameterError(
                f"--where {self.text!r} compares text with a number.", "put text, and only text, in quotation marks."
            ) from None

    def unknown(self, facts: Mapping[str, Any]) -> list[str]:
        """The names in it that nothing is known of."""
        return sorted(name for name in self.names if facts.get(name) is None)

    def check_names(self, known: Collection[str]) -> None:
        """Refuse names that no product has."""
        for name in sorted(self.names - set(known)):
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}? There are " if close else "there are "
            raise ParameterError(f"--where asks for {name!r}, which nothing tells.", f"{hint}{', '.join(known)}.")


def parse_where(text: str) -> Where:
    """Understand a condition, or say what is wrong with it."""
    try:
        if len(text) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST} characters")
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        cure = "compare with two signs: ==" if " = " in f" {text} " else EXAMPLE
        raise ParameterError(f"--where {text!r} cannot be understood ({error}).", cure) from None
    names = set()
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED) or (
            isinstance(node, ast.Constant) and not isinstance(node.value, (bool, int, float, str))
        ):
            what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise ParameterError(f"--where {text!r} holds {what!r}, which is no comparison.", EXAMPLE)
        if isinstance(node, ast.Name):
            node.id = node.id.lower()
            names.add(node.id)
    return Where(text, tree.body, frozenset(names))


def _truth(value: Any, text: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ParameterError(f"--where {text!r} is a value and no condition.", EXAMPLE)


def _value(node: ast.expr, facts: Mapping[str, Any]) -> Any:
    """What a part of the tree is worth; None where it is not known."""
    return _KINDS[type(node)](node, facts)


def _both(node: ast.BoolOp, facts: Mapping[str, Any]) -> bool | None:
    decides = isinstance(node.op, ast.Or)  # one true decides `or`, one false decides `and`
    values = [_truth(_value(part, facts), ast.unparse(part)) for part in node.values]
    if decides in values:
        return decides
    return None if None in values else not decides


def _single(node: ast.UnaryOp, facts: Mapping[str, Any]) -> Any:
    value = _value(node.operand, facts)
    if value is None:
        return None
    if isinstance(node.op, ast.Not):
        return not _truth(value, ast.unparse(node.operand))
    return -value if isinstance(node.op, ast.USub) else +value


def _arithmetic(node: ast.BinOp, facts: Mapping[str, Any]) -> Any:
    left, right = _value(node.left, facts), _value(node.right, facts)
    if left is None or right is None:
        return None
    if isinstance(left, str) or isinstance(right, str):
        raise TypeError("text is not computed with")
    try:
        return _ARITHMETIC[type(node.op)](left, right)
    except ArithmeticError:  # 1/0 is not known
        return None


def _compare(node: ast.Compare, facts: Mapping[str, Any]) -> bool | None:
    values = [_value(part, facts) for part in (node.left, *node.comparators)]
    found = []
    for compare, left, right in zip(node.ops, values, values[1:]):
        known = left is not None and right is not None
        found.append(bool(_COMPARE[type(compare)](left, right)) if known else None)
    return False if False in found else None if None in found else True


_KINDS: dict[type[ast.expr], Callable[[Any, Mapping[str, Any]], Any]] = {
    ast.BoolOp: _both,
    ast.UnaryOp: _single,
    ast.BinOp: _arithmetic,
    ast.Compare: _compare,
    ast.Name: lambda node, facts: facts.get(node.id),
    ast.Constant: lambda node, facts: node.value,
    ast.Tuple: lambda node, facts: [_value(part, facts) for part in node.elts],
    ast.List: lambda node, facts: [_value(part, facts) for part in node.elts],
}
