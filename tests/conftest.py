"""Shared by all tests: kernels compiled once and kept between runs, and one way to run a formula on a back end."""

import os
from dataclasses import replace

import pytest
import torch

from tritonkeops.backends.c.build import compiler
from tritonkeops.backends.kernel import collapse
from tritonkeops.compiler import Program, Target
from tritonkeops.runtime.call import lay_out


def pytest_configure(config):
    """Compiled kernels outlive the run: `pytest --cache-clear` removes them."""
    if getattr(config, "cache", None) is not None:
        os.environ.setdefault("TRITONKEOPS_CACHE_DIR", str(config.cache.mkdir("kernels")))


def program_of(formula, aliases, reduction_op="Sum", axis=1, k=0, formula2=None):
    return Program(formula, aliases, reduction_op, axis, k, formula2)


def run_program(
    program,
    args,
    backend="c",
    *,
    threads=1,
    dtype_acc=None,
    sum_scheme="block_sum",
    few_rows=0,
    out=None,
    pattern=None,
    **changes,
):
    """The outputs of a reduction, each (*batch, rows, components), from one back end.

    `changes` are made to the fields of the schedule that the chooser gives.
    """
    if backend == "c" and compiler() is None:
        pytest.skip("no C compiler")
    layout = lay_out(program.variables, args, program.reduction.axis)
    dtype = str(args[0].dtype).removeprefix("torch.")
    target = Target(dtype, dtype_acc or ("float64" if dtype == "float64" else "float32"), sum_scheme, few_rows)
    device = args[0].device
    pairs = pattern and pattern.to(device).pairs(program.reduction.axis, layout.rows, layout.cols, device)
    target = replace(target, pattern=pairs.pattern if pairs else "")
    if backend == "triton":
        sizes, _ = collapse(layout, args, [2 if var.axes else 1 for var in program.variables])
        target = replace(target, backend="triton", batch_dims=len(sizes))
    schedule = replace(program.tile(target).schedule, **changes) if changes else None
    kernel = program.reference(target) if backend == "torch" else program.kernel(target, schedule)
    kinds = [torch.int64 if kind == "index" else args[0].dtype for kind in program.reduction.op.outputs]
    shape = (*layout.batch, layout.rows, program.reduction.dim)
    # What a kernel forgets to write shows.
    outputs = out or [torch.full(shape, -99, dtype=kind, device=args[0].device) for kind in kinds]
    kernel.prepare(args, layout)(args, outputs, threads, pairs)
    return outputs


@pytest.fixture(scope="session")
def program():
    """program(formula, aliases, reduction_op="Sum", axis=1, k=0, formula2=None): through the formula passes."""
    return program_of


@pytest.fixture(scope="session")
def run():
    """run(program, args, backend="c", "torch" or "triton", threads=..., block_sum=...): a list of outputs."""
    return run_program
