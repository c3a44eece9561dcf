"""The constructor that `tritonkeops.torch.Genred` and `tritonkeops.numpy.Genred` share: PyKeOps' signature."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

from tritonkeops.backends.kernel import Layout
from tritonkeops.compiler import Program, explain
from tritonkeops.runtime.call import DTYPES, Caller, accuracy, check_options
from tritonkeops.runtime.reducer import Reducer, Where


class GenredBase:
    """A generic reduction of a formula.

    Args:
        formula: a formula of the KeOps language, such as "Exp(-SqDist(x,y)) * b"; it may hold its own reduction,
            "Sum_Reduction(Exp(-SqDist(x,y)) * b, 1)", where 1 reduces over j and 0 over i.
        aliases: its variables in the order of the call's arguments: "x = Vi(3)", "y = Vj(3)", "p = Pm(1)", or with
            explicit positions, "x = Vi(0, 3)".
        reduction_op: "Sum", "LogSumExp", "ArgKMin" ...: the table of reductions in the README.
        axis: 0 reduces over i (the result is indexed by j), 1 over j (indexed by i).
        opt_arg: K of the K-reductions.
        formula2: weight of LogSumExp, SumSoftMaxWeight and their kin.
        dtype_acc: "auto" (that of the data), "float32" or "float64": the accumulators of sums.
        use_double_acc: the same as dtype_acc="float64".
        sum_scheme: "auto", "direct_sum", "block_sum" (the default of sums) or "kahan_scheme".
        precision: how products of float32 may be computed on GPUs, where vectors are long: "highest" (as good as
            float32), "high" and "medium" (TF32 and bfloat16, faster), as in `torch.set_float32_matmul_precision`, whose
            setting counts for "auto"; "direct": no products, differences are taken component by component.
        dtype, cuda_type: deprecated and ignored, as in PyKeOps: the dtype is that of the arguments.
        enable_chunks, rec_multVar_highdim, use_fast_math: accepted, without effect: PyKeOps' hints to its own compiler.

    Raises:
        FormulaError: (a ValueError) everything that is wrong with the formula and the aliases, with carets.
        ValueError: for options that do not fit the reduction.

    Reference: https://www.kernel-operations.io/keops/python/api/pytorch/Genred_torch.html
    """

    def __init__(
        self,
        formula: str,
        aliases: Sequence[str],
        reduction_op: str = "Sum",
        axis: int = 0,
        dtype: str | None = None,
        opt_arg: SupportsIndex | None = None,
        formula2: str | None = None,
        cuda_type: str | None = None,
        dtype_acc: str = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        enable_chunks: bool = True,
        rec_multVar_highdim: bool | int | None = False,
        use_fast_math: bool = True,
        precision: str = "auto",
    ) -> None:
        del enable_chunks, rec_multVar_highdim, use_fast_math
        for name, value in (("dtype", dtype), ("cuda_type", cuda_type)):
            if value is not None:
                warnings.warn(
                    f"{name} is deprecated and ignored: the arguments' dtype counts", UserWarning, stacklevel=3
                )
        if opt_arg is not None and not isinstance(opt_arg, SupportsIndex):
            raise TypeError(f"opt_arg: expected an integer K, got {opt_arg!r}")
        if not isinstance(axis, SupportsIndex):
            raise ValueError(f"Axis should be 0 or 1; got {axis!r}")
        if not isinstance(reduction_op, str):
            raise TypeError(f"reduction_op: expected a name such as 'Sum', got {reduction_op!r}")
        if isinstance(aliases, str) or not isinstance(aliases, Iterable):
            raise TypeError(f"aliases: expected a list of strings such as 'x = Vi(3)', got {aliases!r}")
        axis, aliases = operator.index(axis), tuple(aliases)
        self.formula, self.aliases = formula, aliases
        self.reduction_op, self.axis, self.opt_arg, self.formula2 = reduction_op, axis, opt_arg, formula2
        program = Program(formula, aliases, reduction_op, axis, operator.index(opt_arg or 0), formula2)
        self._call = Caller(program, accuracy(program, dtype_acc, use_double_acc, sum_scheme, precision))
        self._reducers: dict[Where, Reducer] = {}

    def explain(self, stage: str = "c", dtype: str = "float32", target: str | None = None) -> str:
        """The text of a stage of compilation, for data of a dtype and many rows.

        `stage` is "ast", "formula", "simplified", "contracted" (for tensor cores), "tile" (for the CPU, or for a GPU
        with a `target`), "c", "triton"; or what Triton makes of the main kernel for a `target` ("cuda:80", "cuda:90",
        "cuda:100", "hip:gfx942"; no such device need be there): "ttir", "ttgir", "llir", "ptx", "sass", "amdgcn".
        Raises ValueError for any other.
        """
        how = self._call.how
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(map(repr, DTYPES))}")
        many = Layout((), 2**20, 2**20)
        return explain(self._call.program, stage, how.target(dtype, many, "triton" if target else "c"), target)

    def _reducer(self, where: Where) -> Reducer:
        """The reduction at a place, over a kind of pattern."""
        found = self._reducers.get(where)
        if found is None:
            check_options(where.backend, where.device_id)
            found = self._reducers[where] = Reducer(self._call, where)
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._call.program.typed.root!r})"
