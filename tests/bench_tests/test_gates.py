"""The gates on machine code for compute capability 9.0: instructions per pair in the loop over tiles, and no spills."""

import os
import re
from collections import Counter

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted: nothing is compiled", allow_module_level=True)

from bench.cases import CASES  # noqa: E402
from bench.machine_code import kernel_of  # noqa: E402  imports Triton
from tritonkeops.backends.triton.offline import compile_offline  # noqa: E402
from tritonkeops.backends.triton.predict import counted  # noqa: E402
from tritonkeops.backends.triton.sass import disassemble  # noqa: E402

HOT = {
    "gaussian_d3": 8.8,
    "logsumexp_d3": 10.6,
    "gaussian_grad_d3": 12.2,
    "argkmin10_d3": 9,
    "argmin_d3": 8,
    "gaussian_d10": 12,
    "gaussian_d64": 8,
    "logsumexp_d64": 9,
    "argmin_d128_bf16": 5,
    "softmax_d64_bf16": 10,
}
SLOW = {"argkmin10_d3": 90}
TESTED = (3, 9)  # the newest Triton; older ones may take a fifth more


def allowance():
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return 1 if version >= TESTED else 1.2


@pytest.mark.parametrize("name", HOT)
def test_instructions_per_pair(name):
    per_pair, usage = counted(kernel_of(CASES[name]), "cuda:90")
    assert per_pair.lanes["issue"] <= HOT[name] * allowance()
    assert usage.spilled == 0
    if name in SLOW:
        assert per_pair.lanes["issue"] + per_pair.skipped <= SLOW[name] * allowance()


@pytest.mark.parametrize("name", ["gaussian_d3", "logsumexp_d3", "argkmin10_d3"])
def test_the_count_sees_worse_code(name):
    """The gates can fail: exponentials to base e, or a tile too large for the registers, cost more."""
    kernel = kernel_of(CASES[name])
    if name == "argkmin10_d3":
        tile = {"block_i": 128, "block_j": 64}
    else:
        tile = {"packed": False, "spread": False}
    per_pair, usage = counted(kernel_of(CASES[name], **tile), "cuda:90")
    assert per_pair.lanes["issue"] > counted(kernel, "cuda:90")[0].lanes["issue"] or usage.spilled


def test_a_gradient_costs_as_much_as_two_sums():
    """The weights of its sums are the value's; beside them it takes one more product of matrices."""
    value, gradient = (counted(kernel_of(CASES[f"gaussian_{name}d64"]), "cuda:90") for name in ("", "grad_"))
    assert gradient[0].lanes["issue"] <= 2 * value[0].lanes["issue"] * allowance()
    assert gradient[1].spilled == 0


def test_averages_of_bfloat16_are_two_products_of_it():
    """Without the tensor cores' other formats: tf32 for the weights would take twice the time."""
    kernel = kernel_of(CASES["softmax_d64_bf16"])
    sass = disassemble(compile_offline(kernel, "cuda:90").asm["cubin"])
    formats = Counter(re.findall(r"HGMMA\.64x\d+x\d+\.F32\.(\w+)", sass))
    # Of 64 components, 16 at a time; the factor with the scale has three parts. Of 128 rows j. Full tiles and the last.
    assert formats == {"BF16": 2 * (3 * 64 // 16 + 128 // 16)}


def test_scaled_inputs_are_rounded_before_they_are_subtracted():
    """c*x - c*y is 0 where x is y only if no product is contracted with the subtraction: then it is an FFMA."""
    sass = disassemble(compile_offline(kernel_of(CASES["gaussian_d3"]), "cuda:90").asm["cubin"])
    pairs_per_thread = 64
    assert sass.count("FADD") >= 2 * 3 * pairs_per_thread  # in the loop, and in the masked tail
