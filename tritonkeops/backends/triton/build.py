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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime import driver

from tritonkeops import cache
from tritonkeops.backends.kernel import Layout, collapse
from tritonkeops.backends.pairs import Band, Lists, Pairs, Ranges
from tritonkeops.backends.triton.emit import emit
from tritonkeops.backends.triton.emitter import PACK_ROWS, Module, Param
from tritonkeops.formula.evaluate import components, evaluate
from tritonkeops.formula.ir import Node, Var
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
    """A program emitted as Triton, for data of a dtype and a number of batch dimensions.

    One with contractions has a `fallback` for data whose rounding errors they do not bound, and may have a `center`, a
    last argument that is made of the others. Which of the two does the work is settled on the device: the kernels of
    both are launched, and those of one do nothing.
    """

    def __init__(
        self, program: TileProgram, dtype: str, dtype_acc: str, batch_dims: int, fp_fusion: bool,
        fallback: TileProgram | None = None, center: Center | None = None, is_fallback: bool = False,
    ) -> None:  # fmt: skip
        check_version()
        assert isinstance(program.schedule, GpuSchedule)
        self.program, self.schedule = program, program.schedule
        self.dtype, self.dtype_acc, self.fp_fusion = dtype, dtype_acc, fp_fusion
        self.real = "float64" if dtype == "float64" else "float32"
        self.emitted: Module = emit(program, dtype, dtype_acc, batch_dims, is_fallback)
        self.module = load(self.emitted.text, program.title)
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self.center, self.fallback = center, None
        if fallback:
            self.fallback = TritonKernel(fallback, dtype, dtype_acc, batch_dims, fp_fusion, is_fallback=True)

    def prepare(self, args: Sequence[Tensor], layout: Layout) -> TritonLaunch:
        """See Kernel."""
        return TritonLaunch(self, args, layout)

    def complete(self, args: Sequence[Tensor]) -> Sequence[Tensor]:
        """The arguments with what is made of them."""
        return [*args, self.center(args)] if self.center else args

    def source(self, role: str, split: bool) -> Any:
        """What `triton.compile` takes for one of the module's kernels."""
        params = self.emitted.params[role]
        signature = {p.name: self._type(p) for p in params}
        attrs = {(n,): [["tt.divisibility", 16]] for n, p in enumerate(params) if p.role in _ALIGNED}
        constants = {}
        if role == "reduce" and not self.program.pattern:
            signature["SPLIT"], constants["SPLIT"] = "constexpr", split
        return ASTSource(getattr(self.module, self.emitted.names[role]), signature, constants, attrs)

    def options(self, role: str) -> dict[str, Any]:
        """What it is compiled with."""
        reduces, registers = role in ("reduce", "merge"), self.schedule.registers
        limit = {"maxnreg": registers} if role == "reduce" and registers else {}
        num_warps, num_stages = (self.schedule.num_warps, self.schedule.num_stages) if reduces else (4, 1)
        return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": self.fp_fusion, **limit}

    def parts(self, layout: Layout, processors: int) -> tuple[int, int, int]:
        """How a call is laid out on so many multiprocessors: programs, rows j of a part, and parts of j."""
        s = replace(self.schedule, splits=1) if self.program.pattern else self.schedule  # its rows j are not split
        programs = -(-layout.rows // s.block_i) * math.prod(layout.batch)
        return programs, *_parts(programs, -(-layout.cols // s.block_j), s, processors)

    def _type(self, param: Param) -> str:
        if param.role in ("data", "value"):
            return _POINTERS[self.dtype]
        if param.role in ("packed_i", "packed_j"):
            return _POINTERS[self.real]
        if param.role in ("operands_i", "operands_j"):
            return _POINTERS[self.schedule.operand]
        if param.role == "parts":
            return _POINTERS[self.dtype_acc]
        index = f"i{self.schedule.index_bits}"
        fixed = {"parts_index": f"*{index}", "index": "*i64", "row": "i64", "batch": "i64", "size": "i64",
                 "packed_i_batch": "i64", "packed_j_batch": "i64", "operands_i_batch": "i64",
                 "operands_j_batch": "i64", "far": "*i32", "splits": "i32", "table": "*i64", "spans": "*i64",
                 "start": "*i64", "columns": f"*{index}"}  # fmt: skip
        return fixed.get(param.role, index)

    def compiled(self, role: str, split: bool, device: int) -> Any:
        """The kernel on a device, compiled at the first request and kept: unloading one may end a graph's capture."""
        key = (role, split and role == "reduce", device)
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


@dataclass(frozen=True)
class Center:
    """A point among the rows j, or near: of some of them, evenly spaced, the mean of a formula."""

    formula: Node
    variables: tuple[Var, ...]

    def __call__(self, args: Sequence[Tensor]) -> Tensor:
        """(*batch, dim), on the device of the arguments; nothing is waited for."""
        read = [(var, args[var.position]) for var in self.variables if var.position < len(args)]
        batch = max((x.ndim - (2 if var.axes else 1) for var, x in read), default=0)
        point = evaluate(self.formula, {var: _some(var, x, batch) for var, x in read}, args[0].float())
        return point.mean(-1).squeeze(-1).movedim(0, -1).contiguous().to(args[0].dtype)


_SAMPLE = 64  # rows: their mean is as near to the middle of a cloud as is any use


def _some(var: Var, arg: Tensor, batch: int) -> Tensor:
    """The components of a few rows, or of a parameter."""
    some = arg[..., :: max(1, arg.shape[-2] // _SAMPLE), :] if var.axes else arg
    return components(var, some.float(), batch, kept=False)


_ALIGNED = ("packed_i", "packed_j", "operands_i", "operands_j", "parts", "parts_index")


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


@dataclass(frozen=True)
class _Step:
    """One kernel of a call: its grid, and its arguments, of which tensors are filled in by name or number."""

    role: str
    grid: tuple[int, int, int]
    values: tuple[Any, ...]
    tensors: tuple[tuple[int, str | int], ...]


class TritonLaunch:
    """A kernel with the sizes, strides and parts of j of its calls settled."""

    def __init__(self, kernel: TritonKernel, args: Sequence[Tensor], layout: Layout) -> None:
        s = kernel.schedule
        self._fallback = kernel.fallback and kernel.fallback.prepare(args, layout)
        args = kernel.complete(args)
        self._kernel, self._device, self._entries = kernel, args[0].device, math.prod(layout.batch)
        self._outputs = [output.name for output in kernel.program.outputs]
        tiles = {"i": -(-layout.rows // s.block_i), "j": -(-layout.cols // s.block_j)}
        entries = self._entries
        programs, self.part, self.splits = kernel.parts(layout, _processors(self._device))
        self._scalars = self._strides(args, layout)
        self._scalars |= {("M", -1, 0): layout.rows, ("N", -1, 0): layout.cols}
        self._scalars |= {("part", -1, 0): self.part, ("splits", -1, 0): self.splits}
        self._workspaces: dict[str, tuple[int, torch.dtype]] = {}
        tables = [role for role in kernel.emitted.names if role.startswith(("pack_", "split_"))]
        grids = {role: self._table(role, tiles[role[-1]], entries) for role in tables}
        self._workspaces |= self._parts_of(programs)
        grids["reduce"] = (programs, self.splits, 1)
        if self.splits > 1:
            grids["merge"] = (programs, 1, 1)
        self._steps = [self._step(role, grid) for role, grid in grids.items() if programs and grid[0]]

    def _strides(self, args: Sequence[Tensor], layout: Layout) -> dict[tuple[str, int, int], int]:
        """Strides and sizes by the role, input and batch dimension of the parameter they are for."""
        tails = [2 if x.axis else 1 for x in self._kernel.program.inputs]
        sizes, strides = collapse(layout, args, tails)
        found = {("row", n, 0): arg.stride(-2) for n, arg in enumerate(args) if tails[n] == 2}
        found |= {("batch", n, d): step for n, steps in enumerate(strides) for d, step in enumerate(steps)}
        return found | {("size", -1, d): size for d, size in enumerate(sizes)}

    def _table(self, role: str, tiles: int, entries: int) -> tuple[int, int, int]:
        """A table per entry, or one for all where none of what it is made of differs between entries."""
        kernel, axis = self._kernel, role[-1]
        rows = tiles * {"i": kernel.schedule.block_i, "j": kernel.schedule.block_j}[axis]
        table = {"pack": "packed", "split": "operands"}[role[:-2]] + f"_{axis}"
        size = rows * kernel.emitted.columns[table]
        read = {p.input for p in kernel.emitted.params[role] if p.role == "data"}
        same = not any(step for (word, n, _), step in self._scalars.items() if word == "batch" and n in read)
        self._scalars[f"{table}_batch", -1, 0] = 0 if same else size
        tables = 1 if same else entries
        dtype = kernel.real if role.startswith("pack") else kernel.schedule.operand
        self._workspaces[table] = tables * size, getattr(torch, dtype)
        return tables * -(-rows // PACK_ROWS), 1, 1

    def _parts_of(self, programs: int) -> dict[str, tuple[int, torch.dtype]]:
        """Workspace for accumulators: those of the parts of j, and those that are kept in memory."""
        emitted, s = self._kernel.emitted, self._kernel.schedule
        slots = programs * self.splits if self.splits > 1 or emitted.held else 0
        floats = slots * emitted.floats * s.block_i, getattr(torch, self._kernel.dtype_acc)
        return {"parts": floats, "parts_index": (slots * emitted.indices * s.block_i, self._index())}

    def _index(self) -> torch.dtype:
        return torch.int64 if self._kernel.schedule.index_bits == 64 else torch.int32

    def _step(self, role: str, grid: tuple[int, int, int]) -> _Step:
        params = self._kernel.emitted.params[role]
        values = [self._scalars.get((p.role, p.input, p.batch)) for p in params]
        tensors = [(n, p.input if p.role == "data" else p.role) for n, p in enumerate(params) if values[n] is None]
        if role == "reduce" and not self._kernel.program.pattern:
            values.append(self.splits > 1)
        return _Step(role, grid, tuple(values), tuple(tensors))

    def __call__(
        self, args: Sequence[Tensor], outputs: Sequence[Tensor], threads: int, pairs: Pairs | None = None
    ) -> None:
        """See Launch. Nothing is waited for; `threads` does not matter here."""
        del threads
        if interpreted() or self._device.index == _current_device(self._device):
            self._run(args, outputs, pairs)
        else:
            with torch.get_device_module(self._device.type).device(self._device):
                self._run(args, outputs, pairs)

    def _run(
        self, args: Sequence[Tensor], outputs: Sequence[Tensor], pairs: Pairs | None, far: Tensor | None = None
    ) -> None:
        """With contractions, their kernels first: they tell whether the fallback has to do the work."""
        launch = self._interpret if interpreted() else self._launch
        if self._fallback:
            far = torch.zeros(1, dtype=torch.int32, device=self._device)
        tensors: dict[str | int, Tensor | int] = dict(enumerate(self._kernel.complete(args)))
        tensors |= {} if far is None else {"far": far}
        tensors.update(zip(self._outputs, outputs, strict=True))
        steps, workspaces = self._steps, self._workspaces
        if pairs is not None:
            tensors |= self._tables(pairs)
        if isinstance(pairs, Ranges):
            steps, workspaces = self._over_tiles(len(pairs.tiles(self._kernel.schedule.block_i)))
        for role, (size, dtype) in workspaces.items():
            # What has no elements is not read: any address will do.
            tensors[role] = torch.empty(size, dtype=dtype, device=self._device) if size else outputs[0]
        for step in steps:
            values = list(step.values)
            for n, key in step.tensors:
                values[n] = tensors[key]
            launch(step, values)
        if self._fallback:
            self._fallback._run(args, outputs, pairs, far)

    def _tables(self, pairs: Pairs) -> dict[str | int, Tensor | int]:
        """What the kernels of a pattern take beside the data."""
        if isinstance(pairs, Band):
            return {"low": pairs.low, "high": pairs.high}
        if isinstance(pairs, Lists):
            return {"start": pairs.start, "columns": pairs.columns_as(self._index())}
        table = pairs.tiles(self._kernel.schedule.block_i)
        return {"table": table, "tiles": len(table), "spans": pairs.spans}

    def _over_tiles(self, tiles: int) -> tuple[list[_Step], dict[str, tuple[int, torch.dtype]]]:
        """Steps and workspaces for the tiles of rows i that a table holds."""
        programs = tiles * self._entries
        steps = [replace(step, grid=(programs, 1, 1)) if step.role == "reduce" else step for step in self._steps]
        return steps, self._workspaces | self._parts_of(programs)

    def _interpret(self, step: _Step, values: list[Any]) -> None:
        function = getattr(self._kernel.module, self._kernel.emitted.names[step.role])
        function[step.grid](*values)

    def _launch(self, step: _Step, values: list[Any]) -> None:
        index = self._device.index or 0
        compiled = self._kernel.compiled(step.role, self.splits > 1, index)
        if self._kernel.schedule.descriptors:
            triton.set_allocator(partial(_scratch, self._device))
        compiled[step.grid](*values, stream=driver.active.get_current_stream(index))


def _scratch(device: torch.device, size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory that a kernel asks for itself: where it writes its descriptors. What torch gives is aligned enough."""
    del alignment, stream
    return torch.empty(size, dtype=torch.int8, device=device)


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
_RESIDENT = 16  # warps of a multiprocessor, at the registers that these kernels take
_WAVES = 16  # in which the programs of a long call come, so that the last one costs little


def _parts(programs: int, tiles: int, s: GpuSchedule, processors: int) -> tuple[int, int]:
    """Rows j of a part and the number of parts.

    Few blocks of rows i are split to fill the device, with 8 tiles or more in a part; long calls to even out its last
    wave, with 64 or more (not sorted lists, which each part would have to fill again); a schedule may ask for a number
    of parts. A part is a whole number of blocks of sums, and depends on sizes alone: results are the same from run to
    run.
    """
    wave = -(-processors * _RESIDENT // s.num_warps)
    fill = min(-(-wave // max(1, programs)), tiles // 8)
    even = 1 if s.screened else min(-(-_WAVES * wave // max(1, programs)), tiles // 64)
    splits = s.splits or (min(max(1, fill, even), _MOST_SPLITS) if processors > 1 else 1)
    step = max(1, s.block_sum // s.block_j) if tiles // splits * s.block_j >= s.block_sum else 1
    part = max(1, -(-tiles // splits // step) * step)
    return part * s.block_j, max(1, -(-tiles // part))
