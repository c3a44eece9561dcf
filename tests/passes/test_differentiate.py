"""Symbolic derivatives against torch's autograd of the same formulas, evaluated densely in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.formulas import dense, formulas, pools, reduce_dense, values_for, word
from tritonkeops.errors import FormulaError
from tritonkeops.formula.ir import Const, IllTyped, Node, Reduction, Var, postorder
from tritonkeops.frontend.infer import infer
from tritonkeops.operators.derivatives import is_structural
from tritonkeops.passes.differentiate import differentiate, expand, gradient, tangent
from tritonkeops.passes.simplify import simplify

ALIASES = [
    "x = Vi(3)",
    "y = Vj(3)",
    "b = Vj(1)",
    "p = Pm(1)",
    "q = Pm(3)",
    "A = Pm(9)",
    "a = Vi(1)",
    "e = Vi(3)",
    "s = Vi(1)",
    "u = Vi(2)",
    "f = Vi(1)",
    "g = Vj(3)",
    "h = Vj(1)",
]
M, N = 4, 5


def formula(text: str) -> Node:
    return infer(text, ALIASES, "Sum", 1).root.operands[0]


def variables() -> dict[str, Var]:
    return {v.name: v for v in infer("x", ALIASES, "Sum", 1).variables}


def positive(values: dict[Var, Tensor]) -> dict[Var, Tensor]:
    """The values moved to where every operator below is smooth, and different for each component."""
    return {v: x.abs() + 0.3 for v, x in values.items()}


def autograd(F: Node, v: Var, e: Node, values: dict[Var, Tensor]) -> Tensor:
    """The adjoint of dF/dv applied to e, at every pair (i, j) by itself: (dim v, M or 1, N or 1)."""
    leaf = values[v].expand(-1, M, N).clone().requires_grad_()
    out = dense(F, {**values, v: leaf}).expand(-1, M, N)
    return adjoint(out, leaf, dense(e, values).expand(-1, M, N))


def adjoint(out: Tensor, leaf: Tensor, cotangent: Tensor) -> Tensor:
    """torch.autograd.grad, with zeros where nothing depends on the leaf."""
    if not out.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(out, leaf, cotangent, allow_unused=True, materialize_grads=True)[0]


def check(F: Node, v: Var, e: Node, values: dict[Var, Tensor]) -> None:
    found = dense(differentiate(gradient(differentiate(F), v, e)), values)
    expected = autograd(differentiate(F), v, e, values)
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-9)


SCALAR = [
    "SqDist(x,y)",
    "Exp(-p*SqDist(x,y))*b",
    "(x|y)/(1+SqNorm2(x))",
    "Norm2(x-y)",
    "Sqrt(1+Norm2(x*y))",
    "WeightedSqNorm(A,x-y)",
    "WeightedSqDist(p,x,y)",
    "WeightedSqNorm(q,x)",
    "Log(Sum(Exp(x))+Sum(Exp(-y)))",
    "Elem(x,1)*Elem(x,2)**2",
    "(Normalize(x)|Normalize(y))",
    "Max(x*y)",
    "Min(x-y)",
    "Sum(Sqrt(x)*Rsqrt(y))",
    "Sum(Powf(x,a))",
    "Sum(Powf(a,x))",
    "a**p",
    "Sum(x**2.5)",
    "x|Exp(y)",
    "p|x",
    "Inv(SqNorm2(x))*p",
    "Atan2(a,b)",
    "Sum(Atan2(x,p))",
    "Sum(Atan2(p,x))",
    "Sum(SinXDivX(x*y))",
    "Sum(Sigmoid(x)*Softplus(y)*Tanh(q)*Erf(x))",
    "Sum(Clamp(x,y,q+2))",
    "Sum(Mod(x,p,0))",
    "Sum(Maximum(x,p)-Minimum(y,x))",
    "Sum(Expm1(x)*Log1p(y)*XLogX(q))",
    "Sum(Abs(x-y)*Sign(x)+ReLU(y-x))",
    "Sum(Asin(x/9)+Acos(y/9)*Atan(x))",
    "Sum(Cos(x)*Sin(y))",
    "Sum(Pow(x,-3)+Pow(x,11))",
    "SymSqNorm(A,x)",
    "SqNormDiag(q,x)",
    "SqNormIso(p,x*x)",
]
VECTOR = [
    "x*y+q",
    "p*x",
    "x/p",
    "p/x",
    "MatVecMult(A,x)",
    "VecMatMult(x,A)",
    "Normalize(x-y)*b",
    "SumT(SqDist(x,y),3)",
    "ElemT(p*b,3,1)*x",
    "Concat(a*b,Extract(x,1,2))",
    "ExtractT(Extract(x*y,0,2),1,3)",
    "Extract(TensorProd(x,y),2,3)",
    "IfElse(x-y,MatVecMult(A,x),y)",
    "IfElse(x-y,Normalize(x),VecMatMult(y,A))",
    "IfElse(x-y,a,x)",
    "IfElse(a-b,x,a)",
    "IfElse(x-y,Concat(Extract(x,1,2),Elem(x,0)),p)",
    "Powf(x,a)",
    "Powf(a,x)",
    "Atan2(x,a)",
    "Atan2(a,x)",
    "Clamp(x,a,2)",
    "OneHot(a,3)*x",
    "x",
    "Zero(3)+x*0",
]


@pytest.mark.parametrize("by", ["x", "y", "b", "p", "q", "A", "a"])
@pytest.mark.parametrize("text", SCALAR + VECTOR)
def test_gradient_is_autograd_s(text: str, by: str) -> None:
    names = variables()
    F = formula(text)
    check(F, names[by], names["s"] if F.dim == 1 else names["e"], positive(values_for(list(names.values()), M, N)))


@pytest.mark.parametrize(
    "text",
    [
        "SqDist(x,y)",
        "Exp(-p*SqDist(x,y))*b",
        "Norm2(x-y)",
        "Sum(Powf(x,a)*Atan2(y,p))",
        "WeightedSqNorm(A,x-y)",
        "Sum(IfElse(x-y,MatVecMult(A,x*x),y)*x)",
        "Sum(x)",
    ],
)
@pytest.mark.parametrize("first", ["x", "y", "p"])
@pytest.mark.parametrize("second", ["x", "a", "A"])
def test_nested_gradients(text: str, first: str, second: str) -> None:
    names = variables()
    values = positive(values_for(list(names.values()), M, N))
    once = word("Grad")(formula(text), names[first], names["s"])
    check(once, names[second], {1: names["s"], 3: names["e"]}[once.dim], values)


@pytest.mark.parametrize("by", ["x", "y", "p", "A", "a"])
@pytest.mark.parametrize("text", SCALAR + VECTOR)
def test_tangent_is_autograd_s(text: str, by: str) -> None:
    v, F = variables()[by], formula(text)
    u = Var(30, v.dim, v.category, "direction")
    values = positive(values_for([*variables().values(), u], M, N))
    primal, direction = (values[each].expand(-1, M, N).clone() for each in (v, u))
    _, expected = torch.autograd.functional.jvp(
        lambda leaf: dense(F, {**values, v: leaf}).expand(-1, M, N) * 1, primal, direction
    )
    found = dense(tangent(F, v, u), values).expand(-1, M, N)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_tangents_of_shared_subexpressions_stay_small() -> None:
    x = Var(0, 1, 0, "x")  # type: ignore[arg-type]
    node: Node = x
    for _ in range(20):
        node = word("Sin")(node) * node
    assert len(list(postorder([tangent(node, x, Const(1))]))) < 600


def jacobian(F: Node, v: Var, values: dict[Var, Tensor]) -> Tensor:
    """(dim F, dim v, M, N) at every pair (i, j) by itself."""
    return torch.stack([autograd(F, v, word("ElemT")(Const(1), F.dim, k), values) for k in range(F.dim)])


def found_and_values(text: str) -> tuple[Tensor, dict[Var, Tensor]]:
    """A formula's value, and what it was computed from."""
    values = positive(values_for(list(variables().values()), M, N))
    return dense(simplify(expand(simplify(differentiate(formula(text))))), values).expand(-1, M, N), values


