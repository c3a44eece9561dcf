"""The syntax tree: what was written, every node with the span of text it was read from.

It holds no meaning: names are not resolved, operators not known, dimensions not inferred. A node's span
leaves out the parentheses around it; the span of its parent takes them in, as in Python's own tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from tritonkeops.errors import Span

MAX_DEPTH = 200
"""How many nodes, itself included, lie at most between the root of a parsed tree and a leaf.

Stages that recurse over a tree may rely on it: at four calls per level they stay within Python's limit of
1000. So does what dataclasses do by themselves: comparing, hashing, printing.
"""


@dataclass(frozen=True, slots=True)
class Number:
    """A literal, its value exact; `is_integer` tells `2` from `2.0` and `2e0`."""

    text: str
    value: Fraction
    is_integer: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Name:
    """A name by itself: a variable."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Operation:
    """An infix symbol between two arguments, or the prefix `-` before one."""

    symbol: str
    args: tuple[Expr, ...]
    span: Span
    symbol_span: Span


@dataclass(frozen=True, slots=True)
class Call:
    """A name applied to arguments in parentheses."""

    callee: str
    args: tuple[Expr, ...]
    span: Span
    callee_span: Span


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list `[2, 3]` or tuple `(2, 3)`; it stands only among the arguments of a call."""

    items: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Alias:
    """A declaration `name = value`, or a value alone."""

    name: str | None
    name_span: Span | None
    value: Expr
    span: Span


Expr: TypeAlias = Number | Name | Operation | Call | Sequence


def walk(expr: Expr) -> Iterator[tuple[int, Expr]]:
    """Every node with its depth (the root has 1), parents first, left to right; a loop, so of any depth."""
    pending = [(1, expr)]
    while pending:
        depth, node = pending.pop()
        yield depth, node
        pending.extend((depth + 1, child) for child in reversed(_children(node)))


def show(expr: Expr) -> str:
    """The tree as text: a node per line, indented below its parent, with the line and column of its start."""
    return "\n".join(
        f"{'  ' * (depth - 1)}{_label(node)}  // {node.span.line}:{node.span.column}" for depth, node in walk(expr)
    )


def _children(node: Expr) -> tuple[Expr, ...]:
    if isinstance(node, (Operation, Call)):
        return node.args
    return node.items if isinstance(node, Sequence) else ()


def _label(node: Expr) -> str:
    if isinstance(node, Number):
        return f"number {node.text}"
    if isinstance(node, Name):
        return f"name {node.name}"
    if isinstance(node, Operation):
        return f"operation {node.symbol}"
    return f"call {node.callee}" if isinstance(node, Call) else "sequence"
