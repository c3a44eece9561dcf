"""A block-sparse Gaussian sum: pairs of clusters that are too far apart to matter are left out.

For N points x_j of the plane and numbers b_j, the sum over all pairs of points

    c_i = sum_j exp(-|x_i - x_j|^2 / (2 sigma^2)) b_j

is made of terms that are nearly all zero if sigma is small. The points are put into the cells of a grid, as wide as
sigma, and sorted, so that each cell is one range of rows. Pairs of cells are kept if their boxes come nearer than a
cut-off, and `ranges` tells the reduction which ones those are. For cut-offs from 1 to 6 sigma this measures the time
and the error, next to the full sum. No term left out is larger than exp(-(cut-off / sigma)^2 / 2).

KeOps' tutorial: https://www.kernel-operations.io/keops/_auto_examples/pytorch/plot_grid_cluster_pytorch.html

    python examples/block_sparse.py [--N 60000] [--sigma 0.05] [--output examples/output]
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from tritonkeops.torch import Genred
from tritonkeops.torch.cluster import cluster_ranges, from_matrix, grid_cluster, sort_clusters

OUTPUT = Path(__file__).parent / "output"
CUTOFFS = (1, 2, 3, 4, 5, 6)  # in units of sigma
SHOWN = 3  # the one in the picture
REPEATS = 3  # of each timing, of which the shortest counts

gaussian = Genred(
    "Exp(-SqDist(x,y)*g)*b",
    [
        "x=Vi(2)",  # a point for each i
        "y=Vj(2)",  # a point for each j,
        "b=Vj(1)",  # and its number
        "g=Pm(1)",  # 1 / (2 sigma^2)
    ],
    reduction_op="Sum",
    axis=1,
)


@dataclass(frozen=True)
class Clusters:
    """Points (N, 2) and numbers (N, 1) sorted by cell; the rows (C, 2) and the box of each of the C cells."""

    points: Tensor
    numbers: Tensor
    ranges: Tensor
    lower: Tensor
    upper: Tensor

    def gaps(self) -> Tensor:
        """The distances (C, C) of the boxes."""
        apart = torch.maximum(self.lower[:, None] - self.upper, self.lower - self.upper[:, None])
        return apart.clamp(min=0).square().sum(2).sqrt()


@dataclass(frozen=True)
class Result:
    """What a cut-off leaves of the pairs of points, and of the sum."""

    cutoff: int
    kept: float
    seconds: float
    error: float


def spiral(count: int) -> tuple[Tensor, Tensor]:
    """Points (N, 2) around two arms of a spiral, in no order; numbers (N, 1) for them."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(count, generator=generator).sqrt()
    angle = 7 * t + math.pi * torch.randint(2, (count,), generator=generator)
    points = t[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    points = points + 0.04 * torch.randn(count, 2, generator=generator)
    return points, torch.rand(count, 1, generator=generator)


def cluster(points: Tensor, numbers: Tensor, size: float) -> Clusters:
    """Sort the points by the cells of a grid."""
    labels = grid_cluster(points, size)
    (points, numbers), labels = sort_clusters((points, numbers), labels)
    ranges = cluster_ranges(labels)
    index = labels.long()[:, None].expand_as(points)
    box = points.new_zeros(len(ranges), 2)
    lower, upper = (box.scatter_reduce(0, index, points, how, include_self=False) for how in ("amin", "amax"))
    return Clusters(points, numbers, ranges, lower, upper)


def measure(clusters: Clusters, sigma: float) -> tuple[float, list[Result]]:
    """The seconds of the full sum; and for each cut-off time and error."""
    x, b, g = clusters.points, clusters.numbers, torch.tensor([0.5 / sigma**2])
    full, seconds = timed(lambda: gaussian(x, x, b, g))
    check(x, b, g, full)
    print(f"  full sum   100.0 % of the pairs {seconds * 1e3:8.1f} ms")
    gaps = clusters.gaps()
    sizes = (clusters.ranges[:, 1] - clusters.ranges[:, 0]).float()
    results = []
    for cutoff in CUTOFFS:
        keep = gaps < cutoff * sigma
        ranges = from_matrix(clusters.ranges, clusters.ranges, keep)
        value, elapsed = timed(lambda: gaussian(x, x, b, g, ranges=ranges))  # noqa: B023 - called at once
        kept = float(sizes @ keep.float() @ sizes / len(x) ** 2)
        error = float((value - full).abs().max() / full.abs().max())
        results.append(Result(cutoff, kept, elapsed, error))
        print(f"  {cutoff} sigma    {kept:6.1%} of the pairs {elapsed * 1e3:8.1f} ms   error {error:.1e}")
    return seconds, results


def check(x: Tensor, b: Tensor, g: Tensor, full: Tensor) -> None:
    """Compare the first rows of the full sum with torch's, in float64."""
    rows = x[:100].double()
    expected = torch.exp(-g.double() * (rows[:, None] - x).square().sum(2)) @ b.double()
    error = float((full[:100] - expected).abs().max() / expected.abs().max())
    print(f"  {len(rows)} rows of the full sum against torch in float64: error {error:.1e}")
    assert error < 1e-4, "torch finds another sum"


def timed(function: Callable[[], Any]) -> tuple[Tensor, float]:
    """The result, and the shortest time of a few calls after the first, which builds the kernel."""
    value, seconds = function(), math.inf
    for _ in range(REPEATS):
        start = time.perf_counter()
        value = function()
        seconds = min(seconds, time.perf_counter() - start)
    return value, seconds


def plot(clusters: Clusters, sigma: float, seconds: float, results: list[Result], folder: Path) -> Path:
    """The kept pairs of cells, the cells that one cell meets, and time and error of each cut-off."""
    keep = clusters.gaps() < SHOWN * sigma
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    matrix, plane, curves = figure.subplots(1, 3)
    matrix.imshow(keep.numpy(), cmap="Blues", interpolation="nearest")
    matrix.set(title=f"pairs of cells within {SHOWN} sigma", xlabel="cell of j", ylabel="cell of i")

    one = int((clusters.ranges[:, 1] - clusters.ranges[:, 0]).argmax())
    plane.plot(*clusters.points[:: max(1, len(clusters.points) // 5000)].T.numpy(), ".", color="silver", markersize=1)
    for cell in keep[one].nonzero().flatten().tolist():
        low, sides = clusters.lower[cell].tolist(), (clusters.upper - clusters.lower)[cell].tolist()
        colour = "tab:red" if cell == one else "tab:blue"
        plane.add_patch(Rectangle((low[0], low[1]), *sides, fill=False, color=colour, zorder=2 + (cell == one)))
    plane.set(title="the largest cell (red), and those that it meets", aspect="equal")

    cutoffs = [result.cutoff for result in results]
    curves.plot(cutoffs, [result.error for result in results], "o-", color="tab:red", label="error")
    curves.plot(cutoffs, [math.exp(-(c**2) / 2) for c in cutoffs], "k--", linewidth=1, label="bound on a term left out")
    curves.plot(cutoffs, [result.seconds / seconds for result in results], "s-", label="time, of the full sum's")
    curves.plot(cutoffs, [result.kept for result in results], ":", color="tab:blue", label="pairs, of all")
    curves.set(title="what a cut-off costs", xlabel="cut-off / sigma", yscale="log")
    curves.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "block_sparse.png"
    figure.savefig(path, dpi=120)
    return path


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    clusters = cluster(*spiral(options.N), options.sigma)
    print(f"{options.N} points of the plane in {len(clusters.ranges)} cells, sigma = {options.sigma}, float32")
    seconds, results = measure(clusters, options.sigma)
    assert results[-1].error < 1e-5, "the sum over kept pairs differs from the full one"
    print(f"picture saved as {plot(clusters, options.sigma, seconds, results, options.output)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--N", type=int, default=60_000, help="number of points (default 60,000)")
    parser.add_argument(
        "--sigma", type=float, default=0.05, help="width of the Gaussian and of the cells (default 0.05)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
