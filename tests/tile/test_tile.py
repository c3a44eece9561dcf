"""Tile programs: where values are placed, what the verifier refuses, and their meaning by interpretation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from tests.formulas import dense_outputs, reductions, values_for
from tritonkeops.formula.evaluate import TorchMath
from tritonkeops.formula.ir import Field, Reduction, Var
from tritonkeops.frontend.infer import infer
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.factor import factor
from tritonkeops.passes.simplify import simplify
from tritonkeops.tile.ir import (
    BOOL,
    COMPONENT_LOOPS,
    FLOAT,
    INDEX,
    TILE_REDUCTIONS,
    Index,
    Store,
    Symbolic,
    TileProgram,
    Value,
    indices_of,
    show,
    topological,
    verify,
)
from tritonkeops.tile.lower import Scalar, TileMath, lower
from tritonkeops.tile.schedule import CpuSchedule, choose_cpu

SIMT = CpuSchedule(form="simt", lanes=16, width=16, unroll=4)


def reduced(formula: str, aliases: list[str], op: str = "Sum", axis: int = 1, k: int = 0) -> Reduction:
    node = simplify(expand(simplify(differentiate(infer(formula, aliases, op, axis, k).root))))
    assert isinstance(node, Reduction)
    return node


def gaussian(axis: int = 1) -> TileProgram:
    aliases = ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "p = Pm(1)", "unused = Vi(2)"]
    typed = infer("Exp(-p*SqDist(x,y))*b*Sum(x)", aliases, "Sum", axis)
    return lower(simplify(expand(typed.root)), SIMT, typed.variables)  # type: ignore[arg-type]


# Placement ----------------------------------------------------------------------------------------------------------


def test_inputs_are_the_call_s_arguments_used_or_not() -> None:
    assert [(x.position, x.name, x.dim, x.axis) for x in gaussian().inputs] == [
        (0, "x", 3, "i"),
        (1, "y", 3, "j"),
        (2, "b", 1, "j"),
        (3, "p", 1, ""),
        (4, "unused", 2, "i"),
    ]


def test_i_is_the_axis_that_is_kept() -> None:
    assert [x.axis for x in gaussian(axis=0).inputs] == ["j", "i", "i", "", "j"]


def test_axes_are_those_of_the_operands() -> None:
    for value in topological(store.value for store in gaussian().update):
        below = frozenset().union(*(arg.axes for arg in value.args))
        if value.op in TILE_REDUCTIONS:
            assert value.axes == (below - {"j"}) | {"tile"}
        elif value.args:
            assert value.axes == below


def test_what_depends_on_i_alone_is_hoisted() -> None:
    values = list(topological(store.value for store in gaussian().update))
    assert {v.attr[0] for v in values if v.op == "load" and v.hoisted} == {0, 3}
    sums = [v for v in values if v.op == "add" and v.axes == {"i"}]
    assert len(sums) == 2, "Sum(x) is computed once per row i"
    text = show(gaussian())
    prologue, loop = text.index("prologue {"), text.index("loop j {")
    assert all(line.count("j") == 0 for line in text[prologue:loop].splitlines()[1:-1])


def test_equal_values_are_one() -> None:
    node = reduced("Exp(-SqDist(x,y))*Concat(SqDist(x,y),Exp(-SqDist(x,y)))", ["x = Vi(3)", "y = Vj(3)"])
    values = list(topological(store.value for store in lower(node, SIMT).update))
    assert sum(v.op == "exp" for v in values) == 1 and sum(v.op == "sub" for v in values) == 3


def test_large_dims_are_looped() -> None:
    node = reduced("SqDist(x,y)*y", ["x = Vi(100)", "y = Vj(100)"])
    program = lower(node, SIMT)
    values = list(topological(store.value for store in program.update))
    (total,) = [v for v in values if v.op == "sum"]
    assert total.attr[0].size == 100 and total.axes == {"i", "j"}
    (store,) = program.update
    assert isinstance(store.position, Index) and store.position.size == 100 and len(values) < 20


def test_parts_of_a_long_vector_have_loops_of_their_own() -> None:
    """Gradients side by side: one loop over all components would choose among the formulas at each."""
    node = reduced("Concat(Concat(x*y, Sum(x)*y), (x|y))", ["x = Vi(30)", "y = Vj(30)"])
    stores = lower(node, SIMT).update
    assert [str(s.position) for s in stores] == [str(stores[0].position), f"({stores[1].position.left} + 30)", "60"]  # type: ignore[union-attr]
    assert not any(v.op == "piecewise" for v in topological(store.value for store in stores))
    many = reduced("+".join(f"ElemT(Elem(x*y,{k}),30,{k})" for k in range(20)), ["x = Vi(30)", "y = Vj(30)"])
    assert len(lower(many, SIMT).update) == 1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dim", [3, 40])
def test_lowering_is_deterministic(axis: int, dim: int) -> None:
    aliases = [f"x = Vi({dim})", f"y = Vj({dim})"]
    texts = {show(lower(reduced("SqDist(x,y)", aliases, "ArgKMin", axis, 3), SIMT)) for _ in range(3)}
    assert len(texts) == 1


# Verification -------------------------------------------------------------------------------------------------------


def value(
    op: str, args: tuple[Value, ...] = (), attr: tuple[object, ...] = (), kind: str = FLOAT, axes: str = ""
) -> Value:
    return Value(op, args, attr, kind, frozenset({"t": "tile"}.get(axis, axis) for axis in axes))


LOAD_J = value("load", attr=(1, 0), axes="j")
LOAD_I = value("load", attr=(0, 0), axes="i")
k9 = Index("k9", 9)
BAD = {
    "a load out of bounds": (Store("s", 0, value("load", attr=(0, 3), axes="i")), "out of bounds"),
    "a negative component": (Store("s", 0, value("load", attr=(0, -1), axes="i")), "out of bounds"),
    "an accumulator out of bounds": (Store("s", 0, value("acc", attr=("a", "s", 1), axes="it")), "out of bounds"),
    "a loop past the end": (
        Store("s", 0, value("sum", (Value("load", (), (0, k9), FLOAT, frozenset(["i", k9])),), (k9,), axes="i")),
        "out of bounds",
    ),
    "an accumulator that depends on j": (Store("s", 0, LOAD_J), "depends on j"),
    "a choice by a number": (Store("s", 0, value("where", (LOAD_I, LOAD_I, LOAD_I), axes="i")), "chooses by a float"),
    "a free index": (
        Store("s", 0, Value("load", (), (0, Index("k", 3)), FLOAT, frozenset(["i", Index("k", 3)]))),
        "free index",
    ),
    "an index where a float belongs": (Store("s", 0, value("const", attr=(0,), kind=INDEX)), "is float, got index"),
    "a condition where a float belongs": (
        Store("s", 0, value("lt", (LOAD_I, LOAD_I), kind=BOOL, axes="i")),
        "is float, got bool",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_the_verifier_refuses(case: str) -> None:
    store, message = BAD[case]
    with pytest.raises(AssertionError, match=message):
        verify(replace(gaussian(), update=(store,)))


@pytest.mark.parametrize("section", ["merge", "finish"])
def test_only_the_update_reduces_a_tile(section: str) -> None:
    target = "s" if section == "merge" else "value"
    store = Store(target, 0, value("sum_j", (LOAD_J,), axes="t"))
    with pytest.raises(AssertionError, match=f"{section} reduces a tile"):
        verify(replace(gaussian(), **{section: (store,)}))


def test_an_index_accumulator_holds_no_float() -> None:
    program = lower(reduced("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"], "ArgMin"), SIMT)
    wrong = Store("i", 0, value("max_j", (LOAD_J,), axes="t"))
    with pytest.raises(AssertionError, match="i is index, got float"):
        verify(replace(program, update=(*program.update, wrong)))


def test_what_lowering_makes_is_verified() -> None:
    verify(gaussian())


# Meaning: a tile program interpreted, as a back end would run it ----------------------------------------------------


class Interpreter:
    """Runs a tile program on tensors (rows, 1) and (1, cols), one value at a time: the plainest back end."""

    def __init__(self, program: TileProgram, args: list[Tensor], M: int, N: int) -> None:
        self.program, self.args, self.M, self.N = program, args, M, N
        self.m = TorchMath(torch.empty((), dtype=torch.float64), 0, N)

    def run(self, split: int) -> list[Tensor]:
        """Reduce rows j below and above `split` apart, merge, and finish: outputs (dim, rows)."""
        states = [self.fold(0, split), self.fold(split, self.N)]
        merged = states[0]
        for n in range(self.program.merge_over.size) if self.program.merge_over else [None]:
            bound = {} if n is None else {self.program.merge_over: n}
            merged = self.stores(self.program.merge, merged, {"a": merged, "b": states[1]}, bound, slice(0, 0))
        outputs = {
            each.name: torch.empty((each.dim, self.M, 1), dtype=torch.int64 if each.index else torch.float64)
            for each in self.program.outputs
        }
        finished = self.stores(self.program.finish, outputs, {"a": merged}, {}, slice(0, 0))
        return [finished[each.name][..., 0] for each in self.program.outputs]

    def empty(self) -> dict[str, Tensor]:
        def start(each: Field) -> Tensor:
            kind = torch.int64 if each.index else torch.float64
            return torch.full((each.size, self.M, 1), each.identity, dtype=kind)

        return {each.name: start(each) for each in self.program.fields}

    def fold(self, start: int, stop: int) -> dict[str, Tensor]:
        state = self.empty()
        step = 1 if self.program.guard is not None else 3
        for first in range(start, stop, step):
            tile = slice(first, min(first + step, stop))
            new = self.stores(self.program.update, state, {"a": state}, {}, tile)
            if self.program.guard is not None:
                passed = self.value(self.program.guard, {"a": state}, {}, tile)
                new = {name: torch.where(passed, new[name], state[name]) for name in state}
            state = new
        return state

    def stores(self, stores, into, acc, bound, tile):  # type: ignore[no-untyped-def]
        result = {name: tensor.clone() for name, tensor in into.items()}
        for store in stores:
            free = [k for k in indices_of(store.position) if k not in bound]
            for counts in itertools.product(*(range(k.size) for k in free)):
                inner = {**bound, **dict(zip(free, counts, strict=True))}
                result[store.target][self.position(store.position, inner)] = self.value(store.value, acc, inner, tile)
        return result

    def value(self, root: Value, acc, bound, tile: slice):  # type: ignore[no-untyped-def]
        if root.op in COMPONENT_LOOPS:
            k = root.attr[0]
            terms = torch.broadcast_tensors(
                *(self.value(root.args[0], acc, {**bound, k: n}, tile) for n in range(k.size))
            )
            if root.op.startswith("arg"):
                return getattr(torch.stack(terms), root.op)(0).double()
            return {"sum": torch.sum, "max": torch.amax, "min": torch.amin}[root.op](torch.stack(terms), 0)
        if root.op == "piecewise":
            k, *stops = root.attr
            n = self.position(k, bound)
            return self.value(root.args[next(p for p, stop in enumerate(stops) if n < stop)], acc, bound, tile)
        if not root.args:
            return self.leaf(root, acc, bound, tile)
        args = [self.value(arg, acc, bound, tile) for arg in root.args]
        if root.op in TILE_REDUCTIONS:
            full = args[0].expand(args[0].shape[0], tile.stop - tile.start)
            found = getattr(self.m, root.op)(full)
            return found + tile.start if root.op.startswith("arg") else found
        infix = {
            "add": "__add__",
            "sub": "__sub__",
            "mul": "__mul__",
            "div": "__truediv__",
            "neg": "__neg__",
            "lt": "__lt__",
            "le": "__le__",
            "gt": "__gt__",
            "ge": "__ge__",
            "and": "__and__",
            "or": "__or__",
            "not": "__invert__",
        }
        if root.op in infix:
            return getattr(args[0], infix[root.op])(*args[1:])
        return getattr(self.m, root.op)(*args)

    def position(self, k, bound) -> int:  # type: ignore[no-untyped-def]
        if isinstance(k, int):
            return k
        if isinstance(k, Index):
            return bound[k]  # type: ignore[no-any-return]
        left, right = self.position(k.left, bound), self.position(k.right, bound)
        return {
            "+": left + right,
            "-": left - right,
            "*": left * right,
            "/": left // max(right, 1),
            "%": left % max(right, 1),
        }[k.symbol]

    def leaf(self, leaf: Value, acc, bound, tile: slice):  # type: ignore[no-untyped-def]
        if leaf.op == "load":
            source = next(x for x in self.program.inputs if x.position == leaf.attr[0])
            column = self.args[source.position][self.position(leaf.attr[1], bound)]
            return (
                column[:, None]
                if source.axis == "i"
                else column[None, tile]
                if source.axis == "j"
                else column.reshape(1, 1)
            )
        if leaf.op == "acc":
            which, name, k = leaf.attr
            return acc[which][name][self.position(k, bound)]
        if leaf.op == "index_j":
            return torch.arange(tile.start, tile.stop)[None]
        if leaf.op == "count_j":
            return torch.tensor([[self.N]])
        if leaf.op == "number":
            return torch.tensor([[float(self.position(leaf.attr[0], bound))]], dtype=torch.float64)
        assert leaf.op == "const", leaf
        number = leaf.attr[0]
        kind = torch.int64 if leaf.type == INDEX else torch.float64
        return torch.tensor([[float(number)]], dtype=torch.float64).to(kind)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(reductions((1, 2, 3, 20), 2))
def test_tile_programs_mean_what_formulas_mean(drawn: tuple[Reduction, list[Var]]) -> None:
    """Interpreted with components unrolled and looped, and j split in two parts that are merged."""
    node, pool = drawn
    node = simplify(expand(simplify(differentiate(node))))
    assert isinstance(node, Reduction)
    node = factor(node)
    axes = {axis for v in pool for axis in v.axes}
    M, N = 4 if "i" in axes else 1, 7 if "j" in axes else 1
    values = values_for(pool, M, N)
    expected = dense_outputs(node, values, M, N)
    args = [values[v].reshape(v.dim, -1) for v in pool]
    rows, cols = (M, N) if node.axis == 1 else (N, M)
    for unroll_dims in (16, 2):
        program = lower(node, replace(SIMT, unroll_dims=unroll_dims), pool)
        found = Interpreter(program, args, rows, cols).run(cols // 2)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-9, atol=1e-9, msg=show(program))


# Symbols and schedules ----------------------------------------------------------------------------------------------


def test_component_arithmetic() -> None:
    k = Index("k", 12)
    assert k + 0 is k and k * 1 is k and k // 1 is k and k - 0 is k and k % 1 == 0
    for position in (k + 2, 3 * k, k - 1, k // 4, k % 4, (k + 1) * 2):
        assert isinstance(position, Symbolic) and indices_of(position) == {k}
    assert (k + 5) - 5 is k and str((k + 5) - 2) == "(k + 3)" and (k + 4) - k == 4 and k - k == 0
    assert indices_of(5) == frozenset() and str((k + 2) * 3) == "((k + 2) * 3)"


def test_value_numbering() -> None:
    m = TileMath(16, 16)
    a, b = m.const(2.0), m.number(3)
    assert (a + b).value is (a + b).value and (a + b).value is not (b + a).value
    assert m.const(0.5).value is m.const(0.5).value and isinstance(a + 1, Scalar)
    assert m.const(math.inf).value.attr == ("inf",)


@pytest.mark.parametrize(
    "op,k,dim,form",
    [
        ("Sum", 0, 3, "simt"),
        ("LogSumExp", 0, 3, "simt"),
        ("ArgMin", 0, 3, "simt"),
        ("Sum", 0, 100, "dot"),
        ("KMin", 3, 3, "guarded"),
        ("ArgKMax", 3, 100, "guarded"),
    ],
)
@pytest.mark.parametrize("itemsize", [4, 8])
def test_the_chooser(op: str, k: int, dim: int, form: str, itemsize: int) -> None:
    node = reduced("SqDist(x,y)", [f"x = Vi({dim})", f"y = Vj({dim})"], op, 1, k)
    schedule = choose_cpu(node, itemsize)
    assert schedule.form == form
    assert schedule.lanes % schedule.width == 0 and schedule.unroll >= 1 and schedule.index_bits in (32, 64)
    assert hash(schedule) == hash(choose_cpu(node, itemsize)) and str(schedule).startswith(form)
    few, long = choose_cpu(node, itemsize, rows=1), choose_cpu(node, itemsize, long=True)
    assert few.lanes <= schedule.lanes and long.index_bits == 64


@pytest.mark.parametrize(
    "op,scheme,blocked", [("Sum", "block_sum", True), ("Sum", "direct_sum", False), ("Min", "direct_sum", False)]
)
def test_sum_schemes_set_blocks(op: str, scheme: str, blocked: bool) -> None:
    assert bool(choose_cpu(reduced("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"], op), 4, scheme).block_sum) is blocked


def test_long_formulas_are_not_unrolled_over_j() -> None:
    """Compilers take minutes for what they compile in a second one j at a time; short ones keep their tiles."""
    aliases = ["x = Vi(3)", "y = Vj(3)", "k = Pm(10)"]
    assert choose_cpu(reduced("BSpline(k,(x|y),3)", aliases), 4).unroll <= 3
    assert choose_cpu(reduced("Grad(Exp(-SqDist(x,y)),x,Elem(x,0))", aliases[:2]), 4).unroll >= 4
