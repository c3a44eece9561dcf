"""What the run time asks of a kernel, whichever back end made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Sizes of a call: batch dimensions, M rows i of the result and N rows j that are reduced."""

    batch: tuple[int, ...]
    rows: int
    cols: int


class Launch(Protocol):
    """A kernel with the shapes and strides of its arguments settled: call it with tensors that have them."""

    def __call__(self, args: Sequence[Tensor], outputs: Sequence[Tensor], threads: int) -> None: ...


class Kernel(Protocol):
    """A compiled reduction."""

    def prepare(self, args: Sequence[Tensor], layout: Layout) -> Launch:
        """Settle shapes and strides: args are (*batch, rows, dim), or (*batch, dim) for parameters."""
        ...
