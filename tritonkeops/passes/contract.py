"""Contractions: pair values as inner products of vectors of row i and of row j, as units that multiply matrices want.

    Sum(Square(f_i - g_j))  ->  Sum((-2 f_i) * g_j) + Sum(Square(f_i)) + Sum(Square(g_j))

Such a value is `inner + row + col`: an inner product, what depends on the kept axis, what depends on the reduced one.
What is summed becomes `p_ij V_j` with a scalar p and a vector V of the reduced axis, again a product of matrices:

    sum_j p_ij (x_i - y_j)  ->  x_i s[D] - s[0:D],  s = sum_j p_ij Concat(y_j, 1)

Precision: rounding errors of an inner product are absolute, about eps * (|f_i|^2 + |g_j|^2), while a difference is
exact where f_i is close to g_j. So f and g are taken relative to a center, a hidden parameter, whose value is free;
differences are contracted only where an absolute error is harmless, in an exponent say, and `sizes` bound it.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from tritonkeops.formula.contracted import Contracted
from tritonkeops.formula.ir import Apply, Category, Const, Node, Reduced, Reduction, Var, postorder, rebuild
from tritonkeops.formula.rewrite import substitute
from tritonkeops.operators.elementwise import (
    Abs,
    Add,
    Divide,
    Exp,
    Exp2,
    Inv,
    Minus,
    Mult,
    Pow,
    ReLU,
    Rsqrt,
    Sign,
    Sqrt,
    Square,
    Subtract,
)
from tritonkeops.operators.reductions import SoftMax, SumSoftMaxWeight, SumSoftMaxWeight_LogSumExp
from tritonkeops.operators.vector import Concat, Elem, Extract, MatVecMult, Sum, SumT, VecMatMult
from tritonkeops.passes.product import Product, product_of
from tritonkeops.passes.simplify import simplify, strict

_MOST_TERMS = 8
_MOST_VISITS = 200  # nodes of a pair value: what is deeper stays as it is
_ONE = Const(1)


def contract(node: Reduction, variables: Sequence[Var], least: int = 1, loose: bool = False) -> Contracted | None:
    """The same reduction with contractions of at least so many components; None where there is nothing to contract.

    Assumes a reduction of primitive operators, simplified and factored, and finite values. With `loose`, low precision
    is allowed: distances may have errors of sqrt(eps).
    """
    return None if strict() else _Contraction(node, variables, least, loose).contracted()


# Terms ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Term:
    """A number times what belongs to the kept axis, or to none, times what belongs to the reduced axis.

    In the form of a vector it is a vector; in that of a scalar, vectors stand for the sum of their products.
    """

    kept: Node = _ONE
    reduced: Node = _ONE
    number: Fraction = Fraction(1)

    @property
    def dim(self) -> int:
        return max(self.kept.dim, self.reduced.dim)

    @property
    def mixed(self) -> bool:
        return bool(self.kept.axes and self.reduced.axes)

    @property
    def left(self) -> Node:
        """The side of the kept axis, with the number."""
        return _scaled(self.number, self.kept)

    def __mul__(self, other: _Term) -> _Term:
        return _Term(self.kept * other.kept, self.reduced * other.reduced, self.number * other.number)

    def settled(self) -> _Term:
        """The same with numbers outside and parameters beside what varies, each side simplified."""
        a, b = self.kept, self.reduced
        a, b = (a * b, _ONE) if not b.axes else (_ONE, a * b) if not a.axes else (a, b)
        (n, a), (m, b) = _number_and_rest(a), _number_and_rest(b)
        return _Term(a, b, self.number * n * m)

    def summed(self, dim: int) -> _Term:
        """As a term of the sum over `dim` components, with sides of one dim: the sum of s v_k is s times that of v_k.

        A matrix goes to the kept side, where it meets others: f S g is (f S) g.
        """
        a, b = self.kept, self.reduced
        a, b = (Sum(a), b) if b.dim < a.dim else (a, Sum(b)) if a.dim < b.dim else (a, b)
        if a.dim > 1 and _matrix_of(b) and not _matrix_of(a):
            a, b = _transposed(b, a), _vector_of(b)
        return _Term(a, b, self.number * (dim if self.dim == 1 else 1))


@dataclass(frozen=True)
class _Form:
    """The sum of terms; it `cancels` where their sum may be much smaller than they are."""

    terms: tuple[_Term, ...]
    cancels: bool = False

    @property
    def plain(self) -> bool:
        """Whether no term is a sum over components, given that the value is a scalar."""
        return all(term.dim == 1 for term in self.terms)

    def __add__(self, other: _Form) -> _Form:
        return _Form(_merged((*self.terms, *other.terms)), self.cancels or other.cancels)

    def __sub__(self, other: _Form) -> _Form:
        return self + replace(other, terms=tuple(replace(term, number=-term.number) for term in other.terms))

    def __mul__(self, other: _Form) -> _Form:
        """Element-wise."""
        cancels = self.cancels or other.cancels or (len(self.terms) > 1 and len(other.terms) > 1)
        return _Form(_merged([t * u for t in self.terms for u in other.terms]), cancels)


def _merged(terms: Iterable[_Term]) -> tuple[_Term, ...]:
    """Terms with distinct sides: a b + c b is (a + c) b."""
    settled = [term.settled() for term in terms]
    for side, other in (("kept", "reduced"), ("reduced", "kept")):
        found: dict[tuple[Node, bool, int], _Term] = {}
        for term in settled:
            key = getattr(term, other), term.mixed, term.dim if term.mixed else 1
            found[key] = _added(found[key], term, side) if key in found else term
        settled = [term for term in found.values() if term.number]
    return tuple(settled)


def _added(a: _Term, b: _Term, side: str) -> _Term:
    """The sum of two terms that differ in one side at most."""
    f, g = getattr(a, side), getattr(b, side)
    if f is g:
        return replace(a, number=a.number + b.number)
    outside = a.number if a.mixed else Fraction(1)  # what varies with one axis is added to products: it needs no factor
    total = _scaled(a.number / outside, f) + _scaled(b.number / outside, g)
    return _Term(*((total, a.reduced) if side == "kept" else (a.kept, total)), outside).settled()


@functools.lru_cache(maxsize=1024)  # the same products come again and again
def _number_and_rest(node: Node) -> tuple[Fraction, Node]:
    if node is _ONE or isinstance(node, Var):
        return Fraction(1), node
    product = product_of(simplify(node))
    return product.number, Product(powers=product.powers).node()


def _scaled(number: Fraction, node: Node) -> Node:
    """A number times a node, simplified; a sign is one, and no factor."""
    if abs(number) == 1:
        return node if number > 0 else -node
    return simplify(Const(number) * node)


def _matrix_of(node: Node) -> Node | None:
    """The matrix, if the node is one times a vector."""
    place = _MATRIX.get(node.op) if isinstance(node, Apply) else None
    return None if place is None else node.operands[place]


def _vector_of(node: Node) -> Node:
    assert isinstance(node, Apply)
    return node.args[1 - _MATRIX[node.op]]


def _transposed(node: Node, vector: Node) -> Node:
    """The transpose of a node's matrix times another vector."""
    matrix = _matrix_of(node)
    assert isinstance(node, Apply) and matrix
    return VecMatMult(vector, matrix) if node.op is MatVecMult else MatVecMult(matrix, vector)


