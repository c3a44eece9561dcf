"""Typing: what every construct of the language becomes, and the messages of every error."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.formulas import REGENERATE, dense, reduction, values_for, word
from tritonkeops.compiler import Program
from tritonkeops.errors import FormulaError
from tritonkeops.formula.ir import Apply, Category, Const, Node, Operator, Reduction, ReductionOp, Var, words
from tritonkeops.formula.text import read, show, spell
from tritonkeops.frontend.infer import infer

ERRORS = Path(__file__).parent / "errors"
ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "p = Pm(1)", "a = Vi(1)"]
x, y, b = Var(0, 3, Category.I, "x"), Var(1, 3, Category.J, "y"), Var(2, 1, Category.J, "b")
p, a = Var(3, 1, Category.P, "p"), Var(4, 1, Category.I, "a")


def typed(text: str) -> Node:
    return infer(text, ALIASES, "Sum", 1).root.operands[0]


# Error messages: fixtures of inputs and expected words --------------------------------------------------------------


def cases() -> list[Path]:
    return sorted(ERRORS.glob("*.txt"))


def compile_fixture(given: str) -> None:
    """What a fixture's lines ask for: formula, aliases in their order, and the constructor's options."""
    options: dict[str, Any] = {"reduction_op": "Sum", "axis": 0, "opt_arg": 0, "formula2": None}
    aliases: list[str] = []
    for line in given.strip().splitlines():
        name, _, value = line.partition(":")
        value = value.removeprefix(" ").replace("\\n", "\n")
        if name == "alias":
            aliases.append(value)
        else:
            options[name] = int(value) if name in ("axis", "opt_arg") else value
    Program(
        options["formula"], aliases, options["reduction_op"], options["axis"], options["opt_arg"], options["formula2"]
    )


@pytest.mark.parametrize("path", cases(), ids=lambda path: path.stem)
def test_error_message(path: Path) -> None:
    """Regenerate with TRITONKEOPS_REGENERATE=1 pytest tests/frontend, and read the difference."""
    given, _, expected = path.read_text().partition("---\n")
    with pytest.raises(FormulaError) as caught:
        compile_fixture(given)
    found = f"{caught.value}\n"
    if REGENERATE:
        path.write_text(f"{given}---\n{found}")
        expected = found
    assert found == expected


@pytest.mark.parametrize("path", cases(), ids=lambda path: path.stem)
def test_errors_come_in_reading_order(path: Path) -> None:
    """The formula by position, its weight, the aliases by number, then what has no place in a text."""
    with pytest.raises(FormulaError) as caught:
        compile_fixture(path.read_text().partition("---\n")[0])
    order = ["formula", "formula2", *(f"alias {n}" for n in range(1, 20))]
    places = [(order.index(d.span.source.name), d.span.start) if d.span else (99, 0) for d in caught.value.diagnostics]
    assert places == sorted(places) and places
    assert len(set(map(str, caught.value.diagnostics))) == len(places), "nothing is said twice"


def test_aliases_are_a_list() -> None:
    with pytest.raises(
        TypeError, match=r"aliases: expected a list of strings such as 'x = Vi.3.', got the string 'x = Vi"
    ):
        infer("x", "x = Vi(3)")


@pytest.mark.parametrize("formula,aliases", [(None, ["x = Vi(3)"]), ("x", [3])])
def test_texts_are_strings(formula: Any, aliases: Any) -> None:
    with pytest.raises(TypeError, match="expected a str"):
        infer(formula, aliases)


# Variables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formula,aliases",
    [
        ("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"]),
        ("SqDist(x,y)", ["x=Vi(0,3)", "y=Vj(1,3)"]),
        ("SqDist(x,y)", [" y = Vj( 1 , 3 ) ", "x = Vi(0,3)"]),
        ("SqDist(x,y)", ["x = Vx(3)", "y = Vy(3)"]),
        ("SqDist(x,y)", ["x = Var(0,3,0)", "y = Var(1,3,1)"]),
    ],
)
def test_ways_to_declare_the_same(formula: str, aliases: list[str]) -> None:
    assert infer(formula, aliases, axis=1).root is Reduction(reduction("Sum"), [word("SqDist")(x, y)], 1)


@pytest.mark.parametrize(
    "formula,aliases,names",
    [
        ("SqDist(Vi(0,3),Vj(1,3))*Pm(2,1)", [], ["v0", "v1", "v2"]),
        ("SqDist(Var(0,3,0),Var(1,3,1))*Var(2,1,2)", [], ["v0", "v1", "v2"]),
        ("SqDist(x,Vj(1,3))*Pm(2,1)", ["x = Vi(3)"], ["x", "v1", "v2"]),
        ("SqDist(Vi(0,3),y)*Vj(2,1)", ["y = Vj(1,3)"], ["v0", "y", "v2"]),
        ("SqDist(x,Vi(0,3))*Vi(0,3)", ["x = Vi(3)"], ["x"]),
        ("SqDist(Vi(0,3),v0)", ["v0 = Vj(1,3)"], ["v0_", "v0"]),
        ("SqDist(Var(0,3,0),v0)", ["Var(0,3,0)", "v0 = Vj(1,3)"], ["v0_", "v0"]),
        ("x", ["x = Vi(3)", "y = Vj(2)", "unused = Pm(7)"], ["x", "y", "unused"]),
        ("x", ["Vi(3)", "x = Vj(3)"], ["v0", "x"]),
        ("x + y", ["x = Vi(0,3)", "y = Vi(0,3)"], ["x"]),
        ("Pm(3,1)*(Vj(1,3)|Vi(2,3))", ["p = Pm(2)"], ["p", "v1", "v2", "v3"]),
    ],
)
def test_variables_inline_and_as_aliases(formula: str, aliases: list[str], names: list[str]) -> None:
    variables = infer(formula, aliases).variables
    assert [v.name for v in variables] == names
    assert [v.position for v in variables] == list(range(len(names)))


def test_keops_tutorial_formula() -> None:
    """The one of KeOps' page, which KeOps 2.3 cannot read."""
    root = infer("Sum_Reduction( Square( Pm(0,1) - Vj(3,1) ) * Exp( Vi(1,3) + Vj(2,3) ), 1 )", []).root
    assert isinstance(root, Reduction) and (root.axis, root.dim, root.axes) == (1, 3, {"i"})


