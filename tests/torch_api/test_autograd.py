"""Gradients by autograd: values, what is saved, memory, dtypes; and the faults of PyKeOps that must not be here.

The oracle is the formula on dense float64 tensors, differentiated by PyTorch. Transforms are in test_transforms.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonkeops.formula.evaluate import evaluate
from tritonkeops.formula.ir import Reduction, Var
from tritonkeops.runtime.reducer import Reducer, Where
from tritonkeops.torch import Genred

ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)", "c = Vi(1)", "p = Pm(2)"]
SHAPES = {"x": ("i", 3), "y": ("j", 3), "b": ("j", 2), "c": ("i", 1), "p": ("", 2)}
LENGTHS = {"i": 6, "j": 7}
KERNEL = "Exp(-SqDist(x,y)*Square(Elem(p,1)))"


def arguments(batches: dict[str, tuple[int, ...]] | None = None, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    found = []
    for name, (axis, dim) in SHAPES.items():
        shape = (*(batches or {}).get(name, ()), *([LENGTHS[axis]] if axis else []), dim)
        found.append((torch.randn(shape, dtype=torch.float64) / 2 + 0.1).to(dtype).requires_grad_())
    return found


def dense(genred: Genred) -> Callable[..., Tensor]:
    """The same reduction of dense tensors."""
    program = genred._call.program
    node = program.derived

    def of(*args: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(
            *(x.shape[: -2 if v.axes else -1] for v, x in zip(program.variables, args, strict=True))
        )
        values: dict[Var, Tensor] = {}
        for v, x in zip(program.variables, args, strict=True):
            own = x.reshape((1,) * (len(batch) + (2 if v.axes else 1) - x.ndim) + x.shape).movedim(-1, 0)
            values[v] = {"i": own[..., None], "j": own[..., None, :], "": own[..., None, None]}["".join(v.axes)]
        like = torch.empty((0,) + (1,) * (len(batch) + 2), dtype=args[0].dtype)
        shape = (-1, *batch, LENGTHS["i"], LENGTHS["j"])
        terms = [evaluate(f, values, like).expand(shape) for f in node.args]
        return reduced(node, terms).movedim(0, -1)

    return of


def reduced(node: Reduction, terms: list[Tensor]) -> Tensor:
    """(dim, *batch, M, N) -> (dim, *batch, M or N)."""
    f, axis = terms[0], -1 if node.axis == 1 else -2
    if node.op.name == "Sum":
        return f.sum(axis)
    if node.op.name in ("LogSumExp", "LogSumExpWeight"):
        return f.logsumexp(axis) if len(terms) == 1 else (f.exp() * terms[1]).sum(axis).log()
    if node.op.name in ("SumSoftMaxWeight", "SoftMax"):
        return (f.softmax(axis) * terms[1]).sum(axis)
    largest = "Max" in node.op.name
    if not node.op.takes_k:
        return f.amax(axis) if largest else f.amin(axis)
    found = f.topk(node.k, dim=axis, largest=largest)[0]  # (D, *batch, ...)
    return found.movedim(axis, 0).flatten(0, 1) if f.shape[0] > 1 else found.movedim(axis, 1)[0]


REDUCTIONS: dict[str, tuple[str, str, str | None, int | None]] = {
    "sum of a scalar": (f"{KERNEL} * c", "Sum", None, None),
    "sum of a vector": (f"{KERNEL} * b * p", "Sum", None, None),
    "logsumexp": (f"{KERNEL} * c + Elem(b, 1)", "LogSumExp", None, None),
    "logsumexp of a vector": ("x * y * c", "LogSumExp", None, None),
    "weighted logsumexp": ("(x|y) * c", "LogSumExp", "Square(b) + Square(p)", None),
    "logsumexpweight": ("(x|y)", "LogSumExpWeight", "1 + Square(b) * Square(c)", None),
    "vector logsumexp, scalar weight": ("x * y", "LogSumExp", "1 + Square(c)", None),
    "softmax": ("(x|y) * c", "SumSoftMaxWeight", "b * p", None),
    "softmax of vectors": ("x * y", "SoftMax", "x + y", None),
    "softmax of a vector, scalar weight": ("x * y", "SoftMax", "Elem(p, 0) * c + (x|y)", None),
    "min": ("SqDist(x,y) * Elem(p, 0)", "Min", None, None),
    "max of a vector": ("x * y + c", "Max", None, None),
    "kmin": ("SqDist(x,y) * c", "KMin", None, 3),
    "kmin of a vector": ("x * y + Elem(b, 0)", "KMin", None, 2),
    "kmax of a vector": ("x * y * Elem(p, 1)", "KMax", None, 2),
}
BATCHES: dict[str, dict[str, tuple[int, ...]]] = {
    "one": {},
    "batches": {name: (2,) for name in SHAPES},
    "broadcast": {"x": (2, 1), "y": (4,), "b": (1, 4), "p": (2, 1)},
}


def genred_of(name: str, axis: int) -> Genred:
    formula, op, weight, k = REDUCTIONS[name]
    return Genred(formula, ALIASES, op, axis, opt_arg=k, formula2=weight)


def flat(result: Any) -> Tensor:
    """KMin of vectors has (..., K, D), the oracle's (..., K * D)."""
    return result if isinstance(result, Tensor) else result[0]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_gradients_by_every_argument(name: str, axis: int, batch: str) -> None:
    genred, args = genred_of(name, axis), arguments(BATCHES[batch])
    ours, wanted = flat(genred(*args)), dense(genred)(*args)
    ours = ours.reshape(wanted.shape)
    torch.testing.assert_close(ours, wanted)
    cotangent = torch.randn_like(wanted)
    found = torch.autograd.grad(ours, args, cotangent, allow_unused=False)
    for x, a, b in zip(args, found, torch.autograd.grad(wanted, args, cotangent, allow_unused=True), strict=True):
        assert a.shape == x.shape
        torch.testing.assert_close(a, torch.zeros_like(x) if b is None else b)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_second_gradients(name: str, axis: int) -> None:
    genred, args = genred_of(name, axis), arguments({"x": (2,)})
    seconds = []
    for f in (genred, dense(genred)):
        value = flat(f(*args)).flatten().sort().values.square().sum()
        firsts = torch.autograd.grad(value, args, create_graph=True, allow_unused=True)
        total = sum(g.sin().sum() for g in firsts if g is not None)
        seconds.append(torch.autograd.grad(total, args, allow_unused=True))  # type: ignore[arg-type]
    for x, a, b in zip(args, *seconds, strict=True):
        torch.testing.assert_close(torch.zeros_like(x) if a is None else a, torch.zeros_like(x) if b is None else b)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (4,), (0, 4), (1, 2), (0, 3)])
