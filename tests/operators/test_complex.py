"""Complex operators: gradients against torch's complex autograd, real variables of odd dim, and dims."""

import pytest
import torch

from tests.operators.test_vector import numbers, on, parts, samples, value
from tritonkeops.formula.ir import IllTyped, words
from tritonkeops.operators.derivatives import Grad
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.simplify import simplify

w = words


def cauchy(z):
    """exp(z) conj(z) / (2 + |z|^2), in both languages."""
    return torch.exp(z) * z.conj() / (2 + z.abs() ** 2)


def spelt(z):
    return w["ComplexDivide"](
        w["ComplexMult"](w["ComplexExp"](z), w["Conj"](z)), w["Real2Complex"](2 + w["ComplexSquareAbs"](z))
    )


FORMULAS = {  # of a real x (dim 3), complex z (3 numbers) and s (one number), and a real scalar a
    "scale": (lambda x, z, s, a: w["ComplexMult"](s, z), lambda x, z, s, a: s * z),
    "of_real": (lambda x, z, s, a: w["ComplexMult"](w["Real2Complex"](x), z), lambda x, z, s, a: x * z),
    "of_imaginary": (
        lambda x, z, s, a: w["ComplexAdd"](w["Imag2Complex"](x * a), s),
        lambda x, z, s, a: 1j * x * a + s,
    ),
    "realscal": (lambda x, z, s, a: w["ComplexRealScal"](a, z), lambda x, z, s, a: a * z),
    "realscal_swapped": (lambda x, z, s, a: w["ComplexRealScal"](z, w["Elem"](x, 1)), lambda x, z, s, a: z * x[:, 1:2]),
    "wave": (
        lambda x, z, s, a: w["ComplexMult"](w["ComplexExp1j"](x * a), w["Conj"](z)),
        lambda x, z, s, a: torch.exp(1j * x * a) * z.conj(),
    ),
    "sum": (
        lambda x, z, s, a: w["ComplexSubtract"](w["ComplexSum"](w["ComplexMult"](z, w["Real2Complex"](x))), s),
        lambda x, z, s, a: (z * x).sum(1, keepdim=True) - s,
    ),
    "copies": (lambda x, z, s, a: w["ComplexMult"](w["ComplexSumT"](s, 6), z), lambda x, z, s, a: s * z),
    "divide": (lambda x, z, s, a: w["ComplexDivide"](z, s), lambda x, z, s, a: z / s),
    "divided": (lambda x, z, s, a: w["ComplexDivide"](s, z), lambda x, z, s, a: s / z),
    "rational": (lambda x, z, s, a: spelt(w["ComplexRealScal"](a, z)), lambda x, z, s, a: cauchy(a * z)),
    "modulus": (
        lambda x, z, s, a: w["Real2Complex"](w["ComplexAbs"](z) * w["ComplexAngle"](w["ComplexMult"](s, z))),
        lambda x, z, s, a: z.abs() * (s * z).angle() + 0j,
    ),
}  # fmt: skip


def as_torch(args):
    x, z, s, a = args
    return x, numbers(z), numbers(s), a


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients(name):
    """By each variable and, with the cotangent fixed, by each variable again."""
    formula, function = FORMULAS[name]
    args = [arg.requires_grad_() for arg in samples(3, 6, 2, 1)]
    x = on(3, 6, 2, 1)
    node = formula(*x)
    expected = parts(function(*as_torch(args)))
    detached = [arg.detach() for arg in args]
    torch.testing.assert_close(value(expand(node), detached), expected.detach())
    e = torch.cos(torch.arange(expected.numel(), dtype=torch.float64)).view_as(expected)
    *_, cotangent = on(3, 6, 2, 1, node.dim)
    first = torch.autograd.grad(expected, args, e, create_graph=True, allow_unused=True, materialize_grads=True)
    for var, wanted in zip(x, first, strict=True):
        once = simplify(expand(differentiate(Grad(node, var, cotangent))))
        torch.testing.assert_close(value(once, [*detached, e]).expand_as(wanted), wanted.detach())
        check_again(once, x, wanted, args, e)


def check_again(once, x, wanted, args, e):
    if not wanted.requires_grad:
        return
    second = torch.autograd.grad(
        wanted.square().sum(), args, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    for var, twice in zip(x, second, strict=True):
        found = simplify(expand(differentiate(Grad(w["SqNorm2"](once), var, w["IntCst"](1)))))
        torch.testing.assert_close(value(found, [*(arg.detach() for arg in args), e]).expand_as(twice), twice)


def test_gradient_of_a_sum_runs_on_c(program, run):
    """By a real variable of odd dim, which KeOps cannot do; rows of x, columns of z."""
    x, z = samples(3, 6)
    x, e = x.requires_grad_(), torch.ones(20, 6, dtype=torch.float64)
    formula = "Grad(ComplexMult(ComplexExp1j(x), ComplexRealScal(Sum(x), z)), x, e)"
    (found,) = run(program(formula, ["x = Vi(3)", "z = Vj(6)", "e = Vi(6)"]), [x.detach(), z, e])
    total = (torch.exp(1j * x[:, None]) * x.sum(1)[:, None, None] * numbers(z)).sum(1)
    (expected,) = torch.autograd.grad(parts(total), x, e)
    torch.testing.assert_close(found, expected)


def test_special_points(program, run):
    """The absolute value has derivative 0 at 0; one over zero is not a number, as without complex infinities."""
    z = torch.zeros(1, 2, dtype=torch.float64)
    (found,) = run(program("Concat(Grad(ComplexAbs(z), z, 1), ComplexAbs(z))", ["z = Vi(2)"]), [z])
    assert not found.any()
    (found,) = run(program("ComplexDivide(z + 1, z)", ["z = Vi(2)"]), [z])
    assert found.isnan().all()


@pytest.mark.parametrize(
    ("name", "dims", "static", "operand", "message"),
    [
        ("ComplexMult", (3, 4), (), 0, "f = x0 has dim 3, expected an even one"),
        ("ComplexMult", (4, 3), (), 1, "g = x1 has dim 3, expected an even one"),
        ("ComplexAdd", (4, 6), (), 1, "f = x0 has dim 4 and g = x1 dim 6; expected equal dims, or one of dim 2"),
        ("Conj", (1,), (), 0, "f = x0 has dim 1, expected an even one"),
        ("ComplexAbs", (5,), (), 0, "expected an even one"),
        ("ComplexSum", (5,), (), 0, "expected an even one"),
        ("ComplexRealScal", (2, 4), (), 1, "expected a scalar among them"),
        ("ComplexRealScal", (1, 3), (), 1, "g = x1 has dim 3, expected an even one"),
        ("ComplexRealScal", (3, 1), (), 0, "f = x0 has dim 3, expected an even one"),
        ("ComplexSumT", (4,), (6,), 0, "f = x0 has dim 4, expected 2, a single number"),
        ("ComplexSumT", (2,), (5,), 1, "n = 5, expected an even number"),
        ("Complex", (2, 3), (), None, "expected equal dims, or scalars"),
    ],
)
def test_wrong_dims(name, dims, static, operand, message):
    with pytest.raises(IllTyped, match=message) as caught:
        words[name](*on(*dims), *static)
    assert caught.value.operand == operand


def test_parts_cancel():
    """Products of products do no work between their factors: their parts are taken from what they were made of."""
    z, s = on(6, 2)
    product = simplify(expand(w["ComplexReal"](w["ComplexMult"](w["ComplexMult"](z, s), w["Conj"](z)))))
    assert "Complex(" not in repr(product)