def _mapped(node: Node, vector: Node) -> Node:
    """A node's matrix times another vector."""
    assert isinstance(node, Apply)
    matrix = node.args[_MATRIX[node.op]]
    return rebuild(node, [matrix, vector] if node.op is MatVecMult else [vector, matrix])


_MATRIX = {MatVecMult: 0, VecMatMult: 1}
"""Where the matrix of a product is."""


def _assembled(form: _Form) -> Node:
    """inner + row + col, of which the latter may be missing."""
    mixed = [term for term in form.terms if term.mixed]
    rows = [term.left for term in form.terms if not term.reduced.axes]
    cols = [_scaled(term.number, term.reduced) for term in form.terms if term.reduced.axes and not term.mixed]
    sides = [_balanced(term) for term in mixed]
    left, right = (functools.reduce(Concat, side) for side in zip(*sides, strict=True))
    inner = Sum(left * right) if left.dim > 1 else left * right
    return functools.reduce(operator.add, [inner, *rows, *cols])


def _balanced(term: _Term) -> tuple[Node, Node]:
    """The two sides, with the root of a scale that is a parameter on each: both are then as large as values are."""
    scale, rest = product_of(term.left).split(lambda f: not f.axes and f.dim == 1)
    if not scale.powers:
        return term.left, term.reduced
    size = replace(scale, number=Fraction(1)).node()
    root = Sqrt(Abs(size))
    return _scaled(scale.number, Sign(size) * root) * rest.node(), root * term.reduced


