"""Typing: AST -> formula IR. Afterwards no node lacks dim and axes.

Every fault is collected, in the formula and in the aliases, and they are raised together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import tritonkeops.operators  # noqa: F401  (fills the registry of words)
from tritonkeops.errors import Diagnostic, FormulaError, Span, nearest
from tritonkeops.formula.evaluate import fold_constant
from tritonkeops.formula.ir import (
    Apply,
    Category,
    Const,
    IllTyped,
    Node,
    Operator,
    Reduction,
    ReductionOp,
    Static,
    Var,
    in_range,
    infix,
    rebuild,
    words,
)
from tritonkeops.frontend import ast
from tritonkeops.frontend.parser import parse_alias, parse_formula
from tritonkeops.operators.derivatives import OF_REDUCTIONS, STRUCTURAL

_CATEGORIES = {"Vi": 0, "Vj": 1, "Pm": 2, "Vx": 0, "Vy": 1}
_SUFFIX = "_Reduction"


@dataclass(frozen=True)
class Typed:
    """A reduction of a formula, and the call's variables by position, those that the formula ignores too."""

    root: Node
    variables: tuple[Var, ...]
    trees: tuple[ast.Expr, ...]


def infer(
    formula: str,
    aliases: Sequence[str],
    reduction_op: str = "Sum",
    axis: int = 0,
    k: int = 0,
    formula2: str | None = None,
) -> Typed:
    """Parse and type a formula, its aliases and its weight; wrap it in the reduction unless it holds one itself.

    Raises FormulaError with everything that is wrong in any of the texts.
    """
    faults: list[Diagnostic] = []
    trees = _parse_all(formula, formula2, faults)
    declared = _declare(aliases, faults)
    for tree in trees:
        _declare_inline(tree, declared, faults)
    _check_positions(declared, faults, complete=not faults)
    typer = _Typer(declared, faults)
    nodes = [typer.type(tree) for tree in trees]
    if len(trees) < 1 + (formula2 is not None):
        raise _error(faults)
    root = _reduce(nodes, trees, (reduction_op, axis, k), faults)
    if faults or root is None:
        raise _error(faults)
    return Typed(root, tuple(declared.by_position[p] for p in sorted(declared.by_position)), tuple(trees))


def _error(faults: list[Diagnostic]) -> FormulaError:
    """The faults in reading order: the formula, its weight, the aliases, then what has no place in a text."""
    texts = {"formula": 0, "formula2": 1}

    def place(fault: Diagnostic) -> tuple[int, int, int]:
        if fault.span is None:
            return 3, 0, 0
        name = fault.span.source.name
        return texts.get(name, 2), 0 if name in texts else int(name.split()[-1]), fault.span.start

    return FormulaError(sorted(faults, key=place))


def _parse_all(formula: str, formula2: str | None, faults: list[Diagnostic]) -> list[ast.Expr]:
    trees = []
    for name, text in (("formula", formula), ("formula2", formula2)):
        if text is None and name == "formula2":
            continue
        try:
            trees.append(parse_formula(text, name))  # type: ignore[arg-type]
        except FormulaError as error:
            faults.extend(error.diagnostics)
    return trees


# Variables ------------------------------------------------------------------------------------------------------------


@dataclass
class _Declared:
    by_name: dict[str, Var] = field(default_factory=dict)
    taken: set[str | None] = field(default_factory=set)  # the name of every alias that could be read
    unread: bool = False  # whether one could not
    by_position: dict[int, Var] = field(default_factory=dict)
    spans: dict[int, Span] = field(default_factory=dict)


def _declare(aliases: Sequence[str], faults: list[Diagnostic]) -> _Declared:
    declared = _Declared()
    if isinstance(aliases, str):
        raise TypeError(f"aliases: expected a list of strings such as 'x = Vi(3)', got the string {aliases!r}")
    parsed = []
    for place, text in enumerate(aliases):
        try:
            parsed.append((place, parse_alias(text, f"alias {place + 1}")))
        except FormulaError as error:
            faults.extend(error.diagnostics)
    declared.taken, declared.unread = {alias.name for _, alias in parsed}, len(parsed) < len(aliases)
    for place, alias in parsed:
        found = _variable(alias.value, place, faults)
        if found is None:
            continue
        if alias.name in declared.by_name:
            faults.append(Diagnostic(alias.name_span, f"two aliases are called {alias.name!r}"))
            continue
        var = _add(declared, found, alias.name, alias.span, faults)
        if alias.name is not None:
            declared.by_name[alias.name] = var
    return declared


