"""Clusters on tensors: labels, slices, centroids, and the ranges that PyKeOps' layout makes of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonkeops.torch import cluster


def points(rows: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(rows: int, clusters: int, seed: int = 0, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(clusters, (rows,), generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- grid_cluster ----


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [0, 1, 2, 300])
def test_labels_number_the_cells_in_lexicographic_order(rows: int, dim: int) -> None:
    x, size = points(rows, dim), torch.linspace(0.4, 0.9, dim)
    found = cluster.grid_cluster(x, size)
    least = x.amin(0) if rows else x
    cells = [tuple(row) for row in ((x - least) / size.double()).floor().tolist()]
    numbers = {cell: n for n, cell in enumerate(sorted(set(cells)))}
    assert found.dtype == torch.int32 and found.tolist() == [numbers[cell] for cell in cells]


def test_cells_do_not_collide_however_many_along_an_axis() -> None:
    """PyKeOps' hash has room for 1024 in each; (0, 1024) and (1, 0) are one cell there."""
    x = torch.tensor([[0.5, 1024.5], [1.5, 0.5], [0.5, 0.5], [1.5, 1024.5], [0.5, 1e30]])
    assert cluster.grid_cluster(x, 1.0).tolist() == [1, 3, 0, 4, 2]


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("size", [0.3, 10.0])
def test_labels_are_those_of_pykeops(dim: int, size: float) -> None:
    theirs = pytest.importorskip("pykeops.torch.cluster")
    x = points(500, dim, dtype=torch.float32)
    expected = theirs.grid_cluster(x, size)
    found = cluster.grid_cluster(x, size)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_points_of_any_real_dtype_that_require_gradients() -> None:
    x = torch.tensor([[3], [9], [4]])
    for dtype in (torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float64):
        assert cluster.grid_cluster(x.to(dtype), 2).tolist() == [0, 1, 0]
    found = cluster.grid_cluster(x.double().requires_grad_(), torch.tensor(2.0, requires_grad=True))
    assert not found.requires_grad


@pytest.mark.parametrize("size", [(2.0, 3.0), [2.0, 3.0], torch.tensor([2, 3])], ids=["tuple", "list", "tensor"])
def test_a_size_for_each_dimension(size: Any) -> None:
    x = torch.tensor([[0.0, 0.0], [1.9, 2.9], [2.0, 0.0], [0.0, 3.0]])
    assert cluster.grid_cluster(x, size).tolist() == [0, 0, 2, 1]


