"""Clusters of points, and the `ranges` of block-sparse reductions, on NumPy arrays; names and layouts of PyKeOps.

As `tritonkeops.torch.cluster`, with arrays for tensors, and with PyKeOps' types: int64 labels and ranges, float64
totals; and a grid whose cells start at 0 rather than at the smallest coordinates. See
https://www.kernel-operations.io/keops/python/api/numpy/Cluster.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tritonkeops.runtime import cluster
from tritonkeops.runtime.cluster import swap_axes

__all__ = [
    "grid_cluster",
    "sort_clusters",
    "cluster_ranges",
    "cluster_centroids",
    "cluster_ranges_centroids",
    "from_matrix",
    "swap_axes",
]

Array = np.ndarray[Any, np.dtype[Any]]
Points = TypeVar("Points", Array, tuple[Array, ...], list[Array])


def grid_cluster(x: Array, size: float | Sequence[float] | Array) -> Array:
    """Label points by the cells of a grid that starts at 0: `tritonkeops.torch.cluster.grid_cluster`.

    Args:
        x: (M, D) finite points, of any real dtype.
        size: edge of the cells: a number, or one for each of the D dimensions.

    Returns:
        (M,) int64 labels: the cells that hold points are numbered 0 ... C-1 in lexicographic order.

    Raises:
        TypeError, ValueError: arguments of another kind or shape; points that are not finite, sizes not positive.
    """
    points = _tensor("x", x)
    cluster.check_points(points)
    return _array(cluster.grid_labels(points, np.asarray(size).tolist()))


def sort_clusters(x: Points, lab: Array) -> tuple[Points, Array]:
    """Sort points by label: `tritonkeops.torch.cluster.sort_clusters`.

    Args:
        x: (M, ...) array of any dtype, or a tuple or list of them.
        lab: (M,) integer labels.

    Returns:
        `x` sorted, a tuple or a list where it was one, and the labels sorted. Rows of one cluster keep their order.

    Raises:
        TypeError: `lab` does not hold integers, or `x` is no array. ValueError: their lengths differ.
    """
    rows = _array(cluster.order(_tensor("lab", lab)))
    for array in x if isinstance(x, (tuple, list)) else (x,):
        _check_array("x", array)
        cluster.check_length("x", array.shape, len(rows))
    labels = lab.ravel()[rows]
    if isinstance(x, tuple):
        return tuple(array[rows] for array in x), labels
    return [array[rows] for array in x] if isinstance(x, list) else x[rows], labels


def cluster_ranges(lab: Array, Nlab: Array | None = None) -> Array:
    """The slice of each cluster in sorted points: `tritonkeops.torch.cluster.cluster_ranges`.

    Args:
        lab: (M,) integer labels from 0, sorted or not; not read where `Nlab` is given.
        Nlab: (C,) numbers of points of each cluster, if you know them.

    Returns:
        (C, 2) int64: the first row of each cluster, and the row after its last.

    Raises:
        TypeError: `lab` does not hold integers. ValueError: `lab` holds negative ones, or `Nlab` is not (C,).
    """
    return _array(cluster.cluster_ranges(_tensor("lab", lab), _optional("Nlab", Nlab)))


def cluster_centroids(
    x: Array, lab: Array, Nlab: Array | None = None, weights: Array | None = None, weights_c: Array | None = None
) -> Array:
    """The (weighted) mean of the points of each cluster: `tritonkeops.torch.cluster.cluster_centroids`.

    Args:
        x: (M, D) points.
        lab: (M,) integer labels from 0, sorted or not.
        Nlab: (C,) numbers of points of each cluster, if you know them.
        weights: (M,) weights of the points; 1 without them.
        weights_c: (C,) total weight of each cluster, if you know it.

    Returns:
        (C, D) centroids of x's dtype, summed in float64; NaN for a cluster without points or without weight.

    Raises:
        TypeError, ValueError: arguments of another kind; shapes and labels that do not agree.
    """
    totals = _optional("Nlab", Nlab), _optional("weights", weights), _optional("weights_c", weights_c)
    return _array(cluster.cluster_centroids(_tensor("x", x), _tensor("lab", lab), *totals))


def cluster_ranges_centroids(
    x: Array, lab: Array, weights: Array | None = None, min_weight: float = 1e-9
) -> tuple[Array, Array, Array]:
    """Ranges, centroids and total weights of clusters: `tritonkeops.torch.cluster.cluster_ranges_centroids`.

    Args:
        x: (M, D) points.
        lab: (M,) integer labels from 0, sorted or not.
        weights: (M,) weights of the points; 1 without them.
        min_weight: what smaller weights are raised to, so that no cluster of points is without weight.

    Returns:
        ranges: (C, 2) int64, those of `cluster_ranges`.
        centroids: (C, D) of x's dtype, those of `cluster_centroids`.
        weights_c: (C,) float64 total weights.

    Raises:
        TypeError, ValueError: as `cluster_centroids`.
    """
    points, each = _tensor("x", x), _optional("weights", weights)
    each = None if each is None else each.double()
    ranges, centroids, total = cluster.cluster_ranges_centroids(points.double(), _tensor("lab", lab), each, min_weight)
    return _array(ranges), _array(centroids.to(points.dtype)), _array(total)


def from_matrix(ranges_i: Array, ranges_j: Array, keep: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
    """The `ranges` of a block-sparse reduction: `tritonkeops.torch.cluster.from_matrix`.

    Args:
        ranges_i: (C_i, 2) integers: cluster k has the rows i from ranges_i[k, 0] to before ranges_i[k, 1].
        ranges_j: (C_j, 2) integers: the same for j.
        keep: (C_i, C_j) bool: whether the pairs (i, j) of these two clusters are computed.

    Returns:
        (ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i), all int64, for `Genred`'s `ranges`.

    Raises:
        TypeError: an argument is no array of integers, `keep` not one of bools. ValueError: the shapes do not agree.
    """
    given = _tensor("ranges_i", ranges_i), _tensor("ranges_j", ranges_j), _tensor("keep", keep)
    a, b, c, d, e, f = (_array(x.long()) for x in cluster.from_matrix(*given))
    return a, b, c, d, e, f


def _tensor(name: str, array: Array) -> Tensor:
    """A tensor of a copy, whatever the array's byte order and strides."""
    _check_array(name, array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _optional(name: str, array: Array | None) -> Tensor | None:
    return None if array is None else _tensor(name, array)


def _array(x: Tensor) -> Array:
    return x.numpy()


def _check_array(name: str, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected an array, got {type(array).__name__}")
