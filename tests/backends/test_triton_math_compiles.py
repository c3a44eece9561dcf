"""The Triton back end's scalar mathematics compiles for NVIDIA and AMD GPUs, to straight code; no GPU is needed."""

import os
import re

import pytest

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
tkm = pytest.importorskip("tritonkeops.backends.triton.math")
compiler = pytest.importorskip("triton.compiler")
targets = pytest.importorskip("triton.backends.compiler")

pytestmark = pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="TRITON_INTERPRET is set")

BINARY = ["pow", "atan2", "mul_rn"]
UNARY = [name for name in tkm.__all__ if name not in BINARY]


@triton.jit
def unary_kernel(x, out, FUNCTION: tl.constexpr):
    i = tl.arange(0, 128)
    tl.store(out + i, FUNCTION(tl.load(x + i)))


@triton.jit
def binary_kernel(x, y, out, FUNCTION: tl.constexpr):
    i = tl.arange(0, 128)
    tl.store(out + i, FUNCTION(tl.load(x + i), tl.load(y + i)))


@triton.jit
def shapes_kernel(x, y, out):
    """Scalars, a column beside a row, Python numbers; several functions, by their module and by their names."""
    i = tl.arange(0, 16)
    p = i[:, None] * 16 + i[None, :]
    column, row = tl.load(x + i)[:, None], tl.load(y + i)[None, :]
    tl.store(out + p, tkm.pow(column, row) + atan2(column, row))
    tl.store(out + 256, tkm.log1p(tl.load(x)) + tkm.pow(tl.load(x), tl.load(y)))
    tl.store(out + 272 + i, tkm.pow(tl.load(x + i), 2.5) + tkm.pow(3, tl.load(y + i)) + atan2(tl.load(x + i), 0.1))


atan2 = tkm.atan2


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def assembly(kernel, target, dtype, function=None):
    names = kernel.arg_names
    signature = {name: "constexpr" if name == "FUNCTION" else f"*{dtype}" for name in names}
    constexprs = {(names.index("FUNCTION"),): function} if function else {}
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
    compiled = compiler.compile(source, target=target, options={"num_warps": 4, "enable_fp_fusion": True})
    text = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    return re.sub(r"//.*|^\s*\.(b8|loc|file).*$", "", text, flags=re.M)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("name", UNARY + BINARY)
def test_cuda(name, dtype):
    """No calls, no branches, nothing in local memory, no float64 among float32."""
    kernel = binary_kernel if name in BINARY else unary_kernel
    ptx = assembly(kernel, targets.GPUTarget("cuda", 90, 32), dtype, getattr(tkm, name))
    operations = re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z]\w*)[.\s;]", ptx, re.M)
    assert operations.count("st") == 1
    assert not {"call", "bra"} & set(operations)
    assert ".local" not in ptx
    assert dtype == "fp64" or ".f64" not in ptx


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("name", UNARY + BINARY)
def test_hip(name, dtype):
    kernel = binary_kernel if name in BINARY else unary_kernel
    code = assembly(kernel, targets.GPUTarget("hip", "gfx942", 64), dtype, getattr(tkm, name))
    assert "s_swappc" not in code  # a call
    assert re.search(r"\.private_segment_fixed_size: 0$", code, re.M)
    assert dtype == "fp64" or "_f64" not in code


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize(
    "target", [("cuda", 80, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)], ids=lambda t: str(t[1])
)
def test_shapes(target, dtype):
    assert assembly(shapes_kernel, targets.GPUTarget(*target), dtype)