# Pair values ----------------------------------------------------------------------------------------------------------

_EXACT, _RELATIVE, _ABSOLUTE = range(3)
"""Which errors are harmless in a value: none, relative ones, absolute ones as well."""

_COMPONENTS = (Minus, SumT, Elem, Extract, Concat)
_SUMS = (Add, Subtract, Minus, Mult, Divide, Square, Sum, SumT, MatVecMult, VecMatMult)


class _Contraction:
    """A reduction's way to contractions; `center` is known as soon as a difference is contracted."""

    def __init__(self, node: Reduction, variables: Sequence[Var], least: int, loose: bool) -> None:
        self.node, self.least, self.loose = node, least, loose
        self.center_of: Node | None = None
        self.names = {v.name for v in variables}
        self.position = len(variables)
        self.visits = 0
        self.cancelling: set[Node] = set()
        self.magnitudes: dict[str, dict[Node, None]] = {"kept": {}, "reduced": {}}
        self.weight: Node | None = None
        self.columns: dict[Node, Var] = {}
        self.known: dict[tuple[tuple[Node, Node, Fraction], ...], tuple[Fraction, Node]] = {}

    @property
    def center(self) -> Var | None:
        if self.center_of is None:
            return None
        name = next(name for n in range(len(self.names) + 1) if (name := "center" + "_" * n) not in self.names)
        return Var(self.position, self.center_of.dim, Category.P, name)

    def contracted(self) -> Contracted | None:
        values = self._values()
        node = self._second(values)
        if not values and node is None:
            return None
        sizes = (_total(self.magnitudes[side]) for side in ("kept", "reduced"))
        result = node or substitute(self.node, values)
        assert isinstance(result, Reduction)
        return Contracted(result, self.center, self.center_of, (next(sizes), next(sizes)))

    def _values(self) -> dict[Node, Node]:
        """The largest pair values that are contractions, and what takes their places."""
        harmless, separable, found, seen = self._harmless(), self._separable(), dict[Node, Node](), set[Node]()
        stack = list(reversed(self.node.args))
        while stack:
            node = stack.pop()
            if node in seen or len(node.axes) < 2:
                continue
            seen.add(node)
            if value := self._value(node, harmless[node]) if node in separable else None:
                found[node] = value
            else:
                stack.extend(reversed(node.operands))
        return found | {root: Sqrt(ReLU(found[root.operands[0]])) for root in self._roots(found)}

    def _separable(self) -> set[Node]:
        """The scalars that may have a form, by their operators."""
        found = set[Node]()
        for node in postorder(self.node.args):
            if len(node.axes) < 2 or (isinstance(node, Apply) and node.op in _SUMS and found.issuperset(node.args)):
                found.add(node)
        return {node for node in found if node.dim == 1}

    def _roots(self, found: dict[Node, Node]) -> list[Node]:
        """The square roots of what is at least 0, but for rounding errors."""
        roots = (x for x in postorder(self.node.args) if isinstance(x, Apply) and x.op is Sqrt)
        return [x for x in roots if x.args[0] in found and x.args[0] in self.cancelling]

    def _value(self, node: Node, harmless: int) -> Node | None:
        """inner + row + col, if the scalar is that."""
        before, self.visits = self.center_of, 0
        form = self._form(node)
        if form is None or not self._pays(form) or (form.cancels and harmless < _ABSOLUTE):
            self.center_of = before
            return None
        self._measure(form)
        if form.cancels:
            self.cancelling.add(node)
        first = form.terms[0].number
        key = tuple((term.kept, term.reduced, term.number / first) for term in form.terms)
        if key in self.known:
            number, value = self.known[key]
            return _scaled(first / number, value)
        self.known[key] = first, _assembled(form)
        return self.known[key][1]

    def _pays(self, form: _Form) -> bool:
        """Whether there is an inner product that is long enough. One of numbers is a product already."""
        length = sum(term.dim for term in form.terms if term.mixed)
        return length >= self.least and (length > 1 or (length == 1 and form.cancels))

    def _measure(self, form: _Form) -> None:
        """Note the magnitudes of terms; |a b| is at most (|a|^2 + |b|^2) / 2."""
        for term in form.terms:
            if term.mixed:
                (s, a), (t, b) = _norm(term.left), _norm(term.reduced)
                found = [("kept", s * t * _square_norm(a) / 2), ("reduced", s * t * _square_norm(b) / 2)]
            else:
                side = "reduced" if term.reduced.axes else "kept"
                found = [(side, _magnitude(Const(term.number) * each)) for each in _addends(getattr(term, side))]
            for side, size in found:
                self.magnitudes[side][simplify(size)] = None

    def _harmless(self) -> dict[Node, int]:
        """Which errors are harmless in each node, by all its users."""
        order = list(postorder(self.node.args))
        found = dict.fromkeys(order, _ABSOLUTE)
        for user in reversed(order):
            for operand in user.operands:
                found[operand] = min(found[operand], self._passed(user, operand, found[user]))
        return found

    def _passed(self, user: Node, operand: Node, harmless: int) -> int:
        """Which errors of an operand are harmless, given those that are in its user."""
        assert isinstance(user, Apply)
        if user.op in _COMPONENTS:
            return harmless
        if user.op in (Add, Subtract, Sum):
            return harmless if harmless == _ABSOLUTE else _EXACT
        if user.op in _MATRIX:
            return (_ABSOLUTE if self._alone(user, operand) else _RELATIVE) if harmless == _ABSOLUTE else _EXACT
        if user.op in (Exp, Exp2):
            return _ABSOLUTE if harmless else _EXACT
        if user.op is Sqrt and self.loose and harmless:
            return _ABSOLUTE
        if user.op in (Mult, Divide):
            linear = user.op is Mult or operand is user.args[0]
            return harmless if linear and self._alone(user, operand) else min(harmless, _RELATIVE)
        return min(harmless, _RELATIVE) if user.op in (Square, Inv, Sqrt, Rsqrt, Pow) else _EXACT

    def _alone(self, user: Apply, operand: Node) -> bool:
        """Whether the other operand leaves absolute errors harmless."""
        others = [arg for arg in user.args if arg is not operand]
        return len(others) == 1 and _bounded(others[0])

    # Forms: a pair value as a sum of products, or None

    def _form(self, node: Node, inside: bool = False) -> _Form | None:
        """`inside`: below a sum or a product, so that differences are taken around the center."""
        if node.axes <= self.node.axes:
            return _Form((_Term(node),))
        if len(node.axes) < 2:
            return _Form((_Term(_ONE, node),))
        self.visits += 1
        if not isinstance(node, Apply) or self.visits > _MOST_VISITS:
            return None
        form = self._form_of(node, node.args, inside)
        return form if form and len(form.terms) <= _MOST_TERMS else None

    def _form_of(self, node: Apply, args: tuple[Node, ...], inside: bool) -> _Form | None:
        op, one_sided = node.op, [len(arg.axes) < 2 for arg in args]
        if op in (Add, Subtract):
            if inside and all(one_sided):
                return self._difference(node)
            return self._combined(node, args, operator.add if op is Add else operator.sub, inside)
        if op is Minus:
            return self._combined(node, (Const(-1), *args), operator.mul, inside)
        if op is Mult:
            return self._combined(node, args, operator.mul, inside or not any(one_sided))
        if op is Divide and one_sided[1]:
            return self._combined(node, (args[0], Inv(args[1])), operator.mul, inside)
        if op is Square:
            return self._combined(node, (*args, *args), operator.mul, True)
        if op is Sum:
            form = self._form(args[0], True)
            return form and _Form(_merged(term.summed(args[0].dim) for term in form.terms), form.cancels)
        if op is SumT:
            form = self._form(args[0], inside)
            return form if form and form.plain else None
        return self._transformed(node, inside) if op in _MATRIX else None

    def _combined(
        self, node: Node, args: Sequence[Node], combine: Callable[[_Form, _Form], _Form], inside: bool
    ) -> _Form | None:
        """Element-wise; sums over components are no factors of each other or of vectors."""
        forms = [form for arg in args if (form := self._form(arg, inside))]
        sums = sum(arg.dim == 1 and not form.plain for arg, form in zip(args, forms, strict=False))
        if len(forms) < 2 or sums > (0 if node.dim > 1 else 1 if combine is operator.mul else 2):
            return None
        return combine(*forms)

    def _difference(self, node: Apply) -> _Form | None:
        """f - g as (f - center) - (g - center), the only center being around this g."""
        f, g = sorted(node.args, key=lambda arg: not arg.axes <= self.node.axes)
        sign = -1 if node.op is Subtract and f is node.args[1] else 1
        around = simplify(-g) if node.op is Add else g
        if self.center_of not in (None, around):
            return None
        self.center_of = around
        assert self.center
        kept, reduced = _Term(f - self.center), _Term(_ONE, around - self.center)
        return _Form(tuple(replace(term, number=Fraction(n)) for term, n in ((kept, sign), (reduced, -sign))), True)

    def _transformed(self, node: Node, inside: bool) -> _Form | None:
        """A matrix of parameters times a vector."""
        matrix, vector = _matrix_of(node), _vector_of(node)
        form = self._form(vector, inside) if matrix and not matrix.axes and vector.dim > 1 else None
        if form is None or any(min(term.kept.dim, term.reduced.dim) > 1 for term in form.terms):
            return None
        terms = []
        for term in form.terms:
            if term.reduced.dim > 1:
                terms.append(replace(term, reduced=_mapped(node, term.reduced)))
            else:
                wide = term.kept if term.kept.dim > 1 else SumT(term.kept, vector.dim)
                terms.append(replace(term, kept=_mapped(node, wide)))
        return _Form(_merged(terms), form.cancels)

    # Sums of vectors

    def _second(self, values: dict[Node, Node]) -> Reduction | None:
        """The reduction with its last formula as p * V, p a scalar and V a vector of the reduced axis."""
        node, before, self.visits = self.node, self.center_of, 0
        *others, term = node.args
        averages = node.op in _AVERAGES and len(term.axes) == 2 and others[0].dim == 1
        total = self._summed(term) if term.dim > 1 and (node.op.linear or averages) else None
        columns = sorted(self.columns, key=lambda column: -column.dim)
        length = sum(column.dim for column in columns)
        if total is None or total.dim != term.dim or length < self.least or (self.weight is _ONE) != averages:
            self.center_of = before
            return None
        assert self.weight
        vectors = functools.reduce(Concat, columns)
        last = vectors if averages else substitute(self.weight, values) * vectors
        args = (*(substitute(other, values) for other in others), last)
        reduced = Reduced(node.op.value_dim(args, node.k), node.axes)  # with the logarithm, where there is one
        value = substitute(total, self._parts(columns, reduced))
        value = value if reduced.dim == length else Concat(value, _part(reduced, length, reduced.dim - length))
        result = simplify(substitute(node.result or node.reduced, {node.reduced: value}))
        return Reduction(node.op, args, node.axis, node.k, result)

    def _parts(self, columns: Sequence[Node], reduced: Reduced) -> dict[Node, Node]:
        """What the sums of columns are in the value reduced."""
        starts = itertools.accumulate((column.dim for column in columns), initial=0)
        return {self.columns[c]: _part(reduced, start, c.dim) for c, start in zip(columns, starts, strict=False)}

    def _summed(self, term: Node) -> Node | None:
        """What the sum of a term is, in sums of columns times the weight, the same for all."""
        outer, pairs = product_of(term).split(lambda f: len(f.axes) < 2)
        scalars, vectors = pairs.split(lambda f: f.dim == 1)
        kept, reduced = outer.split(lambda f: f.axes <= self.node.axes)
        if not vectors.powers:
            return self._of_columns(scalars, kept, reduced, _Form((_Term(),)))
        (vector, power), *more = vectors.powers
        if more or power != 1:
            return None
        matrix = _matrix_of(vector)
        if matrix and matrix.axes <= self.node.axes and reduced.dim == 1:
            inner = self._summed(simplify((scalars * reduced).node() * _vector_of(vector)))
            return inner and kept.node() * _mapped(vector, inner)
        form = self._form(vector, True)
        if form and (_bounded(scalars.node()) or not form.cancels):
            return self._of_columns(scalars, kept, reduced, form)
        return self._summed_apart(term)

    def _of_columns(self, scalars: Product, kept: Product, reduced: Product, form: _Form) -> Node | None:
        weight = scalars.node()
        if self.weight not in (None, weight):
            return None
        self.weight = weight
        terms = (form * _Form((_Term(kept.node(), reduced.node()),))).terms
        sums = [_scaled(each.number, each.kept * self._column(each.reduced)) for each in terms]
        return functools.reduce(operator.add, sums)

    def _summed_apart(self, term: Node) -> Node | None:
        if not isinstance(term, Apply) or term.op not in (Add, Subtract, *_COMPONENTS):
            return None
        parts = [self._summed(arg) for arg in term.args]
        return rebuild(term, [part for part in parts if part]) if all(parts) else None

    def _column(self, column: Node) -> Node:
        """What stands for the sum of a column times the weight; the average of 1 is 1."""
        if self.node.op in _AVERAGES and column is _ONE:
            return column
        category = Category.I if "i" in self.node.axes else Category.J
        return self.columns.setdefault(column, Var(-1 - len(self.columns), column.dim, category, "sum'"))


