"""Operators that mix components: against torch on small vectors, dims that must not pass, and conventions."""

import numpy as np
import pytest
import torch

from tritonkeops.formula.evaluate import evaluate
from tritonkeops.formula.ir import Apply, Const, IllTyped, Operator, Var, words
from tritonkeops.operators.derivatives import STRUCTURAL
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.simplify import simplify

OPERATORS = {
    name: op for name, op in words.items() if isinstance(op, Operator) and not op.scalar and op not in STRUCTURAL
}  # fmt: skip


def total(x):
    return x.sum(-1, keepdim=True)


def matrix(A, rows=None, columns=None):
    return A.reshape(len(A), rows or -1, columns or -1)


def constant(value, n=1):
    return lambda *static: torch.full((1, n), value, dtype=torch.float64)


def position(best):
    return lambda f: best(f, -1, keepdim=True).double()


def tensordot(f, g, dimf, dimg, contf, contg, permute):
    """numpy's, of which axis k becomes axis permute[k]."""
    of_f, of_g = (x.numpy().reshape(-1, *dims) for x, dims in ((f, dimf), (g, dimg)))
    rows = [np.tensordot(a, b, (contf, contg)).transpose(np.argsort(permute)) for a, b in zip(of_f, of_g, strict=True)]
    return torch.from_numpy(np.stack(rows)).reshape(len(f), -1)


def kron(f, g, dimf, dimg):
    pairs = zip(f.numpy().reshape(-1, *dimf), g.numpy().reshape(-1, *dimg), strict=True)
    return torch.from_numpy(np.stack([np.kron(a, b) for a, b in pairs])).flatten(1)


def splines(knots, x, order):
    """The recursion as books have it, number by number."""

    def value(t, at, k, degree):
        if degree == 0:
            return float(t[k] <= at < t[k + 1])
        up, down = t[k + degree] - t[k], t[k + degree + 1] - t[k + 1]
        rising = (at - t[k]) / up * value(t, at, k, degree - 1) if up else 0
        return rising + ((t[k + degree + 1] - at) / down * value(t, at, k + 1, degree - 1) if down else 0)

    count = knots.shape[1] - order - 1
    rows = zip(knots.tolist(), x[:, 0].tolist(), strict=True)
    return torch.tensor([[value(t, at, k, order) for k in range(count)] for t, at in rows], dtype=torch.float64)


