"""C source -> a loaded kernel: the system's compiler, once per content, and ctypes."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tritonkeops import cache
from tritonkeops.backends.kernel import Layout
from tritonkeops.backends.pairs import Band, Lists, Pairs, Ranges
from tritonkeops.tile.ir import TileProgram
from tritonkeops.tile.schedule import CpuSchedule, vector_bytes

log = logging.getLogger("tritonkeops")
_HERE = Path(__file__).parent
_HEADERS = ("kernel.h", "math.h", "tiles.h", "pattern.h", "ranges.h", "band.h", "lists.h")
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class BuildError(RuntimeError):
    """The C compiler rejected a kernel, or a built kernel could not be loaded."""


def compiler() -> list[str] | None:
    """The command of the C compiler: `$CC`, else cc, gcc or clang; None where there is none."""
    wanted = shlex.split(os.environ.get("CC", ""))
    candidates = [wanted] if wanted else [["cc"], ["gcc"], ["clang"]]
    return next((command for command in candidates if shutil.which(command[0])), None)


def no_compiler() -> str:
    """Why `compiler` gives None."""
    wanted = os.environ.get("CC", "")
    return f"no C compiler found: $CC is {wanted!r}" if wanted else "no C compiler found ($CC, cc, gcc, clang)"


def identity() -> str:
    """What the compiler says of itself, and the CPU it compiles for; "" without a compiler."""
    return _identity(tuple(compiler() or ()))


@functools.cache
def _identity(command: tuple[str, ...]) -> str:
    if not command:
        return ""
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout.partition(
        "\n"
    )[0]
    return f"{version} {platform.machine()} {_cpu()}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return " ".join(sorted({line for line in lines if line.startswith(wanted)}))


def flags() -> list[str]:
    """Optimise for this CPU; never -ffast-math: Inf and NaN keep their meaning."""
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    width = ["-mprefer-vector-width=512"] if vector_bytes() == 64 else []
    return [
        "-O3", native, *width, "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
        "-fPIC", "-shared", f"-iquote{_HERE}",
    ]  # fmt: skip


@functools.cache
def _headers() -> str:
    return "\n".join((_HERE / name).read_text() for name in _HEADERS)


def build(source: str, program: TileProgram) -> CKernel:
    """Compile (or find) the kernel and load it. Raises BuildError with the compiler's own words."""
    command = compiler()
    if command is None:
        raise BuildError(no_compiler())
    options = [flag for flag in flags() if not flag.startswith("-iquote")]
    key = cache.digest(source, _headers(), identity(), " ".join([*command, *options]))
    with _locks[key]:
        path = cache.find(key) or _compile(command, source, key, program.title)
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError(f"cannot load {path}: {error}") from error
    return CKernel(library, program)


def _compile(command: list[str], source: str, key: str, title: str) -> Path:
    with tempfile.TemporaryDirectory(prefix="tritonkeops-") as folder:
        text, library = Path(folder, f"{key}.c"), Path(folder, "kernel.so")
        text.write_text(source)
        call = [*command, *flags(), str(text), "-o", str(library), "-lm", "-pthread"]
        log.debug("%s", shlex.join(call))
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode or not library.exists():
            kept = cache.keep(f"{key}-failed", source.encode(), ".c", f"failed: {title}")
            raise BuildError(f"the C compiler failed on {kept} ({title}):\n{done.stderr}\n{shlex.join(call)}")
        return cache.keep(key, library.read_bytes(), ".so", title)


class _Pattern(ctypes.Structure):
    """The struct Pattern of kernel.h."""

    _fields_ = [
        ("tiles", ctypes.c_int64), ("tile", ctypes.c_void_p), ("span", ctypes.c_void_p), ("low", ctypes.c_int64),
        ("high", ctypes.c_int64), ("start", ctypes.c_void_p), ("list", ctypes.c_void_p),
    ]  # fmt: skip


