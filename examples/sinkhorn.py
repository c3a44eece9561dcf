"""The Sinkhorn divergence of two clouds of points, and its gradient flow, in which one cloud moves onto the other.

Entropic optimal transport between the measures a = sum_i a_i delta(x_i) and b = sum_j b_j delta(y_j), for the cost
|x_i - y_j|^2 / 2 at the temperature eps, is found through two potentials f_i and g_j, each the soft minimum

    f_i = -eps log sum_j exp(log b_j + g_j / eps - |x_i - y_j|^2 / (2 eps))

of the other one, and the same with the roles exchanged: all in logarithms, by one LogSumExp reduction. Each step
moves both potentials half of the way, while eps falls from the square of the diameter to its value. The divergence

    S(a, b) = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2,    OT(a, b) = <a, f> + <b, g>,

is positive, and zero for a = b. Potentials at their optimum need no gradients of their own: the gradient of S in the
x_i is that of the last soft minimum. Along the flow dx_i/dt = -(1 / a_i) dS/dx_i the points go straight to the others,
about as exp(-t). At the start, S and its gradient are compared with those of torch's own operations in float64, on a
part of the clouds.

J. Feydy et al., Interpolating between Optimal Transport and MMD using Sinkhorn Divergences, AISTATS 2019,
https://arxiv.org/abs/1810.08278; in KeOps: https://www.kernel-operations.io/geomloss/

    python examples/sinkhorn.py [--M 1000] [--N 1200] [--steps 40] [--output examples/output]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tritonkeops.torch import Genred

OUTPUT = Path(__file__).parent / "output"
EPS = 0.05**2  # the final temperature: the square of a length, below which details are blurred
SCALING = 0.7  # of that length, from one temperature to the next
STEP = 0.125  # of time
CHECKED = 300  # points of each cloud in the comparison with torch
SHOWN = (0, 0.25, 0.5, 1, 2, 5)  # times, in the picture
Reduce = Callable[..., Any]  # (x, y, h, e) -> (M, 1)

log_sum = Genred(
    "h - e*SqDist(x,y)",
    [
        "x=Vi(2)",  # a point for each i
        "y=Vj(2)",  # a point for each j
        "h=Vj(1)",  # log b + g / eps
        "e=Pm(1)",  # 1 / (2 eps)
    ],
    reduction_op="LogSumExp",
    axis=1,
)


def dense_log_sum(x: Tensor, y: Tensor, h: Tensor, e: Tensor) -> Tensor:
    """What `log_sum` computes, by torch, with M x N matrices."""
    return (h[:, 0] - e * (x[:, None] - y).square().sum(2)).logsumexp(1, keepdim=True)


@dataclass(frozen=True)
class Cloud:
    """Points (M, 2) of equal weight."""

    points: Tensor

    @property
    def log_weights(self) -> Tensor:
        return torch.full_like(self.points[:, :1], 1 / len(self.points)).log()


def soft_minimum(x: Cloud, y: Cloud, g: Tensor, eps: float, reduce: Reduce) -> Tensor:
    """The potential f (M, 1) at the points x, from the potential g (N, 1) at y."""
    e = x.points.new_tensor([0.5 / eps])
    values: Tensor = reduce(x.points, y.points, y.log_weights + g / eps, e)
    return -eps * values


def temperatures(x: Cloud, y: Cloud) -> Iterator[float]:
    """From the square of the clouds' diameter down to EPS, where it stays for a few steps."""
    both = torch.cat([x.points, y.points])
    eps = float((both.amax(0) - both.amin(0)).square().sum())
    while eps > EPS:
        yield eps
        eps *= SCALING**2
    yield from 5 * [EPS]


def transport(x: Cloud, y: Cloud, reduce: Reduce) -> Tensor:
    """OT(x, y). Its gradient is right, although it passes the last soft minima alone."""
    with torch.no_grad():
        f, g = torch.zeros_like(x.log_weights), torch.zeros_like(y.log_weights)
        for eps in temperatures(x, y):
            new_f, new_g = soft_minimum(x, y, g, eps, reduce), soft_minimum(y, x, f, eps, reduce)
            f, g = (f + new_f) / 2, (g + new_g) / 2
    # The derivative by the points where a potential stands; by those that it was made from, it belongs to the other.
    fixed_x, fixed_y = Cloud(x.points.detach()), Cloud(y.points.detach())
    return soft_minimum(x, fixed_y, g, EPS, reduce).mean() + soft_minimum(y, fixed_x, f, EPS, reduce).mean()


def divergence(x: Cloud, y: Cloud, reduce: Reduce = log_sum) -> Tensor:
    """S(x, y)."""
    return transport(x, y, reduce) - transport(x, x, reduce) / 2 - transport(y, y, reduce) / 2