def test_any_subset_of_the_arguments(needed: tuple[int, ...]) -> None:
    genred = genred_of("sum of a vector", 1)
    args = [x.detach().requires_grad_(n in needed) for n, x in enumerate(arguments())]
    wanted = torch.autograd.grad(dense(genred)(*args).sum(), [args[n] for n in needed], allow_unused=True)
    found = torch.autograd.grad(genred(*args).sum(), [args[n] for n in needed])
    for n, a, b in zip(needed, found, wanted, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(args[n]) if b is None else b)


def test_arguments_that_the_formula_ignores_settle_shapes() -> None:
    """Batch dimensions and numbers of rows, with gradients as without."""
    genred = Genred("SqNorm2(x)", ["x = Vi(2)", "unused = Pm(1)", "y = Vj(1)"], axis=1)
    x, unused, y = torch.rand(4, 2), torch.rand(3, 1), torch.rand(5, 1, requires_grad=True)
    wanted = 5 * x.square().sum(1, keepdim=True).expand(3, 4, 1)
    torch.testing.assert_close(genred(x, unused, y.detach()), wanted)
    leaf = x.clone().requires_grad_()
    result = genred(leaf, unused, y)
    torch.testing.assert_close(result, wanted)
    found = torch.autograd.grad(result.sum(), (leaf, y))
    torch.testing.assert_close(found[0], 2 * 5 * 3 * x)
    assert bool((found[1] == 0).all())


def test_names_of_derivatives_keep_clear_of_the_user_s() -> None:
    aliases = ["x = Vi(1)", "x_ = Vj(1)", "d_x = Vj(1)", "e = Vj(1)", "out = Vi(1)"]
    genred = Genred("x * x_ * d_x * e * out", aliases, axis=1)
    args = [torch.rand(n, 1, dtype=torch.float64, requires_grad=True) for n in (3, 4, 4, 4, 3)]

    def dense(x: Tensor, x_: Tensor, d_x: Tensor, e: Tensor, out: Tensor) -> Tensor:
        return x * out * (x_ * d_x * e).sum()

    tangents = tuple(torch.rand_like(x) for x in args)
    torch.testing.assert_close(*(torch.func.jvp(f, tuple(args), tangents) for f in (genred, dense)))
    torch.testing.assert_close(*(torch.autograd.functional.hessian(lambda *a, f=f: f(*a).sum(), tuple(args)) for f in (
        genred, dense)))  # fmt: skip


