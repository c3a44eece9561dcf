"""What the run time asks of a kernel, whichever back end made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tritonkeops.backends.pairs import Pairs


@dataclass(frozen=True)
class Layout:
    """Sizes of a call: batch dimensions, M rows i of the result and N rows j that are reduced."""

    batch: tuple[int, ...]
    rows: int
    cols: int


def collapse(layout: Layout, args: Sequence[Tensor], tails: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Batch dimensions with neighbours joined where every argument's strides allow it: sizes, and strides by argument.

    `tails` tells how many dimensions of each argument are no batch. Dimensions of size 1 are dropped, and those along
    which an argument is repeated have stride 0.
    """
    columns = []
    for arg, tail in zip(args, tails, strict=True):
        sizes, strides = arg.shape[:-tail], arg.stride()[:-tail]
        own = [stride if size > 1 else 0 for size, stride in zip(sizes, strides, strict=True)]
        columns.append([0] * (len(layout.batch) - len(own)) + own)
    dims: list[tuple[int, tuple[int, ...]]] = []
    for n, size in enumerate(layout.batch):
        steps = tuple(column[n] for column in columns)
        if size == 1:
            continue
        if dims and all(outer == step * size for outer, step in zip(dims[-1][1], steps, strict=True)):
            dims[-1] = (dims[-1][0] * size, steps)
        else:
            dims.append((size, steps))
    return [size for size, _ in dims], [[steps[n] for _, steps in dims] for n in range(len(args))]


class Launch(Protocol):
    """A kernel with the shapes and strides of its arguments settled: call it with tensors that have them, and with the
    pairs that count where it was made for a pattern."""

    def __call__(
        self, args: Sequence[Tensor], outputs: Sequence[Tensor], threads: int, pairs: Pairs | None = None
    ) -> None: ...


class Kernel(Protocol):
    """A compiled reduction."""

    def prepare(self, args: Sequence[Tensor], layout: Layout) -> Launch:
        """Settle shapes and strides: args are (*batch, rows, dim), or (*batch, dim) for parameters."""
        ...
