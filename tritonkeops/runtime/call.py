"""What happens at a call: arguments are checked against the formula, laid out, and handed to a kernel.

All checks of shapes, dtypes and devices are made once per signature of the arguments; a call with a known signature
looks it up and runs.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tritonkeops.backends.kernel import Launch, Layout, collapse
from tritonkeops.backends.pairs import Pairs
from tritonkeops.compiler import Program, Target
from tritonkeops.formula.ir import Var
from tritonkeops.runtime import tuning
from tritonkeops.runtime.pattern import Pattern
from tritonkeops.tile.schedule import SHARED

_BACKENDS = (
    "auto",
    "CPU",
    "GPU",
    "GPU_1D",
    "GPU_2D",
    "GPU_1D_device",
    "GPU_1D_host",
    "GPU_2D_device",
    "GPU_2D_host",
)
DTYPES = ("float32", "float64", "float16", "bfloat16")
_FULL = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
GPUS = ("cuda", "xpu")
_MOST_PLANS = 256
_FEW_ROWS = {"c": (16,), "triton": (1, 16, 64, 256)}
_INT32 = 2**31 - 2**20  # sizes are rounded up to whole tiles


@dataclass(frozen=True)
class Accuracy:
    """How sums are accumulated, KeOps' `dtype_acc` and `sum_scheme`, and the `precision` of products of float32: as the
    constructor takes them."""

    dtype_acc: str
    sum_scheme: str
    precision: str = "auto"

    def of_products(self) -> str:
        """The precision that counts now: "auto" is torch's own setting."""
        return torch.get_float32_matmul_precision() if self.precision == "auto" else self.precision

    def target(self, dtype: str, layout: Layout, backend: str = "c", dim: int = 1, batch_dims: int = 0) -> Target:
        """The target for data of a dtype in a layout; the result has `dim` components.

        Raises ValueError where dtype_acc is narrower than the arithmetic, which is float32 for half precision.
        """
        arithmetic = "float64" if dtype == "float64" else "float32"
        acc = arithmetic if self.dtype_acc == "auto" else self.dtype_acc
        if (arithmetic, acc) == ("float64", "float32") or acc == "float16":
            raise ValueError(f"dtype_acc={acc!r}: expected at least the precision of the data, {arithmetic}")
        few_rows = next((few for few in _FEW_ROWS[backend] if 0 < layout.rows <= few), 0)
        long = layout.cols >= _INT32 or (backend == "triton" and layout.rows * dim >= _INT32)
        precision = self.of_products() if backend == "triton" else "highest"
        return Target(dtype, acc, self.sum_scheme, few_rows, long, backend, batch_dims, precision=precision)


def accuracy(
    program: Program, dtype_acc: str, use_double_acc: bool, sum_scheme: str, precision: str = "auto"
) -> Accuracy:
    """Check the constructor's accuracy options against the reduction; raises ValueError, TypeError."""
    op = program.reduction.op
    if not isinstance(use_double_acc, bool):
        raise TypeError(f"use_double_acc: expected a bool, got {use_double_acc!r}")
    if use_double_acc and dtype_acc != "auto":
        raise ValueError("give dtype_acc or use_double_acc, not both")
    dtype_acc = "float64" if use_double_acc else dtype_acc
    _one_of("dtype_acc", dtype_acc, ("auto", "float16", "float32", "float64"))
    _one_of("sum_scheme", sum_scheme, ("auto", "direct_sum", "block_sum", "kahan_scheme"))
    _one_of("precision", precision, ("auto", "direct", "highest", "high", "medium"))
    if dtype_acc != "auto" and not op.float_sum:
        raise ValueError(f"dtype_acc={dtype_acc!r}: {op.name} does not sum floats, expected 'auto'")
    if sum_scheme in ("block_sum", "kahan_scheme") and not op.float_sum:
        raise ValueError(f"sum_scheme={sum_scheme!r}: {op.name} does not sum floats, expected 'auto' or 'direct_sum'")
    if sum_scheme == "auto":
        sum_scheme = "block_sum" if op.float_sum else "direct_sum"
    return Accuracy(dtype_acc, sum_scheme, precision)


