"""Clusters of points, and the ranges of a block-sparse reduction: for `torch.cluster` and `numpy.cluster`.

All of it runs on the tensors' own device, without a loop over points or clusters. The interface is that of KeOps:
https://www.kernel-operations.io/keops/python/api/pytorch/Cluster.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Points = TypeVar("Points", Tensor, tuple[Tensor, ...], list[Tensor])


@torch.no_grad()
def grid_cluster(x: Tensor, size: float | Sequence[float] | Tensor) -> Tensor:
    """Label points by the cells of a grid that starts at the smallest coordinates.

    Cells count as far as the numbers of `x` reach, in any dimension; no two of them share a label.

    Args:
        x: (M, D) finite points, of any real dtype.
        size: edge of the cells: a number, or one for each of the D dimensions.

    Returns:
        (M,) labels, int32 (int64 for 2^31 points and more): the cells that hold points are numbered 0 ... C-1 in
        lexicographic order. Two points are in the same cell if and only if their labels are equal.

    Raises:
        TypeError: `x` is no real tensor, or `size` no numbers.
        ValueError: `x` is not (M, D) or not finite; `size` has another shape or is not positive.

    Example:
        >>> grid_cluster(torch.tensor([[0.0], [0.1], [0.9], [0.05], [0.5]]), 0.2)
        tensor([0, 0, 2, 0, 1], dtype=torch.int32)
    """
    check_points(x)
    labels = grid_labels(x - x.amin(0) if len(x) else x, size)
    return labels.to(torch.int32) if len(x) < 2**31 else labels


@torch.no_grad()
def grid_labels(x: Tensor, size: float | Sequence[float] | Tensor) -> Tensor:
    """As `grid_cluster`, for checked points, with int64 labels and a grid that starts at 0."""
    cells = (x / _edges(x, size)).floor()
    if not cells.isfinite().all():
        raise ValueError("x: expected finite points, in units of size too, got inf or NaN")
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for column in cells.unbind(1):
        values, digits = torch.unique(column, return_inverse=True)
        # Two numbers below M make one below M^2, which int64 holds; numbered anew, it is below M again.
        labels = torch.unique(labels * len(values) + digits, return_inverse=True)[1]
    return labels


def _edges(x: Tensor, size: float | Sequence[float] | Tensor) -> Tensor:
    """The D edges of a cell, or the one for all."""
    try:
        edges = torch.as_tensor(size, dtype=x.dtype if x.is_floating_point() else torch.float64, device=x.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"size: expected a number, or one per dimension, got {size!r}") from None
    if edges.numel() not in (1, x.shape[1]) or edges.ndim > 1:
        raise ValueError(f"size: expected a number or {x.shape[1]} of them, got shape {tuple(edges.shape)}")
    if not (edges > 0).all():
        raise ValueError(f"size: expected positive numbers, got {size!r}")
    return edges


def order(lab: Tensor) -> Tensor:
    """(M,) rows, int64: by label, those of one cluster as they stand."""
    return torch.sort(_integers("lab", lab), stable=True).indices


def sort_clusters(x: Points, lab: Tensor) -> tuple[Points, Tensor]:
    """Sort points by label, so that each cluster lies in one piece of memory.

    Args:
        x: (M, ...) tensor of any dtype, or a tuple or list of them. Gradients pass.
        lab: (M,) integer labels.

    Returns:
        `x` sorted, a tuple or a list where it was one, and the labels sorted. Rows of one cluster keep their order.

    Raises:
        TypeError: `lab` does not hold integers, or `x` is no tensor. ValueError: their lengths differ.

    Example:
        >>> sort_clusters(torch.tensor([[0.0], [5.0], [0.4], [2.0]]), torch.tensor([0, 2, 0, 1]))
        (tensor([[0.0000], [0.4000], [2.0000], [5.0000]]), tensor([0, 0, 1, 2]))
    """
    rows = order(lab)
    for tensor in x if isinstance(x, (tuple, list)) else (x,):
        _check_tensor("x", tensor)
        check_length("x", tensor.shape, len(rows))
    labels = lab.reshape(-1)[rows]
    if isinstance(x, tuple):
        return tuple(tensor[rows] for tensor in x), labels
    return [tensor[rows] for tensor in x] if isinstance(x, list) else x[rows], labels


def cluster_ranges(lab: Tensor, Nlab: Tensor | None = None) -> Tensor:
    """The slice of each cluster in points that `sort_clusters` has sorted.

    Args:
        lab: (M,) integer labels from 0, sorted or not; not read where `Nlab` is given.
        Nlab: (C,) numbers of points of each cluster, if you know them.

    Returns:
        (C, 2) int64: the first row of each cluster, and the row after its last. These are exact for any number of
        points. A cluster without points has a range of length 0.

    Raises:
        TypeError: `lab` does not hold integers. ValueError: `lab` holds negative ones, or `Nlab` is not (C,).

    Example:
        >>> cluster_ranges(torch.tensor([0, 2, 0, 0, 1]))
        tensor([[0, 3], [3, 4], [4, 5]])
    """
    if Nlab is None:
        counts = torch.bincount(_labels(lab)[0])
    else:
        _check_tensor("Nlab", Nlab)
        if Nlab.ndim != 1:
            raise ValueError(f"Nlab: expected shape (C,), got {tuple(Nlab.shape)}")
        counts = Nlab.to(torch.int64)
    ends = counts.cumsum(0)
    return torch.stack((ends - counts, ends), dim=1)


def cluster_centroids(
    x: Tensor, lab: Tensor, Nlab: Tensor | None = None, weights: Tensor | None = None, weights_c: Tensor | None = None
) -> Tensor:
    """The (weighted) mean of the points of each cluster, differentiable in `x` and `weights`.

    Args:
        x: (M, D) points.
        lab: (M,) integer labels from 0, sorted or not.
        Nlab: (C,) numbers of points of each cluster, if you know them.
        weights: (M,) weights of the points; 1 without them.
        weights_c: (C,) total weight of each cluster, if you know it.

    Returns:
        (C, D) centroids of x's dtype, summed in float64; NaN for a cluster without points or without weight.

    Raises:
        TypeError: an argument is no tensor, or `lab` does not hold integers.
        ValueError: shapes that do not agree; labels that are negative, or not below C.

    Example:
        >>> x, lab = torch.tensor([[0.0], [1.0], [4.0], [5.0], [6.0]]), torch.tensor([0, 0, 1, 1, 1])
        >>> cluster_centroids(x, lab, weights=torch.tensor([0.5, 0.5, 2.0, 1.0, 1.0]))
        tensor([[0.5000], [4.7500]])
    """
    check_points(x)
    each = x.new_ones(len(x), 1) if weights is None else _column(weights, len(x))
    total = Nlab if weights is None else weights_c
    labels, clusters = _labels(lab, Nlab if total is None else total)
    check_length("lab", labels.shape, len(x))
    total = _add(each.double(), labels, clusters) if total is None else total.reshape(-1, 1)
    return (_add(x.double() * each, labels, clusters) / total).to(x.dtype)


def cluster_ranges_centroids(
    x: Tensor, lab: Tensor, weights: Tensor | None = None, min_weight: float = 1e-9
) -> tuple[Tensor, Tensor, Tensor]:
    """The ranges, centroids and total weights of the clusters of a cloud of points.

    Args:
        x: (M, D) points.
        lab: (M,) integer labels from 0, sorted or not.
        weights: (M,) weights of the points, 1 without them; gradients pass.
        min_weight: what smaller weights are raised to, so that no cluster of points is without weight.

    Returns:
        ranges: (C, 2) int64, those of `cluster_ranges`.
        centroids: (C, D) of x's dtype, those of `cluster_centroids`.
        weights_c: (C,) total weights, of the weights' dtype; without weights, the numbers of points, of x's dtype.

    Raises:
        TypeError, ValueError: as `cluster_centroids`.

    Example:
        >>> x, lab = torch.tensor([[0.0], [0.5], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1, 1])
        >>> cluster_ranges_centroids(x, lab)
        (tensor([[0, 2], [2, 5]]), tensor([[0.2500], [2.0000]]), tensor([2., 3.]))
    """
    check_points(x)
    labels, clusters = _labels(lab)
    check_length("lab", labels.shape, len(x))
    counts = torch.bincount(labels, minlength=clusters)
    ranges = cluster_ranges(labels, counts)
    if weights is None:
        return ranges, cluster_centroids(x, labels, counts), counts.to(x.dtype)
    each = _column(weights, len(x)).clamp(min=min_weight)
    total = _add(each.double(), labels, clusters)
    return ranges, cluster_centroids(x, labels, None, each, total), total.view(-1).to(weights.dtype)


def from_matrix(
    ranges_i: Tensor, ranges_j: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The `ranges` of a block-sparse reduction, from the pairs of clusters that it is to keep.

    Args:
        ranges_i: (C_i, 2) integers: cluster k has the rows i from ranges_i[k, 0] to before ranges_i[k, 1].
        ranges_j: (C_j, 2) integers: the same for j.
        keep: (C_i, C_j) bool: whether the pairs (i, j) of these two clusters are computed.

    Returns:
        (ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i), for the argument `ranges` of `Genred`. The
        first three serve reductions over j: row i of cluster k is reduced over the rows
        redranges_j[slices_i[k-1]:slices_i[k]], from 0 for k = 0. The last three serve reductions over i in the same
        way. Slices are int64; redranges are rows of the ranges, repeated.

    Raises:
        TypeError: an argument is no tensor of integers, `keep` not one of bools. ValueError: the shapes do not agree.

    Example:
        >>> r_i, r_j = torch.tensor([[2, 5], [7, 12]]), torch.tensor([[1, 4], [4, 9], [20, 30]])
        >>> from_matrix(r_i, r_j, torch.tensor([[True, True, False], [False, True, False]]))[1:3]
        (tensor([2, 3]), tensor([[1, 4], [4, 9], [4, 9]]))
    """
    for name, ranges in (("ranges_i", ranges_i), ("ranges_j", ranges_j)):
        _integers(name, ranges)
        if ranges.ndim != 2 or ranges.shape[1] != 2:
            raise ValueError(f"{name}: expected shape (clusters, 2), got {tuple(ranges.shape)}")
    _check_tensor("keep", keep)
    if keep.dtype not in (torch.bool, torch.uint8):  # KeOps' own examples have uint8
        raise TypeError(f"keep: expected bool, got {keep.dtype}")
    if keep.shape != (len(ranges_i), len(ranges_j)):
        raise ValueError(f"keep: expected shape {(len(ranges_i), len(ranges_j))}, got {tuple(keep.shape)}")
    return (*_kept(ranges_i, ranges_j, keep), *_kept(ranges_j, ranges_i, keep.T))


