"""Kernels by products of matrices, the form "dot", in Triton's interpreter: as accurate as direct evaluation, and the
same wherever values are selected or data leave the range that products are good for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonkeops.compiler import Target
from tritonkeops.torch import Genred

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is NumPy, which warns of NaN
INF, NAN = math.inf, math.nan
CATEGORIES = {"x": "Vi", "e": "Vi", "y": "Vj", "b": "Vj"}
FLOOR = 1e-6  # errors below are those of float32: 4 times a lucky direct evaluation may be less


@dataclass
class Case:
    """A reduction of named tensors: x and e along i, y and b along j, others are parameters."""

    formula: str
    tensors: dict[str, Tensor]
    op: str = "Sum"
    axis: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def made(self, kind: type[Genred], **how: Any) -> Genred:
        aliases = [f"{name} = {CATEGORIES.get(name, 'Pm')}({x.shape[-1]})" for name, x in self.tensors.items()]
        how = {"precision": "highest", **how}  # short calls on a GPU would do without products
        return kind(self.formula, aliases, self.op, axis=self.axis, **self.options, **how)

    def values(self, kind: type[Genred], **how: Any) -> tuple[Tensor, ...]:
        found = self.made(kind, **how)(*self.tensors.values())
        return found if isinstance(found, tuple) else (found,)

    @property
    def exact(self) -> tuple[Tensor, ...]:
        """In float64, on the C back end, which contracts nothing."""
        doubles = {name: x.double() for name, x in self.tensors.items()}
        return Case(self.formula, doubles, self.op, self.axis, self.options).values(Genred)

    @property
    def form(self) -> str:
        first = next(iter(self.tensors.values()))
        target = Target(str(first.dtype).removeprefix("torch."), backend="triton")
        program = self.made(Genred)._call.program
        return program.tile(target).schedule.form


def cloud(rows: int, dim: int, seed: int, *batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points whose mean squared distance is 1, as those of bench.cases."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((*batch, rows, dim), generator=generator) / math.sqrt(2 * dim)).to(dtype)


def clouds(M: int, N: int, dim: int, wide: int = 1) -> dict[str, Tensor]:
    return {"x": cloud(M, dim, 1), "y": cloud(N, dim, 2), "b": math.sqrt(2 * wide) * cloud(N, wide, 3)}


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def check(case: Case, genred: type[Genred], **how: Any) -> None:
    """The form is "dot", indices are those of direct evaluation, and floats as good: within 4 times its error."""
    assert case.form == "dot"
    direct = case.values(genred, precision="direct", **how)
    for found, other, exact in zip(case.values(genred, **how), direct, case.exact, strict=True):
        assert found.shape == exact.shape and found.isfinite().all()
        if found.dtype == torch.int64:
            assert torch.equal(found, other)
        else:
            assert error(found, exact) <= max(4 * error(other, exact), FLOOR)


def same(case: Case, genred: type[Genred], **how: Any) -> None:
    """To the last bit what direct evaluation gives, NaN and infinities included."""
    assert case.form == "dot"
    for found, other in zip(case.values(genred, **how), case.values(genred, precision="direct"), strict=True):
        assert torch.equal(found.nan_to_num(7e7), other.nan_to_num(7e7))


GAUSSIAN = "Exp(-SqDist(x, y)) * b"


# ---- formulas and sizes ----

FORMULAS = {
    "exponentials of products": (GAUSSIAN.replace("-SqDist(x, y)", "(x | y)"), "Sum", ""),
    "roots of products": ("Sqrt(Square((x | y)) + IntCst(1)) * b", "Sum", ""),
    "several kernels": ("(Exp(-SqDist(x, y)) + Exp(-SqDist(x, y) / IntCst(4))) * b", "Sum", ""),
    "sums of distances": ("SqDist(x, y) * b", "Sum", ""),
    "a bias": ("b - SqDist(x, y)", "LogSumExp", ""),
    "averages": ("-SqDist(x, y)", "SumSoftMaxWeight", "x - y"),
    "attention": ("(x | y)", "SumSoftMaxWeight", "b"),
    "the largest": ("(x | y) * b", "Max", ""),
    "the farthest, along the other axis": ("SqDist(x, y)", "ArgMax", ""),
    "the nearest": ("SqDist(x, y)", "Min_ArgMin", ""),
}


@pytest.mark.parametrize(("name", "axis"), [(name, n % 2) for n, name in enumerate(FORMULAS)])
def test_formulas(name: str, axis: int, genred: type[Genred]) -> None:
    formula, op, weight = FORMULAS[name]
    tensors = clouds(70, 150, 10)
    if not axis and weight == "b":
        weight = "x"
    check(Case(formula, tensors, op, axis, {"formula2": weight} if weight else {}), genred)


METRICS = {"WeightedSqDist(w, x, y)": (1, 10, 100), "SqNorm2(MatVecMult(w, x - y))": (120,)}


@pytest.mark.parametrize(("distance", "size"), [(d, n) for d, sizes in METRICS.items() for n in sizes])
def test_metrics_of_parameters(distance: str, size: int, genred: type[Genred]) -> None:
    w = torch.linspace(0.1, 1, size) if size <= 10 else torch.linspace(-0.3, 0.3, size).sin()
    if size == 100:
        w = (w.reshape(10, 10) @ w.reshape(10, 10).T + torch.eye(10)).flatten()
    check(Case(f"Exp(-{distance}) * b", {**clouds(70, 90, 10), "w": w}), genred)


@pytest.mark.parametrize("dim", [9, 17, 100, 257])
def test_numbers_of_components(dim: int, genred: type[Genred]) -> None:
    """One chunk, chunks of powers of two, and streams of them."""
    check(Case(GAUSSIAN, clouds(40, 70, dim)), genred)


@pytest.mark.parametrize("wide", [7, 8, 9, 20, 65])
def test_right_hand_sides(wide: int, genred: type[Genred]) -> None:
    """Sums of vectors are products too, in accumulators of powers of two."""
    check(Case(GAUSSIAN, clouds(40, 70, 10, wide)), genred)


def test_right_hand_sides_of_short_vectors(genred: type[Genred]) -> None:
    check(Case(GAUSSIAN, clouds(40, 70, 3, 20)), genred)


@pytest.mark.parametrize("formula", ["Exp(-Sum(Abs(x - y))) * b", "b / (IntCst(1) + SqDist(x, y))"])
def test_right_hand_sides_of_pair_values_that_are_no_products(formula: str, genred: type[Genred]) -> None:
    case = Case(formula, clouds(40, 70, 3, 20))
    (found,), (exact,) = case.values(genred), case.exact
    assert error(found, exact) <= FLOOR


@pytest.mark.parametrize(("M", "N"), [(17, 90), (64, 129), (65, 1), (130, 300)])
def test_numbers_of_rows(M: int, N: int, genred: type[Genred]) -> None:
    check(Case("b - SqDist(x, y)", clouds(M, N, 10), "LogSumExp"), genred)


@pytest.mark.parametrize(("M", "N"), [(0, 90), (70, 0)])
def test_no_rows(M: int, N: int, genred: type[Genred]) -> None:
    same(Case(GAUSSIAN, clouds(M, N, 10)), genred)
    same(Case("b - SqDist(x, y)", clouds(M, N, 10), "LogSumExp"), genred)


BATCHES = [((2,), (2,), (2,)), ((2,), (), ()), ((), (2,), ()), ((3, 1), (1, 2), (3, 2))]


@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_batches(batches: tuple[tuple[int, ...], ...], genred: type[Genred]) -> None:
    """Entries lie far from each other: each has a center of its own."""
    tensors = clouds(40, 70, 10)
    for n, (name, batch) in enumerate(zip(tensors, batches, strict=True)):
        offsets = 20 * torch.arange(math.prod(batch)).reshape(*batch, 1, 1) if name in "xy" else 0
        shared = batches[0] != batches[1]  # then points of one entry would be far from those of another
        dim = tensors[name].shape[1]
        tensors[name] = cloud(len(tensors[name]), dim, n, *batch) + (0 if shared else offsets)
    check(Case(GAUSSIAN, tensors), genred)
    if len(batches[2]) == 1:
        check(Case("-SqDist(x, y)", tensors, "SumSoftMaxWeight", options={"formula2": "y"}), genred)


def test_strides_and_what_lies_beyond_the_end(genred: type[Genred]) -> None:
    tensors = {}
    for name, x in clouds(70, 90, 10).items():
        around = torch.full((2 * len(x) + 40, 2 * x.shape[1]), NAN)
        around[20:-20:2, ::2] = x
        tensors[name] = around[20:-20:2, ::2]
    check(Case(GAUSSIAN, tensors), genred)
    check(Case("SqDist(x, y)", tensors, "KMin_ArgKMin", options={"opt_arg": 2}), genred)


# ---- selections ----


@pytest.mark.parametrize("op", ["KMin_ArgKMin", "ArgKMax", "ArgMin"])
def test_the_first_of_equal_values_is_selected(op: str, genred: type[Genred]) -> None:
    x, y = cloud(20, 10, 1), cloud(8, 10, 2)
    twice = y[torch.randint(0, 8, (150,), generator=torch.Generator().manual_seed(0))]
    same(Case("SqDist(x, y)", {"x": x, "y": twice}, op, options={"opt_arg": 5} if "K" in op else {}), genred)


def test_more_neighbours_than_rows(genred: type[Genred]) -> None:
    same(Case("SqDist(x, y)", {"x": cloud(20, 10, 1), "y": cloud(3, 10, 2)}, "KMin_ArgKMin", 1, {"opt_arg": 5}), genred)


def two_clusters(width: float) -> dict[str, Tensor]:
    """Points near their neighbours and far from the middle: products cannot tell distances within a cluster."""
    middle = 2 * cloud(1, 10, 3)
    x, y = middle + width * cloud(20, 10, 4), middle + width * cloud(300, 10, 5)
    y[::2] *= -1  # so that each tile has points of both
    return {"x": x, "y": y}


def test_neighbours_in_clusters(genred: type[Genred]) -> None:
    same(Case("SqDist(x, y)", two_clusters(1e-4), "KMin_ArgKMin", options={"opt_arg": 3}), genred)


@pytest.mark.parametrize("op", ["Min", "Min_ArgMin"])
@pytest.mark.parametrize("width", [1e-1, 1e-4])
def test_the_nearest_in_clusters(width: float, op: str, genred: type[Genred]) -> None:
    same(Case("SqDist(x, y)", two_clusters(width), op), genred)


@pytest.mark.parametrize("op", ["Min", "Min_ArgMin", "KMin"])
def test_distances_of_coincident_points_are_zero(op: str, genred: type[Genred]) -> None:
    x = 3 + cloud(70, 10, 1)
    found, *rows = Case("SqDist(x, y)", {"x": x, "y": x}, op, options={"opt_arg": 1} if op[0] == "K" else {}).values(
        genred
    )
    assert (found == 0).all() and all(torch.equal(i.flatten(), torch.arange(70)) for i in rows)


# ---- where products are not good enough ----


def kinds(tensors: dict[str, Tensor]) -> list[Case]:
    """A sum, an exponential one, and an average."""
    average = Case("-SqDist(x, y)", tensors, "SumSoftMaxWeight", options={"formula2": "Concat(y, b)"})
    return [Case(GAUSSIAN, tensors), Case("b - SqDist(x, y)", tensors, "LogSumExp"), average]


@pytest.mark.parametrize("offset", [10, 1000])
def test_the_center_takes_care_of_offsets(offset: float, genred: type[Genred]) -> None:
    tensors = clouds(70, 90, 10)
    moved = {name: x + offset if name in "xy" else x for name, x in tensors.items()}
    for case in kinds(moved)[: 3 if offset == 10 else 1]:
        check(case, genred)
        with pytest.raises(AssertionError):  # the contraction does the work, not the fallback
            same(case, genred)


SPREAD = {
    "all": lambda x, y, b: (30 * x, 30 * y, b),
    "a row i": lambda x, y, b: (torch.cat([x[:-1], 50 * x[-1:]]), y, b),
    "a row j": lambda x, y, b: (x, torch.cat([y[:-1], 50 * y[-1:]]), b),
    "apart": lambda x, y, b: (x + 5, y, b),
}


@pytest.mark.parametrize("how", SPREAD)
def test_data_that_are_too_spread_are_evaluated_directly(how: str, genred: type[Genred]) -> None:
    tensors = dict(zip("xyb", SPREAD[how](*clouds(70, 90, 10).values()), strict=True))
    for case in kinds(tensors) if how == "a row j" else kinds(tensors)[:1]:
        same(case, genred)


def test_a_batch_entry_that_is_too_spread(genred: type[Genred]) -> None:
    x = cloud(40, 10, 1, 2) * torch.tensor([1, 50])[:, None, None]
    same(Case(GAUSSIAN, {**clouds(40, 70, 10), "x": x}), genred)


@pytest.mark.parametrize(("name", "bad"), [("x", INF), ("y", NAN), ("y", -INF), ("b", NAN), ("b", -INF)])
def test_nan_and_infinities(name: str, bad: float, genred: type[Genred]) -> None:
    tensors = clouds(40, 70, 10)
    tensors[name][7, 0] = bad
    if name == "b":  # no operand of a sum, but one of an exponential sum
        (found,), (exact,) = Case(GAUSSIAN, tensors).values(genred), Case(GAUSSIAN, tensors).exact
        assert not found.isfinite().any() and torch.equal(found.isnan(), exact.isnan())
        same(Case("b - SqDist(x, y)", tensors, "LogSumExp"), genred)
    else:
        same(Case(GAUSSIAN, tensors), genred)
        same(Case("SqDist(x, y)", tensors, "Min_ArgMin"), genred)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_infinities_in_sums_of_vectors(dtype: torch.dtype, genred: type[Genred]) -> None:
    """Of a component, in that component."""
    tensors = {name: x.to(dtype) for name, x in clouds(17, 70, 10, 9).items()}
    tensors["b"][7, 0], tensors["b"][9, 1], tensors["b"][-1, 2] = INF, NAN, INF  # tiles end after the last row
    found, direct = (Case(GAUSSIAN, tensors).values(genred, precision=word)[0] for word in ("highest", "direct"))
    assert found[:, 3:].isfinite().all()
    assert torch.equal(found[:, :3].nan_to_num(7), direct[:, :3].nan_to_num(7))


@pytest.mark.parametrize("size", [30, 1e5])
@pytest.mark.parametrize("formula", ["Exp(-p * SqDist(x, y)) * b", "Exp(p * (x | y)) * b"])
def test_scales_of_parameters(formula: str, size: float, genred: type[Genred]) -> None:
    """Points of any size and a scale that makes up for it: in float16 they overflow, or what is left of the scaled
    ones has few digits."""
    tensors = clouds(70, 90, 10)
    scaled = {name: size * x if name in "xy" else x for name, x in tensors.items()}
    check(Case(formula, {**scaled, "p": torch.tensor([size**-2])}), genred)


# ---- dtypes, accumulators, precisions ----

HALVES = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision(dtype: torch.dtype, genred: type[Genred]) -> None:
    """Errors are those of the rounded result."""
    tensors = {name: x.to(dtype) for name, x in clouds(40, 70, 10, 20).items()}
    cases = [Case(GAUSSIAN, tensors), Case("(x | y)", tensors, "SumSoftMaxWeight", options={"formula2": "b"})]
    cases += [Case("-SqDist(x, y)", tensors, "LogSumExp")]
    for case in cases:
        (found,), (exact,) = case.values(genred), case.exact
        assert case.form == "dot" and found.dtype == dtype and error(found, exact) <= HALVES[dtype]
    same(Case("SqDist(x, y)", tensors, "ArgKMin", options={"opt_arg": 2}), genred)


@pytest.mark.parametrize("scheme", ["direct_sum", "block_sum"])
@pytest.mark.parametrize("wide", [1, 9])
def test_sum_schemes(scheme: str, wide: int, genred: type[Genred]) -> None:
    check(Case(GAUSSIAN, clouds(40, 300, 10, wide)), genred, sum_scheme=scheme)


@pytest.mark.parametrize("how", [{"use_double_acc": True}, {"sum_scheme": "kahan_scheme"}], ids=str)
def test_accumulators_of_more_digits_are_not_for_products(how: dict[str, Any], genred: type[Genred]) -> None:
    case = Case(GAUSSIAN, clouds(40, 70, 10))
    assert torch.equal(*case.values(genred, **how), *case.values(genred, precision="direct", **how))


BOUNDS = {"highest": FLOOR, "high": 2e-3, "medium": 2e-2}


def test_precisions(genred: type[Genred]) -> None:
    for case in (Case(GAUSSIAN, clouds(70, 90, 10, 9)), Case("Sqrt(Square((x | y)) + IntCst(1))", clouds(70, 90, 10))):
        (exact,) = case.exact
        errors = {name: error(*case.values(genred, precision=name), exact) for name in BOUNDS}
        assert all(errors[name] <= BOUNDS[name] for name in BOUNDS)
        assert errors["highest"] < errors["high"] <= errors["medium"]


def test_the_setting_of_torch_counts_at_each_call(genred: type[Genred]) -> None:
    check_setting(Case(GAUSSIAN, clouds(40, 70, 10)), genred)


def check_setting(case: Case, genred: type[Genred]) -> None:
    auto, before = case.made(genred, precision="auto"), torch.get_float32_matmul_precision()
    try:
        for name in ("highest", "medium", "highest"):
            torch.set_float32_matmul_precision(name)
            assert torch.equal(auto(*case.tensors.values()), *case.values(genred, precision=name))
    finally:
        torch.set_float32_matmul_precision(before)


# ---- parts of j ----


@pytest.mark.parametrize(("op", "weight", "wide"), [
    ("Sum", "", 1), ("Sum", "", 9), ("LogSumExp", "", 1), ("SumSoftMaxWeight", "b", 9), ("Min_ArgMin", "", 1),
    ("KMin_ArgKMin", "", 1),
])  # fmt: skip
def test_parts_of_j_are_merged(op: str, weight: str, wide: int, program: Any, run: Any) -> None:
    tensors = clouds(20, 70, 10, wide)
    formula = GAUSSIAN if op == "Sum" else "-SqDist(x, y)" if "Exp" in op or weight else "SqDist(x, y)"
    aliases = ["x = Vi(10)", "y = Vj(10)", f"b = Vj({wide})"]
    made = program(formula, aliases, op, k=3 if op[0] == "K" else 0, formula2=weight or None)
    assert made.tile(Target(backend="triton")).schedule.form == "dot"
    found = run(made, list(tensors.values()), splits=3)
    for ours, exact in zip(found, run(made, [x.double() for x in tensors.values()], "torch"), strict=True):
        assert torch.equal(ours, exact) if exact.dtype == torch.int64 else error(ours, exact) <= FLOOR


# ---- derivatives, and errors at the scale of the benchmark ----


def differentiated(case: Case, kind: type[Genred], second: bool = False, **how: Any) -> list[Tensor]:
    """The value and its gradients, in all tensors; with `second`, those of their squares."""
    leaves = [x.clone().requires_grad_() for x in case.tensors.values()]
    value = case.made(kind, **how)(*leaves)
    rows = torch.linspace(0.5, 1.5, value.shape[-2], dtype=value.dtype)[:, None]
    found = list(torch.autograd.grad((value * rows).sum(), leaves, create_graph=second))
    if second:
        found += torch.autograd.grad(sum(x.square().sum() for x in found), leaves)
    return [value, *found]


def check_gradients(case: Case, genred: type[Genred], second: bool = False) -> None:
    doubles = Case(case.formula, {n: x.double() for n, x in case.tensors.items()}, case.op, case.axis, case.options)
    exact = differentiated(doubles, Genred, second)
    direct = exact if second else differentiated(case, genred, precision="direct")
    for found, other, wanted in zip(differentiated(case, genred, second), direct, exact, strict=True):
        assert error(found, wanted) <= max(4 * error(other, wanted), FLOOR)


@pytest.mark.parametrize("name", ["gaussian", "LogSumExp", "attention", "parameter"])
def test_gradients(name: str, genred: type[Genred]) -> None:
    tensors = clouds(40, 70, 10, 9 if name == "attention" else 1)
    check_gradients({
        "gaussian": Case(GAUSSIAN, tensors),
        "LogSumExp": Case("b - SqDist(x, y)", tensors, "LogSumExp"),
        "attention": Case("(x | y)", tensors, "SumSoftMaxWeight", options={"formula2": "b"}),
        "parameter": Case("Exp(-p * SqDist(x, y)) * b", {**tensors, "p": torch.tensor([1.3])}),
    }[name], genred)  # fmt: skip


def test_gradients_of_many_right_hand_sides(genred: type[Genred]) -> None:
    check_gradients(Case(GAUSSIAN, clouds(40, 70, 10, 9)), genred)


def test_second_derivatives(genred: type[Genred]) -> None:
    check_gradients(Case(GAUSSIAN, clouds(20, 40, 10)), genred, second=True)


@pytest.mark.parametrize("dim", [64, 200])
def test_errors_at_the_scale_of_the_benchmark(dim: int, genred: type[Genred]) -> None:
    """Of long vectors: exponential sums and averages; the gradient in x, which is a sum of vectors too."""
    tensors = {**clouds(17, 130, dim), "e": cloud(17, 1, 4)}
    for case in kinds(tensors)[1:] if dim == 64 else [Case(f"Grad({GAUSSIAN}, x, e)", tensors)]:
        check(case, genred)