# Expressions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text,value",
    [
        ("0.1", Fraction(1, 10)),
        ("2", 2),
        ("1e-3", Fraction(1, 1000)),
        (".5", Fraction(1, 2)),
        ("2.", 2),
        ("16777217", 16777217),
        ("IntCst(16777217)", 16777217),
        ("IntCst(-2)", -2),
        ("IntInv(3)", Fraction(1, 3)),
        ("RatCst(2,3)", Fraction(2, 3)),
        ("0.30000000000000004", Fraction("0.30000000000000004")),
    ],
)
def test_literals_are_exact(text: str, value: Fraction) -> None:
    from tritonkeops.passes.differentiate import expand  # IntCst and its kin are words for constants

    node = expand(typed(text))
    assert isinstance(node, Const) and node.value == value


@pytest.mark.parametrize(
    "text,value",
    [
        ("0.1*a", 0.1),
        ("16777217*a", 16777217.0),
        ("a/3", 1 / 3),
        ("IntInv(3)*a", 1 / 3),
        ("a*0.30000000000000004", 0.30000000000000004),
        ("1e300*a", 1e300),
    ],
)
def test_literals_are_rounded_once(text: str, value: float) -> None:
    from tritonkeops.torch import Genred  # the whole way, through C, in float64

    one = torch.ones(1, 1, dtype=torch.float64)
    empty = [torch.ones(1, n, dtype=torch.float64) for n in (3, 3, 1)]
    result = Genred(text, ALIASES, "Sum", axis=1)(empty[0], empty[1], empty[2], one[0], one)
    assert isinstance(result, torch.Tensor) and float(result) == pytest.approx(value, rel=2.3e-16)


