"""Products of tensors: vectors read as row-major arrays of given shapes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritonkeops.formula.ir import Node, Operator
from tritonkeops.operators.declare import componentwise, derived, expect

Ints = tuple[int, ...]


@dataclass(frozen=True)
class _Layout:
    """Of a contraction: the shape of the result and that of what is summed over, and the strides of f and g along the
    axes of both, 0 where they do not vary."""

    shape: Ints
    f: Ints
    g: Ints
    summed: Ints
    f_summed: Ints
    g_summed: Ints


def _kept(shape: Ints, contracted: Ints) -> Ints:
    return tuple(axis for axis in range(len(shape)) if axis not in contracted)


def _order(dimf: Ints, dimg: Ints, contf: Ints, contg: Ints, permute: Ints) -> tuple[Ints, Ints]:
    """Which axes of the result are kept ones of f, and which of g."""
    n = len(dimf) - len(contf)
    order = permute or tuple(range(n + len(dimg) - len(contg)))
    return order[:n], order[n:]


@functools.cache
def _layout(dimf: Ints, dimg: Ints, contf: Ints, contg: Ints, permute: Ints) -> _Layout:
    of_f, of_g = _order(dimf, dimg, contf, contg, permute)
    from_f = dict(zip(of_f, _kept(dimf, contf), strict=True))
    from_g = dict(zip(of_g, _kept(dimg, contg), strict=True))
    f, g = _strides(dimf), _strides(dimg)
    axes = range(len(of_f) + len(of_g))
    return _Layout(
        shape=tuple(dimf[from_f[axis]] if axis in from_f else dimg[from_g[axis]] for axis in axes),
        f=tuple(f[from_f[axis]] if axis in from_f else 0 for axis in axes),
        g=tuple(g[from_g[axis]] if axis in from_g else 0 for axis in axes),
        summed=tuple(dimf[axis] for axis in contf),
        f_summed=tuple(f[axis] for axis in contf),
        g_summed=tuple(g[axis] for axis in contg),
    )


def _strides(shape: Ints) -> Ints:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _place(k: Any, shape: Ints, strides: Ints) -> Any:
    """Where entry k of a row-major array of this shape stands in one of these strides; k may be symbolic."""
    place: Any = 0
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if stride and size > 1:
            digit = k // math.prod(shape[axis + 1 :])
            place = place + (digit % size if math.prod(shape[:axis]) > 1 else digit) * stride
    return place


def _tensordot_at(
    m: Any, k: Any, f: Any, g: Any, dimf: Ints, dimg: Ints, contf: Ints, contg: Ints, permute: Ints = ()
) -> Any:
    at = _layout(dimf, dimg, contf, contg, permute)
    first_f, first_g = _place(k, at.shape, at.f), _place(k, at.shape, at.g)

    def term(c: Any) -> Any:
        return f[first_f + _place(c, at.summed, at.f_summed)] * g[first_g + _place(c, at.summed, at.g_summed)]

    return m.sum(math.prod(at.summed), term)


def _tensordot_dim(f: Node, g: Node, dimf: Ints, dimg: Ints, contf: Ints, contg: Ints, permute: Ints) -> int:
    word = "TensorDot(f, g, dimf, dimg, contf, contg, permute)"
    _check_shape(word, "f", f, dimf, 2)
    _check_shape(word, "g", g, dimg, 3)
    _check_axes(f"{word}: contf = {contf}", contf, len(dimf), 4)
    _check_axes(f"{word}: contg = {contg}", contg, len(dimg), 5)
    sizes = [[dims[axis] for axis in axes] for dims, axes in ((dimf, contf), (dimg, contg))]
    expect(
        sizes[0] == sizes[1],
        lambda: f"{word}: the axes to contract have sizes {sizes[0]} in f and {sizes[1]} in g, expected the same",
        5,
    )
    kept = len(dimf) + len(dimg) - 2 * len(contf)
    expect(
        sorted(permute or range(kept)) == list(range(kept)),
        lambda: f"{word}: permute = {permute}, expected the numbers 0 to {kept - 1} in some order",
        6,
    )
    return math.prod(_layout(dimf, dimg, contf, contg, permute).shape)


def _check_shape(word: str, name: str, node: Node, shape: Ints, place: int) -> None:
    found = f"dim{name} = {shape} has {math.prod(shape)} entries"
    fits = all(size > 0 for size in shape) and math.prod(shape) == node.dim
    expect(fits, lambda: f"{word}: {found}, expected {node.dim}, the dim of {name} = {node!r}", place)


def _check_axes(what: str, axes: Ints, count: int, place: int) -> None:
    distinct = len(set(axes)) == len(axes) and all(0 <= axis < count for axis in axes)
    expect(distinct, lambda: f"{what}, expected different axes, from 0 to {count - 1}", place)


def _tensordot_vjp(
    e: Node, f: Node, g: Node, dimf: Ints, dimg: Ints, contf: Ints, contg: Ints, permute: Ints
) -> Sequence[Node]:
    """Contractions of e with g, and of f with e, over the axes that the operand in question does not have."""
    shape = _layout(dimf, dimg, contf, contg, permute).shape
    of_f, of_g = _order(dimf, dimg, contf, contg, permute)
    kept_f, kept_g = _kept(dimf, contf), _kept(dimg, contg)
    to_f = _sorted_by(of_f, kept_f) + _sorted_by(contg, contf)
    to_g = _sorted_by(contf, contg) + _sorted_by(of_g, kept_g)
    return [
        TensorDot(e, g, shape, dimg, of_g, kept_g, to_f),
        TensorDot(f, e, dimf, shape, kept_f, of_f, to_g),
    ]


def _sorted_by(keys: Ints, values: Ints) -> Ints:
    """The values in the order of their keys: kept axes come in their own order, and go to these."""
    return tuple(value for _, value in sorted(zip(keys, values, strict=True)))


def _kron(f: Node, g: Node, dimf: Ints, dimg: Ints) -> Node:
    n = len(dimf)
    return TensorDot(f, g, dimf, dimg, (), (), (*range(0, 2 * n, 2), *range(1, 2 * n, 2)))


def _kron_dim(f: Node, g: Node, dimf: Ints, dimg: Ints) -> int:
    word = "Kron(f, g, dimf, dimg)"
    _check_shape(word, "f", f, dimf, 2)
    _check_shape(word, "g", g, dimg, 3)
    expect(len(dimf) == len(dimg), lambda: f"{word}: dimg = {dimg}, expected as many axes as dimf = {dimf} has", 3)
    return f.dim * g.dim


TensorDot: Operator = componentwise(
    "TensorDot",
    dim=_tensordot_dim,
    at=_tensordot_at,
    vjp=_tensordot_vjp,
    doc="Contraction of axes contf of f, of shape dimf, with contg of g; kept axis k is axis permute[k] of the result.",
    static=("dimf", "dimg", "contf", "contg", "permute"),
    example=((2, 3), (3, 2, 2), (1,), (0,), (2, 0, 1)),
    example_dims=(6, 12),
)
Kron: Operator = derived(
    "Kron",
    _kron,
    "Kronecker product of f, of shape dimf, with g, of shape dimg; np.kron.",
    dim=_kron_dim,
    static=("dimf", "dimg"),
    example=((2, 3), (1, 2)),
    example_dims=(6, 2),
)
