"""Kernel reductions on NumPy arrays, with PyKeOps' names. Arrays are used in place, without copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonkeops.formula.ir import Var
from tritonkeops.runtime.call import describe
from tritonkeops.runtime.genred import GenredBase
from tritonkeops.runtime.pattern import kind_of_call
from tritonkeops.runtime.reducer import Where

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
        mask: str | None = None,
        neighbors: Array | None = None,
    ) -> Array | tuple[Array, ...]:
        """Reduce: as `tritonkeops.torch.Genred`, from arrays to arrays, on the CPU unless `backend` names a GPU."""
        given_ranges = None if ranges is None else _integers("ranges", ranges)
        given_neighbors = None if neighbors is None else _integers("neighbors", (neighbors,))[0]
        kind, pattern = kind_of_call(given_ranges, mask, given_neighbors)
        reducer = self._reducer(Where(backend, device_id, kind))
        tensors = [_tensor(x, reducer.variables[n] if n < len(reducer.variables) else None) for n, x in enumerate(args)]
        given = None if out is None else tuple(map(_output, out if isinstance(out, tuple) else (out,)))
        outputs = reducer.launch(tensors, pattern, given)
        if out is not None:
            return out
        results = [x.numpy() for x in outputs]
        return results[0] if len(results) == 1 else tuple(results)


def _integers(name: str, arrays: Sequence[Array]) -> tuple[Tensor, ...]:
    """Integer arrays as tensors."""
    if not isinstance(arrays, (tuple, list)):
        raise TypeError(f"{name}: expected a tuple of integer arrays, got {type(arrays).__name__}")
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"{name}: expected integer arrays, got {got}")
    return tuple(torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in arrays)


def _tensor(array: Array, var: Var | None) -> Tensor:
    """A tensor on the array's memory; only reversed, byte-swapped and unaligned arrays are copied."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{describe(var) if var else 'argument'}: expected an array, got {type(array).__name__}")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise TypeError(f"{describe(var) if var else 'argument'}: expected float32 or float64, got {array.dtype}")
    if not array.dtype.isnative or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Unlocked(array)))


class _Unlocked:
    """The memory of a read-only array, without the flag that torch warns of; a kernel writes to no argument."""

    def __init__(self, array: Array) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _output(array: Array) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"out: expected an array, got {type(array).__name__}")
    if not (array.flags.c_contiguous and array.flags.writeable) or any(stride < 0 for stride in array.strides):
        kind = "" if array.flags.writeable else "read-only "
        raise ValueError(f"out: expected a contiguous array that can be written, got a {kind}{array.dtype} array of "
                         f"shape {array.shape} and strides {array.strides}")  # fmt: skip
    return torch.from_numpy(array)
