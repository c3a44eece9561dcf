"""Modules of the form "dot": their text, and what it compiles to for devices that are not there.

What they compute: tests/interpreted/test_dot.py.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.backends.test_triton_emit import Reader, function, kernel
from tritonkeops.backends.triton.emit import emit
from tritonkeops.compiler import Program, Target

GAUSSIAN = "Exp(-SqDist(x, y)) * b"
CASES = {
    "short": (GAUSSIAN, 10, 1, "Sum", 0, None),
    "long": (GAUSSIAN, 64, 1, "Sum", 0, None),
    "streamed": (GAUSSIAN, 300, 1, "Sum", 0, None),
    "many sums": (GAUSSIAN, 64, 64, "Sum", 0, None),
    "exponential": ("b - SqDist(x, y)", 33, 1, "LogSumExp", 0, None),
    "average": ("(x | y)", 64, 64, "SumSoftMaxWeight", 0, "b"),
    "average of differences": ("-SqDist(x, y)", 17, 1, "SumSoftMaxWeight", 0, "x - y"),
    "nearest": ("SqDist(x, y)", 128, 1, "Min_ArgMin", 0, None),
    "neighbours": ("SqDist(x, y)", 64, 1, "KMin_ArgKMin", 5, None),
}
WAYS = [
    {},
    {"precision": "high", "batch_dims": 1},
    {"precision": "medium", "few_rows": 64, "long": True},
    {"dtype": "float16", "batch_dims": 2},
    {"dtype": "bfloat16", "sum_scheme": "block_sum"},
]
every_case = pytest.mark.parametrize("name", CASES)


def program(name: str) -> Program:
    formula, dim, wide, op, k, weight = CASES[name]
    return Program(formula, [f"x = Vi({dim})", f"y = Vj({dim})", f"b = Vj({wide})"], op, 1, k, weight)


def target(name: str, **how: Any) -> Target:
    return replace(Target(backend="triton", sum_scheme="direct_sum" if "n" in name[:1] else "block_sum"), **how)


def source(name: str, **how: Any) -> str:
    return program(name).source(target(name, **how))


# ---- text ----


@every_case
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_names_are_defined_before_they_are_read(name: str, way: dict[str, Any]) -> None:
    wanted = target(name, **way)
    assert program(name).tile(wanted).schedule.form == "dot"
    assert Reader(ast.parse(program(name).source(wanted))).check() == []


@pytest.mark.parametrize("names", [
    "far,left", "operands_j,right", "wanted,best", "k,v1", "pair1,center", "rest,high", "low,is_far",
])  # fmt: skip
def test_users_may_call_variables_what_they_like(names: str) -> None:
    """Nothing is assigned to what was passed, in the kernels that prepare tables."""
    x, y = names.split(",")
    for formula, op in (f"Exp(-SqDist({x}, {y})) * b", "Sum"), (f"SqDist({x}, {y})", "ArgKMin"):
        made = Program(formula, [f"{x} = Vi(10)", f"{y} = Vj(10)", "b = Vj(20)"], op, 1, 3 * (op != "Sum"), None)
        text = made.source(Target(backend="triton"))
        assert Reader(ast.parse(text)).check() == []
        for table in re.findall(r"def (\w+_(?:split|pack)_[ij])\(", text):
            (parsed,) = ast.parse(function(text, table)).body
            assert isinstance(parsed, ast.FunctionDef)
            targets = [t for each in ast.walk(parsed) if isinstance(each, ast.Assign) for t in each.targets]
            assigned = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            assert not assigned & {each.arg for each in parsed.args.args}


def test_names_by_convention_do_not_hide_the_center() -> None:
    """A user's own center is another variable."""
    made = Program("Exp(-SqDist(center, y)) * b", ["center = Vi(10)", "y = Vj(10)", "b = Vj(1)"], "Sum", 1, 0, None)
    text = made.source(Target(backend="triton"))
    assert Reader(ast.parse(text)).check() == [] and "center_: a parameter of 10 components" in text