# ---- what is saved, and memory ----


def saved(result: Tensor) -> set[int]:
    assert result.grad_fn is not None
    return {x.data_ptr() for x in result.grad_fn.saved_tensors}  # type: ignore[attr-defined]


def test_only_what_backward_reads_is_saved() -> None:
    """A sum is linear in b, so its gradient reads neither b nor the result; that of LogSumExp reads the result."""
    x, y, b = torch.rand(5, 3), torch.rand(6, 3), torch.rand(6, 2, requires_grad=True)
    linear = Genred("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], axis=1)
    assert saved(linear(x, y, b)) == {x.data_ptr(), y.data_ptr()}
    log = Genred("b - SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], "LogSumExp", axis=1)
    result = log(x, y, b)
    assert saved(result) == {x.data_ptr(), y.data_ptr(), b.data_ptr(), result.data_ptr()}
    x.requires_grad_()
    inputs = {x.data_ptr(), y.data_ptr(), b.data_ptr()}
    result = linear(x, y, b)
    assert saved(result) == inputs  # of a vector
    scalar = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)(x, y)
    assert len(saved(scalar)) == 3 and scalar.data_ptr() not in saved(scalar)  # x, y, and what the cotangent multiplies
    with torch.no_grad():
        assert linear(x, y, b).grad_fn is None


def test_saved_tensors_are_not_to_be_changed() -> None:
    x, y = torch.rand(5, 3, requires_grad=True), torch.rand(6, 3)
    genred = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    neighbours = torch.arange(10).reshape(5, 2) % 6
    for changed, options in ((y, {}), (neighbours, {"neighbors": neighbours})):
        result = genred(x, y, **options)  # type: ignore[arg-type]
        changed.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


GROWTH = """
import resource, torch
from tritonkeops.runtime.reducer import Reducer, Where
from tritonkeops.torch import Genred
red = Genred("Exp(-SqDist(x,y)*p)*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "p = Pm(1)"], axis=1)
def step(n):
    args = [torch.rand(*s, requires_grad=True) for s in ((n, 3), (n, 3), (n, 1), (1,))]
    red(*args).sum().backward()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
"""


def measured(code: str) -> int:
    done = subprocess.run([sys.executable, "-c", GROWTH + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_ten_thousand_steps_leave_no_memory_behind() -> None:
    grown = measured(
        "for _ in range(500): step(10)\nbefore = peak()\nfor _ in range(10000): step(10)\nprint(peak() - before)"
    )
    assert grown <= 2  # MB


def test_nothing_of_the_size_of_all_pairs_is_made() -> None:
    """M = N = 12000: a dense float32 matrix of pairs has 549 MB."""
    grown = measured("step(100)\nbefore = peak()\nstep(12000)\nprint(peak() - before)")
    assert grown < 60  # MB


# ---- dtypes and kinds of tensors ----


def test_float32_gradients_are_accurate() -> None:
    genred, args = genred_of("logsumexp", 1), arguments()
    halves = [x.detach().float().requires_grad_() for x in args]
    found = torch.autograd.grad(genred(*halves).sum(), halves)
    wanted = torch.autograd.grad(genred(*args).sum(), args)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(half: torch.dtype) -> None:
    genred = Genred("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"], axis=1)
    x, y, b = (torch.rand(9, d) for d in (3, 3, 1))
    low = x.to(half).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = genred(low, y, b.to(half))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, genred(low.float(), y, b.to(half).float()))
    result.sum().backward()
    assert low.grad is not None and low.grad.dtype == half
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.compile(genred, backend="aot_eager", fullgraph=True)(low, y, b).dtype == torch.float32
    with pytest.raises(TypeError, match="expected one dtype"):
        genred(x, y.double(), b)


def test_parameters_expanded_strided_and_inner_tensors() -> None:
    genred = Genred("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"], axis=1)
    wide, row, b = torch.nn.Parameter(torch.rand(5, 8)), torch.rand(1, 3, requires_grad=True), torch.rand(7, 1)

    def total(f: Callable[..., Tensor]) -> Tensor:
        return f(wide[:, 1:7:2].exp(), row.expand(7, 3) * 2, b).sum()

    found = torch.autograd.grad(total(genred), (wide, row))
    wanted = torch.autograd.grad(total(lambda x, y, b: torch.exp(-((x[:, None] - y) ** 2).sum(-1)) @ b), (wide, row))
    for a, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, w)


