"""B-splines and dynamic time warping: the edges of their definitions, gradients by every operand, both precisions."""

import pytest
import torch

from tests.operators.test_vector import on, samples, soft_dtw, splines, value
from tritonkeops.formula.ir import IllTyped, words
from tritonkeops.operators.derivatives import Grad
from tritonkeops.operators.special import BSpline, SoftDTW_SqDist
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.simplify import simplify


def knots_and_points(rows=60):
    """Sorted knots, some of them repeated up to four times, and points on knots, between them and outside."""
    generator = torch.Generator().manual_seed(0)
    knots = torch.randint(0, 6, (rows, 8), generator=generator).double().sort(dim=1).values
    x = 7 * torch.rand(rows, 1, generator=generator, dtype=torch.float64) - 0.5
    x[::3] = knots[::3, 2:3]
    return knots, x


@pytest.mark.parametrize("order", range(5))
def test_splines_on_repeated_knots(order):
    knots, x = knots_and_points()
    found = value(expand(BSpline(*on(8, 1), order)), [knots, x])
    torch.testing.assert_close(found, splines(knots, x, order))


def test_splines_are_a_partition_of_unity():
    """Clamped knots: inside, the values sum to 1; at the last knot, which belongs to no interval, and outside to 0."""
    knots = torch.tensor([[0.0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3]], dtype=torch.float64)
    x = torch.tensor([[0.0], [0.3], [1], [2], [2.999], [3], [-0.1], [3.1]], dtype=torch.float64)
    found = value(BSpline(*on(11, 1), 3), [knots.expand(8, -1), x])
    torch.testing.assert_close(found.sum(1), torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0], dtype=torch.float64))
    assert (found >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_splines_run_on_c(dtype, program, run):
    """In the data's precision, with their derivatives by the point and by the knots."""
    knots, x = knots_and_points()
    knots = knots + torch.linspace(0, 0.7, 8, dtype=torch.float64)
    (found,) = run(program("BSpline(t, x, 3)", ["t = Vi(8)", "x = Vi(1)"]), [knots.to(dtype), x.to(dtype)])
    torch.testing.assert_close(found, splines(knots.to(dtype).double(), x.to(dtype).double(), 3).to(dtype))
    weights = torch.tensor([1.0, -2, 3, 0.5], dtype=torch.float64).expand(60, 4)
    step = 1e-6
    above, below = (splines(knots, x + h, 3) for h in (step, -step))
    slopes = ((above - below) / (2 * step) * weights).sum(1, keepdim=True)
    args = [each.to(dtype) for each in (knots, x, weights)]
    (found,) = run(program("Grad(BSpline(t, x, 3), x, w)", ["t = Vi(8)", "x = Vi(1)", "w = Vi(4)"]), args)
    torch.testing.assert_close(found.double(), slopes, rtol=1e-4, atol=1e-5)
    (found,) = run(program("Grad(BSpline(t, x, 3), t, w)", ["t = Vi(8)", "x = Vi(1)", "w = Vi(4)"]), args)
    units = step * torch.eye(8, dtype=torch.float64)
    moved = [((splines(knots + u, x, 3) - splines(knots - u, x, 3)) / (2 * step) * weights).sum(1) for u in units]
    torch.testing.assert_close(found.double(), torch.stack(moved, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by", [0, 1])
@pytest.mark.parametrize("order", [1, 3])
def test_derivatives_on_repeated_knots_are_finite(order, by):
    operands = on(8, 1)
    node = BSpline(*operands, order)
    e = on(8, 1, node.dim)[2]
    first = differentiate(Grad(node, operands[by], e))
    second = differentiate(Grad(words["SqNorm2"](first), operands[by], words["IntCst"](1)))
    values = [*knots_and_points(), torch.ones(60, node.dim, dtype=torch.float64)]
    for derivative in (first, second):
        assert value(simplify(expand(derivative)), values).isfinite().all()


@pytest.mark.parametrize(
    ("dims", "order", "operand", "message"),
    [
        ((8, 1), -1, 2, "order = -1, expected at least 0"),
        ((4, 1), 3, 0, "knots = x0 has dim 4, expected at least 5 knots for order 3"),
        ((8, 2), 1, 1, "x = x1 has dim 2, expected a scalar"),
    ],
)
def test_splines_that_do_not_fit(dims, order, operand, message):
    with pytest.raises(IllTyped, match=message) as caught:
        BSpline(*on(*dims), order)
    assert caught.value.operand == operand


# Dynamic time warping -------------------------------------------------------------------------------------------------


def test_sequences_that_differ_in_speed_alone():
    """Nearly without smoothing the cost is that of the best path, 0."""
    x = torch.tensor([[0.0, 1, 2]], dtype=torch.float64)
    y = torch.tensor([[0.0, 1, 1, 2]], dtype=torch.float64)
    gamma = torch.tensor([[0.01]], dtype=torch.float64)
    assert abs(value(SoftDTW_SqDist(*on(3, 4, 1)), [x, y, gamma]).item()) < 0.02


@pytest.mark.parametrize("dims", [(1, 1, 1), (1, 4, 1), (3, 1, 1), (4, 4, 1)])
def test_warping_is_a_sum_over_all_paths(dims):
    """Values and gradients by x, y and gamma, in rows and columns, in C and by torch."""
    x, y, gamma = samples(*dims)
    args = [arg.requires_grad_() for arg in (x, y, gamma.abs() + 0.1)]
    expected = soft_dtw(*args)
    detached = [arg.detach() for arg in args]
    operands = on(*dims)
    torch.testing.assert_close(value(SoftDTW_SqDist(*operands), detached), expected.detach())
    one = words["IntCst"](1)
    gradients = torch.autograd.grad(expected.sum(), args, create_graph=True, allow_unused=True, materialize_grads=True)
    for v, first in zip(operands, gradients, strict=True):
        once = simplify(expand(differentiate(Grad(SoftDTW_SqDist(*operands), v, one))))
        torch.testing.assert_close(value(once, detached).expand_as(first), first.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_warping_runs_on_c(dtype, program, run):
    """Every row of x against every row of y, the sum of it and its gradient by x; far beyond where Exp underflows."""
    x, y = samples(4, 3)
    x, gamma = (x * 30).requires_grad_(), torch.tensor([0.25], dtype=torch.float64)
    pairs = [soft_dtw(x, each.expand(20, -1), gamma.expand(20, 1)) for each in y[:7]]
    expected = torch.cat(pairs, 1).sum(1, keepdim=True)
    args = [each.detach().to(dtype) for each in (x, y[:7], gamma)]
    aliases = ["x = Vi(4)", "y = Vj(3)", "g = Pm(1)"]
    (found,) = run(program("SoftDTW_SqDist(x, y, g)", aliases), args)
    torch.testing.assert_close(found, expected.detach().to(dtype))
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    (found,) = run(program("Grad(SoftDTW_SqDist(x, y, g), x, 1)", aliases), args)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, gradient.to(dtype), rtol=tolerance, atol=tolerance)


def test_gamma_is_a_scalar():
    with pytest.raises(IllTyped, match="gamma = x2 has dim 2, expected a scalar") as caught:
        SoftDTW_SqDist(*on(3, 3, 2))
    assert caught.value.operand == 2
