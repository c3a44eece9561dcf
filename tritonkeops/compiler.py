"""The pipeline, from a formula to a kernel. Start here.

text --parse--> AST --infer--> formula IR --differentiate, expand, simplify, factor--> formula IR
     --contract, choose schedule, lower--> tile IR --emit--> C or Triton --build--> kernel

Contractions (products of matrices) are for GPUs and long vectors; `Program.contracted` decides.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tritonkeops.backends.c.build import build, compiler, no_compiler
from tritonkeops.backends.c.emit import emit as emit_c
from tritonkeops.backends.kernel import Kernel
from tritonkeops.backends.reference import TorchKernel
from tritonkeops.backends.triton.emit import emit as emit_triton
from tritonkeops.errors import Diagnostic, FormulaError
from tritonkeops.formula.contracted import Contracted
from tritonkeops.formula.ir import Apply, IllTyped, Node, Reduction, variables
from tritonkeops.formula.rewrite import rewrite
from tritonkeops.formula.text import show, spell
from tritonkeops.frontend import ast
from tritonkeops.frontend.infer import Typed, infer
from tritonkeops.operators.elementwise import Subtract
from tritonkeops.passes.base2 import in_base_2
from tritonkeops.passes.contract import contract
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.factor import factor
from tritonkeops.passes.simplify import simplify
from tritonkeops.tile.accumulate import sums_by_products
from tritonkeops.tile.ir import TileProgram
from tritonkeops.tile.ir import show as show_tile
from tritonkeops.tile.lower import lower
from tritonkeops.tile.schedule import SHARED, GpuSchedule, Schedule, choose_cpu, choose_dot, choose_gpu

if TYPE_CHECKING:
    from tritonkeops.backends.triton.build import TritonKernel

log = logging.getLogger("tritonkeops")


@dataclass(frozen=True)
class Target:
    """What a formula is compiled for: back end ("c" or "triton"), dtypes of data and accumulators, sum scheme, and the
    class of sizes.

    `few_rows` > 0: at most so many rows i; `long`: indices that 31 bits do not hold; `batch_dims`: batch dimensions
    left when neighbours are joined (Triton only); `pattern`: which pairs count, "ranges", "band" or "lists" of them, or
    "" for all; `precision`: how products of float32 may be computed, "direct" for no contractions at all; `shared`:
    bytes of shared memory that a block may have.
    """

    dtype: str = "float32"
    dtype_acc: str = "float32"
    sum_scheme: str = "block_sum"
    few_rows: int = 0
    long: bool = False
    backend: str = "c"
    batch_dims: int = 0
    pattern: str = ""
    precision: str = "highest"
    shared: int = SHARED

    @property
    def arithmetic(self) -> str:
        """The dtype that formulas are computed in: float32 for half precision."""
        return "float64" if self.dtype == "float64" else "float32"


class Program:
    """A formula through the front end and the formula passes; kernels are made of it per target.

    `typed` holds what was written, `derived` the same without gradients, `reduction` what is computed. Raises
    FormulaError.
    """

    def __init__(
        self, formula: str, aliases: Sequence[str], reduction_op: str, axis: int, k: int, formula2: str | None
    ) -> None:
        self._settle(infer(formula, aliases, reduction_op, axis, k, formula2))

    @classmethod
    def of(cls, typed: Typed) -> Program:
        """The program of a reduction that is typed already. Raises FormulaError."""
        program = cls.__new__(cls)
        program._settle(typed)
        return program

    def _settle(self, typed: Typed) -> None:
        self.typed, self.variables = typed, typed.variables
        self.derived: Reduction = _derived(typed)
        self.reduction: Reduction = _passes(self.derived)
        self._kernels: dict[tuple[Target, Schedule | None], Kernel] = {}
        self._lock = threading.Lock()
        _publish("ast", "\n".join(map(ast.show, self.typed.trees)))
        _publish("formula", show(self.typed.root) + "\n// simplified\n" + show(self.reduction))

    def tile(self, target: Target, schedule: Schedule | None = None) -> TileProgram:
        """The tile program for a target, on the schedule given or chosen."""
        node = self.reduction
        if target.backend == "triton" and target.arithmetic == "float32":
            node = in_base_2(node)
        if schedule is None or schedule.form == "dot":
            contracted = self.contracted(target)
            by_products = contracted and (schedule or _choose_dot(node, contracted, target))
            if contracted and by_products:
                title = spell(self.typed.root)
                program = lower(node, by_products, self.variables, title, target.pattern, contracted)
                if sums_by_products(program):
                    return program
        if target.sum_scheme == "kahan_scheme" and node.op.compensated:
            node = Reduction(node.op.compensated, node.args, node.axis, node.k, node.result)
        choose = choose_gpu if target.backend == "triton" else choose_cpu
        itemsize = 8 if target.arithmetic == "float64" else 4
        chosen = schedule or choose(
            node, itemsize, target.sum_scheme, target.few_rows, target.long, pattern=target.pattern
        )
        return lower(node, chosen, self.variables, spell(self.typed.root), target.pattern)

    def contracted(self, target: Target) -> Contracted | None:
        """The reduction by contractions, where a target has a use for them."""
        able = target.backend == "triton" and target.dtype_acc == "float32" and not target.pattern
        if not able or target.precision == "direct" or target.sum_scheme == "kahan_scheme":
            return None
        if target.dtype == "float32":
            return contract(in_base_2(self.reduction), self.variables, loose=target.precision != "highest")
        found = contract(in_base_2(self.reduction), self.variables, loose=True)
        return found and _uncentered(found)

    def source(self, target: Target, schedule: Schedule | None = None) -> str:
        """The C or Triton text for a target."""
        program = self.tile(target, schedule)
        if target.backend == "triton":
            return emit_triton(program, target.dtype, target.dtype_acc, target.batch_dims).text
        return emit_c(program, target.dtype, target.dtype_acc)

    def kernel(self, target: Target, schedule: Schedule | None = None) -> Kernel:
        """The kernel for a target, compiled at the first request. Many threads may ask."""
        key = (target, schedule)
        kernel = self._kernels.get(key)
        if kernel is None:
            with self._lock:
                kernel = self._kernels.get(key) or self._make(target, schedule)
                self._kernels[key] = kernel
        return kernel

    def _make(self, target: Target, schedule: Schedule | None) -> Kernel:
        if target.backend == "triton":
            return self.triton_kernel(target, schedule)
        if compiler() is None:
            _warn_no_compiler()
            return self.reference(target)
        program = self.tile(target, schedule)
        source = emit_c(program, target.dtype, target.dtype_acc)
        _publish("tile", show_tile(program))
        _publish("source", source)
        return build(source, program)

    def triton_kernel(self, target: Target, schedule: Schedule | None = None) -> TritonKernel:
        """The Triton module for a target; its kernels are compiled per device, at the first call there.

        Raises ModuleNotFoundError without Triton.
        """
        try:
            from tritonkeops.backends.triton.build import Center, TritonKernel  # takes 0.3 s, and CPUs do not need it
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"reductions on GPUs need Triton ({error}): pip install triton") from None
        program = self.tile(target, schedule)
        # Contraction to multiply-adds would change what compensated sums compute as lost.
        fusion = target.sum_scheme != "kahan_scheme"
        contracted = self.contracted(target) if program.sizes else None
        fallback = self.tile(replace(target, precision="direct")) if contracted else None
        point = contracted.center_of if contracted and contracted.center else None
        center = Center(point, tuple(variables(point))) if point else None
        kernel = TritonKernel(
            program, target.dtype, target.dtype_acc, target.batch_dims, fusion, fallback=fallback, center=center
        )
        _publish("tile", show_tile(program))
        _publish("source", kernel.emitted.text, "py")
        return kernel

    def reference(self, target: Target) -> Kernel:
        """The same reduction evaluated by torch."""
        return TorchKernel(self.reduction, self.variables, getattr(torch, target.dtype_acc))

    def __getstate__(self) -> dict[str, object]:
        names = ("typed", "variables", "derived", "reduction")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _kernels={}, _lock=threading.Lock())


def _derived(typed: Typed) -> Reduction:
    """What was written, with gradients replaced by what they stand for."""
    try:
        node = differentiate(typed.root)
    except IllTyped as error:
        raise FormulaError([Diagnostic(typed.trees[0].span if typed.trees else None, str(error))]) from None
    assert isinstance(node, Reduction)
    return node


def _passes(node: Reduction) -> Reduction:
    """Simplify, expand, factor: what is left is a reduction of primitive operators."""
    simple = simplify(expand(simplify(node)))
    assert isinstance(simple, Reduction)
    return factor(simple)


def _uncentered(contracted: Contracted) -> Contracted:
    """Without the center: numbers of half precision are factors as they are, their differences would not be."""
    center = contracted.center

    def rule(node: Node) -> Node:
        return node.args[0] if isinstance(node, Apply) and node.op is Subtract and node.args[1] is center else node

    node, sizes = rewrite(contracted.node, rule), [rewrite(size, rule) for size in contracted.sizes]
    assert isinstance(node, Reduction)
    return Contracted(node, None, contracted.center_of, (sizes[0], sizes[1]))


def _choose_dot(node: Reduction, contracted: Contracted, target: Target) -> GpuSchedule | None:
    return choose_dot(
        node, contracted, target.dtype, target.precision, target.sum_scheme, target.few_rows, target.long, target.shared
    )


@functools.cache
def _warn_no_compiler() -> None:
    log.warning("%s: reductions run on the torch back end, many times slower", no_compiler())


# Seeing inside --------------------------------------------------------------------------------------------------

_PUBLISHED = ("ast", "formula", "tile", "source", "all")
_published = iter(range(1, sys.maxsize))


def _publish(stage: str, text: str, language: str = "c") -> None:
    """Print a stage that TRITONKEOPS_DEBUG names; write every stage to the folder TRITONKEOPS_DUMP."""
    wanted = _wanted(os.environ.get("TRITONKEOPS_DEBUG", ""))
    if stage in wanted or "all" in wanted:
        print(f"// {stage}\n{text}", file=sys.stderr)
    folder = os.environ.get("TRITONKEOPS_DUMP")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        suffix = language if stage == "source" else "txt"
        Path(folder, f"{next(_published):04d}-{stage}.{suffix}").write_text(text)


@functools.cache
def _wanted(listed: str) -> frozenset[str]:
    """The words of a list; one that names no stage is warned of, once."""
    words = frozenset(word.strip() for word in listed.split(","))
    if not words <= {*_PUBLISHED, ""}:
        log.warning("TRITONKEOPS_DEBUG=%s: expected some of %s", listed, ", ".join(_PUBLISHED))
    return words


MACHINE_STAGES = ("ttir", "ttgir", "llir", "ptx", "sass", "amdgcn")
_DEVICES = {"amdgcn": "hip:gfx942"}
STAGES = ("ast", "formula", "simplified", "contracted", "tile", "c", "triton", *MACHINE_STAGES)


def explain(program: Program, stage: str, target: Target, device: str | None = None) -> str:
    """The text of a stage: "ast", "formula" (as written), "simplified", "contracted" (for tensor cores), "tile", "c" or
    "triton" ("source" is the one of the target's back end), and what Triton makes of the main kernel for a device that
    need not be there, such as "cuda:90" (the default): "ttir", "ttgir", "llir", then "ptx" and "sass", or "amdgcn".

    Raises ValueError for any other stage or device.
    """
    stages = {
        "ast": lambda: "\n".join(map(ast.show, program.typed.trees)) + "\n",
        "formula": lambda: show(program.typed.root),
        "simplified": lambda: show(program.reduction),
        "contracted": lambda: _contracted_text(program, replace(target, backend="triton")),
        "tile": lambda: show_tile(program.tile(target)),
        "c": lambda: program.source(replace(target, backend="c")),
        "triton": lambda: program.source(replace(target, backend="triton")),
        "source": lambda: program.source(target),
    }
    if stage in MACHINE_STAGES:
        device = device or _DEVICES.get(stage, "cuda:90")
        return _machine_text(program, stage, replace(target, backend="triton"), device)
    if stage not in stages:
        raise ValueError(f"explain: expected one of {', '.join(STAGES)}; got {stage!r}")
    return stages[stage]()


def _contracted_text(program: Program, target: Target) -> str:
    contracted = program.contracted(target)
    if contracted is None:
        return "// no contractions\n"
    point = contracted.center_of if contracted.center else None
    center = f"// center: near {spell(point)}\n" if point else ""
    return center + show(contracted.node)


def _machine_text(program: Program, stage: str, target: Target, device: str) -> str:
    from tritonkeops.backends.triton.offline import assembly  # imports Triton
    from tritonkeops.backends.triton.predict import DEVICES  # likewise

    known = DEVICES.get(device)
    kernel = program.triton_kernel(replace(target, shared=known.block_shared) if known else target)
    return assembly(kernel, stage, device)