_AVERAGES = [op for word in (SumSoftMaxWeight, SoftMax, SumSoftMaxWeight_LogSumExp) for op in (word, word.base2)]


def _part(vector: Node, start: int, dim: int) -> Node:
    if dim == vector.dim:
        return vector
    return Extract(vector, start, dim) if dim > 1 else Elem(vector, start)


def _bounded(node: Node) -> bool:
    """Whether a factor leaves absolute errors harmless: it has no singularity where x is y, being made of exponentials
    and of what varies with one axis only."""
    if len(node.axes) < 2:
        return True
    assert isinstance(node, Apply)
    if node.op is Divide and len(node.args[1].axes) == 2 and node.args[1].op not in (Exp, Exp2):  # type: ignore[attr-defined]
        return False
    return node.op in (Exp, Exp2) or (node.op in _SMOOTH and all(map(_bounded, node.args)))


_SMOOTH = (Minus, Mult, Divide, Add, Subtract, Sum, Square)


# Magnitudes -----------------------------------------------------------------------------------------------------------


def _addends(node: Node) -> Iterator[Node]:
    """The terms of a sum, but for their signs."""
    stack = [node]
    while stack:
        each = stack.pop()
        if isinstance(each, Apply) and each.op in (Add, Subtract, Minus):
            stack.extend(each.args)
        else:
            yield each