def _kept(ranges: Tensor, others: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each range in turn, the others that it keeps; `slices` tells where those of the next one start."""
    rows, columns = keep.nonzero().unbind(1)
    return ranges, torch.bincount(rows, minlength=len(ranges)).cumsum(0), others[columns]


def swap_axes(ranges: tuple[T, T, T, T, T, T] | None) -> tuple[T, T, T, T, T, T] | None:
    """The `ranges` of the reduction with i and j exchanged; None for None. Raises ValueError unless there are six."""
    if ranges is None:
        return None
    if len(ranges) != 6:
        raise ValueError(f"ranges: expected 6 of them, got {len(ranges)}")
    return (*ranges[3:6], *ranges[0:3])


def _add(x: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """(clusters, D) sums of the rows of each cluster."""
    return x.new_zeros(clusters, x.shape[1]).index_add(0, labels, x)


def check_points(x: Tensor) -> None:
    """Raises TypeError, ValueError unless x is (M, D) and real."""
    _check_tensor("x", x)
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"x: expected real numbers, got {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (M, D), got {tuple(x.shape)}")


def _labels(lab: Tensor, totals: Tensor | None = None) -> tuple[Tensor, int]:
    """The labels as (M,) int64, and the number of clusters: that of the totals, or as many as there are labels."""
    labels = _integers("lab", lab).to(torch.int64)
    least, most = (int(x) for x in labels.aminmax()) if len(labels) else (0, -1)
    clusters = most + 1 if totals is None else totals.numel()
    if least < 0 or most >= clusters:
        raise ValueError(f"lab: expected labels from 0 to {clusters - 1}, got {least} to {most}")
    return labels, clusters


def _integers(name: str, x: Tensor) -> Tensor:
    _check_tensor(name, x)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {x.dtype}")
    return x.reshape(-1)


def _column(weights: Tensor, length: int) -> Tensor:
    """One number per point, as a column."""
    _check_tensor("weights", weights)
    if weights.numel() != length:
        raise ValueError(f"weights: expected {length} numbers, one per point, got shape {tuple(weights.shape)}")
    return weights.reshape(-1, 1)


def check_length(name: str, shape: Sequence[int], length: int) -> None:
    """Raises ValueError unless there is one row per label."""
    if not shape or shape[0] != length:
        raise ValueError(f"{name}: expected {length} rows, as the other argument has, got shape {tuple(shape)}")


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