def test_diff_by_several_variables_is_the_sum() -> None:
    found, values = found_and_values("Diff(Exp(x*p)*y,(x,y,p),(e,g,a))")
    F, names = formula("Exp(x*p)*y"), variables()
    expected = sum(
        torch.einsum("klmn,lmn->kmn", jacobian(F, names[v], values), values[names[u]].expand(-1, M, N))
        for v, u in (("x", "e"), ("y", "g"), ("p", "a"))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "F",
    ["x*Sum(x)", "MatVecMult(A,x)", "VecMatMult(Sin(x),A)", "Exp(-SqDist(x,y))*(x-y)", "Normalize(x)", "x*y/p-x",
     "-x", "Concat(Extract(x,1,2),a)", "IfElse(x-y,Square(x),y)", "SumT(SqNorm2(x),3)", "y",
     "p*x*Exp(a*x)+VecMatMult(x*y,A)"],
)  # fmt: skip
def test_divergence_is_the_trace_of_the_jacobian(F: str) -> None:
    found, values = found_and_values(f"Divergence({F},x)")
    expected = torch.einsum("kkmn->mn", jacobian(formula(F), variables()["x"], values))
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize(
    "F", ["Exp(-SqDist(x,y))", "Cos(x|y)", "Norm2(x)", "p*WeightedSqNorm(A,x)", "Log(1+SqNorm2(x*y))", "a*Sum(x**3)"]
)
def test_laplacian_is_the_trace_of_the_hessian(F: str) -> None:
    found, values = found_and_values(f"Laplacian({F},x)")
    hessian = jacobian(differentiate(formula(f"Grad({F},x,1)")), variables()["x"], values)
    torch.testing.assert_close(found[0], torch.einsum("kkmn->mn", hessian))


