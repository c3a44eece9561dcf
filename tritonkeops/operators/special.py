"""Special functions of vectors, as formulas: B-splines and dynamic time warping."""

from __future__ import annotations

from tritonkeops.formula.ir import Node, Operator
from tritonkeops.operators.declare import derived, expect
from tritonkeops.operators.elementwise import Equal, LessOrEqual, LessThan, NotEqual, SoftMin, Square
from tritonkeops.operators.vector import Elem, Extract

# B-splines --------------------------------------------------------------------------------------------------------


def _bspline_dim(knots: Node, x: Node, order: int) -> int:
    word = "BSpline(knots, x, order)"
    expect(order >= 0, lambda: f"{word}: order = {order}, expected at least 0", 2)
    expect(
        knots.dim >= order + 2,
        lambda: f"{word}: knots = {knots!r} has dim {knots.dim}, expected at least {order + 2} knots for order {order}",
    )
    expect(x.dim == 1, lambda: f"{word}: x = {x!r} has dim {x.dim}, expected a scalar", 1)
    return knots.dim - order - 1


def _bspline(knots: Node, x: Node, order: int) -> Node:
    """The recursion of Cox and de Boor, on all splines of a degree at once."""

    def part(f: Node, start: int, less: int) -> Node:
        return Extract(f, start, f.dim - less)

    splines = LessOrEqual(part(knots, 0, 1), x) * LessThan(x, part(knots, 1, 1))
    for degree in range(1, order + 1):
        inverse = _inverse(part(knots, degree, degree) - part(knots, 0, degree))  # of the lengths of supports
        rising, falling = part(inverse, 0, 1) * part(splines, 0, 1), part(inverse, 1, 1) * part(splines, 1, 1)
        splines = (x - part(knots, 0, degree + 1)) * rising + (part(knots, degree + 1, degree + 1) - x) * falling
    return splines


def _inverse(f: Node) -> Node:
    """1 / f, and 0 at 0, with derivative 0 there."""
    return NotEqual(f, 0) / (f + Equal(f, 0))


BSpline: Operator = derived(
    "BSpline",
    _bspline,
    "Values at x of the B-splines of an order (its degree) on sorted knots; intervals are closed on the left.",
    dim=_bspline_dim,
    static=("order",),
    example=(2,),
    example_dims=(6, 1),
)

# Dynamic time warping ---------------------------------------------------------------------------------------------


def _soft_dtw_dim(x: Node, y: Node, gamma: Node) -> int:
    word = "SoftDTW_SqDist(x, y, gamma)"
    expect(gamma.dim == 1, lambda: f"{word}: gamma = {gamma!r} has dim {gamma.dim}, expected a scalar", 2)
    return 1


def _soft_dtw(x: Node, y: Node, gamma: Node) -> Node:
    """The cost of each prefix of x against each of y, row by row."""
    above: list[Node] = []
    for i in range(x.dim):
        row: list[Node] = []
        for j in range(y.dim):
            cost = Square(Elem(x, i) - Elem(y, j))
            before = above[j - 1 : j + 1] + row[-1:] if j else above[:1]
            row.append(cost + _soft_minimum(before, gamma) if before else cost)
        above = row
    return above[-1]


def _soft_minimum(costs: list[Node], gamma: Node) -> Node:
    return SoftMin(*costs, gamma) if len(costs) == 3 else costs[0]


SoftDTW_SqDist: Operator = derived(
    "SoftDTW_SqDist",
    _soft_dtw,
    "Soft dynamic time warping of the sequences x and y for squared differences, smoothed by gamma.",
    dim=_soft_dtw_dim,
    example_dims=(3, 2, 1),
)
