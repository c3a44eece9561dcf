"""What KeOps executes per pair: its own CUDA code for the named cases, compiled by nvcc and counted. No GPU is needed.

    python -m bench.keops_cuda      # writes bench/results/keops_cuda.json; needs pykeops, nvcc and cuobjdump

That file is committed, so that the counts are there where KeOps or nvcc are not.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import asdict, fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.cases import CASES, Case
from tritonkeops.backends.triton.sass import (
    Instruction,
    PerPair,
    disassemble,
    hot_loop,
    loops,
    parse,
    per_pair,
    usage,
    version_of,
)

RESULTS = Path(__file__).parent / "results" / "keops_cuda.json"
TARGET = "cuda:90"


def saved(case: str, target: str) -> PerPair | None:
    """What the file says of a case, where it has been counted."""
    found = json.loads(RESULTS.read_text())
    if target != found["target"] or case not in found["cases"]:
        return None
    return PerPair(*(found["cases"][case][field.name] for field in fields(PerPair)))


def source(case: Case) -> tuple[str, int]:
    """The CUDA code that KeOps generates for a case (its gradient, where it has one), and the components of a row j.

    It is that of the scheme GpuReduc1D; another one is for longer vectors.
    """
    os.environ["KEOPS_VERBOSE"] = "0"
    # KeOps is imported when first used, as the peers of `bench.peers` are. Its GPU part compares the driver's version
    # when it is imported, and fails on None; any number will do.
    import_module("keopscore.config").cuda_config.get_cuda_version = lambda: 13000
    GpuReduc1D = import_module("keopscore.mapreduce.gpu.GpuReduc1D").GpuReduc1D
    MapReduce = import_module("keopscore.mapreduce.MapReduce").MapReduce
    Genred = import_module("pykeops.torch").Genred

    genred = Genred(**(case.gradient_arguments() if case.gradient_in else case.genred_arguments()))
    dtype = "double" if case.dtype == torch.float64 else "float"
    categories = ("Vi", "Vj", "Pm")
    variables = [f"{v.name}=Var({n},{v.dim},{categories.index(v.category)})" for n, v in enumerate(case.variables)]
    scheme = GpuReduc1D.__new__(GpuReduc1D)  # its constructor goes on to compile, which needs a GPU
    flags = genred.optional_flags
    device = (1, 1, 0, 0, flags["use_fast_math"], 0)  # data on the GPU, GPU, 1D, no half precision, fast, GPU 0
    MapReduce.__init__(scheme, genred.formula, variables, len(variables), dtype, dtype, flags["sum_scheme"], *device)
    assert not scheme.red_formula.formula.chunked_formulas(64), "KeOps would choose GpuReduc1D_chunks"
    scheme.get_code()
    return scheme.code, scheme.varloader.dimy


def compile_cuda(text: str) -> bytes:
    """A cubin, with the options that KeOps gives to NVRTC."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        given.write_text(text)
        architecture = f"-arch=sm_{TARGET.removeprefix('cuda:')}"
        subprocess.run(["nvcc", architecture, "-use_fast_math", "-cubin", "-o", made, given], check=True)
        return made.read_bytes()


def measure(case: Case) -> dict[str, Any]:
    text, components = source(case)
    cubin = compile_cuda(text)
    code = parse(disassemble(cubin))
    pairs = unrolled(code, components * case.dtype.itemsize // 4)
    return {"unrolled": pairs, **asdict(per_pair(code, pairs)), **usage(cubin)._asdict()}


def unrolled(code: list[Instruction], words: int) -> int:
    """The rows j in an iteration of the hot loop: a thread reads each, of so many words, from shared memory.

    nvcc may read a word twice, never a row.
    """
    path = hot_loop(loops(code)).path
    return int(sum(instruction.width for instruction in path if instruction.kind == "shared")) // words


def countable(case: Case) -> bool:
    """Whether the scheme GpuReduc1D is what KeOps chooses: vectors are not too long. Half precision is not counted."""
    return case.one_kernel and case.dims["x"] <= 128 and case.dtype != torch.bfloat16


def main() -> None:
    counts = {name: measure(case) for name, case in CASES.items() if countable(case)}
    versions = {"pykeops": version("pykeops"), "nvcc": version_of("nvcc")}
    RESULTS.write_text(json.dumps({**versions, "target": TARGET, "cases": counts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
