"""What the compiler makes of an emitted kernel: full-width vectors, and no call in the loop over pairs."""

import re
import subprocess
import sys

import pytest

from tritonkeops.backends.c.build import compiler, flags
from tritonkeops.compiler import Program, Target
from tritonkeops.tile.schedule import vector_bytes

REGISTER = {64: "zmm", 32: "ymm", 16: "xmm"}[vector_bytes()]
ALIASES = {3: ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"], 64: ["x=Vi(64)", "y=Vj(64)", "b=Vj(1)"]}
GAUSSIAN = "Exp(-SqDist(x,y))*b"


def fold_assembly(folder, formula, dim, reduction="Sum", k=0, dtype="float32"):
    """The assembly of a kernel's `fold`, its only hot function."""
    source = Program(formula, ALIASES[dim], reduction, 1, k, None).source(Target(dtype, dtype, "direct_sum"))
    text, assembly = folder / "kernel.c", folder / "kernel.s"
    text.write_text(source.replace("static void fold(", "__attribute__((noinline)) static void fold("))
    options = [flag for flag in flags() if flag not in ("-shared",)]
    subprocess.run([*compiler(), *options, "-S", str(text), "-o", str(assembly)], check=True)
    body = re.search(r"^fold:\n(.*?)^\s*\.size\s+fold,", assembly.read_text(), re.M | re.S)
    assert body, "no function fold in the assembly"
    return body[1]


def instructions(assembly, pattern):
    return [line.strip() for line in assembly.splitlines() if re.match(rf"\s+{pattern}", line)]


@pytest.mark.skipif(not sys.platform.startswith("linux") or compiler() is None, reason="needs an ELF compiler")
@pytest.mark.skipif(REGISTER == "xmm", reason="needs AVX2 or wider")
@pytest.mark.parametrize(
    ("formula", "dim", "reduction", "k"),
    [
        (GAUSSIAN, 3, "Sum", 0),
        (GAUSSIAN, 64, "Sum", 0),
        ("-SqDist(x,y)", 3, "LogSumExp", 0),
        ("SqDist(x,y)", 3, "ArgKMin", 10),
        ("SqDist(x,y)", 64, "ArgMin", 0),
        ("Grad(Exp(-SqDist(x,y)), x, 1)", 64, "Sum", 0),
    ],
)
def test_hot_loops_use_whole_vectors(tmp_path, formula, dim, reduction, k):
    assembly = fold_assembly(tmp_path, formula, dim, reduction, k)
    assert not instructions(assembly, r"call"), "a function is called for each pair"
    scalar = instructions(assembly, r"v(sub|add|mul|div|fn?m(add|sub)\d+)s[sd]\b")
    whole = [line for line in instructions(assembly, r"v(sub|mul|fn?m(add|sub)\d+)p[sd]\b") if REGISTER in line]
    assert len(whole) > 20
    assert not scalar, f"scalar arithmetic: {scalar[:5]}"


def test_a_kernel_with_a_libm_call_is_caught(tmp_path):
    """The test above can fail: sines of float64 call the C library."""
    assembly = fold_assembly(tmp_path, "Sin(SqDist(x,y))*b", 3, dtype="float64")
    assert instructions(assembly, r"call")