@pytest.mark.parametrize(("name", "way", "products"), [
    ("short", {}, 1),  # all terms side by side, norms too
    ("short", {"precision": "high"}, 1),
    ("long", {}, 4),  # norms, and three of two parts each
    ("long", {"precision": "high"}, 2),
    ("streamed", {}, 4),
    ("exponential", {}, 7),  # 33 components are 32 columns and 16
    ("many sums", {}, 7),  # and three sums of products
    ("many sums", {"precision": "high"}, 3),
    ("average", {"dtype": "bfloat16"}, 4),  # the scaled factor is cut into three parts
    ("nearest", {}, 4),  # bfloat16: three of two parts each, since values are evaluated directly
    ("nearest", {"precision": "high"}, 4),
    ("nearest", {"dtype": "bfloat16"}, 2),
    ("neighbours", {}, 4),
])  # fmt: skip
def test_products(name: str, way: dict[str, Any], products: int) -> None:
    fold = function(source(name, **way), "fold")
    assert len(re.findall(r"(?:tl\.dot|dot_bf16)\(", fold)) == products


@every_case
def test_either_the_products_or_the_fallback_work(name: str) -> None:
    """What tells is written by the kernels that cut operands into parts, and read by the others."""
    text = source(name)
    for axis in "ij":
        split = kernel(text, f"_split_{axis}")
        assert "tl.atomic_max(far, " in split and "tl.load(far)" not in split
        assert split.index("is_far = ") < split.index("tl.atomic_max(far")
    for suffix in ("", "_merge"):
        assert "if tl.load(far) != 0:\n        return" in kernel(text, suffix)
    wanted = target(name)
    other = emit(program(name).tile(replace(wanted, precision="direct")), wanted.dtype, wanted.dtype_acc, fallback=True)
    for each in other.names.values():
        assert "if tl.load(far) == 0:\n        return" in function(other.text, each)


def test_batches_without_entries_of_their_own_share_tables() -> None:
    text = source("long", batch_dims=1)
    assert "operands_j += entry * operands_j_batch" in text
    assert "entry" not in source("long")


# ---- machine code ----

DEVICES = {
    "long": "cuda:80",
    "average": "cuda:80",
    "many sums": "cuda:90",
    "streamed": "cuda:90",
    "neighbours": "cuda:90",
    "exponential": "hip:gfx942",
}
WORDS = {"cuda:80": "HMMA", "cuda:90": "HGMMA", "hip:gfx942": "v_mfma"}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted: nothing is compiled")
@pytest.mark.parametrize("name", DEVICES)
def test_kernels_compile(name: str) -> None:
    """To products of matrices, on compute capability 9.0 with all values in registers."""
    pytest.importorskip("triton")
    from tritonkeops.backends.triton.offline import compile_offline
    from tritonkeops.backends.triton.predict import counted
    from tritonkeops.backends.triton.sass import disassemble

    device = DEVICES[name]
    made = program(name).triton_kernel(target(name, dtype="bfloat16" if name == "average" else "float32"))
    code = compile_offline(made, device).asm
    text = disassemble(code["cubin"]) if device.startswith("cuda") else code["amdgcn"]
    assert WORDS[device] in text
    if device == "cuda:90":
        assert counted(made, device)[1].spilled == 0


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted: nothing is compiled")
def test_all_kernels_of_a_module_compile() -> None:
    """Those before and after the main one, where j is split and there are batches."""
    pytest.importorskip("triton")
    from tritonkeops.backends.triton.offline import compile_offline

    made = program("many sums").triton_kernel(target("many sums", batch_dims=1))
    assert set(made.emitted.names) == {"pack_j", "split_i", "split_j", "reduce", "merge"}
    assert made.fallback and set(made.fallback.emitted.names) == {"pack_i", "pack_j", "reduce", "merge"}
    for each in (made, made.fallback):
        for role in set(each.emitted.names) - {"reduce"}:
            assert compile_offline(each, "cuda:90", role, split=True).asm["cubin"]