def test_sizes_of_zero() -> None:
    for op in ("Sum", "LogSumExp"):
        genred = Genred("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"], op, axis=1)
        for m, n in ((0, 4), (4, 0), (0, 0)):
            x, y = torch.rand(m, 3, requires_grad=True), torch.rand(n, 3, requires_grad=True)
            found = torch.autograd.grad(genred(x, y).sum(), (x, y), allow_unused=True)
            assert all(g is None or bool((g == 0).all()) for g in found)


# ---- where PyKeOps fails ----


def test_log_weights_of_minus_infinity_have_gradients() -> None:
    """Points of no weight, first or everywhere, which PyKeOps makes NaN."""
    genred = Genred("w - SqDist(x,y)", ["x = Vi(2)", "y = Vj(2)", "w = Vj(1)"], "LogSumExp", axis=1)
    x, y = torch.rand(3, 2, requires_grad=True), torch.rand(4, 2, requires_grad=True)
    for create_graph in (False, True):
        none = torch.full((4, 1), -torch.inf)
        result = genred(x, y, none)
        assert bool((result == -torch.inf).all())
        for g in torch.autograd.grad(result, (x, y), torch.ones_like(result), create_graph=create_graph):
            assert bool((g == 0).all())
        first = torch.tensor([[-torch.inf], [0.0], [1.0], [0.5]])
        found = torch.autograd.grad(genred(x, y, first).sum(), (x, y), create_graph=create_graph)
        scores = first.T - ((x[:, None] - y) ** 2).sum(-1)
        wanted = torch.autograd.grad(scores.logsumexp(1).sum(), (x, y))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_a_raw_pair_has_no_derivative() -> None:
    """PyKeOps gives a "pseudo-gradient", wrong unless a logarithm follows."""
    genred = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], "Max_SumShiftExp", axis=1)
    result = genred(torch.rand(3, 1, requires_grad=True), torch.rand(4, 1))
    with pytest.raises(NotImplementedError, match="Max_SumShiftExp has no derivative: differentiate LogSumExp instead"):
        result.sum().backward()


def test_indices_are_not_differentiable() -> None:
    x, y = torch.rand(3, 1, requires_grad=True), torch.rand(4, 1)
    for op in ("ArgMin", "ArgKMin"):
        genred = Genred("SqDist(x,y)", ["x = Vi(1)", "y = Vj(1)"], op, axis=1, opt_arg=2 if op == "ArgKMin" else None)
        index = genred(x, y)
        assert index.dtype == torch.int64 and not index.requires_grad


def test_padding_of_k_larger_than_n_has_no_gradient() -> None:
    x, y = torch.rand(3, 1, requires_grad=True), torch.rand(2, 1, requires_grad=True)
    values = Genred("SqDist(x,y)", ["x = Vi(1)", "y = Vj(1)"], "KMin", axis=1, opt_arg=4)(x, y)
    assert bool((values[:, 2:] == torch.inf).all())
    found = torch.autograd.grad(values[:, :2].sum() + values[:, 2:].clamp(max=1).sum(), (x, y))
    wanted = torch.autograd.grad(((x - y.T) ** 2).sum(), (x, y))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("op", ["Sum", "LogSumExp"])
