"""Formula IR as text: one line a node in MLIR's manner, and back to the same object; and formulas spelt as written."""

from __future__ import annotations

import re
from ast import literal_eval
from fractions import Fraction

from tritonkeops.formula.ir import (
    Apply,
    Axes,
    Category,
    Const,
    Node,
    Operator,
    Reduced,
    Reduction,
    ReductionOp,
    Static,
    Var,
    in_range,
    postorder,
    rounded,
    words,
)

_LONGEST = 4000
"""Characters of a formula's text, written out as a tree; a DAG's can be exponentially long."""
_LEVELS = {"|": 2, "+": 3, "-": 3, "*": 4, "/": 4, "**": 6}
_SIGN, _ATOM = 5, 7


def spell(node: Node) -> str:
    """The node as a formula of the language, parentheses where it needs them; what is very long becomes "..."."""
    return _spell_within(node, {})[0]


def _spell_within(node: Node, done: dict[Node, tuple[str, int]]) -> tuple[str, int]:
    """Text, and how tightly its outermost operation binds; `done` holds those of the nodes before."""
    for each in postorder([node]):
        if each not in done:
            text, binds = _spell(each, [done[x] for x in each.operands])
            done[each] = (text, binds) if len(text) <= _LONGEST else ("...", _ATOM)
    return done[node]


def _spell(node: Node, args: list[tuple[str, int]]) -> tuple[str, int]:
    if isinstance(node, Reduced):
        return "Reduced", _ATOM
    if isinstance(node, Var):
        return node.name, _ATOM
    if isinstance(node, Const):
        return _spell_constant(node)
    plain = [text for text, _ in args]
    if isinstance(node, Reduction):
        parameters = ([str(node.k)] if node.op.takes_k else []) + [str(node.axis)]
        weight = plain[1 : len(node.args)]
        reduced = f"{node.op.name}_Reduction({', '.join([plain[0], *parameters, *weight])})"
        return _spell_within(node.result or node.reduced, {node.reduced: (reduced, _ATOM)})
    assert isinstance(node, Apply)
    symbol = node.op.symbol
    if symbol and len(args) == 2:
        level = _LEVELS.get(symbol, 1)
        left, right = (level + 1, level) if symbol == "**" else (level + (level == 1), level + 1)
        return f"{_within(args[0], left)} {symbol} {_within(args[1], right)}", level
    if symbol:
        return f"{symbol}{_within(args[0], _SIGN)}", _SIGN
    return f"{node.op.name}({', '.join(plain + [str(s) for s in node.static])})", _ATOM


def _within(operand: tuple[str, int], level: int) -> str:
    text, binds = operand
    return text if binds >= level else f"({text})"


def _spell_constant(node: Const) -> tuple[str, int]:
    if node.dim > 1:
        scalar = _spell_constant(Const(node.value))[0]
        return (f"SumT({scalar}, {node.dim})" if node.value else f"Zero({node.dim})"), _ATOM
    if node.value.denominator == 1:
        return str(node.value), _ATOM if node.value >= 0 else _SIGN
    decimal = repr(rounded(node.value))
    if in_range(node.value) and Fraction(decimal) == node.value:
        return decimal, _ATOM if node.value >= 0 else _SIGN
    return f"{node.value.numerator} / {node.value.denominator}", 4 if node.value >= 0 else 3


def show(root: Node) -> str:
    """MLIR-like text: one line a node, operands before users.

    `%2 = SqDist(%x, %y) : 1 {i,j}` gives the operator, its operands, then dim and axes.
    """
    names: dict[Node, str] = {}
    lines = []
    for node in postorder([root]):
        names[node] = f"%{node.name}" if isinstance(node, Var) else f"%{len(names)}"
        lines.append(f"{names[node]} = {_operation(node, [names[x] for x in node.operands])}{_type(node)}")
    return "\n".join(lines) + "\n"


def _type(node: Node) -> str:
    return f" : {node.dim} {{{','.join(sorted(node.axes))}}}"


def _operation(node: Node, operands: list[str]) -> str:
    if isinstance(node, Var):
        return f"{node.category.keyword}({node.position}, {node.dim})"
    if isinstance(node, Const):
        return f"const {node.value}"
    if isinstance(node, Reduced):
        return "reduced"
    if isinstance(node, Reduction):
        giving = f" giving {operands.pop()}" if node.result else ""
        k = f" k={node.k}" if node.k else ""
        return f"reduce {node.op.name}({', '.join(operands)}) over {'ij'[node.axis]}{k}{giving}"
    listed = ", ".join(operands)
    assert isinstance(node, Apply)
    return f"{node.op.name}({listed})" + (f" {list(node.static)}" if node.static else "")


_LINE = re.compile(r"%(?P<name>\w+) = (?P<what>.*) : (?P<dim>\d+) \{(?P<axes>[ij,]*)\}$")
_VAR = re.compile(r"(Vi|Vj|Pm)\((\d+), \d+\)$")
_REDUCE = re.compile(r"reduce (\w+)\((.*)\) over ([ij])(?: k=(\d+))?(?: giving %(\w+))?$")
_APPLY = re.compile(r"(\w+)\((.*?)\)(?: \[(.*)\])?$")


def read(text: str) -> Node:
    """The node that `show` printed, the same object; raises ValueError naming the line that cannot be read."""
    names: dict[str, Node] = {}
    node: Node | None = None
    for number, line in enumerate(text.strip().splitlines(), 1):
        match = _LINE.match(line.strip())
        if not match:
            raise ValueError(f"line {number}: expected '%name = operation : dim {{axes}}', got {line!r}")
        try:
            axes = frozenset(match["axes"].replace(",", ""))
            node = names[match["name"]] = _read_operation(match["what"], match["name"], int(match["dim"]), axes, names)
        except (KeyError, ValueError, SyntaxError) as error:
            raise ValueError(f"line {number}: cannot read {line!r}: {error}") from error
        if _type(node) != f" : {match['dim']} {{{match['axes']}}}":
            raise ValueError(f"line {number}: {node!r} has type{_type(node)}, the text says otherwise: {line!r}")
    if node is None:
        raise ValueError("empty formula IR")
    return node


def _read_operation(what: str, name: str, dim: int, axes: Axes, names: dict[str, Node]) -> Node:
    def operands(listed: str) -> list[Node]:
        return [names[operand.strip().lstrip("%")] for operand in listed.split(",")]

    if what.startswith("const "):
        return Const(Fraction(what[6:]), dim)
    if what == "reduced":
        return Reduced(dim, axes)
    if match := _VAR.match(what):
        return Var(int(match[2]), dim, Category(("Vi", "Vj", "Pm").index(match[1])), name)
    if match := _REDUCE.match(what):
        op = words.get(match[1] + "_Reduction")
        if not isinstance(op, ReductionOp):
            raise ValueError(f"unknown reduction {match[1]!r}")
        result = names[match[5]] if match[5] else None
        return Reduction(op, operands(match[2]), "ij".index(match[3]), int(match[4] or 0), result)
    match = _APPLY.match(what)
    operator = words.get(match[1]) if match else None
    if match is None or not isinstance(operator, Operator):
        raise ValueError(f"unknown operation {what!r}")
    static: list[Static] = literal_eval(f"[{match[3]}]") if match[3] else []
    return Apply(operator, operands(match[2]) if match[2] else [], static)
