"""Nearest neighbours and densities of handwritten digits, without ever storing a distance matrix.

1. On scikit-learn's 1797 digits (8 x 8 pixels, points of R^64), a third of them held out: classification by
   the K = 10 nearest neighbours (the reduction ArgKMin of SqDist(x,y)) next to scikit-learn's own classifier,
   and a kernel density estimate for each class (LogSumExp of -SqDist(x,y)/(2h^2)), which classifies too and
   knows which digit of a class is the most and which the least typical.
2. On 100,000 x 100,000 points of R^3: the same two reductions, in chunks of rows. The points are drawn from
   the digits' first three principal components plus noise, the rows from the digits held out, the columns
   from the others. A random sample of the rows is checked against NumPy.

    python examples/digits.py [--M 100000] [--N 100000] [--chunk 5000] [--output examples/output]
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

from tritonkeops.numpy import Genred

Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
LogDensity = Callable[[Array, Array, float], Array]

OUTPUT = Path(__file__).parent / "output"
K = 10  # neighbours
CLASSES = 10
NOISE = 0.1  # added to the drawn points, whose coordinates have standard deviations of about 1
BANDWIDTH = 0.1  # of the density in 3-D
CHECKED_ROWS = 50
PLOTTED_POINTS = 20_000


def nearest(dim: int) -> Callable[[Array, Array], Integers]:
    """The kernel (x, y) -> indices (M, K) of the K rows of y nearest to each row of x."""
    aliases = [f"x=Vi({dim})", f"y=Vj({dim})"]
    kernel = Genred("SqDist(x,y)", aliases, reduction_op="ArgKMin", axis=1, opt_arg=K)
    return lambda x, y: np.asarray(kernel(x, y))


def log_density(dim: int) -> LogDensity:
    """The kernel (x, y, h) -> the log-density (M,) at each x of Gaussians of width h around the rows of y."""
    aliases = ["g=Pm(1)", f"x=Vi({dim})", f"y=Vj({dim})"]
    kernel = Genred("-g*SqDist(x,y)", aliases, reduction_op="LogSumExp", axis=1)

    def evaluate(x: Array, y: Array, h: float) -> Array:
        logsumexp = kernel(np.array([0.5 / h**2], np.float32), x, y)[:, 0]
        return np.asarray(logsumexp - np.float32(log_norm(len(y), dim, h)))

    return evaluate


def log_norm(count: int, dim: int, h: float) -> float:
    """The logarithm of what turns a sum of `count` Gaussians of width h into a density on R^dim."""
    return math.log(count) + dim / 2 * math.log(2 * math.pi * h**2)


@dataclass(frozen=True)
class Labelled:
    """Points, and the digit that each one is or was drawn from."""

    points: Array
    labels: Integers


def split(digits: Labelled, part: float) -> tuple[Labelled, Labelled]:
    """Hold out this part of the digits, the same part of each class."""
    parts = train_test_split(digits.points, digits.labels, test_size=part, random_state=0, stratify=digits.labels)
    return Labelled(parts[0], parts[2]), Labelled(parts[1], parts[3])


# --- 1: the digits themselves ---------------------------------------------------------------------------


def study_digits(train: Labelled, test: Labelled, folder: Path) -> None:
    """Classify the digits held out, by neighbours and by densities; draw typical ones."""
    print(f"{len(train.points)} digits of {train.points.shape[1]} pixels, {len(test.points)} more held out")
    compare_classifiers(train, test)

    density = log_density(train.points.shape[1])
    h = best_bandwidth(density, train)
    scores = class_scores(density, test.points, train, h)
    correct, likelihood = accuracy(scores.argmax(1), test.labels), own(scores, test.labels).mean()
    print(f"  class densities of width {h:.2f}: accuracy {correct:.2%}, mean log-likelihood {likelihood:.1f}")

    # A point's own Gaussian is part of its class's density; that shifts no point past another.
    typicality = own(class_scores(density, train.points, train, h), train.labels)
    print(f"  most and least typical digits saved as {draw_typical(train, typicality, folder)}")


def compare_classifiers(train: Labelled, test: Labelled) -> None:
    """Nearest neighbours by ArgKMin, and by scikit-learn."""
    find = nearest(train.points.shape[1])
    votes = majority(train.labels[find(test.points, train.points)])
    peer = KNeighborsClassifier(K, algorithm="brute").fit(train.points, train.labels).predict(test.points)
    print(f"  {K} nearest neighbours: accuracy {accuracy(votes, test.labels):.2%},", end=" ")
    print(f"same answer as scikit-learn for {accuracy(votes, peer):.2%}")
    assert accuracy(votes, peer) > 0.99, "scikit-learn finds other neighbours"


def majority(neighbours: Integers) -> Integers:
    """The most frequent label of each row; of equally frequent ones, the smallest."""
    counts = np.stack([(neighbours == label).sum(1) for label in range(CLASSES)], axis=1)
    return np.asarray(counts.argmax(1))


def accuracy(answers: Integers, truth: Integers) -> float:
    return float((answers == truth).mean())


def class_scores(density: LogDensity, x: Array, train: Labelled, h: float) -> Array:
    """For each row of x, its log-density in each class."""
    members = [train.points[train.labels == label] for label in range(CLASSES)]
    return np.stack([density(x, y, h) for y in members], axis=1)


def own(scores: Array, labels: Integers) -> Array:
    """For each row, the score of its own class."""
    return np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]


def best_bandwidth(density: LogDensity, train: Labelled) -> float:
    """The width under which one half of the training set makes the other half likeliest."""
    other, one = split(train, 1 / 2)

    def likelihood(h: float) -> float:
        return float(own(class_scores(density, one.points, other, h), one.labels).mean())

    return float(max(np.geomspace(0.1, 2.0, 16).tolist(), key=likelihood))


def draw_typical(digits: Labelled, typicality: Array, folder: Path) -> Path:
    """For each class, the three digits of highest density in it and the three of lowest."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    panels = figure.subplots(6, CLASSES, subplot_kw={"xticks": [], "yticks": []})
    for label in range(CLASSES):
        members = np.flatnonzero(digits.labels == label)
        ordered = members[np.argsort(-typicality[members])]
        for row, digit in enumerate([*ordered[:3], *ordered[-3:]]):
            image, colours = digits.points[digit].reshape(8, 8), "gray_r" if row < 3 else "Reds"
            panels[row, label].imshow(image, cmap=colours)
    figure.suptitle("The most typical digits of each class (grey) and the least typical (red)")
    return save(figure, folder / "digits_typical.png")


