"""Calls over some pairs only, `ranges`, `mask` and `neighbors`, with gradients of any order and batches.

The oracle is the dense formula under a boolean mask. PyKeOps crashes where ranges meet batches, and lets overlapping
ranges overwrite each other. The kernels' own tests are in runtime/test_pattern.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonkeops.numpy import Genred as NumpyGenred
from tritonkeops.torch import Genred
from tritonkeops.torch.cluster import from_matrix

M, N = 50, 60
ALIASES = ["x = Vi(2)", "y = Vj(2)", "b = Vj(1)"]
ROWS, COLS = torch.arange(M)[:, None], torch.arange(N)[None, :]


def blocks() -> tuple[tuple[Tensor, ...], Tensor]:
    """Ranges of five by four clusters, and as a mask. Rows 20 to 29 meet nothing, rows 47 on are not covered."""
    i = torch.tensor([[0, 7], [7, 20], [20, 30], [30, 31], [31, 47]])
    j = torch.tensor([[0, 10], [10, 33], [33, 34], [34, 60]])
    keep = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 1]]).bool()
    mask = torch.zeros(M, N, dtype=torch.bool)
    for c, d in keep.nonzero().tolist():
        mask[i[c, 0] : i[c, 1], j[d, 0] : j[d, 1]] = True
    return from_matrix(i, j, keep), mask


def lists() -> tuple[Tensor, Tensor]:
    """Four different neighbours a row, some of them absent."""
    torch.manual_seed(1)
    found = torch.stack([torch.randperm(N)[:4] for _ in range(M)])
    found[::7, 2:] = -1
    mask = torch.zeros(M, N + 1, dtype=torch.bool).scatter(1, found.where(found >= 0, N), True)
    return found, mask[:, :N]


PATTERNS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "ranges": ({"ranges": blocks()[0]}, blocks()[1]),
    "i<j": ({"mask": "i<j"}, ROWS < COLS),
    "i<=j": ({"mask": "i <= j"}, ROWS <= COLS),
    "i>j": ({"mask": "i>j"}, ROWS > COLS),
    "i>=j": ({"mask": "i>=j"}, ROWS >= COLS),
    "band": ({"mask": "|i-j|<=3"}, (ROWS - COLS).abs() <= 3),
    "neighbors": ({"neighbors": lists()[0]}, lists()[1]),
}


def exponents(x: Tensor, y: Tensor) -> Tensor:
    return -((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1)


def minima(x: Tensor, y: Tensor, b: Tensor, mask: Tensor, axis: int) -> Tensor:
    scores = (exponents(x, y) * b.mT).masked_fill(~mask, torch.inf)
    return scores.amin(-axis if axis else -2)[..., None]


def logsumexp(x: Tensor, y: Tensor, b: Tensor, mask: Tensor, axis: int) -> Tensor:
    """Finite where there is nothing: the derivative of dense torch is NaN there."""
    scores = (exponents(x, y) + b.mT).masked_fill(~mask, -torch.inf)
    along = -1 if axis else -2
    covered = mask.any(along)
    found = scores.masked_fill(~covered.unsqueeze(along), 0).logsumexp(along)
    return torch.where(covered, found, -torch.inf)[..., None]


def weighted(x: Tensor, y: Tensor, b: Tensor, mask: Tensor, axis: int) -> Tensor:
    terms = torch.where(mask, exponents(x, y).exp() * b.mT, 0)
    return terms.sum(-1 if axis else -2)[..., None]


CASES: dict[str, tuple[Callable[[int], Genred], Callable[..., Tensor]]] = {
    "Sum": (lambda axis: Genred("Exp(-SqDist(x,y))*b", ALIASES, "Sum", axis), weighted),
    "LogSumExp": (lambda axis: Genred("b-SqDist(x,y)", ALIASES, "LogSumExp", axis), logsumexp),
    "Min": (lambda axis: Genred("-SqDist(x,y)*b", ALIASES, "Min", axis), minima),
}


def arguments(*batch: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(*batch, M, 2), (N, 2), (*batch, N, 1)]
    return [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def finite(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, 0)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_values_and_gradients(pattern: str, name: str, axis: int, batch: tuple[int, ...]) -> None:
    (options, mask), (make, dense), args = PATTERNS[pattern], CASES[name], arguments(*batch)
    genred = make(axis)
    ours, wanted = genred(*args, **options), dense(*args, mask, axis)
    torch.testing.assert_close(ours, wanted)
    found = [torch.autograd.grad(finite(f).square().sum(), args, create_graph=True) for f in (ours, wanted)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    if name != "Min":
        seconds = [torch.autograd.grad(sum(g.sin().sum() for g in firsts), args) for firsts in found]  # type: ignore[arg-type]
        for a, b in zip(*seconds, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_transforms(pattern: str) -> None:
    options, mask = PATTERNS[pattern]
    make, dense = CASES["Sum"]
    genred, (x, y, b) = make(1), [a.detach() for a in arguments()]
    compiled = torch.compile(lambda x: genred(x, y, b, **options), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), dense(x, y, b, mask, 1))
    moved = torch.stack([x, 2 * x])
    mapped = torch.func.vmap(lambda x: genred(x, y, b, **options))(moved)
    torch.testing.assert_close(mapped, dense(moved, y, b, mask, 1))
    forward = [torch.func.jvp(f, (x,), (x.cos(),))[1] for f in (
        lambda x: genred(x, y, b, **options), lambda x: dense(x, y, b, mask, 1))]  # fmt: skip
    torch.testing.assert_close(*forward)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_arrays(pattern: str) -> None:
    options, mask = PATTERNS[pattern]
    args = [a.detach() for a in arguments()]
    arrays = {
        name: value
        if isinstance(value, str)
        else value.numpy()
        if isinstance(value, Tensor)
        else tuple(v.numpy() for v in value)
        for name, value in options.items()
    }
    genred = NumpyGenred("Exp(-SqDist(x,y))*b", ALIASES, "Sum", 1)
    result = genred(*[a.numpy() for a in args], **arrays)
    torch.testing.assert_close(torch.from_numpy(result), weighted(*args, mask, 1))


def test_nan_outside_of_the_pattern_stays_outside() -> None:
    options, _ = PATTERNS["ranges"]
    x, y, b = [a.detach() for a in arguments()]
    x[20:30] = torch.nan
    x.requires_grad_(), y.requires_grad_()
    result = CASES["Sum"][0](1)(x, y, b, **options)
    assert not result.isnan().any()
    found = torch.autograd.grad(result.sum(), (x, y))
    assert not any(g.isnan().any() for g in found)


def test_nearest_neighbours_serve_as_neighbours() -> None:
    """What ArgKMin finds, -1 included where there are too few."""
    x, y, b = [a.detach() for a in arguments()]
    few = y[:3]
    nearest = Genred("SqDist(x,y)", ALIASES[:2], "ArgKMin", axis=1, opt_arg=5)(x, few)
    genred = CASES["Sum"][0](1)
    torch.testing.assert_close(genred(x, few, b[:3], neighbors=nearest), genred(x, few, b[:3]))


def test_changing_ranges_in_place_is_seen() -> None:
    ranges, _ = blocks()
    x, y, b = [a.detach() for a in arguments()]
    genred = CASES["Sum"][0](1)
    first = genred(x, y, b, ranges=ranges)
    ranges[2][0, 1] -= 2
    assert not torch.equal(first, genred(x, y, b, ranges=ranges))