def _one_of(name: str, value: str, expected: Sequence[str]) -> None:
    if value not in expected:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, expected))}")


def check_options(backend: str, device_id: int) -> None:
    """Check the call's options; raises ValueError."""
    _one_of("backend", backend, _BACKENDS)
    if not isinstance(device_id, int) or device_id < -1:
        raise ValueError(f"device_id={device_id!r}: expected -1 or the number of a device")


@dataclass(frozen=True)
class Plan:
    """A checked signature: the launch, which arguments have to be copied first, and the outputs' shape and dtypes.

    `extents` tells how many bytes each argument spans, as it is given.
    """

    launch: Launch
    layout: Layout
    reshape: tuple[tuple[int, ...] | None, ...]
    copies: tuple[int, ...]
    shape: tuple[int, ...]
    outputs: tuple[torch.dtype, ...]
    extents: tuple[int, ...]


class Caller:
    """A program and its plans. Safe to share among threads: plans are added, never changed."""

    def __init__(self, program: Program, how: Accuracy) -> None:
        self.program, self.how = program, how
        self._plans: dict[tuple[object, ...], Plan] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"program": self.program, "how": self.how, "_plans": {}}

    def __call__(
        self,
        args: Sequence[Tensor],
        out: Tensor | tuple[Tensor, ...] | None = None,
        backend: str = "auto",
        pattern: Pattern | None = None,
    ) -> list[Tensor]:
        """The outputs, each (*batch, M, dim), or (*batch, M, K[, D]) for K-reductions; with a pattern, over its pairs
        in each batch entry."""
        try:
            how = backend if pattern is None else (backend, pattern.form(args[0].device))
            key = (how, self.how.of_products(), *[(x.shape, x.stride(), x.dtype, x.device, x.is_neg()) for x in args])
            plan = self._plans.get(key)
        except (AttributeError, IndexError, RuntimeError):  # no tensor, or one without strides: the plan says so
            plan, key = None, ()
        if plan is None:
            plan = self._plan(args, backend, pattern)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        pairs = None if pattern is None else self._pairs(plan, pattern, args[0].device)
        try:
            outputs = (
                [torch.empty(plan.shape, dtype=dtype, device=args[0].device) for dtype in plan.outputs]
                if out is None
                else self._given(plan, out, args)
            )
            if plan.copies or any(plan.reshape):
                args = [x if shape is None else x.reshape(shape) for x, shape in zip(args, plan.reshape, strict=True)]
                args = [x.resolve_neg().contiguous() if n in plan.copies else x for n, x in enumerate(args)]
            plan.launch(args, outputs, torch.get_num_threads(), pairs)
        except RuntimeError:
            _check_memory(self.program.variables, args)
            raise
        if out is not None:  # autograd and patterns tell changes of tensors by their versions
            torch.autograd.graph.increment_version([x for x in outputs if not x.is_inference()])
        return outputs

    def on(
        self,
        args: Sequence[Tensor],
        out: Tensor | tuple[Tensor, ...] | None,
        backend: str,
        device_id: int,
        pattern: Pattern | None = None,
    ) -> list[Tensor]:
        """The outputs, where the arguments are; with a GPU's `backend`, CPU tensors go there and come back."""
        device = _elsewhere(args, backend, device_id)
        if device is None:
            return self(args, out, backend, pattern)
        there = [x.to(device) if isinstance(x, Tensor) else x for x in args]
        results = [x.cpu() for x in self(there, None, backend, pattern and pattern.to(device))]
        if out is None:
            return results
        outputs = list(out) if isinstance(out, (tuple, list)) else [out]
        if [(x.shape, x.dtype) for x in outputs] != [(x.shape, x.dtype) for x in results]:
            wanted = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in results)
            raise ValueError(f"out: expected {wanted}, got {', '.join(f'{x.dtype} {tuple(x.shape)}' for x in outputs)}")
        for output, result in zip(outputs, results, strict=True):
            output.copy_(result)
        return outputs

    def _pairs(self, plan: Plan, pattern: Pattern, device: torch.device) -> Pairs:
        return pattern.pairs(self.program.reduction.axis, plan.layout.rows, plan.layout.cols, device)

    def _given(self, plan: Plan, out: Tensor | tuple[Tensor, ...], args: Sequence[Tensor]) -> list[Tensor]:
        device = args[0].device
        given = list(out) if isinstance(out, (tuple, list)) else [out]
        if len(given) != len(plan.outputs):
            raise ValueError(f"out: expected {len(plan.outputs)} tensors, got {len(given)}")
        for tensor, dtype in zip(given, plan.outputs, strict=True):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"out: expected a tensor, got {type(tensor).__name__}")
            _check_dense("out", tensor)
            found = (tuple(tensor.shape), tensor.dtype, tensor.device, tensor.is_contiguous())
            if found != (plan.shape, dtype, device, True):
                raise ValueError(
                    f"out: expected a contiguous {dtype} tensor of shape {plan.shape} on {device}, got "
                    f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
                    f"{'' if tensor.is_contiguous() else ', not contiguous'}"
                )
            if tensor.requires_grad and torch.is_grad_enabled():
                raise ValueError("out: expected a tensor that does not require gradients")
            self._check_apart(tensor, args, plan.extents)
        return given

    def _check_apart(self, out: Tensor, args: Sequence[Tensor], extents: Sequence[int]) -> None:
        """A kernel reads its arguments while it writes, so they may not share memory with the result."""
        start = _address("out", out)
        stop = start + out.nbytes
        for var, arg, extent in zip(self.program.variables, args, extents, strict=True):
            first = arg.data_ptr()
            if first < stop and start < first + extent:
                raise ValueError(f"out: expected memory of its own, got some of {describe(var)}'s")

    def _plan(self, args: Sequence[Tensor], backend: str, pattern: Pattern | None) -> Plan:
        variables = self.program.variables
        engine = _check_tensors(variables, args, backend)
        _check_memory(variables, args)
        extents = tuple(map(_extent, args))
        reshape, args = _without_ones(variables, args)
        layout = lay_out(variables, args, self.program.reduction.axis)
        copies = tuple(n for n, x in enumerate(args) if x.is_neg() or (x.shape[-1] > 1 and x.stride(-1) != 1))
        args = [x.resolve_neg().contiguous() if n in copies else x for n, x in enumerate(args)]
        dtype = str(args[0].dtype).removeprefix("torch.")
        form = pattern.form(args[0].device) if pattern else ""
        target = self.how.target(dtype, layout)
        if engine == "triton":
            sizes, _ = collapse(layout, args, [2 if var.axes else 1 for var in variables])
            target = self.how.target(dtype, layout, "triton", self.program.reduction.dim, len(sizes))
            target = replace(target, shared=shared_memory(args[0].device))
            if self.how.precision == "auto" and args[0].device.type != "cpu" and _is_short(variables, layout):
                target = replace(target, precision="direct")
        launch = tuning.launch(self.program, replace(target, pattern=form), args, layout)
        return Plan(launch, layout, tuple(reshape), copies, self._shape(layout), self._dtypes(args[0].dtype), extents)

    def empty(self, args: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like the outputs, of arguments that need no memory."""
        variables = self.program.variables
        _check_tensors(variables, args, "auto")
        _, settled = _without_ones(variables, args)
        shape = self._shape(lay_out(variables, settled, self.program.reduction.axis))
        return [args[0].new_empty(shape, dtype=dtype) for dtype in self._dtypes(args[0].dtype)]

    def _dtypes(self, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
        return tuple(torch.int64 if kind == "index" else dtype for kind in self.program.reduction.op.outputs)

    def _shape(self, layout: Layout) -> tuple[int, ...]:
        """That of each output: components last, K of the K-reductions before them or in their place."""
        node = self.program.reduction
        inner = node.dim // node.k if node.op.takes_k else node.dim
        neighbours = (node.k,) if node.op.takes_k else ()
        components = (inner,) if inner > 1 or not neighbours else ()
        return (*layout.batch, layout.rows, *neighbours, *components)


def _elsewhere(args: Sequence[Tensor], backend: str, device_id: int) -> torch.device | None:
    """The GPU that CPU tensors are to be sent to, if any. Raises ValueError, RuntimeError."""
    places = {x.device for x in args if isinstance(x, Tensor)}
    for place in places:
        if place.type != "cpu" and device_id not in (-1, place.index):
            raise ValueError(f"device_id={device_id}: expected the tensors' own device, {place}")
    if not backend.startswith("GPU") or any(place.type != "cpu" for place in places):
        return None
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    kind = next((kind for kind in GPUS if getattr(torch, kind).is_available()), None)
    if kind is None:
        raise RuntimeError(f"backend={backend!r}: torch finds no GPU; use 'auto' or 'CPU'")
    return torch.device(kind, device_id if device_id >= 0 else torch.get_device_module(kind).current_device())


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of it that a block may have; the interpreter takes any tile."""
    if device.type == "cpu":
        return SHARED
    properties = torch.get_device_module(device.type).get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 1 << 16))


