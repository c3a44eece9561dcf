"""Formula nodes: interned, frozen, pickled to themselves, and typed."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import subprocess
import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formulas import reduction, reductions, word
from tritonkeops.formula import ir
from tritonkeops.formula.ir import (
    Apply,
    Category,
    Const,
    IllTyped,
    Node,
    Reduced,
    Reduction,
    Var,
    in_range,
    postorder,
    rebuild,
    rounded,
    variables,
)
from tritonkeops.formula.rewrite import rewrite, substitute
from tritonkeops.formula.text import read, show

x, y, b, p = (
    Var(0, 3, Category.I, "x"),
    Var(1, 3, Category.J, "y"),
    Var(2, 1, Category.J, "b"),
    Var(3, 1, Category.P, "p"),
)


def gaussian() -> Node:
    return word("Exp")(-word("SqDist")(x, y) * p) * b


def test_equal_nodes_are_one_object() -> None:
    assert gaussian() is gaussian()
    assert Reduction(reduction("Sum"), [gaussian()], 1) is Reduction(reduction("Sum"), (gaussian(),), 1)
    assert Const(0.5) is Const(Fraction(1, 2)) and Const(2) is Const(2.0)
    assert word("Pow")(x, 3) is word("Pow")(x, 3)


def test_different_nodes_are_not() -> None:
    f = gaussian()
    nodes = [f, Const(1), Const(1, 3), word("Pow")(x, 2), word("Pow")(x, 3), Var(0, 3, Category.I, "z"), x,
             *(Reduction(reduction("Sum"), [f], axis) for axis in (0, 1)),
             *(Reduction(reduction("KMin"), [f], 1, k) for k in (1, 2))]  # fmt: skip
    assert len(set(nodes)) == len(nodes)


def test_many_threads_build_one_object() -> None:
    start, found = threading.Barrier(8), []

    def build() -> None:
        start.wait()
        node: Node = x
        for n in range(200):
            node = word("Tanh")(node + Const(n))
        found.append(node)

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_nodes_that_nobody_holds_are_forgotten() -> None:
    gc.collect()
    before = len(ir._interned)
    node: Node = x
    for n in range(50):
        node = word("Sin")(node + Const(Fraction(n, 977)))
    assert len(ir._interned) > before
    del node
    gc.collect()
    assert len(ir._interned) == before


@pytest.mark.parametrize("node", [x, Const(2), gaussian(), Reduction(reduction("Sum"), [gaussian()], 1)], ids=repr)
@pytest.mark.parametrize("field", ["dim", "axes", "args", "op", "anything"])
def test_nodes_are_frozen(node: Node, field: str) -> None:
    with pytest.raises(AttributeError, match=f"frozen: cannot set '{field}'"):
        setattr(node, field, 1)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(reductions())
def test_pickle_and_copy_return_the_object(drawn: tuple[Reduction, list[Var]]) -> None:
    node, _ = drawn
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(node, protocol)) is node
    assert copy.copy(node) is node and copy.deepcopy(node) is node


def test_a_pickle_is_read_by_a_process_that_imported_nothing() -> None:
    node = Reduction(reduction("KMin"), [gaussian()], 1, 4)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(node), capture_output=True, check=False)
    assert done.stdout.decode().strip() == repr(node), done.stderr.decode()


def test_dims_and_axes() -> None:
    f = gaussian()
    assert (x.dim, x.axes) == (3, {"i"}) and (y.axes, p.axes) == ({"j"}, frozenset())
    assert (f.dim, f.axes) == (1, {"i", "j"})
    assert word("TensorProd")(x, y).dim == 9
    assert (word("Exp")(x) * p).axes == {"i"} and Const(2).axes == frozenset()


@pytest.mark.parametrize("axis,kept", [(0, "j"), (1, "i")])
def test_a_reduction_varies_with_the_axis_that_is_kept(axis: int, kept: str) -> None:
    node = Reduction(reduction("Min"), [x * y], axis)
    assert (node.axes, node.dim) == ({kept}, 3)
    assert Reduction(reduction("ArgKMin"), [x * y], axis, 5).dim == 15
    assert Reduction(reduction("SumSoftMaxWeight"), [b, y], axis).dim == 3
    assert Reduction(reduction("Max_SumShiftExpWeight"), [b, y], axis).dim == 4


@pytest.mark.parametrize("build,message", [
    (lambda: x + word("Concat")(x, b), "f = x has dim 3, g = Concat.x, b. has dim 4"),
    (lambda: word("Exp")(x, y), "Exp.f. takes 1 argument, got 2"),
    (lambda: word("Pow")(x, 0.5), "Pow: 'P' must be an integer"),
    (lambda: Reduction(reduction("KMin"), [x], 1), "KMin needs opt_arg=K"),
    (lambda: Reduction(reduction("Sum"), [x], 1, 3), "Sum takes no opt_arg; got 3"),
    (lambda: Reduction(reduction("Sum"), [x, y], 1), "Sum takes no weight"),
    (lambda: Reduction(reduction("SoftMax"), [x], 1), "SoftMax takes a weight"),
    (lambda: Reduction(reduction("SoftMax"), [word("Concat")(x, x), y], 1), "formula has dim 6 and weight dim 3"),
    (lambda: word("Elem")(x, 3), "expected 0 <= m < 3"),
    (lambda: Reduction(reduction("Sum"), [x], 1, result=y), "y is no result of a value of dim 3"),
    (lambda: Reduction(reduction("Sum"), [b], 1, result=Reduced(3, x.axes)), "no result of a value of dim 1"),
    (lambda: Reduction(reduction("KMin"), [x], 1, 2, Reduced(6, x.axes) * 2), "KMin: Reduced . 2 is no result"),
    (lambda: Reduction(reduction("ArgMin"), [b], 1, result=x), "ArgMin: x is no result"),
])  # fmt: skip
def test_what_cannot_exist_is_refused(build, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(IllTyped, match=message):
        build()


def test_python_arithmetic_builds_formulas() -> None:
    w = word
    assert x + 1 is w("Add")(x, Const(1)) and 1 + x is w("Add")(Const(1), x)
    assert x - 1 is w("Subtract")(x, Const(1)) and 1 - x is w("Subtract")(Const(1), x)
    assert x * 2 is w("Mult")(x, Const(2)) and 2 * x is w("Mult")(Const(2), x)
    assert x / 2 is w("Divide")(x, Const(2)) and 2 / x is w("Divide")(Const(2), x)
    assert -x is w("Minus")(x) and x**2 is w("Powf")(x, Const(2)) and x | y is w("Scalprod")(x, y)


def test_constants_are_exact() -> None:
    assert Const(0.1).value == Fraction(0.1) and Const(Fraction(1, 3)).value == Fraction(1, 3)
    assert Const(16777217).value == 16777217


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.fractions(), st.integers(-1100, 1100))
def test_numbers_are_rounded_to_the_nearest(significand: Fraction, exponent: int) -> None:
    value = significand * Fraction(2) ** exponent
    try:
        assert rounded(value) == float(value)
    except OverflowError:
        assert math.isinf(rounded(value)) and not in_range(value)
    number = np.float32(rounded(value, "float32"))
    if np.isfinite(number):
        others = [float(np.nextafter(number, np.float32(end))) for end in (-math.inf, math.inf)]
        assert all(abs(value - Fraction(float(number))) <= abs(value - Fraction(x)) for x in others if math.isfinite(x))


HALF, TINY = Fraction(1, 2**24), Fraction(1, 10**40)  # of the step between float32 above 1; less than a double can tell


@pytest.mark.parametrize(
    "value,nearest",
    [
        (1 + HALF, 1),
        (1 + HALF + TINY, 1 + 2 * HALF),
        (1 + 3 * HALF, 1 + 4 * HALF),
        (1 + 3 * HALF - TINY, 1 + 2 * HALF),
        (-1 - HALF - TINY, -1 - 2 * HALF),
        (Fraction(2) ** 128 - 2**103, math.inf),
        (2**103 - Fraction(2) ** 128, -math.inf),
        (Fraction(2) ** 128 - 2**103 - TINY, Fraction(2) ** 128 - 2**104),
        (Fraction(2) ** -150, 0),
        (Fraction(2) ** -150 + TINY**9, Fraction(2) ** -149),
        (Fraction(10) ** 600, math.inf),
    ],
)
def test_numbers_are_rounded_to_float32_once(value: Fraction, nearest: Fraction | float) -> None:
    assert rounded(value, "float32") == nearest


def test_postorder_is_topological_and_goes_deep() -> None:
    node: Node = x
    for _ in range(5000):
        node = word("Sin")(node) + node
    order = list(postorder([node]))
    place = {each: n for n, each in enumerate(order)}
    assert len(order) == len(place) == 10001
    assert all(place[operand] < place[each] for each in order for operand in each.operands)
    assert "x" in repr(word("Sin")(x)) and variables(node) == (x,)
    assert rewrite(node, lambda each: each) is node


def test_variables_come_by_position() -> None:
    assert variables(b * p, x | y) == (x, y, b, p)


def test_substitute_and_rebuild() -> None:
    assert substitute(gaussian(), {x: y, y: x}) is word("Exp")(-word("SqDist")(y, x) * p) * b
    node = Reduction(reduction("KMin"), [x | y], 0, 2)
    assert rebuild(node, node.operands) is node and rebuild(node, [b]).operands == (b,)
    assert rebuild(x, ()) is x


def test_the_formula_of_the_result_is_part_of_a_reduction() -> None:
    plain = Reduction(reduction("Sum"), [b * y], 1)
    result = word("Scalprod")(p * x, plain.reduced)
    node = Reduction(reduction("Sum"), [b * y], 1, result=result)
    assert node is not plain and (node.dim, node.axes, node.operands) == (1, {"i"}, (b * y, result))
    assert pickle.loads(pickle.dumps(node)) is node and variables(node) == (x, y, b, p)
    assert rebuild(node, node.operands) is node and Reduction(reduction("Sum"), [b * y], 1, 0, plain.reduced) is plain
    assert repr(substitute(node, {p: Const(2)})) == "2 * x | Sum_Reduction(b * y, 1)"
    assert repr(node) == "p * x | Sum_Reduction(b * y, 1)" and read(show(node)) is node


def test_apply_checks_like_the_operator_s_call() -> None:
    with pytest.raises(IllTyped):
        Apply(word("Add"), [x, word("Concat")(x, x)])
    assert Apply(word("Add"), [x, y]) is x + y
