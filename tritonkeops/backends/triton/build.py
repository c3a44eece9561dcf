"""Emitted modules -> kernels: imported from the cache, compiled per device, launched on the current stream.

Nothing here waits for the device, and a launch allocates only through torch, so that calls can be captured in CUDA
graphs once their kernels are compiled.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import logging
import math
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime import driver

from tritonkeops import cache
from tritonkeops.backends.kernel import Layout, collapse
from tritonkeops.backends.triton.emit import PACK_ROWS, Module, Param, emit
from tritonkeops.tile.ir import TileProgram
from tritonkeops.tile.schedule import GpuSchedule

log = logging.getLogger("tritonkeops")

OLDEST, NEWEST = (3, 6), (3, 9)
_POINTERS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32", "float64": "*fp64"}
_lock = threading.Lock()


class UnsupportedTriton(RuntimeError):
    """The Triton that is installed is too old."""


@functools.cache
def check_version() -> None:
    """Raises UnsupportedTriton below the oldest version that is tested; warns above the newest."""
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST:
        raise UnsupportedTriton(f"triton {triton.__version__}: tritonkeops needs {OLDEST[0]}.{OLDEST[1]} or newer")
    if version > NEWEST:
        log.warning("triton %s is newer than what tritonkeops was tested with (%d.%d)", triton.__version__, *NEWEST)


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU: TRITON_INTERPRET=1."""
    return bool(triton.knobs.runtime.interpret)


class TritonKernel:
    """A program emitted as Triton, for data of a dtype and a number of batch dimensions."""

    def __init__(self, program: TileProgram, dtype: str, dtype_acc: str, batch_dims: int, fp_fusion: bool) -> None:
        check_version()
        assert isinstance(program.schedule, GpuSchedule)
        self.program, self.schedule = program, program.schedule
        self.dtype, self.dtype_acc, self.fp_fusion = dtype, dtype_acc, fp_fusion
        self.emitted: Module = emit(program, dtype, dtype_acc, batch_dims)
        self.module = load(self.emitted.text, program.title)
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def prepare(self, args: Sequence[Tensor], layout: Layout) -> TritonLaunch:
        """See Kernel."""
        return TritonLaunch(self, args, layout)

    def source(self, role: str, split: bool) -> Any:
        """What `triton.compile` takes for one of the module's kernels."""
        params = self.emitted.params[role]
        signature = {p.name: self._type(p) for p in params}
        attrs = {(n,): [["tt.divisibility", 16]] for n, p in enumerate(params) if p.role in _ALIGNED}
        constants = {}
        if role == "reduce":
            signature["SPLIT"], constants["SPLIT"] = "constexpr", split
        return ASTSource(getattr(self.module, self.emitted.names[role]), signature, constants, attrs)

    def options(self, role: str) -> dict[str, Any]:
        """What it is compiled with; a pipeline of loads would only cost registers, for tiles this small."""
        reduces, registers = role in ("reduce", "merge"), self.schedule.registers
        limit = {"maxnreg": registers} if role == "reduce" and registers else {}
        num_warps = self.schedule.num_warps if reduces else 4
        return {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": self.fp_fusion, **limit}

    def _type(self, param: Param) -> str:
        if param.role in ("data", "value"):
            return _POINTERS[self.dtype]
        if param.role in ("packed_i", "packed_j"):
            return _POINTERS["float64" if self.dtype == "float64" else "float32"]
        if param.role == "parts":
            return _POINTERS[self.dtype_acc]
        index = f"i{self.schedule.index_bits}"
        fixed = {"parts_index": f"*{index}", "index": "*i64", "row": "i64", "batch": "i64", "size": "i64",
                 "packed_i_batch": "i64", "packed_j_batch": "i64", "splits": "i32"}  # fmt: skip
        return fixed.get(param.role, index)

    def compiled(self, role: str, split: bool, device: int) -> Any:
        """The kernel on a device, compiled at the first request and kept: unloading one may end a graph's capture."""
        key = (role, split, device)
        kernel = self._compiled.get(key)
        if kernel is None:
            with _lock:
                kernel = self._compiled.get(key) or self._compile(role, split)
                self._compiled[key] = kernel
        return kernel

    def _compile(self, role: str, split: bool) -> Any:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{self.program.title}: its kernels are not compiled yet, and cannot be while a CUDA graph is "
                "captured; call it once with arguments of these shapes before the capture"
            )
        kernel = triton.compile(
            self.source(role, split), target=driver.active.get_current_target(), options=self.options(role)
        )
        kernel.run  # noqa: B018  loads it onto the device
        return kernel