@pytest.mark.parametrize(
    "text,same",
    [
        ("-x**2", "-(x**2)"),
        ("-x*y", "(-x)*y"),
        ("x - y - x", "(x - y) - x"),
        ("x / y * x", "(x / y) * x"),
        ("x + y * x", "x + (y * x)"),
        ("x | y + x", "x | (y + x)"),
        ("x | y * x", "x | (y * x)"),
        ("2 ** -x", "2 ** (-x)"),
        ("x ** y ** x", "x ** (y ** x)"),
        ("x + y < x * y", "(x + y) < (x * y)"),
        ("x|y < a", "(x|y) < a"),
        ("x-y|x", "(x-y)|x"),
        ("- -x", "-(-x)"),
        ("+x", "x"),
        ("((x))", "x"),
        (" x\n+\ty ", "x+y"),
    ],
)
def test_precedence(text: str, same: str) -> None:
    assert typed(text) is typed(same)


@pytest.mark.parametrize(
    "symbol,name",
    [
        ("+", "Add"),
        ("-", "Subtract"),
        ("*", "Mult"),
        ("/", "Divide"),
        ("**", "Powf"),
        ("|", "Scalprod"),
        ("<", "LessThan"),
        ("<=", "LessOrEqual"),
        (">", "GreaterThan"),
        (">=", "GreaterOrEqual"),
        ("==", "Equal"),
        ("!=", "NotEqual"),
    ],
)
def test_symbols(symbol: str, name: str) -> None:
    assert typed(f"x {symbol} y") is word(name)(x, y)
    assert typed(f"x {symbol} 0.5") is word(name)(x, Const(Fraction(1, 2)))
    assert typed(f"2 {symbol} x") is word(name)(Const(2), x)


@pytest.mark.parametrize(
    "text", ["x**2", "x**3", "x**0.5", "x**-1", "x**2.5", "x**b", "Clamp(x,0,1)", "IfElse(x,2,3.5)", "x==1"]
)
def test_numbers_as_operands(text: str) -> None:
    assert typed(text).dim == 3


def test_powers_mean_powers() -> None:
    values = {v: t.abs() + 0.1 for v, t in values_for([x, y, b, p, a]).items()}
    for power in ("2", "3", "-1", "0.5", "-2.5", "0"):
        expected = values[x] ** float(power)
        torch.testing.assert_close(dense(typed(f"x**{power}"), values).expand_as(expected), expected)


@pytest.mark.parametrize(
    "name", sorted(name for name, op in words.items() if isinstance(op, Operator) and not op.symbol)
)
def test_every_operator_is_typed_by_its_name(name: str) -> None:
    op = word(name)
    if "Grad" in name:
        return
    dims = op.example_dims or (3,) * len(op.operands)
    aliases = [f"f{n} = Vi({dim})" for n, dim in enumerate(dims)] or ["f0 = Vi(1)"]
    listed = ", ".join([f"f{n}" for n in range(len(op.operands))] + [str(s) for s in op.example])
    node = infer(f"{name}({listed})", aliases).root.operands[0]
    assert isinstance(node, Apply) and node.op is op and node.static == op.example


# Reductions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis,kept", [(1, "i"), (0, "j")])
def test_the_axis_in_the_text_is_the_axis_argument(axis: int, kept: str) -> None:
    """As documented: 1 reduces over j, with a result indexed by i; 0 over i."""
    written = infer(f"Sum_Reduction(x*y, {axis})", ALIASES).root
    assert written is infer("x*y", ALIASES, "Sum", axis).root
    assert written.axes == {kept}


