"""Fitting a mixture of Gaussians by gradient descent: torch's autograd through a LogSumExp reduction.

The log-density of a mixture of K Gaussians of R^2 with centres m_k, precision matrices S_k = L_k L_k^T and
weights w_k, which sum to one, is at a point x_i

    log p(x_i) = log sum_k exp(c_k - (x_i - m_k)^T S_k (x_i - m_k) / 2),  c_k = log w_k + log det L_k - log 2 pi,

one LogSumExp of a formula in x_i, m_k, S_k and c_k. Adam makes the mean of -log p over the data small. What it
changes is free of constraints: the m_k, the logits of the w_k, and the lower triangles L_k, with the logarithms of
their diagonals. The data are drawn from a known mixture, so that the fit can be judged on points held out, against the
density that they come from. Loss and gradients are compared with those of torch's own operations before it starts.

Mixtures of Gaussians: C. M. Bishop, Pattern Recognition and Machine Learning, Springer 2006, chapter 9. In KeOps:
https://www.kernel-operations.io/keops/_auto_tutorials/gaussian_mixture/plot_gaussian_mixture.html

    python examples/gaussian_mixture.py [--M 5000] [--K 20] [--steps 500] [--output examples/output]
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from tritonkeops.torch import Genred

Reduce = Callable[..., Any]  # (x, m, S, c) -> log-densities (M, 1)

OUTPUT = Path(__file__).parent / "output"
PETALS = 7  # Gaussians of the mixture that the data come from
LONG, SHORT = 0.25, 0.05  # their standard deviations
RATE = 0.03  # of Adam
EXTENT, PIXELS = 1.9, 200  # of the pictures

log_sum = Genred(
    "c - WeightedSqDist(S,x,m)/2",
    [
        "x=Vi(2)",  # a point for each i
        "m=Vj(2)",  # for each Gaussian j its centre,
        "S=Vj(4)",  # its precision matrix, row by row,
        "c=Vj(1)",  # and the logarithm of its weight and normalisation
    ],
    reduction_op="LogSumExp",
    axis=1,
)


def dense_log_sum(x: Tensor, m: Tensor, S: Tensor, c: Tensor) -> Tensor:
    """What `log_sum` computes, by torch, with M x K matrices."""
    differences = x[:, None] - m
    squares = torch.einsum("ijk,jkl,ijl->ij", differences, S.view(-1, 2, 2), differences)
    return (c[:, 0] - squares / 2).logsumexp(1, keepdim=True)


class Mixture(nn.Module):
    """K Gaussians of the plane, which give points (M, 2) their log-densities (M, 1)."""

    def __init__(self, centres: Tensor, factors: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres)
        self.triangles = nn.Parameter(factors.tril(-1) + factors.diagonal(dim1=1, dim2=2).log().diag_embed())
        self.logits = nn.Parameter(weights.log())

    def factors(self) -> Tensor:
        """The L_k, (K, 2, 2)."""
        return self.triangles.tril(-1) + self.triangles.diagonal(dim1=1, dim2=2).exp().diag_embed()

    def forward(self, x: Tensor, reduce: Reduce = log_sum) -> Tensor:
        factors = self.factors()
        log_det = self.triangles.diagonal(dim1=1, dim2=2).sum(1)
        constants = self.logits.log_softmax(0) + log_det - math.log(2 * math.pi)
        values: Tensor = reduce(x, self.centres, (factors @ factors.mT).flatten(1), constants[:, None])
        return values

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, 2) of this density: m_k + L_k^-T z, with z normal, k drawn by the weights."""
        chosen = torch.multinomial(self.logits.softmax(0), count, replacement=True, generator=generator)
        z = torch.randn(count, 2, 1, generator=generator)
        steps: Tensor = torch.linalg.solve(self.factors()[chosen].mT, z)
        return self.centres[chosen] + steps[:, :, 0]


def flower() -> Mixture:
    """What the data come from: long thin Gaussians around a circle, some of more weight than others."""
    angles = torch.arange(PETALS) * (2 * math.pi / PETALS)
    along = torch.stack([angles.cos(), angles.sin()], 1)
    across = torch.stack([-angles.sin(), angles.cos()], 1)
    precisions = sum(v[:, :, None] * v[:, None] / size**2 for v, size in ((along, LONG), (across, SHORT)))
    return Mixture(along, torch.linalg.cholesky(precisions), torch.arange(1.0, PETALS + 1))