def clouds(M: int, N: int) -> tuple[Cloud, Cloud]:
    """A disk, and the two halves of a broken ring."""
    generator = torch.Generator().manual_seed(0)
    radius, angle = torch.rand(M, generator=generator).sqrt() * 0.25, torch.rand(M, generator=generator) * 6.2832
    disk = torch.stack([0.25 + radius * angle.cos(), 0.5 + radius * angle.sin()], 1)
    radius, angle = 0.3 + 0.05 * torch.randn(N, generator=generator), torch.rand(N, generator=generator) * 6.2832
    side = angle.cos().sign() * 0.15
    ring = torch.stack([1.2 + side + radius * angle.cos(), 0.5 + side + radius * angle.sin()], 1)
    return Cloud(disk), Cloud(ring)


def check(x: Cloud, y: Cloud) -> None:
    """Compare S and its gradient with those of torch's operations, on a part of the clouds."""
    few_x, few_y = Cloud(x.points[:CHECKED]), Cloud(y.points[:CHECKED])
    ours, slope = with_gradient(few_x, few_y)
    theirs, expected = with_gradient(Cloud(few_x.points.double()), Cloud(few_y.points.double()), dense_log_sum)
    error = float((slope - expected).abs().max() / expected.abs().max())
    print(f"  S = {ours:.6f} for the first {len(slope)} points of both; by torch in float64 {theirs:.6f},", end=" ")
    print(f"gradients off by {error:.1e} of the largest entry")
    assert error < 1e-3 and abs(ours - theirs) < 1e-4, "torch finds another divergence"


def with_gradient(x: Cloud, y: Cloud, reduce: Reduce = log_sum) -> tuple[float, Tensor]:
    """S(x, y), and its gradient in the points of x, (M, 2)."""
    points = x.points.clone().requires_grad_()
    value = divergence(Cloud(points), y, reduce)
    return value.item(), torch.autograd.grad(value, points)[0]


def flow(x: Cloud, y: Cloud, steps: int) -> tuple[list[Cloud], list[float]]:
    """Follow the gradient by Euler's method: the clouds and their divergences from y, from time 0 on."""
    path, values = [x], []
    start = time.perf_counter()
    for _ in range(steps + 1):
        value, slope = with_gradient(path[-1], y)
        values.append(value)
        path.append(Cloud(path[-1].points - STEP * len(slope) * slope))
    seconds = time.perf_counter() - start
    print(f"  {steps} steps in {seconds:.2f} s, {seconds / (steps + 1) * 1e3:.0f} ms for each S with its gradient")
    return path[:-1], values


def plot(path: list[Cloud], y: Cloud, values: list[float], folder: Path) -> Path:
    """The moving cloud at several times, and its divergence from the target over time."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = figure.add_gridspec(3, 3, height_ratios=(1, 1, 0.7))
    (left, low), (right, high) = (torch.cat([path[0].points, y.points]).quantile(q, 0).tolist() for q in (0.0, 1.0))
    for n, shown in enumerate(SHOWN):
        limits = {"xlim": (left - 0.05, right + 0.05), "ylim": (low - 0.05, high + 0.05)}
        panel = figure.add_subplot(grid[n // 3, n % 3], aspect="equal", xticks=[], yticks=[], **limits)
        at = min(round(shown / STEP), len(path) - 1)
        panel.plot(*y.points.T.numpy(), ".", color="silver", markersize=3)
        panel.plot(*path[at].points.T.numpy(), ".", color="tab:red", markersize=3)
        panel.set_title(f"t = {at * STEP:g}, S = {values[at]:.1e}")
    panel = figure.add_subplot(grid[2, :], xlabel="t", ylabel="S", yscale="log")
    times = np.arange(len(values)) * STEP
    panel.plot(times, values, label="the divergence")
    panel.plot(times, values[0] * np.exp(-2 * times), "k--", linewidth=1, label="exp(-2t), for comparison")
    panel.legend()
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / "sinkhorn.png"
    figure.savefig(name, dpi=120)
    return name


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    x, y = clouds(options.M, options.N)
    rounds = len(list(temperatures(x, y)))
    print(f"{options.M} points of the plane to {options.N} others, float32, {rounds} temperatures down to {EPS:.2g}")
    check(x, y)
    path, values = flow(x, y, options.steps)
    print(f"  S from {values[0]:.2e} at t = 0 to {values[-1]:.2e} at t = {options.steps * STEP:g}")
    assert values[-1] < values[0], "the flow went away from its target"
    print(f"picture saved as {plot(path, y, values, options.output)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--M", type=int, default=1000, help="number of points that move (default 1000)")
    parser.add_argument("--N", type=int, default=1200, help="number of points of the target (default 1200)")
    parser.add_argument("--steps", type=int, default=40, help=f"steps of {STEP} in time (default 40)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