def _magnitude(node: Node) -> Node:
    """The absolute values of factors, of the terms within sums: what rounding errors are relative to."""
    product = product_of(node)
    powers = ((_absolute(f) if n % 2 or _is_sum(f) else f, n) for f, n in product.powers)
    return Product(abs(product.number), tuple(powers)).node()


def _absolute(node: Node) -> Node:
    return _magnitude_of_sum(node.operands[0]) if _is_sum(node) else Abs(node)


def _is_sum(node: Node) -> bool:
    return isinstance(node, Apply) and node.op is Sum


def _magnitude_of_sum(term: Node) -> Node:
    """Of the sum over components. Where matrices are in it, the terms within their products count."""
    factors = [f for f, n in product_of(term).powers for _ in range(n)]
    if len(factors) != 2 or not any(map(_matrix_of, factors)):
        return Sum(_magnitude(term))
    (s, a), (t, b) = map(_norm, factors)
    return s * t * (_square_norm(a) if a is b else (_square_norm(a) + _square_norm(b)) / 2)


def _square_norm(vector: Node) -> Node:
    return Sum(Square(vector)) if vector.dim > 1 else Square(vector)


def _norm(vector: Node) -> tuple[Node, Node]:
    """The first, of parameters, times the norm of the second is as large as the vector and the terms within it."""
    outer, inner = product_of(vector).split(lambda f: not f.axes and f.dim == 1)
    scale, rest = _magnitude(outer.node()), inner.node()
    matrix = _matrix_of(rest)
    if matrix and not matrix.axes:
        within, rest = _norm(_vector_of(rest))
        return scale * Sqrt(_square_norm(matrix)) * within, rest
    if isinstance(rest, Apply) and rest.op in (Add, Subtract):
        (s, a), (t, b) = map(_norm, rest.args)
        return (scale * (s + t), a) if a is b else (scale, rest)
    return scale, rest


def _total(magnitudes: Iterable[Node]) -> Node:
    return functools.reduce(operator.add, magnitudes) if magnitudes else Const(0)
