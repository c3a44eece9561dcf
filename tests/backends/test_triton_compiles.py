"""Every operator and reduction compiles for NVIDIA and AMD GPUs that are not there."""

import functools
import os
from dataclasses import replace

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted: nothing is compiled", allow_module_level=True)

from tests.operators.test_reductions import REDUCTIONS  # noqa: E402
from tests.operators.test_registry import OPERATORS, applied, large_examples, small_examples  # noqa: E402
from tritonkeops.backends.triton.offline import compile_offline  # noqa: E402  imports Triton
from tritonkeops.compiler import Program, Target  # noqa: E402
from tritonkeops.formula.ir import Category  # noqa: E402
from tritonkeops.formula.text import spell  # noqa: E402
from tritonkeops.tile.ir import PATTERNS  # noqa: E402
from tritonkeops.torch import Genred  # noqa: E402

DEVICES = ("cuda:90", "hip:gfx942")
every_device = pytest.mark.parametrize("device", DEVICES)


def compiled(program, device, small=True, split=False, roles=None, **target):
    """The kernels of a program, on small tiles unless the schedule's own are wanted."""
    target = {"dtype_acc": "float64" if target.get("dtype") == "float64" else "float32", **target}
    wanted = Target(backend="triton", **target)
    schedule = program.tile(wanted).schedule
    if small:
        schedule = replace(schedule, block_i=32, block_j=8, num_warps=1)
    kernel = program.triton_kernel(wanted, schedule)
    texts = {role: compile_offline(kernel, device, role, split).asm for role in roles or kernel.emitted.params}
    assert all(text["cubin" if device.startswith("cuda") else "hsaco"] for text in texts.values())
    return texts


@functools.cache
def summed(op, dims, static, dtype="float32"):
    """The sum of an operator's components over j, its first operand indexed by i and the others by j."""
    node = applied(op, dims, static, (Category.I, Category.J, Category.J))
    aliases = [f"x{n}={'Vi' if n == 0 else 'Vj'}({d})" for n, d in enumerate(dims)]
    return Program(f"Sum({spell(node)})" if node.dim > 1 else spell(node), aliases or ["x0=Vi(1)"], "Sum", 1, 0, None)


@every_device
@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
def test_operators(op, device):
    compiled(summed(op, *small_examples(op)[0]), device, roles=["reduce"], sum_scheme="direct_sum")


@pytest.mark.parametrize("op", [op for op in OPERATORS.values() if not op.scalar], ids=lambda op: op.name)
def test_operators_of_long_vectors(op):
    for example in large_examples(op)[:1]:
        compiled(summed(op, *example), "cuda:90", roles=["reduce"], sum_scheme="direct_sum")


@pytest.mark.parametrize("op", [op for op in OPERATORS.values() if op.scalar], ids=lambda op: op.name)
def test_operators_in_double_precision(op):
    program = summed(op, *small_examples(op)[0])
    compiled(program, "cuda:90", roles=["reduce"], dtype="float64", sum_scheme="direct_sum")


def reduced(op, dim=3, k=4):
    formula = "SqDist(x,y)" if dim == 1 else "x-y"
    weight = "b" if op.formulas[1] == 2 else None
    size = 3 if dim == 1 else dim
    aliases = [f"x=Vi({size})", f"y=Vj({size})", f"b=Vj({dim})"]
    return Program(formula, aliases, op.name, 1, k if op.takes_k else 0, weight)


SPLIT = [(op, dim) for op in REDUCTIONS.values() for dim in (1, 20) if dim == 1 or not op.takes_k]


@pytest.mark.parametrize(("op", "dim"), SPLIT, ids=lambda x: str(getattr(x, "name", x)))
def test_reductions(op, dim):
    """All kernels of a call whose j is split, with batches (lists of 20 components each take a minute to compile)."""
    scheme = "block_sum" if op.float_sum else "direct_sum"
    compiled(reduced(op, dim), "cuda:90", sum_scheme=scheme, split=True, batch_dims=2)


@every_device
@pytest.mark.parametrize("op", REDUCTIONS.values(), ids=REDUCTIONS)
def test_reductions_of_vectors(op, device):
    scheme = "block_sum" if op.float_sum else "direct_sum"
    compiled(reduced(op, 3), device, roles=["reduce"], sum_scheme=scheme)


