"""Kernels of the Triton back end in Triton's interpreter, on CPU tensors:

TRITON_INTERPRET=1 python -m pytest -n 2 tests/interpreted
"""

import os

import numpy as np
import pytest

from tests.conftest import run_program
from tritonkeops.torch import Genred

SMALL = {"block_i": 32, "block_j": 16}  # the interpreter's time goes by operations and programs, not by elements


def pytest_runtest_setup(item):
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs Triton's interpreter: TRITON_INTERPRET=1 python -m pytest tests/interpreted")
    pytest.importorskip("triton")


@pytest.fixture(scope="session", autouse=True)
def booleans_stay_booleans():
    """Broadcasting what a comparison of scalars gave, the interpreters of Triton 3.6 to 3.9 make floats of it."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    splat = InterpreterBuilder.create_splat

    def create_splat(self, kind, arg):
        if arg.data.dtype != bool:
            return splat(self, kind, arg)
        return TensorHandle(np.broadcast_to(arg.data, kind.shape), arg.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_splat", create_splat)
        yield


@pytest.fixture(scope="session")
def run():
    """run(program, args, backend="triton", **how): as in the other tests, by Triton, in small tiles unless a size
    class is asked for."""

    def run(program, args, backend="triton", **how):
        small = {} if backend != "triton" or "few_rows" in how else SMALL
        outputs = run_program(program, args, backend, **(small | how))
        assert not any((x == -99).any() for x in outputs), "a result was not written"
        return outputs

    return run


class OnGPU(Genred):
    """Its calls go to the Triton back end, which interprets kernels under TRITON_INTERPRET=1."""

    def __call__(self, *args, **options):
        return super().__call__(*args, backend="GPU", **options)


@pytest.fixture(scope="session")
def genred():
    """tritonkeops.torch.Genred, of which all calls are computed by Triton."""
    return OnGPU