def _declare_inline(tree: ast.Expr, declared: _Declared, faults: list[Diagnostic]) -> None:
    for _, node in ast.walk(tree):
        if isinstance(node, ast.Call) and (node.callee in _CATEGORIES or node.callee == "Var"):
            found = _variable(node, None, faults)
            if found is not None:
                _add(declared, found, None, node.span, faults)


def _add(
    declared: _Declared, found: tuple[int, int, Category], name: str | None, span: Span, faults: list[Diagnostic]
) -> Var:
    """The variable at a position, new or known; two dims or categories at one position are a fault."""
    position, dim, category = found
    known = declared.by_position.get(position)
    if known is None:
        known = Var(position, dim, category, name or _free_name(position, declared))
        declared.by_position[position], declared.spans[position] = known, span
    elif (known.dim, known.category) != (dim, category):
        faults.append(
            Diagnostic(
                span,
                f"position {position} is {category.keyword} of dim {dim} here and {known.category.keyword} of dim "
                f"{known.dim} in {declared.spans[position].source.name}; expected one dim and category",
            )
        )
    return known


def _free_name(position: int, declared: _Declared) -> str:
    name = f"v{position}"
    while name in declared.taken:
        name += "_"
    return name


def _variable(expr: ast.Expr, place: int | None, faults: list[Diagnostic]) -> tuple[int, int, Category] | None:
    """Position, dim and category of `Vi(dim)`, `Vi(position, dim)` or `Var(position, dim, category)`."""
    if not (isinstance(expr, ast.Call) and (expr.callee in _CATEGORIES or expr.callee == "Var")):
        hint = "write 'x = Vi(3)', 'x = Vj(1, 3)', 'x = Pm(1)' or 'Var(0, 3, 0)'"
        faults.append(Diagnostic(expr.span, "expected a variable: Vi, Vj, Pm or Var", hint))
        return None
    numbers = [_integer(arg) for arg in expr.args]
    wanted = "(position, dim, category)" if expr.callee == "Var" else "(dim) or (position, dim)"
    if place is None and expr.callee != "Var":
        wanted = "(position, dim)"
    lengths = {"(position, dim, category)": (3,), "(position, dim)": (2,)}.get(wanted, (1, 2))
    if None in numbers or len(numbers) not in lengths:
        faults.append(Diagnostic(expr.span, f"expected {expr.callee}{wanted} with integers"))
        return None
    values = [n for n in numbers if n is not None]
    if expr.callee == "Var":
        position, dim, category = values
    else:
        position, dim = (place, values[0]) if len(values) == 1 else values  # type: ignore[assignment]
        category = _CATEGORIES[expr.callee]
    if position < 0 or dim < 1 or category not in (0, 1, 2):
        faults.append(
            Diagnostic(
                expr.span,
                f"position {position}, dim {dim}, category {category}: "
                "expected position >= 0, dim >= 1, category 0 (i), 1 (j) or 2 (parameter)",
            )
        )
        return None
    return position, dim, Category(category)


def _check_positions(declared: _Declared, faults: list[Diagnostic], complete: bool) -> None:
    positions = sorted(declared.by_position)
    missing = next((n for n, position in enumerate(positions) if n != position), None)
    if complete and missing is not None:
        message = f"positions are {positions}: expected 0, 1, 2 ... without a gap; {missing} is missing"
        faults.append(Diagnostic(declared.spans[positions[-1]], message))


def _integer(expr: ast.Expr) -> int | None:
    if isinstance(expr, ast.Number) and expr.is_integer:
        return int(expr.value)
    if isinstance(expr, ast.Operation) and expr.symbol == "-" and len(expr.args) == 1:
        inner = _integer(expr.args[0])
        return None if inner is None else -inner
    return None


def _integers(expr: ast.Expr) -> tuple[int, ...] | None:
    items = [_integer(item) for item in expr.items] if isinstance(expr, ast.Sequence) else [None]
    found = tuple(item for item in items if item is not None)
    return found if len(found) == len(items) else None


# Expressions ----------------------------------------------------------------------------------------------------------