def test_derivatives_of_a_laplacian() -> None:
    names = variables()
    F = formula("Laplacian(Exp(-p*SqDist(x,y)),x)*b")
    for by in ("x", "y", "p"):
        check(F, names[by], names["s"], positive(values_for(list(names.values()), M, N)))


def test_the_laplacian_of_a_kernel_stays_small() -> None:
    """Its size does not grow with the dim: products with vectors become weights of the trace."""
    x, y = (Var(n, 1000, n, name) for n, name in enumerate("xy"))  # type: ignore[arg-type]
    laplacian = differentiate(word("Laplacian")(word("Exp")(-word("SqDist")(x, y)), x))
    assert len(list(postorder([simplify(expand(laplacian))]))) < 40


def test_traces_of_shared_subexpressions_stay_small() -> None:
    x = Var(0, 3, 0, "x")  # type: ignore[arg-type]
    node: Node = x
    for _ in range(20):
        node = word("Sin")(node) * node
    assert len(list(postorder([differentiate(word("Divergence")(node, x))]))) < 1000


LINEAR = ["MatVecMult(A,x)*y", "VecMatMult(x*p,A)/q", "x", "p*x-y*x", "SumT(x|y,3)", "Elem(x,1)", "Sum(x*y)/p", "0*x",
          "ElemT(x|q,3,1)+IfElse(y,x,-x)"]  # fmt: skip


@pytest.mark.parametrize("weight", ["", "1", "b", "y*q"])
@pytest.mark.parametrize("L", LINEAR)
def test_trace_operator(L: str, weight: str) -> None:
    found, values = found_and_values(f"TraceOperator({L},x{weight and ','}{weight})")
    matrix = jacobian(formula(L), variables()["x"], values).expand(3, 3, M, N)
    w = dense(formula(weight or "1"), values).expand(3, M, N)
    torch.testing.assert_close(found[0], torch.einsum("kmn,kkmn->mn", w, matrix))


@pytest.mark.parametrize("weights", [[], ["b"], ["1", "q"], ["2", "a"], ["y", "e"]])
@pytest.mark.parametrize("L", [L for L in LINEAR if L not in ("Elem(x,1)", "Sum(x*y)/p")])
def test_sum_of_the_entries_of_a_linear_map(L: str, weights: list[str]) -> None:
    found, values = found_and_values(f"SumLinOperator({', '.join([L, 'x', *weights])})")
    left, right = (dense(formula(w), values).expand(3, M, N) for w in [*weights, "1", "1"][:2])
    matrix = jacobian(formula(L), variables()["x"], values)
    torch.testing.assert_close(found[0], torch.einsum("kmn,klmn,lmn->mn", left, matrix, right))


@pytest.mark.parametrize("L", LINEAR)
def test_adjoint_operator(L: str) -> None:
    u = "e" if formula(L).dim == 3 else "s"
    found, values = found_and_values(f"AdjointOperator({L},x,{u})")
    expected = autograd(formula(L), variables()["x"], variables()[u], values)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("text", ["TraceOperator(x*x,x)", "AdjointOperator(Exp(x),x,e)", "SumLinOperator(x/Sum(x),x)"])
def test_what_is_not_linear_has_no_trace(text: str) -> None:
    with pytest.raises(IllTyped, match="L is not linear in v = x: its derivative depends on x"):
        differentiate(formula(text))


def test_linear_in_spite_of_appearances() -> None:
    """The derivative counts, simplified: terms that vanish do not."""
    found, _ = found_and_values("TraceOperator(2*x+0*Exp(x),x)")
    assert (found == 6).all()