_SHORT = 1 << 28  # pairs times components: less than 50 microseconds of direct evaluation on a large GPU


def _is_short(variables: Sequence[Var], layout: Layout) -> bool:
    """Whether direct evaluation takes no longer than starting the kernels that products need."""
    pairs = math.prod(layout.batch) * layout.rows * layout.cols
    return pairs * max((var.dim for var in variables), default=1) < _SHORT


def describe(var: Var) -> str:
    """A variable as users declare it."""
    return f"{var.name} = {var.category.keyword}({var.dim})"


def engine_of(var: Var, arg: Tensor, backend: str) -> str:
    """The back end, "c" or "triton", for tensors on a device. Raises ValueError, NotImplementedError."""
    kind = arg.device.type
    if kind not in ("cpu", *GPUS):
        raise NotImplementedError(f"{describe(var)} is on {arg.device}: expected a CPU, CUDA, ROCm or XPU tensor")
    if kind != "cpu" and backend == "CPU":
        raise ValueError(f"{describe(var)} is on {arg.device}: expected a CPU tensor for backend='CPU'")
    return "c" if kind == "cpu" and not backend.startswith("GPU") else "triton"


def _check_tensors(variables: Sequence[Var], args: Sequence[Tensor], backend: str) -> str:
    """Check the arguments one by one; returns the back end that serves them."""
    listed = ", ".join(map(describe, variables))
    if len(args) != len(variables):
        raise ValueError(f"expected {len(variables)} tensors ({listed}), got {len(args)}")
    if not args:
        raise ValueError("a formula without variables has no dtype to compute in: declare at least one")
    for var, arg in zip(variables, args, strict=True):
        if not isinstance(arg, Tensor):
            raise TypeError(f"{describe(var)}: expected a tensor, got {type(arg).__name__}")
        _check_dense(describe(var), arg)
        if arg.dtype not in (*_FULL, *HALVES):
            raise TypeError(f"{describe(var)}: expected float32 or float64, got {arg.dtype}")
        if arg.dtype != args[0].dtype:
            raise TypeError(
                f"{describe(var)} is {arg.dtype} and {describe(variables[0])} is {args[0].dtype}: expected one dtype"
            )
        if arg.device != args[0].device:
            raise ValueError(
                f"{describe(var)} is on {arg.device} and {describe(variables[0])} on {args[0].device}: "
                "expected one device"
            )
        engine = engine_of(var, arg, backend)
        if arg.dtype in HALVES and engine == "c":
            raise NotImplementedError(f"{describe(var)}: expected float32 or float64 on the CPU, got {arg.dtype}")
        least = 2 if var.axes else 0
        if arg.ndim < least or (arg.shape[-1] if arg.ndim else 1) != var.dim:
            rows = {"Vi": "(..., M, ", "Vj": "(..., N, ", "Pm": "(..., "}[var.category.keyword]
            raise ValueError(f"{describe(var)}: expected shape {rows}{var.dim}), got {tuple(arg.shape)}")
    return engine


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "a nested one" if tensor.is_nested else f"one with layout {tensor.layout}"
        raise TypeError(f"{name}: expected a dense tensor, got {kind}")