class _Typer:
    """Types a tree bottom-up; None stands for a node with a fault below it, which is reported once."""

    def __init__(self, declared: _Declared, faults: list[Diagnostic]) -> None:
        self.names, self.positions, self.faults = declared.by_name, declared.by_position, faults
        self.declared = declared
        self.constants: dict[Node, Const] = {}  # values of operators applied to constants

    def type(self, tree: ast.Expr) -> Node | None:
        done: dict[int, Node | None] = {}
        for _, expr in reversed(list(ast.walk(tree))):
            done[id(expr)] = self._node(expr, done)
        return done[id(tree)]

    def _node(self, expr: ast.Expr, done: dict[int, Node | None]) -> Node | None:
        if isinstance(expr, ast.Number):
            return Const(expr.value)
        if isinstance(expr, ast.Name):
            return self._name(expr)
        if isinstance(expr, ast.Sequence):
            return None  # reported, or read, by the operator that it is an argument of
        if isinstance(expr, ast.Operation):
            operator = infix[expr.symbol, len(expr.args)]
            assert isinstance(operator, Operator)
            return self._apply(operator, expr, expr.symbol_span, done)
        return self._call(expr, done)

    def _fault(self, span: Span, message: str, hint: str = "") -> None:
        self.faults.append(Diagnostic(span, message, hint))

    def _name(self, expr: ast.Name) -> Node | None:
        if expr.name in self.names:
            return self.names[expr.name]
        if expr.name in self.declared.taken or self.declared.unread:
            return None  # its alias is faulty, and reported
        near = nearest(expr.name, self.names)
        known = f"known: {', '.join(self.names)}" if self.names else "no alias is declared"
        self._fault(expr.span, f"unknown variable {expr.name!r}", f"did you mean {near!r}?" if near else known)
        return None

    def _call(self, expr: ast.Call, done: dict[int, Node | None]) -> Node | None:
        if expr.callee in _CATEGORIES or expr.callee == "Var":
            position = _integer(expr.args[0]) if expr.args else None
            return self.positions.get(position) if position is not None else None
        word = words.get(expr.callee)
        if isinstance(word, Operator):
            return self._apply(word, expr, expr.callee_span, done)
        if isinstance(word, ReductionOp):
            return self._reduction(word, expr, done)
        near = nearest(expr.callee, words)
        hint = f"did you mean {near!r}?" if near else ""
        if expr.callee in self.names:
            hint = f"{expr.callee} is a variable; a product is written '*'"
        self._fault(expr.callee_span, f"unknown operator {expr.callee!r}", hint)
        return None

    def _apply(
        self, op: Operator, expr: ast.Call | ast.Operation, at: Span, done: dict[int, Node | None]
    ) -> Node | None:
        n = len(op.operands)
        least, most = op.arity
        operands = [self._operand(op, arg, done) for arg in expr.args[:n]]
        static = [self._static(op, place, arg) for place, arg in enumerate(expr.args[n:])]
        if least <= len(expr.args) <= most and (None in operands or None in static):
            return None
        try:
            node = op(*operands, *static)  # type: ignore[arg-type]
            self._check_nesting(op, node)
            self._check_constants(op, node)
            return node
        except IllTyped as error:
            place = error.operand
            self._fault(at if place is None or place >= len(expr.args) else expr.args[place].span, str(error))
            return None

    def _operand(self, op: Operator, arg: ast.Expr, done: dict[int, Node | None]) -> Node | tuple[Node, ...] | None:
        if not isinstance(arg, ast.Sequence):
            return done[id(arg)]
        if not op.summed:
            self._check_lists(op, [arg])
            return None
        items = tuple(node for item in arg.items if (node := done[id(item)]))
        return items if len(items) == len(arg.items) else None

    def _check_lists(self, op: Operator | ReductionOp, args: Sequence[ast.Expr]) -> None:
        for arg in args:
            if isinstance(arg, ast.Sequence):
                self._fault(arg.span, f"{op.name}: expected a formula, got a list")

    def _check_nesting(self, op: Operator, node: Node) -> None:
        for place, operand in enumerate(node.operands):
            if is_reduced(operand) and not (op in STRUCTURAL and place == 0):
                raise IllTyped("a reduction stands outermost, or is the first argument of Grad", place)
        if op in STRUCTURAL and is_reduced(node.operands[0]):
            if op not in OF_REDUCTIONS:
                raise IllTyped(f"{op.name} takes a formula, not a reduction", 0)
            self._check_axes(node)

    def _check_constants(self, op: Operator, node: Node) -> None:
        """No divisor is 0, and no constant out of range where it meets what is none: within constants it may be."""
        operands = [self.constants.get(operand, operand) for operand in node.operands]
        if all(isinstance(operand, Const) for operand in operands):
            value = fold_constant(rebuild(node, operands))
            if isinstance(value, Const):
                self.constants[node] = value
                return
        for place, operand in enumerate(operands):
            if isinstance(operand, Const) and not in_range(operand.value):
                raise IllTyped("the constant is outside the range of double precision", place)
        if op.symbol == "/" and isinstance(operands[1], Const) and not operands[1].value:
            raise IllTyped("division by the constant 0", 1)

    def _check_axes(self, node: Node) -> None:
        """Cotangents and results of a reduction are indexed like the result."""
        kept = result_axes(node.operands[0])
        for place, operand in enumerate(node.operands[2:], 2):
            if not operand.axes <= kept:
                letter = next(iter(kept))
                raise IllTyped(
                    f"{operand!r} varies with {'j' if letter == 'i' else 'i'}: expected the index of the "
                    f"reduction's result, {letter}",
                    place,
                )

    def _static(self, op: Operator, place: int, arg: ast.Expr) -> Static | None:
        value = _integers(arg) if op.takes_list(place) else _integer(arg)
        if value is None and place < len(op.static):
            wanted = "a list of integers" if op.takes_list(place) else "an integer"
            self._fault(arg.span, f"{op.name}: expected {wanted} for {op.static[place]!r}")
        return value

    def _reduction(self, op: ReductionOp, expr: ast.Call, done: dict[int, Node | None]) -> Node | None:
        form = f"{op.name}_Reduction(f, {'K, ' * op.takes_k}axis{', weight' * (op.formulas[1] > 1)})"
        first = 1 + op.takes_k
        parameters = [_integer(arg) for arg in expr.args[1 : first + 1]]
        written = (*expr.args[:1], *expr.args[first + 1 :])
        formulas = [done[id(arg)] for arg in written]
        self._check_lists(op, written)
        if len(expr.args) < first + 1 or None in parameters or parameters[-1] not in (0, 1):
            self._fault(expr.callee_span, f"expected {form}, axis being 1 (reduce over j) or 0 (over i)")
            return None
        if None in formulas:
            return None
        try:
            if any(is_reduced(f) for f in formulas if f is not None):
                raise IllTyped("a reduction stands outermost, or is the first argument of Grad", 0)
            return Reduction(op, formulas, parameters[-1], parameters[0] if op.takes_k else 0)  # type: ignore[arg-type]
        except IllTyped as error:
            self._fault(expr.callee_span if error.operand is None else written[error.operand].span, str(error))
            return None


