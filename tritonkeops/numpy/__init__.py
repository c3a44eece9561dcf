"""Kernel reductions on NumPy arrays, with PyKeOps' names. Arrays are used in place, without copies."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonkeops.formula.ir import Var
from tritonkeops.runtime.call import check_options, describe
from tritonkeops.runtime.genred import GenredBase

__all__ = ["Genred"]

Array = np.ndarray[Any, np.dtype[Any]]


class Genred(GenredBase):
    __doc__ = GenredBase.__doc__

    def __call__(
        self,
        *args: Array,
        backend: str = "auto",
        device_id: int = -1,
        ranges: tuple[Array, ...] | None = None,
        out: Array | tuple[Array, ...] | None = None,
    ) -> Array | tuple[Array, ...]:
        """Reduce: as `tritonkeops.torch.Genred`, from arrays to arrays."""
        if backend != "auto" or device_id != -1 or ranges is not None:
            check_options(backend, device_id, ranges)
        variables = self._call.program.variables
        tensors = [_tensor(x, variables[n] if n < len(variables) else None) for n, x in enumerate(args)]
        if out is None:
            results = [x.numpy() for x in self._call(tensors)]
            return results[0] if len(results) == 1 else tuple(results)
        given = out if isinstance(out, tuple) else (out,)
        self._call(tensors, tuple(torch.from_numpy(x) for x in given))
        return out


def _tensor(array: Array, var: Var | None) -> Tensor:
    """A tensor on the array's memory; only reversed and byte-swapped arrays are copied."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{describe(var) if var else 'argument'}: expected an array, got {type(array).__name__}")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise TypeError(f"{describe(var) if var else 'argument'}: expected float32 or float64, got {array.dtype}")
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if any(stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():  # torch warns of read-only arrays, which a kernel never writes to
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
