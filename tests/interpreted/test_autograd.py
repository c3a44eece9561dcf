"""Gradients on the Triton back end, in its interpreter: the same calls as on the C back end, `backend="GPU"` aside."""

from __future__ import annotations

import pytest
import torch

from tritonkeops.torch import Genred

ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "p = Pm(1)"]
CASES = {
    "Sum": ("Exp(-SqDist(x,y)*p)*b", None, None),
    "LogSumExp": ("b-SqDist(x,y)*p", None, None),
    "SumSoftMaxWeight": ("-SqDist(x,y)*p", "b*y", None),
    "Min": ("SqDist(x,y)*p", None, None),
    "KMin": ("SqDist(x,y)*b", None, 3),
}


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_c_back_end(name: str, axis: int, batch: tuple[int, ...]) -> None:
    formula, weight, k = CASES[name]
    genred = Genred(formula, ALIASES, name, axis, opt_arg=k, formula2=weight)
    torch.manual_seed(0)
    shapes = [(*batch, 40, 3), (150, 3), (*batch, 150, 1), (1,)]
    args = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    found = []
    for backend in ("GPU", "CPU"):
        value = genred(*args, backend=backend)
        firsts = torch.autograd.grad(value.sin().sum(), args, create_graph=True)  # type: ignore[union-attr]
        total = sum(g.square().sum() for g in firsts)
        found.append([value, *firsts, *torch.autograd.grad(total, args)])  # type: ignore[arg-type]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_derivatives_reach_the_kernels_of_the_same_back_end() -> None:
    """The text of a gradient names the back end of its reduction."""
    genred = Genred(*CASES["Sum"][:1], ALIASES, axis=1)
    args = [torch.rand(s, requires_grad=True) for s in ((4, 3), (5, 3), (5, 1), (1,))]
    result = genred(*args, backend="GPU")
    texts = [each.text for each in result.grad_fn.adjoints]  # type: ignore[union-attr]
    assert texts and all(text.split()[3] == "GPU" for text in texts)
