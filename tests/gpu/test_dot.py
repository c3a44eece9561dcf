"""Products of matrices on a device's tensor cores, which cut off what they add: errors against float64, and what is
selected or too spread, as direct evaluation has it. In the interpreter: tests/interpreted/test_dot.py."""

from __future__ import annotations

import pytest
import torch

from tests.interpreted.test_dot import *  # noqa: F403
from tests.interpreted.test_dot import (
    FLOOR,
    GAUSSIAN,
    Case,
    check_setting,
    cloud,
    clouds,
    error,
    kinds,
    same,
    two_clusters,
)
from tritonkeops.torch import Genred

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]


def test_the_setting_of_torch_counts_at_each_call(genred: type[Genred]) -> None:
    """Of calls that are long enough for products."""
    check_setting(Case(GAUSSIAN, clouds(2000, 20_000, 10)), genred)


@pytest.mark.parametrize("dim", [10, 64, 200, 300])
@pytest.mark.parametrize("N", [1000, 100_003])
def test_errors_of_long_sums(dim: int, N: int, genred: type[Genred]) -> None:
    """Within 4 times those of direct evaluation."""
    for case in kinds(clouds(130, N, dim)):
        found, direct = (case.values(genred, precision=word)[0] for word in ("highest", "direct"))
        (exact,) = case.exact
        assert error(found, exact) <= max(4 * error(direct, exact), FLOOR)


@pytest.mark.parametrize("wide", [9, 64, 200])
def test_errors_of_many_sums(wide: int, genred: type[Genred]) -> None:
    case = Case(GAUSSIAN, clouds(300, 20_011, 64, wide))
    found, direct = (case.values(genred, precision=word)[0] for word in ("highest", "direct"))
    assert error(found, *case.exact) <= max(4 * error(direct, *case.exact), FLOOR)


@pytest.mark.parametrize("M", [17, 100, 5000])
def test_data_that_are_too_spread(M: int, genred: type[Genred]) -> None:
    """One row is enough; whole and split."""
    tensors = clouds(M, 20_011, 10)
    tensors["y"][12_345] *= 50
    for case in kinds(tensors):
        same(case, genred)


@pytest.mark.parametrize("dim", [10, 128, 1024, 4096])
@pytest.mark.parametrize("k", [1, 10])
def test_neighbours_are_exact(dim: int, k: int, genred: type[Genred]) -> None:
    """With errors of products that grow with the number of components."""
    tensors = {"x": cloud(300, dim, 1), "y": cloud(10_007, dim, 2)}
    same(Case("SqDist(x, y)", tensors, "KMin_ArgKMin", options={"opt_arg": k}), genred)


def test_neighbours_in_clusters_are_exact(genred: type[Genred]) -> None:
    for width in (1e-1, 1e-4):
        same(Case("SqDist(x, y)", two_clusters(width), "KMin_ArgKMin", options={"opt_arg": 5}), genred)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
def test_attention(dim: int, dtype: torch.dtype, genred: type[Genred]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, b = (torch.randn(n, dim, generator=generator).to(dtype) for n in (500, 4099, 4099))
    tensors = {"x": (x / dim**0.25).to(dtype), "y": (y / dim**0.25).to(dtype), "b": b}
    case = Case("(x | y)", tensors, "SumSoftMaxWeight", options={"formula2": "b"})
    assert error(*case.values(genred), *case.exact) <= {torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]


def test_graphs_hold_products_and_what_they_fall_back_to() -> None:
    """A graph that is captured with near points is replayed with spread ones: the device decides."""
    tensors = {name: x.cuda() for name, x in clouds(300, 5003, 10).items()}
    kernel = Case(GAUSSIAN, tensors).made(Genred)
    kernel(*tensors.values())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = kernel(*tensors.values())
    for scale in (1, 30):
        tensors["x"].mul_(scale)
        graph.replay()
        assert torch.equal(result, kernel(*tensors.values()))