@pytest.mark.parametrize(
    ("x", "size", "error", "message"),
    [
        ([[0.0]], 1.0, TypeError, "x: expected a tensor, got list"),
        (torch.zeros(3), 1.0, ValueError, r"x: expected shape \(M, D\), got \(3,\)"),
        (torch.zeros(3, 1, dtype=torch.complex64), 1.0, TypeError, "x: expected real numbers, got torch.complex64"),
        (torch.tensor([[0.0], [torch.nan]]), 1.0, ValueError, "x: expected finite points"),
        (torch.tensor([[0.0], [torch.inf]]), 1.0, ValueError, "x: expected finite points"),
        (torch.zeros(3, 2), "wide", TypeError, "size: expected a number, or one per dimension, got 'wide'"),
        (torch.zeros(3, 2), [1.0, 2.0, 3.0], ValueError, r"size: expected a number or 2 of them, got shape \(3,\)"),
        (torch.zeros(3, 2), [1.0, 0.0], ValueError, r"size: expected positive numbers, got \[1.0, 0.0\]"),
        (torch.zeros(3, 2), torch.nan, ValueError, "size: expected positive numbers, got nan"),
    ],
)
def test_wrong_points_and_sizes(x: Any, size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cluster.grid_cluster(x, size)


# ---- sort_clusters ----


def test_sorting_keeps_the_order_within_clusters() -> None:
    lab = torch.tensor([2, 0, 2, 1, 0], dtype=torch.int32)
    x = torch.arange(5.0)[:, None]
    found, sorted_labels = cluster.sort_clusters(x, lab)
    assert found[:, 0].tolist() == [1, 4, 3, 0, 2]
    assert sorted_labels.dtype == torch.int32 and sorted_labels.tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("kind", [tuple, list])
def test_sorting_several_tensors(kind: Any) -> None:
    lab = labels(40, 5)
    x = kind([points(40, 3), torch.arange(40), points(40, 2, seed=1)[:, :, None]])
    found, sorted_labels = cluster.sort_clusters(x, lab[:, None])
    rows = torch.sort(lab, stable=True).indices
    assert type(found) is kind and torch.equal(sorted_labels, lab[rows])
    assert all(torch.equal(ours, given[rows]) for ours, given in zip(found, x, strict=True))


def test_gradients_pass_through_sorting() -> None:
    x = points(6, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cluster.sort_clusters(x, labels(6, 3))[0], x)


def test_sorting_other_lengths() -> None:
    with pytest.raises(ValueError, match=r"x: expected 5 rows, as the other argument has, got shape \(4, 2\)"):
        cluster.sort_clusters([torch.zeros(5, 1), torch.zeros(4, 2)], labels(5, 2))
    with pytest.raises(TypeError, match=r"lab: expected integers, got torch\.float32"):
        cluster.sort_clusters(torch.zeros(5, 1), torch.zeros(5))


# ---- cluster_ranges ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_ranges_are_the_slices_of_sorted_points(dtype: torch.dtype) -> None:
    lab = torch.tensor([4, 0, 4, 1, 0, 0], dtype=dtype)  # clusters 2 and 3 are empty
    ranges = cluster.cluster_ranges(lab)
    assert ranges.dtype == torch.int64 and ranges.tolist() == [[0, 3], [3, 4], [4, 4], [4, 4], [4, 6]]
    _, found = cluster.sort_clusters(lab, lab)
    assert all((found[start:end] == k).all() for k, (start, end) in enumerate(ranges.tolist()))


@pytest.mark.parametrize("rows", [0, 1, 257])
def test_ranges_are_those_of_pykeops(rows: int) -> None:
    theirs = pytest.importorskip("pykeops.torch.cluster")
    lab = labels(rows, 9)
    assert torch.equal(cluster.cluster_ranges(lab), theirs.cluster_ranges(lab))


def test_ranges_are_exact_beyond_the_integers_of_float32() -> None:
    many = 2**24 + 1
    assert cluster.cluster_ranges(torch.ones(many, dtype=torch.uint8)).tolist() == [[0, 0], [0, many]]
    counts = torch.tensor([many, 1, 2**31])
    ends = [*itertools.accumulate(counts.tolist())]
    assert cluster.cluster_ranges(labels(0, 1), Nlab=counts)[:, 1].tolist() == ends


def test_counts_may_come_in_any_dtype_and_end_with_empty_clusters() -> None:
    lab = torch.tensor([1, 1, 0])
    for dtype in (torch.float32, torch.int32):
        ranges = cluster.cluster_ranges(lab, torch.tensor([1, 2, 0], dtype=dtype))
        assert ranges.dtype == torch.int64 and ranges.tolist() == [[0, 1], [1, 3], [3, 3]]


def test_wrong_labels_and_counts() -> None:
    with pytest.raises(ValueError, match="lab: expected labels from 0 to 2, got -1 to 2"):
        cluster.cluster_ranges(torch.tensor([2, -1]))
    with pytest.raises(TypeError, match=r"lab: expected integers, got torch\.bool"):
        cluster.cluster_ranges(torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"Nlab: expected shape \(C,\), got \(2, 1\)"):
        cluster.cluster_ranges(torch.tensor([0, 1]), torch.ones(2, 1))


# ---- centroids ----


def means(x: Tensor, lab: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cluster by cluster, in float64."""
    each = torch.ones(len(x)) if weights is None else weights
    chosen = [lab == k for k in range(int(lab.max()) + 1)]
    total = [(x[rows].double() * each[rows, None]).sum(0) / each[rows].sum().double() for rows in chosen]
    return torch.stack(total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_centroids_are_means(dtype: torch.dtype, dim: int, weighted: bool) -> None:
    x, lab = points(200, dim, dtype=dtype), labels(200, 7)
    weights = points(200, 1, seed=1, dtype=dtype)[:, 0].exp() if weighted else None
    found = cluster.cluster_centroids(x, lab, weights=weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found, means(x, lab, weights).to(dtype))
    theirs = pytest.importorskip("pykeops.torch.cluster")
    torch.testing.assert_close(found, theirs.cluster_centroids(x, lab, weights=weights))


def test_centroids_of_many_points_keep_their_digits() -> None:
    """Summed in float32, 300,000 points of about 1 lose the third digit behind the point."""
    x = points(300_000, 1, dtype=torch.float32) * 0.01 + 1
    found = cluster.cluster_centroids(x, torch.zeros(len(x), dtype=torch.int32))
    torch.testing.assert_close(found.double(), x.double().mean(0, keepdim=True), rtol=1e-7, atol=0)


def test_totals_may_be_given() -> None:
    x, lab, weights = points(20, 2), labels(20, 3), points(20, 1, seed=1).exp()  # (20, 1) as PyKeOps takes them
    counts, total = torch.bincount(lab), torch.bincount(lab, weights[:, 0])
    plain, weighted = means(x, lab), means(x, lab, weights[:, 0])
    torch.testing.assert_close(cluster.cluster_centroids(x, lab, counts), plain)
    torch.testing.assert_close(cluster.cluster_centroids(x, lab, counts.float()), plain)
    torch.testing.assert_close(cluster.cluster_centroids(x, lab, counts, weights), weighted)
    torch.testing.assert_close(cluster.cluster_centroids(x, lab, weights=weights, weights_c=total[:, None]), weighted)


def test_a_cluster_without_points_has_no_centroid_and_no_effect_on_gradients() -> None:
    x = torch.tensor([[1.0], [3.0], [5.0]], requires_grad=True)
    weights = torch.tensor([1.0, 1.0, 2.0], requires_grad=True)
    lab = torch.tensor([0, 0, 2])
    for centroids in (cluster.cluster_centroids(x, lab), cluster.cluster_centroids(x, lab, weights=weights)):
        assert centroids[:, 0].tolist() == pytest.approx([2.0, torch.nan, 5.0], nan_ok=True)
        gradients = torch.autograd.grad(centroids[[0, 2]].sum(), (x, weights), allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_centroids_are_differentiable() -> None:
    x, weights, lab = points(9, 2).requires_grad_(), points(9, 1, seed=1).exp().requires_grad_(), labels(9, 3)
    assert torch.autograd.gradcheck(lambda x: cluster.cluster_centroids(x, lab), x)
    assert torch.autograd.gradcheck(lambda x, w: cluster.cluster_centroids(x, lab, weights=w), (x, weights))
    assert torch.autograd.gradcheck(
        lambda x, w: cluster.cluster_ranges_centroids(x, lab, weights=w)[1:], (x, weights[:, 0])
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_ranges_and_centroids_are_those_of_pykeops(weighted: bool) -> None:
    theirs = pytest.importorskip("pykeops.torch.cluster")
    x, lab = points(100, 3, dtype=torch.float32), labels(100, 6)
    weights = points(100, 1, seed=1, dtype=torch.float32)[:, 0].clamp(min=0) if weighted else None
    expected = theirs.cluster_ranges_centroids(x, lab, weights)
    for ours, other in zip(cluster.cluster_ranges_centroids(x, lab, weights), expected, strict=True):
        torch.testing.assert_close(ours, other)


def test_weights_are_raised_to_the_least() -> None:
    x, lab, weights = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), torch.tensor([3.0, 1.0, 0.0])
    _, centroids, total = cluster.cluster_ranges_centroids(x, lab, weights)
    assert centroids[:, 0].tolist() == [1.5, 5.0] and total.tolist() == pytest.approx([4.0, 1e-9])
    _, centroids, total = cluster.cluster_ranges_centroids(x, lab, weights, min_weight=3.0)
    assert centroids[:, 0].tolist() == [2.0, 5.0] and total.tolist() == [6.0, 3.0]
    assert weights.tolist() == [3.0, 1.0, 0.0]


def test_wrong_points_labels_and_weights() -> None:
    x, lab = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])
    for function in (cluster.cluster_centroids, cluster.cluster_ranges_centroids):
        with pytest.raises(ValueError, match="lab: expected 4 rows"):
            function(x, lab[:3])
        with pytest.raises(ValueError, match=r"weights: expected 4 numbers, one per point, got shape \(3,\)"):
            function(x, lab, weights=torch.ones(3))
        with pytest.raises(ValueError, match=r"x: expected shape \(M, D\)"):
            function(x[0], lab)
    with pytest.raises(ValueError, match="lab: expected labels from 0 to 0, got 0 to 1"):
        cluster.cluster_centroids(x, lab, torch.tensor([4]))


# ---- from_matrix, swap_axes ----


def test_the_layout_of_a_small_matrix() -> None:
    ranges_i, ranges_j = torch.tensor([[2, 5], [7, 12]]), torch.tensor([[1, 4], [4, 9], [20, 30]])
    keep = torch.tensor([[True, True, False], [False, True, False]])
    found = [x.tolist() for x in cluster.from_matrix(ranges_i, ranges_j, keep)]
    assert found[:3] == [ranges_i.tolist(), [2, 3], [[1, 4], [4, 9], [4, 9]]]
    assert found[3:] == [ranges_j.tolist(), [1, 3, 3], [[2, 5], [2, 5], [7, 12]]]


@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (0, 3), (3, 0)])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_the_layout_is_that_of_pykeops(shape: tuple[int, int], density: float) -> None:
    theirs = pytest.importorskip("pykeops.torch.cluster")
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    ranges_i, ranges_j = (cluster.cluster_ranges(labels(0, 1), torch.arange(n)).int() for n in shape)
    found, expected = (module.from_matrix(ranges_i, ranges_j, keep) for module in (cluster, theirs))
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(found, expected, strict=True))


def test_swapping_exchanges_the_triples() -> None:
    ranges_i, ranges_j = torch.tensor([[0, 2], [2, 3]]), torch.tensor([[0, 4], [4, 5], [5, 9]])
    keep = torch.tensor([[True, False, True], [False, False, True]])
    swapped = cluster.swap_axes(cluster.from_matrix(ranges_i, ranges_j, keep))
    assert swapped is not None
    assert all(map(torch.equal, swapped, cluster.from_matrix(ranges_j, ranges_i, keep.T)))
    assert cluster.swap_axes(None) is None
    with pytest.raises(ValueError, match="ranges: expected 6 of them, got 3"):
        cluster.swap_axes(swapped[:3])  # type: ignore[arg-type]


def test_wrong_matrices() -> None:
    ranges, keep = torch.tensor([[0, 2], [2, 3]]), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"ranges_j: expected integers, got torch\.float32"):
        cluster.from_matrix(ranges, ranges.float(), keep)
    with pytest.raises(ValueError, match=r"ranges_i: expected shape \(clusters, 2\), got \(2,\)"):
        cluster.from_matrix(ranges[0], ranges, keep)
    with pytest.raises(TypeError, match=r"keep: expected bool, got torch\.int64"):
        cluster.from_matrix(ranges, ranges, keep.long())
    with pytest.raises(ValueError, match=r"keep: expected shape \(2, 2\), got \(2, 1\)"):
        cluster.from_matrix(ranges, ranges, keep[:, :1])
