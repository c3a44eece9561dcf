"""Kernels of the Triton back end in Triton's interpreter, on CPU tensors:

TRITON_INTERPRET=1 python -m pytest -n 2 tests/interpreted

Every address that a kernel reads or writes is checked to be in one of its arguments, and new memory holds NaN.
"""

import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.conftest import run_program
from tritonkeops.torch import Genred

SMALL = {"block_i": 32, "block_j": 16}  # the interpreter's time goes by operations and programs, not by elements


def pytest_runtest_setup(item):
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs Triton's interpreter: TRITON_INTERPRET=1 python -m pytest tests/interpreted")
    pytest.importorskip("triton")


@pytest.fixture(scope="session", autouse=True)
def interpreter_of_other_versions():
    """What interpreters get wrong, as compiled kernels have it: those of Triton 3.6 to 3.9 make floats of comparisons
    of scalars when they broadcast them, and that of 3.6 lets NaN through `tl.maximum` and `tl.minimum`."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    splat = InterpreterBuilder.create_splat

    def create_splat(self, kind, arg):
        if arg.data.dtype != bool:
            return splat(self, kind, arg)
        return TensorHandle(np.broadcast_to(arg.data, kind.shape), arg.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_splat", create_splat)
        patch.setattr(InterpreterBuilder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax))
        patch.setattr(InterpreterBuilder, "create_minnumf", lambda self, a, b: self.binary_op(a, b, np.fmin))
        yield


class Memory:
    """The memory of a launch: what addresses its arguments have, and that no others are used."""

    def __init__(self, interpreter):
        self.launch, self.convert = interpreter.GridExecutor.__call__, interpreter._implicit_cvt
        self.load, self.store = interpreter._interpreter.load, interpreter._interpreter.store
        self.ranges = []

    def launched(self, executor, *args, **options):
        self.ranges = []
        return self.launch(executor, *args, **options)

    def converted(self, arg):
        if isinstance(arg, torch.Tensor) and arg.numel():
            last = sum((size - 1) * stride for size, stride in zip(arg.shape, arg.stride(), strict=True))
            self.ranges.append((arg.data_ptr(), arg.data_ptr() + (last + 1) * arg.itemsize))
        return self.convert(arg)

    def check(self, pointers, mask, itemsize):
        used = pointers[np.broadcast_to(mask, pointers.shape)]
        if used.size:
            low, high = int(used.min()), int(used.max()) + itemsize
            assert any(start <= low and high <= stop for start, stop in self.ranges), "outside of the arguments"

    def loaded(self, pointers, mask, other, kind):
        self.check(pointers, mask, np.dtype(kind).itemsize)
        return self.load(pointers, mask, other, kind)

    def stored(self, pointers, values, mask):
        self.check(pointers, mask, values.itemsize)
        return self.store(pointers, values, mask)


@pytest.fixture(scope="session", autouse=True)
def nothing_outside_of_the_arguments_is_used():
    from triton.runtime import interpreter

    memory = Memory(interpreter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", lambda *args, **options: memory.launched(*args, **options))
        patch.setattr(interpreter, "_implicit_cvt", memory.converted)
        patch.setattr(interpreter._interpreter, "load", memory.loaded)
        patch.setattr(interpreter._interpreter, "store", memory.stored)
        yield


@contextmanager
def poisoned():
    """New tensors hold NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def run():
    """run(program, args, backend="triton", **how): as in the other tests, by Triton, in small tiles unless a size
    class is asked for."""

    def run(program, args, backend="triton", **how):
        small = {} if backend != "triton" or "few_rows" in how else SMALL
        with poisoned():
            outputs = run_program(program, args, backend, **(small | how))
        assert not any((x == -99).any() for x in outputs), "a result was not written"
        return outputs

    return run


class OnGPU(Genred):
    """Its calls go to the Triton back end, which interprets kernels under TRITON_INTERPRET=1."""

    def __call__(self, *args, **options):
        with poisoned():
            return super().__call__(*args, backend="GPU", **options)


@pytest.fixture(scope="session")
def genred():
    """tritonkeops.torch.Genred, of which all calls are computed by Triton."""
    return OnGPU
