"""Clusters of points, and the `ranges` of block-sparse reductions, on PyTorch tensors; names and layouts of PyKeOps.

    labels = grid_cluster(x, 0.1)
    ranges, centroids, _ = cluster_ranges_centroids(x, labels)
    x, labels = sort_clusters(x, labels)
    keep = torch.cdist(centroids, centroids) < 0.5
    result = kernel(x, x, b, ranges=from_matrix(ranges, ranges, keep))

See https://www.kernel-operations.io/keops/python/api/pytorch/Cluster.html, and the example block_sparse.py.
"""

from tritonkeops.runtime.cluster import (
    cluster_centroids,
    cluster_ranges,
    cluster_ranges_centroids,
    from_matrix,
    grid_cluster,
    sort_clusters,
    swap_axes,
)

__all__ = [
    "grid_cluster",
    "sort_clusters",
    "cluster_ranges",
    "cluster_centroids",
    "cluster_ranges_centroids",
    "from_matrix",
    "swap_axes",
]
