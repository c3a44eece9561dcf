"""Tensor products against numpy's and torch's: orders of the result's axes, gradients, shapes that do not fit."""

import itertools

import numpy as np
import pytest
import torch

from tests.operators.test_vector import kron, on, samples, tensordot, value
from tritonkeops.formula.ir import IllTyped, words
from tritonkeops.operators.derivatives import Grad
from tritonkeops.operators.tensor import Kron, TensorDot
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.simplify import simplify

CASES = [  # dimf, dimg, contf, contg
    ((2, 3), (3, 4), (1,), (0,)),
    ((2, 3, 4), (4, 2, 5), (2, 0), (0, 1)),
    ((2, 3, 4), (4, 2), (0, 2), (1, 0)),
    ((4,), (4,), (0,), (0,)),
    ((2, 2), (2, 2), (0, 1), (1, 0)),
    ((2, 3), (2,), (), ()),
    ((1, 3, 1), (3, 1, 2), (1, 2), (0, 1)),
    ((2, 3, 2, 2), (2, 2, 3), (1, 3), (2, 1)),
]


def permuted(case):
    """The case with orders of the result's axes: none given, and up to eight of them."""
    dimf, dimg, contf, _ = case
    kept = len(dimf) + len(dimg) - 2 * len(contf)
    orders = list(itertools.permutations(range(kept)))
    return [(*case, order) for order in dict.fromkeys([(), *orders[:: max(1, len(orders) // 8)]])]


PERMUTED = [each for case in CASES for each in permuted(case)]


def sizes(static):
    return int(np.prod(static[0])), int(np.prod(static[1]))


def batched(f, g, dimf, dimg, contf, contg, permute):
    """The same by einsum, which torch differentiates."""
    letters_f = "abcdefgh"[: len(dimf)]
    letters_g = list("ijklmnop"[: len(dimg)])
    for axis_f, axis_g in zip(contf, contg, strict=True):
        letters_g[axis_g] = letters_f[axis_f]
    kept = [c for n, c in enumerate(letters_f) if n not in contf]
    kept += [c for n, c in enumerate(letters_g) if n not in contg]
    order = sorted(range(len(kept)), key=lambda n: (permute or range(len(kept)))[n])
    equation = f"z{letters_f},z{''.join(letters_g)}->z{''.join(kept[n] for n in order)}"
    return torch.einsum(equation, f.reshape(-1, *dimf), g.reshape(-1, *dimg)).reshape(len(f), -1)


@pytest.mark.parametrize("static", PERMUTED, ids=str)
def test_tensordot(static):
    args = samples(*sizes(static))
    found = value(TensorDot(*on(*sizes(static)), *static), args)
    wanted = (*static[:4], static[4] or range(len(static[0]) + len(static[1]) - 2 * len(static[2])))
    torch.testing.assert_close(found, tensordot(*args, *wanted))
    torch.testing.assert_close(found, batched(*args, *static))


@pytest.mark.parametrize("static", PERMUTED, ids=str)
def test_gradients_of_tensordot(static):
    """By f and g, and by both again through the squared gradient."""
    args = [arg.requires_grad_() for arg in samples(*sizes(static))]
    f, g = on(*sizes(static))
    node = TensorDot(f, g, *static)
    *_, e = on(*sizes(static), node.dim)
    expected = batched(*args, *static)
    cotangent = torch.sin(torch.arange(expected.numel(), dtype=torch.float64)).view_as(expected)
    values = [*(arg.detach() for arg in args), cotangent]
    for v, first in zip((f, g), torch.autograd.grad(expected, args, cotangent, create_graph=True), strict=True):
        once = differentiate(Grad(node, v, e))
        torch.testing.assert_close(value(once, values), first.detach())
        seconds = torch.autograd.grad(
            first.square().sum(), args, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for u, second in zip((f, g), seconds, strict=True):
            twice = simplify(expand(differentiate(Grad(words["SqNorm2"](once), u, words["IntCst"](1)))))
            torch.testing.assert_close(value(twice, values).expand_as(second), second)


@pytest.mark.parametrize(("dimf", "dimg"), [((3,), (4,)), ((2, 3), (3, 2)), ((2, 1, 3), (1, 2, 2))])
def test_kron(dimf, dimg):
    args = samples(*sizes((dimf, dimg)))
    node = Kron(*on(*sizes((dimf, dimg))), dimf, dimg)
    torch.testing.assert_close(value(node, args), kron(*args, dimf, dimg))
    assert node.dim == args[0].shape[1] * args[1].shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_formulas_with_lists_run_on_c(dtype, program, run):
    """Lists and tuples, the last one left out, and gradients; f in rows, g in columns."""
    f, g, e = (arg.to(dtype) for arg in samples(6, 12, 8))
    aliases = ["f = Vi(6)", "g = Vj(12)", "e = Vi(8)"]
    text = "TensorDot(f, g, [2, 3], (3, 2, 2), [1], (0,){})"
    total = [g.sum(0, keepdim=True).expand_as(g)]
    (found,) = run(program(text.format(""), aliases), [f, g, e])
    torch.testing.assert_close(found, batched(f, *total, (2, 3), (3, 2, 2), (1,), (0,), ()))
    f = f.requires_grad_()
    (expected,) = torch.autograd.grad(batched(f, *total, (2, 3), (3, 2, 2), (1,), (0,), (2, 0, 1)), f, e)
    (found,) = run(program(f"Grad({text.format(', (2, 0, 1)')}, f, e)", aliases), [f.detach(), g, e])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("static", "operand", "message"),
    [
        (((2, 2), (3, 4), (1,), (0,)), 2, r"dimf = \(2, 2\) has 4 entries, expected 6, the dim of f = x0"),
        (((2, 3), (3, 5), (1,), (0,)), 3, r"dimg = \(3, 5\) has 15 entries, expected 12, the dim of g = x1"),
        (((-2, -3), (3, 4), (1,), (0,)), 2, "dimf"),
        (((2, 3), (3, 4), (2,), (0,)), 4, r"contf = \(2,\), expected different axes, from 0 to 1"),
        (((2, 3), (3, 4), (1,), (-1,)), 5, r"contg = \(-1,\), expected different axes, from 0 to 1"),
        (((2, 3), (3, 4), (1, 1), (0, 0)), 4, "expected different axes"),
        (((2, 3), (3, 4), (0,), (0,)), 5, r"have sizes \[2\] in f and \[3\] in g, expected the same"),
        (((2, 3), (3, 4), (1,), ()), 5, "expected the same"),
        (((2, 3), (3, 4), (1,), (0,), (0, 0)), 6, r"permute = \(0, 0\), expected the numbers 0 to 1 in some order"),
        (((2, 3), (3, 4), (1,), (0,), (0, 1, 2)), 6, "expected the numbers 0 to 1"),
        ((6, (3, 4), (1,), (0,)), 2, "'dimf' must be a list of integers"),
    ],
)
def test_shapes_that_do_not_fit(static, operand, message):
    with pytest.raises(IllTyped, match=message) as caught:
        TensorDot(*on(6, 12), *static)
    assert caught.value.operand == operand


def test_kron_takes_as_many_axes_of_both():
    with pytest.raises(IllTyped, match="expected as many axes") as caught:
        Kron(*on(6, 12), (2, 3), (12,))
    assert caught.value.operand == 3
    with pytest.raises(IllTyped, match=r"Kron\(f, g, dimf, dimg\): dimf = \(2, 2\) has 4 entries"):
        Kron(*on(6, 12), (2, 2), (3, 4))
