"""Kernel reductions on PyTorch tensors, with PyKeOps' names."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tritonkeops.runtime.call import check_options
from tritonkeops.runtime.genred import GenredBase

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
    ) -> Tensor | tuple[Tensor, ...]:
        """Reduce.

        Args:
            args: one tensor per variable: Vi (..., M, dim), Vj (..., N, dim), Pm (..., dim), of one dtype and device;
                leading batch dimensions broadcast. Rows may be strided. float32 or float64; on a GPU also float16 and
                bfloat16, computed in float32.
            backend: "auto" computes where the tensors are: on CUDA, ROCm and XPU devices by Triton, without waiting for
                the device. "CPU" accepts CPU tensors only. "GPU" (and KeOps' "GPU_1D", "GPU_2D_device" ...) sends CPU
                tensors to a GPU, and the result back.
            device_id: number of that GPU; -1 for the current one. For tensors on a GPU, their own.
            ranges: not there yet.
            out: contiguous tensor (or a pair for the Min_ArgMin family) that receives the result, in memory of its own.

        Returns:
            (..., M, dim) for axis=1 and (..., N, dim) for axis=0; (..., M, K) or (..., M, K, dim) for K-reductions;
            int64 indices; the pair (values, indices) for the Min_ArgMin family.

        Raises:
            ValueError, TypeError: arguments that do not fit the formula, named. NotImplementedError: see above.
        """
        if backend != "auto" or device_id != -1 or ranges is not None:
            check_options(backend, device_id, ranges)
        reverse = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
        if reverse or (forward_ad._current_level >= 0 and any(map(_has_tangent, args))):
            raise NotImplementedError(
                "gradients by autograd are not there yet: write Grad(...) in the formula, or call under torch.no_grad()"
            )
        if backend == "auto" and device_id == -1:
            outputs = self._call(args, out)
        else:
            outputs = self._call.on(args, out, backend, device_id)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _has_tangent(x: object) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