def test_gradients_agree_with_pykeops(op: str) -> None:
    """Where PyKeOps is right: float64, no batch."""
    pykeops = pytest.importorskip("pykeops")
    pykeops.set_verbose(False)
    peer = pytest.importorskip("pykeops.torch")
    formula, aliases = "Exp(-SqDist(x,y)*g)*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"]
    args = [torch.rand(*s, dtype=torch.float64, requires_grad=True) for s in ((9, 3), (8, 3), (8, 1), (1,))]
    results = []
    for genred in (Genred(formula, aliases, op, axis=1), peer.Genred(formula, aliases, op, axis=1)):
        value = genred(*args)
        results.append([value, *torch.autograd.grad(value.sin().sum(), args)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- corners ----


@pytest.mark.parametrize("formula", ["Exp(-SqDist(x,y))", "Exp(-SqDist(x,y)) + 0*c"])
def test_batches_of_arguments_that_drop_out(formula: str) -> None:
    genred = Genred(formula, ["x = Vi(3)", "y = Vj(3)", "c = Vi(1)"], axis=1)
    x, y, c = torch.rand(5, 3), torch.rand(6, 3), torch.rand(2, 5, 1)
    torch.testing.assert_close(genred(x.clone().requires_grad_(), y, c).detach(), genred(x, y, c))


@pytest.mark.parametrize("shape", [(), (2,), (1, 2), (1, 1, 2), (1, 1, 1, 2), (1, 3, 2), (4, 1, 2), (1, 4, 1, 2)])
def test_shapes_of_parameters_mean_the_same_to_all(shape: tuple[int, ...]) -> None:
    """To a plain call, to autograd, to forward mode and to torch.compile."""
    genred = Genred("x*p", ["x = Vi(2)", f"p = Pm({shape[-1] if shape else 1})"], axis=1)
    x, p = torch.rand(3, 5, 2), torch.rand(shape)
    wanted = genred(x, p)
    torch.testing.assert_close(genred(x.clone().requires_grad_(), p).detach(), wanted)
    torch.testing.assert_close(torch.func.jvp(lambda x: genred(x, p), (x,), (x,)), (wanted, wanted))
    compiled = torch.compile(lambda x: genred(x, p), fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x), wanted)


def test_gradients_that_are_zero() -> None:
    genred = Genred("Step(x)*2 + c", ["x = Vi(3)", "c = Vi(1)", "y = Vj(3)"], axis=1)
    x, c, y = (torch.rand(s, requires_grad=True) for s in ((2, 5, 3), (5, 1), (4, 1, 6, 3)))
    found = torch.autograd.grad(genred(x, c, y).sum(), (x, c, y))
    assert [g.shape for g in found] == [x.shape, c.shape, y.shape]
    assert bool((found[0] == 0).all()) and bool((found[2] == 0).all()) and bool((found[1] == 3 * 8 * 6).all())


@pytest.mark.parametrize(("variable", "axis"), [("Vi", 1), ("Vj", 0), ("Vj", 1), ("Pm", 1)])
def test_selections_without_a_reduced_or_a_kept_variable(variable: str, axis: int) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) if variable != "Pm" else torch.tensor([1.0, 2.0])
    x.requires_grad_()
    result = Genred("2*x", [f"x = {variable}(2)"], "Min", axis=axis)(x)
    (found,) = torch.autograd.grad(result.sum(), x)
    reduced_x = variable == "Vj" and axis == 1
    torch.testing.assert_close(found, torch.tensor([[2.0, 2.0], [0.0, 0.0]]) if reduced_x else torch.full_like(x, 2))


def test_rows_without_pairs_get_no_nan_from_selections() -> None:
    genred = Genred("Inv(SqDist(x,y)) * p", ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)"], "Max", axis=1)
    x, p = torch.rand(5, 3, requires_grad=True), torch.rand(1, requires_grad=True)
    for create_graph in (False, True):
        result = genred(x, x, p, mask="i>j")
        assert result[0].item() == -torch.inf
        found = torch.autograd.grad(result[1:].sum(), (x, p), create_graph=create_graph)
        assert all(bool(g.isfinite().all()) for g in found)


def test_a_sum_of_minus_infinity_has_its_derivative() -> None:
    genred = Genred("Log(x)*y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    x = torch.tensor([[0.0], [1.0]], requires_grad=True)
    for create_graph in (False, True):
        (found,) = torch.autograd.grad(genred(x, torch.ones(2, 1)).sum(), x, create_graph=create_graph)
        torch.testing.assert_close(found.detach(), torch.tensor([[torch.inf], [2.0]]))


def test_results_of_sums_may_be_changed_in_place() -> None:
    x = torch.rand(5, 3, requires_grad=True)
    result = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)(x, torch.rand(6, 3))
    result += 1
    result.sum().backward()


def test_writing_into_a_given_result_is_noticed() -> None:
    """By what tells changes of a tensor by its version: patterns, and autograd."""
    genred = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    nearest = Genred("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"], "ArgKMin", axis=1, opt_arg=2)
    index = torch.empty(20, 2, dtype=torch.int64)
    for points in (torch.randn(20, 3), torch.randn(20, 3)):
        nearest(points, points, out=index)
        torch.testing.assert_close(
            genred(points, points, neighbors=index), genred(points, points, neighbors=index.clone())
        )
    a, out = torch.rand(20, 1, requires_grad=True), torch.rand(20, 1)
    product = a * out
    genred(points, points, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_shared_parts_of_formulas_are_not_written_out_again_and_again() -> None:
    """The text of a formula is a tree, of which a derivative's may have more nodes than fit in memory."""
    formula = "SoftDTW_SqDist(x,y,p)"
    genred = Genred(formula, ["x = Vi(4)", "y = Vj(4)", "p = Pm(1)"], axis=1)
    reducer = genred._reducer(Where())
    adjoint = reducer.adjoints((True, True, True))[0]
    again = Reducer.read(adjoint.text).adjoints((True,) * len(adjoint.picks))[0]
    assert len(repr(Reducer.read(again.text).node)) < 10_000