def is_reduced(node: Node) -> bool:
    """Whether a node is a reduction, or a gradient of one."""
    return isinstance(node, Reduction) or (
        isinstance(node, Apply) and node.op in STRUCTURAL and is_reduced(node.args[0])
    )


def result_axes(node: Node) -> frozenset[str]:
    """What the result of a reduction (or of its gradient by a variable) is indexed by."""
    if isinstance(node, Reduction):
        return node.axes
    return node.operands[1].axes or frozenset("i")


def _innermost(node: Node) -> Reduction:
    """The reduction of a node that is one, or a gradient of one."""
    while not isinstance(node, Reduction):
        node = node.operands[0]
    return node


def _reduce(
    nodes: list[Node | None], trees: list[ast.Expr], wanted: tuple[str, int, int], faults: list[Diagnostic]
) -> Node | None:
    name, axis, k = wanted
    if nodes[0] is not None and is_reduced(nodes[0]):
        return _own_reduction(nodes[0], trees, wanted, faults)
    op = words.get(name + _SUFFIX)
    if not isinstance(op, ReductionOp):
        known = [re.sub(f"{_SUFFIX}$", "", word) for word, op in words.items() if isinstance(op, ReductionOp)]
        near = nearest(name, known)
        faults.append(Diagnostic(None, f"unknown reduction {name!r}", f"did you mean {near!r}?" if near else ""))
        return None
    if axis not in (0, 1):
        faults.append(Diagnostic(None, f"Axis should be 0 or 1; got {axis!r}"))
    if None in nodes or axis not in (0, 1):
        return None
    if any(node is not None and is_reduced(node) for node in nodes):
        faults.append(Diagnostic(trees[-1].span, "a weight is a formula, not a reduction"))
        return None
    try:
        return Reduction(op, nodes, axis, k)  # type: ignore[arg-type]
    except IllTyped as error:
        faults.append(Diagnostic(trees[min(error.operand or 0, len(trees) - 1)].span, str(error)))
        return None


def _own_reduction(
    node: Node, trees: list[ast.Expr], wanted: tuple[str, int, int], faults: list[Diagnostic]
) -> Node | None:
    """A formula that holds its reduction: the arguments may leave it alone, but not contradict it."""
    name, axis, k = wanted
    own = _innermost(node)
    if name != "Sum" or len(trees) > 1:
        said = f"reduction_op={name!r}" if name != "Sum" else "formula2"
        faults.append(Diagnostic(trees[0].span, f"the formula holds its reduction, and {said} is given too"))
    elif axis == 1 and result_axes(node) != frozenset("i"):
        faults.append(Diagnostic(trees[0].span, "the formula reduces over i, and axis=1 is given too"))
    elif k not in (0, own.k):
        held = f"K = {own.k}" if own.op.takes_k else f"{own.op.name}, which takes no K"
        faults.append(Diagnostic(trees[0].span, f"the formula holds {held}, and opt_arg={k} is given too"))
    else:
        return node
    return None
