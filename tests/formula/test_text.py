"""Formula IR as text: goldens of showcase formulas, and the way back to the same object."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.formulas import REGENERATE, reductions
from tritonkeops.formula.evaluate import fold_constants
from tritonkeops.formula.ir import Apply, Category, Const, Node, Reduction, Var
from tritonkeops.formula.rewrite import rewrite
from tritonkeops.formula.text import read, show, spell
from tritonkeops.frontend.infer import infer
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.factor import factor
from tritonkeops.passes.simplify import simplify
from tritonkeops.tile.ir import show as show_tile
from tritonkeops.tile.lower import lower
from tritonkeops.tile.schedule import CpuSchedule

GOLDENS = Path(__file__).parent / "goldens"
SHOWCASE = {
    "gaussian": ("Exp(-p * SqDist(x,y)) * b", ["x = Vi(2)", "y = Vj(2)", "b = Vj(2)", "p = Pm(1)"], "Sum", 0),
    "gradient": ("Grad(Sum_Reduction(Square(p-a) * Exp(x+y), 1), y, e)",
                 ["p = Pm(1)", "a = Vj(1)", "x = Vi(2)", "y = Vj(2)", "e = Vi(2)"], "Sum", 0),
    "neighbours": ("Norm2(x - y)", ["x = Vi(2)", "y = Vj(2)"], "ArgKMin", 2),
}  # fmt: skip
AXIS = {"gaussian": 1, "gradient": 0, "neighbours": 1}


def written(name: str) -> Reduction:
    formula, aliases, op, k = SHOWCASE[name]
    node = infer(formula, aliases, op, AXIS[name], k).root
    return node  # type: ignore[return-value]


def simplified(name: str) -> Reduction:
    return factor(simplify(expand(simplify(differentiate(written(name))))))  # type: ignore[arg-type]


def tile(name: str) -> str:
    form = "guarded" if name == "neighbours" else "simt"
    return show_tile(lower(simplified(name), CpuSchedule(form=form, lanes=16, width=16, unroll=4)))


STAGES = {"formula": lambda name: show(written(name)), "simplified": lambda name: show(simplified(name)), "tile": tile}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SHOWCASE)
def test_golden(name: str, stage: str) -> None:
    """Regenerate with TRITONKEOPS_REGENERATE=1 pytest tests/formula, and read the difference."""
    path, text = GOLDENS / f"{name}.{stage}.txt", STAGES[stage](name)
    if REGENERATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", SHOWCASE)
def test_goldens_are_read_back(name: str) -> None:
    assert read((GOLDENS / f"{name}.formula.txt").read_text()) is written(name)
    assert read((GOLDENS / f"{name}.simplified.txt").read_text()) is simplified(name)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(reductions((1, 2, 3, 4, 20), 4))
def test_text_is_read_back_to_the_same_object(drawn: tuple[Reduction, list[Var]]) -> None:
    simpler = simplify(expand(differentiate(drawn[0])))
    for node in (drawn[0], simpler, factor(simpler)):  # type: ignore[arg-type]
        assert read(show(node)) is node


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(reductions())
def test_what_is_spelt_means_the_same(drawn: tuple[Reduction, list[Var]]) -> None:
    """A formula spelt in the language and typed again, up to constants, which are spelt as quotients and copies."""
    node, pool = drawn
    aliases = [f"{v.name} = {v.category.keyword}({v.dim})" for v in pool]
    again = infer(spell(node), aliases).root
    assert again.dim == node.dim and again.axes == node.axes
    assert plain(again) is plain(node)


def plain(node: Node) -> Node:
    """The node with Zero(n), SumT(c, n), -c and c / d as the constants that they are."""

    def constant(each: Node) -> Node:
        copied = isinstance(each, Apply) and each.op.name == "SumT" and isinstance(each.args[0], Const)
        return Const(each.args[0].value, each.dim) if copied else fold_constants(each)  # type: ignore[attr-defined]

    return rewrite(expand(differentiate(node)), constant)


def test_a_line_per_node_with_shared_ones_once() -> None:
    x = Var(0, 3, Category.I, "x")
    node: Node = x * x + x * x
    assert show(node) == ("%x = Vi(0, 3) : 3 {i}\n%1 = Mult(%x, %x) : 3 {i}\n%2 = Add(%1, %1) : 3 {i}\n")


def test_constants_are_written_exactly() -> None:
    for node in (Const(0.1), Const(-2, 4), Const(1e-300), Const(2**80)):
        assert read(show(node)) is node


@pytest.mark.parametrize("text,message", [
    ("", "empty"),
    ("%x = Vi(0, 3)", "line 1: expected"),
    ("%x = Vi(0, 3) : 3 {i}\n%1 = Frob(%x) : 3 {i}", "line 2: .* unknown operation .Frob"),
    ("%x = Vi(0, 3) : 3 {i}\n%1 = Exp(%x) : 1 {i}", "line 2: Exp.x. has type : 3 {i}"),
    ("%x = Vi(0, 3) : 3 {j}", "line 1: x has type : 3 {i}"),
])  # fmt: skip
def test_text_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


@pytest.mark.parametrize("text", ["%1 = Exp(%x) : 3 {i}", "%x = Vi(0, 3) : 3 {i}\n%1 = reduce Frob(%x) over j : 3 {i}",
                                  "%x = Vi(0, 3) : 3 {i}\n%1 = reduce Exp(%x) over j : 3 {i}"])  # fmt: skip
def test_unknown_names_are_value_errors(text: str) -> None:
    with pytest.raises(ValueError, match=r"line [12]: cannot read"):
        read(text)