# --- 2: a hundred thousand points -----------------------------------------------------------------------


def study_cloud(queries: Labelled, data: Labelled, chunk: int, folder: Path) -> None:
    """Neighbours and density of every query among the data, a chunk of rows at a time."""
    M, N = len(queries.points), len(data.points)
    print(f"{M:,} x {N:,} points of R^3: a dense matrix of float32 would take {4 * M * N / 1e9:.3g} GB")

    find, density = nearest(3), log_density(3)
    indices = in_chunks("ArgKMin", lambda x: find(x, data.points), queries.points, N, chunk)
    values = in_chunks("LogSumExp", lambda x: density(x, data.points, BANDWIDTH), queries.points, N, chunk)

    votes = majority(data.labels[indices])
    print(f"  {K} nearest neighbours in 3-D: accuracy {accuracy(votes, queries.labels):.2%}")
    print(f"  density: mean log-likelihood {values.mean():.3f}")
    check(queries.points, data.points, indices, values)
    print(f"  picture saved as {draw_cloud(queries.points, values, folder)}")


def principal_components(points: Array) -> Array:
    """The three directions of largest variance, scaled so that the first component's deviation is 1."""
    _, sizes, directions = np.linalg.svd(points - points.mean(0), full_matrices=False)
    return np.asarray(directions[:3].T / sizes[0] * math.sqrt(len(points)), np.float32)


