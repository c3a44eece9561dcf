"""Clusters on arrays: as on tensors, with PyKeOps' types for NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tritonkeops.numpy import cluster


def points(rows: int, dim: int, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(dtype)


def labels(rows: int, clusters: int) -> np.ndarray:
    return np.random.default_rng(1).integers(clusters, size=rows)


def check_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("size", [0.3, 10.0])
def test_labels_are_those_of_pykeops(dim: int, size: float) -> None:
    theirs = pytest.importorskip("pykeops.numpy.cluster")
    check_same(cluster.grid_cluster(points(400, dim), size), theirs.grid_cluster(points(400, dim), size))
    sizes = np.linspace(0.5, 1.5, dim)
    check_same(cluster.grid_cluster(points(400, dim), sizes), theirs.grid_cluster(points(400, dim), sizes))


def test_the_grid_starts_at_zero_in_any_dimension() -> None:
    x = np.array([[0.9, 0, 0, 5], [1.1, 0, 0, 5], [-0.1, 0, 0, 5], [0.1, 0, 0, 5], [0.1, 0, 0, 5000]])
    assert cluster.grid_cluster(x, 1.0).tolist() == [1, 3, 0, 1, 2]
    assert cluster.grid_cluster(x[:0], 1.0).shape == (0,)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranges_and_centroids_are_those_of_pykeops(weighted: bool, dtype: Any) -> None:
    theirs = pytest.importorskip("pykeops.numpy.cluster")
    x, lab = points(100, 3, dtype), labels(100, 6)
    weights = np.exp(points(100, 1, dtype)[:, 0]) if weighted else None
    check_same(cluster.cluster_ranges(lab), theirs.cluster_ranges(lab))
    check_same(cluster.cluster_ranges(lab, np.arange(3.0)), theirs.cluster_ranges(lab, np.arange(3.0)))
    check_same(cluster.cluster_centroids(x, lab, weights=weights), theirs.cluster_centroids(x, lab, weights=weights))
    found = cluster.cluster_ranges_centroids(x, lab, weights)
    for ours, expected in zip(found, theirs.cluster_ranges_centroids(x, lab, weights), strict=True):
        check_same(ours, expected)


def test_totals_may_be_given() -> None:
    x, lab, weights = points(30, 2), labels(30, 4), np.exp(points(30, 1))
    counts, total = np.bincount(lab), np.bincount(lab, weights[:, 0])
    check_same(cluster.cluster_centroids(x, lab, counts), cluster.cluster_centroids(x, lab))
    weighted = cluster.cluster_centroids(x, lab, weights=weights)
    check_same(cluster.cluster_centroids(x, lab, None, weights, total), weighted)


def test_weights_are_raised_to_the_least() -> None:
    x, lab, weights = np.array([[1.0], [3.0]]), np.array([0, 1]), np.array([0.0, 2.0])
    _, centroids, total = cluster.cluster_ranges_centroids(x, lab, weights, min_weight=0.5)
    assert centroids.tolist() == [[1.0], [3.0]] and total.tolist() == [0.5, 2.0]


@pytest.mark.parametrize("kind", [tuple, list])
def test_sorting_arrays_of_any_type(kind: Any) -> None:
    lab = np.array([2, 0, 2, 1], dtype=np.uint16)
    found, sorted_labels = cluster.sort_clusters(kind([np.array(list("abcd")), points(4, 2)]), lab)
    assert (
        type(found) is kind
        and found[0].tolist() == list("bdac")
        and np.array_equal(found[1], points(4, 2)[[1, 3, 0, 2]])
    )
    assert sorted_labels.dtype == np.uint16 and sorted_labels.tolist() == [0, 1, 2, 2]
    alone, _ = cluster.sort_clusters(points(4, 2), lab[:, None])
    assert np.array_equal(alone, found[1])


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_the_layout_is_that_of_pykeops(density: float) -> None:
    theirs = pytest.importorskip("pykeops.numpy.cluster")
    keep = np.random.default_rng(2).random((5, 7)) < density
    ranges = [cluster.cluster_ranges(labels(0, 1), np.arange(n)).astype(np.int32) for n in keep.shape]
    found = cluster.from_matrix(ranges[0], ranges[1], keep)
    for ours, expected in zip(found, theirs.from_matrix(*ranges, keep), strict=True):
        check_same(ours, expected)
    swapped = cluster.swap_axes(found)
    assert swapped is not None and cluster.swap_axes(None) is None
    for ours, expected in zip(swapped, theirs.swap_axes(found), strict=True):
        check_same(ours, expected)


def test_memory_of_any_shape() -> None:
    """Read-only, reversed and byte-swapped arrays."""
    x = points(20, 2)
    expected = cluster.grid_cluster(x, 0.5)
    reverse, swapped = np.ascontiguousarray(x[::-1])[::-1], x.astype(">f8")
    x.flags.writeable = False
    for array in (x, reverse, swapped, np.asfortranarray(x)):
        assert np.array_equal(cluster.grid_cluster(array, 0.5), expected)


def test_wrong_arguments() -> None:
    x, lab = points(4, 2), np.array([0, 1, 1, 0])
    with pytest.raises(TypeError, match="x: expected an array, got list"):
        cluster.grid_cluster([[0.0]], 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="size: expected a number, or one per dimension, got 'wide'"):
        cluster.grid_cluster(x, "wide")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x: expected numbers, got <U1"):
        cluster.cluster_centroids(np.array([["a"]]), lab)
    with pytest.raises(TypeError, match="lab: expected integers"):
        cluster.cluster_ranges(lab.astype(float))
    with pytest.raises(ValueError, match="x: expected 4 rows"):
        cluster.sort_clusters((x, x[:3]), lab)
    with pytest.raises(ValueError, match="weights: expected 4 numbers"):
        cluster.cluster_ranges_centroids(x, lab, np.ones(3))
    with pytest.raises(TypeError, match=r"keep: expected bool, got torch\.int64"):
        cluster.from_matrix(np.zeros((2, 2), int), np.zeros((2, 2), int), np.ones((2, 2), int))
