"""PyTorch's transforms of a reduction: autograd of any order, forward mode, torch.func, vmap, compile, export.

Every check compares with the same transform of a dense formula. The known alternatives to runtime/library.py fail some
of these, with zeros and without an error: compile(jvp), func.jvp, func.jacfwd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from tritonkeops.runtime.reducer import Where
from tritonkeops.torch import Genred

ALIASES = ["x = Vi(2)", "y = Vj(2)", "b = Vj(1)"]
Function = Callable[[Tensor], Tensor]


def exponents(x: Tensor, y: Tensor) -> Tensor:
    return -((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1)


def smallest(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    scores = exponents(x, y) * b.mT
    return scores.topk(2, dim=-1, largest=False)[0]


DENSE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Sum": lambda x, y, b: exponents(x, y).exp() @ b,
    "LogSumExp": lambda x, y, b: torch.logsumexp(exponents(x, y) + b.mT, -1)[..., None],
    "SumSoftMaxWeight": lambda x, y, b: exponents(x, y).softmax(-1) @ b,
    "KMin": smallest,
}
OURS = {
    "Sum": Genred("Exp(-SqDist(x,y)) * b", ALIASES, axis=1),
    "LogSumExp": Genred("b - SqDist(x,y)", ALIASES, "LogSumExp", axis=1),
    "SumSoftMaxWeight": Genred("-SqDist(x,y)", ALIASES, "SumSoftMaxWeight", axis=1, formula2="b"),
    "KMin": Genred("-SqDist(x,y) * b", ALIASES, "KMin", axis=1, opt_arg=2),
}
"""Reductions of each kind: a sum, a sum of exponentials, one that is extended, one that selects."""

TORCH = torch.manual_seed(0)
Y = torch.randn(4, 2, dtype=torch.float64)
B = torch.rand(4, 1, dtype=torch.float64) + 0.5
X = torch.randn(3, 2, dtype=torch.float64)
XS = torch.randn(5, 3, 2, dtype=torch.float64)


def of(name: str) -> tuple[Function, Function]:
    """The reduction, ours and the dense one, as a function of x, which also moves the other arguments."""

    def ours(x: Tensor) -> Tensor:
        return OURS[name](x, Y + x.sin().sum(), B * (1 + x[..., :1, :1].square()))  # type: ignore[return-value]

    def dense(x: Tensor) -> Tensor:
        return DENSE[name](x, Y + x.sin().sum(), B * (1 + x[..., :1, :1].square()))

    return ours, dense


def total(f: Function) -> Function:
    return lambda x: f(x).square().sum()


def needing_grad() -> Tensor:
    return X.clone().requires_grad_()


def third(f: Function) -> Tensor:
    x = needing_grad()
    value = total(f)(x)
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return value.detach()


def compiled(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager", **options)


def backward(f: Function) -> Tensor:
    x = needing_grad()
    return torch.autograd.grad(total(f)(x), x)[0]


def jvp(f: Function) -> Function:
    return lambda x: torch.func.jvp(f, (x,), (x.cos(),))[1]


def vmapped(f: Function) -> Tensor:
    x = needing_grad()
    return torch.autograd.grad(torch.func.vmap(f)(x.expand(5, 3, 2) + XS).sum(), x)[0]


CHECKS: dict[str, Callable[[Function], Tensor]] = {
    "forward": lambda f: f(X),
    "backward": backward,
    "third order": third,
    "func.grad": lambda f: torch.func.grad(total(f))(X),
    "func.vjp": lambda f: torch.func.vjp(f, X)[1](f(X).cos())[0],
    "func.jvp": lambda f: jvp(f)(X),
    "func.jacrev": lambda f: torch.func.jacrev(f)(X),
    "func.jacfwd": lambda f: torch.func.jacfwd(f)(X),
    "func.hessian": lambda f: torch.func.hessian(total(f))(X),
    "jacfwd(jacfwd)": lambda f: torch.func.jacfwd(torch.func.jacfwd(total(f)))(X),
    "jacrev(jacrev)": lambda f: torch.func.jacrev(torch.func.jacrev(total(f)))(X),
    "vmap": lambda f: torch.func.vmap(f)(XS),
    "vmap of the second dimension": lambda f: torch.func.vmap(f, in_dims=1)(XS.movedim(0, 1)),
    "vmap of the last dimension": lambda f: torch.func.vmap(f, in_dims=2, out_dims=1)(XS.movedim(0, 2)),
    "vmap(vmap)": lambda f: torch.func.vmap(torch.func.vmap(f))(XS.expand(2, 5, 3, 2) + X),
    "vmap(grad)": lambda f: torch.func.vmap(torch.func.grad(total(f)))(XS),
    "grad(vmap)": lambda f: torch.func.grad(total(torch.func.vmap(f)))(XS),
    "backward of vmap": vmapped,
    "compile": lambda f: compiled(f)(X),
    "backward of compile": lambda f: backward(compiled(f)),
    "dynamic compile": lambda f: backward(compiled(f, dynamic=True)),
    "compile(func.grad)": lambda f: compiled(torch.func.grad(total(f)))(X),
    "compile(vmap)": lambda f: compiled(torch.func.vmap(f))(XS),
    "compile(vmap(grad))": lambda f: compiled(torch.func.vmap(torch.func.grad(total(f))))(XS),
    "compile(jvp)": lambda f: compiled(jvp(f))(X),
    "compile(hessian)": lambda f: compiled(torch.func.hessian(total(f)))(X),
    "checkpoint": lambda f: backward(lambda x: checkpoint(f, x, use_reentrant=False)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", OURS)
def test_a_transform_agrees_with_that_of_the_dense_formula(name: str, check: str) -> None:
    ours, dense = of(name)
    wanted = CHECKS[check](dense)
    assert wanted.abs().max() > 1e-3  # a check that passes with zeros would check nothing
    torch.testing.assert_close(CHECKS[check](ours), wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2])
def test_transforms_by_a_parameter(size: int) -> None:
    """A mapped dimension of one is no batch of one, which a parameter could not be told from one without."""
    genred = Genred("Exp(-SqDist(x,y)*p)", ["x = Vi(2)", "y = Vj(2)", "p = Pm(1)"], axis=1)

    def dense(x: Tensor, y: Tensor, p: Tensor) -> Tensor:
        return (exponents(x, y) * p[..., None]).exp().sum(-1, keepdim=True)

    p = torch.rand(size, 1, dtype=torch.float64)
    vmap, grad, hessian, jacfwd = torch.func.vmap, torch.func.grad, torch.func.hessian, torch.func.jacfwd
    for transform in (vmap, lambda f: vmap(grad(f)), lambda f: vmap(hessian(f)), lambda f: lambda p: jacfwd(f)(p[0])):
        found = [transform(lambda p, f=f: f(X, Y, p).sum())(p) for f in (genred, dense)]
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("forward", [False, True])
def test_gradcheck(name: str, forward: bool) -> None:
    args = [x.clone().requires_grad_() for x in (X, Y, B)]
    assert torch.autograd.gradcheck(OURS[name], args, check_forward_ad=forward, check_backward_ad=not forward)
    assert torch.autograd.gradgradcheck(OURS[name], args, check_fwd_over_rev=forward)


@pytest.mark.parametrize("name", ["Sum", "LogSumExp"])
def test_opcheck(name: str) -> None:
    args = [x.clone().requires_grad_() for x in (X, Y, B)]
    text = OURS[name]._reducer(Where()).text
    result = torch.library.opcheck(torch.ops.tritonkeops.reduce.default, (args, [], text))
    assert set(result.values()) == {"SUCCESS"}


class Model(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.reduction = OURS[name]
        self.centres = torch.nn.Parameter(Y.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(x, self.centres, B)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", OURS)
def test_export_keeps_one_operation_and_any_number_of_rows(name: str) -> None:
    rows = torch.export.Dim("rows", min=2, max=1000)
    exported = torch.export.export(Model(name), (X,), dynamic_shapes=({0: rows},))
    assert "tritonkeops.reduce" in str(exported.graph)
    longer = torch.randn(7, 2, dtype=torch.float64)
    torch.testing.assert_close(exported.module()(longer), DENSE[name](longer, Y, B), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", OURS)
def test_make_fx_sees_operations_only(name: str) -> None:
    ours, _ = of(name)
    traced = make_fx(lambda x: torch.autograd.grad(total(ours)(x), x)[0])(needing_grad())
    assert "tritonkeops" in traced.code
    torch.testing.assert_close(traced(X), backward(ours))
