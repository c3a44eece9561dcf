"""The torch back end: the formula evaluated tile by tile. The oracle of the tests, and what runs where there is no C
compiler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tritonkeops.backends.kernel import Layout
from tritonkeops.backends.pairs import Pairs
from tritonkeops.formula.evaluate import components, evaluate, finalize, fold, identity
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

    def __call__(
        self, args: Sequence[Tensor], outputs: Sequence[Tensor], threads: int, pairs: Pairs | None = None
    ) -> None:
        """See Launch. `threads` is torch's own affair here."""
        del threads
        with torch.no_grad():
            batch, pairs_of = len(self.layout.batch), zip(self.kernel.variables, args, strict=True)
            columns = [components(var, arg, batch, self._kept(var)) for var, arg in pairs_of]
            rows_of = [out.view(*self.layout.batch, self.layout.rows, self.kernel.node.dim) for out in outputs]
            for rows, listed in self._parts(pairs):
                for out, part in zip(rows_of, self._reduce(columns, args[0], rows, listed), strict=True):
                    out[..., rows, :] = part.movedim(0, -1).squeeze(-2).to(out.dtype)

    def _parts(self, pairs: Pairs | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows i to reduce together; for a pattern with the rows j that each counts, as many for one as for another."""
        height, width = self._tile()
        height = height if pairs is None else max(1, height * width // max(1, self.layout.cols))
        for first in range(0, self.layout.rows, height):
            rows = torch.arange(first, min(first + height, self.layout.rows))
            if pairs is None:
                yield rows, None
                continue
            lists = pairs.lists(first, first + len(rows))
            lengths = lists.start.diff()
            for length in sorted(set(lengths.tolist())):
                some = (lengths == length).nonzero().squeeze(1)
                yield rows[some], lists.columns[lists.start[some, None] + torch.arange(length)]

    def _kept(self, var: Var) -> bool:
        return var.axes == self.kernel.node.axes

    def _tile(self) -> tuple[int, int]:
        numbers = sum(node.dim for node in postorder([self.kernel.node])) * max(
            1, torch.Size(self.layout.batch).numel()
        )
        width = max(1, min(self.layout.cols, 1024))
        return max(1, _TILE_NUMBERS // max(1, numbers * width)), width

    def _reduce(self, columns: list[Tensor], like: Tensor, rows: Tensor, listed: Tensor | None) -> list[Tensor]:
        node, (_, width) = self.kernel.node, self._tile()
        cols = self.layout.cols if listed is None else listed.shape[1]
        like = torch.empty((0,) + (1,) * (len(self.layout.batch) + 2), dtype=like.dtype, device=like.device)
        wide = like.to(self.kernel.dtype_acc)
        state = identity(node, (*self.layout.batch, len(rows), 1), wide)
        for first in range(0, cols, width):
            stop = min(first + width, cols)
            tile = self._part(columns, rows, slice(first, stop) if listed is None else listed[:, first:stop])
            shape = (*self.layout.batch, len(rows), stop - first)
            terms = [evaluate(arg, tile, like).to(wide.dtype) for arg in node.args]
            state = fold(node, state, [term.expand(-1, *shape) for term in terms], first, wide)
        if listed is not None and cols:
            state = [field if field.is_floating_point() else _rows_at(listed, field) for field in state]
        kept = {v: x.to(wide.dtype) for v, x in self._part(columns, rows, slice(0)).items()}
        outputs = finalize(node, state, cols, wide, kept)
        return [part.expand(-1, *self.layout.batch, -1, 1) for part in outputs]

    def _part(self, columns: list[Tensor], rows: Tensor, cols: slice | Tensor) -> dict[Var, Tensor]:
        """The variables' values in a tile, whose rows j may be listed for each row i."""

        def reduced(c: Tensor) -> Tensor:
            return c[..., cols] if isinstance(cols, slice) else c.squeeze(-2)[..., cols]

        return {
            v: c[..., rows, :] if self._kept(v) else reduced(c) if v.axes else c
            for v, c in zip(self.kernel.variables, columns, strict=True)
        }


def _rows_at(listed: Tensor, places: Tensor) -> Tensor:
    """The rows j at places of lists; -1 stays."""
    owner = torch.arange(len(listed))[:, None]
    return torch.where(places < 0, places, listed[owner, places.clamp(min=0)])
