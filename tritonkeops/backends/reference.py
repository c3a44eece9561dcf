"""The torch back end: the formula evaluated tile by tile. The oracle of the tests, and what runs where there is no C
compiler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritonkeops.backends.kernel import Layout
from tritonkeops.formula.evaluate import evaluate, finalize, fold, identity
from tritonkeops.formula.ir import Reduction, Var, postorder

_TILE_NUMBERS = 1 << 22  # numbers that a tile's intermediate values may hold together


class TorchKernel:
    """A reduction evaluated by torch, accumulating in `dtype_acc`."""

    def __init__(self, node: Reduction, variables: Sequence[Var], dtype_acc: torch.dtype) -> None:
        self.node, self.variables, self.dtype_acc = node, tuple(variables), dtype_acc

    def prepare(self, args: Sequence[Tensor], layout: Layout) -> TorchLaunch:
        """See Kernel."""
        return TorchLaunch(self, layout)


class TorchLaunch:
    """A TorchKernel for given sizes."""

    def __init__(self, kernel: TorchKernel, layout: Layout) -> None:
        self.kernel, self.layout = kernel, layout

    def __call__(self, args: Sequence[Tensor], outputs: Sequence[Tensor], threads: int) -> None:
        """See Launch. `threads` is torch's own affair here."""
        del threads
        with torch.no_grad():
            columns = [self._components(var, arg) for var, arg in zip(self.kernel.variables, args, strict=True)]
            height, width = self._tile()
            for first in range(0, self.layout.rows, height):
                rows = slice(first, min(first + height, self.layout.rows))
                for out, part in zip(outputs, self._reduce(columns, args[0], rows, width), strict=True):
                    out[..., rows, :] = part.movedim(0, -1).squeeze(-2)

    def _components(self, var: Var, arg: Tensor) -> Tensor:
        """(*batch, rows, dim) as (dim, *batch, M or 1, N or 1)."""
        extra = len(self.layout.batch) - (arg.ndim - (2 if var.axes else 1))
        arg = arg.reshape((1,) * extra + arg.shape).movedim(-1, 0)
        if not var.axes:
            return arg[..., None, None]
        return arg[..., None] if self._kept(var) else arg[..., None, :]

    def _kept(self, var: Var) -> bool:
        return var.axes == self.kernel.node.axes

    def _tile(self) -> tuple[int, int]:
        numbers = sum(node.dim for node in postorder([self.kernel.node])) * max(
            1, torch.Size(self.layout.batch).numel()
        )
        width = max(1, min(self.layout.cols, 1024))
        return max(1, _TILE_NUMBERS // max(1, numbers * width)), width

    def _reduce(self, columns: list[Tensor], like: Tensor, rows: slice, width: int) -> list[Tensor]:
        node = self.kernel.node
        like = torch.empty((0,) + (1,) * (len(self.layout.batch) + 2), dtype=like.dtype, device=like.device)
        wide = like.to(self.kernel.dtype_acc)
        state = identity(node, (*self.layout.batch, rows.stop - rows.start, 1), wide)
        for first in range(0, self.layout.cols, width):
            stop = min(first + width, self.layout.cols)
            tile = self._part(columns, rows, slice(first, stop))
            shape = (*self.layout.batch, rows.stop - rows.start, stop - first)
            terms = [evaluate(arg, tile, like).to(wide.dtype) for arg in node.args]
            state = fold(node, state, [term.expand(-1, *shape) for term in terms], first, wide)
        outputs = finalize(node, state, self.layout.cols, wide, self._factor(columns, rows, like))
        return [part.expand(-1, *self.layout.batch, -1, 1) for part in outputs]

    def _factor(self, columns: list[Tensor], rows: slice, like: Tensor) -> Tensor | None:
        factor = self.kernel.node.factor
        if factor is None:
            return None
        return evaluate(factor, self._part(columns, rows, slice(0)), like).to(self.kernel.dtype_acc)

    def _part(self, columns: list[Tensor], rows: slice, cols: slice) -> dict[Var, Tensor]:
        """The variables' values in a tile."""
        return {
            v: c[..., rows, :] if self._kept(v) else c[..., cols] if v.axes else c
            for v, c in zip(self.kernel.variables, columns, strict=True)
        }
