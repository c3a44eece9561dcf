"""Kernel reductions on PyTorch tensors, with PyKeOps' names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonkeops.runtime.call import GPUS, HALVES
from tritonkeops.runtime.differentiable import differentiable
from tritonkeops.runtime.genred import GenredBase
from tritonkeops.runtime.library import constant_for_dynamo, records, traced
from tritonkeops.runtime.pattern import kind_of_call
from tritonkeops.runtime.reducer import Recipe, Reducer, Where

__all__ = ["Genred"]


class Genred(GenredBase):
    __doc__ = GenredBase.__doc__

    def __call__(
        self,
        *args: Tensor,
        backend: str = "auto",
        device_id: int = -1,
        ranges: tuple[Tensor, ...] | None = None,
        out: Tensor | tuple[Tensor, ...] | None = None,
        mask: str | None = None,
        neighbors: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Reduce.

        Differentiable to any order, in reverse and forward mode, by every argument (Min, Max and the K-reductions too,
        through the rows they find); torch.compile, torch.export, torch.func and torch.vmap see one operation. Under
        autocast, half-precision arguments are computed in float32.

        Args:
            args: one tensor per variable: Vi (..., M, dim), Vj (..., N, dim), Pm (..., dim), of one dtype and device;
                leading batch dimensions broadcast. Rows may be strided. float32 or float64; on a GPU also float16 and
                bfloat16, computed in float32.
            backend: "auto" computes where the tensors are: on CUDA, ROCm and XPU devices by Triton, without waiting for
                the device. "CPU" accepts CPU tensors only. "GPU" (and KeOps' "GPU_1D", "GPU_2D_device" ...) sends CPU
                tensors to a GPU, and the result back.
            device_id: number of that GPU; -1 for the current one. For tensors on a GPU, their own.
            ranges: block sparsity, KeOps' six integer tensors (ranges_i, slices_i, redranges_j, ranges_j, slices_j,
                redranges_i): cluster c of rows i, ranges_i[c] = (start, end), meets the rows j of the intervals
                redranges_j[slices_i[c-1]:slices_i[c]]; the last three tell the same of j, for axis=0 and for gradients.
                See tritonkeops.torch.cluster.from_matrix. Batch entries share it.
            out: contiguous tensor (or a pair for the Min_ArgMin family) that receives the result, in memory of its own.
            mask: pairs to keep, by their row numbers: "i<j", "i<=j", "i>j", "i>=j", or a band "|i-j|<=5".
            neighbors: (M, k) integers: the rows j that each row i meets; -1 is none.

        Returns:
            (..., M, dim) for axis=1 and (..., N, dim) for axis=0; (..., M, K) or (..., M, K, dim) for K-reductions;
            int64 indices; the pair (values, indices) for the Min_ArgMin family. Rows without pairs have the value that
            the README lists for N = 0.

        Raises:
            ValueError, TypeError: arguments that do not fit the formula, named.
        """
        kind, pattern = kind_of_call(ranges, mask, neighbors)
        if _autocasts(args):
            args = tuple(x.float() if isinstance(x, Tensor) and x.dtype in HALVES else x for x in args)
        if torch.compiler.is_compiling() and out is None:
            outputs = differentiable(Recipe(*self._recipe(backend, device_id, kind)), args, pattern)
        else:
            outputs = self._eager(self._reducer(Where(backend, device_id, kind)), args, pattern, out)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _eager(
        self,
        reducer: Reducer,
        args: tuple[Tensor, ...],
        pattern: tuple[Tensor, ...],
        out: Tensor | tuple[Tensor, ...] | None,
    ) -> list[Tensor]:
        if not (traced(args) or records(args)):
            return reducer.launch(args, pattern, out)
        if out is not None:
            raise ValueError("out: expected None where arguments require gradients, or under a transform of torch")
        return differentiable(reducer.recipe, args, pattern)

    @constant_for_dynamo
    def _recipe(self, backend: str, device_id: int, kind: str) -> tuple[Any, ...]:
        return tuple(self._reducer(Where(backend, device_id, kind)).recipe)


def _autocasts(args: tuple[Tensor, ...]) -> bool:
    """Whether autocast is on where the arguments are."""
    kind = args[0].device.type if args and isinstance(args[0], Tensor) else ""
    return kind in ("cpu", *GPUS) and torch.is_autocast_enabled(kind)
