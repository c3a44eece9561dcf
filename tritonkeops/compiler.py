"""The pipeline, from a formula to a kernel. Start here.

text --parse--> AST --infer--> formula IR --differentiate, expand, simplify--> formula IR
     --choose schedule, lower--> tile IR --emit--> C --build--> kernel
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tritonkeops.backends.c.build import build, compiler
from tritonkeops.backends.c.emit import emit
from tritonkeops.backends.kernel import Kernel
from tritonkeops.backends.reference import TorchKernel
from tritonkeops.errors import Diagnostic, FormulaError
from tritonkeops.formula.ir import IllTyped, Node, Reduction, Var
from tritonkeops.formula.text import show, spell
from tritonkeops.frontend import ast
from tritonkeops.frontend.infer import Typed, infer
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.simplify import simplify
from tritonkeops.tile.ir import TileProgram
from tritonkeops.tile.ir import show as show_tile
from tritonkeops.tile.lower import lower
from tritonkeops.tile.schedule import Schedule, choose

log = logging.getLogger("tritonkeops")


@dataclass(frozen=True)
class Target:
    """What a formula is compiled for: dtypes of data and accumulators, sum scheme, and the class of sizes.

    `few_rows` > 0: at most so many rows i; `long`: more rows j than 31 bits count.
    """

    dtype: str = "float32"
    dtype_acc: str = "float32"
    sum_scheme: str = "block_sum"
    few_rows: int = 0
    long: bool = False


class Program:
    """A formula through the front end and the formula passes; kernels are made of it per target.

    `typed` holds what was written, `reduction` what is computed. Raises FormulaError.
    """

    def __init__(
        self, formula: str, aliases: Sequence[str], reduction_op: str, axis: int, k: int, formula2: str | None
    ) -> None:
        self.typed: Typed = infer(formula, aliases, reduction_op, axis, k, formula2)
        self.variables: tuple[Var, ...] = self.typed.variables
        self.reduction: Reduction = _passes(self.typed)
        self._kernels: dict[tuple[Target, Schedule | None], Kernel] = {}
        self._lock = threading.Lock()
        _publish("ast", "\n".join(map(ast.show, self.typed.trees)))
        _publish("formula", show(self.typed.root) + "\n// simplified\n" + show(self.reduction))

    def tile(self, target: Target, schedule: Schedule | None = None) -> TileProgram:
        """The tile program for a target, on the schedule given or chosen."""
        node = self.reduction
        if target.sum_scheme == "kahan_scheme" and node.op.compensated:
            node = Reduction(node.op.compensated, node.args, node.axis)
        chosen = schedule or choose(node, _itemsize(target), target.sum_scheme, target.few_rows, target.long)
        return lower(node, chosen, self.variables, title=spell(self.typed.root))

    def source(self, target: Target, schedule: Schedule | None = None) -> str:
        """The C text for a target."""
        return emit(self.tile(target, schedule), target.dtype, target.dtype_acc)

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
        if compiler() is None:
            _warn_no_compiler()
            return self.reference(target)
        program = self.tile(target, schedule)
        source = emit(program, target.dtype, target.dtype_acc)
        _publish("tile", show_tile(program))
        _publish("source", source)
        return build(source, program)

    def reference(self, target: Target) -> Kernel:
        """The same reduction evaluated by torch."""
        return TorchKernel(self.reduction, self.variables, getattr(torch, target.dtype_acc))

    def __getstate__(self) -> dict[str, object]:
        return {"typed": self.typed, "variables": self.variables, "reduction": self.reduction}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _kernels={}, _lock=threading.Lock())


def _passes(typed: Typed) -> Reduction:
    """Differentiate, expand, simplify: what is left is a reduction of primitive operators."""
    try:
        node: Node = differentiate(typed.root)
    except IllTyped as error:
        raise FormulaError([Diagnostic(typed.trees[0].span, str(error))]) from None
    node = simplify(expand(simplify(node)))
    assert isinstance(node, Reduction)
    return node


@functools.cache
def _warn_no_compiler() -> None:
    log.warning("no C compiler found ($CC, cc, gcc, clang): reductions run on the torch back end, many times slower")


def _itemsize(target: Target) -> int:
    return 8 if target.dtype == "float64" else 4


# Seeing inside --------------------------------------------------------------------------------------------------

STAGES = ("ast", "formula", "tile", "source")
_published = iter(range(1, sys.maxsize))


def _publish(stage: str, text: str) -> None:
    """Print a stage that TRITONKEOPS_DEBUG names; write every stage to the folder TRITONKEOPS_DUMP."""
    wanted = {word.strip() for word in os.environ.get("TRITONKEOPS_DEBUG", "").split(",")}
    if stage in wanted or "all" in wanted:
        print(f"// {stage}\n{text}", file=sys.stderr)
    folder = os.environ.get("TRITONKEOPS_DUMP")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        suffix = {"source": "c"}.get(stage, "txt")
        Path(folder, f"{next(_published):04d}-{stage}.{suffix}").write_text(text)


def explain(program: Program, stage: str, target: Target) -> str:
    """The text of a stage: "ast", "formula" (as written), "simplified", "tile", "c" (or "source").

    Raises ValueError for any other stage.
    """
    stages = {
        "ast": lambda: "\n".join(map(ast.show, program.typed.trees)) + "\n",
        "formula": lambda: show(program.typed.root),
        "simplified": lambda: show(program.reduction),
        "tile": lambda: show_tile(program.tile(target)),
        "c": lambda: program.source(target),
        "source": lambda: program.source(target),
    }
    if stage not in stages:
        raise ValueError(f"explain: expected one of {', '.join(stages)}; got {stage!r}")
    return stages[stage]()