def draw_points(digits: Labelled, directions: Array, count: int, seed: int) -> Labelled:
    """The components of digits drawn with replacement, plus noise."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(digits.points), size=count)
    noise = NOISE * rng.standard_normal((count, 3), dtype=np.float32)
    return Labelled(digits.points[chosen] @ directions + noise, digits.labels[chosen])


def in_chunks(
    title: str, kernel: Callable[[Array], npt.NDArray[Any]], rows: Array, N: int, chunk: int
) -> npt.NDArray[Any]:
    """Apply the kernel to the rows chunk by chunk, under a progress bar; report its speed."""
    start = time.perf_counter()
    kernel(rows[:1])
    built = time.perf_counter()
    parts = []
    style = {"unit": "row", "unit_scale": True, "leave": False}
    with tqdm(desc=f"  {title}", total=len(rows), disable=None, **style) as bar:  # None: only on a terminal
        for first in range(0, len(rows), chunk):
            parts.append(kernel(rows[first : first + chunk]))
            bar.update(len(parts[-1]))
    seconds = time.perf_counter() - built
    pairs = len(rows) * N / seconds
    print(f"  {title:10} {seconds:.2f} s, {pairs / 1e9:.2f} G pairs/s (first call: {built - start:.2f} s)")
    return np.concatenate(parts)


def check(x: Array, y: Array, indices: Integers, values: Array) -> None:
    """Compare the neighbours and densities of a random sample of the rows with NumPy's, in float64."""
    sample = np.random.default_rng(2).choice(len(x), size=min(CHECKED_ROWS, len(x)), replace=False)
    differences = x[sample, None].astype(np.float64) - y
    distances = np.einsum("ijk,ijk->ij", differences, differences)

    expected = np.sort(distances, axis=1)[:, :K]
    found = np.take_along_axis(distances, indices[sample], axis=1)
    neighbour_error = np.abs(np.sqrt(found) - np.sqrt(expected)).max()

    exponents = -distances / (2 * BANDWIDTH**2)
    largest = exponents.max(1)
    logsumexp = largest + np.log(np.exp(exponents - largest[:, None]).sum(1))
    density_error = np.abs(values[sample] - (logsumexp - log_norm(len(y), 3, BANDWIDTH))).max()

    print(f"  {len(sample)} random rows against NumPy:", end=" ")
    print(f"distances off by at most {neighbour_error:.1e}, log-densities by {density_error:.1e}")
    assert neighbour_error < 1e-4, "NumPy finds nearer neighbours"
    assert density_error < 1e-3, "NumPy finds another density"


def draw_cloud(points: Array, log_densities: Array, folder: Path) -> Path:
    """The points in 3-D, coloured by their log-density."""
    shown = slice(PLOTTED_POINTS)
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    panel = figure.add_subplot(projection="3d")
    dots = panel.scatter(*points[shown].T, c=log_densities[shown], s=1, cmap="viridis")
    figure.colorbar(dots, label="log-density", shrink=0.6)
    panel.set(xlabel="component 1", ylabel="component 2", zlabel="component 3")
    panel.set_title(f"Digits in three principal components: {len(points[shown]):,} of {len(points):,} points")
    return save(figure, folder / "digits_cloud.png")


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    digits = load_digits()
    points, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    train, test = split(Labelled(points, labels), 1 / 3)
    study_digits(train, test, options.output)

    directions = principal_components(train.points)
    queries = draw_points(test, directions, options.M, seed=0)
    data = draw_points(train, directions, options.N, seed=1)
    study_cloud(queries, data, options.chunk, options.output)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--M", type=int, default=100_000, help="queries in 3-D (default 100,000)")
    parser.add_argument("--N", type=int, default=100_000, help="data points in 3-D (default 100,000)")
    parser.add_argument("--chunk", type=int, default=5_000, help="rows in one call (default 5,000)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the pictures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