def test_third_order() -> None:
    names = variables()
    twice = word("Grad")(word("Grad")(formula("Exp(-SqDist(x,y))*b"), names["x"], names["s"]), names["y"], names["e"])
    check(twice, names["x"], names["e"], values_for(list(names.values()), M, N))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_smooth_formulas(data: st.DataObject) -> None:
    pool = data.draw(pools())
    F = data.draw(formulas(pool, data.draw(st.integers(1, 3)), 3, smooth=True))
    v, e = data.draw(st.sampled_from(pool)), data.draw(formulas(pool, F.dim, 1, smooth=True, grad=False))
    values = values_for(pool, M, N)
    found = dense(differentiate(word("Grad")(F, v, e)), values)
    expected = autograd(differentiate(F), v, e, values)
    scale = float(expected.abs().max()) + float(dense(differentiate(F), values).abs().max()) + 1
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-8, atol=1e-10 * scale)


@pytest.mark.parametrize(
    "text",
    [
        "Sum_Reduction(Exp(-p*SqDist(x,y))*g,{axis})",
        "Sum_Reduction(x*y*a,{axis})",
        "LogSumExp_Reduction(-p*SqDist(x,y)+h,{axis})",
        "SumSoftMaxWeight_Reduction(x|y,{axis},g)",
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("by", ["x", "y", "p", "g"])
def test_gradient_of_a_reduction(text: str, axis: int, by: str) -> None:
    """By variables along i, along j, and by parameters, whose gradient comes as a term per row, to be summed."""
    check_reduction(text.format(axis=axis), by, axis)


def check_reduction(text: str, by: str, axis: int) -> None:
    names = variables()
    values = values_for(list(names.values()), M, N)
    node = infer(text, ALIASES).root
    assert isinstance(node, Reduction)
    v, dim = names[by], node.dim
    e = Var(20, dim, 0 if axis == 1 else 1, "c")  # type: ignore[arg-type]
    out = Var(21, dim, 0 if axis == 1 else 1, "r")  # type: ignore[arg-type]
    leaf = values[v].clone().requires_grad_()
    result = reduce_dense(node, [dense(arg, {**values, v: leaf}) for arg in node.args], M, N)[0]
    values |= values_for([e], M, N)
    cotangent = values[e].reshape(dim, -1)
    expected = adjoint(result, leaf, cotangent)
    values[out] = result.detach().reshape(values[e].shape)
    given = [node, v, e] + ([out] if node.op.name == "LogSumExp" else [])
    if node.op.name == "SumSoftMaxWeight":
        with pytest.raises(ValueError, match=r"SumSoftMaxWeight by .* cannot be written as one reduction"):
            differentiate(word("Grad")(*given))
        if by != "xy"[1 - axis]:
            return
        given.append(out)
    grad = differentiate(word("Grad_WithSavedForward" if len(given) == 4 else "Grad")(*given))
    assert isinstance(grad, Reduction)
    grad = simplify(expand(grad))
    assert isinstance(grad, Reduction)
    found = reduce_dense(grad, [dense(arg, values) for arg in grad.args], M, N)[0]
    if not v.axes:
        found = found.sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("axis,by", [(1, "x"), (0, "y")])
def test_log_sum_exp_needs_no_result_along_its_own_axis(axis: int, by: str) -> None:
    node = infer(f"LogSumExp_Reduction(-SqDist(x,y),{axis})", ALIASES).root
    v = variables()[by]
    e = Var(20, 1, v.category, "c")
    root = differentiate(word("Grad")(node, v, e))
    assert isinstance(root, Reduction) and root.op.name == "SumSoftMaxWeight" and root.axis == axis


@pytest.mark.parametrize("by,axis", [("x", 1), ("y", 0)])
def test_second_gradient_of_a_sum(by: str, axis: int) -> None:
    names = variables()
    e = {"x": "s", "y": "h"}[by]
    direction = {"x": "e", "y": "g"}[by]
    inner = f"Grad(Sum_Reduction(Exp(-SqDist(x,y)),{axis}),{by},{e})"
    root = differentiate(infer(f"Grad({inner},{by},{direction})", ALIASES).root)
    assert isinstance(root, Reduction) and root.axis == axis
    values = values_for(list(names.values()), M, N)
    leaf = values[names[by]].clone().requires_grad_()
    node = infer(f"Sum_Reduction(Exp(-SqDist(x,y)),{axis})", ALIASES).root
    total = reduce_dense(node, [dense(node.args[0], {**values, names[by]: leaf})], M, N)[0]
    rows = (3, -1)
    first = torch.autograd.grad(total, leaf, values[names[e]].reshape(1, -1), create_graph=True)[0].reshape(rows)
    expected = torch.autograd.grad(first, leaf, values[names[direction]].reshape(rows))[0].reshape(rows)
    torch.testing.assert_close(reduce_dense(root, [dense(root.args[0], values)], M, N)[0], expected)


def test_grad_matrix_is_the_row_major_jacobian() -> None:
    names = variables()
    values = values_for(list(names.values()), M, N)
    jacobian = differentiate(formula("GradMatrix(MatVecMult(A,x),x)"))
    torch.testing.assert_close(dense(jacobian, values), values[names["A"]].expand(-1, 1, 1).clone())
    wide = differentiate(formula("GradMatrix(Concat(x*y,Square(b)*a),x)"))
    assert wide.dim == 4 * 3
    for k in range(4):
        unit = word("ElemT")(Const(1), 4, k)
        row = autograd(formula("Concat(x*y,Square(b)*a)"), names["x"], unit, values)
        torch.testing.assert_close(dense(wide, values)[3 * k : 3 * k + 3].expand(-1, M, N), row)


@pytest.mark.parametrize(
    "text",
    [
        "Grad(SqNorm2(y),x,s)",
        "Grad(Sign(x),x,e)",
        "Grad(x<y,x,e)",
        "Grad(OneHot(a,3),a,e)",
        "Grad(IntCst(2),x,s)",
        "Grad(ArgMin(x),x,s)",
        "Grad(Sum(x)*0,x,s)",
    ],
)
def test_gradients_that_vanish_are_zeros_of_the_variable_s_dim(text: str) -> None:
    node = formula(text)
    zeros = simplify(expand(differentiate(node)))
    assert zeros is Const(0, node.dim)


@pytest.mark.parametrize(
    "text", ["Grad(ArgMin_Reduction(SqDist(x,y),1),x,s)", "Grad(Sum_Reduction(SqDist(x,y),1),q,s)"]
)
def test_gradients_of_reductions_that_vanish(text: str) -> None:
    node = differentiate(infer(text, ALIASES).root)
    assert isinstance(node, Reduction) and simplify(expand(node)).operands[0] is Const(0, 3)


@pytest.mark.parametrize(
    "F,special",
    [
        ("Sqrt(Sum(x))", 0),
        ("Norm2(x)", 0),
        ("Rsqrt(Sum(x))", 0),
        ("Sum(Normalize(x))", 0),
        ("Sum(Abs(x))", 0),
        ("Sum(ReLU(x))", 1),
        ("Sum(SinXDivX(x))", 0),
    ],
)
def test_derivatives_at_zero(F: str, special: float) -> None:
    names = variables()
    values = {v: torch.zeros_like(x) for v, x in values_for(list(names.values()), M, N).items()}
    values[names["s"]] += 1
    found = dense(differentiate(word("Grad")(formula(F), names["x"], names["s"])), values)
    assert torch.equal(found.expand(3, M, 1), torch.full((3, M, 1), float(special), dtype=torch.float64))


def test_a_vanishing_jacobian() -> None:
    values = values_for(list(variables().values()), M, N)
    zeros = dense(simplify(expand(differentiate(formula("GradMatrix(Step(x),x)")))), values)
    assert zeros.shape[0] == 9 and not zeros.any()


def test_shared_subexpressions_are_differentiated_once() -> None:
    """Reverse accumulation over the DAG: doubling twenty times makes twenty steps, not a million."""
    x = Var(0, 1, 0, "x")  # type: ignore[arg-type]
    node: Node = x
    for _ in range(20):
        node = word("Sin")(node) * node
    assert len(list(postorder([differentiate(word("Grad")(node, x, Const(1)))]))) < 400


def test_what_is_left_holds_no_gradient() -> None:
    node = differentiate(formula("GradMatrix(Grad(Exp(-SqDist(x,y)),x,s),y)"))
    assert not any(is_structural(each) for each in postorder([node]))


@pytest.mark.parametrize("name", ["Min", "Max", "Max_SumShiftExp", "Min_ArgMin"])
def test_reductions_without_derivative_say_so(name: str) -> None:
    from tritonkeops.compiler import Program  # the errors of passes get their place in the text there

    dim = 2 if name == "Max_SumShiftExp" else 1
    with pytest.raises(FormulaError, match=f"{name} has no derivative"):
        Program(f"Grad({name}_Reduction(SqDist(x,y),1),x,{'u' if dim == 2 else 's'})", ALIASES, "Sum", 0, 0, None)