def soft_dtw(x, y, gamma):
    """The log of a sum over all warping paths."""
    costs = ((x[:, :, None] - y[:, None, :]) ** 2).movedim(0, -1)

    def paths(i, j):
        if (i, j) == (0, 0):
            return [costs[0, 0]]
        before = [(a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
        return [cost + costs[i, j] for place in before for cost in paths(*place)]

    totals = torch.stack(paths(x.shape[1] - 1, y.shape[1] - 1))
    return -gamma * torch.logsumexp(-totals / gamma.T, 0)[:, None]


def numbers(f):
    return torch.view_as_complex(f.reshape(len(f), -1, 2))


def parts(z):
    return torch.view_as_real(z).flatten(1)


def on_numbers(function):
    return lambda *args: parts(function(*map(numbers, args)))


COMPLEX = {
    "Complex": lambda f, g: parts(torch.complex(f, g)),
    "ComplexReal": lambda f: numbers(f).real, "ComplexImag": lambda f: numbers(f).imag,
    "Real2Complex": lambda f: parts(f + 0j), "Imag2Complex": lambda f: parts(1j * f),
    "Conj": on_numbers(lambda z: z.conj().resolve_conj()),
    "ComplexAdd": on_numbers(lambda z, w: z + w), "ComplexSubtract": on_numbers(lambda z, w: z - w),
    "ComplexMult": on_numbers(lambda z, w: z * w), "ComplexDivide": on_numbers(lambda z, w: z / w),
    "ComplexRealScal": lambda f, g: f * g, "ComplexExp": on_numbers(torch.exp),
    "ComplexExp1j": lambda f: parts(torch.exp(1j * f)), "ComplexAbs": lambda f: numbers(f).abs(),
    "ComplexSquareAbs": lambda f: numbers(f).abs() ** 2, "ComplexAngle": lambda f: numbers(f).angle(),
    "ComplexSum": on_numbers(lambda z: z.sum(1, keepdim=True)),
    "ComplexSumT": lambda f, n: f.repeat(1, n // 2),
}  # fmt: skip
EXPECTED = COMPLEX | {  # on (rows, dim)
    "Sum": total, "SumT": lambda f, n: f.repeat(1, n), "IntCst": constant(2.0), "IntInv": constant(1 / 3),
    "RatCst": constant(2 / 3), "Zero": constant(0.0, 3), "Elem": lambda f, m: f[:, m : m + 1],
    "ElemT": lambda f, n, m: f * torch.eye(n)[m], "Extract": lambda f, start, d: f[:, start : start + d],
    "ExtractT": lambda f, start, n: torch.nn.functional.pad(f, (start, n - start - f.shape[1])),
    "Concat": lambda f, g: torch.cat([f, g], 1),
    "OneHot": lambda f, n: (torch.floor(f + 0.5) == torch.arange(n)).double(),
    "Max": lambda f: f.amax(-1, keepdim=True), "Min": lambda f: f.amin(-1, keepdim=True),
    "ArgMax": position(torch.argmax), "ArgMin": position(torch.argmin),
    "MatVecMult": lambda A, b: torch.einsum("rnp,rp->rn", matrix(A, columns=b.shape[1]), b),
    "VecMatMult": lambda b, A: torch.einsum("rn,rnp->rp", b, matrix(A, rows=b.shape[1])),
    "TensorProd": lambda f, g: (f[:, :, None] * g[:, None, :]).flatten(1), "Scalprod": lambda f, g: total(f * g),
    "SqNorm2": lambda f: total(f**2), "Norm2": lambda f: torch.linalg.vector_norm(f, dim=-1, keepdim=True),
    "Normalize": lambda f: torch.nn.functional.normalize(f, dim=-1), "SqDist": lambda f, g: total((f - g) ** 2),
    "SqNormIso": lambda s, f: s * total(f**2), "SqNormDiag": lambda s, f: total(s * f**2),
    "SymSqNorm": lambda S, f: total(f * torch.einsum("rnp,rp->rn", matrix(S, f.shape[1]), f)),
    "Factorize": lambda F, g: F, "AutoFactorize": lambda F: F, "TensorDot": tensordot, "Kron": kron,
    "BSpline": splines, "SoftDTW_SqDist": soft_dtw,
    "WeightedSqNorm": lambda s, f: total(s * f**2), "WeightedSqDist": lambda s, f, g: total(s * (f - g) ** 2),
}  # fmt: skip


def test_expected_values_cover_the_registry():
    assert set(EXPECTED) == set(OPERATORS)


def value(node, args):
    """(rows, dim) of a node over variables numbered like args, each (rows, dim)."""
    known = {Var(n, x.shape[1], 0, f"x{n}"): x.T[:, :, None] for n, x in enumerate(args)}
    return evaluate(node, known, torch.zeros(0, 1, 1, dtype=torch.float64))[:, :, 0].T


def on(*dims):
    return [Var(n, dim, 0, f"x{n}") for n, dim in enumerate(dims)]


def samples(*dims):
    generator = torch.Generator().manual_seed(1)
    return [4 * torch.rand(20, dim, generator=generator, dtype=torch.float64) - 2 for dim in dims]


@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
def test_meaning(op):
    dims = op.example_dims or (3,) * len(op.operands)
    args = samples(*dims)
    found = value(Apply(op, on(*dims), op.example), args)
    torch.testing.assert_close(found, EXPECTED[op.name](*args, *op.example), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("dims", "form"), [((1, 3), "SqNormIso"), ((3, 3), "SqNormDiag"), ((9, 3), "SymSqNorm"), ((1, 1), "SqNormIso")]
)
def test_weighted_norms_choose_by_dim(dims, form):
    args = samples(*dims)
    s, f = on(*dims)
    torch.testing.assert_close(value(words["WeightedSqNorm"](s, f), args), EXPECTED[form](*args))
    shifted = words["WeightedSqDist"](s, f, Const(1))
    torch.testing.assert_close(value(shifted, args), EXPECTED[form](args[0], args[1] - 1))


def test_scalars_broadcast_in_distances_and_products():
    args = samples(1, 3)
    torch.testing.assert_close(value(words["SqDist"](*on(1, 3)), args), total((args[0] - args[1]) ** 2))
    torch.testing.assert_close(value(words["Scalprod"](*on(1, 3)), args), args[0] * total(args[1]))


@pytest.mark.parametrize(
    ("name", "dims", "static", "message"),
    [
        ("SumT", (2,), (3,), "dim 2, expected a scalar"),
        ("SumT", (1,), (0,), "at least 1"),
        ("Elem", (3,), (3,), "0 <= m < 3"),
        ("Elem", (3,), (-1,), "0 <= m < 3"),
        ("ElemT", (2,), (3, 1), "expected a scalar"),
        ("ElemT", (1,), (3, 3), "0 <= m < n = 3"),
        ("ElemT", (1,), (3, -1), "0 <= m < n = 3"),
        ("Extract", (4,), (2, 3), "components 2 to 4"),
        ("Extract", (4,), (-1, 2), "components -1 to 0"),
        ("Extract", (4,), (1, 0), "some of the 4"),
        ("ExtractT", (2,), (4, 5), "components 4 to 5"),
        ("ExtractT", (2,), (-1, 5), "components -1 to 0"),
        ("OneHot", (2,), (3,), "expected a scalar"),
        ("OneHot", (1,), (0,), "at least 1"),
        ("Zero", (), (0,), "at least 1"),
        ("IntInv", (), (0,), "division by zero"),
        ("RatCst", (), (1, 0), "division by zero"),
        ("MatVecMult", (7, 3), (), "multiple of 3"),
        ("VecMatMult", (3, 7), (), "multiple of 3"),
        ("SymSqNorm", (8, 3), (), "expected 9"),
        ("WeightedSqNorm", (4, 3), (), "expected 1, 3 or 9"),
        ("WeightedSqDist", (4, 3, 3), (), "expected 1, 3 or 9"),
        ("SqDist", (2, 3), (), "dim 2"),
        ("Scalprod", (2, 3), (), "dim 2"),
        ("Grad", (2, 3, 3), (), "expected 2, the dim of F"),
        ("Diff", (2, 3, 2), (), "expected 3, the dim of v"),
        ("Divergence", (2, 3), (), "expected 3, the dim of v"),
        ("Laplacian", (2, 3), (), "expected a scalar"),
        ("TraceOperator", (2, 3), (), "expected 1 or 3, the dim of v"),
        ("TraceOperator", (3, 3, 2), (), "w = x2 has dim 2, expected 1 or 3"),
        ("AdjointOperator", (2, 3, 3), (), "expected 2, the dim of L"),
        ("SumLinOperator", (2, 3, 3), (), "wl = x2 has dim 3, expected 1 or 2"),
        ("SumLinOperator", (2, 3, 2, 2), (), "wr = x3 has dim 2, expected 1 or 3"),
    ],
)
def test_wrong_dims(name, dims, static, message):
    with pytest.raises(IllTyped, match=message):
        words[name](*on(*dims), *static)


def test_matrices_are_row_major():
    A = torch.tensor([[1.0, 2, 3, 4, 5, 6]], dtype=torch.float64)
    b3, b2 = torch.tensor([[1.0, 10, 100]], dtype=torch.float64), torch.tensor([[1.0, 10]], dtype=torch.float64)
    assert value(words["MatVecMult"](*on(6, 3)), [A, b3]).tolist() == [[321, 654]]
    assert value(words["VecMatMult"](*on(2, 6)), [b2, A]).tolist() == [[41, 52, 63]]
    S, f = torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64), torch.tensor([[10.0, 1]], dtype=torch.float64)
    assert value(words["SymSqNorm"](*on(4, 2)), [S, f]).item() == 154


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.float64), ("c", torch.float32)], ids=("torch", "c"))
def test_conventions(backend, dtype, program, run):
    """Zero vectors, ties, NaN among components, one-hot vectors outside: one formula for all."""
    nan = torch.nan
    x = torch.tensor([[0, 0, 0], [1, 2, 2], [nan, 1, 0], [1, nan, 2], [3, 3, -7]], dtype=dtype)
    parts = {
        "Norm2(x)": [0, 3, nan, nan, 67**0.5],
        "Elem(Normalize(x), 2)": [0, 2 / 3, nan, nan, -7 / 67**0.5],
        "Max(x)": [0, 2, nan, 2, 3],
        "Min(x)": [0, 1, nan, 1, -7],
        "ArgMax(x)": [0, 1, 0, 2, 0],
        "ArgMin(x)": [0, 0, 0, 0, 2],
        "Sum(OneHot(Elem(x, 0) - 0.75, 3))": [0, 1, 0, 1, 1],
        "Elem(OneHot(Elem(x, 0) * 0.5, 2), 1)": [0, 1, 0, 1, 0],
        "Sum(OneHot(Elem(x, 2), 2))": [1, 0, 1, 0, 0],
        "Elem(Grad(Norm2(x), x, 1), 1)": [0, 2 / 3, nan, nan, 3 / 67**0.5],
        "Sum(Grad(Normalize(x), x, x))": [0, 0, nan, nan, 0],
        "Elem(Grad(Max(x), x, 5), 1)": [0, 5, 0, 0, 0],
        "Elem(Grad(Max(x), x, 5), 2)": [0, 0, 0, 5, 0],
        "Elem(Grad(Min(x), x, 5), 0)": [5, 5, 5, 5, 0],
        "Sum(Grad(ArgMax(x), x, 5))": [0, 0, 0, 0, 0],
    }
    text = ""
    for part in parts:
        text = f"Concat({text}, {part})" if text else part
    (found,) = run(program(text, ["x = Vi(3)"]), [x], backend)
    for name, got, wanted in zip(parts, found.T, parts.values(), strict=True):
        wanted = torch.tensor(wanted, dtype=dtype)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def jacobian_of(node, args):
    return value(simplify(expand(simplify(differentiate(node)))), args)


def test_grad_matrix_is_the_row_major_jacobian():
    A, v = on(6, 3)
    args = samples(6, 3)
    product = words["MatVecMult"](A, v)
    torch.testing.assert_close(jacobian_of(words["GradMatrix"](product, v), args), args[0])
    nonlinear = words["Exp"](product) * words["Elem"](v, 0)
    found = jacobian_of(words["GradMatrix"](nonlinear, v), args)
    for row in range(3):

        def f(x, row=row):
            return torch.exp(args[0][row].view(2, 3) @ x) * x[0]

        expected = torch.autograd.functional.jacobian(f, args[1][row])
        torch.testing.assert_close(found[row], expected.flatten())


def test_grad_matrix_runs_on_c(program, run):
    args = samples(6, 3)
    (found,) = run(program("GradMatrix(MatVecMult(A, Sin(v)), v)", ["A = Vi(6)", "v = Vi(3)"]), args)
    torch.testing.assert_close(found, (args[0].view(-1, 2, 3) * args[1].cos()[:, None]).flatten(1))