def _check_memory(variables: Sequence[Var], args: Sequence[Tensor]) -> None:
    for var, arg in zip(variables, args, strict=True):
        _address(describe(var), arg)


def _address(name: str, tensor: Tensor) -> int:
    """Where a tensor's memory is; that of an empty one may be nowhere. Raises TypeError."""
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        address = 0
    if not address and tensor.numel():
        raise TypeError(
            f"{name}: expected a tensor with memory, got one without: "
            "a fake one, or one inside of vmap or another transform of torch.func"
        )
    return address


def _extent(arg: Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    steps = sum((size - 1) * stride for size, stride in zip(arg.shape, arg.stride(), strict=True))
    return (steps + 1) * arg.element_size() if arg.numel() else 0


def parameter_shape(shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """A parameter's shape without the ones that no batch asks for, such as those of (1, 1, dim) beside (M, dim).

    `batch` is the number of batch dimensions of the variables; a number, 0-D, is a vector of one component.

    A parameter that differs among batch entries keeps its batch dimensions.
    """
    shape = tuple(shape) or (1,)
    return shape[max(0, len(shape) - batch - 1) :] if all(size == 1 for size in shape[:-1]) else shape


def _without_ones(
    variables: Sequence[Var], args: Sequence[Tensor]
) -> tuple[list[tuple[int, ...] | None], list[Tensor]]:
    """The arguments with parameters in their shape, and the shapes that had to be changed."""
    batch = max((x.ndim - 2 for v, x in zip(variables, args, strict=True) if v.axes), default=0)
    wanted = [x.shape if v.axes else parameter_shape(x.shape, batch) for v, x in zip(variables, args, strict=True)]
    changed = [None if shape == x.shape else shape for shape, x in zip(wanted, args, strict=True)]
    return changed, [x if shape is None else x.reshape(shape) for shape, x in zip(changed, args, strict=True)]


def lay_out(variables: Sequence[Var], args: Sequence[Tensor], axis: int) -> Layout:
    """Batch dimensions, M and N of a call; raises ValueError naming the arguments that disagree."""
    lengths: dict[str, tuple[int, Var]] = {}
    batch: list[int] = []
    owners: dict[int, Var] = {}
    for var, arg in zip(variables, args, strict=True):
        for letter in var.axes:
            known, owner = lengths.setdefault(letter, (arg.shape[-2], var))
            if known != arg.shape[-2]:
                raise ValueError(
                    f"{describe(owner)} has {known} rows and {describe(var)} has {arg.shape[-2]}: "
                    f"variables indexed by {letter} have one length"
                )
        own = arg.shape[: -2 if var.axes else -1]
        batch = [1] * (len(own) - len(batch)) + batch
        for n in range(1, len(own) + 1):
            if own[-n] != 1 and batch[-n] not in (1, own[-n]):
                raise ValueError(
                    f"{describe(var)} has batch dimensions {tuple(own)}, {describe(owners[n])} has "
                    f"{batch[-n]} in dimension -{n} of its own: they do not broadcast"
                )
            if own[-n] != 1:
                batch[-n], owners[n] = own[-n], var
    rows, cols = (lengths.get(letter, (1, None))[0] for letter in ("ij" if axis == 1 else "ji"))
    return Layout(tuple(batch), rows, cols)