REDUCTIONS = sorted(name for name, op in words.items() if isinstance(op, ReductionOp))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_every_reduction_in_the_text_and_by_name(name: str, axis: int) -> None:
    op = words[name]
    assert isinstance(op, ReductionOp)
    k, weight = 4 * op.takes_k, "b*x" if op.formulas[0] == 2 else None
    text = f"{name}((x|y), {'4, ' * op.takes_k}{axis}{', b*x' if weight else ''})"
    node = infer(text, ALIASES).root
    assert node is infer("(x|y)", ALIASES, op.name, axis, k, weight).root
    assert isinstance(node, Reduction) and (node.op, node.axis, node.k) == (op, axis, k)


def test_optional_weight() -> None:
    assert infer("LogSumExp_Reduction(x|y, 1, b)", ALIASES).root is infer("x|y", ALIASES, "LogSumExp", 1, 0, "b").root
    assert len(infer("LogSumExp_Reduction(x|y, 1)", ALIASES).root.operands) == 1


def test_weight_with_inline_variables() -> None:
    found = infer("SqDist(Vi(0,3),Vj(1,3))", [], "SoftMax", 1, 0, "Vj(2,5)")
    assert [v.dim for v in found.variables] == [3, 3, 5] and found.root.dim == 5


def test_gradients_of_reductions() -> None:
    Grad, total = word("Grad"), Reduction(reduction("Sum"), [x * y], 1)
    assert infer("Grad(Sum_Reduction(x*y,1),x,x)", ALIASES).root is Grad(total, x, x)
    assert infer("Grad(Grad(Sum_Reduction(x*y,1),y,x),y,y)", ALIASES).root is Grad(Grad(total, y, x), y, y)
    lse = Reduction(reduction("LogSumExp"), [word("Scalprod")(x, y)], 1)
    saved = word("Grad_WithSavedForward")(lse, y, a, a)
    assert infer("Grad_WithSavedForward(LogSumExp_Reduction((x|y),1), y, a, a)", ALIASES).root is saved


def test_axis_1_agrees_with_a_gradient_along_i() -> None:
    assert infer("Grad(Sum_Reduction(x*y,1),x,x)", ALIASES, "Sum", 1).root.dim == 3


@pytest.mark.parametrize("text,category", [("x", "x"), ("p", "p"), ("y", "y")])
def test_gradients_of_formulas(text: str, category: str) -> None:
    node = typed(f"Grad(SqDist(x,y)*p, {text}, b)")
    assert node.dim == {"x": 3, "y": 3, "p": 1}[category]


def test_a_chain_of_any_length_that_the_parser_takes() -> None:
    assert typed("+".join(["x"] * 200)).dim == 3


# Optional arguments, lists and tuples ---------------------------------------------------------------------------------


def test_last_arguments_may_be_left_out() -> None:
    trace, entries, product = (word(name) for name in ("TraceOperator", "SumLinOperator", "TensorDot"))
    assert typed("TraceOperator(2*x, x)") is trace(2 * x, x, Const(1))
    assert typed("SumLinOperator(x, x, b)") is entries(x, x, b, Const(1))
    assert typed("TensorDot(x, y, [3], (3,), [], [])") is product(x, y, (3,), (3,), (), (), ())
    assert typed("TensorDot(x, y, [3], (3,), [], [], [1, 0])") is product(x, y, (3,), (3,), (), (), (1, 0))


def test_tuples_of_variables_make_sums() -> None:
    diff = word("Diff")
    assert typed("Diff(x*b, (x, b), (y, p))") is diff(x * b, x, y) + diff(x * b, b, p)
    assert typed("Diff(x, (x,), [y])") is typed("Diff(x, x, y)")
    assert diff(x * b, (x, b), (y, p)) is typed("Diff(x*b, (x, b), (y, p))")


def test_faults_within_tuples_are_reported_once() -> None:
    with pytest.raises(FormulaError) as caught:
        infer("Diff(x, (x, q), (x, Exp(r)))", ALIASES)
    assert len(caught.value.diagnostics) == 2


def test_lists_are_spelt_and_read_back() -> None:
    node = typed("TensorDot(x, y, [3], (3,), [], [], [1, 0])")
    assert typed(spell(node)) is node
    assert read(show(node)) is node