_ALIGNED = ("packed_i", "packed_j", "parts", "parts_index")


def load(text: str, title: str) -> ModuleType:
    """The module of a source text, kept in the cache: profilers, tracebacks and Triton itself read the file."""
    key = cache.digest("triton", text)
    name = f"tritonkeops_{key[:16]}"
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        path = cache.find(key) or cache.keep(key, text.encode(), ".py", title)
        spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
        return module


class _Source(importlib.machinery.SourceFileLoader):
    """Imports a file without leaving a compiled copy beside it in the cache."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        return


class TritonLaunch:
    """A kernel with the sizes, strides and parts of j of its calls settled."""

    def __init__(self, kernel: TritonKernel, args: Sequence[Tensor], layout: Layout) -> None:
        s, emitted = kernel.schedule, kernel.emitted
        self._kernel, self._layout = kernel, layout
        self._entries, self._device = math.prod(layout.batch), args[0].device
        self._sizes, strides = collapse(layout, args, [2 if x.axis else 1 for x in kernel.program.inputs])
        blocks = {"i": -(-layout.rows // s.block_i), "j": -(-layout.cols // s.block_j)}
        self._programs = blocks["i"] * self._entries
        self._part, self._splits = _parts(self._programs, blocks["j"], s, _processors(self._device))
        self._values: dict[tuple[str, int, int], int] = {}
        for n, arg in enumerate(args):
            self._values["row", n, 0] = arg.stride(-2) if arg.ndim >= 2 else 0
            for d in range(len(self._sizes)):
                self._values["batch", n, d] = strides[n][d]
        for d, size in enumerate(self._sizes):
            self._values["size", -1, d] = size
        self._workspaces: list[tuple[str, int, torch.dtype]] = []
        self._grids = {"reduce": (self._programs, self._splits, 1), "merge": (self._programs, 1, 1)}
        real = torch.float64 if kernel.dtype == "float64" else torch.float32
        for axis in "ij":
            if emitted.columns[axis]:
                self._plan_pack(axis, blocks[axis], real, args)
        self._plan_parts(emitted, s, getattr(torch, kernel.dtype_acc))
        scalars = {"M": layout.rows, "N": layout.cols, "part": self._part, "splits": self._splits}
        self._values |= {(role, -1, 0): value for role, value in scalars.items()}
        self._launches: list[tuple[Any, tuple[int, int, int], list[Any], list[tuple[int, str, int]]]] | None = None

    def _plan_pack(self, axis: str, tiles: int, real: torch.dtype, args: Sequence[Tensor]) -> None:
        """A packed table per entry, or one for all where none of what it is made of differs between entries."""
        kernel = self._kernel
        role, length = f"pack_{axis}", {"i": kernel.schedule.block_i, "j": kernel.schedule.block_j}[axis] * tiles
        read = {p.input for p in kernel.emitted.params[role] if p.role == "data"}
        same = all(self._values["batch", n, d] == 0 for n in read for d in range(len(self._sizes)))
        entries, size = 1 if same else self._entries, length * kernel.emitted.columns[axis]
        self._values[f"packed_{axis}_batch", -1, 0] = 0 if same else size
        self._workspaces.append((f"packed_{axis}", entries * size, real))
        self._grids[role] = (entries * -(-length // PACK_ROWS), 1, 1)

    def _plan_parts(self, emitted: Module, s: GpuSchedule, acc: torch.dtype) -> None:
        """Workspace for accumulators: those of the parts of j, and those that are kept in memory."""
        slots = self._programs * self._splits if self._splits > 1 or emitted.held else 0
        index = torch.int64 if s.index_bits == 64 else torch.int32
        self._workspaces.append(("parts", slots * emitted.floats * s.block_i, acc))
        self._workspaces.append(("parts_index", slots * emitted.indices * s.block_i, index))

    def __call__(self, args: Sequence[Tensor], outputs: Sequence[Tensor], threads: int) -> None:
        """See Launch. Nothing is waited for; `threads` does not matter here."""
        del threads
        if not self._programs:
            return
        if interpreted():
            self._run(args, outputs, self._interpret)
        elif self._device.index == _current_device(self._device):
            self._run(args, outputs, self._launch)
        else:
            with torch.get_device_module(self._device.type).device(self._device):
                self._run(args, outputs, self._launch)

    def _run(self, args: Sequence[Tensor], outputs: Sequence[Tensor], launch: Callable[..., None]) -> None:
        emitted, split = self._kernel.emitted, self._splits > 1
        kinds = [output.name for output in self._kernel.program.outputs]
        tensors: dict[str, Tensor] = dict(zip(kinds, outputs, strict=True))
        for role, size, dtype in self._workspaces:
            tensors[role] = torch.empty(size, dtype=dtype, device=self._device)
        roles = [role for role in ("pack_i", "pack_j") if role in emitted.params and self._layout_filled(role)]
        for role in [*roles, "reduce", *(["merge"] if split else [])]:
            values = [
                args[p.input] if p.role == "data" else tensors[p.role] if p.role in tensors
                else self._values[p.role, p.input, p.batch] for p in emitted.params[role]
            ]  # fmt: skip
            launch(role, values)

    def _layout_filled(self, role: str) -> bool:
        return self._grids[role][0] > 0

    def _interpret(self, role: str, values: list[Any]) -> None:
        split = [self._splits > 1] if role == "reduce" else []
        function = getattr(self._kernel.module, self._kernel.emitted.names[role])
        function[self._grids[role]](*values, *split)

    def _launch(self, role: str, values: list[Any]) -> None:
        index = self._device.index or 0
        compiled = self._kernel.compiled(role, self._splits > 1, index)
        split = [self._splits > 1] if role == "reduce" else []
        compiled[self._grids[role]](*values, *split, stream=driver.active.get_current_stream(index))


def _current_device(device: torch.device) -> int:
    return int(torch.get_device_module(device.type).current_device())


@functools.cache
def _processors(device: torch.device) -> int:
    """How many multiprocessors a device has; 1 for the interpreter, which has nothing to fill."""
    if device.type == "cpu":
        return 1
    properties = torch.get_device_module(device.type).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 64))


_MOST_SPLITS = 1024
_TILES = 8  # of a part, at least


def _parts(programs: int, tiles: int, s: GpuSchedule, processors: int) -> tuple[int, int]:
    """Rows j of a part and the number of parts, so that few blocks of rows i still fill the device.

    A part is a whole number of blocks of sums, and depends on sizes alone: results are the same from run to run.
    """
    wanted = -(-4 * processors * max(1, 4 // s.num_warps) // max(1, programs))
    if processors == 1 or wanted < 2 or tiles <= _TILES:
        return max(1, tiles * s.block_j), 1
    step = max(1, s.block_sum // s.block_j)
    splits = max(1, min(wanted, _MOST_SPLITS, tiles // _TILES))
    part = -(-tiles // splits // step) * step if tiles // splits >= step else -(-tiles // splits)
    return part * s.block_j, -(-tiles // max(1, part))
