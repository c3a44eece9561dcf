"""Every rule of the table on both sides, on numbers; and simplification as a whole on random formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formulas import dense, formulas, noisy, pools, reductions, values_for, word
from tritonkeops.formula.evaluate import fold_constants
from tritonkeops.formula.ir import Category, Const, IllTyped, Node, Var, postorder
from tritonkeops.frontend import ast
from tritonkeops.frontend.parser import parse_formula
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.simplify import RULES, Binding, Rule, apply_rule, build, simplify

SPECIAL = (0.0, -0.0, 1.0, -2.0, math.inf, -math.inf, math.nan, 0.5, 3.0)
NUMBERS = {"n": 3, "m": 1}
IDS = [f"{rule.pattern} -> {rule.result}" for rule in RULES]


@pytest.fixture(autouse=True)
def default_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONKEOPS_STRICT", raising=False)


def bindings(rule: Rule) -> Iterator[Binding]:
    """What the letters of a rule may stand for: dims 3 and 1 in every combination, constants of dim 1 and 3."""
    names = sorted({node.name for _, node in ast.walk(parse_formula(rule.pattern)) if isinstance(node, ast.Name)})
    choices: list[list[object]] = []
    for place, name in enumerate(names):
        if name in "nm":
            choices.append([NUMBERS[name]])
        elif name in "cd":
            choices.append([Const(0.5 + place, dim) for dim in (1, 3)] + [Const(-2)])
        else:
            category = list(Category)[place % 3]
            choices.append([Var(place, dim, category, name) for dim in ((1,) if name in "st" else (1, 3))])
    for chosen in itertools.product(*choices):
        yield dict(zip(names, chosen, strict=True))  # type: ignore[arg-type]


def sides(rule: Rule) -> Iterator[tuple[Node, Node]]:
    """The two sides of a rule for every choice of dims that its pattern admits."""
    pattern, result = parse_formula(rule.pattern), parse_formula(rule.result)
    for binding in bindings(rule):
        try:
            node = build(pattern, binding)
        except IllTyped:
            continue
        replaced = apply_rule(pattern, result, node)
        assert replaced is not None, f"{rule} does not fire on {node!r}"
        assert replaced.dim == node.dim, f"{rule} makes {replaced!r} of {node!r}"
        yield node, replaced


def leaves(node: Node) -> list[Var]:
    return [each for each in postorder([node]) if isinstance(each, Var)]


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_both_sides_agree(rule: Rule) -> None:
    tried = 0
    for node, replaced in sides(rule):
        values = values_for(leaves(node), seed=tried)
        values = {v: x.abs() + 0.1 for v, x in values.items()} if "**" in rule.pattern else values
        a, b = torch.broadcast_tensors(dense(node, values), dense(replaced, values))
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
        tried += 1
    assert tried


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.finite], ids=lambda rule: rule.pattern)
def test_rules_that_are_not_marked_finite_hold_for_inf_and_nan(rule: Rule) -> None:
    for node, replaced in sides(rule):
        names = leaves(node)
        for numbers in itertools.product(SPECIAL, repeat=len(names)):
            values = {v: torch.full((v.dim, 1, 1), x, dtype=torch.float64) for v, x in zip(names, numbers, strict=True)}
            a, b = torch.broadcast_tensors(dense(node, values), dense(replaced, values))
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13, equal_nan=True, msg=f"{node!r} at {numbers}")


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_every_rule_is_at_work(rule: Rule) -> None:
    """In the whole pass the pattern does not survive."""
    for node, _ in sides(rule):
        simpler = simplify(node)
        assert simpler is not node, f"{node!r} stays as it is"
        assert simpler.dim == node.dim


@pytest.mark.parametrize("text", ["a*0", "0*a", "0/a", "a-a", "a+a*0"])
def test_strict_keeps_nan(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = Var(0, 3, Category.I, "a")
    values = {a: torch.full((3, 1, 1), math.nan, dtype=torch.float64)}
    node = build(parse_formula(text), {"a": a})
    assert dense(simplify(node), values).isnan().all() == (text == "a+a*0")
    monkeypatch.setenv("TRITONKEOPS_STRICT", "1")
    assert dense(simplify(node), values).isnan().all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.finite], ids=lambda rule: rule.pattern)
def test_strict_turns_finite_rules_off(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a finite rule makes of its pattern comes no more: neither by itself nor as a step of the pass."""
    monkeypatch.setenv("TRITONKEOPS_STRICT", "1")
    for node, _ in sides(rule):
        names = leaves(node)
        for numbers in itertools.product((math.inf, math.nan, 0.0, -1.0), repeat=len(names)):
            values = {v: torch.full((v.dim, 1, 1), x, dtype=torch.float64) for v, x in zip(names, numbers, strict=True)}
            a, b = torch.broadcast_tensors(dense(node, values), dense(simplify(node), values))
            torch.testing.assert_close(a, b, equal_nan=True, msg=f"{node!r} becomes {simplify(node)!r} at {numbers}")


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_is_off_by_default(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONKEOPS_STRICT", value)
    a = Var(0, 3, Category.I, "a")
    assert simplify(a - a) is Const(0, 3)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_simplified_formulas_mean_the_same(data: st.DataObject) -> None:
    """Formulas of every kind, simplified and not, within what rounding errors at every operation can make of them."""
    pool = data.draw(pools((1, 2, 3, 4, 20)))
    node = differentiate(data.draw(formulas(pool, data.draw(st.sampled_from([1, 2, 3, 4, 20])), 4)))
    simpler = simplify(expand(simplify(node)))
    assert simpler.dim == node.dim
    assert simplify(simpler) is simpler, "a fixed point"
    values = values_for(pool)
    a, b = torch.broadcast_tensors(dense(node, values), dense(simpler, values))
    runs = [(noisy(f, values, 1e-10, seed) - x).abs() for f, x in ((node, a), (simpler, b)) for seed in range(3)]
    spread = torch.stack(runs).amax(0)
    tame = spread < 1e-6 * (1 + a.abs())
    tolerance = 1e-4 * spread + 1e-12 * (1 + a.abs())
    assert bool(((a - b).abs() <= tolerance)[tame].all()), f"{node!r}\n{simpler!r}"


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_strict_formulas_keep_inf_and_nan(data: st.DataObject) -> None:
    pool = data.draw(pools((1, 2)))
    node = expand(differentiate(data.draw(formulas(pool, data.draw(st.sampled_from([1, 2])), 3))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITONKEOPS_STRICT", "1")
        simpler = simplify(node)
    values = {v: torch.full((v.dim, 1, 1), data.draw(st.sampled_from(SPECIAL)), dtype=torch.float64) for v in pool}
    a, b = torch.broadcast_tensors(dense(node, values), dense(simpler, values))
    torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-9, atol=1e-9, msg=f"{node!r}\n{simpler!r}\n{values}")


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(reductions())
def test_reductions_stay_what_they_are(drawn: tuple[Node, list[Var]]) -> None:
    node = differentiate(drawn[0])
    simpler = simplify(expand(simplify(node)))
    assert (simpler.op, simpler.axis, simpler.k, simpler.dim) == (node.op, node.axis, node.k, node.dim)  # type: ignore[attr-defined]
    assert [arg.dim for arg in simpler.operands] == [arg.dim for arg in node.operands]


def test_constants_fold_exactly() -> None:
    x = Var(0, 1, Category.I, "x")
    thirds = (Const(1) / 3 + Const(1) / 3 + Const(1) / 3) * x
    assert simplify(thirds) is x
    folded = simplify(word("Exp")(Const(1)) + 0 * x)
    assert isinstance(folded, Const) and float(folded.value) == math.e


@pytest.mark.parametrize("text", ["a/0", "Inv(0)", "Log(0)", "Log(-1)", "Pow(0,-1)", "0**-1", "Exp(1000)"])
def test_constants_that_are_not_finite_stay(text: str) -> None:
    a = Var(0, 1, Category.I, "a")
    node = build(parse_formula(text), {"a": a})
    values = {a: torch.full((1, 1, 1), 2.0, dtype=torch.float64)}
    torch.testing.assert_close(dense(simplify(node), values), dense(node, values), equal_nan=True)


@pytest.mark.parametrize(
    "text,value",
    [
        ("1e300 * 1e300 * 1e-300", 10**300),
        ("1e300 * 1e300 - 1e300 * 1e300 + 1", 1),
        ("(1 / 3) ** 2", Fraction(1, 9)),
        ("Pow(1 / 3, -20)", 3**20),
        ("Abs(0 - 1 / 3)", Fraction(1, 3)),
        ("Floor(7 / 2) + Step(1 / 3) + Equal(1 / 3, 2 / 6)", 5),
        ("IfElse(1e-300 * 1e-300, 1 / 3, 0)", Fraction(1, 3)),
        ("Mod(7 / 3, 1, 0)", Fraction(1, 3)),
    ],
)
def test_rational_constants_fold_exactly(text: str, value: Fraction | int) -> None:
    """Beyond the range of doubles too: what leaves it may come back."""
    assert fold_constants(build(parse_formula(text), {})) is Const(value)


@pytest.mark.parametrize(
    "text,a",
    [
        ("1e300 * (1e300 * a)", 1e-300),
        ("1e-200 * (a * 1e-200)", 1e300),
        ("Square(1e200 * a)", 1e-200),
        ("a / 1e-320", 1e-320),
        ("1e308 * a + 1e308 * a", 0.5),
        ("1e308 * a + 1.5e308 * a", 0.5),
        ("1e200 * IfElse(a, 1e200 * a, 0)", 1e-200),
        ("Norm2(1e200 * a)", 1e-200),
    ],
)
def test_constants_that_overflow_together_stay_apart(text: str, a: float) -> None:
    """Each of these is finite as it is written."""
    x = Var(0, 1, Category.I, "x")
    values = {x: torch.full((1, 1, 1), a, dtype=torch.float64)}
    node = expand(build(parse_formula(text), {"a": x}))
    assert bool(dense(node, values).isfinite())
    torch.testing.assert_close(dense(simplify(node), values), dense(node, values))


def test_constants_out_of_range_are_infinite() -> None:
    """As in float64 arithmetic; where a formula holds them, the front end says so."""
    x = Var(0, 1, Category.I, "x")
    values = {x: torch.ones(1, 1, 1, dtype=torch.float64)}
    for number in (Const(10**400), word("Square")(Const(10**200)), word("Log")(Const(10**200) * Const(10**200))):
        assert float(dense(simplify(x + number), values)) == math.inf
    assert float(dense(simplify(x - Const(10**400)), values)) == -math.inf


def test_long_constants_stay_operators() -> None:
    """Squares of squares double in length each time."""
    node: Node = Const(Fraction("1.000001"))
    for _ in range(60):
        node = word("Square")(node)
    assert dense(simplify(node), {}).isinf()


def test_scalars_meet_before_they_touch_a_vector() -> None:
    """The normal form of products: constant * scalars * vectors, what varies with one axis together."""
    x, b, p = Var(0, 3, Category.I, "x"), Var(1, 1, Category.J, "b"), Var(2, 1, Category.P, "p")
    assert simplify((b * x) * 2 * p) is simplify(p * (x * (b * 2)))
    assert repr(simplify((b * x) * 2 * p)) == "2 * p * b * x"
