"""Tile IR -> a Python module of Triton kernels: the one function that does it."""

from __future__ import annotations

from tritonkeops.backends.triton.dot import DotEmitter
from tritonkeops.backends.triton.emitter import Emitter, Module
from tritonkeops.tile.ir import TileProgram


def emit(program: TileProgram, dtype: str, dtype_acc: str, batch_dims: int = 0, fallback: bool = False) -> Module:
    """The module of a program whose data are `dtype` (float16 and bfloat16 are computed in float32), accumulated in
    `dtype_acc`, with `batch_dims` batch dimensions. A `fallback` does nothing unless rows are far (see TileProgram)."""
    emitter = DotEmitter if program.schedule.form == "dot" else Emitter
    return emitter(program, dtype, dtype_acc, batch_dims, fallback).module()