def initial(data: Tensor, components: int) -> Mixture:
    """Equal round Gaussians around the first points."""
    return Mixture(data[:components].clone(), torch.eye(2).repeat(components, 1, 1) / LONG, torch.ones(components))


def loss(mixture: Mixture, x: Tensor, reduce: Reduce = log_sum) -> Tensor:
    """The mean of -log p over the points."""
    log_densities: Tensor = mixture(x, reduce)
    return log_densities.mean().neg()


def check(mixture: Mixture, x: Tensor) -> None:
    """Compare loss and gradients with those of torch's operations."""
    parameters = dict(mixture.named_parameters())
    ours, theirs = (loss(mixture, x, reduce) for reduce in (log_sum, dense_log_sum))
    gradients = [torch.autograd.grad(value, list(parameters.values())) for value in (ours, theirs)]
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True)]
    listed = ", ".join(f"{error:.1e} in {name}" for name, error in zip(parameters, errors, strict=True))
    print(f"  next to torch's operations, loss off by {abs(ours.item() - theirs.item()):.1e};")
    print(f"  gradients, relative to the largest entry, by {listed}")
    assert max(errors) < 1e-3, "torch's gradients differ"


def fit(mixture: Mixture, data: Tensor, steps: int) -> list[float]:
    """Change the mixture by Adam; the loss before each step."""
    optimiser = torch.optim.Adam(mixture.parameters(), lr=RATE)
    losses = []
    start = time.perf_counter()
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss(mixture, data)
        value.backward()
        optimiser.step()
        losses.append(value.item())
    seconds = time.perf_counter() - start
    print(f"  {steps} steps in {seconds:.2f} s, {seconds / steps * 1e3:.1f} ms each, gradients included")
    return losses


@torch.no_grad()
def report(fitted: Mixture, truth: Mixture, held_out: Tensor) -> float:
    """Compare both on points that neither has seen; what the truth is worth there."""
    found, best = (loss(mixture, held_out).item() for mixture in (fitted, truth))
    used = int((fitted.logits.softmax(0) > 0.01).sum())
    print(f"  mean of -log p on {len(held_out)} points held out: {found:.3f}; of the density they come from {best:.3f}")
    print(f"  {used} of {len(fitted.logits)} Gaussians have a weight above 1 %")
    return best


@torch.no_grad()
def plot(fitted: Mixture, truth: Mixture, data: Tensor, losses: list[float], best: float, folder: Path) -> Path:
    """The data on the density that they come from, the fitted density with its centres, and the loss."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    axis = torch.linspace(-EXTENT, EXTENT, PIXELS)
    pixels = torch.cartesian_prod(axis, axis).flip(1)  # rows of the image go up
    for panel, mixture, title in zip(
        panels, (truth, fitted), ("the truth, and data", "fitted, with centres"), strict=False
    ):
        density = mixture(pixels).exp().view(PIXELS, PIXELS).numpy()
        panel.imshow(density, origin="lower", extent=2 * (-EXTENT, EXTENT), cmap="Blues")
        panel.set_title(title)
    panels[0].plot(*data[:1000].T.numpy(), "k.", markersize=1.5)
    sizes = 400 * fitted.logits.softmax(0).numpy()
    panels[1].scatter(*fitted.centres.T.numpy(), s=sizes, color="tab:red")
    panels[2].plot(losses, label="fitted, on its data")
    panels[2].axhline(best, color="k", linestyle="--", linewidth=1, label="the truth, held out")
    panels[2].set(title="mean of -log p", xlabel="step")
    panels[2].legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gaussian_mixture.png"
    figure.savefig(path, dpi=120)
    return path


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    generator = torch.Generator().manual_seed(0)
    truth = flower()
    data, held_out = (truth.draw(options.M, generator) for _ in range(2))
    mixture = initial(data, options.K)

    print(f"{options.K} Gaussians fitted to {options.M} points of the plane, float32")
    check(mixture, data)
    losses = fit(mixture, data, options.steps)
    print(f"  mean of -log p from {losses[0]:.3f} to {losses[-1]:.3f}")
    best = report(mixture, truth, held_out)
    assert losses[-1] < losses[0], "the fit is no better than its start"
    print(f"picture saved as {plot(mixture, truth, data, losses, best, options.output)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--M", type=int, default=5000, help="number of points (default 5000)")
    parser.add_argument("--K", type=int, default=20, help="number of Gaussians (default 20)")
    parser.add_argument("--steps", type=int, default=500, help="steps of Adam (default 500)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
