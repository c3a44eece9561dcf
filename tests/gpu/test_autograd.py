"""Derivatives on a GPU: against the C back end in float64, compiled, and recorded in a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.conftest import DEVICE
from tests.interpreted.test_autograd import ALIASES, CASES
from tritonkeops.torch import Genred

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]


def arguments(*batch: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*batch, 700, 3), (900, 3), (*batch, 900, 1), (1,)]
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str, axis: int, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    formula, weight, k = CASES[name]
    genred = Genred(formula, ALIASES, name, axis, opt_arg=k, formula2=weight)
    found = []
    for device, kind in (("cpu", torch.float64), (DEVICE, dtype)):
        args = [x.to(device, kind).requires_grad_() for x in arguments(*batch)]
        value = genred(*args)
        firsts = torch.autograd.grad(value.sin().sum(), args, create_graph=True)
        seconds = torch.autograd.grad(sum(g.square().sum() for g in firsts), args)
        found.append([x.detach().cpu().double() for x in (value, *firsts, *seconds)])
    for exact, ours in zip(*found, strict=True):
        scale = exact.abs().max().item() + 1e-30
        torch.testing.assert_close(ours / scale, exact / scale, rtol=0, atol=2e-4 if dtype == torch.float32 else 1e-10)


def test_a_compiled_function_of_a_reduction() -> None:
    genred = Genred("b-SqDist(x,y)*p", ALIASES, "LogSumExp", 1)
    x, y, b, p = (a.to(DEVICE, torch.float32) for a in arguments())
    f = torch.compile(lambda x: genred(x, y, b, p).exp().sum(), fullgraph=True)
    leaf = x.clone().requires_grad_()
    f(leaf).backward()
    wanted = torch.autograd.grad(genred(other := x.clone().requires_grad_(), y, b, p).exp().sum(), other)[0]
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-4, atol=1e-5)


def test_a_step_is_recorded_in_a_graph() -> None:
    """Forward and backward, after a first call."""
    genred = Genred("Exp(-SqDist(x,y)*p)*b", ALIASES, axis=1)
    x, y, b, p = (a.to(DEVICE, torch.float32).requires_grad_() for a in arguments())

    def step() -> list[torch.Tensor]:
        value = genred(x, y, b, p)
        return [value.detach(), *torch.autograd.grad(value.sum(), (x, y, b, p))]

    wanted = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    for each in recorded:
        each.fill_(torch.nan)
    graph.replay()
    for ours, exact in zip(recorded, wanted, strict=True):
        torch.testing.assert_close(ours, exact)


def test_autocast() -> None:
    genred = Genred("Exp(-SqDist(x,y)*p)*b", ALIASES, axis=1)
    x, y, b, p = (a.to(DEVICE, torch.float32) for a in arguments())
    low = x.bfloat16().requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        value = genred(low, y, b, p)
    value.sum().backward()
    assert value.dtype == torch.float32 and low.grad is not None and low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value, genred(low.float(), y, b, p))
