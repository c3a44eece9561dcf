"""A model with a kernel reduction inside, trained by Adam: as it is, and under torch.compile.

A radial basis function network maps points x_i of the plane, through a small layer that bends the plane, to

    f(x_i) = sum_j exp(-s_j |z_i - c_j|^2) w_j,    z_i = x_i + A tanh(B x_i),

with K centres c_j, sharpnesses s_j and three weights w_j each, all of them learned: here, the colours of a picture
at its pixels. The sum over j is one reduction of a formula. torch.compile sees it as one operation and traces the
model in one piece (fullgraph=True fails otherwise), so that what surrounds the sum is fused. Both models start from the
same parameters and see the same pixels; this compares their losses, counts the breaks of the graph, and times both.

Networks of this kind: D. S. Broomhead and D. Lowe, Multivariable functional interpolation and adaptive networks,
Complex Systems 2, 1988. torch.compile: https://docs.pytorch.org/docs/stable/torch.compiler.html

    python examples/compiled_model.py [--K 300] [--steps 300] [--backend inductor] [--output examples/output]
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from matplotlib.figure import Figure
from torch import Tensor, nn

from tritonkeops.torch import Genred

OUTPUT = Path(__file__).parent / "output"
PIXELS = 96  # of the picture, on each side
BATCH = 2048  # pixels in one step
HIDDEN = 16
RATE = 0.01  # of Adam

Model = Callable[[Tensor], Tensor]


class Radial(nn.Module):
    """The network: (M, 2) points to (M, 3) values."""

    def __init__(self, centres: int) -> None:
        super().__init__()
        self.bend = nn.Sequential(nn.Linear(2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2))
        self.centres = nn.Parameter(2 * torch.rand(centres, 2) - 1)
        self.log_sharpness = nn.Parameter(torch.full((centres, 1), 4.0))
        self.weights = nn.Parameter(0.1 * torch.randn(centres, 3))
        self.sum_of_bumps: Callable[..., Any] = Genred(
            "Exp(-s*SqDist(z,c))*w",
            [
                "z=Vi(2)",  # a bent point for each i
                "c=Vj(2)",  # a centre for each j,
                "s=Vj(1)",  # its sharpness,
                "w=Vj(3)",  # and its weights
            ],
            reduction_op="Sum",
            axis=1,
        )

    def forward(self, x: Tensor) -> Tensor:
        z = x + self.bend(x)
        values: Tensor = self.sum_of_bumps(z, self.centres, self.log_sharpness.exp(), self.weights)
        return values


def picture() -> tuple[Tensor, Tensor]:
    """The pixels' places (P, 2) in [-1, 1]^2, and their colours (P, 3): waves, and a disk with a sharp edge."""
    axis = torch.linspace(-1, 1, PIXELS)
    x = torch.cartesian_prod(axis, axis)
    waves = torch.sin(torch.stack([9 * x[:, 0], 7 * x.sum(1), 12 * x.norm(dim=1)], 1)) / 2 + 0.5
    disk = ((x - torch.tensor([0.2, -0.3])).norm(dim=1) < 0.4).float()[:, None]
    return x, (1 - disk) * waves + disk * (1 - waves[:, [2, 0, 1]])


def train(model: Model, parameters: list[Tensor], steps: int) -> tuple[list[float], float, float]:
    """Fit the picture; the loss before each step, the seconds of the first one and those of a later one."""
    x, colours = picture()
    optimiser = torch.optim.Adam(parameters, lr=RATE)
    generator = torch.Generator().manual_seed(1)
    losses, times = [], [time.perf_counter()]
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimiser.zero_grad()
        loss = (model(x[rows]) - colours[rows]).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        times.append(time.perf_counter())
    return losses, times[1] - times[0], (times[-1] - times[1]) / max(1, steps - 1)


def compare(model: Radial, steps: int, backend: str) -> tuple[list[float], list[float]]:
    """Train the model and a compiled copy of it; the losses of both."""
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    runs = []
    for title, function, module in (("eager", model, model), ("compiled", compiled, twin)):
        losses, first, each = train(function, list(module.parameters()), steps)
        runs.append(losses)
        print(f"  {title:9} loss {losses[0]:.4f} to {losses[-1]:.4f}, {each * 1e3:.2f} ms a step, first {first:.2f} s")
    largest = max(abs(a - b) / a for a, b in zip(*runs, strict=True))
    early = max(abs(a - b) / a for a, b in zip(runs[0][:10], runs[1][:10], strict=True))
    print(f"  losses differ by at most {early:.1e} in the first 10 steps, {largest:.1e} in all of them (relative)")
    assert early < 1e-3, "the compiled model computes something else"
    return runs[0], runs[1]


def count_breaks(model: Radial) -> None:
    """Ask torch.compile into how many pieces the model falls."""
    explanation = torch._dynamo.explain(model)(picture()[0])
    print(f"  graphs: {explanation.graph_count}, graph breaks: {explanation.graph_break_count}")
    assert explanation.graph_break_count == 0, explanation.break_reasons


@torch.no_grad()
def plot(model: Radial, eager: list[float], compiled: list[float], folder: Path) -> Path:
    """The picture, the network's, and the losses of both runs."""
    x, colours = picture()
    figure = Figure(figsize=(12, 4), layout="constrained")
    target, fitted, curves = figure.subplots(1, 3)
    for panel, values, title in ((target, colours, "the picture"), (fitted, model(x), "the network's")):
        image = values.clamp(0, 1).view(PIXELS, PIXELS, 3).transpose(0, 1).numpy()
        panel.imshow(image, origin="lower", extent=(-1, 1, -1, 1))
        panel.set_title(title)
    curves.plot(eager, linewidth=3, alpha=0.5, label="eager")
    curves.plot(compiled, "k--", linewidth=1, label="compiled")
    curves.set(title="mean squared error", xlabel="step", yscale="log")
    curves.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compiled_model.png"
    figure.savefig(path, dpi=120)
    return path


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(0)
    model = Radial(options.K)
    print(f"{options.K} bumps fitted to {PIXELS} x {PIXELS} pixels, {BATCH} in each of {options.steps} steps, float32")
    count_breaks(model)
    eager, compiled = compare(model, options.steps, options.backend)
    print(f"picture saved as {plot(model, eager, compiled, options.output)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--K", type=int, default=300, help="number of bumps (default 300)")
    parser.add_argument("--steps", type=int, default=300, help="steps of Adam (default 300)")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default inductor)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