VARIANTS = {
    "float64": {"dtype": "float64"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "float64 accumulators": {"dtype_acc": "float64"},
    "long": {"long": True},
    "one row": {"few_rows": 1},
    "few rows": {"few_rows": 16},
    "tens of rows": {"few_rows": 64},
    "hundreds of rows": {"few_rows": 256},
    "batches": {"batch_dims": 1},
    "compensated": {"sum_scheme": "kahan_scheme"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "ArgMin", "ArgKMin"])
def test_variants(name, variant):
    """On the schedules that such calls have."""
    op = REDUCTIONS[name]
    if "scheme" in str(VARIANTS[variant]) and not op.compensated:
        pytest.skip("no compensated twin")
    scheme = "block_sum" if op.float_sum else "direct_sum"
    compiled(reduced(op, 1), "cuda:90", small=False, **{"sum_scheme": scheme, **VARIANTS[variant]})


@every_device
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "Min_ArgMin", "KMin_ArgKMin"])
def test_patterns(name, pattern, device):
    op = REDUCTIONS[name]
    scheme = "block_sum" if op.float_sum else "direct_sum"
    compiled(reduced(op, 3), device, sum_scheme=scheme, batch_dims=1, pattern=pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "variant", [{"dtype": "float64"}, {"dtype": "bfloat16"}, {"long": True}, {"few_rows": 1}, {}], ids=str
)
def test_variants_of_patterns(variant, pattern):
    """On the schedules that such calls have, of short vectors and of long ones."""
    for name, dim in (("Sum", 1), ("ArgMin", 1), ("LogSumExp", 20)):
        op = REDUCTIONS[name]
        scheme = "block_sum" if op.float_sum else "direct_sum"
        compiled(reduced(op, dim), "cuda:90", small=False, sum_scheme=scheme, pattern=pattern, **variant)


@pytest.mark.parametrize("k", [32, 33, 128])
def test_numbers_of_neighbours(k):
    compiled(reduced(REDUCTIONS["ArgKMin"], 1, k), "cuda:90", small=False, sum_scheme="direct_sum")


@pytest.mark.parametrize("device", ["cuda:80", "cuda:100"])
def test_other_capabilities(device):
    for name in ("Sum", "ArgKMin"):
        compiled(reduced(REDUCTIONS[name], 1), device, small=False, sum_scheme="direct_sum")


GAUSSIAN = ("Exp(-SqDist(x,y))*b", ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"])


@pytest.mark.parametrize(
    ("stage", "target", "word"),
    [
        ("ttir", None, "tt.func"), ("ttgir", "cuda:80", "ttg."), ("llir", "cuda:90", "define"),
        ("ptx", "cuda:90", ".target sm_90"), ("ptx", "cuda:80", ".target sm_80"), ("sass", "cuda:90", "MUFU.EX2"),
        ("sass", "cuda:100", "MUFU.EX2"), ("amdgcn", None, "v_exp_f32"), ("amdgcn", "hip:gfx942", "gfx942"),
        ("tile", "cuda:90", "packed"), ("triton", "cuda:90", "@triton.jit"),
    ],
)  # fmt: skip
def test_explain(stage, target, word):
    assert word in Genred(*GAUSSIAN, axis=1).explain(stage, target=target)


@pytest.mark.parametrize(
    ("stage", "target", "message"),
    [
        ("ptx", "hip:gfx942", "hip:gfx942 has the stages ttir, ttgir, llir, amdgcn; got 'ptx'"),
        ("amdgcn", "cuda:90", "cuda:90 has the stages"),
        ("ptx", "sm_90", "target='sm_90': expected cuda:CAPABILITY"),
        ("ptx", "cuda:ninety", "target='cuda:ninety': expected cuda:CAPABILITY"),
        ("asm", "cuda:90", "explain: expected one of ast"),
    ],
)
def test_explain_says_what_there_is(stage, target, message):
    with pytest.raises(ValueError, match=message):
        Genred(*GAUSSIAN, axis=1).explain(stage, target=target)