class _Call(ctypes.Structure):
    """The struct Call of kernel.h."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("stride", ctypes.c_void_p), ("offset", ctypes.c_void_p), ("batch", ctypes.c_int64),
        ("rows", ctypes.c_int64), ("cols", ctypes.c_int64), ("splits", ctypes.c_int64), ("value", ctypes.c_void_p),
        ("index", ctypes.c_void_p), ("pattern", ctypes.c_void_p),
    ]  # fmt: skip


class CKernel:
    """A loaded kernel."""

    def __init__(self, library: ctypes.CDLL, program: TileProgram) -> None:
        self.program, self._library = program, library
        self._run = library.run
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_int)

    def prepare(self, args: Sequence[Tensor], layout: Layout) -> CLaunch:
        """See Kernel."""
        return CLaunch(self, args, layout)


_THREAD_WORK = 1 << 19  # floating-point operations that pay for starting a thread, roughly 50 microseconds
_SPLIT_COLS = 2048  # rows j that a part of a split has at least


class CLaunch:
    """A kernel with its strides, batch offsets and sizes in C's arrays; only addresses change between calls."""

    def __init__(self, kernel: CKernel, args: Sequence[Tensor], layout: Layout) -> None:
        program = kernel.program
        self._run, self._layout = kernel._run, layout
        self._entries = math.prod(layout.batch)
        self._stride = (ctypes.c_int64 * len(args))(*map(_row_stride, args))
        self._offset = np.ascontiguousarray(_offsets(program, args, layout))
        self._kinds = [output.index for output in program.outputs]
        assert isinstance(program.schedule, CpuSchedule)
        self._lanes, self._parts = program.schedule.lanes, program.schedule.splits
        self._index = torch.int64 if program.schedule.index_bits == 64 else torch.int32
        self._pair_work = self._entries * (8 + 2 * sum(x.dim for x in program.inputs if x.axis))
        self._work = self._pair_work * layout.rows * layout.cols
        self._addresses = ctypes.c_void_p * len(args)

    def __call__(
        self, args: Sequence[Tensor], outputs: Sequence[Tensor], threads: int, pairs: Pairs | None = None
    ) -> None:
        """See Launch. Raises RuntimeError for tensors without memory, MemoryError where a few MB cannot be had."""
        work = self._work if pairs is None else self._pair_work * pairs.count
        threads = max(1, min(threads, work // _THREAD_WORK))
        addresses = [arg.data_ptr() for arg in args]
        if 0 in addresses and any(arg.numel() and not arg.data_ptr() for arg in args):
            raise RuntimeError("a tensor has no memory to read")
        data = self._addresses(*addresses)
        value = next((out.data_ptr() for out, index in zip(outputs, self._kinds, strict=True) if not index), None)
        index = next((out.data_ptr() for out, index in zip(outputs, self._kinds, strict=True) if index), None)
        call = _Call(
            ctypes.addressof(data), ctypes.addressof(self._stride), self._offset.ctypes.data, self._entries,
            self._layout.rows, self._layout.cols, self._splits(threads), value, index,
        )  # fmt: skip
        if pairs is not None:
            pattern = self._pattern(pairs)
            call.pattern = ctypes.addressof(pattern)
        if self._entries * self._layout.rows and self._run(ctypes.addressof(call), threads):
            raise MemoryError("no memory for the accumulators of a reduction")

    def _pattern(self, pairs: Pairs) -> _Pattern:
        if isinstance(pairs, Band):
            return _Pattern(low=pairs.low, high=pairs.high)
        if isinstance(pairs, Lists):
            return _Pattern(start=pairs.start.data_ptr(), list=pairs.columns_as(self._index).data_ptr())
        assert isinstance(pairs, Ranges)
        tiles = pairs.tiles(self._lanes)
        return _Pattern(tiles=len(tiles), tile=tiles.data_ptr(), span=pairs.spans.data_ptr())

    def _splits(self, threads: int) -> int:
        """Into how many parts to split j: what the schedule says, or so many that few rows still occupy all threads."""
        if self._parts:
            return max(1, min(self._parts, self._layout.cols))
        tiles = self._entries * -(-self._layout.rows // self._lanes)
        if threads == 1 or tiles >= 2 * threads:
            return 1
        return max(1, min(-(-2 * threads // max(tiles, 1)), self._layout.cols // _SPLIT_COLS))


def _row_stride(arg: Tensor) -> int:
    return arg.stride(-2) if arg.ndim >= 2 and arg.shape[-2] > 1 else 0


def _offsets(program: TileProgram, args: Sequence[Tensor], layout: Layout) -> np.ndarray:
    """Where each batch entry of each argument starts, in elements: (entries, arguments)."""
    columns = []
    for source, arg in zip(program.inputs, args, strict=True):
        tail = 2 if source.axis else 1
        sizes, strides = arg.shape[:-tail], arg.stride()[:-tail]
        steps = [stride if size > 1 else 0 for size, stride in zip(sizes, strides, strict=True)]
        start = np.zeros((1,) * len(layout.batch), dtype=np.int64)
        for axis, step in enumerate(reversed(steps)):
            size = layout.batch[-1 - axis]
            start = start + (np.arange(size) * step).reshape((size,) + (1,) * axis)
        columns.append(np.broadcast_to(start, layout.batch).reshape(-1))
    return np.stack(columns, axis=-1) if columns else np.zeros((math.prod(layout.batch), 1), dtype=np.int64)
