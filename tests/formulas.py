"""Random well-typed formulas and random values for them: what the property tests draw from.

Arguments are kept inside each operator's domain (`Log(1 + Square(f))`, `f / (1 + Square(g))` ...), so that values and
derivatives are finite and of moderate size.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from tritonkeops.formula.evaluate import evaluate, finalize, fold, identity
from tritonkeops.formula.ir import Apply, Category, Const, Node, Operator, Reduction, ReductionOp, Var, postorder, words
from tritonkeops.passes.differentiate import expand

REGENERATE = bool(os.environ.get("TRITONKEOPS_REGENERATE"))
"""Whether tests write their goldens and fixtures anew instead of comparing: TRITONKEOPS_REGENERATE=1 pytest ..."""

Values = Mapping[Var, Tensor]


def word(name: str) -> Operator:
    found = words[name]
    assert isinstance(found, Operator)
    return found


def reduction(name: str) -> ReductionOp:
    found = words[f"{name}_Reduction"]
    assert isinstance(found, ReductionOp)
    return found


# Formulas -----------------------------------------------------------------------------------------------------------

SMOOTH = {
    "Add": 2, "Subtract": 2, "Mult": 2, "Minus": 1, "Square": 1, "Tanh": 1, "Sigmoid": 1, "Sin": 1, "Cos": 1, "Atan": 1,
    "Softplus": 1, "Erf": 1,
}  # fmt: skip
PIECEWISE = {
    "Abs": 1, "Sign": 1, "Step": 1, "ReLU": 1, "Floor": 1, "IfElse": 3, "Maximum": 2, "Minimum": 2, "Clamp": 3,
    "LessThan": 2, "LessOrEqual": 2, "Equal": 2, "NotEqual": 2, "And": 2, "Not": 1,
}  # fmt: skip
CONSTANTS = (0, 1, -1, 2, 3, 0.5, 0.1, -0.25)


def _guarded(f: Node) -> list[Node]:
    """Unary operators of restricted domain or large range, on an argument that suits them."""
    w, positive = word, 1 + word("Square")(f)
    return [
        w("Exp")(w("Tanh")(f)), w("Exp")(-w("Square")(f)), w("Log")(positive), w("Sqrt")(positive),
        w("Rsqrt")(positive), w("Inv")(positive), w("XLogX")(positive), w("Log1p")(w("Square")(f)),
        w("Expm1")(w("Tanh")(f)), w("Asin")(w("Tanh")(f) / 2), w("Acos")(w("Tanh")(f) / 2), w("Pow")(f, 3),
        w("Pow")(positive, -2), w("SinXDivX")(positive),
    ]  # fmt: skip


@st.composite
def formulas(
    draw: st.DrawFn, pool: Sequence[Var], dim: int, depth: int = 3, smooth: bool = False, grad: bool = True
) -> Node:
    """A formula of `dim` components over the variables of `pool`; `smooth` leaves out what has kinks or steps."""

    def sub(n: int, less: int = 1) -> Node:
        return draw(formulas(pool, n, depth - less, smooth, grad))

    leaves = [v for v in pool if v.dim == dim]
    if depth <= 0 or (leaves and draw(st.integers(0, 5)) == 0):
        choices: list[Node] = [*leaves] or [word("SumT")(v, dim) for v in pool if v.dim == 1]
        choices += [Const(draw(st.sampled_from(CONSTANTS)), dim)] if not choices or draw(st.integers(0, 3)) == 0 else []
        return draw(st.sampled_from(choices))
    kinds = ["elementwise", "elementwise", "guarded", "power", "vector"] + (["grad"] if grad else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "guarded":
        return draw(st.sampled_from(_guarded(sub(dim))))
    if kind == "power":
        return draw(_powers(sub(dim), sub(draw(st.sampled_from([1, dim])))))
    if kind == "grad":
        F, v = sub(draw(st.sampled_from([1, 2])), 2), draw(st.sampled_from(pool))
        e = sub(F.dim, 3)
        return _fit(word("Grad")(F, v, e), dim)
    if kind == "vector" and (node := draw(_vectors(sub, dim))) is not None:
        return node
    name, arity = draw(st.sampled_from(sorted((SMOOTH if smooth else SMOOTH | PIECEWISE).items())))
    wide = draw(st.integers(0, arity - 1))
    return word(name)(*(sub(dim if n == wide else draw(st.sampled_from([1, dim]))) for n in range(arity)))


@st.composite
def _powers(draw: st.DrawFn, f: Node, g: Node) -> Node:
    tanh, square = word("Tanh"), word("Square")
    return draw(st.sampled_from([
        f / (1 + square(g)), word("Powf")(1 + square(f), tanh(g)), word("Atan2")(1 + square(f), g),
        f * word("Exp")(tanh(g)), tanh(g) ** Const(2) * f,
    ]))  # fmt: skip


@st.composite
def _vectors(draw: st.DrawFn, sub, dim: int) -> Node | None:  # type: ignore[no-untyped-def]
    """Operators that mix components, with a result of `dim`."""
    w, n = word, draw(st.integers(2, 3))
    several = {
        "Elem": lambda: w("Extract")(sub(dim + 1), 1, dim),
        "ElemT": lambda: w("ElemT")(sub(1), dim, draw(st.integers(0, dim - 1))),
        "ExtractT": lambda: w("ExtractT")(sub(dim - 1), 1, dim) if dim > 1 else None,
        "Concat": lambda: w("Concat")(sub(1), sub(dim - 1)) if dim > 1 else None,
        "SumT": lambda: w("SumT")(sub(1), dim),
        "MatVecMult": lambda: w("MatVecMult")(sub(2 * dim), sub(2)),
        "VecMatMult": lambda: w("VecMatMult")(sub(2), sub(2 * dim)),
        "TensorProd": lambda: w("TensorProd")(sub(dim // 2), sub(2)) if dim % 2 == 0 else None,
        "Normalize": lambda: w("Normalize")(1 + w("Square")(sub(dim))),
    }
    scalar = {
        "Sum": lambda: w("Sum")(sub(n)),
        "Elem": lambda: w("Elem")(sub(n), draw(st.integers(0, n - 1))),
        "Scalprod": lambda: w("Scalprod")(sub(n), sub(n)),
        "SqNorm2": lambda: w("SqNorm2")(sub(n)),
        "SqDist": lambda: w("SqDist")(sub(n), sub(n)),
        "Norm2": lambda: w("Norm2")(1 + w("Square")(sub(n))),
        "WeightedSqNorm": lambda: w("WeightedSqNorm")(sub(draw(st.sampled_from([1, n, n * n]))), sub(n)),
    }
    table = scalar if dim == 1 else several
    return table[draw(st.sampled_from(sorted(table)))]()


def _fit(node: Node, dim: int) -> Node:
    """The node with its components summed and copied, so that it has `dim`."""
    if node.dim == dim:
        return node
    scalar = word("Sum")(node) if node.dim > 1 else node
    return scalar if dim == 1 else word("SumT")(scalar, dim)


@st.composite
def pools(draw: st.DrawFn, dims: Sequence[int] = (1, 2, 3, 4)) -> list[Var]:
    """Two to four variables, usually some along i and some along j."""
    count = draw(st.integers(2, 4))
    categories = [draw(st.sampled_from(list(Category))) for _ in range(count)]
    if draw(st.integers(0, 7)):
        categories[:2] = [Category.I, Category.J]
    return [Var(n, draw(st.sampled_from(dims)), category, f"v{n}") for n, category in enumerate(categories)]


ALL_REDUCTIONS = (
    "Sum", "LogSumExp", "SumSoftMaxWeight", "LogSumExpWeight", "Max_SumShiftExp", "Min", "Max", "ArgMin", "ArgMax",
    "Min_ArgMin", "KMin", "ArgKMin", "KMax_ArgKMax",
)  # fmt: skip


@st.composite
def reductions(draw: st.DrawFn, dims: Sequence[int] = (1, 2, 3, 4), depth: int = 3) -> tuple[Reduction, list[Var]]:
    """A reduction of a random formula, and the variables of the call, used or not."""
    pool = draw(pools(dims))
    op = reduction(draw(st.sampled_from(("Sum", "Sum", "Sum", *ALL_REDUCTIONS))))
    args = [draw(formulas(pool, draw(st.sampled_from(dims)), depth))]
    if op.formulas[0] == 2:
        args.append(draw(formulas(pool, draw(st.sampled_from((1, args[0].dim))), depth - 1)))
    if op.name == "LogSumExpWeight":
        args[1] = word("Square")(args[1]) + 1
    if "Exp" in op.name or "Soft" in op.name:
        args[0] = word("Tanh")(args[0]) * 3
    return Reduction(op, args, draw(st.integers(0, 1)), draw(st.sampled_from((1, 2, 3, 12))) if op.takes_k else 0), pool


# Values -------------------------------------------------------------------------------------------------------------


def values_for(
    pool: Sequence[Var], M: int = 5, N: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[Var, Tensor]:
    """Random values as the evaluator takes them, (dim, M or 1, N or 1); the same for the same arguments."""
    found = {}
    for var in pool:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{var.position} {seed}".encode()))
        shape = (var.dim, M if "i" in var.axes else 1, N if "j" in var.axes else 1)
        found[var] = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return found


def arguments(pool: Sequence[Var], values: Values) -> list[Tensor]:
    """The same values as a call takes them: (M, dim), (N, dim) or (dim)."""
    return [values[v].reshape(v.dim, -1).T.contiguous() if v.axes else values[v].reshape(v.dim) for v in pool]


def dense(node: Node, values: Values) -> Tensor:
    """A formula without gradients, evaluated in float64: (dim, M or 1, N or 1)."""
    like = torch.empty((0, 1, 1), dtype=torch.float64)
    return evaluate(node, values, like)


def reduce_dense(
    node: Reduction, terms: Sequence[Tensor], M: int, N: int, values: Values | None = None
) -> list[Tensor]:
    """The outputs of a reduction of dense terms (dim, M or 1, N or 1): (dim, rows). `values` are for its result."""
    like = torch.empty((0, 1, 1), dtype=torch.float64)
    full, kept = [term.expand(-1, M, N) for term in terms], values or {}
    if node.axis == 0:
        full, kept = [term.mT for term in full], {v: value.mT for v, value in kept.items()}
    rows, cols = full[0].shape[1:]
    state = fold(node, identity(node, (rows, 1), like), full, 0, like)
    return [out.expand(-1, rows, 1)[..., 0] for out in finalize(node, state, cols, like, kept)]


def dense_outputs(node: Reduction, values: Values, M: int, N: int) -> list[Tensor]:
    """The outputs of a reduction without gradients at these values: (dim, rows)."""
    return reduce_dense(node, [dense(arg, values) for arg in node.args], M, N, values)


def noisy(root: Node, values: Values, level: float, seed: int) -> Tensor:
    """A formula evaluated in float64 with a relative error of about `level` made at every operation.

    What comes of it, divided by `level`, is the condition of the formula at these values.
    """
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty((0, 1, 1), dtype=torch.float64)
    done: dict[Node, Tensor] = {}
    for node in postorder([expand(root)]):
        if isinstance(node, Apply):
            value = _one(node, [done[arg] for arg in node.args], like)
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            done[node] = value * (1 + level * noise)
        else:
            done[node] = dense(node, values)
    return done[expand(root)]


def _one(node: Apply, args: Sequence[Tensor], like: Tensor) -> Tensor:
    """One operator on values."""
    operands = [Var(-1 - n, arg.dim, Category.P, f"_{n}") for n, arg in enumerate(node.args)]
    return evaluate(Apply(node.op, operands, node.static), dict(zip(operands, args, strict=True)), like)
