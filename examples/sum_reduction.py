"""The sum reduction of the KeOps tutorial, and its gradient, against NumPy.

For a number p, numbers a_j and points x_i, y_j in 3-D, this computes

    c_i = sum_j (p - a_j)^2 exp(x_i + y_j)          one vector of R^3 for each of M rows i,

and, given e_i in R^3, the gradient of sum_i <c_i, e_i> with respect to y_j:

    g_j = sum_i (p - a_j)^2 exp(x_i + y_j) * e_i    one vector of R^3 for each of N columns j.

Neither ever stores an M x N matrix. Both are compared with NumPy, and the first entries of both are plotted.

    python examples/sum_reduction.py [--M 3000] [--N 5000] [--output examples/output]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from tritonkeops.numpy import Genred

Array = npt.NDArray[np.float32]

FORMULA = "Square(p-a)*Exp(x+y)"
ALIASES = [
    "p=Pm(0,1)",  # argument 0: a parameter, one number
    "a=Vj(1,1)",  # argument 1: one number for each j
    "x=Vi(2,3)",  # argument 2: a vector of R^3 for each i
    "y=Vj(3,3)",  # argument 3: a vector of R^3 for each j
]
OUTPUT = Path(__file__).parent / "output"
ROWS = 256  # rows that NumPy treats at a time: its matrices are ROWS x 3 x N


@dataclass(frozen=True)
class Result:
    """One quantity computed twice."""

    title: str
    ours: Array
    numpy: Array
    seconds_first: float
    seconds: float
    seconds_numpy: float

    @property
    def error(self) -> float:
        """The largest deviation, relative to the largest entry."""
        return float(np.abs(self.ours - self.numpy).max() / np.abs(self.numpy).max())


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    p, a, x, y, e = inputs(options.M, options.N)

    sum_over_j = Genred(FORMULA, list(ALIASES), reduction_op="Sum", axis=1)
    gradient = Genred(f"Grad({FORMULA}, y, e)", [*ALIASES, "e=Vi(4,3)"], reduction_op="Sum", axis=0)
    results = [
        compare("sum over j", lambda: sum_over_j(p, a, x, y), lambda: numpy_sum(p, a, x, y)),
        compare("gradient in y", lambda: gradient(p, a, x, y, e), lambda: numpy_gradient(p, a, x, y, e)),
    ]

    print(f"{FORMULA} with M = {options.M}, N = {options.N}, float32")
    for result in results:
        report(result)
        assert result.error < 1e-4, f"{result.title}: the results differ"
    print(f"curves saved as {plot(results, options.output)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--M", type=int, default=3000, help="number of x_i (default 3000)")
    parser.add_argument("--N", type=int, default=5000, help="number of y_j (default 5000)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the picture")
    return parser.parse_args(arguments)


def inputs(M: int, N: int) -> tuple[Array, Array, Array, Array, Array]:
    """Random p, a, x, y and e, in the order of the formula's arguments."""
    rng = np.random.default_rng(0)
    shapes = [(1,), (N, 1), (M, 3), (N, 3), (M, 3)]
    p, a, x, y, e = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return p, a, x, y, e


def numpy_sum(p: Array, a: Array, x: Array, y: Array) -> Array:
    """The sum over j as NumPy computes it, some rows i at a time."""
    weight = ((p - a) ** 2)[:, 0]
    parts = [np.exp(x[i : i + ROWS, :, None] + y.T) @ weight for i in range(0, len(x), ROWS)]
    return np.concatenate(parts)


def numpy_gradient(p: Array, a: Array, x: Array, y: Array, e: Array) -> Array:
    """The gradient as NumPy computes it: a sum over i, some rows i at a time."""
    total = np.zeros_like(y)
    for i in range(0, len(x), ROWS):
        total += np.einsum("ikj,ik->jk", np.exp(x[i : i + ROWS, :, None] + y.T), e[i : i + ROWS])
    return (p - a) ** 2 * total


def compare(title: str, ours: Callable[[], Array], with_numpy: Callable[[], Array]) -> Result:
    """Run both; ours twice, since its first call builds the kernel."""
    _, seconds_first = timed(ours)
    value, seconds = timed(ours)
    expected, seconds_numpy = timed(with_numpy)
    return Result(title, value, expected, seconds_first, seconds, seconds_numpy)


def timed(function: Callable[[], Array]) -> tuple[Array, float]:
    start = time.perf_counter()
    value = function()
    return value, time.perf_counter() - start


def report(result: Result) -> None:
    print(
        f"  {result.title:14} shape {result.ours.shape!s:11} relative error {result.error:.1e}"
        f"   tritonkeops {result.seconds * 1e3:.2f} ms (first call {result.seconds_first * 1e3:.0f} ms)"
        f"   NumPy {result.seconds_numpy * 1e3:.0f} ms   ratio {result.seconds_numpy / result.seconds:.0f}x"
    )


def plot(results: list[Result], folder: Path) -> Path:
    """Draw the first entries of ours and of NumPy's result, one panel for each quantity."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for row, result in enumerate(results):
        panel = figure.add_subplot(len(results), 1, row + 1)
        panel.plot(result.ours[:40, 0], "-", linewidth=3, alpha=0.5, label="tritonkeops")
        panel.plot(result.numpy[:40, 0], "k--", linewidth=1, label="NumPy")
        panel.set_title(f"{result.title}, first component (relative error {result.error:.1e})")
        panel.set_xlabel("row of the result")
        panel.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sum_reduction.png"
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
